"""Building a body by name: timm's, those timm lacks, and the user's own function."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torch.nn import functional as F

from probekit.backbones.resnets import WideResNet, build_narrow, build_small_stem
from probekit.backbones.spec import function_parts
from probekit.data.transforms import Preprocessing
from probekit.errors import InputError, near_names
from probekit.files import digest_file
from probekit.seeds import named_seed

log = logging.getLogger(__name__)

CIFAR_PREPROCESSING = Preprocessing(size=32, resize=32)
# Where classifiers commonly stand, for modules that do not say it themselves.
CLASSIFIERS = ("fc", "classifier", "head", "heads", "linear", "last_linear", "head.fc", "heads.head")
FILTERS = ("checkpoint_filter_fn", "checkpoint_filter_fn_classifier", "_filter_fn", "pretrained_filter_fn")


class CifarBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut without parameters (option A).

    Where the block halves the resolution, the shortcut takes every second position and pads the new channels
    with zeros, half in front and half behind. Source: He et al., *Deep Residual Learning for Image
    Recognition* (CVPR 2016), section 4.2.
    """

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.stride = stride
        self.padding = (channels - channels_in) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, D_in, H, W) to (N, D, H / stride, W / stride)."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride > 1 or self.padding:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        activation: torch.Tensor = self.relu2(out + x)
        return activation


class CifarResNet(nn.Module):
    """The ResNets for 32 px images, of 6n + 2 layers in three stages of 16, 32 and 64 channels.

    Names of parameters are those of the widely shared CIFAR-10 checkpoints. Source: He et al. (CVPR 2016),
    section 4.2.

    Args:
        depth: Number of layers, 6n + 2.
        num_classes: Outputs of the classifier.

    Examples:
        >>> CifarResNet(20)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, depth: int, num_classes: int = 10) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.num_classes = num_classes
        self.num_features = 64
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = self._stage(16, 16, blocks, 1)
        self.layer2 = self._stage(16, 32, blocks, 2)
        self.layer3 = self._stage(32, 64, blocks, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(channels_in: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
        first = CifarBlock(channels_in, channels, stride)
        return nn.Sequential(first, *(CifarBlock(channels, channels, 1) for _ in range(blocks - 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, 3, H, W) images to (N, C) logits."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: torch.Tensor = self.linear(self.avgpool(x).flatten(1))
        return logits


# Our architectures: name → what builds it with a number of classes.
CIFAR: dict[str, Callable[..., nn.Module]] = {
    **{f"cifar_resnet{depth}": partial(CifarResNet, depth) for depth in (20, 32, 44, 56, 110)},
    **{f"resnet{depth}_cifar": partial(build_small_stem, depth, 1) for depth in (18, 34, 50, 101)},
    **{f"resnet{depth}_cifar_pad2": partial(build_small_stem, depth, 2) for depth in (18, 34, 50, 101)},
}
WIDE: dict[str, Callable[..., nn.Module]] = {
    f"resnet{depth}x{factor}": partial(WideResNet, depth, factor)
    for depth in (50, 101, 152, 200)
    for factor in (2, 4)
}
# Small enough to be trained on a processor: for 48 px (first stride 2) and for 32 px.
NARROW: dict[str, Callable[..., nn.Module]] = {
    "resnet10_w16": partial(build_narrow, 10, 16, 2),
    "resnet18_w16_cifar": partial(build_narrow, 18, 16, 1),
}
OURS = {**CIFAR, **WIDE, **NARROW}
# Input of those that are not built for ImageNet's.
_HALVES = (0.5, 0.5, 0.5)
SMALL_INPUTS: dict[str, Preprocessing] = {
    **dict.fromkeys(CIFAR, CIFAR_PREPROCESSING),
    "resnet10_w16": Preprocessing(48, 48, _HALVES, _HALVES),
    "resnet18_w16_cifar": Preprocessing(32, 32, _HALVES, _HALVES),
}
# timm's architectures with one setting changed that no weight shows: name → timm's name, settings.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    # MoCo v3's ViT-S: 12 heads where timm's has 6. Source: Chen, Xie & He (ICCV 2021), table 1.
    "vit_small_patch16_224_heads12": ("vit_small_patch16_224", {"num_heads": 12}),
    # TensorFlow pads at the end where torch pads on both sides.
    "mobilenetv2_100_same": ("mobilenetv2_100", {"pad_type": "same"}),
}


@contextmanager
def seeded(name: str, *keys: int | str) -> Iterator[None]:
    """Draw torch's CPU random numbers from a named seed, then go on where the global stream stood."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(named_seed(name, *keys))
        yield


def build(arch: str, n_classes: int | None = None, size: int | None = None) -> nn.Module:
    """Build an architecture with freshly drawn weights.

    Args:
        arch: A timm name, one of ours, ``file.py:function`` or ``package.module.function``.
        n_classes: Outputs of the classifier; None takes the architecture's own number.
        size: Side of the input in pixels, for architectures that are built for one size; None takes theirs.

    Raises:
        InputError: If the name is unknown, the size impossible, or the function returns no module.
    """
    if arch in OURS:
        return OURS[arch](**({} if n_classes is None else {"num_classes": n_classes}))
    if is_named(arch):
        return _build_timm(arch, n_classes, size)
    parts = function_parts(arch)
    if parts is None:
        known = [*OURS, *VARIANTS, *timm.list_models()]
        raise InputError(
            "an architecture of timm, of probekit, or file.py:function",
            repr(arch),
            f"The nearest are {near_names(arch, known)}",
        )
    module = _build_own(*parts)
    if n_classes is not None:
        for path in classifier_paths(module)[:1]:
            resize_classifier(module, path, n_classes)
    return module


def is_named(arch: str) -> bool:
    """Whether an architecture is known by name: timm's, with or without a tag, or one of ours.

    Examples:
        >>> [is_named(arch) for arch in ("resnet50.a1_in1k", "resnet50x2", "file.py:make")]
        [True, True, False]
    """
    return arch in OURS or arch in VARIANTS or bool(timm.is_model(arch.partition(".")[0]))


def timm_settings(arch: str) -> dict[str, Any] | None:
    """Return timm's own facts on an architecture's input and classifier, read without building it.

    None for an architecture that is not timm's.
    """
    if arch in OURS or not is_named(arch):
        return None
    found = timm.get_pretrained_cfg(VARIANTS[arch][0] if arch in VARIANTS else arch)
    return dict(vars(found)) if found is not None else {}


def classifier_paths(module: nn.Module) -> tuple[str, ...]:
    """Return the module paths of the classifier's linear layers, the main one first; empty without any.

    timm says where it stands; elsewhere the usual names are tried, and of a container its last linear layer
    is taken.

    Examples:
        >>> classifier_paths(CifarResNet(20))
        ('linear',)
    """
    facts = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None) or {}
    stated = facts.get("classifier") if isinstance(facts, dict) else None
    candidates = (stated,) if isinstance(stated, str) else tuple(stated or CLASSIFIERS)
    paths = {path: module_at(module, path) for path in candidates}
    found = [linear for path, one in paths.items() if one is not None for linear in _last_linear(path, one)]
    return tuple(dict.fromkeys(found)) if stated else tuple(found[:1])


def module_at(module: nn.Module, path: str) -> nn.Module | None:
    """Return the submodule at a path, None where there is none."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def resize_classifier(module: nn.Module, path: str, n_classes: int) -> None:
    """Replace a linear classifier, in place, by one with another number of classes, all zero."""
    old = module.get_submodule(path)
    has_bias = getattr(old, "bias", None) is not None
    new: nn.Module
    if isinstance(old, nn.Conv2d):
        new = nn.Conv2d(old.in_channels, n_classes, old.kernel_size, bias=has_bias)  # type: ignore[arg-type]
    elif isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, n_classes, bias=has_bias)
    else:
        raise InputError(
            "a linear classifier", f"{type(old).__name__} at {path}", "Build it with that number"
        )
    for parameter in new.parameters():
        nn.init.zeros_(parameter)
    module.set_submodule(path, new)
    if isinstance(getattr(module, "num_classes", None), int):
        setattr(module, "num_classes", n_classes)  # noqa: B010 - not declared on nn.Module


def _last_linear(path: str, module: nn.Module) -> list[str]:
    linears = [
        f"{path}.{name}" if name else path
        for name, one in module.named_modules()
        if isinstance(one, nn.Linear) or (isinstance(one, nn.Conv2d) and one.kernel_size == (1, 1))
    ]
    return linears[-1:]


def _build_timm(arch: str, n_classes: int | None, size: int | None) -> nn.Module:
    settings: dict[str, Any] = {} if n_classes is None else {"num_classes": n_classes}
    facts = timm_settings(arch) or {}
    if size is not None and facts.get("fixed_input_size") and size != facts.get("input_size", (3, 224))[1]:
        settings["img_size"] = size
    name, changes = VARIANTS.get(arch, (arch, {}))
    try:
        module: nn.Module = timm.create_model(name, pretrained=False, **settings, **changes)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        came = f"{arch} at {size} px" if "img_size" in settings else repr(arch)
        raise InputError(
            "an architecture that timm can build", f"{came} ({error})", "Change the name or `size=`"
        ) from error
    patch = getattr(getattr(module, "patch_embed", None), "patch_size", None)
    if (
        "img_size" in settings
        and isinstance(patch, tuple)
        and any(settings["img_size"] % side for side in patch)
    ):
        raise InputError(f"a size that patches of {patch[0]} px fill", f"{size} px", "Change `size=`")
    return module


def _build_own(place: str, function: str) -> nn.Module:
    announce(place, function)
    source = _run_file(Path(place).expanduser()) if place.endswith(".py") else _import(place)
    made = getattr(source, function, None)
    if not callable(made):
        public = [
            name for name, value in vars(source).items() if callable(value) and not name.startswith("_")
        ]
        raise InputError(
            f"a function {function} in {place}",
            "no such name" if made is None else type(made).__name__,
            f"There are {near_names(function, public)}" if public else "Define it",
        )
    module = made()
    if not isinstance(module, nn.Module):
        raise InputError(
            f"an nn.Module from {function} of {place}", type(module).__name__, "Return the module itself"
        )
    return module


@cache
def announce(place: str, function: str) -> None:
    """Say once in a process whose code is run; random draws build an architecture again and again."""
    log.warning("Building the backbone runs your code: %s of %s", function, place)


def _run_file(path: Path) -> Any:  # noqa: ANN401 - a module
    if not path.is_file():
        raise InputError("a Python file", f"no file at {path}", "Check the path before `:function`")
    name = f"probekit_user_{digest_file(path)[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise InputError("a Python file", str(path), "Give it a name that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # classes defined there must be found again when they are copied or pickled
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import(place: str) -> Any:  # noqa: ANN401 - a module
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not place.startswith(error.name):
            raise
        raise InputError(
            "an installed module", repr(place), "Check its name, or write file.py:function"
        ) from error


def timm_filter(arch: str) -> Any:  # noqa: ANN401 - a function of timm's, or None
    """Return timm's function that renames an architecture's checkpoints, None where there is none."""
    if timm_settings(arch) is None:
        return None
    name = VARIANTS[arch][0] if arch in VARIANTS else arch
    source = inspect.getmodule(timm.model_entrypoint(name.partition(".")[0]))
    found = [getattr(source, name) for name in FILTERS if hasattr(source, name)]
    return found[0] if found else None


def draw_initial(arch: str, seed: int, size: int) -> nn.Module:
    """Return the network that every pretraining arm of a seed starts from.

    Raises:
        InputError: If the architecture is unknown.
    """
    with seeded("pretraining init", arch, seed):
        return build(arch, size=size)
