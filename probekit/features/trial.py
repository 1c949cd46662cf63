"""Which forward pass an extraction takes: the plain one or the fused one, by a short, proven trial."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probekit.errors import FusionImpossible
from probekit.features.fusion import Forward, fuse
from probekit.files import digest_json, read_json, write_json
from probekit.taps.record import record

if TYPE_CHECKING:
    from probekit.backbones.backbone import Backbone
    from probekit.taps.tap import Tap

log = logging.getLogger(__name__)


PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Largest ‖fused − eager‖ / ‖eager‖ of a tap over the first batch, in float32.
TOLERANCE = 1e-5
# Tracing and proving take a few seconds: fewer batches, or fewer seconds ahead, are not worth them.
WORTH_BATCHES, WORTH_S = 16, 20.0
_ROUNDS = 3
# The fused pass must be faster by more than the noise of a short trial.
_CLEARLY = 0.97


def choose_path(
    backbone: Backbone,
    taps: Sequence[Tap],
    engine: Mapping[str, Any],
    batches: int,
    first: Callable[[], Tensor],
    memo: Path,
) -> str:
    """Return ``eager`` or ``fused``: whichever was faster on the first batch, if fusion is proven right.

    The decision is remembered per architecture, taps, batch and machine type, so that models which are
    compared, such as three random draws, take the same path; but fusion is proven for each anew.

    Args:
        backbone: A frozen backbone.
        taps: Resolved taps.
        engine: What ``engine_facts`` says but for the path.
        batches: How many there are.
        first: Makes the first prepared batch.
        memo: Folder of remembered decisions.
    """
    if batches < WORTH_BATCHES:
        return "eager"
    known = [backbone.arch, backbone.code, backbone.preprocessing.facts(), [str(tap) for tap in taps]]
    place = memo / f"{digest_json([*known, dict(engine)])[:24]}.json"
    if not place.exists():
        found = _try_paths(backbone, taps, first(), batches)
        if found is None:
            return "eager"
        write_json(place, found)
        return str(found["path"])
    decided: dict[str, Any] = read_json(place)
    return str(decided["path"]) if decided["path"] != "fused" else _proven_path(backbone, taps, first())


def _proven_path(backbone: Backbone, taps: Sequence[Tap], batch: Tensor) -> str:
    """Return ``fused`` if it is right for these weights as well: the decision was made with others."""
    try:
        _proven(backbone, taps, batch)
    except FusionImpossible as error:
        log.info("%s is read by the plain forward pass: %s", backbone.name, error)
        return "eager"
    return "fused"


def _try_paths(backbone: Backbone, taps: Sequence[Tap], batch: Tensor, batches: int) -> dict[str, Any] | None:
    """Time both passes in turn; None where there is too little to do for a trial."""
    if _seconds(eager := _plain(backbone, taps), batch) * batches < WORTH_S:
        return None
    try:
        fused = _proven(backbone, taps, batch)
    except FusionImpossible as error:
        log.info("%s is read by the plain forward pass: %s", backbone.name, error)
        return {"path": "eager", "reason": str(error)}
    rounds = [(_seconds(eager, batch), _seconds(fused, batch)) for _ in range(_ROUNDS)]
    eager_s, fused_s = (min(column) for column in zip(*rounds, strict=True))
    log.info("%s: the fused forward pass takes %.2f of the plain one", backbone.name, fused_s / eager_s)
    path = "fused" if fused_s < _CLEARLY * eager_s else "eager"
    return {"path": path, "eager_s": eager_s, "fused_s": fused_s}


@contextmanager
def open_forward(
    backbone: Backbone, taps: Sequence[Tap], engine: Mapping[str, Any], first: Callable[[], Tensor]
) -> Iterator[Forward]:
    """Yield the forward pass an engine names.

    Args:
        backbone: A frozen backbone.
        taps: Resolved taps.
        engine: ``path`` and ``precision`` count.
        first: Makes the first prepared batch, on which fusion is proven.

    Raises:
        FusionImpossible: If the path is ``fused`` and fusion is impossible, or off by more than
            ``TOLERANCE`` at some tap.
    """
    precision = PRECISIONS[engine["precision"]]
    if engine["path"] == "fused":
        batch = first()
        fused = _proven(backbone, taps, batch)
        yield fused if precision is torch.float32 else fuse(backbone, taps, batch, precision=precision)
        return
    with record(backbone, taps) as run:
        if precision is torch.float32:
            yield run
            return

        def narrowed(batch: Tensor) -> dict[Tap, Tensor]:
            with torch.autocast(batch.device.type, precision):
                return run(batch)

        yield narrowed


def precision_errors(
    backbone: Backbone, taps: Sequence[Tap], engine: Mapping[str, Any], first: Callable[[], Tensor]
) -> dict[Tap, float]:
    """Return what the precision costs each tap: ‖narrow − float32‖ / ‖float32‖ over the first batch."""
    batch = first()
    reference = _plain(backbone, taps)(batch)
    with open_forward(backbone, taps, engine, lambda: batch) as forward:
        return relative_errors(forward(batch), reference)


def relative_errors(found: Mapping[Tap, Tensor], reference: Mapping[Tap, Tensor]) -> dict[Tap, float]:
    """Return ‖found − reference‖ / ‖reference‖ per tap; 0 where both are zero."""
    errors = {}
    for tap, value in reference.items():
        expected = value.double() if value.device.type != "mps" else value.cpu().double()
        off = float((found[tap].to(expected) - expected).norm())
        errors[tap] = off / float(expected.norm()) if off else 0.0
    return errors


def _plain(backbone: Backbone, taps: Sequence[Tap]) -> Forward:
    """Return the plain pass with hooks that live for one batch: a trace beside it must not meet them."""

    def forward(batch: Tensor) -> dict[Tap, Tensor]:
        with record(backbone, taps) as run:
            return run(batch)

    return forward


def _proven(backbone: Backbone, taps: Sequence[Tap], batch: Tensor) -> Forward:
    """Return the fused pass, once it gave what the plain one gives."""
    fused, reference = fuse(backbone, taps, batch), _plain(backbone, taps)(batch)
    try:
        found = fused(batch)
    except RuntimeError as error:
        raise FusionImpossible(
            "a fused forward pass that runs",
            str(error).splitlines()[0],
            "Read it with engine=eager, in another store if this one was begun otherwise",
        ) from error
    for tap, off in relative_errors(found, reference).items():
        # Written so that NaN fails, too.
        if not off <= TOLERANCE:
            raise FusionImpossible(
                f"a relative error of at most {TOLERANCE:g} at every tap", f"{off:.2g} at {tap}",
                "Read it with engine=eager, in another store if this one was begun otherwise",
            )  # fmt: skip
    return fused


def _seconds(forward: Forward, batch: Tensor) -> float:
    began = time.perf_counter()
    values = forward(batch)
    next(iter(values.values())).flatten()[:1].cpu()  # an accelerator has then finished
    return time.perf_counter() - began
