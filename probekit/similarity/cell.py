"""One cell of the similarity: one layer against all others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probekit.compute import one_thread
from probekit.features.features import Features
from probekit.functional import similarity as measures
from probekit.functional.intervals import jackknife_interval
from probekit.functional.moments import CrossMoments, merge
from probekit.probes.controls import null_columns
from probekit.results.schema import rows_to_frame
from probekit.results.table import ResultTable
from probekit.seeds import draw_rows, random_stream

JACKKNIFE = "jackknife,groups of images"
# Images a direction below which canonical correlations of unrelated layers are high by themselves.
_IMAGES_A_DIRECTION = 10


@dataclass(frozen=True)
class SimilaritySettings:
    """What all cells of one run share.

    Attributes:
        subsample: Most images; of more, so many are drawn, the same for every layer.
        pairwise: Most images of measures that compare every image with every other.
        groups: Groups of images left out one at a time for intervals.
        permutations: How often images are paired anew for nulls that have no formula; 0 leaves them out.
        k: Neighbours of mutual_knn.
        seed: Fixes subsamples, groups and permutations.
    """

    subsample: int = 5000
    pairwise: int = 1000
    groups: int = 20
    permutations: int = 5
    k: int = 10
    seed: int = 0

    def facts(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Layer:
    """A layer to compare with: model, tap and features."""

    model: str
    tap: str
    features: Features


def similarity_of_tap(
    features: Features, *, others: Sequence[Layer], settings: SimilaritySettings
) -> ResultTable:
    """Compare one layer with all layers of a run, itself among them.

    Args:
        features: Axes ``N D``.
        others: All layers, over the same images.
        settings: Of the run.

    Returns:
        Rows without model, data and run; ``target`` is the other layer, as ``model tap``.
    """
    with one_thread():
        own = _Side.of(features, settings)
        rows = [
            row | {"target": f"{one.model} {one.tap}", "d": features.shape[-1]}
            for one in others
            for row in _compare(own, _Side.of(one.features, settings), settings)
        ]
    return ResultTable(rows_to_frame(rows), {"format": 1, "analysis": "similarity"})


@dataclass(frozen=True, eq=False)
class _Rows:
    """Centred rows of a layer, and what they give with themselves.

    Attributes:
        x: (N, D).
        groups: Places of the groups of images that are left out.
        own: Statistics of the layer and itself.
        size: (1 + G,) ‖XᵀX‖² of all images, then without each group.
        hsic: (1 + G,) unbiased HSIC, likewise.
    """

    x: NDArray[np.float64]
    groups: list[NDArray[np.intp]]
    own: CrossMoments
    size: NDArray[np.float64]
    hsic: NDArray[np.float64]

    @classmethod
    def of(cls, x: NDArray[np.float64], groups: list[NDArray[np.intp]]) -> _Rows:
        all_, size, hsic = _cross(x, x, groups)
        return cls(x, groups, all_, size, hsic)

    def cka(self, other: _Rows) -> tuple[CrossMoments, dict[str, Any], dict[str, Any]]:
        """Return the statistics of both layers, and rows of biased and debiased CKA without their names."""
        both, size, hsic = _cross(self.x, other.x, self.groups)
        with np.errstate(invalid="ignore", divide="ignore"):
            biased = size / np.sqrt(self.size * other.size)
            debiased = hsic / np.sqrt(self.hsic * other.hsic)
        return both, _with_interval(biased), _with_interval(debiased)


def _cross(
    x: NDArray[np.float64], y: NDArray[np.float64], groups: list[NDArray[np.intp]]
) -> tuple[CrossMoments, NDArray[np.float64], NDArray[np.float64]]:
    """Return statistics of all images; ‖XᵀY‖² and unbiased HSIC of all, then without each group."""
    zero_x, zero_y = np.zeros(x.shape[1]), np.zeros(y.shape[1])
    parts = [CrossMoments.of(x[one], y[one], x_shift=zero_x, y_shift=zero_y) for one in groups]
    all_ = merge(parts)
    some = [all_, *(all_ - part for part in parts)]
    size = np.array([float(np.square(one.centred().products).sum()) for one in some])
    return all_, size, np.array([measures.unbiased_hsic(one) for one in some])


def _with_interval(values: NDArray[np.float64]) -> dict[str, Any]:
    """Return a row of a value of all images, with the jackknife of those without each group."""
    if not np.isfinite(values[0]):
        return {"status": "a layer has no variance left"}
    low, high = jackknife_interval(float(values[0]), values[1:])
    return {"value": float(values[0]), "ci_low": low, "ci_high": high, "ci_kind": JACKKNIFE}


@dataclass(frozen=True, eq=False)
class _Side:
    """One of the two layers that are compared.

    Attributes:
        rows: Of the subsample.
        rest: The same without their leading component.
        some: Places of the images of pairwise measures.
    """

    rows: _Rows
    rest: _Rows
    some: NDArray[np.intp]

    @classmethod
    def of(cls, features: Features, settings: SimilaritySettings) -> _Side:
        key = (features.provenance.get("key"), features.tap, len(features), settings)
        if key not in _SIDES:
            while len(_SIDES) >= _KEPT_SIDES:
                _SIDES.pop(next(iter(_SIDES)))
            _SIDES[key] = cls._read(features, settings)
        return _SIDES[key]

    @classmethod
    def _read(cls, features: Features, settings: SimilaritySettings) -> _Side:
        rows = draw_rows(len(features), settings.subsample, settings.seed)
        x = features.matrix(rows).astype(np.float64)
        x -= x.mean(axis=0)
        order = random_stream("groups of images", settings.seed).permutation(len(x))
        count = max(1, min(settings.groups, len(x) // 4))
        groups = [np.sort(part) for part in np.array_split(order, count)]
        rest = measures.without_leading_component(x)
        some = draw_rows(len(rows), settings.pairwise, settings.seed)
        return cls(_Rows.of(x, groups), _Rows.of(rest, groups), some)


# Every layer is compared with every other: what was read of the last ones is kept.
_SIDES: dict[Any, _Side] = {}
_KEPT_SIDES = 40


def _compare(a: _Side, b: _Side, settings: SimilaritySettings) -> list[dict[str, Any]]:
    x, y = a.rows, b.rows
    if not (x.x.any() and y.x.any()):
        return [{"metric": "cka_debiased", "status": "a layer is constant", "n": len(x.x)}]
    both, biased, debiased = x.cka(y)
    exact = {
        "null": measures.linear_cka_null(x.own, y.own),
        "null_kind": "analytic, images paired anew",
    }
    rows: list[dict[str, Any]] = [
        {"metric": "cka"} | biased | exact,
        {"metric": "cka_debiased"} | debiased | _zero(),
        {"metric": "cka_debiased_rest"} | a.rest.cka(b.rest)[2] | _zero(),
    ]
    stream = random_stream("paired anew", settings.seed)
    orders = [stream.permutation(len(x.x)) for _ in range(settings.permutations)]
    crosses = [CrossMoments.of(x.x, y.x[order]) for order in orders]
    angles = [measures.procrustes_angle(one, x.own, y.own) for one in crosses]
    rows.append(
        {"metric": "procrustes", "value": measures.procrustes_angle(both, x.own, y.own)} | _null(angles)
    )
    rows += _canonical(both, x.own, y.own, crosses)
    rows += _pairwise(a, b, settings)
    return [{"n": len(x.x)} | row for row in rows]


def _canonical(
    both: CrossMoments, xx: CrossMoments, yy: CrossMoments, crosses: Sequence[CrossMoments]
) -> list[dict[str, Any]]:
    found = measures.canonical_correlations(both, xx, yy)
    params = {"directions": list(found.dimensions), "variance_kept": measures.VARIANCE_KEPT}
    if both.count < _IMAGES_A_DIRECTION * sum(found.dimensions):
        why = f"fewer than {_IMAGES_A_DIRECTION} images a direction ({sum(found.dimensions)} directions)"
        return [{"metric": name, "status": why, "params": params} for name in ("svcca", "pwcca")]
    drawn = [measures.canonical_correlations(one, xx, yy) for one in crosses]
    return [
        {"metric": "svcca", "value": found.svcca, "params": params} | _null([one.svcca for one in drawn]),
        {"metric": "pwcca", "value": found.pwcca, "params": params} | _null([one.pwcca for one in drawn]),
    ]


def _pairwise(a: _Side, b: _Side, settings: SimilaritySettings) -> list[dict[str, Any]]:
    x, y = a.rows.x[a.some], b.rows.x[b.some]
    stream = random_stream("pairs anew", settings.seed)
    orders = [stream.permutation(len(x)) for _ in range(settings.permutations)]
    drawn = [measures.representational_similarity(x, y[order]) for order in orders]
    params = {"subsample": len(x)}
    value = measures.representational_similarity(x, y)
    rows = [{"metric": "rsa", "value": value, "params": params, "n": len(x)} | _null(drawn)]
    if len(x) > settings.k:
        rows.append(
            {
                "metric": "mutual_knn",
                "value": measures.mutual_neighbours(x, y, settings.k),
                "params": params | {"k": settings.k},
                "n": len(x),
                "null": settings.k / (len(x) - 1),
                "null_kind": "analytic, k / (N − 1)",
            }
        )
    return rows


def _zero() -> dict[str, Any]:
    return {"null": 0.0, "null_kind": "analytic, unrelated layers"}


def _null(drawn: list[float]) -> dict[str, Any]:
    return dict(null_columns(np.array(drawn)))
