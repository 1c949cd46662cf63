"""Maps of what a linear probe reads in each image, by exact decomposition, gradients or perturbation."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from probekit.attribution.activations import with_rules
from probekit.attribution.attributions import Attributions
from probekit.attribution.composed import ProbedBackbone, compose, resolve_layer
from probekit.attribution.linear import decomposition, probe_cam
from probekit.data.readers import open_images
from probekit.errors import InputError, TapError
from probekit.features.streaming import divide, pixel_batches, prepared
from probekit.seeds import named_seed
from probekit.taps.record import record

if TYPE_CHECKING:
    from probekit.backbones.backbone import Backbone
    from probekit.data.images import ImageSet
    from probekit.results.fitted import Probe

METHODS = (
    "probe_cam", "grad_cam", "integrated_gradients", "deep_lift", "guided_backprop", "saliency", "occlusion",
)  # fmt: skip
BASELINES = ("mean", "blur")
SMOOTHED = ("saliency", "integrated_gradients", "guided_backprop", "deep_lift")
# Methods that compare with a baseline.
BASED = ("integrated_gradients", "deep_lift", "occlusion")
# Methods whose maps add up to a difference of scores.
COMPLETE = ("integrated_gradients", "deep_lift")
# Gradients keep all activations of a batch: four times fewer images than in a plain pass.
GRADIENT_BATCH = 16
STEPS = 64
# Standard deviation of SmoothGrad's noise, as a share of the range of pixel values (section 4.1: 10–20 %).
NOISE = 0.15
# Width of the blur, as a share of the input's side: objects lose their parts, the image keeps its colours.
BLUR = 0.1

IntArray = NDArray[np.int64]
# (n, 3, H, W) images, (n,) outputs, (n,) outputs taken off, (n, 3, H, W) baselines → (n, h, w) maps
Explain = Callable[[Tensor, Tensor, "Tensor | None", Tensor], Tensor]


@dataclass(frozen=True)
class Settings:
    """What decides a map beside images, probe and output; see ``attribute_images``."""

    method: str = "probe_cam"
    layer: str | None = None
    baseline: str = "mean"
    steps: int = STEPS
    window: int | None = None
    smooth: int = 0
    seed: int = 0
    batch_size: int = GRADIENT_BATCH

    def __post_init__(self) -> None:
        if self.method == "lrp":
            raise InputError(
                f"a method among {', '.join(METHODS)}",
                "lrp: captum has no relevance rule for Identity, which timm's networks are full of, and its "
                "other rules are chosen for one architecture at a time",
                "deep_lift is its nearest relative; integrated_gradients works on any network",
            )
        if self.method not in METHODS:
            raise InputError(f"a method among {', '.join(METHODS)}", repr(self.method), "Choose one")
        if self.baseline not in BASELINES:
            raise InputError(f"a baseline among {', '.join(BASELINES)}", repr(self.baseline), "Choose one")
        if self.layer is not None and self.method != "grad_cam":
            raise InputError("layer= with grad_cam only", self.method, "Leave it out")
        if self.smooth and self.method not in SMOOTHED:
            raise InputError(f"smooth= with {', '.join(SMOOTHED)}", self.method, "Leave it out")
        least = {"steps": 1, "smooth": 0, "batch_size": 1} | ({"window": 1} if self.window else {})
        for name, low in least.items():
            if getattr(self, name) < low:
                raise InputError(f"{name} of at least {low}", str(getattr(self, name)), "Raise it")


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


def baseline_of(backbone: Backbone, images: ImageSet, settings: Settings) -> Callable[[Tensor], Tensor]:
    """Return what gives each batch its baselines; the batch itself where a method has none."""
    if settings.method not in BASED:
        return lambda batch: batch
    if settings.baseline == "blur":
        return blurred
    mean = mean_image(backbone, images)
    return lambda batch: mean.expand_as(batch)


def mean_image(backbone: Backbone, images: ImageSet) -> Tensor:
    """Return the (3, size, size) mean of prepared images."""
    size = backbone.preprocessing.size
    total = torch.zeros(size, size, 3, dtype=torch.float64)
    batches = divide(np.arange(len(images)), GRADIENT_BATCH)
    for _, pixels in pixel_batches(images, backbone.preprocessing, batches):
        # Sums of whole numbers below 2⁵³ are exact, so that batches do not matter.
        total += torch.from_numpy(pixels.sum(0, dtype=np.float64))
    mean, std = (
        torch.tensor(triple, dtype=torch.float64)
        for triple in (backbone.preprocessing.mean, backbone.preprocessing.std)
    )
    image = (total / (255 * len(images)) - mean) / std
    return image.permute(2, 0, 1).float().to(backbone.device)


def blurred(batch: Tensor) -> Tensor:
    """Return images blurred by a Gaussian of a tenth of their side."""
    from torchvision.transforms.functional import gaussian_blur

    size = batch.shape[-1]
    sigma = max(BLUR * size, 0.5)
    # The mirrored border must lie within the image.
    radius = min(int(np.ceil(3 * sigma)), size - 1)
    smooth: Tensor = gaussian_blur(batch, [2 * radius + 1] * 2, [sigma] * 2)
    return smooth


def explainer(backbone: Backbone, probe: Probe, settings: Settings) -> Explain:
    """Open a method that needs the network: from images, outputs and baselines to maps.

    Returns:
        A function from (n, 3, H, W) prepared images, (n,) outputs, (n,) outputs taken off or None, and
        (n, 3, H, W) baselines to (n, h, w) maps on the same device.

    Raises:
        InputError: If a step of the network has no rule.
        TapError: If the layer lies behind the tap or has no places.
    """
    opened = _OPENED[settings.method](backbone, probe, settings)
    return (
        opened
        if settings.method in ("probe_cam", "occlusion")
        else _reached(compose(backbone, probe), opened)
    )


def _reached(module: ProbedBackbone, explain: Explain) -> Explain:
    """Refuse, before the first map, a tap from which no gradient comes back."""
    asked = False

    def checked(images: Tensor, outputs: Tensor, against: Tensor | None, base: Tensor) -> Tensor:
        nonlocal asked
        if not asked:
            _check_gradient(module, images, outputs)
            asked = True
        return explain(images, outputs, against, base)

    return checked


def _check_gradient(module: ProbedBackbone, images: Tensor, outputs: Tensor) -> None:
    given = _leaf(images)
    with torch.enable_grad():
        scores = module(given, outputs)
    found = None
    if scores.requires_grad:
        (found,) = torch.autograd.grad(scores.sum(), given, allow_unused=True)
    if found is None or (module.weighs(outputs) and not found.any()):
        raise TapError(
            f"gradients from {module.tap} to the image",
            "none: what is read there does not follow small changes of the image, or was detached on the way",
            "Use occlusion, which needs no gradients, or another tap",
        )


def _open_probe_cam(backbone: Backbone, probe: Probe, settings: Settings) -> Explain:
    del settings
    raw, decompose = decomposition(backbone, probe)

    def explain(images: Tensor, outputs: Tensor, against: Tensor | None, base: Tensor) -> Tensor:
        del base
        with record(backbone, [raw]) as run:
            read = run(images)[raw].float().cpu().numpy()
        maps = torch.from_numpy(decompose(read)).float().to(images.device)
        every = torch.arange(len(images), device=images.device)
        return maps[every, outputs] - (0 if against is None else maps[every, against])

    return explain


def _open_saliency(backbone: Backbone, probe: Probe, settings: Settings) -> Explain:
    from captum.attr import Saliency

    method, noise = Saliency(compose(backbone, probe)), _noise(backbone)

    def explain(images: Tensor, outputs: Tensor, against: Tensor | None, base: Tensor) -> Tensor:
        del base
        found = _attribute(method, settings, noise, images, None, _arguments(outputs, against))
        return found.amax(1)

    return explain


def _open_integrated(backbone: Backbone, probe: Probe, settings: Settings) -> Explain:
    from captum.attr import IntegratedGradients

    method, noise = IntegratedGradients(compose(backbone, probe)), _noise(backbone)

    def explain(images: Tensor, outputs: Tensor, against: Tensor | None, base: Tensor) -> Tensor:
        most = max(settings.batch_size, len(images))
        options = {"n_steps": settings.steps, "internal_batch_size": most}
        return _attribute(method, settings, noise, images, base, _arguments(outputs, against), **options).sum(
            1
        )

    return explain


def _open_guided(backbone: Backbone, probe: Probe, settings: Settings) -> Explain:
    from captum.attr import GuidedBackprop

    copy = with_rules(backbone, compose(backbone, probe).tap, settings.method)
    method, noise = GuidedBackprop(compose(copy, probe)), _noise(backbone)

    def explain(images: Tensor, outputs: Tensor, against: Tensor | None, base: Tensor) -> Tensor:
        del base
        return _attribute(method, settings, noise, images, None, _arguments(outputs, against)).sum(1)

    return explain


def _open_deep_lift(backbone: Backbone, probe: Probe, settings: Settings) -> Explain:
    from captum.attr import DeepLift

    copy = with_rules(backbone, compose(backbone, probe).tap, settings.method)
    method, noise = DeepLift(compose(copy, probe)), _noise(backbone)

    def explain(images: Tensor, outputs: Tensor, against: Tensor | None, base: Tensor) -> Tensor:
        return _attribute(method, settings, noise, images, base, _arguments(outputs, against)).sum(1)

    return explain


def _attribute(
    method: Any,  # noqa: ANN401 - captum has no types
    settings: Settings,
    noise: float,
    images: Tensor,
    base: Tensor | None,
    arguments: tuple[Tensor, ...],
    **options: Any,  # noqa: ANN401 - those of the method
) -> Tensor:
    """Return (n, 3, H, W) of a method of captum's, averaged over noisy copies where that is asked for."""
    from captum.attr import NoiseTunnel

    # Hooks of captum's are put on a copy of ours, and are gone afterwards.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Setting (forward, )?backward hooks", UserWarning)
        if not settings.smooth:
            given = {} if base is None else {"baselines": base.contiguous()}
            found: Tensor = method.attribute(
                _leaf(images), additional_forward_args=arguments, **given, **options
            )
            return found.detach()
        tunnel = NoiseTunnel(method)
        return torch.cat(
            [
                _tunnelled(
                    tunnel,
                    settings,
                    noise,
                    images[own],
                    None if base is None else base[own],
                    tuple(one[own] for one in arguments),
                    **options,
                )
                for own in (slice(i, i + 1) for i in range(len(images)))
            ]
        )


def _tunnelled(
    tunnel: Any,  # noqa: ANN401
    settings: Settings,
    noise: float,
    image: Tensor,
    base: Tensor | None,
    arguments: tuple[Tensor, ...],
    **options: Any,  # noqa: ANN401
) -> Tensor:
    """Average over noisy copies of one image: image by image, with the same noise, batches do not matter."""
    given = {} if base is None else {"baselines": base.contiguous()}
    with torch.random.fork_rng():
        torch.manual_seed(named_seed("smooth", settings.seed))
        found: Tensor = tunnel.attribute(
            _leaf(image),
            nt_type="smoothgrad",
            nt_samples=settings.smooth,
            nt_samples_batch_size=min(settings.batch_size, settings.smooth),
            stdevs=noise,
            additional_forward_args=arguments,
            **given,
            **options,
        )
    return found.detach()


def _open_occlusion(backbone: Backbone, probe: Probe, settings: Settings) -> Explain:
    from captum.attr import Occlusion

    size = backbone.preprocessing.size
    window = settings.window or max(size // 8, 1)
    if window > size:
        raise InputError(f"a window of at most {size} px, the side of the input", f"{window}", "Narrow it")
    method, stride = Occlusion(compose(backbone, probe)), max(window // 2, 1)

    def explain(images: Tensor, outputs: Tensor, against: Tensor | None, base: Tensor) -> Tensor:
        found: Tensor = method.attribute(
            images,
            (3, window, window),
            (3, stride, stride),
            base.contiguous(),
            additional_forward_args=_arguments(outputs, against),
            perturbations_per_eval=max(settings.batch_size // len(images), 1),
        )
        # The channels of a square are hidden together: each holds the whole fall of the score.
        return found[:, 0]

    return explain


def _open_grad_cam(backbone: Backbone, probe: Probe, settings: Settings) -> Explain:
    from captum.attr import LayerGradCam

    tap = compose(backbone, probe).tap
    layer = resolve_layer(
        backbone, replace(tap, readout="raw") if settings.layer is None else settings.layer, tap
    )
    module = ProbedBackbone(backbone, probe, layer=layer)
    method = LayerGradCam(module, module.places)

    is_checked = False

    def explain(images: Tensor, outputs: Tensor, against: Tensor | None, base: Tensor) -> Tensor:
        nonlocal is_checked
        del base
        if not is_checked:
            module.place_gradients(images, outputs)
            is_checked = True
        found: Tensor = method.attribute(_leaf(images), additional_forward_args=_arguments(outputs, against))
        return found.detach()[:, 0].to(images.dtype)

    return explain


_OPENED: dict[str, Callable[[Backbone, Probe, Settings], Explain]] = {
    "probe_cam": _open_probe_cam,
    "saliency": _open_saliency,
    "integrated_gradients": _open_integrated,
    "occlusion": _open_occlusion,
    "grad_cam": _open_grad_cam,
    "guided_backprop": _open_guided,
    "deep_lift": _open_deep_lift,
}


def _noise(backbone: Backbone) -> float:
    """Return the standard deviation of SmoothGrad's noise, in units of prepared images."""
    # Pixels in [0, 1], divided by each channel's std, have ranges 1/std.
    return NOISE * float(np.mean(1 / np.asarray(backbone.preprocessing.std)))


def _leaf(images: Tensor) -> Tensor:
    return images.detach().clone().requires_grad_()


def _arguments(outputs: Tensor, against: Tensor | None) -> tuple[Tensor, ...]:
    return (outputs,) if against is None else (outputs, against)
