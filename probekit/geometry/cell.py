"""One cell of the geometry: every measure of one tap of one model on one data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import silhouette_score

from probekit.compute import one_thread
from probekit.data.targets import Target
from probekit.features.features import DEAD, Features
from probekit.functional import class_geometry as geometry
from probekit.functional import spectrum
from probekit.functional.class_geometry import Classes, Estimate
from probekit.functional.intervals import bootstrap_means
from probekit.functional.moments import Moments
from probekit.functional.rows import empty_rows, row_blocks
from probekit.functional.transferability import (
    Whitening,
    h_score,
    logme,
    nearest_means,
    neural_collapse,
    self_duality,
    variability_collapse,
)
from probekit.geometry.factors import within_class_rows
from probekit.probes.controls import each_order, null_columns, permute_rows
from probekit.probes.linear import LinearFit, fit_classes
from probekit.probes.protocol import Protocol, Roles, TapData
from probekit.results.schema import rows_to_frame
from probekit.results.table import ResultTable
from probekit.seeds import draw_rows, random_stream

JACKKNIFE = "jackknife,classes"
_CLUSTERED = 2000


@dataclass(frozen=True)
class GeometrySettings:
    """What all cells of one run share.

    Attributes:
        permutations: How often labels are permuted to find the null; 0 leaves it out.
        pairs: Most pairs of classes of directional variance.
        subsample: Most images of measures that compare every image with every other.
        probe: Whether to fit the probe that NC3 and NC4 compare class means with.
        seed: Fixes permutations, halves, pairs and subsamples.
    """

    permutations: int = 20
    pairs: int = 2000
    subsample: int = 5000
    probe: bool = True
    seed: int = 0

    def facts(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return asdict(self)


def geometry_of_tap(
    features: Features,
    *,
    name: str,
    target: Target,
    roles: Roles | None,
    split: str,
    settings: GeometrySettings,
) -> ResultTable:
    """Measure one tap.

    Args:
        features: Axes ``N D``.
        name: Name of the class target.
        target: Classes of the same images.
        roles: Rows of train, val and test, for what is scored on held-out images; None leaves that out.
        split: ``seen``, ``unseen`` or ``unknown``: whether the backbone was trained on these classes.
        settings: Of the run.

    Returns:
        Rows without model, data and run.
    """
    shared: dict[str, Any] = {"target": name, "split": split, "n_classes": target.n_classes}
    shared |= {"d": features.shape[-1], "n": len(features)}
    with one_thread():
        tap = _Tap(features, target, name, settings)
        if tap.dead:
            rows: list[dict[str, Any]] = [{"metric": "icc", "status": DEAD}]
        else:
            rows = [*tap.space("", tap.x), *tap.space("_l2", tap.unit), *tap.rows_of_unit(), *tap.spectra()]
            rows += tap.held_out(roles) if roles is not None else []
    narrow = {key: features.facts[key] for key in ("relative_error",) if key in features.facts}
    made = [shared | row | {"params": row.get("params", {}) | narrow} for row in rows]
    return ResultTable(rows_to_frame(made), {"format": 1, "analysis": "geometry"})


def factors_of_tap(
    features: Features,
    *,
    name: str,
    target: Target,
    split: str,
    settings: GeometrySettings,
    factors: Mapping[str, Target],
    roles: Roles,
    grid: int | None = None,
) -> ResultTable:
    """Measure what one tap tells of factors inside classes, and nothing else; see ``geometry_of_tap``.

    Args:
        features: Axes ``N D``.
        name: Name of the class target.
        target: Classes of the same images.
        split: As in ``geometry_of_tap``.
        settings: Of the run.
        factors: Name → continuous target.
        roles: Rows of train, val and test.
        grid: Side of the grid of means that was read of every map; goes to ``params``.
    """
    shared = {"split": split, "n_classes": target.n_classes, "d": features.shape[-1]}
    protocol = Protocol(permutations=settings.permutations, seed=settings.seed)
    told = {"inside": name} | ({} if grid is None else {"grid": grid})
    with one_thread():
        rows = within_class_rows(features, target.values, factors, roles, protocol)
    made = [shared | row | {"params": row.get("params", {}) | told} for row in rows]
    return ResultTable(rows_to_frame(made), {"format": 1, "analysis": "geometry"})


class _Tap:
    """The features of one tap, with permuted labels beside the true ones."""

    def __init__(self, features: Features, target: Target, name: str, settings: GeometrySettings) -> None:
        self.features, self.target, self.name, self.settings = features, target, name, settings
        self.x = features.matrix()
        self.y = target.values
        self.dead = _constant(self.x)
        self._spectra: tuple[Moments, NDArray[np.float64], NDArray[np.float64]]

    @property
    def unit(self) -> NDArray[np.float32]:
        return _unit(self.x)

    def moments(self, x: NDArray[Any]) -> Moments:
        return Moments.of(x, self.y, n_classes=self.target.n_classes)

    def permuted(self, x: NDArray[Any], whole: Moments) -> Iterator[Moments]:
        """Yield statistics of permuted labels; their products are those of the true ones."""
        draws, seed = self.settings.permutations, self.settings.seed
        for order in each_order(len(self.y), draws, seed=seed, name=f"geometry {self.name}"):
            drawn = Moments.of(
                x, self.y[order], n_classes=self.target.n_classes, products=False, shift=whole.shift
            )
            yield replace(drawn, products=whole.products)

    def space(self, suffix: str, x: NDArray[Any]) -> Iterator[dict[str, Any]]:
        """Yield what follows from moments, of features as they are or of unit length."""
        if suffix and _constant(x):
            yield {"metric": f"icc{suffix}", "status": "every feature is constant at unit length"}
            return
        whole = self.moments(x)
        params: dict[str, Any] = {"space": "unit length" if suffix else "raw"}
        found, quartiles = _by_classes(Classes.of(whole)), {}
        found["cdnv"], quartiles["cdnv"] = geometry.class_distance_variance(Classes.of(whole))
        stream = random_stream("halves of classes", self.settings.seed)
        reason = geometry.no_signal(Classes.of(whole))
        if reason is None:
            found["directional_cdnv"], quartiles["directional_cdnv"], pairs = geometry.directional_variance(
                x, self.y, pairs=self.settings.pairs, stream=stream
            )
        else:
            found["directional_cdnv"], pairs = Estimate(float("nan"), status=reason), 0
        whitening, around_zero = Whitening.of(whole), whole.moved_to(np.zeros_like(whole.shift))
        eigen = np.linalg.eigh(np.asarray(around_zero.products))
        if not suffix:
            self._spectra = whole, whitening.spectrum, eigen[0]
        points = _by_moments(whole, whitening, eigen)
        nulls: dict[str, list[float]] = {}
        for drawn in self.permuted(x, whole):
            values = {key: one.value for key, one in _by_classes(Classes.of(drawn)).items()}
            for key, value in (values | _by_moments(drawn, whitening, eigen)).items():
                nulls.setdefault(key, []).append(value)
        for key, one in (found | {key: _point(value) for key, value in points.items()}).items():
            told = dict(params)
            if key in quartiles and np.isfinite(quartiles[key][0]):
                # The upper one is infinite where a quarter of the pairs cannot be told apart.
                told |= {"quartiles": [one if np.isfinite(one) else None for one in quartiles[key]]}
            if key == "directional_cdnv":
                told |= {"pairs": pairs}
            if key in ("vci", "h_score"):
                told |= {"shrinkage": whitening.shrinkage}
            yield _row(key + suffix, one, nulls.get(key), told)

    def rows_of_unit(self) -> Iterator[dict[str, Any]]:
        """Yield cosines, separation, neighbours and uniformity: measures of rows of unit length."""
        centred = _unit(self.x, self.moments(self.x).mean.astype(np.float32))
        for suffix, x in (("", self.unit), ("_centred", centred)):
            whole = Moments.of(x, self.y, n_classes=self.target.n_classes, products=False)
            measures = _of_cosines if not suffix else geometry.class_cosines
            drawn = [measures(Classes.of(one)) for one in self.permuted(x, whole)]
            for key, one in measures(Classes.of(whole)).items():
                if not (suffix and key == "alignment"):
                    yield _row(key + suffix, one, [other[key].value for other in drawn], {})
        yield from self._neighbours()

    def _neighbours(self) -> Iterator[dict[str, Any]]:
        rows = draw_rows(len(self.y), self.settings.subsample, self.settings.seed)
        x, y = _unit(self.x[rows]), self.y[rows]
        params = {"subsample": len(rows)}
        orders = permute_rows(len(y), self.settings.permutations, seed=self.settings.seed, name="neighbours")
        search = geometry.Gallery.of(x)
        drawn = [search.score(y[order]) for order in orders]
        for key, one in search.score(y).items():
            yield _row(key, one, [other[key].value for other in drawn], params) | {"n": len(rows)}
        yield _row("uniformity", _point(geometry.uniformity(x)), None, params) | {"n": len(rows)}
        few = draw_rows(len(self.y), _CLUSTERED, self.settings.seed)
        yield self._silhouette(few) | {"n": len(few)}

    def _silhouette(self, rows: NDArray[np.intp]) -> dict[str, Any]:
        y, params = self.y[rows], {"subsample": len(rows)}
        if not 1 < len(np.unique(y)) < len(y):
            why = "one class only" if len(np.unique(y)) < 2 else "one image a class"
            return _row("silhouette", Estimate(float("nan"), status=why), None, params)
        x = self.x[rows].astype(np.float64)
        norms = np.square(x).sum(axis=1)
        distances = np.sqrt(np.maximum(norms[:, None] + norms - 2 * (x @ x.T), 0))
        np.fill_diagonal(distances, 0)
        orders = permute_rows(len(y), self.settings.permutations, seed=self.settings.seed, name="silhouette")
        drawn = [float(silhouette_score(distances, y[order], metric="precomputed")) for order in orders]
        value = float(silhouette_score(distances, y, metric="precomputed"))
        return _row("silhouette", _point(value), drawn, params)

    def spectra(self) -> Iterator[dict[str, Any]]:
        """Yield what does not depend on classes, from the eigenvalues found for the raw space."""
        whole, values, squares = self._spectra
        free = {"target": "", "n_classes": None}
        yield free | _row("effective_rank", _point(spectrum.effective_rank(values)), None, {})
        yield free | _row("participation_ratio", _point(spectrum.participation_ratio(values)), None, {})
        convention = {"convention": "uncentred singular values, p + 1e-7"}
        yield free | _row("rankme", _point(spectrum.rankme(whole, squares)), None, convention)
        decay = spectrum.spectral_decay(values)
        if decay is None:
            few = f"fewer than {spectrum.WINDOW[0] + 2} eigenvalues above rounding"
            yield free | _row("alpha_req", Estimate(float("nan"), status=few), None, {})
        else:
            told = {"window": [decay.first, decay.last], "r2": decay.r2}
            yield free | _row("alpha_req", _point(decay.alpha), None, told)
        rows = draw_rows(len(self.y), _CLUSTERED, self.settings.seed)
        dimension = _point(spectrum.two_nearest_dimension(self.x[rows]), "fewer than ten different images")
        yield free | {"n": len(rows)} | _row("two_nn", dimension, None, {"subsample": len(rows)})

    def held_out(self, roles: Roles) -> Iterator[dict[str, Any]]:
        """Yield what is fitted on train and val and scored on test: nearest means, and NC3 and NC4."""
        fitting, test = roles.fitting, roles.test
        x, known, truth = self.features.matrix(test), self.features.matrix(fitting), self.y[test]
        own = Moments.of(known, self.y[fitting], n_classes=self.target.n_classes, products=False)
        named = _nearest_means(x, own)
        stream = random_stream("test units", self.settings.seed)
        hits = (named == truth).astype(np.float64)
        low, high = bootstrap_means(hits[:, None], stream=stream)
        drawn = []
        for order in each_order(
            len(fitting), self.settings.permutations, seed=self.settings.seed, name=f"means {self.name}"
        ):
            labels = self.y[fitting][order]
            other = Moments.of(
                known, labels, n_classes=self.target.n_classes, products=False, shift=own.shift
            )
            drawn.append(float((_nearest_means(x, other) == truth).mean()))
        found = Estimate(float(hits.mean()), float(low[0]), float(high[0]))
        units = {"n": len(test)}
        yield (
            _row("ncm_accuracy", found, drawn, {"n_train": len(fitting)})
            | units
            | {"ci_kind": "bootstrap,test units"}
        )
        if self.settings.probe:
            yield from self._duality(roles, own, named, units)

    def _duality(
        self, roles: Roles, own: Moments, named: NDArray[np.int64], units: dict[str, Any]
    ) -> Iterator[dict[str, Any]]:
        data = TapData.of(self.features, roles)
        if data.dead or len(np.unique(self.y[roles.train])) < 2:
            return
        fit: LinearFit = fit_classes(
            data, self.target, Protocol(permutations=0, seed=self.settings.seed), self.name
        )
        kept, scale = data.refit.kept, data.refit.scale
        weights = np.zeros((len(kept), self.target.n_classes))
        weights[kept] = fit.weights / scale[kept][:, None]
        params = {"penalty": fit.params["penalty"]}
        if (own.counts > 0).all():
            yield _row("nc3", _point(self_duality(weights, own)), None, params)
        agree = (fit.logits(data.refit.score).argmax(axis=1) == named).astype(np.float64)
        low, high = bootstrap_means(agree[:, None], stream=random_stream("test units", self.settings.seed))
        found = Estimate(float(agree.mean()), float(low[0]), float(high[0]))
        yield _row("nc4", found, None, params) | units | {"ci_kind": "bootstrap,test units"}


def _by_classes(classes: Classes) -> dict[str, Estimate]:
    return {
        "icc": geometry.intraclass_correlation(classes),
        "omega_squared": geometry.omega_squared(classes),
        "within_between": geometry.within_between_ratio(classes),
    }


def _of_cosines(classes: Classes) -> dict[str, Estimate]:
    return geometry.class_cosines(classes) | {"class_separation": geometry.class_separation(classes)}


def _by_moments(
    moments: Moments, whitening: Whitening, eigen: tuple[NDArray[np.float64], NDArray[np.float64]]
) -> dict[str, float]:
    """Return points that need the products; labels change neither Σ_T nor the eigenvectors of XᵀX."""
    names = ("vci", "nc1", "nc2_norms", "nc2_angles", "h_score", "logme")
    if not 1 < (moments.counts > 0).sum() < moments.count:
        return dict.fromkeys(names, float("nan"))
    return neural_collapse(moments) | {
        "vci": variability_collapse(moments, whitening),
        "h_score": h_score(moments, whitening),
        "logme": logme(moments, eigen),
    }


def _row(
    metric: str, found: Estimate, drawn: list[float] | None, params: Mapping[str, Any]
) -> dict[str, Any]:
    row: dict[str, Any] = {"metric": metric, "params": dict(params), "status": found.status}
    if not np.isfinite(found.value):
        return row
    row["value"] = found.value
    if np.isfinite(found.low) and np.isfinite(found.high):
        row |= {"ci_low": found.low, "ci_high": found.high, "ci_kind": JACKKNIFE}
    values = np.array(drawn or [], np.float64)
    if len(values) and np.isfinite(values).all():
        row |= null_columns(values)
    return row


def _point(value: float, why_not: str = "not defined for these images and classes") -> Estimate:
    return Estimate(value, status="ok" if np.isfinite(value) else why_not)


def _constant(x: NDArray[Any]) -> bool:
    return all(bool((x[rows] == x[0]).all()) for rows in row_blocks(*x.shape))


def _unit(x: NDArray[Any], mean: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Return rows, less a mean, of length 1; a row of zeros stays one."""
    unit = empty_rows(x.shape, np.float32)
    for rows in row_blocks(*x.shape):
        block = x[rows] if mean is None else x[rows] - mean
        norms = np.linalg.norm(block.astype(np.float64), axis=1, keepdims=True)
        unit[rows] = block / np.where(norms > 0, norms, 1)
    return unit


def _nearest_means(x: NDArray[Any], moments: Moments) -> NDArray[np.int64]:
    width = max(x.shape[1], moments.counts.size)
    parts = row_blocks(len(x), width)
    return np.concatenate([nearest_means(x[rows].astype(np.float64), moments) for rows in parts])
