"""One cell of the attribution: where a probe of one tap looks, and whether the thing is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import softmax

from probekit.attribution.cascading import cascade_rows
from probekit.attribution.maps import Maps, enlarge, pair_maps
from probekit.attribution.marked import METRICS, Array, Marked, image_means, score_maps
from probekit.compute import one_thread
from probekit.data.targets import Target
from probekit.features.features import DEAD, Features
from probekit.files import safe_name
from probekit.functional.intervals import bootstrap_means, paired_difference
from probekit.probes.controls import null_columns
from probekit.probes.linear import LinearFit, as_probe, fit_classes, fit_labels
from probekit.probes.protocol import Protocol, Roles, TapData
from probekit.probes.scoring import mean_average_precision
from probekit.results.fitted import Probe
from probekit.results.schema import rows_to_frame
from probekit.results.table import ResultTable
from probekit.seeds import random_stream

if TYPE_CHECKING:
    from probekit.backbones.backbone import Backbone
    from probekit.features.comparison import Body

CI_KIND = "bootstrap,test images"
# Test images that are shown.
EXAMPLES = 5


@dataclass(frozen=True)
class AttributionSettings:
    """What all cells of one run share.

    Attributes:
        protocol: How probes are fitted, permuted and resampled.
        method: How maps are made.
        tolerance_px: By how much the pointing game may miss.
        cascade: Whether blocks are reset from each tap downwards, and maps compared with those before.
        batch_size: Images a forward pass.
    """

    protocol: Protocol
    method: str = "probe_cam"
    tolerance_px: float = 0.0
    cascade: bool = False
    batch_size: int = 64

    def facts(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return asdict(self) | {"protocol": self.protocol.facts()}

    def of_maps(self) -> dict[str, Any]:
        """Return how maps are made, as keywords of ``pair_maps``."""
        return {"method": self.method, "batch_size": self.batch_size, "seed": self.protocol.seed}


def attribute_tap(
    features: Features,
    *,
    target: tuple[str, Target],
    roles: Roles,
    marked: Marked,
    bodies: Mapping[str, Body],
    baselines: Mapping[str, Array],
    settings: AttributionSettings,
) -> ResultTable:
    """Fit a probe to one tap, make its maps and score them where the classes are marked.

    Args:
        features: Of all images, axes ``N D``.
        target: Name and values of the target, over the same images.
        roles: Rows of train, val and test.
        marked: Test images with what is marked in them.
        bodies: Weights → how to open the backbone.
        baselines: Name → (M, 4) scores of a map that knows nothing.
        settings: Of the run.

    Returns:
        Rows without model, data and run. Attached are the probe, the scores of every image, and some images
        with their maps.
    """
    name, values = target
    shared: dict[str, Any] = {
        "target": name, "split": "test", "n_classes": values.n_classes, "d": features.shape[-1]
    }  # fmt: skip
    with one_thread():
        data = TapData.of(features, roles)
        fit = None if data.dead else _fit(data, name, values, settings.protocol)
    if fit is None:
        rows = [shared | {"metric": metric, "status": DEAD} for metric in METRICS]
        return ResultTable(rows_to_frame(rows), {"format": 1, "analysis": "attribute"})
    probe, body = as_probe(data, name, values, fit), bodies[features.provenance["weights"]]
    backbone, given = _opened(body), settings.of_maps()
    maps = pair_maps(backbone, marked, [probe, *_permuted(probe, fit)], **given)
    larger = (enlarge(one, marked.inside.shape[1]) for one in maps)
    scores = np.stack([score_maps(one, marked.inside, settings.tolerance_px) for one in larger])
    means = np.stack([image_means(one, marked.rows, len(marked.images)) for one in scores])
    told = fit.params | _told(data, values, fit, marked, settings) | {"map": list(maps.shape[2:])}
    rows = [
        _row(
            metric,
            means[:, :, place],
            {key: one[:, place] for key, one in baselines.items()},
            settings.protocol,
            told,
        )
        for place, metric in enumerate(METRICS)
    ]
    if settings.cascade and not body.is_control:
        step = (backbone, features.facts["block"], body.images, marked, probe, maps[0])
        rows += cascade_rows(*step, settings.protocol, given)
    frame = pd.DataFrame({"id": marked.images.ids, **dict(zip(METRICS, means[0].T, strict=True))})
    attachments = {
        f"scores/{safe_name(name)}.parquet": frame,
        f"probes/{safe_name(name)}.npz": probe.to_arrays(),
        f"maps/{safe_name(name)}.npz": _examples(backbone, marked, maps[0], scores[0], values),
    }
    made = rows_to_frame([shared | row for row in rows])
    return ResultTable(made, {"format": 1, "analysis": "attribute"}, attachments)


def _fit(data: TapData, name: str, target: Target, protocol: Protocol) -> LinearFit:
    fit = fit_classes if target.kind == "class" else fit_labels
    return fit(data, target, protocol, name, keep_null=True)


def _permuted(probe: Probe, fit: LinearFit) -> list[Probe]:
    """Return the probes that were fitted to permuted targets."""
    return [
        replace(probe, weights=weights, intercept=intercept)
        for weights, intercept in zip(fit.null_weights, fit.null_intercepts, strict=True)
    ]


@lru_cache(maxsize=1)
def _opened(body: Body) -> Backbone:
    """Open a backbone; the taps of one model follow each other, so that the last one is enough."""
    return body.open()


def _told(
    data: TapData, target: Target, fit: LinearFit, marked: Marked, settings: AttributionSettings
) -> dict[str, Any]:
    """Return what all rows say of the probe and of what is marked."""
    logits, truth = fit.logits(data.refit.score), target.values[data.roles.test]
    # A map of a probe that reads nothing shows nothing: how well it reads stands beside.
    read = (
        {"accuracy": float((softmax(logits, axis=1).argmax(axis=1) == truth).mean())}
        if target.kind == "class"
        else {"mean_ap": float(mean_average_precision(logits, truth.astype(bool)))}
    )
    return read | {
        "method": settings.method,
        "pairs": len(marked.rows),
        "classes": len(np.unique(marked.outputs)),
        "left_out": marked.left_out,
        "marks_of_any_class": marked.any_class,
        "tolerance_px": settings.tolerance_px,
        "size": int(marked.inside.shape[1]),
    }


def _row(
    metric: str, means: Array, baselines: Mapping[str, Array], protocol: Protocol, told: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the row of one metric.

    Things differ more in size than maps in what they find, so that the interval of a mean is wide. How far it
    lies above a baseline on the same images is told more sharply: ``above`` in the params.

    Args:
        metric: Its name.
        means: (1 + B, M) means of images, the first those of the probe, the others of permuted ones.
        baselines: Name → (M,) of a map that knows nothing.
        protocol: Resamples and seed.
        told: What else goes to the params.
    """
    there = ~np.isnan(means[0])
    own = means[0][there]
    known = {name: float(np.nanmean(one)) for name, one in baselines.items()}
    row: dict[str, Any] = {"metric": metric, "n": len(own), "params": {**told, "baselines": known}}
    if not len(own):
        return row | {"status": "no image has a positive value in its map"}
    stream = random_stream("images of maps", protocol.seed)
    low, high = bootstrap_means(own[:, None], draws=protocol.bootstrap_draws, stream=stream)
    row["params"]["above"] = {name: _above(own, one[there], protocol) for name, one in baselines.items()}
    # A permuted probe without a positive value anywhere has no score.
    nulls = np.array([np.nanmean(one) for one in means[1:] if not np.isnan(one).all()])
    row |= {"value": float(own.mean()), "ci_low": float(low[0]), "ci_high": float(high[0])}
    return row | {"ci_kind": CI_KIND} | null_columns(nulls)


def _above(own: Array, baseline: Array, protocol: Protocol) -> list[float]:
    """Return the mean difference to a baseline on the same images, and the ends of its interval."""
    stream = random_stream("images of maps", protocol.seed)
    found = paired_difference(own, baseline, draws=protocol.bootstrap_draws, stream=stream)
    return [found.value, found.low, found.high]


def _examples(
    backbone: Backbone, marked: Marked, maps: Maps, scores: Array, target: Target
) -> dict[str, NDArray[Any]]:
    """Return some images, evenly spaced, with the map of their first class, what is marked, and scores."""
    _, firsts = np.unique(marked.rows, return_index=True)
    places = np.unique(np.linspace(0, len(firsts) - 1, EXAMPLES).round().astype(int))
    pairs = firsts[places]
    pixels = [marked.images.pixels(int(row), backbone.preprocessing) for row in marked.rows[pairs]]
    return {
        "images": np.stack(pixels),
        "maps": maps[pairs],
        "inside": marked.inside[pairs],
        "scores": scores[pairs],
        "metrics": np.array(METRICS),
        "classes": np.array([target.classes[place] for place in marked.outputs[pairs]]),
        "ids": marked.images.ids[marked.rows[pairs]],
    }
