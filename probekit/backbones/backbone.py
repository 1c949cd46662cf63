"""The Backbone: a frozen pretrained body and the facts needed to read it rightly."""

from __future__ import annotations

import copy
import hashlib
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from probekit.backbones.architectures import classifier_paths
from probekit.backbones.checkpoint import Checkpoint
from probekit.backbones.preprocessing import ASSUMED, read_settings
from probekit.data.transforms import Preprocessing
from probekit.errors import InputError, near_names

# Learnt tokens that stand before the patches, by the names networks give them.
CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")
EXTRA_TOKENS = ("register_tokens", "reg_token", "distillation_token", "dist_token")
# Blocks at the very end that bring in the class token (CaiT, XCiT): all blocks before have patches alone.
LATE_CLASS_TOKEN = ("blocks_token_only", "cls_attn_blocks")
# Libraries whose code is pinned by their version; any other code is told apart by its text.
VERSIONED = ("torch", "torchvision", "timm", "transformers", "probekit", "builtins")


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen body, in eval mode and without gradients, with everything known of it.

    It is bit-equal before and after any analysis; editing returns a copy.

    Attributes:
        name: Its name in tables.
        arch: Architecture, in the words of the model grammar; the class's name for a module made in Python.
        module: The network, classifier included where there is one.
        preprocessing: How images become its input.
        checkpoint: Where its weights come from, and the proof that they fill it.
        classifier: Path of the module that turns features into class scores; None if there is none.
        has_head: Whether the classifier's weights came with the checkpoint.
        channels_last: Whether its maps are (N, H, W, C), as in Swin.
        prefix_tokens: Leading tokens that are not patches; None if it has no tokens.
        has_class_token: Whether the first token is a class token.
        blocks: Module paths of its blocks if the user gave them; None leaves them to the rule.
        levels: Block path → ``low``, ``mid`` or ``high`` if the user gave it; None leaves it to the rule.
        spec: The words it was loaded with; None for an object made or edited in Python.
        cache: Facts recorded once, such as the layer table.
    """

    name: str
    arch: str
    module: nn.Module
    preprocessing: Preprocessing
    checkpoint: Checkpoint
    classifier: str | None = None
    has_head: bool = False
    channels_last: bool = False
    prefix_tokens: int | None = None
    has_class_token: bool = False
    blocks: tuple[str, ...] | None = None
    levels: Mapping[str, str] | None = None
    spec: str | None = None
    cache: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        freeze(self.module)

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        *,
        name: str = "model",
        preprocessing: Preprocessing | None = None,
        blocks: Sequence[str] | None = None,
        levels: Mapping[str, str] | None = None,
        classifier: str | None = None,
    ) -> Backbone:
        """Take any network as it is.

        Args:
            module: It is copied, set to eval mode and frozen; yours is left alone.
            name: Its name in tables.
            preprocessing: Input size and normalisation; None takes timm's where the module comes from there,
                else 224 px and ImageNet's mean and std, which the checkpoint report then says.
            blocks: Module paths of its blocks in executed order; None finds them by rule.
            levels: Block path → ``low``, ``mid`` or ``high``; None assigns them by rule.
            classifier: Path of its classifier; None looks where timm says and under the usual names.

        Raises:
            InputError: If a path names no submodule, or the module cannot be copied.

        Examples:
            >>> body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
            >>> Backbone.from_module(body, name="tiny", preprocessing=Preprocessing(8, 8)).has_head
            False
        """
        body = copy_module(unwrap(module))
        names = [path for path, _ in body.named_modules() if path]
        for path in [*(blocks or ()), *(levels or ()), *([classifier] if classifier is not None else [])]:
            if path not in names:
                raise InputError(
                    "the path of a submodule", repr(path), f"The nearest are {near_names(path, names)}"
                )
        checkpoint = Checkpoint("memory")
        if preprocessing is None:
            preprocessing, notes = _assume_preprocessing(body)
            checkpoint = checkpoint.noted(*notes)
        head = classifier or next(iter(classifier_paths(body)), None)
        return cls(
            name,
            type(body).__name__,
            body,
            preprocessing,
            checkpoint,
            classifier=head,
            has_head=head is not None,
            blocks=None if blocks is None else tuple(blocks),
            levels=None if levels is None else dict(levels),
            **token_facts(body),
        )

    @cached_property
    def weights(self) -> str:
        """SHA-256 over sorted (name, dtype, shape, bytes) of parameters and buffers, 64 hex digits."""
        hasher = hashlib.sha256()
        entries: dict[str, torch.Tensor] = dict(self.module.named_parameters(remove_duplicate=False))
        entries.update(self.module.named_buffers(remove_duplicate=False))
        for name in sorted(entries):
            values = entries[name].detach().cpu().contiguous()
            hasher.update(f"{name}\x1f{values.dtype}\x1f{tuple(values.shape)}\x1f".encode())
            if values.numel():
                hasher.update(values.reshape(-1).view(torch.uint8).numpy().data)
        return hasher.hexdigest()

    @cached_property
    def code(self) -> str:
        """SHA-256 of what computes with the weights: structure, plain attributes, text of its own classes.

        The classes of torch, torchvision, timm and transformers are left to their versions. Equal weights in
        changed code give another digest.
        """
        hasher = hashlib.sha256(re.sub(r"0x[0-9a-f]+", "", repr(self.module)).encode())
        for path, one in self.module.named_modules():
            plain = {
                key: value for key, value in sorted(vars(one).items()) if _is_plain(value) and key[0] != "_"
            }
            hasher.update(f"{path}\x1f{plain}".encode())
        kinds = {type(one) for one in self.module.modules()}
        own = [kind for kind in kinds if kind.__module__.partition(".")[0] not in VERSIONED]
        for kind in sorted(own, key=lambda kind: (kind.__module__, kind.__qualname__)):
            hasher.update(_source(kind).encode())
        return hasher.hexdigest()

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next((one.device for one in _tensors(self.module)), torch.device("cpu"))

    def to(self, device: str | torch.device) -> Backbone:
        """Return this backbone on a device; a copy unless it is already there."""
        wanted, here = torch.device(device), self.device
        if wanted.type == here.type and wanted.index in {None, here.index}:
            return self
        return replace(self, module=copy_module(self.module).to(wanted), cache=dict(self.cache))

    def prepare(self, pixels: torch.Tensor, *, channels_last: bool = False) -> torch.Tensor:
        """Normalise pixels.

        Args:
            pixels: (N, size, size, 3) uint8, on any device.
            channels_last: Leave the numbers in the order in which they came, which is faster.

        Returns:
            (N, 3, size, size) float32, as torchvision's ToTensor and Normalize give it, bit for bit.

        Raises:
            InputError: If the pixels have another type or shape.
        """
        size = self.preprocessing.size
        if pixels.dtype != torch.uint8 or pixels.dim() != 4 or tuple(pixels.shape[1:]) != (size, size, 3):
            raise InputError(
                f"pixels as (N, {size}, {size}, 3) uint8",
                f"{tuple(pixels.shape)} {pixels.dtype}",
                "Make them with preprocessing.pixels, or load the backbone with another `size=`",
            )
        # Whole rows of pixels at once: three numbers are too few for the processor's vectors.
        mean, std = (
            torch.tensor(triple, dtype=torch.float32, device=pixels.device).repeat(size)
            for triple in (self.preprocessing.mean, self.preprocessing.std)
        )
        rows = pixels.reshape(len(pixels), size, 3 * size).to(torch.float32)
        # (value / 255 − mean) / std
        values = rows.div_(255).sub_(mean).div_(std).view(len(pixels), size, size, 3).permute(0, 3, 1, 2)
        return values if channels_last else values.contiguous()

    def edited(self, module: nn.Module, note: str) -> Backbone:
        """Return a copy around another module, the note added to its checkpoint's report."""
        return replace(self, module=module, checkpoint=self.checkpoint.noted(note), spec=None, cache={})

    def facts(self) -> dict[str, Any]:
        """Return what a table must say of this backbone, as JSON values."""
        return {
            "arch": self.arch,
            "spec": self.spec,
            "weights": self.weights,
            "code": self.code,
            "checkpoint": self.checkpoint.word,
            "checkpoint_digest": self.checkpoint.digest,
            "branch": self.checkpoint.branch,
            "coverage": self.checkpoint.coverage,
            "notes": list(self.checkpoint.notes),
            "preprocessing": self.preprocessing.facts(),
            "preprocessing_text": str(self.preprocessing),
            "parameters": sum(one.numel() for one in self.module.parameters()),
            "random_init": self.checkpoint.random_init,
        }


def freeze(module: nn.Module) -> nn.Module:
    """Set a module to eval mode and turn its gradients off, in place."""
    return module.eval().requires_grad_(False)


def unwrap(module: nn.Module) -> nn.Module:
    """Return the network inside DataParallel, DistributedDataParallel and torch.compile."""
    while True:
        inner = getattr(module, "_orig_mod", None)
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = module.module
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def copy_module(module: nn.Module) -> nn.Module:
    """Return a copy that shares no weights.

    Raises:
        InputError: If the module holds something that cannot be copied.
    """
    try:
        return copy.deepcopy(module)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise InputError(
            "a module that can be copied",
            f"{type(module).__name__} ({error})",
            "Load it from a function that builds it, file.py:function, and a checkpoint",
        ) from error


def token_facts(module: nn.Module) -> dict[str, Any]:
    """Return what a network says of its own layout: by its attributes, never by a shape.

    timm's ``num_prefix_tokens`` and ``output_fmt``; torchvision's ``class_token`` and its Swin; the
    embeddings of Hugging Face models. A wrapper answers for the network inside it.
    """
    for one in module.modules():
        prefix = getattr(one, "num_prefix_tokens", None)
        whole = one is module or _is_whole(one)
        output = getattr(one, "output_fmt", None)
        last = whole and str(getattr(output, "value", output)) == "NHWC"
        if whole and (last or type(one).__module__ == "torchvision.models.swin_transformer"):
            return {"channels_last": True, "prefix_tokens": None, "has_class_token": False}
        has_class_token = any(_is_tensor(one, word) for word in CLASS_TOKENS)
        if any(hasattr(one, word) for word in LATE_CLASS_TOKEN):
            return _tokens(0, False)
        if whole and isinstance(prefix, int):
            return _tokens(prefix, has_class_token)
        if has_class_token:
            # Of one tensor several tokens may be made: PiT keeps its distillation token with the class token.
            words = (next(word for word in CLASS_TOKENS if _is_tensor(one, word)), *EXTRA_TOKENS)
            tensors = [getattr(one, word) for word in words if _is_tensor(one, word)]
            return _tokens(sum(each.shape[-2] if each.dim() > 1 else 1 for each in tensors), True)
    return {"channels_last": False, "prefix_tokens": None, "has_class_token": False}


def _is_tensor(module: nn.Module, word: str) -> bool:
    return isinstance(getattr(module, word, None), torch.Tensor)


def _tokens(prefix: int, has_class_token: bool) -> dict[str, Any]:
    return {"channels_last": False, "prefix_tokens": prefix, "has_class_token": has_class_token}


def _is_whole(module: nn.Module) -> bool:
    """Whether a submodule is a network of timm's or torchvision's, not a part of one."""
    return hasattr(module, "pretrained_cfg") or hasattr(module, "default_cfg")


def _tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _is_plain(value: object) -> bool:
    """Whether an attribute is a number, a word, or several of them: what a forward pass may branch on."""
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return f"{kind.__module__}.{kind.__qualname__}"  # typed at a prompt: no text to read


def _assume_preprocessing(module: nn.Module) -> tuple[Preprocessing, tuple[str, ...]]:
    facts = getattr(module, "pretrained_cfg", None)
    if isinstance(facts, dict) and facts.get("input_size"):
        preprocessing, notes = read_settings(facts)
        return preprocessing, (*notes, "preprocessing is timm's for this architecture")
    return ASSUMED, (f"preprocessing not stated, assumed: {ASSUMED}",)
