"""torchvision's Faster R-CNN on the map before the last stage of a backbone, which reads each region (C4)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import RoIAlign

from probekit.errors import InputError
from probekit.functional.detection import MOST_DETECTIONS

# Sides of anchors as shares of the side of the image: 32 to 512 pixels of 768.
ANCHORS, RATIOS = (1 / 24, 1 / 12, 1 / 6, 1 / 3, 2 / 3), (0.5, 1.0, 2.0)
# Positions a side of a region: 14, as in C4, or as many as a smaller map has.
REGION = 14
# Fewest positions a side of the map.
LEAST_SIDE = 4
# Proposals that are learnt from an image, and regions; a quarter of the latter on objects.
PROPOSALS, REGIONS = 256, 64
# Proposals that are kept, before and behind suppression.
KEPT = {"training": 2000, "testing": 1000}, {"training": 1000, "testing": 300}
# Detections below this score are left out, as are those that overlap a better one of their class by more.
LEAST_SCORE, MOST_OVERLAP = 0.05, 0.5

Rest = Callable[[Tensor], Tensor]
Targets = Sequence[Mapping[str, Tensor]]


class TwoStage(nn.Module):
    """A detector whose backbone is elsewhere.

    Args:
        shape: (D, H, W, D′): the map it is given, and the channels behind the last stage.
        classes: Number of classes.
        size: Side of the images in pixels.
        norm: Whether the norm behind the last stage has gain and shift, and stands before the mean over
            positions.

    Raises:
        InputError: If the map is too small.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, size: int, *, norm: bool) -> None:
        super().__init__()
        width, *sides, deep = shape
        if min(sides) < LEAST_SIDE:
            raise InputError(
                f"a map of at least {LEAST_SIDE} × {LEAST_SIDE} positions before the last stage",
                f"{sides[0]} × {sides[1]} at an input of {size}", "Raise the input with size=",
            )  # fmt: skip
        self.size = size
        anchors = AnchorGenerator((tuple(size * one for one in ANCHORS),), (RATIOS,))
        # No part of the head sees the scale of features.
        self.even = nn.BatchNorm2d(width, affine=False)
        self.proposals = RegionProposalNetwork(
            anchors,
            RPNHead(width, anchors.num_anchors_per_location()[0]),
            0.7,
            0.3,
            PROPOSALS,
            0.5,
            *KEPT,
            0.7,
        )
        # Aligned to half a position, as Detectron2 pools regions.
        self.pool = RoIAlign(min(REGION, *sides), sides[0] / size, sampling_ratio=2, aligned=True)
        self.behind = nn.Sequential(
            nn.BatchNorm2d(deep) if norm else nn.Identity(),
            nn.AdaptiveAvgPool2d(1),
            nn.Identity() if norm else nn.BatchNorm2d(deep, affine=False),
            nn.Flatten(),
        )
        self.regions = RoIHeads(
            None, None, FastRCNNPredictor(deep, classes + 1),
            0.5, 0.5, REGIONS, 0.25, None, LEAST_SCORE, MOST_OVERLAP, MOST_DETECTIONS,
        )  # fmt: skip

    def forward(self, maps: Tensor, rest: Rest) -> Asked:
        """Return what loss and detections are made from."""
        return Asked(self, maps, rest)

    def propose(self, maps: Tensor, targets: Targets | None) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Return (P, 4) boxes of each image, and the losses of proposals in training."""
        frame = ImageList(maps.new_empty(len(maps), 3, self.size, self.size), self.frames(maps))
        found: tuple[list[Tensor], dict[str, Tensor]] = self.proposals(
            frame, {"0": self.even(maps).float()}, targets
        )
        return found

    def describe(self, maps: Tensor, boxes: list[Tensor], rest: Rest) -> tuple[Tensor, Tensor]:
        """Return (R, C + 1) logits and (R, 4 · (C + 1)) moves of all boxes; class 0 is the background."""
        regions = self.pool(maps.float(), boxes)
        logits, moves = self.regions.box_predictor(self.behind(rest(regions)))
        return logits.float(), moves.float()

    def frames(self, maps: Tensor) -> list[tuple[int, int]]:
        """Return height and width of each image."""
        return [(self.size, self.size)] * len(maps)


@dataclass(frozen=True, eq=False)
class Asked:
    """A batch that waits for its truth, or for the question what is in it.

    Attributes:
        detector: Of both stages.
        maps: (N, D, H, W).
        rest: The last stage of the backbone.
    """

    detector: TwoStage
    maps: Tensor
    rest: Rest

    def loss(self, targets: Targets) -> Tensor:
        """Return the sum of four losses; the detector is in training mode.

        Args:
            targets: ``boxes`` (K, 4) and ``labels`` (K,) of each image.
        """
        # Class 0 is the background.
        named = [{"boxes": one["boxes"], "labels": one["labels"] + 1} for one in targets]
        boxes, losses = self.detector.propose(self.maps, named)
        boxes, _, labels, moves = self.detector.regions.select_training_samples(boxes, named)
        told = fastrcnn_loss(*self.detector.describe(self.maps, boxes, self.rest), labels, moves)
        return torch.stack([*losses.values(), *told]).sum()

    def detections(self) -> list[dict[str, Tensor]]:
        """Return ``boxes``, ``labels`` and ``scores`` of each image, best first; in eval mode."""
        proposed, _ = self.detector.propose(self.maps, None)
        found = []
        # An image at a time: all of its regions pass through the last stage at once.
        for place, boxes in enumerate(proposed):
            one = self.maps[place : place + 1]
            said = self.detector.describe(one, [boxes], self.rest)
            kept = self.detector.regions.postprocess_detections(*said, [boxes], self.detector.frames(one))
            named = dict(zip(("boxes", "scores", "labels"), (parts[0] for parts in kept), strict=True))
            found.append(named | {"labels": named["labels"] - 1})
        return found
