"""Options that several verbs share, and how they become a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from probekit.errors import InputError
from probekit.plan import Plan

Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        "-m",
        help="NAME=ARCH:CHECKPOINT[,key=value…]; repeat to compare. CHECKPOINT is a file, random, "
        "random@SEED, pretrained, bundled@ARM or wheel; keys are branch, size, resize, mean, std, "
        "interpolation, levels.",
    ),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        "-d",
        help="Folder or zip of class folders, COCO, VOC, masks or key points, .npz, .csv or .parquet "
        "manifest, tar shards, torchvision/CLASS, digits, shapeworld/WORLD; options after a comma, as in "
        "shapeworld/source,train=2000,test=1000.",
    ),
]
OneData = Annotated[
    str | None, typer.Option("--data", "-d", help="Images with train and test, as other verbs name them.")
]
Task = Annotated[
    str | None,
    typer.Option(
        help="classification, episodes[/novel] (few-shot), landmarks, segmentation[/one-layer, /deeplabv3], "
        "detection[/c4, /c4-norm] (FCOS, or Faster R-CNN) [default: classification]."
    ),
]
Target = Annotated[
    str | None, typer.Option(help="Name of the target [default: the first that the task can take].")
]
Frozen = Annotated[
    bool, typer.Option("--frozen", help="Train the head alone, not the backbone with it [default: both].")
]
Trials = Annotated[int | None, typer.Option(min=1, help="Trainings of every state [default: 3].")]
Folds = Annotated[
    int | None,
    typer.Option(min=0, help="Parts of a cross-validation over all images; 0 keeps the splits [default: 0]."),
]
Steps = Annotated[int | None, typer.Option(min=1, help="Optimiser steps of a training [default: 500].")]
TrainingBatch = Annotated[
    int | None, typer.Option("--batch-size", min=2, help="Images a step [default: 64].")
]
Rates = Annotated[
    list[float] | None,
    typer.Option(help="Largest learning rate; repeat to choose on val [default: 0.0003, 0.001, 0.003]."),
]
Fraction = Annotated[
    float | None, typer.Option(help="Share of the training images that is used [default: 1].")
]
Taps = Annotated[
    str | None,
    typer.Option(
        "--taps",
        "-t",
        help="Module paths, globs, re:… or presets (levels stages blocks penultimate low mid high), "
        "comma-separated; a readout follows a bar, as in layer3|max.",
    ),
]
Out = Annotated[
    str | None, typer.Option("--out", "-o", help="Folder or URL for tables, figures, plan and page.")
]
Config = Annotated[Path | None, typer.Option(help="YAML file of settings; flags override it.")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", help="Change one setting, as key=value in YAML; repeat.")
]
NoRandom = Annotated[bool, typer.Option("--no-random", help="Leave the controls out.")]
Store = Annotated[
    str | None,
    typer.Option(
        help="Folder, or URL such as s3://bucket/store, that keeps features and finished cells "
        "[default: the user's cache]."
    ),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps [default: the best there is].")]
Jobs = Annotated[int, typer.Option(min=1, help="Parallel workers for probes.")]
BatchSize = Annotated[int | None, typer.Option(help="Images a forward pass [default: 64].")]
Precision = Annotated[
    str | None,
    typer.Option(help="Of the forward pass: float32, or bfloat16 with its error stated [default: float32]."),
]
Smoke = Annotated[bool, typer.Option("--smoke", help="Shrink to seconds: few images, penalties and draws.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print what would be run, computed and written, and stop.")
]


def build_plan(
    verb: str, config: Path | None, flags: Mapping[str, Any], changes: Sequence[str] | None = None
) -> Plan:
    """Lay flags that were given over a config file over the verb's defaults.

    Raises:
        InputError: If the config is for another verb, or a change is not ``key=value``.
    """
    settings: dict[str, Any] = {}
    if config is not None:
        read = _read_config(config, verb)
        settings |= read
    settings |= {name: value for name, value in flags.items() if value is not None and value != []}
    return Plan(verb, settings).having(**parse_changes(changes))


def parse_changes(changes: Sequence[str] | None) -> dict[str, Any]:
    """Read ``key=value`` texts; values are YAML, so that ``[1, 2]`` is a list.

    Raises:
        InputError: If a text has no ``=`` or its value is not YAML.
    """
    parsed = {}
    for change in changes or []:
        name, sign, value = change.partition("=")
        if not sign or not name:
            raise InputError("--set KEY=VALUE", repr(change), "Write --set permutations=5, for example")
        try:
            parsed[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(f"a YAML value for {name}", repr(value), "Quote the value") from error
    return parsed


def split_taps(taps: str | None) -> list[str] | None:
    """Split a comma list of taps; a comma inside parentheses or a regular expression does not split.

    Examples:
        >>> split_taps("stages,layer1|grid(2),re:layer[1,2]")
        ['stages', 'layer1|grid(2)', 're:layer[1,2]']
    """
    if taps is None:
        return None
    pieces, depth, current = [], 0, ""
    for letter in taps:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            pieces.append(current.strip())
            current = ""
        else:
            current += letter
    return [piece for piece in [*pieces, current.strip()] if piece]


def _read_config(path: Path, verb: str) -> dict[str, Any]:
    if not path.is_file():
        raise InputError("a config file", f"{path}, which does not exist", "Check the path")
    text = path.read_text(encoding="utf-8")
    plan = Plan.from_yaml(text if "verb:" in text else f"verb: {verb}\n{text}", str(path))
    if plan.verb != verb:
        raise InputError(
            f"settings of `{verb}` in {path}", f"settings of `{plan.verb}`", f"Use `probekit run {path}`"
        )
    return dict(plan.settings)
