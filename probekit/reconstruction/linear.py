"""One cell of the reconstruction: how much of the images' pixels a linear map reads from one tap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from probekit.compute import one_thread
from probekit.features.features import DEAD, Features
from probekit.functional.intervals import bootstrap_statistic
from probekit.functional.ridge import fit_ridge
from probekit.probes.controls import permute_rows
from probekit.probes.protocol import PENALTIES, Choice, Protocol, Roles, Stage, TapData, choose_penalty
from probekit.probes.scoring import r2_row, r2_score
from probekit.reconstruction.pixels import SIDE, band_columns, frequencies, from_frequencies
from probekit.results.schema import rows_to_frame
from probekit.results.table import ResultTable
from probekit.seeds import random_stream

METRIC = "pixel_r2"
# Test images that are shown.
EXAMPLES = 6
ALL = "all"
Array = NDArray[np.float32]


@dataclass(frozen=True)
class DecodingSettings:
    """What all cells of one run share.

    Attributes:
        width: Features every tap is projected to.
        permutations: How often images are permuted to find the null; 0 leaves it out.
        bootstrap_draws: Resamples of the test images behind every interval.
        penalties: P candidates.
        seed: Fixes the projection, permutations and resamples.
    """

    width: int
    permutations: int = 20
    bootstrap_draws: int = 2000
    penalties: tuple[float, ...] = PENALTIES
    seed: int = 0

    def facts(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return asdict(self) | {"penalties": list(self.penalties)}


@dataclass(frozen=True, eq=False)
class Regions:
    """Images with a foreground, beside those the map is fitted on.

    Attributes:
        features: (weights, tap) → their features.
        pixels: (M, side, side, 3) in [0, 1].
        inside: (M, side, side) share of each cell that is foreground.
        name: Of the data set.
    """

    features: Mapping[tuple[str, str], Features]
    pixels: Array
    inside: Array
    name: str


def decode_pixels(
    features: Features,
    *,
    pixels: Array,
    roles: Roles,
    settings: DecodingSettings,
    told: Mapping[str, Any],
    regions: Regions | None = None,
) -> ResultTable:
    """Read low-resolution pixels from the features of one tap by ridge regression.

    Features are standardised and projected at random to as many as all other taps have; a penalty for each
    band of spatial frequency is chosen on val, the test images are scored once. R² = 1 − SSE/SST over all
    cells and colours, then over the coefficients of each band.

    Args:
        features: Axes ``N D``.
        pixels: (N, side, side, 3) in [0, 1], of the same images.
        roles: Rows of train, val and test.
        settings: Of the run.
        told: What goes to the params of every row.
        regions: Images whose foreground and background are scored apart.

    Returns:
        Rows without model, data and run; ``target`` is the band. Attached are R² of every cell, the parts
        of R² of every image, and some images beside what is read of them.
    """
    shared: dict[str, Any] = {"n": len(roles.test), "d": settings.width}
    with one_thread():
        data = TapData.of(features, roles)
        if data.dead:
            row = {"metric": METRIC, "target": ALL, "status": DEAD}
            return ResultTable(rows_to_frame([shared | row]), {"format": 1, "analysis": "reconstruct"})
        decoder = _Decoder.fit(data, pixels.reshape(len(pixels), -1), settings)
        rows, images = decoder.rows()
        if regions is not None:
            own = regions.features[features.provenance["weights"], features.tap]
            rows += decoder.region_rows(own.matrix(), regions)
    made = [shared | row | {"params": row.get("params", {}) | decoder.params | dict(told)} for row in rows]
    attachments = {
        f"maps/{METRIC}.npy": decoder.map(),
        "maps/examples.npy": decoder.examples(),
        f"scores/{METRIC}.parquet": pd.DataFrame({"id": features.ids[roles.test], METRIC: images}),
    }
    return ResultTable(rows_to_frame(made), {"format": 1, "analysis": "reconstruct"}, attachments)


def ceiling(pixels: Array, roles: Roles, settings: DecodingSettings) -> float:
    """Return R² of the pixels themselves, read through the same projection and protocol: near 1."""
    flat = pixels.reshape(len(pixels), -1)
    names = np.array([str(i) for i in range(len(flat))])
    splits = np.full(len(flat), "train", "<U5")
    own = Features(flat, "N D", names, splits, {}, "pixels|raw", {})
    with one_thread():
        decoder = _Decoder.fit(TapData.of(own, roles), flat, settings, permutations=0)
    return r2_score(decoder.predicted[:, 0], decoder.truth)


@dataclass(frozen=True, eq=False)
class _Decoder:
    """A fitted map from projected features to pixels, with those of permuted images beside it.

    Attributes:
        predicted: (n, 1 + B, K) coefficients of the test images; the first is the map, the others its nulls.
        truth: (n, K) coefficients.
        weights: (width, K) of the map.
        intercept: (K,).
        stage: How features are standardised before they are projected.
        final: How projected features are standardised.
        projection: (D, width).
        mean: (K,) mean pixels of the images that were fitted.
        choices: Band → its penalty.
        params: What all rows say of the fit.
        settings: Of the run.
    """

    predicted: NDArray[np.float64]
    truth: NDArray[np.float64]
    weights: NDArray[np.float64]
    intercept: NDArray[np.float64]
    stage: Stage
    final: Stage
    projection: Array
    mean: NDArray[np.float64]
    choices: dict[str, Choice]
    params: dict[str, Any]
    settings: DecodingSettings

    @classmethod
    def fit(
        cls, data: TapData, pixels: Array, settings: DecodingSettings, *, permutations: int | None = None
    ) -> _Decoder:
        roles, stage = data.roles, data.choose
        projection = random_projection(stage.fit.shape[1], settings.width, settings.seed)
        test = stage.move(data.features.matrix(roles.test))
        parts = [np.asarray(rows @ projection, np.float32) for rows in (stage.fit, stage.score, test)]
        narrow = TapData.of_matrices(data.features, roles, *parts)
        penalties = np.array(sorted(settings.penalties, reverse=True))
        # Bands have a penalty each: what is coarse is read with a weaker one than what is lost.
        values = frequencies(pixels)
        found = fit_ridge(narrow.choose.fit, values[roles.train], penalties).predict(narrow.choose.score)
        truth = values[roles.val]
        choices = {
            band: choose_penalty(
                penalties, np.array([r2_score(one[:, columns], truth[:, columns]) for one in found])
            )
            for band, columns in band_columns().items()
        }
        fitting = values[roles.fitting]
        draws = settings.permutations if permutations is None else permutations
        orders = permute_rows(len(fitting), draws, seed=settings.seed, name="pixels of images")
        every = np.concatenate([fitting, *(fitting[order] for order in orders)], axis=1)
        used = np.array(sorted({choice.penalty for choice in choices.values()}, reverse=True))
        path = fit_ridge(narrow.refit.fit, every, used)
        scored = path.predict(narrow.refit.score).reshape(len(used), len(roles.test), 1 + len(orders), -1)
        # (K,) the place of each coefficient's penalty
        place = np.empty(values.shape[1], np.intp)
        for band, columns in band_columns().items():
            place[columns] = np.flatnonzero(used == choices[band].penalty)[0]
        each = np.arange(values.shape[1])
        return cls(
            np.moveaxis(scored[place, :, :, each], 0, -1),
            values[roles.test],
            path.weights[place, :, each].T,
            path.intercepts[place, each],
            stage,
            narrow.refit,
            projection,
            from_frequencies(fitting.mean(axis=0)),
            choices,
            {"n_train": len(fitting), "projected_from": int(stage.kept.sum())},
            settings,
        )

    def rows(self) -> tuple[list[dict[str, Any]], NDArray[np.float64]]:
        """Return a row for all cells and one for each band, and each image's part of R²."""
        protocol = Protocol(bootstrap_draws=self.settings.bootstrap_draws, seed=self.settings.seed)
        own, parts = r2_row(self.predicted[:, 0], self.truth, self.predicted[:, 1:], protocol, ALL)
        rows = [own | {"metric": METRIC, "target": ALL}]
        for band, columns in band_columns().items():
            predicted, choice = self.predicted[:, :, columns], self.choices[band]
            row, _ = r2_row(predicted[:, 0], self.truth[:, columns], predicted[:, 1:], protocol, band)
            told = {"penalty": choice.penalty, "penalty_edge": choice.edge, "val": choice.score}
            rows.append(row | {"metric": METRIC, "target": band, "params": told})
        return rows, parts.get("r2", np.full(len(self.truth), np.nan))

    def map(self) -> NDArray[np.float64]:
        """Return (side, side) R² of every cell, over its three colours."""
        truth, predicted = from_frequencies(self.truth), from_frequencies(self.predicted[:, 0])
        error = np.square(truth - predicted).sum(axis=0)
        spread = np.square(truth - truth.mean(axis=0)).sum(axis=0)
        cells = [one.reshape(SIDE, SIDE, 3).sum(axis=2) for one in (error, spread)]
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(1 - cells[0] / cells[1])

    def examples(self) -> Array:
        """Return (2, M, side, side, 3) in [0, 1]: some test images, and what is read of them."""
        chosen = np.unique(np.linspace(0, len(self.truth) - 1, EXAMPLES).round().astype(int))
        both = from_frequencies(np.stack([self.truth[chosen], self.predicted[chosen, 0]]))
        shape = (2, len(chosen), SIDE, SIDE, 3)
        return np.asarray(np.clip(both, 0, 1).reshape(shape), np.float32)

    def predict(self, features: Array) -> NDArray[np.float64]:
        """Return (M, K) pixels of further images."""
        projected = np.asarray(self.stage.move(features) @ self.projection, np.float32)
        found = self.final.move(projected) @ self.weights + self.intercept
        return from_frequencies(found)

    def region_rows(self, features: Array, regions: Regions) -> list[dict[str, Any]]:
        """Return what is not read of foreground and background, and the ratio of the two.

        Of a region: Σ (x − x̂)² / Σ (x − x̄)² over its cells and all images, x̄ the mean of the images that
        were fitted. 0: read without error; 1: no better than the mean image.
        """
        truth = regions.pixels.reshape(len(regions.pixels), -1).astype(np.float64)
        shape = (len(truth), -1, 3)
        error = np.square(truth - self.predict(features)).reshape(shape).sum(axis=2)
        spread = np.square(truth - self.mean).reshape(shape).sum(axis=2)
        inside = regions.inside.reshape(len(truth), -1)
        columns = np.stack(
            [(weight * of).sum(axis=1) for weight in (inside, 1 - inside) for of in (error, spread)], axis=1
        )
        told = {"data": regions.name, "foreground": float(inside.mean())}
        rows = []
        for metric, statistic in _REGION_SCORES.items():
            stream = random_stream("images of regions", self.settings.seed)
            value = float(statistic(columns.sum(axis=0, keepdims=True))[0])
            row: dict[str, Any] = {"metric": metric, "target": ALL, "n": len(truth), "params": told}
            if np.isfinite(value):
                low, high = bootstrap_statistic(
                    columns, statistic, draws=self.settings.bootstrap_draws, stream=stream
                )
                row |= {"value": value, "ci_low": low, "ci_high": high, "ci_kind": "bootstrap,test units"}
                row |= {"null": 1.0, "null_kind": "analytic"}
            else:
                row["status"] = "no image has both a foreground and a background"
            rows.append(row)
        return rows


def _foreground_error(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(sums[:, 0] / sums[:, 1])


def _background_error(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(sums[:, 2] / sums[:, 3])


def _background_ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return _background_error(sums) / _foreground_error(sums)


_REGION_SCORES = {
    "foreground_error": _foreground_error,
    "background_error": _background_error,
    "background_ratio": _background_ratio,
}


def random_projection(count: int, width: int, seed: int) -> Array:
    """Return (D, width) Gaussian directions of about unit length, for D = ``count`` features."""
    stream = random_stream("projection of features", seed, count)
    return np.asarray(stream.standard_normal((count, width)) / np.sqrt(count), np.float32)
