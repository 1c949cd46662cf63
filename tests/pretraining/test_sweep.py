"""The verb: equal views for all arms, budgets, rates, what is attached, refusals, resuming."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import probekit
from probekit import ImageSet
from probekit.data.targets import Target
from probekit.data.transforms import Preprocessing
from probekit.errors import InputError, TrainingDiverged
from probekit.figures import draw_pretraining
from probekit.plan import Plan
from probekit.pretraining import sweep, trainings
from probekit.pretraining.batches import TwoViews, training_pixels
from probekit.results.table import ResultTable
from probekit.running import execute
from probekit.training.augmentation import parse_augmentation

QUICK = {"epochs": 1, "batch_size": 16, "queue": 32, "random": 1}


def coloured(n: int = 120, *, labelled: bool = True, alike: bool = False) -> ImageSet:
    """Return images of 48 px whose class is a colour."""
    random = np.random.default_rng(0)
    labels = np.where(np.arange(n) < n * 3 // 4, 0, 1) if alike else np.arange(n) % 3
    pixels = random.integers(0, 60, (n, 48, 48, 3), dtype=np.uint8)
    pixels[np.arange(n), :, :, labels] += 150
    splits = np.where(np.arange(n) < n * 3 // 4, "train", "test")
    names = ("red", "green", "blue")
    targets = {"class": Target(labels, "class", names)} if labelled else {}
    return ImageSet.from_arrays("coloured", pixels, targets, splits)


@pytest.mark.slow
def test_arms_are_trained_probed_and_attached(tmp_path: Path):
    table = probekit.pretrain(
        ["ce", "exemplar-v2"], coloured(), seeds=2, store=tmp_path, weights="all", **QUICK
    )
    frame = table.frame
    assert set(frame["analysis"]) == {"pretrain"}
    trained = ["ce seed 0", "ce seed 1", "exemplar-v2 seed 0", "exemplar-v2 seed 1"]
    assert set(frame["model"]) == {*trained, "random@0"}
    probes = frame[(frame["metric"] == "accuracy") & frame["model"].isin(trained)]
    assert probes["pretrain_seed"].tolist() == [0, 1, 0, 1]
    assert (probes["value"] > 0.8).all()
    facts = frame[frame["metric"] == "pretraining_loss"]
    assert [json.loads(one)["arm"] for one in facts["params"]] == ["ce", "ce", "exemplar-v2", "exemplar-v2"]
    assert {json.loads(one)["steps"] for one in facts["params"]} == {5}
    kept = [one for one in table.attachments if one.startswith("checkpoints/exemplar-v2/seed-1")]
    assert "checkpoints/exemplar-v2/seed-1.pth" in kept
    assert "checkpoints/exemplar-v2/seed-1-step-000000.pth" in kept
    curve = table.attachments["curves/ce/seed-0.parquet"]
    assert curve["step"].max() == 5
    assert {"loss", "gradient_norm", "images_per_s", "knn_accuracy"} <= set(curve)
    table.write(tmp_path / "table")
    again = ResultTable.read(tmp_path / "table")
    assert again.attachments[kept[0]] == table.attachments[kept[0]]
    drawn = draw_pretraining(again)["training"]
    (neighbours,) = [one for one in drawn.axes if one.get_ylabel().startswith("k-NN")]
    chance = 1 / probes["n_classes"].iloc[0]
    assert [chance, chance] in [list(line.get_ydata()) for line in neighbours.lines]
    # The attached file is the backbone that was probed.
    (tmp_path / "arm.pth").write_bytes(table.attachments["checkpoints/ce/seed-0.pth"])
    loaded = probekit.load_backbone("resnet10_w16", tmp_path / "arm.pth")
    assert loaded.weights == probes.iloc[0]["weights"]


@pytest.mark.slow
def test_step_0_of_a_seed_is_the_same_for_all_arms(tmp_path: Path):
    table = probekit.pretrain(["ce", "moco-v2"], coloured(), store=tmp_path, weights="all", **QUICK)
    weights = []
    for arm in ("ce", "moco-v2"):
        path = tmp_path / f"{arm}.pth"
        path.write_bytes(table.attachments[f"checkpoints/{arm}/seed-0-step-000000.pth"])
        weights.append(probekit.load_backbone("resnet10_w16", path).module.state_dict())
    names = [name for name in weights[0] if not name.startswith("fc.")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in names)


@pytest.mark.slow
def test_a_second_call_trains_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    one = probekit.pretrain("ce", coloured(), store=tmp_path, **QUICK)
    monkeypatch.setattr(trainings, "train_arm", lambda *_args, **_rest: pytest.fail("trained again"))
    two = probekit.pretrain("ce", coloured(), store=tmp_path, **QUICK)
    assert one.frame.equals(two.frame)


@pytest.mark.slow
def test_of_several_rates_each_arm_gets_that_which_is_read_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    best = {"ce": 0.02, "moco-v2": 0.05}
    original = trainings.train_arm

    def told(training, *rest, **more):
        facts = original(training, *rest, **more)
        facts["val_accuracy"] = 1.0 if training.optimisation.lr == best[training.arm.name] else 0.2
        return facts

    monkeypatch.setattr(trainings, "train_arm", told)
    table = probekit.pretrain(["ce", "moco-v2"], coloured(), lr=[0.01, 0.02, 0.05], store=tmp_path, **QUICK)
    rows = table.frame[table.frame["metric"] == "pretraining_loss"]
    found = {one["arm"]: one["lr"] for one in map(json.loads, rows["params"])}
    assert found == best


def test_rates_can_be_given_by_arm(tmp_path: Path):
    table = probekit.pretrain(
        ["ce", "moco-v2"], coloured(), lr={"ce": 0.02, "moco-v2": 0.01}, store=tmp_path, **QUICK
    )
    rows = table.frame[table.frame["metric"] == "pretraining_loss"]
    assert {one["arm"]: one["lr"] for one in map(json.loads, rows["params"])} == {"ce": 0.02, "moco-v2": 0.01}
    with pytest.raises(InputError, match="a learning rate for moco-v2"):
        probekit.pretrain(["ce", "moco-v2"], coloured(), lr={"ce": 0.02}, store=tmp_path, **QUICK)


def test_rates_are_chosen_by_trainings_of_their_own_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    steps = []
    original = trainings.train_arm

    def told(training, *rest, **more):
        steps.append(training.optimisation.steps)
        return original(training, *rest, **more)

    monkeypatch.setattr(trainings, "train_arm", told)
    settings = QUICK | {"epochs": 2, "rate_epochs": 1}
    table = probekit.pretrain("ce", coloured(), lr=[0.01, 0.02], store=tmp_path, **settings)
    assert steps == [5, 5, 10]
    rows = table.frame[table.frame["metric"] == "pretraining_loss"]
    assert [json.loads(one)["steps"] for one in rows["params"]] == [10]


@pytest.mark.slow
def test_at_equal_time_slower_arms_have_fewer_steps_of_a_whole_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seconds = {"ce": 0.1, "moco-v2": 0.2}
    monkeypatch.setattr(trainings, "seconds_a_step", lambda training, _views: seconds[training.arm.name])
    table = probekit.pretrain(
        ["ce", "moco-v2"], coloured(), budget="time", store=tmp_path, **(QUICK | {"epochs": 2})
    )
    rows = table.frame[table.frame["metric"] == "pretraining_loss"]
    assert [json.loads(one)["steps"] for one in rows["params"]] == [10, 5]
    curve = table.attachments["curves/moco-v2/seed-0.parquet"]
    assert curve["lr"].dropna().iloc[-1] < 0.02
    # It was measured once: another machine's load does not change what goes on.
    seconds["moco-v2"] = 0.4
    again = probekit.pretrain(
        ["ce", "moco-v2"], coloured(), budget="time", store=tmp_path, **(QUICK | {"epochs": 2})
    )
    assert again.frame.equals(table.frame)


@pytest.mark.slow
def test_images_without_classes_are_trained_on_by_arms_without_labels(tmp_path: Path):
    table = probekit.pretrain("autoencoder", coloured(labelled=False), store=tmp_path, **QUICK)
    assert set(table.frame["metric"]) == {"pretraining_loss", "images_per_s"}
    with pytest.raises(InputError, match="a class target for ce"):
        probekit.pretrain("ce", coloured(labelled=False), store=tmp_path, **QUICK)


@pytest.mark.parametrize(
    ("arms", "data", "changes", "message"),
    [
        ("ce", coloured(alike=True), {}, "at least two classes for ce"),
        ("moco-v2", coloured(), {"queue": 5000}, "at most the 81 training images"),
        ("moco-v2", coloured(), {"queue": 8}, "a queue of at least a batch"),
        ("ce", coloured(), {"batch_size": 1}, "at least two images for each of 2 groups"),
        ("ce", coloured(), {"batch_size": 17}, "a multiple of that"),
        ("ce", coloured(), {"batch_size": 256}, "at least one batch of 256"),
        ("ce", coloured(), {"seeds": [0, 0]}, "each once"),
        ("ce", coloured(), {"budget": "money"}, "budget among images, time"),
        ("ce", coloured(), {"augmentation": "flop"}, "Nearest: flip"),
        ("mocov2", coloured(), {}, "The nearest is moco-v2"),
        ([], coloured(), {}, "at least one arm"),
        ("ce", coloured().split("test"), {}, "a train split"),
        ("ce", coloured(), {"epochs": 0.0, "warmup": 2.0}, "a warm-up no longer"),
    ],
)
def test_what_cannot_be_trained_is_refused(tmp_path: Path, arms, data, changes, message: str):
    with pytest.raises(InputError, match=message):
        probekit.pretrain(arms, data, store=tmp_path, **(QUICK | changes))


@pytest.mark.slow
def test_a_loss_that_is_no_number_names_the_rate(tmp_path: Path):
    with pytest.raises(TrainingDiverged, match="Lower the learning rate of 1e\\+30"):
        probekit.pretrain("ce", coloured(), lr=1e30, store=tmp_path, **(QUICK | {"epochs": 3}))


@pytest.mark.slow
def test_a_plan_runs_and_leaves_a_page(tmp_path: Path):
    plan = Plan("pretrain", {"arms": ["ce"], "data": "shapeworld/source,train=100,test=40", **QUICK})
    execute(plan, tmp_path / "out", store=tmp_path / "store")
    assert (tmp_path / "out" / "figures" / "training.svg").exists()
    page = (tmp_path / "out" / "index.html").read_text()
    assert "Trainings: did they go well?" in page


def views(augmentation: str = "frcgb", seed: int = 0, groups: int = 2) -> TwoViews:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 24, 24, 3), dtype=np.uint8)
    return TwoViews(
        pixels, np.arange(40), parse_augmentation(augmentation), Preprocessing(16, 16), 8, groups, seed,
        torch.device("cpu"),
    )  # fmt: skip


def test_an_epoch_visits_every_image_once_and_each_in_another_order():
    one = views()
    assert one.steps_an_epoch == 5
    epochs = [np.concatenate([one.rows(5 * epoch + step) for step in range(5)]) for epoch in range(2)]
    for rows in epochs:
        assert sorted(rows) == list(range(40))
    assert epochs[0].tolist() != epochs[1].tolist()
    assert one(3).labels.tolist() == one.rows(3).tolist()


def test_views_depend_on_seed_and_step_alone():
    one, again, other = views()(4), views()(4), views(seed=1)(4)
    assert torch.equal(one.first, again.first)
    assert torch.equal(one.second, again.second)
    assert not torch.equal(one.first, one.second)
    assert not torch.equal(one.first, other.first)
    assert one.first.shape == (8, 3, 16, 16)


def test_processes_share_the_views_of_one(monkeypatch: pytest.MonkeyPatch):
    whole = views()(2)
    parts = []
    for number in ("0", "1"):
        monkeypatch.setenv("RANK", number)
        monkeypatch.setenv("WORLD_SIZE", "2")
        parts.append(views()(2))
    assert torch.equal(torch.cat([one.first for one in parts]), whole.first)
    assert torch.equal(torch.cat([one.second for one in parts]), whole.second)
    assert torch.equal(torch.cat([one.labels for one in parts]), whole.labels)


def test_views_are_normalised():
    one = views("none")(0)
    assert float(one.first.min()) < -1
    plain = TwoViews(**{**vars(views("none")), "preprocessing": Preprocessing(16, 16, (0, 0, 0), (1, 1, 1))})(
        0
    )
    expected = (plain.first - torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(1, 3, 1, 1)
    torch.testing.assert_close(one.first, expected)


def test_larger_images_are_kept_larger_and_files_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from probekit.pretraining import batches

    monkeypatch.setattr(batches, "MOST_BYTES", 10)
    with training_pixels(coloured(6), 42, tmp_path) as pixels:
        assert pixels.shape == (6, 48, 48, 3)
        assert isinstance(pixels, np.memmap)
    with training_pixels(coloured(6), 48, tmp_path) as pixels:
        assert pixels.shape == (6, 48, 48, 3)
        assert np.array_equal(pixels[2], coloured(6).pixels(2, Preprocessing(48, 48)))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_checkpoints_are_probed_with_the_preprocessing_they_were_trained_with(tmp_path: Path):
    """MoCo's own evaluation has other means than timm has for this architecture."""
    table = probekit.pretrain("moco-v2", coloured(60), arch="test_efficientnet", store=tmp_path, **QUICK)
    facts = table.provenance["models"]["moco-v2 seed 0"]["preprocessing"]
    assert facts == probekit.load_backbone("test_efficientnet", "random").preprocessing.facts()


@pytest.mark.slow
def test_a_table_names_no_place_of_this_machine(tmp_path: Path):
    table = probekit.pretrain("ce", coloured(), store=tmp_path, **QUICK)
    assert str(tmp_path) not in json.dumps(table.provenance)
    assert table.provenance["models"]["ce seed 0"]["spec"] == "resnet10_w16:checkpoints/ce/seed-0.pth"
    assert "checkpoints/ce/seed-0.pth" in table.attachments


def test_a_dry_run_keeps_nothing(cache_of_its_own: Path):
    data = "shapeworld/source,train=100,test=20"
    settings = {"arms": ["ce", "moco-v2"], "data": data, **QUICK, "budget": "time"}
    seen = sweep.foresee_pretraining(settings)
    assert seen["arm"].tolist() == ["ce", "moco-v2"]
    assert (seen["train_s"] > 0).all()
    assert not [path for path in cache_of_its_own.rglob("*") if path.is_file()]
