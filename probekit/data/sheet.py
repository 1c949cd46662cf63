"""A contact sheet: a few images with what is marked in them, to see whether it was understood."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from probekit.data.annotations import IGNORE, Boxes, Mask, Points
from probekit.data.images import ImageSet
from probekit.data.targets import Target
from probekit.errors import ImageUnreadable
from probekit.files import replacing

COLUMNS, TILE, CAPTION, GAP = 6, 160, 14, 6
MOST = 24
# Paul Tol's bright scheme: told apart by colour-blind readers too.
COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#bbbbbb")


def draw_sheet(images: ImageSet, path: str | Path, count: int = MOST) -> Path:
    """Draw images in a grid as PNG, with class, boxes, masks or key points.

    Of a class target the images are spread over the classes, else over the set. One that cannot be read is
    an empty tile.

    Returns:
        The path written.
    """
    places = _places(images, min(count, len(images)))
    rows = max(1, -(-len(places) // COLUMNS))
    width, height = COLUMNS * (TILE + GAP) + GAP, rows * (TILE + CAPTION + GAP) + GAP
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, place in enumerate(places):
        row, column = divmod(number, COLUMNS)
        left, top = GAP + column * (TILE + GAP), GAP + row * (TILE + CAPTION + GAP)
        tile = _tile(images, place)
        sheet.paste(tile, (left + (TILE - tile.width) // 2, top + (TILE - tile.height) // 2))
        draw.text((left, top + TILE + 1), _caption(images, place), fill="black")
    target = Path(path)
    with replacing(target) as temporary, temporary.open("wb") as opened:
        sheet.save(opened, format="PNG")
    return target


def _places(images: ImageSet, count: int) -> list[int]:
    labels = next((one.values for one in images.targets.values() if one.kind == "class"), None)
    spread = np.unique(np.linspace(0, len(images) - 1, count).astype(int)) if count else np.zeros(0, int)
    if labels is None:
        return [int(one) for one in spread]
    classes = np.unique(labels)
    chosen = classes[np.unique(np.linspace(0, len(classes) - 1, min(count, len(classes))).astype(int))]
    each = max(1, count // len(chosen))
    places = [place for one in chosen for place in np.flatnonzero(labels == one)[:each]]
    return [int(one) for one in places[:count]]


def _tile(images: ImageSet, place: int) -> Image.Image:
    try:
        image = images.image(place)
    except ImageUnreadable:
        return Image.new("RGB", (TILE, TILE), "#dddddd")
    scale = TILE / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    tile = image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)
    for target in images.targets.values():
        tile = _marked(tile, target, target.values[place], image.size)
    return tile


def _marked(tile: Image.Image, target: Target, value: Any, size: tuple[int, int]) -> Image.Image:  # noqa: ANN401
    """Draw one annotation over a tile; sizes are those of the whole image."""
    scale = np.array([tile.width / size[0], tile.height / size[1]])
    draw = ImageDraw.Draw(tile)
    if isinstance(value, Boxes):
        for place, (corners, number) in enumerate(zip(value.corners, value.classes.tolist(), strict=True)):
            colour = COLOURS[number % len(COLOURS)]
            if value.outlines and value.outlines[place].polygons:
                for polygon in value.outlines[place].polygons:
                    draw.polygon([tuple(one) for one in (polygon * scale).tolist()], outline=colour)
            else:
                draw.rectangle((corners.reshape(2, 2) * scale).ravel().tolist(), outline=colour)
    elif isinstance(value, Mask):
        return _painted(tile, value)
    elif isinstance(value, Points):
        for x, y in (value.positions[value.visible] * scale).tolist():
            draw.ellipse((x - 1.5, y - 1.5, x + 1.5, y + 1.5), fill=COLOURS[1])
    return tile


def _painted(tile: Image.Image, mask: Mask) -> Image.Image:
    palette = np.array([Image.new("RGB", (1, 1), one).getpixel((0, 0)) for one in COLOURS], np.uint8)
    values = np.asarray(Image.fromarray(mask.read()).resize(tile.size, Image.Resampling.NEAREST))
    colours = palette[values % len(palette)]
    colours[values == IGNORE] = 255
    return Image.blend(tile, Image.fromarray(colours), 0.5)


def _caption(images: ImageSet, place: int) -> str:
    target = next((one for one in images.targets.values() if one.kind == "class"), None)
    words = (
        target.classes[int(target.values[place])] if target is not None else Path(str(images.ids[place])).name
    )
    return f"{images.splits[place]}: {words}"[:26]
