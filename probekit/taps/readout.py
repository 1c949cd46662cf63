"""Readouts: from a live activation, whose axes are known, to one value array per image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from probekit.errors import LayoutUnknown, NoClassToken, TapError
from probekit.taps.tap import AUTO, grid_side

if TYPE_CHECKING:
    from torch import Tensor

# The mean over images of max(x, eps)^3 is what generalised-mean pooling takes the cube root of
# (Radenović, Tolias, Chum 2018, section 3.2, with their default p).
GEM_POWER = 3.0
GEM_EPS = 1e-6

MAPS = ("NCHW", "NHWC")
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Layout:
    """What is known of the axes of an activation.

    Attributes:
        axes: ``NC``, ``NCHW``, ``NHWC``, ``NLC`` or ``unknown``.
        prefix_tokens: For NLC, how many leading tokens are not patches; None where that is not known.
        has_class_token: For NLC, whether the first token is a class token.
        grid: For NLC, rows and columns of the patches; None where they are not known.
    """

    axes: str
    prefix_tokens: int | None = 0
    has_class_token: bool = False
    grid: tuple[int, int] | None = None


def default_readout(layout: Layout) -> str:
    """Return the readout used where none is asked for.

    Raises:
        LayoutUnknown: If the layout is unknown, or the number of tokens that are not patches.

    Examples:
        >>> default_readout(Layout("NHWC")), default_readout(Layout("NLC", 1, has_class_token=True))
        ('gap', 'cls')
    """
    if layout.axes in MAPS:
        return "gap"
    if layout.axes == "NC":
        return "raw"
    if layout.axes == "NLC":
        if layout.has_class_token:
            return "cls"
        _known_prefix(layout)
        return "patch_mean"
    raise _layout_unknown()


def check_readout(readout: str, layout: Layout, shape: tuple[int, ...]) -> None:
    """Refuse a readout that has no meaning for a layout.

    Args:
        readout: An explicit readout.
        layout: What is known of the axes.
        shape: Shape of the activation per image, so without its first axis.

    Raises:
        LayoutUnknown: If the readout needs axes that are not known.
        NoClassToken: If it needs a class token that is not there.
        TapError: If the readout is meant for another layout, or the map is smaller than the grid asked for.
    """
    if readout == "raw":
        return
    if layout.axes == UNKNOWN:
        raise _layout_unknown()
    if "cls" in readout and not layout.has_class_token:
        raise NoClassToken(
            "a class token at the tap", f"none there (axes {layout.axes})",
            "Use gap for maps, patch_mean for tokens",
        )  # fmt: skip
    if layout.axes == "NC":
        _check_vector(readout)
    elif layout.axes in MAPS:
        _check_map(readout, map_size(layout, shape))
    else:
        _check_tokens(readout, layout, shape[0])


def _check_vector(readout: str) -> None:
    # The mean or maximum over the one position there is, is the vector itself.
    if readout not in ("gap", "max"):
        raise TapError("raw, gap or max for one vector per image", readout, "Leave the readout out")


def _check_map(readout: str, size: tuple[int, int] | None) -> None:
    side = grid_side(readout)
    if readout == "patch_mean":
        raise TapError("a readout for maps", "patch_mean, which is for tokens", "Use gap")
    if side is not None and size is not None and min(size) < side:
        raise TapError(
            f"a map of at least {side}×{side} for {readout}", f"a map of {size[0]}×{size[1]}",
            f"Use grid({min(size)}) or a shallower tap",
        )  # fmt: skip


def _check_tokens(readout: str, layout: Layout, tokens: int) -> None:
    if readout == "gap":
        raise TapError("a readout for tokens", "gap, which is for maps", "Use patch_mean")
    if readout == "tokens":
        return
    if readout != "cls" and tokens <= _known_prefix(layout):
        raise TapError("patches at the tap", f"{tokens} tokens, none of them a patch", "Use cls or tokens")
    if grid_side(readout) is not None:
        if layout.grid is None:
            raise LayoutUnknown(
                f"patches on a known grid for {readout}", "tokens whose rows and columns are not known",
                "Use patch_mean",
            )  # fmt: skip
        _check_map(readout, layout.grid)


def _known_prefix(layout: Layout) -> int:
    if layout.prefix_tokens is None:
        raise LayoutUnknown(
            "a known number of leading tokens that are not patches", "a backbone that does not say",
            "Read all of them with |tokens, or state it: `dataclasses.replace(backbone, prefix_tokens=1)`",
        )  # fmt: skip
    return layout.prefix_tokens


def _layout_unknown() -> LayoutUnknown:
    return LayoutUnknown(
        "an activation whose axes are known (N C, N C H W, N H W C or N L C)",
        "one whose axes are not known, or whose first axis is not the batch",
        "Tap the enclosing block, or take it as it is with |raw",
    )


def readout_axes(readout: str, layout: Layout) -> str:
    """Return the named axes of the result: ``N D``, ``N T D``, ``N D H W``, or ``unknown``.

    Examples:
        >>> readout_axes("raw", Layout("NHWC")), readout_axes("gap", Layout("NHWC"))
        ('N D H W', 'N D')
    """
    if readout == "tokens" or (readout == "raw" and layout.axes == "NLC"):
        return "N T D"
    if readout == "raw":
        return {"NC": "N D", "NCHW": "N D H W", "NHWC": "N D H W"}.get(layout.axes, UNKNOWN)
    return "N D"


def readout_shape(readout: str, layout: Layout, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of the result per image.

    Args:
        readout: An explicit readout.
        layout: What is known of the axes.
        shape: Shape of the activation per image, so without its first axis.

    Examples:
        >>> readout_shape("grid(2)", Layout("NHWC"), (7, 7, 96))
        (384,)
    """
    if readout == "raw":
        return (shape[2], shape[0], shape[1]) if layout.axes == "NHWC" else shape
    width = shape[0] if layout.axes in ("NC", "NCHW") else shape[-1]
    if readout == "tokens":
        positions = shape[0] if layout.axes == "NLC" else _product(shape) // width
        return (positions, width)
    side = grid_side(readout)
    if side is not None:
        return (width * side * side,)
    return (2 * width,) if readout == "cls+patch_mean" else (width,)


def _product(shape: tuple[int, ...]) -> int:
    product = 1
    for length in shape:
        product *= length
    return product


def read(activation: Tensor, readout: str, layout: Layout) -> Tensor:
    """Apply a readout to a live activation; the result never shares memory with it.

    Args:
        activation: (N, …) with the axes of ``layout``.
        readout: An explicit readout.
        layout: What is known of the axes.

    Returns:
        (N, D), (N, T, D) or (N, D, H, W), in the dtype of the activation; maps are turned to channels first.

    Raises:
        TapError: If the readout has no meaning for the layout (see ``check_readout``).

    Examples:
        >>> import torch
        >>> read(torch.arange(8.0).reshape(1, 2, 2, 2), "gap", Layout("NCHW"))
        tensor([[1.5000, 5.5000]])
    """
    check_readout(readout, layout, tuple(activation.shape[1:]))
    if readout == AUTO:
        raise TapError("an explicit readout", AUTO, "Resolve the tap first")
    if layout.axes in MAPS:
        return _read_map(activation if layout.axes == "NCHW" else activation.permute(0, 3, 1, 2), readout)
    if layout.axes == "NLC":
        return _read_tokens(activation, readout, layout)
    return activation.clone()


def map_size(layout: Layout, shape: tuple[int, ...]) -> tuple[int, int] | None:
    """Return rows and columns of a map from its shape per image; None for other layouts."""
    if layout.axes == "NCHW":
        return shape[1], shape[2]
    if layout.axes == "NHWC":
        return shape[0], shape[1]
    return None


def _read_map(maps: Tensor, readout: str) -> Tensor:
    import torch

    if readout == "raw":
        return maps.clone(memory_format=torch.contiguous_format)
    if readout == "tokens":
        return maps.flatten(2).transpose(1, 2).clone(memory_format=torch.contiguous_format)
    side = grid_side(readout)
    if side is not None:
        return torch.nn.functional.adaptive_avg_pool2d(maps, side).flatten(1).clone()
    if readout == "gem":
        return _gem(maps, (2, 3))
    return maps.mean((2, 3)) if readout == "gap" else maps.amax((2, 3))


def _read_tokens(tokens: Tensor, readout: str, layout: Layout) -> Tensor:
    import torch

    if readout in ("raw", "tokens"):
        return tokens.clone(memory_format=torch.contiguous_format)
    if readout == "cls":
        return tokens[:, 0].clone()
    patches = tokens[:, _known_prefix(layout) :]
    if readout == "patch_mean":
        return patches.mean(1)
    if readout == "cls+patch_mean":
        return torch.cat([tokens[:, 0], patches.mean(1)], dim=1)
    if readout == "gem":
        return _gem(patches, (1,))
    if readout == "max":
        return patches.amax(1)
    rows, columns = layout.grid or (0, 0)
    if patches.shape[1] != rows * columns:
        raise TapError(
            f"{rows}×{columns} patches, as in the recorded forward", f"{patches.shape[1]}",
            "Feed images of the input size of the backbone",
        )  # fmt: skip
    return _read_map(patches.transpose(1, 2).reshape(len(patches), -1, rows, columns), readout)


def _gem(values: Tensor, positions: tuple[int, ...]) -> Tensor:
    # (mean over positions of max(x, eps)^p)^(1/p), in single precision: cubes overflow half precision at 40.
    pooled = values.float().clamp(min=GEM_EPS).pow(GEM_POWER).mean(positions).pow(1 / GEM_POWER)
    return pooled.to(values.dtype)
