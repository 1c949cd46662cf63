"""Concept activation vectors: does a class's score rise along a direction that people can name?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.special import stdtr

from probekit.attribution.composed import ProbedBackbone, compose, resolve_layer
from probekit.attribution.explainers import GRADIENT_BATCH
from probekit.attribution.methods import named_outputs
from probekit.data.readers import open_images
from probekit.errors import InputError
from probekit.features.streaming import divide, pixel_batches, prepared, stream
from probekit.files import digest_json
from probekit.functional.arguments import FloatArray
from probekit.functional.intervals import adjust_holm, t_interval
from probekit.functional.sigmoid_regression import fit_sigmoid
from probekit.functional.standardise import standardisation
from probekit.results.table import ResultTable
from probekit.seeds import random_stream
from probekit.taps.layers import tap_facts
from probekit.taps.readout import MAPS
from probekit.version import __version__

if TYPE_CHECKING:
    from probekit.backbones.backbone import Backbone
    from probekit.data.images import ImageSet
    from probekit.results.fitted import Probe
    from probekit.taps.tap import Tap

METRIC = "tcav"
RUNS = 20
# On ½‖w‖² of standardised activations: weak, as there are far more channels than images.
PENALTY = 0.01
# Share of the concept's and of the random images on which each vector is fitted; the rest scores it.
FITTED = 2 / 3
LEAST = 6


def measure_concepts(
    backbone: Backbone,
    images: str | ImageSet,
    probe: Probe,
    concepts: Mapping[str, str | ImageSet],
    random: str | ImageSet,
    *,
    layer: str,
    classes: Sequence[str] | None = None,
    runs: int = RUNS,
    seed: int = 0,
    batch_size: int = GRADIENT_BATCH,
) -> ResultTable:
    """Test with concept activation vectors (TCAV) which concepts raise which class.

    In every run a logistic regression tells a concept's images from equally many random ones by the mean
    over places of their activations at a layer; the normal v of its boundary is the concept's vector. The
    sensitivity of an image is Σ ∂s/∂a(place) · v, how much the score of its class rises when v is added
    everywhere; the score of the concept is the share of the class's images with a positive one, averaged over
    runs. In the same runs random images take the concept's place: their scores are the null, and a two-sided
    t-test (Welch's) compares both, Holm-adjusted over all rows.

    Source: Kim, Wattenberg, Gilmer, Cai, Wexler, Viegas and Sayres, Interpretability Beyond Feature
    Attribution (ICML 2018), sections 3.2 to 3.5; here on means over places, because a few dozen images do not
    determine a direction in all of them, and with the runs drawing two thirds of the concept's images.

    What it cannot say: only signs count. Where the score is linear in the layer, as at the tap itself, a
    vector's score is 0 or 1 for any concept, random ones too. The runs share the concept's images: the test
    says that these images differ from random ones, not that others of the same concept would.

    Args:
        backbone: What the probe was fitted to.
        images: Images with the class target of the probe, whose scores are looked at.
        probe: A fitted probe at a tap behind the layer, or ``own_classifier(backbone)``.
        concepts: Name of each concept → its images; targets play no part.
        random: Images without a common concept, twice as many as a concept has, better many times as many.
        layer: Path or tap of a layer with places, before the tap of the probe.
        classes: Classes to test; None takes all that have images.
        runs: R random counterparts.
        seed: Fixes the draws.
        batch_size: Images in a forward pass.

    Returns:
        One row ``tcav`` a concept and class, ``target`` ``concept → class``: the mean over runs with its
        t-interval, null the mean and range of the random ones; params hold both p values and the held-out
        accuracy of the vectors. Attached are the scores of every run.

    Raises:
        InputError: If there are too few images or runs, or no image of a class.
        TapError: If the layer lies behind the tap, has no places, or none that matters.
    """
    if runs < 2:
        raise InputError("at least 2 runs, whose scores are compared", str(runs), f"{RUNS} is the default")
    if not concepts:
        raise InputError("at least one concept", "none", "Give name → images")
    place = resolve_layer(backbone, layer, compose(backbone, probe).tap)
    pool, opened = _opened(random), _opened(images)
    tested = _classes(opened, probe, classes)
    read = _read_at(backbone, place)
    known = {name: _opened(one) for name, one in concepts.items()}
    for name, one in known.items():
        if len(one) < LEAST:
            raise InputError(f"at least {LEAST} images of {name}", str(len(one)), "Add some")
        if len(pool) < 2 * LEAST:
            raise InputError(f"at least {2 * LEAST} random images", str(len(pool)), "Add some")
    gradients = _gradients(backbone, probe, place, opened, tested, batch_size)
    others = _activations(backbone, pool, read, batch_size)
    found: list[_Scored] = []
    for name, one in known.items():
        own = _activations(backbone, one, read, batch_size)
        vectors, accuracy = _vectors(own, others, runs, seed)
        nulls, _ = _vectors(None, others, runs, seed, count=len(own))
        found += [
            _Scored(
                name, label, len(own), _shares(given, vectors), _shares(given, nulls), accuracy, len(given)
            )
            for label, given in gradients.items()
        ]
    provenance = {
        "analysis": "concepts",
        "probekit": __version__,
        "seed": seed,
        "models": {backbone.name: backbone.facts()},
        "settings": {
            "layer": place.place, "runs": runs, "probe": {"tap": probe.tap, "target": probe.target},
            "concepts": {name: one.name for name, one in known.items()}, "random": pool.name,
        },
        "data": {one.name: {"digest": one.digest} for one in (opened, pool, *known.values())},
    }  # fmt: skip
    shared = {
        "analysis": "concepts", "model": backbone.name, "arch": backbone.arch, "weights": backbone.weights,
        "data": opened.name, "tap": str(read), "trial_seed": seed, "d": others.shape[1],
        "run_id": digest_json(provenance)[:12],
        **{key: value for key, value in tap_facts(backbone, read).items() if key in _FACTS},
    }  # fmt: skip
    return _table(found, shared, provenance | {"run_id": shared["run_id"]}, len(pool))


_FACTS = ("block", "level", "depth", "readout")


def _shares(gradients: FloatArray, vectors: FloatArray) -> FloatArray:
    """Return (R,) shares of images that (R, D) vectors raise."""
    return np.asarray((gradients @ vectors.T > 0).mean(0))


@dataclass(frozen=True, eq=False)
class _Scored:
    """Scores of one concept for one class.

    Attributes:
        concept: Its name.
        label: The class.
        images: Images of the concept.
        scores: (R,) shares of the class's images.
        nulls: (R,) those of random images in the concept's place.
        accuracy: Of the vectors on held-out images.
        count: Images of the class.
    """

    concept: str
    label: str
    images: int
    scores: FloatArray
    nulls: FloatArray
    accuracy: float
    count: int


def _opened(images: str | ImageSet) -> ImageSet:
    return open_images(images) if isinstance(images, str) else images


def _classes(images: ImageSet, probe: Probe, classes: Sequence[str] | None) -> dict[str, Any]:
    """Return class name → rows of its images."""
    places = named_outputs("true", images, probe)
    rows = {name: np.flatnonzero(places == k) for k, name in enumerate(probe.classes)}
    if classes is None:
        return {name: own for name, own in rows.items() if len(own)}
    for name in classes:
        if not len(rows.get(name, ())):
            raise InputError(
                f"images of {name!r}, a class of the probe", f"none in {images.name}", "Add some"
            )
    return {name: rows[name] for name in classes}


def _read_at(backbone: Backbone, place: Tap) -> Tap:
    """Return the tap of the mean over places."""
    from probekit.taps.facts import layer_facts

    axes = layer_facts(backbone).layout(place).axes
    return replace(place, readout="gap" if axes in MAPS else "patch_mean")


def _activations(backbone: Backbone, images: ImageSet, tap: Tap, batch_size: int) -> FloatArray:
    parts = [values[tap] for _, values in stream(backbone, images, [tap], batch_size=batch_size)]
    return np.concatenate(parts).astype(np.float64)


def _gradients(
    backbone: Backbone,
    probe: Probe,
    place: Tap,
    images: ImageSet,
    tested: Mapping[str, Any],
    batch_size: int,
) -> dict[str, FloatArray]:
    """Return class → (n, D) gradients of its score, summed over places, at its images."""
    module = ProbedBackbone(backbone, probe, layer=place)
    found = {}
    for name, rows in tested.items():
        output = probe.classes.index(name)
        parts = []
        for _, pixels in pixel_batches(images, backbone.preprocessing, divide(rows, batch_size)):
            batch = prepared(backbone, pixels)
            chosen = torch.full((len(batch),), output, device=batch.device)
            parts.append(module.place_gradients(batch, chosen).double().sum((2, 3)).cpu().numpy())
        found[name] = np.concatenate(parts)
    return found


def _vectors(
    own: FloatArray | None, others: FloatArray, runs: int, seed: int, *, count: int = 0
) -> tuple[FloatArray, float]:
    """Return (R, D) concept vectors of unit length and their mean held-out accuracy.

    Args:
        own: (n, D) activations of the concept; None: of as many random images, drawn anew in every run.
        others: (M, D) activations of random images.
        runs: R.
        seed: Fixes the draws; those of a run are the same for all concepts.
        count: n where ``own`` is None.
    """
    size = min(count if own is None else len(own), len(others) // 2)
    fitted = max(round(FITTED * size), 1)
    vectors, accuracies = [], []
    for run in range(runs):
        order = random_stream("random counterpart", seed, run).permutation(len(others))
        negative = others[order[:size]]
        if own is None:
            positive = others[order[size : 2 * size]]
        else:
            positive = own[random_stream("concept images", seed, run).permutation(len(own))[:size]]
        fit = np.concatenate([positive[:fitted], negative[:fitted]])
        held = np.concatenate([positive[fitted:], negative[fitted:]])
        labels = np.repeat([True, False], fitted)
        mean, scale, kept = standardisation(fit)
        direction = np.zeros(others.shape[1])
        path = fit_sigmoid((fit[:, kept] - mean[kept]) / scale[kept], labels, [PENALTY])
        # The boundary's normal among activations as they are, not among standardised ones.
        direction[kept] = path.weights[0, :, 0] / scale[kept]
        logits = (held - mean) @ direction + path.intercepts[0, 0]
        vectors.append(direction / max(float(np.linalg.norm(direction)), 1e-300))
        accuracies.append(np.mean((logits > 0) == np.repeat([True, False], size - fitted)))
    return np.stack(vectors), float(np.mean(accuracies))


def welch_p_value(one: FloatArray, other: FloatArray) -> float:
    """Return the two-sided p value of equal means (Welch's t-test); samples without variance: 0 or 1.

    Source: Welch, The generalization of Student's problem, Biometrika 34 (1947).

    Examples:
        >>> round(welch_p_value(np.array([1.0, 2.0, 3.0]), np.array([4.0, 5.0, 7.0])), 4)
        0.0419
    """
    parts = [sample.var(ddof=1) / len(sample) for sample in (one, other)]
    difference, variance = abs(float(one.mean() - other.mean())), float(sum(parts))
    if variance == 0:
        return float(difference == 0)
    freedom = variance**2 / sum(
        part**2 / (len(sample) - 1) for part, sample in zip(parts, (one, other), strict=True)
    )
    return float(2 * stdtr(freedom, -difference / np.sqrt(variance)))


def _table(
    found: Sequence[_Scored], shared: Mapping[str, Any], provenance: Mapping[str, Any], pool: int
) -> ResultTable:
    plain = [welch_p_value(one.scores, one.nulls) for one in found]
    adjusted = adjust_holm(plain)
    rows = []
    for one, p, holm in zip(found, plain, adjusted, strict=True):
        low, high = t_interval(one.scores)
        rows.append({
            **shared, "target": f"{one.concept} → {one.label}", "metric": METRIC, "n": one.count,
            "value": float(one.scores.mean()),
            "ci_low": max(low, 0.0), "ci_high": min(high, 1.0), "ci_kind": "t,runs",
            "null": float(one.nulls.mean()), "null_low": float(one.nulls.min()),
            "null_high": float(one.nulls.max()), "null_kind": f"random concepts,{len(one.nulls)}",
            "params": {
                "concept": one.concept, "class": one.label, "p_value": p, "p_holm": float(holm),
                "runs": len(one.scores), "n_concept": one.images, "n_random": pool,
                "accuracy_held_out": one.accuracy,
            },
        })  # fmt: skip
    scores = {f"scores/{one.concept}/{one.label}.npy": np.stack([one.scores, one.nulls]) for one in found}
    return ResultTable.from_rows(rows, provenance, scores)
