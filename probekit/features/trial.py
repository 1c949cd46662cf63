"""Which forward pass an extraction takes: the plain one or the fused one, by a short, proven trial."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from probekit.errors import FusionImpossible
from probekit.features.fusion import PLAIN_INSTEAD, Forward, fuse
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


class Trial:
    """The first batch of an extraction, and the fused passes that were proven on it, each traced once.

    Args:
        backbone: A frozen backbone.
        first: Makes the first prepared batch; asked once at most.
    """

    def __init__(self, backbone: Backbone, first: Callable[[], Tensor]) -> None:
        self.backbone = backbone
        self._first = first
        self._fused: dict[tuple[Sequence[Tap], torch.dtype], Forward] = {}

    @cached_property
    def batch(self) -> Tensor:
        """The first prepared batch."""
        return self._first()

    def fused(self, taps: Sequence[Tap], precision: torch.dtype = torch.float32) -> Forward:
        """Return the fused pass of taps, which float32 has proven right.

        Raises:
            FusionImpossible: If fusion is impossible, or off by more than ``TOLERANCE`` at some tap.
        """
        key = tuple(taps), precision
        if key not in self._fused:
            if precision is torch.float32:
                self._fused[key] = _proven(self.backbone, taps, self.batch)
            else:
                self.fused(taps)
                self._fused[key] = fuse(self.backbone, taps, self.batch, precision=precision)
        return self._fused[key]

    def proven_path(self, taps: Sequence[Tap]) -> str:
        """Return ``fused`` if that pass is right for these weights and taps; else ``eager``, and say why."""
        try:
            self.fused(taps)
        except FusionImpossible as error:
            log.info("%s is read by the plain forward pass: %s", self.backbone.name, error)
            return "eager"
        return "fused"


def choose_path(
    trial: Trial, taps: Sequence[Tap], engine: Mapping[str, Any], batches: int, memo: Path
) -> str:
    """Return ``eager`` or ``fused``: whichever was faster on the first batch, if fusion is proven right.

    The decision is remembered per architecture, taps, batch and machine type, so that models which are
    compared, such as three random draws, take the same path; but fusion is proven for each anew.

    Args:
        trial: The backbone and its first batch.
        taps: Resolved taps.
        engine: What ``engine_facts`` says but for the path.
        batches: How many there are.
        memo: Folder of remembered decisions.
    """
    if batches < WORTH_BATCHES:
        return "eager"
    backbone = trial.backbone
    known = [backbone.arch, backbone.code, backbone.preprocessing.facts(), [str(tap) for tap in taps]]
    place = memo / f"{digest_json([*known, dict(engine)])[:24]}.json"
    if not place.exists():
        found = _try_paths(trial, taps, batches)
        if found is None:
            return "eager"
        write_json(place, found)
        return str(found["path"])
    decided: dict[str, Any] = read_json(place)
    # The decision was made with other weights.
    return trial.proven_path(taps) if decided["path"] == "fused" else str(decided["path"])


def _try_paths(trial: Trial, taps: Sequence[Tap], batches: int) -> dict[str, Any] | None:
    """Time both passes in turn; None where there is too little to do for a trial."""
    backbone, batch = trial.backbone, trial.batch
    if _seconds(eager := _plain(backbone, taps), batch) * batches < WORTH_S:
        return None
    try:
        fused = trial.fused(taps)
    except FusionImpossible as error:
        log.info("%s is read by the plain forward pass: %s", backbone.name, error)
        return {"path": "eager", "reason": str(error)}
    rounds = [(_seconds(eager, batch), _seconds(fused, batch)) for _ in range(_ROUNDS)]
    eager_s, fused_s = (min(column) for column in zip(*rounds, strict=True))
    log.info("%s: the fused forward pass takes %.2f of the plain one", backbone.name, fused_s / eager_s)
    path = "fused" if fused_s < _CLEARLY * eager_s else "eager"
    return {"path": path, "eager_s": eager_s, "fused_s": fused_s}


@contextmanager
def open_forward(trial: Trial, taps: Sequence[Tap], engine: Mapping[str, Any]) -> Iterator[Forward]:
    """Yield the forward pass an engine names.

    Args:
        trial: The backbone, and the first batch, on which fusion is proven.
        taps: Resolved taps.
        engine: ``path`` and ``precision`` count.

    Raises:
        FusionImpossible: If the path is ``fused`` and fusion is impossible, or off by more than
            ``TOLERANCE`` at some tap.
    """
    precision = PRECISIONS[engine["precision"]]
    if engine["path"] == "fused":
        yield trial.fused(taps, precision)
        return
    with record(trial.backbone, taps) as run:
        if precision is torch.float32:
            yield run
            return

        def narrowed(batch: Tensor) -> dict[Tap, Tensor]:
            with torch.autocast(batch.device.type, precision):
                return run(batch)

        yield narrowed


def precision_errors(trial: Trial, taps: Sequence[Tap], engine: Mapping[str, Any]) -> dict[Tap, float]:
    """Return what the precision costs each tap: ‖narrow − float32‖ / ‖float32‖ over the first batch."""
    reference = _plain(trial.backbone, taps)(trial.batch)
    with open_forward(trial, taps, engine) as forward:
        return relative_errors(forward(trial.batch), reference)


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
            PLAIN_INSTEAD,
        ) from error
    for tap, off in relative_errors(found, reference).items():
        # Written so that NaN fails, too.
        if not off <= TOLERANCE:
            raise FusionImpossible(
                f"a relative error of at most {TOLERANCE:g} at every tap", f"{off:.2g} at {tap}",
                PLAIN_INSTEAD,
            )  # fmt: skip
    return fused


def _seconds(forward: Forward, batch: Tensor) -> float:
    began = time.perf_counter()
    values = forward(batch)
    next(iter(values.values())).flatten()[:1].cpu()  # an accelerator has then finished
    return time.perf_counter() - began
