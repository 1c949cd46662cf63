"""States with a past, networks kept and put back, arms of several seeds, trainings of other machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from probekit import ResultTable, load_backbone, open_images, reset_curves, transfer
from probekit.backbones.architectures import draw_initial
from probekit.backbones.reset import random_control
from probekit.errors import InputError
from probekit.figures import plot_rewinds
from probekit.finetuning import cells
from probekit.finetuning.cell import Data, answers_to, build, weights_file
from probekit.finetuning.changes import measure_changes
from probekit.finetuning.curves import OTHER_DRAW, group_blocks
from probekit.finetuning.rewind import kept_steps
from probekit.tasks.choosing import find_task

WORDS = "resnet10_w16:random@5"
DATA = "shapeworld/source,train=60,test=30,classes=3"
QUICK: dict[str, Any] = {"trials": 2, "steps": 4, "batch_size": 8, "lr": [1e-3], "warmup": 0.0}


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return what is trained, as it is trained: the state before, and the network after."""
    seen: list[dict[str, Any]] = []
    real = cells.finetune

    def told(state: Any, data: Any, one: Any, *rest: Any) -> Any:
        trained = real(state, data, one, *rest)
        seen.append({"state": state, "data": data, "one": one, "trained": trained, "folder": rest[0]})
        return trained

    monkeypatch.setattr(cells, "finetune", told)
    return seen


def params(table: ResultTable, metric: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    frame = table.frame[table.frame["metric"] == metric]
    return [(json.loads(row["params"]), row.to_dict()) for _, row in frame.iterrows()]


def test_step_0_of_a_pretraining_takes_the_place_of_what_is_replaced(
    tmp_path: Path, trainings: list[dict[str, Any]]
):
    words = "resnet10_w16:bundled@moco-v2"
    reset_curves(words, DATA, curves=["prefix"], modes=["initial"], store=tmp_path, **(QUICK | {"trials": 1}))
    first, own = draw_initial("resnet10_w16", 0, 48).state_dict(), load_backbone(words).module.state_dict()
    names = [f"layer{k}.0.conv1.weight" for k in (1, 3, 4)]

    def is_kept(one: dict[str, Any]) -> tuple[bool, ...] | None:
        """Say of each level whether it is as it was trained; None if one is neither that nor step 0."""
        held = one["state"].module.state_dict()
        kept = tuple(torch.equal(held[name], own[name]) for name in names)
        past = tuple(torch.equal(held[name], first[name]) for name in names)
        return kept if all(a != b for a, b in zip(kept, past, strict=True)) else None

    found = [is_kept(one) for one in trainings]
    # The whole, scratch (a draw of its own), and along the curve nothing, low, low and mid.
    expected = [(True, True, True), None, (False,) * 3, (True, False, False), (True, True, False)]
    assert found == expected


def test_a_past_that_is_not_known_leaves_rows_that_say_so(tmp_path: Path):
    table = reset_curves(
        WORDS, DATA, curves=["prefix"], modes=["initial", "checkpoint(20)"], store=tmp_path, **QUICK
    )
    told = {one["mode"]: row for one, row in params(table, "gain") if row["status"] != "ok"}
    assert set(told) == {"initial", "checkpoint(20)"}
    assert "a checkpoint without a past" in told["initial"]["status"]


def test_an_earlier_step_is_a_file_beside_the_checkpoint(tmp_path: Path, trainings: list[dict[str, Any]]):
    for name, seed in (("seed-0.pth", 1), ("seed-0-step-000020.pth", 2)):
        torch.save(draw_initial("resnet10_w16", seed, 48).state_dict(), tmp_path / name)
    reset_curves(
        f"resnet10_w16:{tmp_path / 'seed-0.pth'}", DATA, curves=["keep-one"], modes=["checkpoint(20)"],
        store=tmp_path, **(QUICK | {"trials": 1}),
    )  # fmt: skip
    wanted = draw_initial("resnet10_w16", 2, 48).state_dict()["layer4.0.conv1.weight"]
    given = [one["state"].module.state_dict()["layer4.0.conv1.weight"] for one in trainings]
    assert sum(torch.equal(one, wanted) for one in given) == 3  # nothing, low alone, mid alone


def test_a_selffer_keeps_what_was_trained_from_scratch_as_it_is(
    tmp_path: Path, trainings: list[dict[str, Any]]
):
    table = reset_curves(WORDS, DATA, curves=["selffer"], modes=[], store=tmp_path, **QUICK)
    assert [one["kept"] for one, _ in params(table, "co_adaptation")] == [["low"], ["low", "mid"]]
    scratch = {one["one"].seed: one["trained"].learner.module.state_dict() for one in trainings
               if "random" in str(one["state"].checkpoint.notes) and not one["one"].still}  # fmt: skip
    selffers = [one for one in trainings if one["one"].still]
    assert len(selffers) == 4
    backbone = load_backbone(WORDS)
    for one in selffers:
        base = scratch[one["one"].seed]
        drawn = random_control(backbone, "draw", one["one"].seed + OTHER_DRAW).module.state_dict()
        start, end = one["state"].module.state_dict(), one["trained"].learner.module.state_dict()
        for name in base:
            if name.startswith("fc.") or "num_batches" in name:
                continue
            still = any(f"{name}.".startswith(f"{part}.") for part in one["one"].still)
            assert torch.equal(end[name], base[name]) == still, name
            if not still and "running" not in name:
                assert torch.equal(start[name], drawn[name]), name


def test_blocks_are_put_back_as_by_hand(tmp_path: Path, trainings: list[dict[str, Any]]):
    settings = QUICK | {"trials": 1, "steps": 10, "lr": [1e-2]}
    table = reset_curves(WORDS, DATA, curves=["rewind"], store=tmp_path, **settings)
    ((whole, kept),) = (
        (one, tmp_path / "finetuning" / one["folder"].name[1:].removesuffix(".unfinished"))
        for one in trainings
        if not one["state"].checkpoint.notes[1:]
    )
    assert kept_steps(10) == [1, 5, 10]
    backbone, data, one = load_backbone(WORDS), whole["data"], whole["one"]
    final = torch.load(weights_file(kept, 10), weights_only=True)
    sources = {
        "pretrained": backbone.module.state_dict(),
        "step 5": {
            name.removeprefix("module."): value
            for name, value in torch.load(weights_file(kept, 5), weights_only=True).items()
        },
        "fresh draw": random_control(backbone, "draw", one.seed).module.state_dict(),
    }
    as_is = whole["trained"].test["accuracy"].value
    groups = group_blocks(backbone, "level")
    found = {
        (told["group"], told["to"]): row["value"]
        for told, row in params(table, "rewind_drop")
        if told["rewound_batch_norm"] == "as it is"
    }
    assert len(found) == 3 * 4
    for group in groups:
        for to, source in sources.items():
            learner, given = build(backbone, data, one)
            changed = dict(final)
            for name in source:
                if any(f"{name}.".startswith(f"{member}.") for member in group.members):
                    changed[f"module.{name}"] = source[name]
            learner.load_state_dict(changed)
            answers = answers_to(learner, given, data, "test", 8)
            value = data.task.score(answers, data.test.truth)["accuracy"].value
            assert found[group.name, to] == pytest.approx(as_is - value), (group.name, to)


def test_what_did_not_move_costs_nothing_when_put_back(tmp_path: Path):
    settings = QUICK | {"trials": 1, "lr": [1e-12], "batch_norm": "frozen"}
    words = "resnet10_w16:bundled@ce"
    table = reset_curves(words, DATA, curves=["rewind"], store=tmp_path, **settings)
    for told, row in params(table, "rewind_drop"):
        if told["to"] == "pretrained" and told["rewound_batch_norm"] == "as it is":
            assert row["value"] == 0
    figure = plot_rewinds(table)
    texts = [one.get_text() for one in figure.axes[0].texts]
    assert len(texts) == 3 * 8
    assert "0.00" in texts


def test_changes_are_lengths_and_likenesses():
    backbone = load_backbone(WORDS)
    images = open_images(DATA)
    data = Data.open(images, find_task("classification", images), backbone.preprocessing)
    groups = group_blocks(backbone, "level")
    moved = load_backbone(WORDS).module
    with torch.no_grad():
        for name, one in moved.named_parameters():
            if any(f"{name}.".startswith(f"{member}.") for member in groups[2].members):
                one.mul_(1.1)
    found = measure_changes(backbone, moved, groups, data)
    assert found["low"] == {"distance_moved": 0.0, "cka_kept": pytest.approx(1.0)}
    assert found["high"]["distance_moved"] == pytest.approx(0.1, rel=1e-5)
    drawn = measure_changes(backbone, load_backbone("resnet10_w16:random@6").module, groups, data)
    assert all(one["cka_kept"] < 0.999 for one in drawn.values())


def test_an_arm_has_a_pretraining_seed_a_trial_and_scratch_is_trained_once_for_all(
    tmp_path: Path, trainings: list[dict[str, Any]]
):
    arms = {
        "contrastive": ["resnet10_w16:bundled@moco-v2", "resnet10_w16:bundled@exemplar-v2"],
        "supervised": ["resnet10_w16:bundled@ce", "resnet10_w16:bundled@ce-mlp"],
    }
    table = transfer([], DATA, arms=arms, store=tmp_path, **(QUICK | {"trials": 5}))
    # Two wholes of each arm; two scratches for both.
    assert len(trainings) == 2 * 2 + 2
    rows = table.frame[table.frame["metric"] == "accuracy"]
    assert rows["pretrain_seed"].tolist() == [0, 1] * 4
    assert rows["trial_seed"].tolist() == [0, 1] * 4
    whole = rows[[json.loads(one)["mode"] == "" for one in rows["params"]]]
    assert whole["weights"].nunique() == 4
    gains = table.frame[table.frame["metric"] == "gain"]
    assert gains["model"].tolist() == ["contrastive", "supervised"]
    assert set(gains["ci_kind"]) == {"t,pretraining seeds"}
    assert set(table.provenance["models"]) == set(arms)


@pytest.mark.parametrize(
    ("arms", "part"),
    [
        ({"a": ["resnet10_w16:random@1"]}, "at least two pretraining seeds in arm a"),
        ({"a": ["resnet10_w16:random@1", "cifar_resnet20:random@1"]}, "one architecture in arm a"),
        ({"a": ["resnet10_w16:random@1", "resnet10_w16:random@1"]}, "different weights in arm a"),
        ({"resnet10_w16": ["resnet10_w16:random@1", "resnet10_w16:random@2"]}, "resnet10_w16 twice"),
    ],
)
def test_arms_that_are_none_are_refused(arms, part, tmp_path: Path):
    models = [WORDS] if "resnet10_w16" in arms else []
    with pytest.raises(InputError, match=part):
        transfer(models, DATA, arms=arms, store=tmp_path, **QUICK)


def test_another_machine_goes_on_with_the_trainings_of_a_table(
    tmp_path: Path, trainings: list[dict[str, Any]]
):
    first = transfer(WORDS, DATA, store=tmp_path / "one", **(QUICK | {"trials": 1}))
    first.write(tmp_path / "table")
    assert len(trainings) == 2
    again = transfer(WORDS, DATA, store=tmp_path / "other", finished=tmp_path / "table", **QUICK)
    assert [one["one"].seed for one in trainings] == [0, 0, 1, 1]
    both = [one.frame.query("metric == 'accuracy' and trial_seed == 0")["value"] for one in (first, again)]
    np.testing.assert_array_equal(*both)


def test_a_training_that_fails_is_recorded_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real, calls = cells.finetune, []

    def failing(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return real(*given)

    monkeypatch.setattr(cells, "finetune", failing)
    table = transfer(WORDS, DATA, store=tmp_path, **QUICK)
    failed = table.frame[table.frame["status"].str.contains("out of memory")]
    assert failed["metric"].tolist() == ["accuracy", "balanced_accuracy"]
    assert failed["value"].isna().all()
    again = transfer(WORDS, DATA, store=tmp_path, **QUICK)
    assert (again.frame.query("metric == 'accuracy'")["status"] == "ok").all()
    assert len(calls) == 4 + 1


def test_curves_of_networks_that_are_trained_need_trained_backbones(tmp_path: Path):
    for curve in ("selffer", "rewind"):
        with pytest.raises(InputError, match=f"a tuned backbone for the curve {curve}"):
            reset_curves(WORDS, DATA, curves=[curve], tuned=False, store=tmp_path, **QUICK)


@pytest.mark.slow
def test_a_cluster_trains_what_one_process_does(tmp_path: Path):
    distributed = pytest.importorskip("distributed", reason="needs probekit-vision[cluster]")
    import joblib

    alone = transfer(WORDS, DATA, store=tmp_path / "alone", **QUICK)
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None)
        as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):  # fmt: skip
        spread = transfer(WORDS, DATA, store=tmp_path / "spread", jobs=2, **QUICK)
    told = ["model", "metric", "value", "params", "status"]
    left, right = (one.frame.query("metric in ('accuracy', 'gain')")[told] for one in (alone, spread))
    np.testing.assert_array_equal(left["value"], right["value"])
    assert left["params"].tolist() == right["params"].tolist()
