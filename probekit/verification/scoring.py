"""How well a way to prepare images fits: hits of the classifier, or agreement with batch-norm statistics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from probekit.backbones.backbone import Backbone
from probekit.data.images import ImageSet
from probekit.data.transforms import Preprocessing
from probekit.errors import CheckpointError, InputError
from probekit.features.streaming import BATCH_SIZE, divide, pixel_batches
from probekit.progress import progress_bar
from probekit.taps.layers import list_layers
from probekit.taps.record import record
from probekit.verification.candidates import Candidate


class Pixels:
    """Images decoded once for each size and interpolation; the last one asked for is kept.

    Args:
        images: What is decoded.
    """

    def __init__(self, images: ImageSet) -> None:
        self._images = images
        self._kept: tuple[Preprocessing | None, list[NDArray[np.uint8]]] = (None, [])

    def batches(self, candidate: Candidate) -> Iterator[NDArray[np.uint8]]:
        """Yield pixels (n, size, size, 3), channels in the candidate's order."""
        for pixels in self._decoded(candidate.preprocessing):
            yield np.ascontiguousarray(pixels[..., ::-1]) if candidate.blue_first else pixels

    def _decoded(self, preprocessing: Preprocessing) -> Iterator[NDArray[np.uint8]]:
        plain = Preprocessing(
            preprocessing.size, preprocessing.resize, interpolation=preprocessing.interpolation
        )
        if self._kept[0] == plain:
            yield from self._kept[1]
            return
        kept = []
        batches = divide(np.arange(len(self._images)), BATCH_SIZE)
        for _, pixels in pixel_batches(self._images, plain, batches):
            kept.append(pixels)
            yield pixels
        self._kept = (plain, kept)


def predict(backbone: Backbone, pixels: Pixels, candidate: Candidate, label: str) -> NDArray[np.int64]:
    """Return the output with the highest score for every image, (N,).

    Raises:
        CheckpointError: If scores are not finite.
        InputError: If the network does not return (N, C) scores.
    """
    prepared = replace(backbone, preprocessing=candidate.preprocessing)
    found = []
    with progress_bar(None, label, "img") as bar, torch.inference_mode():
        for batch in pixels.batches(candidate):
            scores = backbone.module(prepared.prepare(torch.from_numpy(batch).to(backbone.device)))
            if not isinstance(scores, torch.Tensor) or scores.dim() != 2:
                raise InputError(
                    "class scores (N, C) from the network",
                    type(scores).__name__
                    if not isinstance(scores, torch.Tensor)
                    else f"shape {tuple(scores.shape)}",
                    "Give a function that returns the classifier's scores",
                )
            if not torch.isfinite(scores).all():
                raise CheckpointError(
                    "finite class scores", f"NaN or infinity from {backbone.name}", "Check the weights"
                )
            found.append(scores.argmax(1).cpu().numpy())
            bar.update(len(batch))
    return np.concatenate(found)


@dataclass(frozen=True)
class InputStatistics:
    """What comes into the first batch norm, image by image, and what training kept of it.

    Attributes:
        path: Module path of the layer.
        sums: (N, 2·D) mean and mean square of every channel over positions.
        mean: (D,) running mean.
        variance: (D,) running variance.
    """

    path: str
    sums: NDArray[np.float64]
    mean: NDArray[np.float64]
    variance: NDArray[np.float64]

    def divergence(self, sums: NDArray[np.float64], count: int) -> NDArray[np.float64]:
        """Return how far images are from the running statistics, in nats, averaged over channels.

        KL(N(μ, σ²) ‖ N(μᵣ, σᵣ²)) = ½·(log σᵣ²/σ² + (σ² + (μ − μᵣ)²)/σᵣ² − 1)

        Args:
            sums: (B, 2·D) column sums over ``count`` images.
            count: How many images each row sums.

        Returns:
            (B,) divergences, 0 for equal statistics.
        """
        mean, square = np.split(sums / count, 2, axis=1)
        tiny = 1e-6 * self.variance.mean()
        variance = np.maximum(square - mean**2, tiny)
        kept = np.maximum(self.variance, tiny)
        terms = np.log(kept / variance) + (variance + (mean - self.mean) ** 2) / kept - 1
        return np.asarray(0.5 * terms.mean(axis=1))


def first_batch_norm(backbone: Backbone) -> str | None:
    """Return the path of the batch norm that is called first and keeps statistics of images; None if none."""
    tracking = {
        name
        for name, one in backbone.module.named_modules()
        if isinstance(one, _BatchNorm) and one.running_mean is not None
    }
    executed = [path for path in list_layers(backbone)["path"] if path in tracking]
    return executed[0] if executed else None


def input_statistics(backbone: Backbone, path: str, pixels: Pixels, candidate: Candidate) -> InputStatistics:
    """Send images to the first batch norm, prepared as the candidate says.

    Raises:
        CheckpointError: If activations are not finite.
    """
    layer = backbone.module.get_submodule(path)
    prepared = replace(backbone, preprocessing=candidate.preprocessing)
    rows = []
    tap = f"{path}:in|raw"
    with record(backbone, tap) as run, progress_bar(None, f"Statistics before {path}", "img") as bar:
        for batch in pixels.batches(candidate):
            values = next(
                iter(run(prepared.prepare(torch.from_numpy(batch).to(backbone.device))).values())
            ).double()
            flat = values.flatten(2) if values.dim() > 2 else values[..., None]
            rows.append(torch.cat([flat.mean(2), flat.square().mean(2)], dim=1).cpu().numpy())
            bar.update(len(batch))
    sums = np.concatenate(rows)
    if not np.isfinite(sums).all():
        raise CheckpointError(
            "finite activations", f"NaN or infinity before {path} of {backbone.name}", "Check the weights"
        )
    return InputStatistics(path, sums, _kept(layer, "running_mean"), _kept(layer, "running_var"))


def _kept(layer: nn.Module, name: str) -> NDArray[np.float64]:
    values: NDArray[np.float64] = layer.get_buffer(name).double().cpu().numpy()
    return values
