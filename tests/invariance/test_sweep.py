"""The verb: one table of models, data, taps and perturbations; repeats; refusals; figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import probekit
from probekit.data.targets import Target
from probekit.errors import InputError
from probekit.features import comparison
from probekit.figures import draw_invariance
from probekit.invariance import sweep
from probekit.plan import Plan
from probekit.results.schema import read_params
from probekit.running import foresee
from tests.features.conftest import images, small_backbone

QUICK = {
    "permutations": 2,
    "random": 0,
    "perturbations": ["rotation=45/90", "scale=0.8/0.5", "flip"],
    "images": 20,
}


def test_one_row_a_metric_perturbation_strength_model_and_tap(tmp_path: Path):
    table = probekit.measure_invariance(
        small_backbone(), images(), taps=["3", "5"], store=tmp_path, **(QUICK | {"random": 1})
    )
    frame = table.frame
    assert set(frame["analysis"]) == {"invariance"}
    assert not frame.duplicated(["model", "tap", "metric", "target", "params"]).any()
    assert frame["model"].nunique() == 2
    assert set(frame["tap"]) == {"3|gap", "5|gap"}
    curve = table.where(metric="whitened_cosine", target="scale", tap="3|gap", model="small").frame
    assert [one["strength"] for one in read_params(curve)] == [0.8, 0.5]
    assert {one["whitened_on"] for one in read_params(curve)} == {50}
    assert (frame.loc[frame["metric"] != "target_invariance", "n"] == 20).all()
    figures = draw_invariance(table)
    assert list(figures) == [
        "depth-perturbation_variance", "strengths-whitened_cosine", "depth-lidar", "depth-target_invariance",
    ]  # fmt: skip
    # From weak to strong, left to right, whichever way the numbers go.
    panels = {one.get_xlabel(): one.get_xlim() for one in figures["strengths-whitened_cosine"].axes}
    left, right = panels["scale (times the size)"]
    assert left > right
    left, right = panels["rotation (degrees)"]
    assert left < right


def test_controls_are_read_with_the_same_weights_changed_or_not(tmp_path: Path):
    """Batch-norm statistics of the few changed images would be others than those of the whole set."""
    table = probekit.measure_invariance(
        small_backbone(), images(), taps=["3"], store=tmp_path, **(QUICK | {"random": 1, "images": 10})
    )
    own = table.where(model=table.controls[0]).frame
    whole = probekit.measure_geometry(
        small_backbone(), images(), taps=["3"], store=tmp_path, random=1, permutations=0, probe=False
    )
    assert set(own["weights"]) == set(whole.where(model=table.controls[0]).frame["weights"])


def test_finished_cells_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls = []
    original = sweep._measure

    def counted(features, **rest):
        calls.append(features.tap)
        return original(features, **rest)

    monkeypatch.setattr(sweep, "_measure", counted)
    one = probekit.measure_invariance(small_backbone(), images(), taps=["3"], store=tmp_path, **QUICK)
    two = probekit.measure_invariance(small_backbone(), images(), taps=["3"], store=tmp_path, **QUICK)
    assert calls == ["3|gap"]
    assert one.frame.equals(two.frame)
    probekit.measure_invariance(
        small_backbone(), images(), taps=["3"], store=tmp_path, **(QUICK | {"perturbations": "flip"})
    )
    assert calls == ["3|gap"] * 2


@pytest.mark.parametrize(
    ("wrong", "part"),
    [
        ({"perturbations": ["rotate"]}, "rotation"),
        ({"perturbations": "blur=5"}, "0 to 1"),
        ({"images": 1}, "at least 2"),
        ({"target": "clas"}, "class"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_image_is_read(
    wrong, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def read(*_: object, **__: object) -> None:
        raise AssertionError("images were read")

    monkeypatch.setattr(comparison, "extract", read)
    with pytest.raises(InputError, match=part):
        probekit.measure_invariance(small_backbone(), images(), store=tmp_path, **(QUICK | wrong))


def test_images_without_classes_are_measured_all_the_same(tmp_path: Path):
    data = replace(images(), targets={"size": Target(np.arange(50.0), "continuous", ("size",))})
    table = probekit.measure_invariance(small_backbone(), data, taps=["3"], store=tmp_path, **QUICK)
    assert "target_invariance" not in set(table.frame["metric"])
    assert table.where(metric="lidar").frame["value"].notna().all()


def test_where_not_all_classes_fit_in_some_are_drawn_with_eight_images_each():
    labels = np.repeat(np.arange(30), 10)
    random = np.random.default_rng(0)
    many = probekit.ImageSet.from_arrays(
        "many",
        random.integers(0, 256, (300, 4, 4, 3), dtype=np.uint8),
        Target(labels, "class", tuple(f"c{i}" for i in range(30))),
    )
    rows = sweep._draw_images(many, "class", 100, seed=0)
    counts = np.bincount(labels[rows])
    assert len(rows) == 96
    assert set(counts[counts > 0]) == {8}
    assert len(sweep._draw_images(many, "class", 250, seed=0)) == 250
    assert len(sweep._draw_images(many, None, 100, seed=0)) == 100


def test_a_dry_run_counts_the_changed_images_too():
    settings = {"models": "resnet10t:random,size=32", "data": "digits,limit=30", "random": 0}
    plain = foresee(Plan("geometry", settings)).iloc[0]
    more = {"perturbations": ["flip", "blur=0.1/0.2"], "images": 15}
    views = foresee(Plan("invariance", settings | more)).iloc[0]
    assert plain["images"] == 60
    assert views["images"] == 60 + 15 * 4
    assert views["size_bytes"] == 2 * plain["size_bytes"]
