"""Boxes: where objects are, and of which class."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from probekit.data.images import ImageSet
from probekit.data.transforms import Preprocessing
from probekit.errors import DataError, InputError
from probekit.functional.detection import MOST_DETECTIONS, Marks
from probekit.tasks.task import Score, Task, Values

if TYPE_CHECKING:
    from torch import Tensor, nn

# Place of the class in the last axis of truth and answers, and of the crowd flag or score behind it.
_CLASS, _LAST = 4, 5


class Detection(Task):
    """torchvision's FCOS head on one level: the deepest map, enlarged to 1/16 of the side or so.

    Images are shown whole: the long side is resized to the input, the rest is filled with the mean colour.
    ``truth`` and answers are (N, K, 6): x0, y0, x1, y1 in pixels of the input, class (−1 for an empty place),
    and whether it is a crowd, or the score. Metrics: ``ap``, mean over IoU 0.5, 0.55, …, 0.95, ``ap50`` and
    ``ap75``, by faster-coco-eval. Source: Tian, Shen, Chen and He, FCOS (ICCV 2019); Lin et al., Microsoft
    COCO (ECCV 2014).
    """

    name: ClassVar[str] = "detection"
    kind: ClassVar[str] = "boxes"
    reads: ClassVar[str] = "map"
    metrics: ClassVar[tuple[str, ...]] = ("ap", "ap50", "ap75")
    keeps: ClassVar[bool] = True

    def pixels(self, images: ImageSet, index: int, preprocessing: Preprocessing) -> NDArray[np.uint8]:
        """Return one image whole, (S, S, 3)."""
        return preprocessing.whole(images.image(index))

    def truth(self, images: ImageSet, preprocessing: Preprocessing) -> Values:
        """Return (N, K, 6) true boxes.

        Raises:
            DataError: If no image has a box that counts.
        """
        values = images.targets[self.target].values
        most = max((len(one) for one in values), default=0)
        found = np.full((len(images), most, 6), -1, np.float32)
        for row, one in enumerate(values):
            corners = preprocessing.places_whole(one.corners.reshape(-1, 2), *images.image(row).size)
            found[row, : len(one), :4] = np.clip(corners, 0, 1).reshape(-1, 4) * preprocessing.size
            found[row, : len(one), _CLASS] = one.classes
            found[row, : len(one), _LAST] = one.crowd
        # A box outside of its image, or thinner than what numbers can tell, is none.
        thin = (found[:, :, 2:4] - found[:, :, :2] < 1e-3).any(axis=2)
        found[thin] = -1
        if not ((found[:, :, _CLASS] >= 0) & (found[:, :, _LAST] == 0)).any():
            raise DataError(
                f"boxes in {self.target} that count",
                f"none in {len(images)} images of {images.name}",
                "Look at the annotations, or divide the images otherwise",
            )
        return found

    def head(self, shape: Sequence[int], truth: Values, size: int) -> nn.Module:
        """Return a head that maps (N, D, H, W) to what loss and answers are made from."""
        from probekit.tasks.one_stage import OneStage

        return OneStage(shape[0], len(self.classes), size)

    def loss(self, outputs: Any, truth: Tensor) -> Tensor:  # noqa: ANN401 - of torchvision's head
        """Return the sum of focal loss, box loss and centre loss."""
        losses = outputs["detector"].compute_loss(
            as_targets(truth), outputs["made"], outputs["anchors"], [outputs["places"]]
        )
        total: Tensor = sum(losses.values())
        return total

    def answer(self, outputs: Any) -> Values:  # noqa: ANN401 - of torchvision's head
        """Return (N, 100, 6) detections, best first."""
        made = {name: [one.float()] for name, one in outputs["made"].items()}
        shapes = [(outputs["size"], outputs["size"])] * len(outputs["anchors"])
        found = outputs["detector"].postprocess_detections(
            made, [[one] for one in outputs["anchors"]], shapes
        )
        return as_answers(found)

    def score(self, answers: Values, truth: Values) -> Mapping[str, Score]:
        """Return the average precisions."""
        found = coco_scores(as_detections(answers), as_truth(truth), len(truth), len(self.classes))
        return {name: Score(value, np.empty(0)) for name, value in found.items()}

    def baseline(self, train: Values, test: Values) -> Mapping[str, float]:
        """Return 0: what is said without looking is found nowhere."""
        return dict.fromkeys(self.metrics, 0.0)


@dataclass(frozen=True)
class RegionDetection(Detection):
    """Faster R-CNN on C4: proposals from the map before the last stage, which then reads each region.

    torchvision's region proposal network, RoIAlign and losses; the last stage of the backbone is the head of
    regions, trained with it or frozen as it is, with its batch norm as ``batch_norm`` says. So every level
    lies on the way to classes and boxes; proposals are made without the last stage, as they are in C4.
    Detections and metrics as of ``Detection``. Source: Ren, He, Girshick and Sun, Faster R-CNN (NeurIPS
    2015); He et al., Mask R-CNN (ICCV 2017), section 3, ResNet-50-C4.

    Attributes:
        norm: Whether a batch norm with gain and shift stands between the last stage and its mean over
            positions, as in MoCo's detector (He et al., CVPR 2020, appendix); else one without them stands
            behind the mean.
    """

    reads: ClassVar[str] = "stages"

    norm: bool = False

    def head(self, shape: Sequence[int], truth: Values, size: int) -> nn.Module:
        """Return a head that maps (N, D, H, W) and the last stage to what loss and answers are made from."""
        from probekit.tasks.two_stage import TwoStage

        return TwoStage(tuple(shape), len(self.classes), size, norm=self.norm)

    def loss(self, outputs: Any, truth: Tensor) -> Tensor:  # noqa: ANN401 - of that head
        """Return the sum of the losses of proposals and of regions, in classes and in boxes."""
        return outputs.loss(as_targets(truth))  # type: ignore[no-any-return]

    def answer(self, outputs: Any) -> Values:  # noqa: ANN401 - of that head
        """Return (N, 100, 6) detections, best first."""
        return as_answers(outputs.detections())

    def facts(self) -> dict[str, Any]:
        """Return what stands for the task in keys."""
        return {**super().facts(), "head": "c4-norm" if self.norm else "c4"}


def as_targets(truth: Tensor) -> list[dict[str, Tensor]]:
    """Return boxes and labels of each image as torchvision takes them, from (N, K, 6) truth; no crowds."""
    real = [one[(one[:, _CLASS] >= 0) & (one[:, _LAST] == 0)] for one in truth]
    return [{"boxes": one[:, :4], "labels": one[:, _CLASS].long()} for one in real]


def as_answers(found: Sequence[Mapping[str, Tensor]]) -> Values:
    """Return (N, 100, 6) detections from boxes, labels and scores of each image, best first."""
    answers = np.full((len(found), MOST_DETECTIONS, 6), -1, np.float32)
    for row, one in enumerate(found):
        count = len(one["scores"])
        answers[row, :count, :4] = one["boxes"].cpu().numpy()
        answers[row, :count, _CLASS] = one["labels"].cpu().numpy()
        answers[row, :count, _LAST] = one["scores"].cpu().numpy()
    return answers


def as_detections(answers: Values) -> Marks:
    """Return the detections of (N, K, 6) answers."""
    real = answers[:, :, _CLASS] >= 0
    rows = answers[real]
    # A box cut off at the edge of the image may have no area left.
    solid = (rows[:, 2:4] > rows[:, :2]).all(axis=1)
    images = np.nonzero(real)[0][solid]
    rows = rows[solid]
    return Marks.of(images, rows[:, _CLASS], rows[:, :4], rows[:, _LAST])


def as_truth(truth: Values) -> Marks:
    """Return the true boxes of (N, K, 6) truth."""
    real = truth[:, :, _CLASS] >= 0
    rows = truth[real]
    return Marks.of(np.nonzero(real)[0], rows[:, _CLASS], rows[:, :4], crowd=rows[:, _LAST] > 0)


def coco_scores(detections: Marks, truth: Marks, images: int, classes: int) -> dict[str, float]:
    """Return ``ap``, ``ap50`` and ``ap75`` by faster-coco-eval, over the classes that have a true box.

    NaN where none has.

    Args:
        detections: Of all images.
        truth: Of all images.
        images: N.
        classes: C.

    Raises:
        InputError: If faster-coco-eval is not installed.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise InputError(
            "faster-coco-eval, for average precision", "none installed", "Install probekit-vision[detection]"
        ) from error

    if truth.crowd.all():
        return dict.fromkeys(Detection.metrics, float("nan"))
    said: dict[str, Any] = {
        "images": [{"id": number} for number in range(images)],
        "categories": [{"id": label, "name": str(label)} for label in range(classes)],
        "annotations": [
            {**one, "id": number + 1, "iscrowd": int(crowd), "area": one["bbox"][2] * one["bbox"][3]}
            for number, (one, crowd) in enumerate(zip(_boxes(truth), truth.crowd, strict=True))
        ],
    }
    if not len(detections):
        return dict.fromkeys(Detection.metrics, 0.0)
    scored = [
        {**one, "score": float(score)}
        for one, score in zip(_boxes(detections), detections.scores, strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        real = COCO(said)
        run = COCOeval_faster(real, real.loadRes(scored), iouType="bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return {name: float(run.stats[place]) for place, name in enumerate(Detection.metrics)}


def _boxes(marks: Marks) -> list[dict[str, Any]]:
    boxes = np.hstack([marks.boxes[:, :2], marks.boxes[:, 2:] - marks.boxes[:, :2]])
    return [
        {"image_id": image, "category_id": label, "bbox": box}
        for image, label, box in zip(
            marks.images.tolist(), marks.classes.tolist(), boxes.tolist(), strict=True
        )
    ]
