"""Attributions: one map an image, of which output, by which method, and how exact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

METHODS = (
    "probe_cam", "grad_cam", "integrated_gradients", "deep_lift", "guided_backprop", "saliency", "occlusion",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Attributions:
    """Where one score of each image comes from.

    Attributes:
        maps: (N, H, W) float32, at input resolution or at that of a layer. Signed, but for ``saliency``:
            negative places speak against the output.
        ids: (N,) ids of the images.
        outputs: (N,) which output of the probe, a place in ``classes``.
        classes: Names of the K outputs.
        method: One of ``METHODS``.
        size: Side of the input in pixels.
        against: (N,) outputs whose scores are taken off; None: nothing is.
        values: Numbers of each image, (N,) each. ``score``: what was attributed. Where maps add up to a
            difference of scores, ``difference``: that to the baseline, and ``delta``: how far the map's sum
            lies above it.
        settings: What else decided the maps, as JSON values.
    """

    maps: NDArray[np.float32]
    ids: NDArray[np.str_]
    outputs: NDArray[np.int64]
    classes: tuple[str, ...]
    method: str
    size: int
    against: NDArray[np.int64] | None = None
    values: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        rows, columns = self.maps.shape[1:]
        return f"Attributions({self.method}: {len(self)} maps of {rows}×{columns}, input {self.size} px)"

    def upsampled(self) -> Attributions:
        """Return the maps at input resolution: bilinear, corners not aligned; sums are not kept.

        Examples:
            >>> found = Attributions(np.ones((1, 2, 2), np.float32), np.array(["a"]), np.zeros(1, np.int64),
            ...                      ("cat", "dog"), "probe_cam", 4)
            >>> found.upsampled()
            Attributions(probe_cam: 1 maps of 4×4, input 4 px)
        """
        import torch

        wanted = (self.size, self.size)
        if self.maps.shape[1:] == wanted:
            return self
        maps = torch.from_numpy(np.ascontiguousarray(self.maps))[:, None]
        larger = torch.nn.functional.interpolate(maps, wanted, mode="bilinear", align_corners=False)
        return replace(self, maps=larger[:, 0].numpy())
