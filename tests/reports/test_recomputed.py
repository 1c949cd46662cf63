"""Numbers of committed reports come out again of other code: NumPy, SciPy and scikit-learn.

Three cells of every table that is read from features, drawn anew each day: features are found in the store or
read again, all that follows is computed here. What needs no features is recomputed in every run of the tests.
"""

from __future__ import annotations

import datetime
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from sklearn.covariance import OAS
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import balanced_accuracy_score, log_loss, r2_score
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors
from sklearn.preprocessing import StandardScaler

from probekit import extract
from probekit.data.perturbations import parse_perturbations
from probekit.data.readers import open_images
from probekit.errors import DataError
from probekit.files import cache_folder, safe_name
from probekit.invariance.sweep import _draw_images
from tests.conftest import ROOT

REPORTS = ROOT / "reports"
# Looked up before a test gives itself another one.
STORE = cache_folder()
CELLS = 3
log = logging.getLogger(__name__)
Floats = NDArray[np.float64]


@cache
def facts_of(table: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((table / "provenance.json").read_text(encoding="utf-8"))
    return found


def tables(analysis: str) -> list[Path]:
    places = sorted(one.parent for one in REPORTS.glob("*/tables/*/provenance.json"))
    return [one for one in places if facts_of(one).get("analysis") == analysis]


def named(places: list[Path]) -> list[Any]:
    return [pytest.param(one, id=f"{one.parent.parent.name}-{one.name}") for one in places]


def rows_of(table: Path) -> pd.DataFrame:
    frame = pd.read_parquet(table / "table.parquet")
    return frame.assign(params=pd.Series(list(map(json.loads, frame.params)), frame.index, object))


@cache
def opened(spec: str) -> Any:
    return open_images(spec)


@cache
def stored() -> dict[tuple[str, str], Path]:
    """(digest of weights, digest of images) → folder of features."""
    found = {}
    for place in (STORE / "features").glob("*/manifest.json"):
        key = json.loads(place.read_text(encoding="utf-8"))["key"]
        found[key["weights"], key["index"]] = place.parent
    return found


@dataclass(frozen=True)
class Cell:
    """One row of a table, and the features that it is about."""

    row: Any
    x: Floats
    y: Any
    fit: NDArray[np.intp]
    test: NDArray[np.intp]
    other: Callable[[], Floats]
    labels: NDArray[np.int64] | None

    @property
    def scaled(self) -> tuple[Floats, Floats]:
        """Rows to fit on and to score, standardised by the first; constant columns are left out."""
        fit, test = self.x[self.fit], self.x[self.test]
        kept = fit.std(axis=0) > 1e-6 * np.abs(fit).max(axis=0)
        scaler = StandardScaler().fit(fit[:, kept])
        return scaler.transform(fit[:, kept]), scaler.transform(test[:, kept])


@cache
def features(table: Path, model: str, data: str, tap: str) -> Floats:
    """Read (N, D) features, from the store's files where they are there."""
    facts = facts_of(table)
    own = facts["models"][model]
    images = facts["data"][data]
    place = stored().get((own["weights"], images["digest"]))
    if place is not None:
        for one in place.glob("*.float32-*/tap.json"):
            # Readouts that are read of another tap's maps are computed, not stored.
            if json.loads(one.read_text(encoding="utf-8"))["tap"] == tap:
                parts = [np.load(part) for part in sorted(one.parent.glob("part-*.npy"))]
                if sum(map(len, parts)) == sum(images["n"].values()):
                    whole = np.concatenate(parts)
                    return whole.reshape(len(whole), -1).astype(np.float64)
    if own["spec"] is None:
        pytest.skip(f"no words load {model} again, and its features are not in the store")
    found = extract(own["spec"], opened(images["spec"]), taps=tap, store=STORE)
    return next(iter(found.values())).matrix().astype(np.float64)


def cell(table: Path, row: Any) -> Cell:
    spec = facts_of(table)["data"][row.data]["spec"]
    try:
        images = opened(spec)
    except DataError as error:
        pytest.skip(f"images are not here: {error}")
    splits = images.splits
    model, _, tap = str(row.target).rpartition(" ")
    target = images.targets.get(row.target)
    return Cell(
        row,
        features(table, row.model, row.data, row.tap),
        None if target is None else target.values,
        np.flatnonzero((splits == "train") | (splits == "val")),
        np.flatnonzero(splits == "test"),
        lambda: features(table, model, row.data, tap),
        next((one.values for one in images.targets.values() if one.kind == "class"), None),
    )


# Probes


def logistic(c: Cell) -> tuple[Any, Floats]:
    fit, test = c.scaled
    strength = 1 / (len(fit) * c.row.params["penalty"])
    probe = LogisticRegression(C=strength, tol=1e-6, max_iter=5000).fit(fit, c.y[c.fit])
    return probe, test


def accuracy(c: Cell) -> float:
    probe, test = logistic(c)
    return float(probe.score(test, c.y[c.test]))


def balanced_accuracy(c: Cell) -> float:
    probe, test = logistic(c)
    return float(balanced_accuracy_score(c.y[c.test], probe.predict(test)))


def bits(c: Cell) -> float:
    probe, test = logistic(c)
    return float(log_loss(c.y[c.test], probe.predict_proba(test), labels=probe.classes_) / np.log(2))


def r2(c: Cell) -> float:
    fit, test = c.scaled
    ridge = Ridge(alpha=len(fit) * c.row.params["penalty"], solver="svd").fit(fit, c.y[c.fit])
    return float(r2_score(c.y[c.test], ridge.predict(test), multioutput="variance_weighted"))


def knn_accuracy(c: Cell) -> float:
    vote = KNeighborsClassifier(
        c.row.params["k"], metric="cosine", algorithm="brute",
        weights=lambda distance: np.exp((1 - distance) / c.row.params["temperature"]),
    )  # fmt: skip
    return float(vote.fit(c.x[c.fit], c.y[c.fit]).score(c.x[c.test], c.y[c.test]))


# Geometry


def unit(x: Floats) -> Floats:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def variances(x: Floats, y: NDArray[np.int64]) -> tuple[float, float, float]:
    """Mean squares between and inside classes, and images a class (one-way analysis of variance)."""
    classes, counts = np.unique(y, return_counts=True)
    means = np.stack([x[y == one].mean(axis=0) for one in classes])
    between = float(counts @ np.square(means - x.mean(axis=0)).sum(axis=1)) / (len(classes) - 1)
    inside = sum(np.square(x[y == one] - mean).sum() for one, mean in zip(classes, means, strict=True))
    size = (len(x) - np.square(counts).sum() / len(x)) / (len(classes) - 1)
    return between, float(inside) / (len(x) - len(classes)), float(size)


def icc(x: Floats, y: NDArray[np.int64]) -> float:
    between, inside, size = variances(x, y)
    return (between - inside) / (between + (size - 1) * inside)


def within_between(x: Floats, y: NDArray[np.int64]) -> float:
    between, inside, size = variances(x, y)
    return inside / ((between - inside) / size)


def within_class_r2(c: Cell) -> float:
    assert c.labels is not None
    left, values = c.x.copy(), np.array(c.y, np.float64)
    # Each split loses its own means, train and val apart: where val was held out, it is not known here.
    for part in (c.fit, c.test):
        for one in np.unique(c.labels[part]):
            rows = part[c.labels[part] == one]
            left[rows] -= left[rows].mean(axis=0)
            values[rows] -= values[rows].mean(axis=0)
    return r2(Cell(c.row, left, values, c.fit, c.test, c.other, c.labels))


def recall_at(k: int) -> Callable[[Cell], float]:
    def score(c: Cell) -> float:
        near = NearestNeighbors(n_neighbors=k + 1, metric="cosine", algorithm="brute").fit(c.x)
        found = near.kneighbors(return_distance=False)[:, :k]
        return float((c.y[found] == c.y[:, None]).any(axis=1).mean())

    return score


def rankme(c: Cell) -> float:
    p = np.linalg.svd(c.x, compute_uv=False)
    p = p / p.sum() + 1e-7
    return float(np.exp(-(p * np.log(p)).sum()))


def participation_ratio(c: Cell) -> float:
    values = np.linalg.svd(c.x - c.x.mean(axis=0), compute_uv=False) ** 2
    return float(values.sum() ** 2 / np.square(values).sum())


# Similarity


def centred(c: Cell) -> tuple[Floats, Floats]:
    x, y = c.x, c.other()
    return x - x.mean(axis=0), y - y.mean(axis=0)


def cka(c: Cell) -> float:
    x, y = centred(c)
    return float(np.linalg.norm(x.T @ y) ** 2 / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y))


def cka_debiased(c: Cell) -> float:
    x, y = centred(c)
    k, other = x @ x.T, y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(other, 0)
    n = len(k)

    def hsic(a: Floats, b: Floats) -> float:
        ones = a.sum(axis=0) @ b.sum(axis=0)
        whole = np.vdot(a, b) + a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 * ones / (n - 2)
        return float(whole / (n * (n - 3)))

    return hsic(k, other) / np.sqrt(hsic(k, k) * hsic(other, other))


def procrustes(c: Cell) -> float:
    x, y = centred(c)
    nuclear = np.linalg.norm(x.T @ y, "nuc")
    return float(np.arccos(min(1.0, nuclear / np.linalg.norm(x) / np.linalg.norm(y))))


def svcca(c: Cell) -> float:
    def leading(x: Floats) -> Floats:
        left, values, _ = np.linalg.svd(x, full_matrices=False)
        share = np.cumsum(values**2) / np.sum(values**2)
        return np.asarray(left[:, : int(np.searchsorted(share, 0.99)) + 1])

    x, y = map(leading, centred(c))
    return float(np.linalg.svd(x.T @ y, compute_uv=False).mean())


# Changed images


def views(table: Path, row: Any, strengths: bool) -> tuple[Floats, Floats, Floats]:
    """Return (N, D) of all images, (n, D) of some as they are, (S, n, D) of these under the row's changes."""
    facts = facts_of(table)
    settings, spec = facts["settings"], facts["models"][row.model]["spec"]
    whole = opened(facts["data"][row.data]["spec"])
    target = next((name for name, one in whole.targets.items() if one.kind == "class"), None)
    some = whole.select(_draw_images(whole, target, settings["images"], settings["seed"]))
    changes = parse_perturbations(settings["perturbations"], settings["seed"])[row.target]
    if not strengths:
        changes = [one for one in changes if one.strength == row.params["strength"]]
    found = next(iter(extract(spec, some.with_views(changes), taps=row.tap, store=STORE).values())).matrix()
    found = found.astype(np.float64).reshape(1 + len(changes), row.n, -1)
    return features(table, row.model, row.data, row.tap), found[0], found[1:]


def perturbation_variance(table: Path, row: Any) -> float:
    _, clean, changed = views(table, row, strengths=True)
    x = np.concatenate([clean[None], changed])
    return 1 - icc(x.reshape(-1, x.shape[-1]), np.tile(np.arange(x.shape[1]), len(x)))


def whitened(table: Path, row: Any) -> tuple[Floats, Floats]:
    whole, clean, (changed,) = views(table, row, strengths=False)
    oas = OAS().fit(whole)
    values, axes = np.linalg.eigh(oas.covariance_)
    return (clean - oas.location_) @ axes / np.sqrt(values), (changed - oas.location_) @ axes / np.sqrt(
        values
    )


def whitened_cosine(table: Path, row: Any) -> float:
    one, other = map(unit, whitened(table, row))
    return float((one * other).sum(axis=1).mean())


def mahalanobis(table: Path, row: Any) -> float:
    one, other = whitened(table, row)
    return float(np.linalg.norm(one - other, axis=1).mean())


METRICS: dict[str, dict[str, tuple[Callable[[Cell], float], float]]] = {
    # Metric → how it is computed, and how far it may be off. Probes are solved to a gap of 1e-4: an image on
    # the border may fall to the other side.
    "probe": {
        "accuracy": (accuracy, 0.004),
        "balanced_accuracy": (balanced_accuracy, 0.004),
        "bits": (bits, 0.002),
        "r2": (r2, 1e-4),
        "knn_accuracy": (knn_accuracy, 0.002),
    },
    "geometry": {
        "icc": (lambda c: icc(c.x, c.y), 1e-5),
        "icc_l2": (lambda c: icc(unit(c.x), c.y), 1e-5),
        "within_between": (lambda c: within_between(c.x, c.y), 1e-3),
        "within_class_r2": (within_class_r2, 1e-3),
        "recall_at_1": (recall_at(1), 0.002),
        "recall_at_5": (recall_at(5), 0.002),
        "rankme": (rankme, 0.01),
        "participation_ratio": (participation_ratio, 0.01),
    },
    "similarity": {
        "cka": (cka, 1e-5),
        "cka_debiased": (cka_debiased, 1e-5),
        "procrustes": (procrustes, 1e-4),
        "svcca": (svcca, 1e-3),
    },
}
METRICS["pretrain"] = METRICS["probe"]
CHANGED: dict[str, tuple[Callable[[Path, Any], float], float]] = {
    "perturbation_variance": (perturbation_variance, 1e-4),
    "whitened_cosine": (whitened_cosine, 1e-3),
    "mahalanobis": (mahalanobis, 1e-3),
}


def drawn(table: Path, metrics: Mapping[str, Any]) -> pd.DataFrame:
    """Return the day's cells of a table, of those that can be computed here."""
    rows = rows_of(table)
    models = facts_of(table)["models"]
    data = facts_of(table)["data"]
    counts = {name: sum(one["n"].values()) for name, one in data.items()}
    # Not what was computed of some images that were drawn.
    whole = rows.params.map(lambda one: one.get("subsample")) == rows.data.map(counts)
    whole |= ~rows.params.map(lambda one: "subsample" in one)
    known = rows.model.map(
        lambda one: models.get(one, {}).get("spec") is not None or (models[one]["weights"] in weights_here())
    )
    rows = rows[
        rows.metric.isin(metrics)
        & (rows.target != "all")
        & rows.value.notna()
        & whole
        & known
        & rows.data.isin(data)
    ]
    seed = datetime.datetime.now(datetime.UTC).date().toordinal()
    return rows.sample(min(CELLS, len(rows)), random_state=seed)


@cache
def weights_here() -> frozenset[str]:
    return frozenset(weights for weights, _ in stored())


@pytest.mark.campaign
@pytest.mark.parametrize("table", [one for kind in METRICS for one in named(tables(kind))])
def test_cells_come_out_of_other_code(table: Path):
    metrics = METRICS[facts_of(table)["analysis"]]
    rows = drawn(table, metrics)
    if rows.empty:
        pytest.skip("no words load its models again, and their features are not in the store")
    for row in rows.itertuples():
        compute, tolerance = metrics[row.metric]
        check(row, compute(cell(table, row)), tolerance)


@pytest.mark.campaign
@pytest.mark.parametrize("table", named(tables("invariance")))
def test_changed_images_come_out_of_other_code(table: Path):
    rows = drawn(table, CHANGED)
    for row in rows.itertuples():
        compute, tolerance = CHANGED[row.metric]
        check(row, compute(table, row), tolerance)


def check(row: Any, again: float, tolerance: float) -> None:
    log.info(
        "%s %s %s %s %s: %r, again %r", row.model, row.data, row.target, row.tap, row.metric, row.value, again
    )
    assert again == pytest.approx(row.value, rel=tolerance, abs=tolerance), (row.model, row.tap, row.metric)


# What needs no features


def arms_of(rows: pd.DataFrame) -> NDArray[np.object_]:
    """Return the arm of every row, called as in tables of arms; draws of random init are an arm, too."""
    parts = rows.model.str.extract(r"^(\S+) seed-\d+ (.+)$")
    names = np.where(parts[1].isin(["images"]), parts[0], parts[0] + ", " + parts[1])
    return np.where(rows.model.str.contains("random@"), "random init", names)


def mean_and_interval(values: Floats) -> list[float]:
    """Return mean and 95 % t-interval; of a single value there is none."""
    mean, n = values.mean(), len(values)
    half = stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / np.sqrt(n) if n > 1 else np.nan
    return [mean, mean - half, mean + half]


# Arms whose seeds all read alike: SciPy warns of their variance.
@pytest.mark.filterwarnings("ignore:Precision loss occurred:RuntimeWarning")
@pytest.mark.parametrize(
    "table", named([one.parent for one in sorted(REPORTS.glob("*/tables/arms/table.parquet"))])
)
def test_means_and_differences_of_arms(table: Path):
    sources = pd.concat(
        [rows_of(one.parent) for one in table.parent.glob("*/table.parquet") if one.parent != table]
    )
    rows = rows_of(table)
    assert len(rows)
    keys = ["data", "target", "tap", "metric"]
    sources = sources[sources.value.notna()].assign(arm=arms_of)
    values = {where: own.value.to_numpy(float) for where, own in sources.groupby([*keys, "arm"])}
    for row in rows.itertuples():
        where = row.data, row.target, row.tap, row.metric.removesuffix("_difference")
        one = values[(*where, row.model)]
        if "from" not in row.params:
            expected = mean_and_interval(one)
        elif row.params["from"] == "ce":
            expected = mean_and_interval(one - values[(*where, "ce")])
        else:
            other = values[(*where, row.params["from"])]
            welch = stats.ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
            expected = [one.mean() - other.mean(), *welch]
        np.testing.assert_allclose([row.value, row.ci_low, row.ci_high], expected, atol=1e-9)


@pytest.mark.parametrize("table", named(tables("reset")))
def test_gains_and_shares_of_reset_curves(table: Path):
    rows = rows_of(table)
    # Whole backbones of an arm, or resets of a model; means of trials follow from the rows of trials.
    sign = {"accuracy": 1, "ap": 1, "normalised_error": -1}
    trained = rows[rows.trial_seed.notna()]
    checked = 0
    for model, own in rows[
        rows.metric.isin(["gain", "recovered_fraction", "high_level_share", "reuse_share"])
    ].groupby("model"):
        for row in own.itertuples():
            of = row.params["of"]
            mine = trained[(trained.model == model) & (trained.metric == of)]

            def values(kept: list[str], mode: str, mine: pd.DataFrame = mine, of: str = of) -> Floats:
                there = mine.params.map(lambda one: one["kept"] == kept and one["mode"] == mode)
                return sign[of] * mine[there].sort_values("trial_seed").value.to_numpy(float)

            states = mine.params.map(lambda one: tuple(one["kept"]))
            whole = values(list(max(states, key=len)), "")
            scratch = values([], "random")
            state = whole if not row.params["mode"] else values(row.params["kept"], row.params["mode"])
            gain, full = state - scratch, whole - scratch
            if row.metric == "gain":
                found = [row.value, row.ci_low, row.ci_high]
                np.testing.assert_allclose(found, mean_and_interval(gain), atol=1e-9)
            elif not np.isnan(row.value):
                top = gain if row.metric == "recovered_fraction" else full - gain
                assert row.value == pytest.approx(top.mean() / full.mean(), abs=1e-9)
                # Fieller: at the ends of the interval, top − share × full is just told from 0.
                for end in (row.ci_low, row.ci_high):
                    if np.isfinite(end) and top.any():
                        assert stats.ttest_1samp(top - end * full, 0).pvalue == pytest.approx(0.05, abs=1e-6)
            checked += 1
    assert checked


def test_shares_of_architectures_that_are_right():
    (table,) = tables("timm_sweep") or [REPORTS / "timm_sweep" / "tables" / "sweep"]
    checked = json.loads((table / "names.json").read_text(encoding="utf-8"))
    rows = rows_of(table)
    for row in rows[rows.model == "timm"].itertuples():
        told = [one[row.target] for one in checked.values() if not one[row.target].startswith("not checked")]
        assert row.value == pytest.approx(sum(one == "right" for one in told) / len(told))


@pytest.mark.parametrize("table", named([REPORTS / "feature_inversion" / "tables" / "inversions"]))
def test_likeness_of_inversions_is_the_mean_of_images(table: Path):
    rows = rows_of(table)
    files = {
        tuple(one.relative_to(table / "scores").parts[:3]): pd.read_parquet(one)
        for one in table.glob("scores/*/*/*/images.parquet")
    }
    assert len(files)
    for (data, model, tap), own in rows.groupby(["data", "model", "tap"]):
        scores = files[safe_name(data), safe_name(model), safe_name(tap)]
        for row in own.itertuples():
            # Means of images that were not made well enough stand apart.
            value = row.params["unranked"]["value"] if np.isnan(row.value) else row.value
            assert value == pytest.approx(scores[row.metric].mean(), abs=1e-9), row.metric


def test_what_maps_hold_inside_masks():
    table = REPORTS / "where_probes_look" / "tables" / "attribute"
    found = 0
    for place in table.glob("maps/*/*/*/*.npz"):
        with np.load(place) as kept:
            maps, inside, scores = kept["maps"], kept["inside"] / 255, kept["scores"]
            names = kept["metrics"].tolist()
        for one, mask, told in zip(maps, inside, scores, strict=True):
            big = torch.nn.functional.interpolate(torch.tensor(one)[None, None], mask.shape, mode="bilinear")
            heat = np.maximum(big[0, 0].double().numpy(), 0)
            if heat.sum() > 0:
                share = (heat * mask).sum() / heat.sum()
                assert told[names.index("energy_inside")] == pytest.approx(share, abs=1e-4)
                found += 1
    assert found
