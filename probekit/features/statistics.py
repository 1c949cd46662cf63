"""Batch-norm statistics of a data set: for random-init controls, and for networks that had theirs folded."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from probekit.data.images import ImageSet
from probekit.data.readers import open_images
from probekit.errors import CheckpointError, InputError
from probekit.features.streaming import BATCH_SIZE, divide, pixel_batches, prepared
from probekit.files import replacing

if TYPE_CHECKING:
    import torch

    from probekit.backbones.backbone import Backbone
    from probekit.backbones.spec import ModelSpec

log = logging.getLogger(__name__)

# Enough for means and variances to settle.
RECALIBRATION_IMAGES = 2048
# How far the outputs of an unfolded network may be from those before, relative to their size.
UNCHANGED = 1e-5


def unfold(
    model: str | ModelSpec | Backbone, data: str | ImageSet, out: str | Path, *, device: str | None = None
) -> dict[str, Any]:
    """Write a checkpoint whose folded batch norm has the statistics of images, and computes the same.

    The file is loaded by the same architecture. Its function in eval mode is compared with the old one on the
    images, and refused if it moved by more than 1e-5.

    Args:
        model: A model in words, or a backbone.
        data: Images in words, or an ImageSet; at most 2,048 of the training split are used.
        out: Where the weights are written, as safetensors.
        device: Where it runs; None is the CPU.

    Returns:
        ``path``, ``layers`` (how many were unfolded), ``images``, ``relative_change`` (of the outputs).

    Raises:
        InputError: If ``out`` does not end in .safetensors, the batch norm is not folded, or images are few.
        CheckpointError: If the outputs change.
    """
    from safetensors.torch import save_file

    from probekit.backbones.backbone import Backbone
    from probekit.backbones.batch_norm import tracking_layers
    from probekit.backbones.loading import load_backbone

    path = Path(out)
    if path.suffix != ".safetensors":
        raise InputError("a file that ends in .safetensors", repr(str(out)), "Name it weights.safetensors")
    backbone = model if isinstance(model, Backbone) else load_backbone(model, device=device or "cpu")
    images = open_images(data)
    edited = unfolded(backbone, images)
    subset, _ = _statistics_images(images, images.indices("train"))
    change = _relative_change(backbone, edited, next(_prepared(backbone, subset)))
    if not change <= UNCHANGED:
        raise CheckpointError(
            f"outputs that stay within {UNCHANGED:g} of what they were",
            f"a relative change of {change:.2g}",
            "Use images of another kind: channels that are almost constant on these lose precision",
        )
    with replacing(path) as temporary:
        save_file({name: one.contiguous() for name, one in edited.module.state_dict().items()}, temporary)
    return {
        "path": str(path),
        "layers": len(tracking_layers(edited.module)),
        "images": len(subset),
        "relative_change": change,
    }


def recalibrated(backbone: Backbone, images: ImageSet, within: Sequence[str] | None = None) -> Backbone:
    """Return a copy whose batch-norm statistics come from at most 2,048 images of the training split.

    Images are taken spread evenly over the split. Where no image is for training, nothing is fitted to some
    images and tested on others, and all of them count.

    Args:
        backbone: Left as it is.
        images: Whose training split is taken.
        within: Paths of modules: batch norm elsewhere keeps its statistics. None: all.
    """
    from probekit.backbones.batch_norm import recalibrate_batch_norm

    train = images.indices("train")
    subset, source = _statistics_images(images, train if len(train) else np.arange(len(images)))
    note = f"batch-norm statistics of {source}" + ("" if within is None else f" within {', '.join(within)}")
    return recalibrate_batch_norm(backbone, _prepared(backbone, subset), note, within=within)


def unfolded(backbone: Backbone, images: ImageSet) -> Backbone:
    """Return a copy whose folded batch norm has the statistics of at most 2,048 training images.

    Its function in eval mode stays what it was. The images are those that ``recalibrated`` takes.

    Raises:
        InputError: If the batch norm is not folded, or the training split has fewer than two images.
    """
    from probekit.backbones.batch_norm import unfold_batch_norm

    subset, source = _statistics_images(images, images.indices("train"))
    return unfold_batch_norm(
        backbone, _prepared(backbone, subset), f"batch norm unfolded, statistics of {source}"
    )


def _statistics_images(images: ImageSet, places: NDArray[np.integer[Any]]) -> tuple[ImageSet, str]:
    """Return the images at some places that batch-norm statistics come from, and what to call them."""
    if len(places) < 2:
        raise InputError(
            "at least two training images to estimate batch-norm statistics",
            f"{len(places)} in {images.name}",
            "Give a training split",
        )
    chosen = places[np.unique(np.linspace(0, len(places) - 1, RECALIBRATION_IMAGES).astype(int))]
    subset = images.select(chosen)
    kind = "training images" if len(images.indices("train")) else "images"
    return subset, f"{len(subset)} {kind} of {images.name} ({images.digest[:12]})"


def _prepared(backbone: Backbone, images: ImageSet) -> Iterator[torch.Tensor]:
    for _, pixels in pixel_batches(
        images, backbone.preprocessing, divide(np.arange(len(images)), BATCH_SIZE)
    ):
        yield prepared(backbone, pixels)


def _relative_change(one: Backbone, other: Backbone, batch: torch.Tensor) -> float:
    """Return ‖difference‖ / ‖output‖ over one batch."""
    import torch

    with torch.inference_mode():
        before, after = one.module(batch), other.module(batch)
    if not isinstance(before, torch.Tensor):
        raise InputError(
            "a network that returns one tensor", type(before).__name__, "Give a function that returns one"
        )
    return float((after - before).norm() / before.norm())
