"""Maps of what a linear probe reads in each image, by exact decomposition, gradients or perturbation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from probekit.attribution.attributions import Attributions
from probekit.attribution.composed import compose
from probekit.attribution.explainers import (
    BASED,
    COMPLETE,
    GRADIENT_BATCH,
    NOISE,
    STEPS,
    Explain,
    Settings,
    baseline_of,
    explainer,
)
from probekit.attribution.linear import probe_cam
from probekit.data.readers import open_images
from probekit.errors import InputError
from probekit.features.streaming import divide, pixel_batches, prepared

if TYPE_CHECKING:
    from probekit.backbones.backbone import Backbone
    from probekit.data.images import ImageSet
    from probekit.results.fitted import Probe

IntArray = NDArray[np.int64]


def attribute_images(
    backbone: Backbone,
    images: str | ImageSet,
    probe: Probe,
    *,
    method: str = "probe_cam",
    outputs: str | int | ArrayLike | None = None,
    against: str | int | ArrayLike | None = None,
    layer: str | None = None,
    baseline: str = "mean",
    steps: int = STEPS,
    window: int | None = None,
    smooth: int = 0,
    seed: int = 0,
    batch_size: int = GRADIENT_BATCH,
) -> Attributions:
    """Return one map an image: where the score of one output of a probe comes from.

    Attributed are the probe's linear scores, never probabilities, which saturate. Methods:

    - ``probe_cam``: the score taken apart place by place, exactly, without gradients; see ``probe_cam``.
      Maps at the resolution of the tap; their mean and the intercept are the score.
    - ``grad_cam``: activations of a layer, weighted by their channels' mean gradients, negative parts kept
      (Selvaraju et al., ICCV 2017, equations 1 and 2 without the ReLU). Maps at the resolution of the layer.
    - ``integrated_gradients``: (x − x′) · ∫ ∂s/∂x from a baseline x′ (Sundararajan, Taly and Yan, ICML 2017,
      equation 1), by Gauss–Legendre points; maps add up to s(x) − s(x′).
    - ``deep_lift``: the Rescale rule (Shrikumar, Greenside and Kundaje, ICML 2017, equation 10); adds up to
      the same difference, for one backward pass. For networks whose non-linear steps have a rule.
    - ``guided_backprop``: gradients, negative ones cut at every ReLU (Springenberg et al., ICLR 2015
      workshop, section 3.4). It shows edges more than reasons: see what resets of layers leave of it.
    - ``saliency``: the largest |∂s/∂x| over the channels (Simonyan, Vedaldi and Zisserman, ICLR 2014
      workshop, section 3.1), so never negative.
    - ``occlusion``: how much the score falls where a sliding square shows the baseline, averaged over the
      squares that cover a pixel (Zeiler and Fergus, ECCV 2014, section 4.2).

    All but ``saliency`` are summed over colour channels, in units of the score (for ``guided_backprop``, of
    the score per unit of prepared input). Before ``deep_lift`` and ``guided_backprop`` every non-linear step
    from the image to the score is looked up: captum leaves those that it does not know as they are and says
    nothing. ReLU6 and Hardtanh, reused modules and max pooling are rewritten in a copy that computes the
    same; what cannot be is refused by name.

    Args:
        backbone: What the probe was fitted to; it is left bit-equal and without hooks.
        images: What to look at, in the grammar of ``open_images`` or opened.
        probe: A fitted probe, of any tap.
        method: One of ``METHODS``.
        outputs: (N,) places in ``probe.classes``; or one place or class name for all; ``true``, the class
            each image has in the target of the probe; None, the highest score of each image.
        against: Outputs whose scores are taken off, given likewise; None: none.
        layer: A layer before the tap, for ``grad_cam``; None is the tap.
        baseline: ``mean``, the mean of these images; ``blur``, each image itself, blurred.
        steps: Points of integrated gradients.
        window: Side of occlusion's square in pixels, moved by half of it; None is an eighth of the input.
        smooth: Noisy copies of each image whose maps are averaged (SmoothGrad, Smilkov et al. 2017); 0 is the
            image itself.
        seed: Fixes the noise.
        batch_size: Images, steps or squares in a forward pass: what memory grows with.

    Returns:
        Maps with what they are of.

    Raises:
        InputError: If a setting or output cannot be used, or a network has a step without a rule.
        TapError: If the tap or the layer has no places where the method needs them, the layer lies behind the
            tap, or no gradient comes back from the tap.
        ImageUnreadable: If an image cannot be decoded.
    """
    settings = Settings(method, layer, baseline, steps, window, smooth, seed, batch_size)
    opened = open_images(images) if isinstance(images, str) else images
    if not len(opened):
        raise InputError("at least one image", f"none in {opened.name}", "Name images to look at")
    chosen = _outputs(outputs, opened, probe, "outputs")
    taken = None if against is None else _outputs(against, opened, probe, "against")
    found = _Maps(opened, probe, chosen, taken)
    if method == "probe_cam":
        _decompose(backbone, opened, probe, found, batch_size)
    else:
        _explain_all(backbone, opened, probe, found, explainer(backbone, probe, settings), settings)
    return found.joined(backbone, settings)


def _outputs(
    given: str | int | ArrayLike | None, images: ImageSet, probe: Probe, name: str
) -> IntArray | None:
    """Return (N,) places in the probe's classes; None where they are to be predicted."""
    if given is None:
        return None
    if isinstance(given, str):
        return named_outputs(given, images, probe, name)
    places = np.asarray(given)
    if places.ndim == 0:
        places = np.full(len(images), places)
    if places.shape != (len(images),) or places.dtype.kind not in "iu":
        raise InputError(
            f"{name} as {len(images)} whole numbers, one an image",
            f"{places.dtype} {places.shape}",
            f"Give places from 0 to {len(probe.classes) - 1}, a class name, or true",
        )
    if len(places) and not (places.min() >= 0 and places.max() < len(probe.classes)):
        raise InputError(
            f"{name} from 0 to {len(probe.classes) - 1}", f"{places.min()} to {places.max()}", "Count from 0"
        )
    return places.astype(np.int64)


def named_outputs(given: str, images: ImageSet, probe: Probe, name: str = "outputs") -> IntArray:
    """Return (N,) places in a probe's classes: one class for all images, or the ``true`` one of each.

    Raises:
        InputError: If there is no such class, or the probe does not know the classes of the images.
    """
    if given in probe.classes:
        return np.full(len(images), probe.classes.index(given), np.int64)
    if given != "true":
        raise InputError(f"{name} among {', '.join(probe.classes[:8])}, or true", repr(given), "Choose one")
    target = images.targets.get(probe.target)
    if target is None or target.kind != "class":
        raise InputError(
            f"images with the class target {probe.target!r}",
            f"those of {images.name}",
            "Give outputs as places",
        )
    missing = [one for one in target.classes if one not in probe.classes]
    if missing:
        raise InputError("classes that the probe knows", repr(missing[0]), "Give outputs as places")
    places = np.array([probe.classes.index(one) for one in target.classes], np.int64)
    return np.asarray(places[target.values])


class _Maps:
    """What is found, batch by batch."""

    def __init__(
        self, images: ImageSet, probe: Probe, outputs: IntArray | None, against: IntArray | None
    ) -> None:
        self._images, self._probe = images, probe
        self._given, self._against = outputs, against
        self._outputs: list[IntArray] = []
        self._maps: list[NDArray[np.float32]] = []
        self._values: dict[str, list[NDArray[np.float64]]] = {}

    def choose(self, rows: NDArray[np.intp], scores: NDArray[Any]) -> tuple[IntArray, IntArray | None]:
        """Return the outputs of a batch, predicted where none are given, and those taken off."""
        chosen = scores.argmax(1).astype(np.int64) if self._given is None else self._given[rows]
        return chosen, None if self._against is None else self._against[rows]

    def add(self, outputs: IntArray, maps: NDArray[Any], **values: NDArray[Any]) -> None:
        self._outputs.append(outputs)
        self._maps.append(maps.astype(np.float32))
        for name, value in values.items():
            self._values.setdefault(name, []).append(value.astype(np.float64))

    def joined(self, backbone: Backbone, settings: Settings) -> Attributions:
        told = {
            "model": backbone.name, "tap": self._probe.tap, "target": self._probe.target,
            "data": self._images.name, **_used(settings),
        }  # fmt: skip
        return Attributions(
            np.concatenate(self._maps),
            self._images.ids,
            np.concatenate(self._outputs),
            self._probe.classes,
            settings.method,
            backbone.preprocessing.size,
            self._against,
            {name: np.concatenate(parts) for name, parts in self._values.items()},
            told,
        )


def _used(settings: Settings) -> dict[str, Any]:
    """Return the settings that play a part in a method."""
    used: dict[str, Any] = {"layer": settings.layer} if settings.layer else {}
    if settings.method in BASED:
        used["baseline"] = settings.baseline
    if settings.method == "integrated_gradients":
        used["steps"] = settings.steps
    if settings.method == "occlusion":
        used["window"] = settings.window
    if settings.smooth:
        used |= {"smooth": settings.smooth, "noise": NOISE, "seed": settings.seed}
    return used


def _decompose(backbone: Backbone, images: ImageSet, probe: Probe, found: _Maps, batch_size: int) -> None:
    for rows in divide(np.arange(len(images)), batch_size):
        maps = probe_cam(backbone, images.select(rows), probe, batch_size=batch_size)
        scores = maps.mean((2, 3)) + probe.intercept
        outputs, against = found.choose(rows, scores)
        every = np.arange(len(rows))
        own, score = maps[every, outputs], scores[every, outputs]
        if against is not None:
            own, score = own - maps[every, against], score - scores[every, against]
        found.add(outputs, own, score=score)


def _explain_all(
    backbone: Backbone, images: ImageSet, probe: Probe, found: _Maps, explain: Explain, settings: Settings
) -> None:
    module = compose(backbone, probe)
    base_of = baseline_of(backbone, images, settings)
    batches = divide(np.arange(len(images)), settings.batch_size)
    for rows, pixels in pixel_batches(images, backbone.preprocessing, batches):
        batch = prepared(backbone, pixels)
        with torch.no_grad():
            scores = module(batch)
        outputs, against = found.choose(rows, scores.cpu().numpy())
        places = torch.from_numpy(outputs).to(batch.device)
        taken = None if against is None else torch.from_numpy(against).to(batch.device)
        base = base_of(batch)
        maps = explain(batch, places, taken, base)
        values = {"score": _pick(scores, places, taken)}
        if settings.method in COMPLETE and not settings.smooth:
            with torch.no_grad():
                values["difference"] = values["score"] - module(base, places, taken)
            values["delta"] = maps.sum((1, 2), dtype=torch.float64) - values["difference"].double()
        found.add(
            outputs, maps.cpu().numpy(), **{name: value.cpu().numpy() for name, value in values.items()}
        )


def _pick(scores: Tensor, outputs: Tensor, against: Tensor | None) -> Tensor:
    chosen = scores.gather(1, outputs[:, None])[:, 0]
    return chosen if against is None else chosen - scores.gather(1, against[:, None])[:, 0]
