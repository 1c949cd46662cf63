"""One architecture held against what timm declares and computes, check by check."""

from __future__ import annotations

import gc
import json
import math
import signal
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from probekit import Backbone, Preprocessing, ResultTable, Tap, list_layers, record
from probekit.backbones.architectures import classifier_paths
from probekit.backbones.backbone import token_facts
from probekit.backbones.checkpoint import Checkpoint
from probekit.files import append_line, cache_folder, digest_file, digest_json, read_lines
from probekit.progress import progress_bar
from probekit.taps.facts import layer_facts, list_blocks
from probekit.taps.layers import resolve_taps
from probekit.taps.readout import map_size

CHECKS = ("layers", "strides", "levels", "readouts", "penultimate", "early stop")
# Sides to try, in pixels, the smallest first: a network is read where its deepest map still has positions.
SIZES = (64, 96, 128, 224, 256, 384)
LEVELS = ("low", "mid", "high")
# Axes of an activation → where its channels stand.
CHANNELS = {"NC": 1, "NCHW": 1, "NHWC": 3, "NLC": 2}
RIGHT, UNKNOWN = "right", "not checked"


def sweep(settings: Mapping[str, Any]) -> ResultTable:
    """Check every name; what is finished is kept in the cache folder.

    Args:
        settings: ``names`` (timm's, or a pattern), ``seconds`` and ``most_parameters`` of each.
    """
    names = timm.list_models(settings["names"]) if isinstance(settings["names"], str) else settings["names"]
    journal = cache_folder() / "timm_sweep" / f"{_code_digest(settings)}.jsonl"
    done = {line["name"]: line for line in read_lines(journal)}
    with progress_bar(len(names), "Architectures", "arch") as bar:
        for name in sorted(names, key=_parameters):
            if name not in done:
                found = check_architecture(
                    name, seconds=settings["seconds"], most_parameters=settings["most_parameters"]
                )
                append_line(journal, found)
                done[name] = found
            bar.update(1)
    return _table([done[name] for name in names])


def check_architecture(name: str, *, seconds: int = 60, most_parameters: int = 350_000_000) -> dict[str, Any]:
    """Hold one architecture against what timm declares and computes.

    Args:
        name: A name of timm's.
        seconds: Time limit; what is not checked by then says so.
        most_parameters: Networks with more are looked at on the meta device: shapes, no values.

    Returns:
        ``name``, ``family`` (timm's file), ``parameters``, ``how`` it was checked, and each check →
        ``right``, ``not checked: why`` or what is wrong.
    """
    parameters = _parameters(name)
    hollow = parameters > most_parameters
    found: dict[str, Any] = {
        "name": name,
        "family": timm.model_entrypoint(name).__module__.rpartition(".")[2],
        "parameters": parameters,
        "how": "",
    }
    found |= dict.fromkeys(CHECKS, f"{UNKNOWN}: over {seconds} s")
    try:
        with _limit(seconds), warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            for size in _sizes(name):
                backbone = _build(name, size, hollow)
                found["how"] = f"{'shapes' if hollow else 'values'} at {size} px"
                found |= dict(_check(backbone, size, hollow))
                # What is wrong at a small side, where maps shrink to a point, may be right at its own.
                if all(found[check].startswith((RIGHT, UNKNOWN)) for check in CHECKS):
                    break
    except _TooLong:
        pass  # what was not reached says so already
    except Exception as error:  # noqa: BLE001 - whatever an architecture raises is its result
        if not found["how"]:
            found |= dict.fromkeys(CHECKS, f"{UNKNOWN}: it cannot be run: {_said(error)}")
    gc.collect()
    return found


def _check(backbone: Backbone, size: int, hollow: bool) -> Iterator[tuple[str, str]]:
    torch.manual_seed(0)
    batch = torch.randn(2, 3, size, size)
    checks: dict[str, Callable[[], str]] = {
        "layers": lambda: _check_layers(backbone),
        "strides": lambda: _check_strides(backbone),
        "levels": lambda: _check_levels(backbone),
        "readouts": lambda: _check_readouts(backbone, batch),
        "penultimate": lambda: _check_penultimate(backbone, batch),
        "early stop": lambda: _check_early_stop(backbone, batch),
    }
    for name, check in checks.items():
        if hollow and name not in ("layers", "strides", "levels"):
            yield name, f"{UNKNOWN}: shapes only"
            continue
        try:
            yield name, check()
        except _TooLong:
            raise
        except Exception as error:  # noqa: BLE001 - whatever an architecture raises is its result
            yield name, _said(error)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:160]


def _check_layers(backbone: Backbone) -> str:
    """Look for three blocks or more, each with a default readout."""
    listed, facts = list_layers(backbone), layer_facts(backbone)
    blocks = list_blocks(backbone)
    if len(blocks) < len(LEVELS) or len(listed) < len(blocks):
        return f"{len(blocks)} blocks"
    for block in blocks:
        layout = facts.layout(block.tap)
        if layout.axes not in CHANNELS or (layout.axes == "NLC" and layout.prefix_tokens is None):
            return f"no readout at block {block.path}"
    return RIGHT


def _declared(backbone: Backbone) -> list[Mapping[str, Any]]:
    declared = getattr(backbone.module, "feature_info", None) or []
    return [one for one in declared if isinstance(one, Mapping) and one.get("module")]


def _check_strides(backbone: Backbone) -> str:
    declared, facts = _declared(backbone), layer_facts(backbone)
    if not declared:
        return f"{UNKNOWN}: timm declares nothing"
    strides = {round(math.log2(block.stride)) for block in list_blocks(backbone)}
    for one in declared:
        calls = facts.trace.calls.get(one["module"])
        if not calls or len(calls[0].returned.entries) != 1:
            if round(math.log2(one["reduction"])) not in strides and one["reduction"] > 2:
                return f"no block of stride {one['reduction']}"
            continue
        tap = Tap(
            one["module"], element=next(iter(calls[0].returned.entries)), call=0 if len(calls) > 1 else None
        )
        value, layout = facts.value(tap), facts.layout(tap)
        if layout.axes not in CHANNELS:
            return f"unknown axes at {one['module']}"
        channels = CHANNELS[layout.axes]
        if value.shape[channels] != one["num_chs"]:
            return f"{value.shape[channels]} channels at {one['module']}, {one['num_chs']} declared"
        grid = map_size(layout, value.shape[1:]) or layout.grid
        if grid is None:
            return f"no positions at {one['module']}"
        # A side that a stride does not divide is rounded up, so strides are compared in octaves.
        if round(math.log2(facts.trace.size / max(grid))) != round(math.log2(one["reduction"])):
            return f"stride {facts.trace.size / max(grid):g} at {one['module']}, {one['reduction']} declared"
    return RIGHT


def _check_levels(backbone: Backbone) -> str:
    found = [block.level for block in list_blocks(backbone)]
    if set(found) != set(LEVELS):
        return f"levels {sorted(set(found))}"
    ranks = [LEVELS.index(level) for level in found]
    return RIGHT if ranks == sorted(ranks) else "levels go back"


def _check_readouts(backbone: Backbone, batch: torch.Tensor) -> str:
    """Compare spatial means with those of timm's own intermediates."""
    net: Any = backbone.module
    if not hasattr(net, "forward_intermediates"):
        return f"{UNKNOWN}: timm has no intermediates"
    wanted = net.forward_intermediates(batch, norm=False, intermediates_only=True, output_fmt="NCHW")
    declared = [one["module"] for one in _declared(backbone)]
    called = layer_facts(backbone).trace.calls
    blocks = [block.tap for block in list_blocks(backbone)]
    single = [path for path in called if called[path] and len(called[path][-1].returned.entries) == 1]
    missed: list[int] = []
    for paths in ([path for path in declared if path in single], [path for path in single if path]):
        missed = _missed(backbone, wanted, _with_paths(blocks, paths), batch)
        if not missed:
            return RIGHT
    return f"intermediate {missed[0]} of {len(wanted)} stands nowhere"


def _with_paths(blocks: Sequence[Tap], paths: Sequence[str]) -> list[Tap]:
    known = {tap.path for tap in blocks}
    return [*blocks, *(Tap(path) for path in paths if path not in known)]


def _missed(
    backbone: Backbone, wanted: Sequence[torch.Tensor], taps: Sequence[Tap], batch: torch.Tensor
) -> list[int]:
    """Return which intermediates no tap equals."""
    means = _means(backbone, taps, batch).values()
    return [
        place
        for place, one in enumerate(wanted)
        if not any(_equal(mean, one.flatten(2).mean(2)) for mean in means)
    ]


def _means(backbone: Backbone, taps: Sequence[Tap], batch: torch.Tensor) -> dict[Tap, torch.Tensor]:
    facts, asked = layer_facts(backbone), []
    for tap in taps:
        layout = facts.layout(tap)
        readout = {"NCHW": "gap", "NHWC": "gap", "NLC": "patch_mean"}.get(layout.axes)
        known = layout.axes != "NLC" or layout.prefix_tokens is not None
        if readout is not None and known and len(facts.trace.calls[tap.path]) in {1, (tap.call or 0) + 1}:
            asked.append(Tap(tap.path, tap.call, tap.element, tap.side, readout))
    if not asked:
        return {}
    with record(backbone, asked) as run_:
        return run_(batch)


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and bool(torch.allclose(one, other, rtol=1e-4, atol=1e-5))


def _check_penultimate(backbone: Backbone, batch: torch.Tensor) -> str:
    """Compare the penultimate tap with what timm says its classifier is given."""
    net: Any = backbone.module
    with record(backbone, "penultimate") as run_:
        values = list(run_(batch).values())
    if backbone.classifier is None or not hasattr(net, "forward_head"):
        return RIGHT if all(bool(torch.isfinite(one).all()) for one in values) else "not finite"
    features = net.forward_features(batch)
    try:
        pooled = net.forward_head(features, pre_logits=True)
    except TypeError:
        return f"{UNKNOWN}: forward_head takes no pre_logits"
    if not isinstance(pooled, torch.Tensor):
        return f"{UNKNOWN}: timm returns no tensor"
    if any(_equal(one, pooled.flatten(1)) for one in values):
        return RIGHT
    # Networks with a second classifier average two tokens; each classifier is given one.
    given: list[torch.Tensor] = []
    linear = net.get_submodule(backbone.classifier)
    handle = linear.register_forward_pre_hook(
        lambda _module, inputs: given.append(inputs[0].flatten(1).clone())
    )
    try:
        net(batch)
    finally:
        handle.remove()
    return (
        RIGHT
        if any(_equal(one, mine) for one in given for mine in values)
        else "not what the classifier is given"
    )


def _check_early_stop(backbone: Backbone, batch: torch.Tensor) -> str:
    taps, hooks = resolve_taps(backbone, ["levels"])[:2], _hooks(backbone.module)
    results = []
    for early in (True, False):
        with record(backbone, taps, stop_early=early) as run_:
            results.append(run_(batch))
    if not all(torch.equal(results[0][tap], results[1][tap]) for tap in taps):
        return "bits differ"
    return RIGHT if _hooks(backbone.module) == hooks else "hooks are left"


def _hooks(module: nn.Module) -> int:
    # torch shows them nowhere else.
    return sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in module.modules())


def _sizes(name: str) -> list[int]:
    """Return the smallest side at which a network runs, and its own."""
    own = _own_size(name)
    for size in (side for side in SIZES if side < own):
        try:
            with torch.device("meta"):
                _create(name, size)(torch.zeros(2, 3, size, size))
        except _TooLong:
            raise
        except Exception:  # noqa: BLE001 - whatever it raises, it does not run at that side
            continue
        return [size, own]
    return [own]


def _own_size(name: str) -> int:
    facts = timm.get_pretrained_cfg(name)
    return max(facts.input_size[1:]) if facts is not None else 224


def _create(name: str, size: int) -> nn.Module:
    facts = timm.get_pretrained_cfg(name)
    fixed = facts is not None and facts.fixed_input_size and size != _own_size(name)
    settings: dict[str, Any] = {"img_size": size} if fixed else {}
    module: nn.Module = timm.create_model(name, **settings)
    return module.eval()


def _build(name: str, size: int, hollow: bool) -> Backbone:
    with torch.device("meta" if hollow else "cpu"):
        module = _create(name, size)
    classifier = next(iter(classifier_paths(module)), None)
    facts = token_facts(module)
    return Backbone(
        name, name, module, Preprocessing(size, size), Checkpoint("random@0"), classifier, **facts
    )


class _TooLong(Exception):
    """The time is up."""


@contextmanager
def _limit(seconds: int) -> Iterator[None]:
    def stop(_number: int, _frame: object) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


_COUNTS: dict[str, int] = {}


def _parameters(name: str) -> int:
    if name not in _COUNTS:
        try:
            with torch.device("meta"), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _COUNTS[name] = sum(one.numel() for one in timm.create_model(name).parameters())
        except (RuntimeError, NotImplementedError, TypeError, ValueError, AssertionError):
            _COUNTS[name] = 0
    return _COUNTS[name]


def _code_digest(settings: Mapping[str, Any]) -> str:
    """Return what stands for the code under test and the settings: finished names count for these only."""
    import probekit

    root = Path(probekit.__file__).parent
    files = [
        *sorted((root / "taps").glob("*.py")),
        root / "backbones" / "levels.py",
        root / "backbones" / "backbone.py",
    ]
    limits = {key: value for key, value in settings.items() if key != "names"}
    return digest_json([timm.__version__, limits, [digest_file(path) for path in [*files, Path(__file__)]]])[
        :16
    ]


def _table(found: Sequence[Mapping[str, Any]]) -> ResultTable:
    """Return shares over all names and by timm's file; ``params`` lists what is not right, by name."""
    rows = []
    families = sorted({one["family"] for one in found})
    for family in ["", *families]:
        mine = [one for one in found if family in {"", one["family"]}]
        for check in CHECKS:
            checked = [one for one in mine if not one[check].startswith(UNKNOWN)]
            wrong = {one["name"]: one[check] for one in checked if one[check] != RIGHT}
            left_out = {one["name"]: one[check] for one in mine if one[check].startswith(UNKNOWN)}
            rows.append(
                {
                    "analysis": "timm_sweep",
                    "model": family or "timm",
                    "target": check,
                    "metric": "share_right",
                    "value": 1 - len(wrong) / len(checked) if checked else float("nan"),
                    "n": len(checked),
                    "status": "ok" if checked else "not checked",
                    "params": json.dumps({"wrong": wrong, "not_checked": len(left_out)}, sort_keys=True),
                }
            )
    details = {"names.json": {one["name"]: dict(one) for one in found}}
    return ResultTable.from_rows(rows, {"timm": timm.__version__, "torch": torch.__version__}, details)
