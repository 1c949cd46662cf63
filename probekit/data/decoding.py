"""Image file → 8-bit RGB, with a stated rule for every mode Pillow knows."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from probekit.errors import ImageUnreadable

# Pillow and the decoders under it have no common error for a damaged file.
_DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    OverflowError,
    NotImplementedError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)
_ALPHA_MODES = ("RGBA", "RGBa", "LA", "La", "PA")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIXTEEN_BIT_STEP = 257  # 65535 = 255 · 257


def decode(opened: Path | BinaryIO, where: str) -> Image.Image:
    """Read one image file whole, in the mode it is stored in.

    Args:
        opened: A path or an open binary file.
        where: How an error names the image.

    Raises:
        ImageUnreadable: If the file is missing, damaged, not an image, or has more than
            ``PIL.Image.MAX_IMAGE_PIXELS`` pixels.
    """
    _refuse_bombs()
    try:
        with Image.open(opened) as image:
            image.load()
            return image
    except _DAMAGE as error:
        raise unreadable(where, error) from error


def as_rgb(image: Image.Image | NDArray[np.uint8], where: str) -> Image.Image:
    """Turn an image of any mode into 8-bit RGB.

    Transparency (alpha channel, palette entry or colour key) is laid over white. Grey is repeated.
    CMYK, YCbCr and HSV go through Pillow's own conversion; colour profiles are not applied. 16-bit grey is
    divided by 257 and rounded, its colour key ignored. Of an animation the first frame is taken.
    The rotation stated in EXIF is applied.

    Args:
        image: A decoded image, or (H, W), (H, W, 3) or (H, W, 4) uint8.
        where: How an error names the image.

    Raises:
        ImageUnreadable: If the mode has no stated range (32-bit or float grey) or no conversion.

    Examples:
        >>> as_rgb(Image.new("LA", (1, 1), (0, 127)), "half black").getpixel((0, 0))
        (128, 128, 128)
    """
    try:
        if not isinstance(image, Image.Image):
            return as_rgb(Image.fromarray(np.ascontiguousarray(image)), where)
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
        coloured = _in_colour(image)
        return coloured if turn is None else coloured.transpose(turn)
    except _DAMAGE as error:
        raise unreadable(where, error) from error


def unreadable(where: str, error: Exception | str) -> ImageUnreadable:
    """Return the error for one image that cannot be used."""
    said = str(error).split("\n")[0] or type(error).__name__
    return ImageUnreadable(
        f"an image in {where}", said, "Repair or remove it, or leave unreadable images out (skip_unreadable)"
    )


def _in_colour(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return image
    if mode == "I" or mode.startswith("I;16"):
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if mode == "F":
        raise ValueError("float values, whose range is not stated; save it as 8-bit or 16-bit")
    if mode in _ALPHA_MODES or "transparency" in image.info:
        return _over_white(image)
    return image.convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    coloured = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", coloured.size, "white"), coloured).convert("RGB")


def _eight_bits(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    # Older versions of Pillow open 16-bit PNG as 32-bit "I", so the values decide.
    wide = values.astype(np.int64)
    if wide.size and (wide.min() < 0 or wide.max() > 65535):
        raise ValueError("32-bit values, whose range is not stated; save it as 8-bit or 16-bit")
    return ((wide + _SIXTEEN_BIT_STEP // 2) // _SIXTEEN_BIT_STEP).astype(np.uint8)


def _refuse_bombs() -> None:
    """Have Pillow raise, not warn, on images over its limit, in this process.

    ``warnings.catch_warnings`` around each image would not do: it is not safe among threads.
    """
    bomb = ("error", None, Image.DecompressionBombWarning, None, 0)
    if bomb not in warnings.filters:
        warnings.simplefilter("error", Image.DecompressionBombWarning)
