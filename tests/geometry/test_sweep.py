"""The verb: one table of models, data and taps; repeats; statistics without a store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import probekit
from probekit.errors import InputError
from probekit.features import comparison
from probekit.geometry import sweep
from tests.features.conftest import images, small_backbone

QUICK = {"permutations": 2, "random": 0, "probe": False}


def test_one_row_a_metric_model_and_tap(tmp_path: Path):
    table = probekit.measure_geometry(
        small_backbone(), images(), taps=["3", "5"], store=tmp_path, random=1, permutations=2, probe=False
    )
    frame = table.frame
    assert set(frame["analysis"]) == {"geometry"}
    assert set(frame["split"]) == {"unknown"}
    assert not frame.duplicated(["model", "tap", "metric"]).any()
    assert frame["model"].nunique() == 2
    assert set(frame["tap"]) == {"3|gap", "5|gap"}
    assert table.provenance["analysis"] == "geometry"
    assert len(table.controls) == 1


def test_finished_cells_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls = []
    original = sweep._measure

    def counted(part, features, **rest):
        calls.append(features.tap)
        return original(part, features, **rest)

    monkeypatch.setattr(sweep, "_measure", counted)
    one = probekit.measure_geometry(small_backbone(), images(), taps=["3"], store=tmp_path, **QUICK)
    two = probekit.measure_geometry(small_backbone(), images(), taps=["3", "5"], store=tmp_path, **QUICK)
    assert calls == ["3|gap", "5|gap"]
    same = two.frame[two.frame["tap"] == "3|gap"]["value"].to_numpy()
    np.testing.assert_array_equal(one.frame["value"].to_numpy(), same)


def test_what_cannot_be_measured_is_refused_before_any_image_is_read(tmp_path: Path, monkeypatch):
    def read(*_: object, **__: object) -> None:
        raise AssertionError("images were read")

    monkeypatch.setattr(comparison, "extract", read)
    with pytest.raises(InputError, match="nearest are class"):
        probekit.measure_geometry(small_backbone(), images(), target="clas", store=tmp_path, **QUICK)


def test_statistics_without_a_store_are_those_of_the_features(tmp_path: Path):
    data, backbone = images(), small_backbone()
    found = probekit.stream_moments(backbone, data, ["3", "5"], batch_size=5)
    kept = probekit.extract(backbone, data, ["3", "5"], store=tmp_path)
    for tap, features in kept.items():
        labels = data.targets["class"]
        whole = probekit.functional.Moments.of(
            features.matrix(), labels.values, n_classes=labels.n_classes, shift=found[tap].shift
        )
        np.testing.assert_allclose(found[tap].products, whole.products, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(found[tap].counts, whole.counts)


def test_factors_are_read_by_the_readout_and_by_a_grid_all_maps_have_room_for(tmp_path: Path):
    table = probekit.measure_geometry(
        "resnet10t:random,size=64",
        "shapeworld/source,train=300,test=60",
        taps=["layer1", "layer3"],
        store=tmp_path,
        **QUICK,
    )
    rows = table.frame[table.frame["metric"] == "within_class_r2"]
    assert rows["target"].nunique() == 8
    # layer3 of 64 pixels is 4 by 4.
    assert set(rows["readout"]) == {"gap", "grid(4)"}
    grids = rows[rows["readout"] == "grid(4)"]
    assert set(grids["tap"]) == {"layer1|grid(4)", "layer3|grid(4)"}
    assert all('"grid":4' in params for params in grids["params"])
    assert not table.frame.duplicated(["tap", "metric", "target"]).any()
