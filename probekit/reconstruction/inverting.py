"""One data set inverted: images made from every tap of every model, scored, and the cells of that."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from probekit.data.images import ImageSet
from probekit.data.regions import region_target
from probekit.data.transforms import Preprocessing
from probekit.errors import InputError
from probekit.features.comparison import Body, Comparison
from probekit.features.features import Features
from probekit.functional.intervals import t_interval
from probekit.reconstruction.pixels import foreground
from probekit.results.schema import OK, rows_to_frame
from probekit.results.table import ResultTable

if TYPE_CHECKING:
    from probekit.backbones.backbone import Backbone
    from probekit.reconstruction.inversion import Inversions, Preset

log = logging.getLogger(__name__)

# Changes whenever a stored cell would no longer hold what the code computes.
CELL_FORMAT = 2
METRIC = "feature_residual"
SHOWN, DRAWS, RESIDUAL = 6, 3, 0.05
UNIT = "draws of the prior"
_RANKED = ("value", "ci_low", "ci_high", "ci_kind")

Found = dict[str, Mapping[str, Features]]


@dataclass(frozen=True)
class Inverting:
    """What all data sets of one call share.

    Attributes:
        taps: As the caller wrote them; a tap without a readout is inverted in full.
        preset: ``preview``, ``standard`` or ``paper``.
        prior: ``pyramid``, ``network``, ``fourier`` or ``pixels``; None takes that of the preset.
        shown: Test images that are inverted, evenly spaced.
        draws: Draws of the prior.
        residual: Target.
        seed: Fixes the draws, and the other images behind the nulls.
        device: Where backbones run; None chooses.
        jobs: Parallel workers.
    """

    taps: str | Sequence[str]
    preset: str = "preview"
    prior: str | None = None
    shown: int = SHOWN
    draws: int = DRAWS
    residual: float = RESIDUAL
    seed: int = 0
    device: str | None = None
    jobs: int = 1

    def check(self) -> None:
        """Refuse settings that cannot be used.

        Raises:
            InputError: If there is nothing to show, or nothing to draw.
        """
        if self.shown < 1 or self.draws < 1 or not 0 < self.residual < 1:
            raise InputError(
                "at least one image shown, one draw, and a target residual between 0 and 1",
                f"{self.shown}, {self.draws} and {self.residual}",
                f"{SHOWN}, {DRAWS} and {RESIDUAL} are the defaults",
            )

    def identity(self, presets: Mapping[str, Preset]) -> list[Any]:
        """Return what tells cells apart, as JSON values: these settings, and what each preset is."""
        own = asdict(self)
        told = ("prior", "shown", "draws", "residual", "seed")
        return [CELL_FORMAT, presets[self.preset].facts(), *(own[name] for name in told)]


@dataclass(frozen=True)
class _Cell:
    """What computes a cell; it can be sent to another process.

    Attributes:
        images: The data set.
        rows: (n,) which of its images are inverted.
        asked: Settings.
        bodies: Weights → how to open the network.
        judge: A further network that compares made with true images, or None.
        folder: Keeps snapshots.
        held: The network that was loaded last: the taps of a model follow each other.
    """

    images: ImageSet
    rows: NDArray[np.intp]
    asked: Inverting
    bodies: Mapping[str, Body]
    judge: Backbone | None
    folder: Path
    held: dict[str, Backbone] = field(default_factory=dict)

    def __call__(self, features: Features) -> ResultTable:
        weights = features.provenance["weights"]
        if weights not in self.held:
            self.held.clear()
            self.held[weights] = self.bodies[weights].open()
        return _inverted(self.held[weights], self, features.tap)


def invert_taps(
    comparison: Comparison, images: ImageSet, asked: Inverting, judge: Backbone | None = None
) -> tuple[list[ResultTable], Found]:
    """Invert every tap of every model for a few images of one data set.

    A cell is a model and a tap, with all draws of the prior; an interrupted cell goes on from a snapshot.
    Where an image ended above the target residual, the tap's scores are not ranked: their values are empty,
    the status says why, and what was found stands in the params under ``unranked``. The residual keeps its
    value, since it says how far the images came.

    Returns:
        A table for every model and tap, and the activations of the images at these taps. Metrics are
        ``feature_residual`` and those of ``score_images``; attached are ``pictures/true.npy`` (n, H, W, 3)
        and ``pictures/made.npy`` (draws, n, H, W, 3) in 8 bits, ``maps/error.npy``,
        ``curves/residual.parquet``, ``scores/images.parquet``.

    Raises:
        InputError: If a setting cannot be used, or images are too small for the prior.
        TapError: If a tap cannot be read, or no gradient passes it.
    """
    from probekit.reconstruction.inversion import PRESETS, choose_preset

    asked.check()
    rows = shown_rows(images, asked.shown)
    some = images.select(rows)
    found: Found = comparison.read(some, _raw(asked.taps), training=images, device=asked.device)
    for own in found.values():
        facts = next(iter(own.values())).provenance["model"]["preprocessing"]
        preset = choose_preset(asked.preset, asked.prior, int(facts["size"]))
        if facts["size"] > preset.size:
            log.warning(
                "the preset %s is made for images of %d px and these have %d: steps take %.0f times as long; "
                "load models with size=%d",
                preset.name, preset.size, facts["size"], (facts["size"] / preset.size) ** 2, preset.size,
            )  # fmt: skip
            break
    bodies = comparison.bodies(images, found, asked.device)
    cell = _Cell(images, rows, asked, bodies, judge, comparison.folder / "snapshots")
    told = "" if judge is None else [judge.weights, judge.code, judge.preprocessing.facts()]
    tables = comparison.run_taps(
        images, found, cell, [*asked.identity(PRESETS), told], kind="inversions", seed=asked.seed,
        jobs=asked.jobs,
    )  # fmt: skip
    return tables, found


def shown_rows(images: ImageSet, count: int) -> NDArray[np.intp]:
    """Return evenly spaced images of the test split, or of all where there is none.

    Examples:
        >>> pixels = np.zeros((9, 8, 8, 3), np.uint8)
        >>> shown_rows(ImageSet.from_arrays("nine", pixels, np.arange(9) % 2, np.full(9, "test")), 3).tolist()
        [0, 4, 8]
    """
    test = images.indices("test")
    every = test if len(test) else np.arange(len(images))
    places = np.linspace(0, len(every) - 1, min(count, len(every))).round().astype(np.intp)
    return np.asarray(every[np.unique(places)], np.intp)


def _raw(taps: str | Sequence[str]) -> list[str]:
    """Return taps with the readout that keeps everything, where none is named."""
    words = [taps] if isinstance(taps, str) else list(taps)
    return [word if "|" in word else f"{word}|raw" for word in words]


def _inverted(backbone: Backbone, cell: _Cell, tap: str) -> ResultTable:
    from probekit.reconstruction.inversion import invert, mean_activation
    from probekit.reconstruction.likeness import score_images
    from probekit.reconstruction.perceptual import judge_by

    asked, images = cell.asked, cell.images
    some = images.select(cell.rows)
    preprocessing = backbone.preprocessing
    mean, behind = mean_activation(backbone, images, tap)
    pixels = np.stack([some.pixels(row, preprocessing) for row in range(len(some))])
    # All draws of all images in one call: the network is traced once.
    count, ids = len(some), some.ids.tolist()
    made = invert(
        backbone, np.tile(pixels, (asked.draws, 1, 1, 1)), tap, mean, preset=asked.preset, prior=asked.prior,
        residual=asked.residual, ids=ids * asked.draws,
        seed=[asked.seed + draw for draw in range(asked.draws) for _ in range(count)],
        store=cell.folder, device=asked.device,
    )  # fmt: skip
    images_of = made.made.reshape(asked.draws, count, *made.made.shape[1:])
    residuals = made.residuals.reshape(asked.draws, count)
    target = region_target(some)
    inside = None if target is None else foreground(some, preprocessing, target, preprocessing.size)
    found = score_images(
        images_of, pixels / 255, ids=ids, mean_image=_mean_image(images, preprocessing, behind),
        inside=inside, perceptual=None if cell.judge is None else judge_by(cell.judge), unit=UNIT,
        seed=asked.seed,
    )  # fmt: skip
    status = _status(made, asked.residual)
    told = {
        "prior": made.facts["preset"]["prior"], "preset": asked.preset, "target_residual": asked.residual,
        "draws": asked.draws, "mean_of": behind, "engine": made.facts["engine"],
        "steps": float(made.steps.mean()), "seconds_per_image": made.wall_s / len(made.steps),
    }  # fmt: skip
    if not made.facts["places"]:
        told["places"] = "none: where things are is left to the prior"
    rows = [_residual_row(residuals), *found.rows]
    attachments: dict[str, Any] = {
        "pictures/true.npy": pixels,
        "pictures/made.npy": (images_of * 255).round().astype(np.uint8),
        "maps/error.npy": found.error_maps.astype(np.float32),
        "curves/residual.parquet": _curves(made, ids),
        "scores/images.parquet": found.scores.assign(feature_residual=residuals.mean(axis=0)),
    }
    made_rows = [_unranked(row, status) | {"d": int(np.prod(mean.shape))} for row in rows]
    frame = rows_to_frame([row | {"params": dict(told) | row.get("params", {})} for row in made_rows])
    return ResultTable(frame, {"format": 1, "analysis": "reconstruct"}, attachments)


def _residual_row(residuals: NDArray[np.float64]) -> dict[str, Any]:
    values = residuals.mean(axis=1)
    row: dict[str, Any] = {"metric": METRIC, "n": residuals.shape[1], "value": float(values.mean())}
    row |= {"null": 1.0, "null_kind": "analytic, the mean activation"}
    low, high = t_interval(values)
    return row | ({"ci_low": low, "ci_high": high, "ci_kind": f"t,{UNIT}"} if np.isfinite(low) else {})


def _status(made: Inversions, residual: float) -> str:
    """Return ``ok`` if every image of every draw reached the target, else what is to be said of all rows."""
    ends = made.statuses
    above = [status for status in ends if status != OK]
    if not above:
        return OK
    worst = float(made.residuals.max())
    why = {"plateau": "a plateau", "stopped": "the most steps", "a value": "a value that is not finite"}
    reasons = dict.fromkeys(word for start, word in why.items() for one in above if one.startswith(start))
    return (
        f"{len(above)} of {len(ends)} made images ended above the target residual {residual:g}, at up to "
        f"{worst:.2g}, by {' or '.join(reasons)}: not ranked"
    )


def _unranked(row: dict[str, Any], status: str) -> dict[str, Any]:
    """Move what must not be ranked to the params; the residual itself stays."""
    if status == OK or "value" not in row:
        return row
    if row["metric"] == METRIC:
        return row | {"status": status}
    kept = {name: row[name] for name in _RANKED if name in row}
    rest = {name: value for name, value in row.items() if name not in _RANKED}
    return rest | {"status": status, "params": row.get("params", {}) | {"unranked": kept}}


def _mean_image(images: ImageSet, preprocessing: Preprocessing, most: int) -> NDArray[np.float64]:
    rows = np.unique(np.linspace(0, len(images) - 1, most).round().astype(int))
    total = sum(images.pixels(int(row), preprocessing).astype(np.float64) for row in rows)
    return np.asarray(total / (255 * len(rows)))


def _curves(made: Inversions, ids: Sequence[str]) -> pd.DataFrame:
    number = made.curves["image"].to_numpy()
    told = made.curves.assign(id=np.array(ids)[number % len(ids)], draw=number // len(ids))
    return told[["id", "draw", "step", "wall_s", "residual"]]
