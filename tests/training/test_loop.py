"""The loop: schedules, resuming bit for bit, losses that are no number, damaged and foreign snapshots."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from probekit.errors import InputError, TrainingDiverged
from probekit.training import loop
from probekit.training.loop import METRICS, SNAPSHOT, Journal, Learner, train
from probekit.training.optimisers import Optimisation


class Killed(Exception):
    """Stands for a process that ends."""


class Line(Learner[Tensor]):
    """A line through noise, with a dropout, which draws by itself."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, batch: Tensor) -> Tensor:
        """Return the mean squared error of a fixed plane."""
        return (self.layers(batch)[:, 0] - batch.sum(dim=1)).square().mean()

    def after_step(self) -> None:
        """Count."""
        self.steps.add_(1)


def batches(step: int) -> Tensor:
    return torch.randn(16, 4, generator=torch.Generator().manual_seed(step))


PLAN = Optimisation(steps=12, lr=0.05, warmup=3)


def values(learner: nn.Module) -> dict[str, Tensor]:
    return {name: one.clone() for name, one in learner.state_dict().items()}


@pytest.mark.parametrize("plan", [PLAN, Optimisation(12, 0.01, "adamw", ema=0.9, clip=1.0)])
def test_a_killed_training_ends_with_the_bits_of_an_undisturbed_one(tmp_path: Path, plan: Optimisation):
    whole = Line()
    train(whole, batches, plan, Journal(tmp_path / "whole", snapshot_s=0, seed=5))

    def until(end: int):
        def ask(step: int) -> Tensor:
            if step == end:
                raise Killed
            return batches(step)

        return ask

    for end in (4, 9):
        with pytest.raises(Killed):
            train(Line(), until(end), plan, Journal(tmp_path / "cut", snapshot_s=0, seed=5))
    resumed = Line()
    torch.manual_seed(99)  # whatever the process drew before
    train(resumed, batches, plan, Journal(tmp_path / "cut", snapshot_s=0, seed=5))
    for name, one in values(whole).items():
        assert torch.equal(one, values(resumed)[name]), name
    lines = [
        [json.loads(line) for line in (tmp_path / name / METRICS).read_text().splitlines()]
        for name in ("whole", "cut")
    ]
    for one in [*lines[0], *lines[1]]:
        del one["images_per_s"]
    assert lines[0] == lines[1]
    assert [one["step"] for one in lines[0]] == list(range(1, 13))


def test_what_was_said_after_the_last_snapshot_is_said_again(tmp_path: Path):
    with pytest.raises(Killed):
        train(Line(), _until(4), PLAN, Journal(tmp_path, snapshot_s=0))
    # Five more steps are said, and none of them is in a snapshot.
    with pytest.raises(Killed):
        train(Line(), _until(9), PLAN, Journal(tmp_path, snapshot_s=1e9))
    assert torch.load(tmp_path / SNAPSHOT, weights_only=True)["step"] == 4
    train(Line(), batches, PLAN, Journal(tmp_path, snapshot_s=1e9))
    steps = [json.loads(line)["step"] for line in (tmp_path / METRICS).read_text().splitlines()]
    assert steps == list(range(1, 13))


def _until(end: int):
    def ask(step: int) -> Tensor:
        if step == end:
            raise Killed
        return batches(step)

    return ask


def test_the_global_random_stream_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    learner = Line()
    torch.manual_seed(3)
    train(learner, batches, PLAN, Journal())
    assert torch.equal(torch.rand(4), expected)


def test_a_loss_that_is_no_number_stops_and_the_snapshot_before_it_stays(tmp_path: Path):
    def poisoned(step: int) -> Tensor:
        return batches(step) * (math.nan if step == 6 else 1.0)

    with pytest.raises(TrainingDiverged, match=r"nan at step 6"):
        train(Line(), poisoned, PLAN, Journal(tmp_path, snapshot_s=0))
    state = torch.load(tmp_path / SNAPSHOT, weights_only=True)
    assert state["step"] == 6
    assert all(bool(one.isfinite().all()) for one in state["module"].values())
    train(Line(), batches, PLAN, Journal(tmp_path, snapshot_s=0))


def test_a_full_disk_leaves_the_snapshot_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(Killed):
        train(Line(), _until(5), PLAN, Journal(tmp_path, snapshot_s=0))
    before = (tmp_path / SNAPSHOT).read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full)
        with pytest.raises(OSError, match="No space left"):
            train(Line(), batches, PLAN, Journal(tmp_path, snapshot_s=0))
    assert (tmp_path / SNAPSHOT).read_bytes() == before
    assert [one.name for one in tmp_path.glob(".*")] == []


def test_damaged_and_foreign_snapshots_are_refused(tmp_path: Path):
    train(Line(), batches, PLAN, Journal(tmp_path))
    whole = (tmp_path / SNAPSHOT).read_bytes()
    (tmp_path / SNAPSHOT).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="a whole snapshot"):
        train(Line(), batches, PLAN, Journal(tmp_path))
    torch.save({"format": 2, "step": 3, "module": {}, "optimiser": {}, "average": {}}, tmp_path / SNAPSHOT)
    with pytest.raises(InputError, match="a snapshot of this training"):
        train(Line(), batches, PLAN, Journal(tmp_path))
    torch.save({"format": 9}, tmp_path / SNAPSHOT)
    with pytest.raises(InputError, match=r"format 2 in .*snapshot\.pt; got format 9"):
        train(Line(), batches, PLAN, Journal(tmp_path))


def test_a_journal_that_was_changed_before_the_snapshot_is_refused(tmp_path: Path):
    with pytest.raises(Killed):
        train(Line(), _until(6), PLAN, Journal(tmp_path, snapshot_s=0))
    journal = tmp_path / METRICS
    whole = journal.read_text()
    for changed in (whole.replace('"step":3', '"step":2'), whole[20:], "", whole.replace('"step":2', "[]")):
        journal.write_text(changed)
        with pytest.raises(InputError, match=r"in .*metrics\.jsonl what was said until .* step 6"):
            train(Line(), batches, PLAN, Journal(tmp_path))
    journal.write_text(whole + '{"step": 7, "lo')
    train(Line(), batches, PLAN, Journal(tmp_path))


def test_a_finished_training_is_not_trained_again(tmp_path: Path):
    first = Line()
    train(first, batches, PLAN, Journal(tmp_path))
    again = Line()
    train(again, _until(0), PLAN, Journal(tmp_path))
    assert all(torch.equal(one, values(again)[name]) for name, one in values(first).items())


def test_the_average_is_that_of_its_formula(tmp_path: Path):
    plan = Optimisation(4, 0.05, ema=0.5)
    seen = []

    class Told(Line):
        def after_step(self) -> None:
            seen.append(self.layers[0].weight.detach().clone())

    learner = Told()
    mean = learner.layers[0].weight.detach().clone()
    train(learner, batches, plan, Journal())
    for one in seen:
        mean = 0.5 * mean + 0.5 * one
    torch.testing.assert_close(learner.layers[0].weight.detach(), mean)


def test_kept_steps_and_the_monitor_are_called_when_asked(tmp_path: Path):
    kept: list[int] = []
    learner = Line()
    journal = Journal(
        tmp_path,
        keep=[0, 3, 12],
        kept=kept.append,
        watch=[0, 6],
        monitor=lambda: {"seen": float(learner.steps)},
    )
    train(learner, batches, PLAN, journal)
    assert kept == [0, 3, 12]
    lines = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert {one["step"]: one["seen"] for one in lines if "seen" in one} == {0: 0, 6: 6, 12: 12}


def test_vectors_have_no_weight_decay():
    groups = PLAN.build(Line()).param_groups
    assert [one["weight_decay"] for one in groups] == [1e-4, 0.0]
    assert all(one.dim() > 1 for one in groups[0]["params"])
    assert all(one.dim() == 1 for one in groups[1]["params"])


@given(st.integers(1, 200), st.floats(0, 1), st.floats(1e-4, 10))
def test_rates_rise_then_fall(steps: int, share: float, lr: float):
    plan = Optimisation(steps, lr, warmup=round(share * steps))
    rates = [plan.rate(step) for step in range(steps)]
    top = plan.warmup
    assert all(0 < one <= lr * (1 + 1e-9) for one in rates)
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    if top < steps:
        assert rates[top] == pytest.approx(lr)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 0, "lr": 0.1}, "at least one step"),
        ({"steps": 2, "lr": 0.1, "warmup": 3}, "no longer than"),
        ({"steps": 2, "lr": -1.0}, "positive learning rate"),
        ({"steps": 2, "lr": math.nan}, "positive learning rate"),
        ({"steps": 2, "lr": 0.1, "ema": 1.0}, "EMA decay"),
        ({"steps": 2, "lr": 0.1, "optimiser": "lion"}, "sgd, adamw"),
    ],
)
def test_settings_that_cannot_be_are_refused(given: dict[str, object], message: str):
    with pytest.raises(InputError, match=message):
        Optimisation(**given)


def test_an_unknown_precision_is_refused():
    with pytest.raises(InputError, match="a precision among float32, bfloat16"):
        train(Line(), batches, PLAN, Journal(), precision="float8")


def test_mixed_precision_learns_the_same(tmp_path: Path):
    plan = Optimisation(60, 0.05)
    losses = {}
    for precision in ("float32", "bfloat16"):
        train(Line(), batches, plan, Journal(tmp_path / precision), precision=precision)
        lines = (tmp_path / precision / METRICS).read_text().splitlines()
        losses[precision] = json.loads(lines[-1])["loss"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.1)
    assert loop.SNAPSHOT_S > 0
