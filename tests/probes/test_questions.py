"""Scores of regions: values by libraries, intervals over whole images, each question asked of its regions."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import balanced_accuracy_score, r2_score

from probekit.data.proposals import IOU_BINS, TRUE_BOX, draw_proposals
from probekit.features.features import Features
from probekit.functional.detection import box_offsets
from probekit.probes.protocol import Protocol, Roles
from probekit.probes.questions import COMPONENTS, Regions, probe_regions, sum_by
from probekit.results.table import ResultTable
from probekit.seeds import random_stream
from tests.data.boxed import CLASSES, boxed, scattered

QUICK = Protocol((1.0, 0.1, 0.01), permutations=4, bootstrap_draws=300, neighbours=0, shots=(), gap=1e-6)
IMAGES = 60


def regions() -> Regions:
    _, proposals = draw_proposals(boxed(scattered(IMAGES)), "boxes", 1000)
    roles = Roles(np.arange(0, 30), np.arange(30, 40), np.arange(40, IMAGES))
    return Regions(proposals, roles, CLASSES, "boxes")


def features(values: np.ndarray, of: Regions) -> Features:
    owners = of.proposals.images
    ids = np.array([f"image {row}" for row in owners])
    facts = {"block": "b", "level": "low", "depth": 0.0, "readout": "roi(3)"}
    return Features(values.astype(np.float32), "N D", ids, np.full(len(ids), "train"), {}, "b|roi(3)", facts)


def informed(of: Regions, noise: float = 0.6) -> np.ndarray:
    """Class, bin and offset of every region, under noise of the region and of its image."""
    proposals, random = of.proposals, np.random.default_rng(0)
    told = [np.eye(3)[proposals.classes], np.eye(6)[proposals.bins + 1]]
    told.append(8 * box_offsets(proposals.boxes, proposals.truth))
    values = np.concatenate(told, axis=1)
    own = random.normal(size=values.shape) + random.normal(size=(IMAGES, values.shape[1]))[proposals.images]
    return values + noise * own


@pytest.fixture(scope="module")
def asked() -> tuple[Regions, ResultTable]:
    of = regions()
    table = probe_regions(
        features(informed(of), of), regions=of, questions=("what", "where", "offset"), protocol=QUICK
    )
    return of, table


def value(table: ResultTable, metric: str) -> pd.Series:
    return table.frame[table.frame["metric"] == metric].iloc[0]


def test_each_question_is_asked_of_its_regions_and_splits_part_images():
    of = regions()
    bins, owners = of.proposals.bins, of.proposals.images
    for question, counted in (("what", 1), ("where", 5), ("offset", 3)):
        roles = of.rows(question)
        parts = [set(owners[rows].tolist()) for rows in (roles.train, roles.val, roles.test)]
        assert parts == [set(range(30)), set(range(30, 40)), set(range(40, IMAGES))]
        every = np.concatenate([roles.fitting, roles.test])
        assert len(every) == counted * (bins == TRUE_BOX).sum()
    assert (bins[of.rows("what").test] == TRUE_BOX).all()
    assert np.bincount(of.labels("where").values[of.rows("where").test]).std() == 0
    half = {place for place, (low, _) in enumerate(IOU_BINS) if low >= 0.5}
    assert set(bins[of.rows("offset").test].tolist()) == half


def test_values_are_those_of_scikit_learn_on_what_was_answered(asked):
    _, table = asked
    for question in ("what", "where"):
        said = table.attachments[f"regions/{question}.parquet"]
        hits = said["target"] == said["prediction"]
        assert value(table, f"{question}_accuracy")["value"] == pytest.approx(hits.mean())
    said = table.attachments["regions/what.parquet"]
    expected = balanced_accuracy_score(said["target"], said["prediction"])
    assert value(table, "what_balanced_accuracy")["value"] == pytest.approx(expected)
    said = table.attachments["regions/offset.parquet"]
    truth, answer = said[list(COMPONENTS)], said[[f"said {name}" for name in COMPONENTS]]
    expected = r2_score(truth, answer, multioutput="raw_values")
    parts = table.frame[table.frame["metric"] == "offset_component_r2"]["value"]
    np.testing.assert_allclose(parts, expected, atol=1e-9)
    assert value(table, "offset_r2")["value"] == pytest.approx(expected.mean())


def test_offsets_are_fitted_as_scikit_learn_does(asked):
    of, table = asked
    roles, x = of.rows("offset"), informed(of).astype(np.float32)
    y = box_offsets(of.proposals.boxes, of.proposals.truth)
    fit = x[roles.fitting]
    mean, scale = fit.mean(axis=0), fit.std(axis=0)
    penalty = json.loads(value(table, "offset_r2")["params"])["penalty"]
    ridge = Ridge(alpha=penalty * len(fit)).fit((fit - mean) / scale, y[roles.fitting])
    said = table.attachments["regions/offset.parquet"][[f"said {name}" for name in COMPONENTS]]
    np.testing.assert_allclose(said, ridge.predict((x[roles.test] - mean) / scale), atol=1e-4)


def test_intervals_draw_whole_images(asked):
    of, table = asked
    said = table.attachments["regions/where.parquet"]
    hits = (said["target"] == said["prediction"]).to_numpy()
    images = of.proposals.images[of.rows("where").test]
    some = np.unique(images)
    stream = random_stream("bootstrap boxes where_accuracy", QUICK.seed)
    drawn = stream.integers(len(some), size=(QUICK.bootstrap_draws, len(some)))
    means = [np.concatenate([hits[images == some[place]] for place in one]).mean() for one in drawn]
    row = value(table, "where_accuracy")
    assert row["ci_kind"] == "bootstrap,whole images"
    np.testing.assert_allclose([row["ci_low"], row["ci_high"]], np.quantile(means, [0.025, 0.975]))
    assert (row["n"], row["n_classes"], row["d"]) == (len(some), 5, 13)


def test_regions_that_share_their_fate_make_the_interval_wide():
    of = regions()
    test = of.proposals.images
    # Whether a region is read rightly depends on its image alone.
    known = np.random.default_rng(1).random(IMAGES) < 0.5
    values = np.eye(6)[of.proposals.bins + 1] * known[test][:, None]
    table = probe_regions(features(values, of), regions=of, questions=("where",), protocol=QUICK)
    row = value(table, "where_accuracy")
    count = len(of.rows("where").test)
    alone = 2 * 1.96 * np.sqrt(row["value"] * (1 - row["value"]) / count)
    assert row["ci_high"] - row["ci_low"] > 2 * alone


def test_features_that_say_nothing_score_the_null():
    of = regions()
    noise = np.random.default_rng(3).normal(size=(len(of.proposals), 8))
    questions = ("what", "where", "offset")
    table = probe_regions(features(noise, of), regions=of, questions=questions, protocol=QUICK)
    for metric, chance in (("what_accuracy", 1 / 3), ("where_accuracy", 1 / 5), ("offset_r2", 0.0)):
        row = value(table, metric)
        assert row["ci_low"] <= row["null_high"]
        assert abs(row["null"] - chance) < 0.12
        assert row["null_kind"] == "permuted,4"


def test_a_constant_tap_is_said_to_be_dead():
    of = regions()
    dead = features(np.ones((len(of.proposals), 4)), of)
    table = probe_regions(dead, regions=of, questions=("what", "offset"), protocol=QUICK)
    assert table.frame["metric"].tolist() == ["what_accuracy", "offset_r2"]
    assert table.frame["status"].str.startswith("dead at initialisation").all()


def test_sums_by_group_keep_the_whole():
    values, groups = np.random.default_rng(0).random((20, 3)), np.random.default_rng(1).integers(0, 5, 20)
    np.testing.assert_allclose(sum_by(values, groups), pd.DataFrame(values).groupby(groups).sum())
