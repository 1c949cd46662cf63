"""Which model, in words: ``[NAME=]ARCH:CHECKPOINT[,key=value…]``. Loads neither torch nor timm."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from probekit.backbones.levels import LEVELS
from probekit.data.transforms import INTERPOLATIONS
from probekit.errors import InputError, near_names

WORDS = "a path, random, random@SEED, pretrained, bundled@ARM or wheel"
GRAMMAR = "[NAME=]ARCH:CHECKPOINT[,key=value…]"

_FILE_ARCH = re.compile(r"((?:[A-Za-z]:[\\/])?[^:]*\.py):([^:]*)(?::(.*))?", re.DOTALL)
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_SEEDED = re.compile(r"random@(\d{1,18})")


@dataclass(frozen=True)
class ModelSpec:
    """One model, in words.

    ``str(spec)`` gives back text that parses to an equal spec, unless a name holds ``:`` or a path a comma;
    ``spec.mapping()`` always does.

    Attributes:
        name: What tables call it.
        arch: A timm name, one of ours, ``auto``, ``file.py:function`` or ``package.module.function``.
        checkpoint: A path, or one of the words ``random``, ``random@SEED``, ``pretrained``, ``bundled@ARM``,
            ``wheel``.
        keys: Those given of branch (text), size and resize (pixels), mean and std (three numbers),
            interpolation (text) and levels (block path → level).

    Raises:
        InputError: If a field has no meaning.

    Examples:
        >>> print(ModelSpec("moco", "resnet50", "moco.pth.tar", {"mean": (0.5, 0.5, 0.5)}))
        moco=resnet50:moco.pth.tar,mean=0.5/0.5/0.5
    """

    name: str
    arch: str
    checkpoint: str
    keys: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for what, text in (("name", self.name), ("architecture", self.arch), ("checkpoint", self.checkpoint)):
            if not isinstance(text, str) or not text.strip():
                raise InputError(f"the {what} of a model", repr(text), f"Write {GRAMMAR}")
        if self.checkpoint.startswith("random@") and not _SEEDED.fullmatch(self.checkpoint):
            raise InputError(
                "a whole number of 0 or more after random@",
                repr(self.checkpoint),
                "Write random@0, random@1, …",
            )
        clean = {}
        for key in READ_KEY:
            if key in self.keys and self.keys[key] is not None:
                clean[key] = READ_KEY[key](key, self.keys[key])
        for key in self.keys:
            if key not in READ_KEY:
                raise InputError(
                    f"a key among {', '.join(READ_KEY)}",
                    repr(key),
                    f"The nearest is {near_names(str(key), READ_KEY, 1)}; a path with a comma goes into YAML",
                )
        object.__setattr__(self, "keys", clean)

    def __hash__(self) -> int:
        return hash((self.name, self.arch, self.checkpoint, str(self.keys)))

    def __str__(self) -> str:
        """Say it in the grammar."""
        named = "" if self.name == self.arch else f"{self.name}="
        keys = "".join(f",{key}={_written(value)}" for key, value in self.keys.items())
        return f"{named}{self.arch}:{self.checkpoint}{keys}"

    @property
    def user_code(self) -> bool:
        """Whether building it runs a function of the user's own."""
        return function_parts(self.arch) is not None

    @property
    def checkpoint_path(self) -> str | None:
        """Where the checkpoint file lies; None for a word."""
        if (
            self.checkpoint in {"random", "pretrained", "wheel"}
            or self.seed is not None
            or self.bundled is not None
        ):
            return None
        return str(Path(self.checkpoint).expanduser())

    @property
    def bundled(self) -> str | None:
        """The arm whose weights come with the package; empty where none is named, None for other words."""
        word, _, arm = self.checkpoint.partition("@")
        return arm if word == "bundled" else None

    @property
    def seed(self) -> int | None:
        """The seed of a random draw (``random`` is ``random@0``); None where weights are loaded."""
        if self.checkpoint == "random":
            return 0
        seeded = _SEEDED.fullmatch(self.checkpoint)
        return int(seeded.group(1)) if seeded else None

    def mapping(self) -> dict[str, Any]:
        """Return the fields as YAML and JSON can hold them; ``parse_model`` takes them back."""
        keys = {key: list(value) if isinstance(value, tuple) else value for key, value in self.keys.items()}
        return {"name": self.name, "arch": self.arch, "checkpoint": self.checkpoint, **keys}


def parse_model(text: str | Mapping[str, Any]) -> ModelSpec:
    """Read a model in words, or a mapping with arch, checkpoint, and as wished name and the keys.

    ``NAME=`` counts only if its ``=`` stands before the first ``:``; otherwise the name is ARCH.

    Raises:
        InputError: If the text does not follow the grammar; the message names the part.

    Examples:
        >>> parse_model("sup=resnet50:runs/sup.pth,size=160")
        ModelSpec(name='sup', arch='resnet50', checkpoint='runs/sup.pth', keys={'size': 160})
        >>> parse_model("net.py:build:random@3").arch
        'net.py:build'
        >>> parse_model({"arch": "resnet18", "checkpoint": "a, b.pth"}).checkpoint_path
        'a, b.pth'
    """
    if isinstance(text, Mapping):
        return _from_mapping(text)
    colon, equals = text.find(":"), text.find("=")
    name = None
    if equals >= 0 and (equals < colon or colon < 0):
        name, text = text[:equals].strip(), text[equals + 1 :]
        if not name or "," in name:
            raise InputError("a name without commas before `=`", repr(name), f"Write {GRAMMAR}")
    arch, rest = _split_arch(text)
    if rest is None:
        raise InputError(
            f"a checkpoint after the architecture: {WORDS}",
            f"{text.strip()!r} alone",
            f"Write {GRAMMAR}, such as {text.strip() or 'resnet50'}:random or resnet50:weights.pth",
        )
    checkpoint, *parts = rest.split(",")
    if not checkpoint.strip():
        raise InputError(f"a checkpoint after {arch + ':'!r}: {WORDS}", "nothing", f"Write {GRAMMAR}")
    if "=" in arch or "," in arch:
        raise InputError("an architecture without `=` and commas", repr(arch), f"Write {GRAMMAR}")
    keys: dict[str, Any] = {}
    for part in parts:
        key, separator, value = part.partition("=")
        if not separator:
            raise InputError(
                f"key=value after a comma, with a key among {', '.join(READ_KEY)}",
                repr(part),
                "Put a path with a comma into YAML under `models:`",
            )
        if key.strip() in keys:
            raise InputError("every key once", f"{key.strip()!r} twice", "Keep one of them")
        keys[key.strip()] = value.strip()
    return ModelSpec(name if name is not None else arch, arch, checkpoint.strip(), keys)


def function_parts(arch: str) -> tuple[str, str] | None:
    """Split ``file.py:function`` or ``package.module.function``; None for an architecture by name.

    One dot may also part a timm name from its tag (``resnet50.a1_in1k``): then it is a function only if a
    module of that name is installed.

    Examples:
        >>> function_parts("nets/mine.py:build")
        ('nets/mine.py', 'build')
        >>> function_parts("torchvision.models.resnet18")
        ('torchvision.models', 'resnet18')
        >>> function_parts("resnet50.a1_in1k") is None
        True
    """
    in_file = _FILE_ARCH.fullmatch(arch)
    if in_file and in_file.group(3) is None:
        return in_file.group(1), in_file.group(2)
    if not _DOTTED.fullmatch(arch):
        return None
    module, _, function = arch.rpartition(".")
    if "." not in module and importlib.util.find_spec(module) is None:
        return None
    return module, function


def _split_arch(text: str) -> tuple[str, str | None]:
    """Return the architecture and what follows its colon, None where there is no colon."""
    in_file = _FILE_ARCH.fullmatch(text)
    if in_file:
        file, function, rest = in_file.groups()
        if not function.strip().isidentifier():
            raise InputError(
                f"the name of a function after {file + ':'!r}",
                repr(function),
                "Write file.py:function:CHECKPOINT",
            )
        return f"{file.strip()}:{function.strip()}", rest
    arch, colon, rest = text.partition(":")
    if not arch.strip():
        raise InputError("an architecture before the first `:`", repr(text), f"Write {GRAMMAR}")
    return arch.strip(), rest if colon else None


def _from_mapping(fields: Mapping[str, Any]) -> ModelSpec:
    for needed in ("arch", "checkpoint"):
        if needed not in fields:
            raise InputError(
                f"a model with arch and checkpoint ({WORDS})", f"no {needed!r} among {list(fields)}", "Add it"
            )
    arch = str(fields["arch"])
    keys = {key: value for key, value in fields.items() if key not in {"name", "arch", "checkpoint"}}
    return ModelSpec(str(fields.get("name") or arch), arch, str(fields["checkpoint"]), keys)


def _written(value: Any) -> str:  # noqa: ANN401 - the value of any key
    if isinstance(value, tuple):
        return "/".join(map(repr, value))
    if isinstance(value, Mapping):
        return "/".join(f"{block}:{level}" for block, level in value.items())
    return str(value)


def _read_size(key: str, value: Any) -> int:  # noqa: ANN401 - as the user wrote it
    if isinstance(value, bool) or not re.fullmatch(r"[1-9]\d{0,4}", str(value).strip()):
        raise InputError(f"{key}= in whole pixels, from 1 to 99999", repr(value), "Write size=224")
    return int(value)


def _read_triple(key: str, value: Any) -> tuple[float, float, float]:  # noqa: ANN401 - as the user wrote it
    parts = value.split("/") if isinstance(value, str) else value
    try:
        red, green, blue = (float(part) for part in parts)
    except (TypeError, ValueError) as error:
        raise InputError(f"three numbers for {key}=", repr(value), f"Write {key}=0.5/0.5/0.5") from error
    if not all(map(math.isfinite, (red, green, blue))) or (key == "std" and min(red, green, blue) <= 0):
        raise InputError(
            f"three finite {'positive ' if key == 'std' else ''}numbers for {key}=",
            repr(value),
            f"Write {key}=0.5/0.5/0.5",
        )
    return red, green, blue


def _read_interpolation(key: str, value: Any) -> str:  # noqa: ANN401 - as the user wrote it
    if value not in INTERPOLATIONS:
        raise InputError(f"{key}= among {', '.join(INTERPOLATIONS)}", repr(value), "Choose one")
    return str(value)


def _read_branch(key: str, value: Any) -> str:  # noqa: ANN401 - as the user wrote it
    if not isinstance(value, str) or not value.strip() or "," in value:
        raise InputError(
            f"{key}=online, {key}=ema or a place in the file", repr(value), "Leave it out for the default"
        )
    return value.strip()


def _read_levels(key: str, value: Any) -> dict[str, str]:  # noqa: ANN401 - as the user wrote it
    how = f"Write {key}=layer1:low/layer2:mid/layer3:mid/layer4:high"
    pairs = (
        [tuple(part.split(":")) for part in value.split("/")]
        if isinstance(value, str)
        else list(value.items())
        if isinstance(value, Mapping)
        else []
    )
    levels: dict[str, str] = {}
    for pair in pairs:
        if len(pair) != 2 or not str(pair[0]).strip() or re.search(r"[:/,]", str(pair[0])):
            raise InputError("a level for each block", repr(value), how)
        block, level = str(pair[0]).strip(), str(pair[1]).strip()
        if level not in LEVELS or block in levels:
            raise InputError(f"one level among {', '.join(LEVELS)} for each block", f"{block}: {level}", how)
        levels[block] = level
    if not levels:
        raise InputError("a level for each block", repr(value), how)
    return levels


# Key of the grammar → what reads and checks its value.
READ_KEY: dict[str, Callable[[str, Any], Any]] = {
    "branch": _read_branch,
    "size": _read_size,
    "resize": _read_size,
    "mean": _read_triple,
    "std": _read_triple,
    "interpolation": _read_interpolation,
    "levels": _read_levels,
}
