"""One cell of the similarity: one layer against all others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from probekit.compute import one_thread
from probekit.features.features import Features
from probekit.functional.arguments import FloatArray, IntArray
from probekit.functional.intervals import jackknife_interval
from probekit.functional.layer_pairs import correlate
from probekit.functional.similarity import (
    VARIANCE_KEPT,
    angle_between,
    rank_correlation_spread,
    shared_neighbours,
)
from probekit.probes.controls import null_columns
from probekit.results.schema import rows_to_frame
from probekit.results.table import ResultTable
from probekit.seeds import random_stream
from probekit.similarity.side import Side, SimilaritySettings, sizes_of

_PAIRED_ANEW = "analytic, images paired anew"
JACKKNIFE = "jackknife,groups of images"
# Images a direction below which canonical correlations of unrelated layers are high by themselves.
_IMAGES_A_DIRECTION = 10
# Singular values of a pair cost the cube of its narrower layer: from this width on two pairings have to do.
# Angles of pairings hardly differ: a standard deviation of 0.001 radians at 1,280 directions, 2,000 images.
_WIDE, _WIDE_PAIRINGS = 512, 2
# Half the width of the interval that holds 95 % of a normal distribution, in standard deviations.
_NORMAL = 1.96
_KEPT_PAIRS = 4096


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
        own = Side.of(features, settings)
        rows = [
            row | {"target": f"{one.model} {one.tap}", "d": features.shape[-1]}
            for one in others
            for row in _compare(own, Side.of(one.features, settings), len(features), settings)
        ]
    return ResultTable(rows_to_frame(rows), {"format": 1, "analysis": "similarity"})


def _compare(
    own: Side | None, other: Side | None, count: int, settings: SimilaritySettings
) -> list[dict[str, Any]]:
    """Return the rows of an ordered pair; all but one measure are the same both ways and found once."""
    if own is None or other is None:
        n = min(count, settings.subsample)
        return [{"metric": "cka_debiased", "status": "a layer is constant", "n": n}]
    first, second = (own, other) if own.key <= other.key else (other, own)
    key = (first.key, second.key)
    if key not in _PAIRS:
        while len(_PAIRS) >= _KEPT_PAIRS:
            _PAIRS.pop(next(iter(_PAIRS)))
        _PAIRS[key] = _pair(first, second, settings)
    shared, one_way, other_way = _PAIRS[key]
    return [*shared, *(one_way if own is first else other_way)]


# (rows that hold both ways, rows of the first layer, rows of the second)
_Rows = tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]
_PAIRS: dict[tuple[str, str], _Rows] = {}


def _pair(a: Side, b: Side, settings: SimilaritySettings) -> _Rows:
    x, y = a.turned.rows, b.turned.rows
    n, cross = len(x), x.T @ y
    stream = random_stream("paired anew", settings.seed)
    orders: list[IntArray] = [stream.permutation(n) for _ in range(settings.permutations)]
    some = orders[:_WIDE_PAIRINGS] if min(x.shape[1], y.shape[1]) > _WIDE else orders
    angles = [angle_between(x.T @ y[order], a.size, b.size) for order in some]
    procrustes = {"metric": "procrustes", "value": angle_between(cross, a.size, b.size)} | _null(angles)
    one_way, other_way = _canonical(a, b, cross, orders)
    shared = [*_kernel_rows(a, b, cross), procrustes, *_pairwise(a, b, settings)]
    first, second, third = ([{"n": n} | row for row in part] for part in (shared, one_way, other_way))
    return first, second, third


def _kernel_rows(a: Side, b: Side, cross: FloatArray) -> list[dict[str, Any]]:
    """Return rows of biased and debiased CKA, with the jackknife of those without each group of images."""
    with np.errstate(invalid="ignore", divide="ignore"):
        biased, debiased, rest = sizes_of(a, b, cross) / np.sqrt(a.own * b.own)
    # E‖XᵀPY‖² over permutations P of the images
    exact = a.size * b.size / (len(a.turned.rows) - 1) / np.sqrt(a.own[0, 0] * b.own[0, 0])
    zero = {"null": 0.0, "null_kind": "analytic, unrelated layers"}
    return [
        {"metric": "cka", "null": float(exact), "null_kind": _PAIRED_ANEW} | _with_interval(biased),
        {"metric": "cka_debiased"} | zero | _with_interval(debiased),
        {"metric": "cka_debiased_rest"} | zero | _with_interval(rest),
    ]


def _with_interval(values: FloatArray) -> dict[str, Any]:
    """Return a row of a value of all images, with the jackknife of those without each group."""
    if not np.isfinite(values[0]):
        return {"status": "a layer has no variance left"}
    low, high = jackknife_interval(float(values[0]), values[1:])
    return {"value": float(values[0]), "ci_low": low, "ci_high": high, "ci_kind": JACKKNIFE}


def _canonical(
    a: Side, b: Side, cross: FloatArray, orders: Sequence[IntArray]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return rows of SVCCA and PWCCA at the first layer and at the second, weighted by either."""
    x, y = a.turned, b.turned
    kept = (x.leading.shape[1], y.leading.shape[1])
    params = [{"directions": list(one), "variance_kept": VARIANCE_KEPT} for one in (kept, kept[::-1])]
    if len(x.rows) < _IMAGES_A_DIRECTION * sum(kept):
        # How many directions stands in the params: one reason, not one a pair.
        why = f"fewer than {_IMAGES_A_DIRECTION} images a direction"
        first, second = (
            [{"metric": name, "status": why, "params": one} for name in ("svcca", "pwcca")] for one in params
        )
        return first, second
    left, right = x.rows[:, : kept[0]], y.rows[:, : kept[1]]
    found = correlate(x, y, cross)
    drawn = [correlate(x, y, left.T @ right[order]) for order in orders]
    first, second = (
        [
            {"metric": name, "value": getattr(found[way], name), "params": params[way]}
            | _null([getattr(one[way], name) for one in drawn])
            for name in ("svcca", "pwcca")
        ]
        for way in (0, 1)
    )
    return first, second


def _pairwise(a: Side, b: Side, settings: SimilaritySettings) -> list[dict[str, Any]]:
    n = len(a.ranks)
    value = float(np.vdot(a.ranks, b.ranks))
    rsa: dict[str, Any] = {"metric": "rsa", "params": {"subsample": n}, "n": n}
    if np.isfinite(value):
        half = _NORMAL * rank_correlation_spread(a.ranks, b.ranks)
        rsa |= {"value": value, "null": 0.0, "null_low": -half, "null_high": half, "null_kind": _PAIRED_ANEW}
    else:
        rsa |= {"status": "all pairs of images are equally alike in a layer"}
    if a.near is None or b.near is None:
        return [rsa]
    near = {
        "metric": "mutual_knn",
        "value": shared_neighbours(a.near, b.near),
        "params": {"subsample": n, "k": settings.k},
        "n": n,
        "null": settings.k / (n - 1),
        "null_kind": "analytic, k / (N − 1)",
    }
    return [rsa, near]


def _null(drawn: list[float]) -> dict[str, Any]:
    return dict(null_columns(np.array(drawn)))
