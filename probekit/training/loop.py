"""One loop in steps: what is trained says its loss of a batch; all else happens here."""

from __future__ import annotations

import json
import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from probekit.compute import rank
from probekit.errors import InputError, TrainingDiverged
from probekit.files import append_line, digest_bytes, replacing
from probekit.progress import progress_bar
from probekit.seeds import named_seed
from probekit.training.snapshots import read_snapshot, write_snapshot

if TYPE_CHECKING:
    from probekit.training.optimisers import Optimisation

log = logging.getLogger(__name__)

Batch = TypeVar("Batch")
SNAPSHOT, METRICS = "snapshot.pt", "metrics.jsonl"
SNAPSHOT_FORMAT = 2
SNAPSHOT_S = 60.0
PRECISIONS = ("float32", "bfloat16")
# Lines of the journal of metrics, over the whole training.
LINES = 200


class Learner(nn.Module, ABC, Generic[Batch]):
    """What the loop trains: a module that says its loss of a batch."""

    @abstractmethod
    def forward(self, batch: Batch) -> Tensor:
        """Return the mean loss of this process's part of the batch."""

    def after_step(self) -> None:
        """Change what no gradient changes, once the weights have moved."""


@dataclass(frozen=True)
class Journal(Generic[Batch]):
    """What a training leaves behind as it goes.

    Attributes:
        folder: Holds snapshot, metrics and kept weights; None keeps nothing.
        keep: Steps after which ``kept(step)`` is called; 0 is before the first.
        kept: Is told of a step whose weights are to be kept.
        watch: Steps after which the monitor is asked.
        monitor: Returns further values for the metrics of a step.
        snapshot_s: Seconds between snapshots.
        seed: Fixes what a module draws by itself, such as dropout.
        unit: Images a step, for throughput.
        label: What the progress bar says.
    """

    folder: Path | None = None
    keep: Sequence[int] = ()
    kept: Callable[[int], None] | None = None
    watch: Sequence[int] = ()
    monitor: Callable[[], Mapping[str, float]] | None = None
    snapshot_s: float = SNAPSHOT_S
    seed: int = 0
    unit: int = 1
    label: str = "Training"


def train(
    learner: Learner[Batch],
    batches: Callable[[int], Batch],
    optimisation: Optimisation,
    journal: Journal[Batch],
    *,
    precision: str = "float32",
) -> None:
    """Train a learner in place, from its snapshot if there is one.

    A training that was killed and goes on ends, on CPU and with as many threads, with the same bits as one
    that was not: batches are asked for by step, and what modules draw is seeded by step.

    Args:
        learner: On its device.
        batches: Step → batch; equal steps give equal batches.
        optimisation: Steps, learning rates and optimiser.
        journal: What is left behind, and where.
        precision: ``float32``, or ``bfloat16`` for forward passes in automatic mixed precision.

    Raises:
        TrainingDiverged: If a loss is NaN or infinite; the last snapshot is from before it.
        InputError: If the snapshot is damaged, or not of this training.
        OSError: If the disk is full; the snapshot before stays.
    """
    if precision not in PRECISIONS:
        raise InputError(f"a precision among {', '.join(PRECISIONS)}", repr(precision), "Choose one")
    device = next(learner.parameters()).device
    optimiser = optimisation.build(learner)
    average = _Average(learner, optimisation.ema)
    first = _resume(learner, optimiser, average, journal, device)
    whole = _in_parallel(learner)
    own = rank()[0] == 0
    every = max(1, optimisation.steps // LINES)
    mixed = partial(torch.autocast, device.type, torch.bfloat16, precision == "bfloat16")
    if first == 0 and own:
        _keep(journal, 0)
        _say(journal, 0, {}, learner)
    learner.train()
    saved = began = time.monotonic()
    waited = 0
    with progress_bar(optimisation.steps, journal.label, "step") as bar:
        bar.update(first)
        for step in range(first, optimisation.steps):
            with _seeded(journal.seed, step), mixed():
                loss = whole(batches(step))
            values = _move(learner, loss, optimiser, optimisation, step)
            learner.after_step()
            average.update()
            done = step + 1
            waited += 1
            bar.set_postfix(loss=f"{values['loss']:.3f}", refresh=False)
            bar.update()
            if not own:
                continue
            last = done == optimisation.steps
            watched = done in journal.watch or last
            if done % every == 0 or watched:
                now = time.monotonic()
                values["images_per_s"] = waited * journal.unit / max(now - began, 1e-9)
                _say(journal, done, values, learner if watched else None)
                began, waited = time.monotonic(), 0
            _keep(journal, done)
            if journal.folder is not None and (time.monotonic() - saved > journal.snapshot_s or last):
                state = _state(learner, optimiser, average, done)
                state["said"] = _digest_until(journal.folder / METRICS, done)
                write_snapshot(journal.folder / SNAPSHOT, state)
                saved = time.monotonic()
    average.apply()
    learner.eval()


def _move(
    learner: nn.Module, loss: Tensor, optimiser: torch.optim.Optimizer, optimisation: Optimisation, step: int
) -> dict[str, float]:
    """Take the step that lowers a loss; return the loss, the norm of its gradient and the learning rate.

    Raises:
        TrainingDiverged: If the loss is NaN or infinite; then nothing moves.
    """
    value, rate = float(loss.detach()), optimisation.rate(step)
    if not math.isfinite(value):
        raise TrainingDiverged(
            "a finite loss", f"{value} at step {step}",
            f"Lower the learning rate of {optimisation.lr:g}, or warm up for longer",
        )  # fmt: skip
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    trained = [one for one in learner.parameters() if one.requires_grad]
    norm = nn.utils.clip_grad_norm_(trained, optimisation.clip or math.inf)
    optimiser.step()
    return {"loss": value, "gradient_norm": float(norm), "lr": rate}


class _Average:
    """A running mean of the weights: a ← d·a + (1 − d)·w after every step."""

    def __init__(self, learner: nn.Module, decay: float) -> None:
        self._learner, self._decay = learner, decay
        self.values = (
            {name: one.detach().clone() for name, one in learner.state_dict().items()} if decay else {}
        )

    def update(self) -> None:
        """Move the mean towards the weights; what is no number in between is copied."""
        for name, one in self._learner.state_dict().items() if self.values else ():
            if one.is_floating_point():
                self.values[name].lerp_(one.detach(), 1 - self._decay)
            else:
                self.values[name].copy_(one)

    def apply(self) -> None:
        """Put the mean in the place of the weights."""
        if self.values:
            self._learner.load_state_dict(self.values)


def _resume(
    learner: nn.Module,
    optimiser: torch.optim.Optimizer,
    average: _Average,
    journal: Journal[Any],
    device: torch.device,
) -> int:
    """Load the snapshot, if there is one, and return the step to go on with."""
    if journal.folder is None:
        return 0
    state = read_snapshot(journal.folder / SNAPSHOT, device)
    if state is None:
        (journal.folder / METRICS).unlink(missing_ok=True)
        return 0
    place = journal.folder / SNAPSHOT
    if state.get("format") != SNAPSHOT_FORMAT:
        found = f"format {state.get('format')!r}"
        raise InputError(f"format {SNAPSHOT_FORMAT} in {place}", found, "Delete it to begin anew")
    try:
        learner.load_state_dict(state["module"])
        optimiser.load_state_dict(state["optimiser"])
        average.values, step, said = state["average"], int(state["step"]), state["said"]
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"a snapshot of this training in {place}", str(error)[:200], "Delete it to begin anew"
        ) from error
    if _digest_until(journal.folder / METRICS, step) != said:
        raise InputError(
            f"in {journal.folder / METRICS} what was said until the snapshot of step {step}",
            "something else", f"Delete {place} to begin anew",
        )  # fmt: skip
    _forget_after(journal.folder / METRICS, step)
    log.info("%s goes on at step %d", journal.label, step)
    return step


def _state(
    learner: nn.Module, optimiser: torch.optim.Optimizer, average: _Average, step: int
) -> dict[str, Any]:
    return {
        "format": SNAPSHOT_FORMAT,
        "step": step,
        "module": learner.state_dict(),
        "optimiser": optimiser.state_dict(),
        "average": average.values,
    }


def _forget_after(path: Path, step: int) -> None:
    """Cut from the journal what was said after the snapshot: it will be said again."""
    if path.exists():
        with replacing(path) as temporary:
            temporary.write_text(_said_until(path, step), encoding="utf-8")


def _digest_until(path: Path, step: int) -> str:
    """Return the digest of what the journal says until a step."""
    return digest_bytes(_said_until(path, step).encode()) if path.exists() else ""


def _said_until(path: Path, step: int) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return "".join(f"{line}\n" for line in lines if _step_of(line) <= step)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (KeyError, TypeError, ValueError):
        return math.inf  # half a line, from an interruption


def _keep(journal: Journal[Any], step: int) -> None:
    if journal.kept is not None and step in journal.keep:
        journal.kept(step)


def _say(journal: Journal[Any], step: int, values: dict[str, float], watched: nn.Module | None) -> None:
    """Write a line of metrics, the monitor's among them where it is its turn."""
    if journal.folder is None:
        return
    more: Mapping[str, float] = {}
    if watched is not None and journal.monitor is not None:
        watched.eval()
        with torch.no_grad():
            more = journal.monitor()
        watched.train()
    if values or more:
        append_line(journal.folder / METRICS, {"step": step, **values, **more})


def _in_parallel(learner: Learner[Batch]) -> Callable[[Batch], Tensor]:
    """Return the learner, with gradients averaged over processes where there are several."""
    if rank()[1] == 1:
        return learner
    device = next(learner.parameters()).device
    # Buffers are each process's own: the learner says which are shared.
    wrapped: Callable[[Batch], Tensor] = nn.parallel.DistributedDataParallel(
        learner, device_ids=[device] if device.type == "cuda" else None, broadcast_buffers=False
    )
    return wrapped


@contextmanager
def _seeded(seed: int, step: int) -> Iterator[None]:
    """Seed what modules draw by themselves, then put the global stream back."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(named_seed("training", seed, step, rank()[0]))
        yield
