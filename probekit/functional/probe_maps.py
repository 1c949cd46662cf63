"""A linear score of means over places, taken apart into what each place adds.

Letters: N images, D channels, K scores, H × W places, G × G cells of a grid of means.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from probekit.errors import InputError
from probekit.functional.arguments import FloatArray


def map_scores(
    maps: ArrayLike, weights: ArrayLike, centre: ArrayLike, *, kept: ArrayLike | None = None, cells: int = 1
) -> FloatArray:
    """Return maps whose mean over places is Σ_d w_d (x_d − c_d), x the means of the cells.

    A place that lies in several cells, as where a side is no multiple of G, counts in each of them.

    Args:
        maps: (N, D, H, W) activations.
        weights: (D_kept, K), of features as they are.
        centre: (D_kept,) what is taken from each feature first.
        kept: (D·G²,) which features of the grid, channels first, have a weight; None: all.
        cells: G; 1 for the mean over all places.

    Returns:
        (N, K, H, W).

    Raises:
        InputError: If shapes disagree, or the map is smaller than the grid.

    Examples:
        >>> maps = np.arange(8.0).reshape(1, 2, 2, 2)
        >>> found = map_scores(maps, [[1.0], [10.0]], [0.0, 0.0])
        >>> found[0, 0].tolist(), float(found.mean()), 1.5 + 10 * 5.5
        ([[40.0, 51.0], [62.0, 73.0]], 56.5, 56.5)
    """
    x = np.asarray(maps, np.float64)
    if x.ndim != 4 or min(x.shape[2:]) < cells or cells < 1:
        raise InputError(
            f"maps of shape (N, D, H, W), at least {cells} by {cells} places",
            f"shape {x.shape}",
            "Use fewer cells",
        )
    count, width, height, length = x.shape
    used = np.ones(width * cells**2, np.bool_) if kept is None else np.asarray(kept, np.bool_)
    w, c = np.asarray(weights, np.float64), np.asarray(centre, np.float64)
    if used.shape != (width * cells**2,) or w.ndim != 2 or not used.sum() == len(w) == len(c):
        raise InputError(
            f"weights and a centre of {width * cells**2} features: {width} channels, {cells}×{cells} cells",
            f"{w.shape} and {c.shape} of {used.shape}",
            "Give those of a probe of this tap",
        )
    flat, middle = np.zeros((len(used), w.shape[1])), np.zeros(len(used))
    flat[used], middle[used] = w, c
    full, about = flat.reshape(width, cells, cells, -1), middle.reshape(width, cells, cells)
    found = np.zeros((count, w.shape[1], height, length))
    for i in range(cells):
        rows = _span(i, cells, height)
        for j in range(cells):
            columns = _span(j, cells, length)
            part = x[:, :, rows, columns] - about[None, :, i, j, None, None]
            share = height * length / (part.shape[2] * part.shape[3])
            found[:, :, rows, columns] += share * np.einsum("ndhw,dk->nkhw", part, full[:, i, j])
    return found


def _span(place: int, cells: int, length: int) -> slice:
    """Return the places of one cell, as adaptive pooling divides them."""
    return slice(place * length // cells, -(-(place + 1) * length // cells))
