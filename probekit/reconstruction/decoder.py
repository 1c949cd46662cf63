"""One cell of the reconstruction: how much of the images a small trained network makes from one tap."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from probekit.compute import one_thread
from probekit.errors import InputError
from probekit.features.features import DEAD, Features
from probekit.functional.intervals import t_interval
from probekit.probes.controls import null_columns, permute_rows
from probekit.probes.protocol import Roles, Stage, TapData
from probekit.reconstruction.likeness import Likeness, Perceptual, region_rows, score_images
from probekit.reconstruction.linear import (
    ALL,
    EXAMPLES,
    METRIC,
    Regions,
    random_projection,
)
from probekit.reconstruction.pixels import band_columns, frequencies
from probekit.reconstruction.upconvolution import SIDE, Budget, Decoder, Examples, Scale, train_decoder
from probekit.results.schema import rows_to_frame
from probekit.results.table import ResultTable
from probekit.seeds import draw_rows

UNIT = "trainings"
# Test images that are compared one by one; R² is over all of them.
COMPARED = 500
_CHUNK = 256

Array = NDArray[np.float32]
Wide = NDArray[np.float64]


@dataclass(frozen=True)
class DecoderSettings:
    """What all cells of one run share.

    Attributes:
        width: Features every tap is projected to.
        draws: Trainings from different first weights and orders of images, at least 2.
        seed: Fixes projection, trainings and permutation.
        budget: Of each training.
    """

    width: int
    draws: int = 3
    seed: int = 0
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        if self.draws < 2:
            raise InputError(
                "at least 2 draws, for an interval over them", str(self.draws), "3 is the default"
            )
        if self.budget.steps < 1:
            raise InputError("at least 1 step", str(self.budget.steps), "200 is the default")

    def facts(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        own = {"width": self.width, "draws": self.draws, "seed": self.seed}
        return own | {"budget": self.budget.facts()}


def decode_images(
    features: Features,
    *,
    pixels: Array,
    roles: Roles,
    settings: DecoderSettings,
    told: Mapping[str, Any],
    regions: Regions | None = None,
    perceptual: Perceptual | None = None,
) -> ResultTable:
    """Make small images from the features of one tap by a small up-convolutional network.

    Features are standardised on train and projected at random to as many as all other taps have. A network
    is trained on train for a fixed number of steps, kept as it was when it was best on val, and scored once
    on test: R² = 1 − SSE/SST over all pixels and colours, and over the coefficients of each band of spatial
    frequency; then image by image. Values are means over trainings, their intervals t-intervals; the null is
    one training on images permuted within train and within val.

    Source: after Dosovitskiy and Brox, Inverting Visual Representations with Convolutional Networks (CVPR
    2016).

    Args:
        features: Axes ``N D``.
        pixels: (N, 32, 32, 3) in [0, 1], of the same images.
        roles: Rows of train, val and test.
        settings: Of the run.
        told: What goes to the params of every row.
        regions: Images of 32 × 32 whose foreground and background are scored apart.
        perceptual: A further distance of made and true images.

    Returns:
        Rows without model, data and run; of R² the ``target`` is the band. Attached are R² of every pixel,
        the parts of R² of every image, scores of some images, and some images beside what is made of them.
    """
    shared: dict[str, Any] = {"n": len(roles.test), "d": settings.width}
    with one_thread():
        data = TapData.of(features, roles)
        if data.dead:
            row = {"metric": METRIC, "target": ALL, "status": DEAD}
            return ResultTable(rows_to_frame([shared | row]), {"format": 1, "analysis": "reconstruct"})
        cell = _Cell.fit(data, pixels, settings)
        rows = cell.r2_rows()
        likeness = cell.likeness(features.ids[roles.test], perceptual)
        rows += likeness.rows
        if regions is not None:
            own = regions.features[features.provenance["weights"], features.tap]
            rows += cell.region_rows(own.matrix(), regions)
    params = cell.params | dict(told)
    made = [shared | {"target": ALL} | row | {"params": row.get("params", {}) | params} for row in rows]
    parts = pd.DataFrame({"id": features.ids[roles.test], METRIC: cell.image_parts()})
    attachments = {
        f"maps/{METRIC}.npy": cell.map(),
        "maps/examples.npy": cell.examples(),
        f"scores/{METRIC}.parquet": parts,
        "scores/likeness.parquet": likeness.scores,
    }
    return ResultTable(rows_to_frame(made), {"format": 1, "analysis": "reconstruct"}, attachments)


def image_ceiling(pixels: Array, roles: Roles, settings: DecoderSettings) -> float:
    """Return R² of the pixels themselves, through the same projection and budget: the most there is."""
    flat = pixels.reshape(len(pixels), -1)
    names = np.array([str(i) for i in range(len(flat))])
    own = Features(flat, "N D", names, np.full(len(flat), "train", "<U5"), {}, "pixels|raw", {})
    with one_thread():
        cell = _Cell.fit(TapData.of(own, roles), pixels, settings, names=["ceiling"], blind=False)
    return float(cell.r2(np.arange(SIDE * SIDE * 3))[0])


@dataclass(frozen=True, eq=False)
class _Sums:
    """Squares of differences from the true test images, added up.

    Attributes:
        coefficients: (K,) over images.
        images: (n,) over pixels and colours.
        cells: (32, 32) over images and colours.
    """

    coefficients: Wide
    images: Wide
    cells: Wide

    @classmethod
    def of(cls, differences: Iterable[Wide]) -> _Sums:
        """Add up (some, 32, 32, 3) differences at a time."""
        coefficients, cells, images = np.zeros(SIDE * SIDE * 3), np.zeros((SIDE, SIDE)), []
        for one in differences:
            coefficients += np.square(frequencies(one.reshape(len(one), -1), SIDE)).sum(axis=0)
            squares = np.square(one)
            cells += squares.sum(axis=(0, 3))
            images.append(squares.sum(axis=(1, 2, 3)))
        return cls(coefficients, np.concatenate(images), cells)


@dataclass(frozen=True, eq=False)
class _Cell:
    """Decoders trained on one tap, the last on permuted images, and what they did on test.

    Attributes:
        data: The features.
        pixels: (N, 32, 32, 3) of all images.
        directions: (D, width) of the projection.
        narrow: How projected features are standardised.
        decoders: One a training.
        errors: Of each decoder.
        spread: Of the mean test image.
        blind: Whether the last decoder is the null.
        settings: Of the run.
    """

    data: TapData
    pixels: Array
    directions: Array
    narrow: Stage
    decoders: list[Decoder]
    errors: list[_Sums]
    spread: _Sums
    blind: bool
    settings: DecoderSettings

    @classmethod
    def fit(
        cls,
        data: TapData,
        pixels: Array,
        settings: DecoderSettings,
        *,
        names: Sequence[str] = (),
        blind: bool = True,
    ) -> _Cell:
        """Train decoders of the given names, by default ``draws`` of them, and one on permuted images."""
        roles, stage = data.roles, data.choose
        directions = random_projection(stage.fit.shape[1], settings.width, settings.seed)
        parts = [np.asarray(rows @ directions, np.float32) for rows in (stage.fit, stage.score)]
        narrow = Stage.of(*parts)
        scale = Scale.of(pixels, roles.train)

        def train(name: str, fitted: NDArray[np.intp], chosen: NDArray[np.intp]) -> Decoder:
            own, val = Examples(narrow.fit, fitted), Examples(narrow.score, chosen)
            return train_decoder(own, val, pixels, scale, settings.budget, seed=settings.seed, name=name)

        decoders = [
            train(name, roles.train, roles.val)
            for name in names or [str(draw) for draw in range(settings.draws)]
        ]
        if blind:
            orders = [
                permute_rows(len(rows), 1, seed=settings.seed, name=f"images of {part}")[0]
                for part, rows in (("train", roles.train), ("val", roles.val))
            ]
            decoders.append(train("permuted", roles.train[orders[0]], roles.val[orders[1]]))
        mean = Scale.of(pixels, roles.test).mean
        spread = _Sums.of(pixels[part].astype(np.float64) - mean for part in _parts(roles.test))
        own = cls(data, pixels, directions, narrow, decoders, [], spread, blind, settings)
        own.errors.extend(_Sums.of(own._differences(one)) for one in decoders)
        return own

    @cached_property
    def params(self) -> dict[str, Any]:
        """What all rows say of the fit."""
        draws = self.decoders[: self.draws]
        return {
            "method": "decoder",
            "side": SIDE,
            "n_train": len(self.data.roles.train),
            "projected_from": int(self.data.choose.kept.sum()),
            "draws": self.draws,
            "steps": self.settings.budget.steps,
            "best_steps": [one.step for one in draws],
            "val": [one.val_r2 for one in draws],
        }

    @property
    def draws(self) -> int:
        """How many decoders are no null."""
        return len(self.decoders) - self.blind

    def r2(self, columns: NDArray[np.intp]) -> Wide:
        """Return R² of each decoder over some coefficients; NaN if they do not vary over the test images."""
        total = self.spread.coefficients[columns].sum()
        errors = np.array([one.coefficients[columns].sum() for one in self.errors])
        return 1 - errors / total if total > 0 else np.full(len(errors), np.nan)

    def r2_rows(self) -> list[dict[str, Any]]:
        """Return a row for all pixels and one for each band."""
        bands = {ALL: np.arange(SIDE * SIDE * 3), **band_columns(SIDE)}
        rows = []
        for band, columns in bands.items():
            found = self.r2(columns)
            row: dict[str, Any] = {"metric": METRIC, "target": band}
            if np.isfinite(found).all():
                low, high = t_interval(found[: self.draws])
                row |= {"value": float(found[: self.draws].mean()), "ci_low": low, "ci_high": high}
                row |= {"ci_kind": f"t,{UNIT}"} | null_columns(found[self.draws :])
            else:
                row["status"] = "the target does not vary over the test images"
            rows.append(row)
        return rows

    def image_parts(self) -> Wide:
        """Return (n,) parts 1 − n·e²/SST of R², mean over draws, whose mean is the value."""
        errors = np.mean([one.images for one in self.errors[: self.draws]], axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(1 - len(errors) * errors / self.spread.images.sum())

    def map(self) -> Wide:
        """Return (32, 32) R² of every pixel, over its three colours, mean over draws."""
        errors = np.mean([one.cells for one in self.errors[: self.draws]], axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(1 - errors / self.spread.cells)

    def examples(self) -> Array:
        """Return (2, M, 32, 32, 3) in [0, 1]: some test images, and what the first draw makes of them."""
        test = self.data.roles.test
        chosen = test[np.unique(np.linspace(0, len(test) - 1, EXAMPLES).round().astype(int))]
        made = self._made(self.decoders[0], self.data.features.matrix(chosen))
        return np.stack([self.pixels[chosen], made])

    def likeness(self, ids: NDArray[Any], perceptual: Perceptual | None) -> Likeness:
        """Score some test images one by one."""
        places = draw_rows(len(ids), COMPARED, self.settings.seed)
        rows = self.data.roles.test[places]
        features = self.data.features.matrix(rows)
        made = np.stack([self._made(one, features) for one in self.decoders])
        return score_images(
            made[: self.draws],
            self.pixels[rows],
            ids=[str(one) for one in ids[places]],
            mean_image=self.decoders[0].scale.mean,
            perceptual=perceptual,
            uninformed=made[self.draws :],
            unit=UNIT,
            seed=self.settings.seed,
        )

    def region_rows(self, features: Array, regions: Regions) -> list[dict[str, Any]]:
        """Return what is not made of foreground and background, and the ratio of the two."""
        mean = self.decoders[0].scale.mean
        errors = [
            np.square(self._made(one, features) - regions.pixels).mean(axis=3)
            for one in self.decoders[: self.draws]
        ]
        spread = np.square(regions.pixels - mean).mean(axis=3)
        rows = region_rows(np.stack(errors), spread, regions.inside, unit=UNIT, seed=self.settings.seed)
        return [row | {"params": row["params"] | {"data": regions.name}} for row in rows]

    def _differences(self, decoder: Decoder) -> Iterator[Wide]:
        for rows in _parts(self.data.roles.test):
            made = self._made(decoder, self.data.features.matrix(rows))
            yield made.astype(np.float64) - self.pixels[rows]

    def _made(self, decoder: Decoder, features: Array) -> Array:
        projected = np.asarray(self.data.choose.move(features) @ self.directions, np.float32)
        return decoder.predict(self.narrow.move(projected))


def _parts(rows: NDArray[np.intp]) -> Iterator[NDArray[np.intp]]:
    for start in range(0, len(rows), _CHUNK):
        yield rows[start : start + _CHUNK]
