"""How far apart two images are for a network: any backbone but the one under study, or LPIPS itself."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from probekit.backbones.checkpoint import find_state_dicts, open_checkpoint
from probekit.compute import one_thread
from probekit.errors import CheckpointCoverage, InputError, LayoutUnknown
from probekit.functional.arguments import FloatArray
from probekit.functional.image_quality import check_images
from probekit.progress import progress_bar
from probekit.reconstruction.likeness import Perceptual
from probekit.taps.facts import layer_facts
from probekit.taps.layers import resolve_taps
from probekit.taps.readout import MAPS, Layout
from probekit.taps.record import record
from probekit.taps.tap import Tap

if TYPE_CHECKING:
    from probekit.backbones.backbone import Backbone

STAGES = "stages"
# Trunks that the package lpips has learnt weights for.
TRUNKS = ("alex", "vgg", "squeeze")
# Smaller images leave a trunk's last maps without a place.
_LEAST_TRUNK = 32
_BATCH = 32
# What LPIPS adds to a length before it divides by it.
_TINY = 1e-10


def perceptual_distance(
    x: ArrayLike,
    y: ArrayLike,
    network: Backbone,
    *,
    scored: Iterable[Backbone],
    taps: str | Sequence[str] = STAGES,
    batch_size: int = _BATCH,
) -> FloatArray:
    """Return how far apart images are in the features of a further network; 0 for equal images.

    Images are resized to the network's input, whole, by antialiased bilinear interpolation (not through its
    preprocessing, which crops and rounds to 8 bits), and normalised by its mean and std. With φ_l the
    activation of layer l, every place of it scaled to length 1 over channels:

    d(x, y) = 1/L · Σ_l 1/(H_l·W_l) · Σ_hw ‖φ_l(x)_hw − φ_l(y)_hw‖²

    Source: Zhang, Isola, Efros, Shechtman and Wang, The Unreasonable Effectiveness of Deep Features as a
    Perceptual Metric (CVPR 2018), equation 1 with all w = 1, as a mean over layers instead of a sum.

    Args:
        x: (N, H, W, 3) in [0, 1].
        y: (N, H, W, 3) in [0, 1].
        network: The further network; only values of one network can be compared.
        scored: Backbones under study, of which it must be none: images made from the features of a network
            are near in those features, whatever they look like.
        taps: Where it is read, without readouts; see ``resolve_taps``.
        batch_size: Pairs of images a forward pass.

    Returns:
        (N,) distances without a unit, 0 … 4; at most 2 after a ReLU.

    Raises:
        InputError: If the network is one of ``scored``, or images have other shapes or values.
        NonFiniteFeatures: If a pixel is NaN or infinite.
        TapError: If a tap cannot be read, or which axis holds its channels is not known.

    Examples:
        >>> from probekit import Backbone, Preprocessing
        >>> net = Backbone.from_module(nn.Sequential(nn.Conv2d(3, 4, 3)), preprocessing=Preprocessing(8, 8))
        >>> grey = np.full((2, 8, 8, 3), 0.5)
        >>> perceptual_distance(grey, grey, net, scored=[], taps="0").tolist()
        [0.0, 0.0]
    """
    refuse_scored(network, {one.name: one.facts() for one in scored})
    a, b = check_images(x, y, 1)
    read = _raw_taps(network, taps)
    layouts = {tap: layer_facts(network).layout(tap) for tap in read}
    found = np.empty(len(a))
    with one_thread(), record(network, read) as run, progress_bar(len(a), "Comparing", "img") as bar:
        for rows in _batches(len(a), batch_size):
            both = np.concatenate([a[rows], b[rows]])
            activations = run(_as_input(both, network))
            parts = [_layer_distance(activations[tap], layouts[tap]) for tap in read]
            found[rows] = torch.stack(parts).mean(0).cpu().numpy()
            bar.update(len(found[rows]))
    return found


def refuse_scored(network: Backbone, scored: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse a network that is itself under study: by its weights, whatever it is called, or its checkpoint.

    Args:
        network: That is to judge.
        scored: Name → facts of the models under study, as of ``Backbone.facts``.

    Raises:
        InputError: If weights are equal, if both come from one file, or if one architecture was filled by one
            word, such as ``pretrained``.
    """
    own = _marks(network.facts())
    for name, facts in scored.items():
        pairs = zip(own, _marks(facts), strict=True)
        if any(one is not None and one == other for one, other in pairs):
            raise InputError(
                "a network to judge images by that is none of those under study",
                f"{network.name}, whose weights are those of {name}",
                "Name another one, such as tf_efficientnet_lite0:wheel, or random@0 of another architecture",
            )


def judge_by(network: Backbone) -> Perceptual:
    """Return the distance in a network's features as a score of made images; refusals are the caller's."""
    name = f"{network.name} ({network.arch}:{network.checkpoint.word}), {STAGES}"
    return Perceptual(name, lambda made, true: perceptual_distance(made, true, network, scored=[]))


def _marks(facts: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return what tells that weights are the same: of edited copies, too, where they came from."""
    word, digest = facts["checkpoint"], facts["checkpoint_digest"]
    by_name = (facts["arch"], word) if digest is None and word != "memory" else None
    return facts["weights"], digest, by_name


def lpips_distance(
    x: ArrayLike, y: ArrayLike, *, trunk: str | Path, net: str = "alex", batch_size: int = _BATCH
) -> FloatArray:
    """Return LPIPS of the package ``lpips``, with the trunk's weights from a file; nothing is downloaded.

    Source: Zhang, Isola, Efros, Shechtman and Wang, The Unreasonable Effectiveness of Deep Features as a
    Perceptual Metric (CVPR 2018), equation 1, with the learnt w of the package (version 0.1). Images are not
    resized.

    Args:
        x: (N, H, W, 3) in [0, 1], at least 32 pixels a side.
        y: (N, H, W, 3) in [0, 1].
        trunk: Checkpoint of torchvision's AlexNet, VGG-16 or SqueezeNet 1.1, trained on ImageNet; opened
            without running anything it names.
        net: ``alex``, ``vgg`` or ``squeeze``.
        batch_size: Pairs of images a forward pass.

    Returns:
        (N,) distances without a unit, from 0 for equal images.

    Raises:
        InputError: If the package is not installed, the net unknown, or images have other shapes or values.
        NonFiniteFeatures: If a pixel is NaN or infinite.
        CheckpointError: If the file is missing, damaged, or does not hold the trunk.
    """
    if net not in TRUNKS:
        raise InputError(f"a net among {', '.join(TRUNKS)}", repr(net), "Choose the one of the trunk's file")
    a, b = check_images(x, y, _LEAST_TRUNK)
    model = _build_lpips(net)
    _fill_trunk(model.net, Path(trunk), net)
    found = np.empty(len(a))
    with one_thread(), torch.inference_mode(), progress_bar(len(a), "Comparing", "img") as bar:
        for rows in _batches(len(a), batch_size):
            pair = [_channels_first(one[rows]) for one in (a, b)]
            found[rows] = model(*pair, normalize=True).flatten().numpy()
            bar.update(len(found[rows]))
    return found


def _build_lpips(net: str) -> Any:  # noqa: ANN401 - a class of an optional package
    try:
        package = importlib.import_module("lpips")
    except ImportError as error:
        raise InputError(
            "the package lpips", "an installation without it", "pip install 'probekit-vision[lpips]'"
        ) from error
    with warnings.catch_warnings():
        # On how the package asks torchvision for a trunk without weights.
        warnings.simplefilter("ignore", UserWarning)
        return package.LPIPS(net=net, pnet_rand=True, verbose=False)


def _fill_trunk(module: nn.Module, path: Path, net: str) -> None:
    wanted = module.state_dict()
    # slice2.4.weight is features.4.weight in torchvision.
    names = {key: f"features.{key.partition('.')[2]}" for key in wanted}
    known = [one.tensors for one in find_state_dicts(open_checkpoint(path))]
    for entries in known:
        filled = {key: entries[name] for key, name in names.items() if name in entries}
        if all(key in filled and filled[key].shape == wanted[key].shape for key in wanted):
            module.load_state_dict(filled)
            return
    raise CheckpointCoverage(
        f"the trunk of {net}, with entries such as {next(iter(names.values()))} as in torchvision",
        f"{path.name}, which does not hold all of them in their shapes",
        f"Give torchvision's weights of that network, or another net among {', '.join(TRUNKS)}",
    )


def _raw_taps(network: Backbone, taps: str | Sequence[str]) -> list[Tap]:
    """Return taps of whole activations."""
    whole = {replace(tap, readout="raw"): None for tap in resolve_taps(network, taps)}
    return resolve_taps(network, list(whole))


def _as_input(images: FloatArray, network: Backbone) -> Tensor:
    """Return images (N, H, W, 3) as the network takes them."""
    facts = network.preprocessing
    values = _channels_first(images).to(network.device)
    if values.shape[2:] != (facts.size, facts.size):
        wanted = (facts.size, facts.size)
        values = nn.functional.interpolate(values, wanted, mode="bilinear", antialias=True)
    mean, std = (torch.tensor(one, device=values.device).view(3, 1, 1) for one in (facts.mean, facts.std))
    return (values - mean) / std


def _channels_first(images: FloatArray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32))


def _layer_distance(values: Tensor, layout: Layout) -> Tensor:
    """Return (N,) distances at one layer from the activations (2N, …) of x, then of y."""
    places = _places(values, layout).double()
    # φ / (‖φ‖ + ε)
    unit = places / (places.norm(dim=2, keepdim=True) + _TINY)
    first, second = unit.chunk(2)
    distances: Tensor = (first - second).square().sum(2).mean(1)
    return distances


def _places(values: Tensor, layout: Layout) -> Tensor:
    """Return (N, places, D) of a raw reading; tokens that are no patches are left out.

    Raises:
        LayoutUnknown: If which axis holds the channels is not known.
    """
    if layout.axes in MAPS:
        # Raw maps have their channels first, whatever they had in the network.
        return values.flatten(2).transpose(1, 2)
    if layout.axes == "NLC":
        return values[:, layout.prefix_tokens or 0 :]
    if layout.axes == "NC":
        return values[:, None]
    raise LayoutUnknown("maps, tokens or vectors", f"axes {layout.axes}", "Choose other taps of the network")


def _batches(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, start + size)
