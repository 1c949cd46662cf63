"""What every analysis promises, shown of ``probe_boxes``: what and where are told apart where planted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import probekit
from probekit import ResultTable
from probekit.data.annotations import Boxes, stack
from probekit.data.targets import Target
from tests.contracts.planted_boxes import KINDS, objects, planted_boxes

QUICK = {"random": 0, "penalties": (1.0, 0.1, 0.01), "permutations": 5, "bootstrap_draws": 200, "gap": 1e-3}
PLANTED = ("noise", "what", "everywhere", "where")


def ask(models, data, store: Path, **settings) -> ResultTable:
    return probekit.probe_boxes(models, data, taps="blocks", store=store, **{**QUICK, **settings})


def scores(table: ResultTable, metric: str, model: str = "planted") -> pd.DataFrame:
    frame = table.frame[(table.frame["metric"] == metric) & (table.frame["model"] == model)]
    return frame.assign(kind=PLANTED).set_index("kind")


def clear(rows: pd.DataFrame) -> dict[str, bool]:
    """Whether each interval lies above the range of its null."""
    return (rows["ci_low"] > rows["null_high"]).to_dict()


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> ResultTable:
    return ask(planted_boxes(*PLANTED), objects(), tmp_path_factory.mktemp("store"))


def test_what_is_found_where_the_class_is_planted(table: ResultTable):
    rows = scores(table, "what_accuracy")
    assert clear(rows) == {"noise": False, "what": True, "everywhere": True, "where": False}
    assert (rows["value"][["what", "everywhere"]] > 0.95).all()
    assert (rows["value"][["noise", "where"]] < 0.45).all()
    assert clear(scores(table, "what_balanced_accuracy")) == clear(rows)


@pytest.mark.parametrize("metric", ["where_accuracy", "offset_r2"])
def test_where_is_found_where_the_object_ends_on_the_map(table: ResultTable, metric: str):
    rows = scores(table, metric)
    # The class that fills the box ends where the box does; the class spread over the image ends nowhere.
    assert clear(rows) == {"noise": False, "what": True, "everywhere": False, "where": True}
    assert rows["value"]["where"] > rows["value"]["what"] + 0.02
    assert rows["value"]["everywhere"] < {"where_accuracy": 0.28, "offset_r2": 0.05}[metric]


def test_a_duplicated_model_differs_by_nothing_and_swapped_ones_swap(tmp_path: Path):
    data = objects(90)
    kinds = ("noise", "what"), ("what", "where")
    one = ask([planted_boxes(*kinds[0], name="a"), planted_boxes(*kinds[1], name="b")], data, tmp_path)
    other = ask([planted_boxes(*kinds[1], name="a"), planted_boxes(*kinds[0], name="b")], data, tmp_path)

    def values(table: ResultTable, model: str) -> list[float]:
        return table.frame[table.frame["model"] == model]["value"].tolist()

    assert values(one, "a") == values(other, "b") != values(one, "b") == values(other, "a")
    twice = ask([planted_boxes(*kinds[1], name=name) for name in "ab"], data, tmp_path)
    assert values(twice, "a") == values(twice, "b")


def test_permuted_classes_fall_to_the_null(tmp_path: Path):
    data = objects()
    values = data.targets["boxes"].values
    random = np.random.default_rng(5)
    drawn = [Boxes(one.corners, random.integers(0, KINDS, 1), one.crowd) for one in values]
    pixels = np.stack([np.asarray(data.image(row)) for row in range(len(data))])
    target = Target(stack(drawn), "boxes", tuple("abcd"))
    permuted = probekit.ImageSet.from_arrays("permuted", pixels, {"boxes": target}, data.splits)
    found = ask(planted_boxes(*PLANTED), permuted, tmp_path, questions="what")
    assert not any(clear(scores(found, "what_accuracy")).values())


def test_the_backbone_is_untouched_by_success_and_failure(tmp_path: Path):
    backbone, data = planted_boxes("noise", "what"), objects(60)
    fresh = {key: value.clone() for key, value in backbone.module.state_dict().items()}
    ask(backbone, data, tmp_path, questions="what")
    with pytest.raises(probekit.ProbekitError):
        probekit.probe_boxes(backbone, data, taps=["blocks", "nowhere"], store=tmp_path, **QUICK)
    after = backbone.module.state_dict()
    assert all(torch.equal(after[key], fresh[key]) for key in fresh)
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in backbone.module.modules())
    assert not backbone.module.training


@pytest.mark.slow
def test_any_number_of_jobs_gives_the_same_table(tmp_path: Path):
    data = objects(60)
    one, two = (ask(planted_boxes(*PLANTED), data, tmp_path / str(n), jobs=n) for n in (1, 2))
    assert one.frame.equals(two.frame)
