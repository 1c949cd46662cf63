"""Images pass once through a backbone, whole; every tap is read inside every region on the way."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import roi_align

from probekit.data.images import ImageSet
from probekit.data.proposals import Proposals
from probekit.errors import InputError, NonFiniteFeatures, StoreTooBig, TapError
from probekit.features.extraction import key_facts, model_facts, told_facts
from probekit.features.features import Features
from probekit.features.streaming import divide, pixel_batches, prepared
from probekit.files import digest_json, replacing, safe_name
from probekit.progress import progress_bar
from probekit.remote import fetch, send
from probekit.taps.facts import layer_facts
from probekit.taps.layers import resolve_taps, tap_facts
from probekit.taps.readout import MAPS, Layout, map_size
from probekit.taps.record import record

if TYPE_CHECKING:
    from probekit.backbones.backbone import Backbone
    from probekit.taps.tap import Tap

# Changes whenever kept values would no longer be what the code computes.
FORMAT = 1


def resolve_places(backbone: Backbone, taps: str | Sequence[str]) -> list[Tap]:
    """Return taps that are read raw, each with positions: maps, and patches on a known grid.

    Args:
        backbone: A frozen backbone.
        taps: Words of ``resolve_taps``, without readouts.

    Raises:
        InputError: If a word has a readout: regions are the readout.
        TapError: If a tap cannot be read, or has no positions.
    """
    words = [taps] if isinstance(taps, str) else list(taps)
    for word in words:
        if "|" in word:
            raise InputError(
                "taps without a readout", repr(word), "Regions are read by RoIAlign: leave it out"
            )
    found = [replace(tap, readout="raw") for tap in resolve_taps(backbone, words)]
    facts = layer_facts(backbone)
    for tap in found:
        layout, shape = facts.layout(tap), facts.value(tap).shape[1:]
        grid = map_size(layout, shape) or layout.grid
        if grid is None or (layout.axes == "NLC" and layout.prefix_tokens is None):
            raise TapError(
                "a tap with positions, in which a box can be found",
                f"axes {layout.axes} of shape {tuple(shape)} at {tap.place} of {backbone.name}",
                "Tap maps or patches, such as stages or blocks",
            )
    return found


def read_regions(
    backbone: Backbone,
    images: ImageSet,
    taps: Sequence[Tap],
    proposals: Proposals,
    *,
    splits: NDArray[np.str_],
    ids: NDArray[np.str_],
    grid: int,
    store: Path,
    batch_size: int,
) -> dict[str, Features]:
    """Compute, keep and return what every tap says inside every region.

    RoIAlign reads grid × grid means, in the pass itself: maps are never kept, and memory does not grow with
    the number of images. A tap that is in the store already is not read again.

    Args:
        backbone: With a preprocessing that crops nothing; see ``uncropped``.
        images: The N images, shown whole for it; see ``show_whole``.
        taps: Of ``resolve_places``.
        proposals: R regions of these images.
        splits: (R,) split of each region.
        ids: (R,) id of the image of each region.
        grid: Places a side that each region is read at.
        store: Folder that keeps features.
        batch_size: Images a forward pass.

    Returns:
        Tap as written in tables → features with axes ``N D``, a row a region, D = channels · grid².

    Raises:
        StoreTooBig: If the features would not fit on the disk.
        NonFiniteFeatures: If an image gives NaN or infinity.
        ImageUnreadable: If an image cannot be decoded.
    """
    key = digest_json([FORMAT, key_facts(backbone, images), proposals.digest, grid])[:32]
    paths = {tap: store / "regions" / key / f"{safe_name(tap.place)}.npy" for tap in taps}
    shapes = {tap: (len(proposals), _channels(backbone, tap) * grid**2) for tap in taps}
    missing = [tap for tap in taps if not paths[tap].is_file() and not fetch(paths[tap])]
    if missing:
        _check_room([shapes[tap] for tap in missing], store)
        boxes = proposals.in_input(backbone.preprocessing).astype(np.float32)
        with ExitStack() as stack:
            files = {tap: _open(stack, paths[tap], shapes[tap]) for tap in missing}
            for tap, pooled in _pooled(backbone, images, missing, boxes, proposals.images, grid, batch_size):
                if not np.isfinite(pooled).all():
                    raise NonFiniteFeatures(
                        "finite activations", f"NaN or infinity at {tap.place} of {backbone.name}",
                        "Look at the images, or load the backbone with its own mean and std",
                    )  # fmt: skip
                files[tap].write(pooled.tobytes())
        for tap in missing:
            send(paths[tap])
    readout = f"roi({grid})"
    known = {"key": key, "weights": backbone.weights, "model": model_facts(backbone)}
    return {
        f"{tap.place}|{readout}": Features(
            np.load(paths[tap], mmap_mode="r", allow_pickle=False),
            "N D",
            ids,
            splits,
            {},
            f"{tap.place}|{readout}",
            {**told_facts(backbone, tap), "readout": readout},
            known,
        )
        for tap in taps
    }


def pool_regions(maps: Tensor, boxes: Tensor, rows: Tensor, *, stride: float, grid: int) -> Tensor:
    """Return the mean of maps over grid × grid equal parts of each region.

    Cell i of a map stands for input pixels from i·stride to (i + 1)·stride; between centres of cells values
    are interpolated, and beyond the outermost ones they stay. Source: He, Gkioxari, Dollár and Girshick, Mask
    R-CNN (ICCV 2017), section 3, RoIAlign, as torchvision has it: with its half-pixel correction, and as many
    sampling points as a part has cells.

    Args:
        maps: (n, D, H, W).
        boxes: (m, 4) corners in pixels of the input.
        rows: (m,) which map each is read from.
        stride: Input pixels a cell.
        grid: Parts a side.

    Returns:
        (m, D·grid²), the parts of a channel side by side, row by row.

    Examples:
        >>> ramp = torch.arange(8.0).expand(1, 1, 8, 8)  # its value at x is x / stride − ½
        >>> box, first = torch.tensor([[4.0, 2.0, 12.0, 10.0]]), torch.tensor([0])
        >>> pool_regions(ramp, box, first, stride=2.0, grid=2).tolist()
        [[2.5, 4.5, 2.5, 4.5]]
    """
    said = torch.cat([rows[:, None].to(boxes), boxes], dim=1)
    pooled: Tensor = roi_align(maps.float(), said, grid, 1 / stride, sampling_ratio=-1, aligned=True)
    return pooled.flatten(1)


def cell_stride(size: int, side: int, *, patches: bool = False) -> float:
    """Return the input pixels a cell of a map stands for.

    Padded convolutions and poolings of stride 2 leave ⌈size/s⌉ cells: with 100 pixels and 4 cells, s is 32
    and the last cell reaches beyond the image. Patches share the image out, and so do maps that no power of
    two explains.

    Args:
        size: Side of the input in pixels.
        side: Cells a side.
        patches: Whether cells are patches, which tile the image.

    Examples:
        >>> cell_stride(100, 4), cell_stride(98, 7, patches=True), cell_stride(63, 61)
        (32.0, 14.0, 1.0327868852459017)
    """
    power = 2.0 ** math.ceil(math.log2(size / side))
    return power if not patches and math.ceil(size / power) == side else size / side


def _pooled(
    backbone: Backbone,
    images: ImageSet,
    taps: Sequence[Tap],
    boxes: NDArray[np.float32],
    owners: NDArray[np.int64],
    grid: int,
    batch_size: int,
) -> Iterator[tuple[Tap, NDArray[np.float32]]]:
    """Yield each tap's values of the next regions, batch by batch of the images."""
    facts, size = layer_facts(backbone), backbone.preprocessing.size
    layouts = {tap: facts.layout(tap) for tap in taps}
    batches = divide(np.arange(len(images)), batch_size)
    with (
        progress_bar(len(images), f"{backbone.name} on {images.name}", "img") as bar,
        record(backbone, taps) as run,
    ):
        for rows, pixels in pixel_batches(images, backbone.preprocessing, batches):
            first, last = np.searchsorted(owners, [rows[0], rows[-1] + 1])
            here = torch.from_numpy(boxes[first:last]).to(backbone.device)
            which = torch.from_numpy(owners[first:last] - rows[0]).to(backbone.device)
            for tap, activation in run(prepared(backbone, pixels)).items():
                maps = _as_maps(activation, layouts[tap])
                stride = cell_stride(size, maps.shape[-1], patches=layouts[tap].axes == "NLC")
                yield tap, pool_regions(maps, here, which, stride=stride, grid=grid).cpu().numpy()
            bar.update(len(rows))


def _as_maps(activation: Tensor, layout: Layout) -> Tensor:
    """Return a raw readout as (n, D, H, W)."""
    if layout.axes in MAPS:
        return activation
    side = layout.grid or (0, 0)
    patches = activation[:, layout.prefix_tokens or 0 :]
    return patches.transpose(1, 2).reshape(len(patches), -1, *side)


def _channels(backbone: Backbone, tap: Tap) -> int:
    facts = tap_facts(backbone, tap)
    shape = facts["readout_shape"]
    return int(shape[-1] if facts["layout"] == "NLC" else shape[0])


def _open(stack: ExitStack, path: Path, shape: tuple[int, int]) -> BinaryIO:
    """Open a .npy file to which rows are appended; it takes its name once all of them are there."""
    file = stack.enter_context(stack.enter_context(replacing(path)).open("wb"))
    np.lib.format.write_array_header_1_0(
        file, {"descr": np.dtype(np.float32).str, "fortran_order": False, "shape": shape}
    )
    return file


def _check_room(shapes: Sequence[tuple[int, int]], store: Path) -> None:
    store.mkdir(parents=True, exist_ok=True)
    size, free = 4 * sum(rows * width for rows, width in shapes), shutil.disk_usage(store).free
    if size > 0.95 * free:
        raise StoreTooBig(
            f"room for {size / 1e9:.2f} GB of features",
            f"{free / 1e9:.2f} GB free in the store",
            "Ask for fewer taps or boxes, or name another folder with --store",
        )
