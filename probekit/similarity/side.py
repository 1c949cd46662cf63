"""One of the layers of a run, read once: what every comparison with it needs of it alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from probekit.features.features import Features
from probekit.files import digest_bytes
from probekit.functional.arguments import FloatArray, IntArray
from probekit.functional.layer_pairs import (
    GroupsLeftOut,
    PrincipalRows,
    constant,
    sizes_left_out,
    sums_by_image,
    without_first,
)
from probekit.functional.similarity import centred_neighbours, dissimilarity_ranks
from probekit.seeds import draw_rows, random_stream

# Every layer is compared with every other: what was read of the last ones is kept, in so many bytes.
_KEPT_BYTES = 2**31


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
class Side:
    """A layer that varies.

    Attributes:
        key: Tells it from every other layer and reading.
        turned: Its images along its principal axes.
        whole: Sums of all images, and without each group.
        rest: The same without the leading component.
        size: ‖X‖².
        own: (3, 1 + G) ‖XᵀX‖², its unbiased HSIC, and that of the rest.
        ranks: (n, n) of the dissimilarities of the images that pairwise measures take.
        near: (n, k) neighbours of these images; None where there are not more than k.
    """

    key: str
    turned: PrincipalRows
    whole: GroupsLeftOut
    rest: GroupsLeftOut
    size: float
    own: FloatArray
    ranks: FloatArray
    near: IntArray | None

    @classmethod
    def of(cls, features: Features, settings: SimilaritySettings) -> Side | None:
        """Return what is known of a layer, or None of one that is constant."""
        key = repr((_identity(features), str(features.tap), len(features), settings))
        if key not in _SIDES:
            found = _read(key, features, settings)
            while _SIDES and sum(map(_size_bytes, _SIDES.values())) + _size_bytes(found) > _KEPT_BYTES:
                _SIDES.pop(next(iter(_SIDES)))
            _SIDES[key] = found
        return _SIDES[key]


def _identity(features: Features) -> tuple[str, str]:
    """Return what tells features apart: their key in the store, or else their values."""
    key = features.provenance.get("key") or digest_bytes(np.ascontiguousarray(features.values).tobytes())
    return str(key), str(features.values.dtype)


def sizes_of(a: Side, b: Side, cross: FloatArray) -> FloatArray:
    """Return (3, 1 + G) ‖XᵀY‖², its unbiased HSIC, and that without both leading components."""
    return _sizes((a.whole, a.rest), (b.whole, b.rest), cross)


def _sizes(
    x: tuple[GroupsLeftOut, GroupsLeftOut], y: tuple[GroupsLeftOut, GroupsLeftOut], cross: FloatArray
) -> FloatArray:
    by_image = sums_by_image(x[0].rows, y[0].rows, cross)
    rest = without_first(by_image, x[0].rows, y[0].rows, cross)
    return np.stack(
        [*sizes_left_out(x[0], y[0], cross, by_image), sizes_left_out(x[1], y[1], cross[1:, 1:], rest)[1]]
    )


def _read(key: str, features: Features, settings: SimilaritySettings) -> Side | None:
    places = draw_rows(len(features), settings.subsample, settings.seed)
    x = features.matrix(places).astype(np.float64)
    if constant(x):
        return None
    turned = PrincipalRows.of(x)
    rows, groups = turned.rows, _groups(len(x), settings)
    whole, rest = GroupsLeftOut.of(rows, groups), GroupsLeftOut.of(rows[:, 1:], groups)
    # RSA is not free of shifts: features are read around their means.
    some = (x - x.mean(axis=0))[draw_rows(len(x), settings.pairwise, settings.seed)]
    return Side(
        key,
        turned,
        whole,
        rest,
        float(whole.lengths[0].sum()),
        _sizes((whole, rest), (whole, rest), rows.T @ rows),
        dissimilarity_ranks(some),
        centred_neighbours(some, settings.k) if len(some) > settings.k else None,
    )


def _size_bytes(side: Side | None) -> int:
    if side is None:
        return 0
    grams = sum(one.nbytes for part in (side.whole, side.rest) for one in part.grams)
    lengths = side.whole.lengths.nbytes + side.rest.lengths.nbytes
    return side.turned.rows.nbytes + side.turned.leading.nbytes + side.ranks.nbytes + grams + lengths


def _groups(count: int, settings: SimilaritySettings) -> list[IntArray]:
    order = random_stream("groups of images", settings.seed).permutation(count)
    parts = np.array_split(order, max(1, min(settings.groups, count // 4)))
    return [np.sort(part) for part in parts]


_SIDES: dict[str, Side | None] = {}
