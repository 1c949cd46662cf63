"""The methods behind ``attribute_images``, each opened as one function from images to maps."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from probekit.attribution.activations import with_rules
from probekit.attribution.attributions import METHODS
from probekit.attribution.composed import ProbedBackbone, compose, resolve_layer
from probekit.attribution.linear import decomposition
from probekit.errors import InputError, TapError
from probekit.features.streaming import divide, pixel_batches
from probekit.seeds import named_seed
from probekit.taps.record import record

if TYPE_CHECKING:
    from probekit.backbones.backbone import Backbone
    from probekit.data.images import ImageSet
    from probekit.results.fitted import Probe

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
