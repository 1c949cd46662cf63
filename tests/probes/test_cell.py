"""One cell: every probe of one tap."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from probekit import ResultTable
from probekit.data.targets import Target
from probekit.probes import cell
from probekit.probes.cell import probe_tap
from tests.probes.conftest import QUICK, features_of, gaussians, roles_of


def table_of(values: np.ndarray, targets: dict[str, Target], width: int | None = 2) -> ResultTable:
    return probe_tap(features_of(values, targets), targets, roles_of(len(values)), QUICK, width)


def test_every_kind_of_target_has_its_metrics():
    values, labels = gaussians()
    targets = {
        "x": Target(values[:, 0].astype(float), "continuous", ("x",)),
        "class": Target(labels, "class", ("a", "b", "c")),
        "tags": Target(values[:, :2] > 0, "multilabel", ("p", "q")),
    }
    table = table_of(values, targets)
    found = {name: set(rows["metric"]) for name, rows in table.frame.groupby("target")}
    assert found["x"] == {"r2"}
    assert found["tags"] == {"mean_ap"}
    assert found["class"] == {
        "accuracy",
        "balanced_accuracy",
        "bits",
        "calibration_error",
        "accuracy_equal_d",
        "knn_accuracy",
        "few_shot_accuracy",
        "control_accuracy",
        "selectivity",
        "class_recall",
    }
    assert list(dict.fromkeys(table.frame["target"])) == list(targets)
    assert set(table.frame["status"]) == {"ok"}


def test_axes_and_neighbours_are_found_once_for_all_classes(monkeypatch: pytest.MonkeyPatch):
    values, labels = gaussians()
    one = Target(labels, "class", ("a", "b", "c"))
    other = Target((labels > 0).astype(np.int64), "class", ("no", "yes"))
    alone = [table_of(values, {name: target}) for name, target in {"one": one, "other": other}.items()]
    calls = []
    for name in ("find_neighbours", "_reduced"):
        real = getattr(cell, name)
        monkeypatch.setattr(cell, name, lambda *args, real=real: calls.append(real) or real(*args))
    both = table_of(values, {"one": one, "other": other})
    assert len(calls) == len(set(calls)) == 2
    pd.testing.assert_frame_equal(both.frame, ResultTable.concat(alone).frame)


def test_description_length_is_measured_if_asked_for():
    values, labels = gaussians(n=240)
    targets = {"class": Target(labels, "class", ("a", "b", "c"))}
    frame = probe_tap(
        features_of(values, targets), targets, roles_of(240), replace(QUICK, orders=1), None
    ).frame.set_index("metric")
    assert frame.loc["description_length", "split"] == "train+val"
    assert frame.loc["compression", "n"] == 150
    assert frame.loc["accuracy", "split"] == "test"


def test_equal_width_is_reached_by_principal_components():
    values, labels = gaussians(distance=4.0)
    frame = table_of(values, {"class": Target(labels, "class", ("a", "b", "c"))}, width=2).frame
    row = frame[frame["metric"] == "accuracy_equal_d"].iloc[0]
    assert row["d"] == 2
    # Three centres span two dimensions, which the two leading components find.
    assert row["value"] > 0.9


def test_dead_channels_narrow_the_common_width():
    values, labels = gaussians()
    values[:, 1:] = 0
    frame = table_of(values, {"class": Target(labels, "class", ("a", "b", "c"))}, width=3).frame
    row = frame[frame["metric"] == "accuracy_equal_d"].iloc[0]
    assert row["d"] == 1
    assert row["value"] > row["null_high"]


def test_features_that_do_not_vary_are_dead_not_scored():
    labels = np.arange(80) % 2
    table = table_of(np.ones((80, 3), np.float32), {"class": Target(labels, "class", ("a", "b"))})
    assert len(table.frame) == 1
    assert "dead" in table.frame["status"].iloc[0]
    assert np.isnan(table.frame["value"].iloc[0])


def test_a_cell_survives_the_disk(tmp_path: Path):
    values, labels = gaussians(n=120)
    table = table_of(values, {"class": Target(labels, "class", ("a", "b", "c"))})
    table.write(tmp_path / "cell")
    again = ResultTable.read(tmp_path / "cell")
    assert again.frame.equals(table.frame)
    assert set(again.attachments) == {"scores/class.parquet", "probes/class.npz"}
