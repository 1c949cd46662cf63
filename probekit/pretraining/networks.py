"""What arms train: a backbone with the head of its objective, and batch norm in groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from probekit.backbones.architectures import classifier_paths, draw_initial, seeded
from probekit.backbones.backbone import Backbone
from probekit.data.transforms import Preprocessing
from probekit.errors import InputError
from probekit.taps.layers import resolve_taps, tap_facts

# Length of an embedding that is contrasted.
EMBEDDING = 128


def draw_network(arch: str, seed: int, size: int) -> tuple[nn.Module, str]:
    """Return the network of step 0 and the path of its classifier; the same for every arm of a seed.

    Raises:
        InputError: If the architecture is unknown, or has no classifier.
    """
    module = draw_initial(arch, seed, size)
    paths = classifier_paths(module)
    if not paths:
        raise InputError(f"a classifier in {arch}", "none", "Choose an architecture that ends in one")
    return module, paths[0]


def put_head(module: nn.Module, path: str, kind: str, outputs: int, seed: int) -> nn.Module:
    """Put the head of an objective in the place of the classifier, in place, and return it.

    Args:
        module: The network.
        path: Of its classifier.
        kind: ``linear``; ``mlp``, linear–ReLU–linear as in MoCo v2; ``projector``, the same with batch norm
            and a linear layer behind, as in Wang et al., Revisiting the Transferability of Supervised
            Pretraining: an MLP Perspective (CVPR 2022), section 4.1; ``none``, the features themselves.
        outputs: Length of what comes out.
        seed: Fixes what is drawn.
    """
    width = int(module.get_submodule(path).get_parameter("weight").shape[1])
    with seeded("pretraining head", kind, width, outputs, seed):
        head: nn.Module = _HEADS[kind](width, outputs)
    module.set_submodule(path, head)
    return head


_HEADS: Mapping[str, Callable[[int, int], nn.Module]] = {
    "none": lambda _width, _outputs: nn.Identity(),
    "linear": nn.Linear,
    "mlp": lambda width, outputs: nn.Sequential(
        nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
    ),
    "projector": lambda width, outputs: nn.Sequential(
        nn.Linear(width, width),
        nn.BatchNorm1d(width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.Linear(width, outputs),
    ),
}


def last_map(module: nn.Module, size: int) -> tuple[str, int, int]:
    """Return path, channels and side of the last stage of a network that has more than one place.

    Raises:
        InputError: If there is none.
    """
    backbone = Backbone.from_module(module, preprocessing=Preprocessing(size, size))
    for tap in reversed(resolve_taps(backbone, "stages")):
        facts = tap_facts(backbone, tap)
        if facts["layout"] == "NCHW" and min(facts["shape"][1:]) > 1:
            return tap.path, facts["shape"][0], facts["shape"][1]
    raise InputError("a network with maps", "none in it", "The autoencoder needs a convolutional network")


class ImageDecoder(nn.Module):
    """From a map of features to an image: nearest upsampling and 3×3 convolutions, halving the channels.

    Args:
        channels: Of the map.
        stride: Pixels of the image a step of the map, a power of 2.
    """

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = channels
        for _ in range(stride.bit_length() - 1):
            narrower = max(16, width // 2)
            layers += [
                nn.Upsample(scale_factor=2),
                nn.Conv2d(width, narrower, 3, padding=1, bias=False),
                nn.BatchNorm2d(narrower),
                nn.ReLU(),
            ]
            width = narrower
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, maps: Tensor) -> Tensor:
        """Map (N, D, H, W) to (N, 3, H · stride, W · stride)."""
        made: Tensor = self.layers(maps)
        return made


class _Grouped:
    """Batch norm that takes the statistics of each of G consecutive parts of a batch by themselves.

    With G parts, one process computes what G processes would, each with its own part. Running statistics
    move by the mean over the parts.
    """

    groups: int = 1

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (N, D, …)."""
        layer: Any = self
        if not layer.training or self.groups == 1:
            own: Tensor = super().forward(x)  # type: ignore[misc]
            return own
        mean, variance = layer.running_mean, layer.running_var
        means, variances = mean.repeat(self.groups, 1), variance.repeat(self.groups, 1)
        parts = [
            F.batch_norm(part, m, v, layer.weight, layer.bias, True, layer.momentum, layer.eps)
            for part, m, v in zip(x.chunk(self.groups), means, variances, strict=True)
        ]
        with torch.no_grad():
            mean.copy_(means.mean(dim=0))
            variance.copy_(variances.mean(dim=0))
            layer.num_batches_tracked.add_(1)
        return torch.cat(parts)


class GroupedBatchNorm1d(_Grouped, nn.BatchNorm1d):
    """``BatchNorm1d`` by parts of the batch."""


class GroupedBatchNorm2d(_Grouped, nn.BatchNorm2d):
    """``BatchNorm2d`` by parts of the batch."""


_KINDS: Mapping[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: GroupedBatchNorm1d,
    nn.BatchNorm2d: GroupedBatchNorm2d,
}


def group_batch_norm(module: nn.Module, groups: int) -> None:
    """Have every batch norm take its statistics from each of G parts of the batch, in place.

    Names and values of parameters stay what they are, so that weights fit the plain network.
    """
    for one in module.modules():
        kind = _KINDS.get(type(one))
        if kind is not None and groups > 1:
            one.__class__ = kind
            one.groups = groups  # type: ignore[assignment]
