"""Faster R-CNN on C4: torchvision's losses and detections, small inputs, images without boxes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from probekit import load_backbone
from probekit.errors import InputError
from probekit.finetuning.network import Tuned, read_for
from probekit.tasks.detection import RegionDetection, as_answers, as_targets
from probekit.tasks.two_stage import TwoStage

CLASSES = ("a", "b")
SIZE = 64


def stage() -> nn.Module:
    return nn.Sequential(nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.ReLU())


def truth() -> Tensor:
    found = torch.full((2, 2, 6), -1.0)
    found[0, 0] = torch.tensor([6, 8, 30, 28, 0, 0])
    found[1, 0] = torch.tensor([30, 20, 58, 52, 1, 0])
    found[1, 1] = torch.tensor([4, 40, 20, 60, 0, 0])
    return found


def head(norm: bool = False) -> TwoStage:
    torch.manual_seed(0)
    made = RegionDetection("boxes", CLASSES, norm).head((8, 8, 8, 12), np.empty(0), SIZE)
    assert isinstance(made, TwoStage)
    return made


class Oracle(nn.Module):
    """torchvision's own order of things: proposals, then regions, each by its ``forward``."""

    def __init__(self, detector: TwoStage, rest: nn.Module) -> None:
        super().__init__()
        self.detector, self.heads = detector, detector.regions
        self.heads.box_head = lambda regions: detector.behind(rest(regions))
        self.heads.box_roi_pool = lambda features, boxes, _: detector.pool(features["0"], boxes)

    def forward(
        self, maps: Tensor, targets: list[dict[str, Tensor]] | None
    ) -> tuple[list[dict[str, Tensor]], Tensor]:
        """Return detections and the sum of losses."""
        shapes = [(SIZE, SIZE)] * len(maps)
        even = {"0": self.detector.even(maps)}
        frame = ImageList(torch.empty(len(maps), 3, SIZE, SIZE), shapes)
        boxes, first = self.detector.proposals(frame, even, targets)
        found, second = self.heads({"0": maps}, boxes, shapes, targets)
        return found, sum([*first.values(), *second.values()], torch.zeros(()))


@pytest.mark.parametrize("norm", [False, True])
def test_loss_and_detections_are_those_of_torchvision(norm):
    detector, rest, maps = head(norm), stage(), torch.randn(2, 8, 8, 8)
    task = RegionDetection("boxes", CLASSES, norm)
    torch.manual_seed(1)
    loss = task.loss(detector(maps, rest), truth())
    oracle = Oracle(detector, rest)
    named = [{"boxes": one["boxes"], "labels": one["labels"] + 1} for one in as_targets(truth())]
    torch.manual_seed(1)
    expected = oracle(maps, named)[1]
    torch.testing.assert_close(loss, expected)
    detector.eval()
    with torch.no_grad():
        answers, (found, _) = task.answer(detector(maps, rest)), oracle(maps, None)
    assert (answers[:, 0, 5] > 0).all()
    for one in found:
        one["labels"] -= 1
    np.testing.assert_allclose(answers, as_answers(found), atol=1e-4)
    assert answers[:, :, 4].max() <= 1


def test_the_norms_of_the_two_variants_stand_where_they_should():
    maps = 5 + 3 * torch.randn(6, 12, 4, 4)
    plain, normed = head(), head(norm=True)
    assert {one.affine for one in plain.modules() if isinstance(one, nn.BatchNorm2d)} == {False}
    even = plain.behind(maps)
    torch.testing.assert_close(even.var(0, unbiased=False), torch.ones(12), atol=1e-3, rtol=1e-3)
    expected = nn.BatchNorm2d(12)(maps).mean((2, 3))
    torch.testing.assert_close(normed.behind(maps), expected)
    assert sum(one.affine for one in normed.modules() if isinstance(one, nn.BatchNorm2d)) == 1


def test_proposals_do_not_see_the_scale_of_features():
    detector, maps = head(), torch.randn(2, 8, 8, 8)
    targets = as_targets(truth())
    losses = []
    for scale in (1, 1000):
        torch.manual_seed(1)
        losses.append(torch.stack([*detector.propose(scale * maps, targets)[1].values()]).detach())
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-4)


def test_regions_are_pooled_where_they_are():
    detector = head()
    # Position (r, c) of the map is the middle of pixels 8·c … 8·c + 7.
    maps = torch.arange(8.0).view(1, 1, 1, 8).expand(1, 8, 8, 8).contiguous()
    pooled = detector.pool(maps, [torch.tensor([[16.0, 8, 48, 40]])])
    assert pooled.shape == (1, 8, 8, 8)
    # Eight columns between pixels 16 and 48, whose middles lie at 18, 22, … 46.
    torch.testing.assert_close(pooled[0, 0, 0], torch.arange(18.0, 48, 4) / 8 - 0.5)


def test_images_without_boxes_and_crowds_can_be_trained_on_and_asked():
    detector, rest, task = head(), stage(), RegionDetection("boxes", CLASSES)
    empty = torch.full((2, 1, 6), -1.0)
    empty[0, 0] = torch.tensor([0, 0, 20, 20, 1, 1])
    loss = task.loss(detector(torch.randn(2, 8, 8, 8), rest), empty)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(one.grad).all() for one in detector.parameters() if one.grad is not None)
    with torch.no_grad():
        # Scores below the least: nothing is found, and that is an answer.
        detector.regions.box_predictor.cls_score.bias[0] = 50
        answers = task.answer(detector.eval()(torch.randn(2, 8, 8, 8), rest))
    assert (answers == -1).all()


def test_maps_that_are_too_small_are_refused():
    with pytest.raises(
        InputError, match=r"4 × 4 positions before the last stage; got 3 × 3 at an input of 24"
    ):
        RegionDetection("boxes", CLASSES).head((8, 3, 3, 12), np.empty(0), 24)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_half_precision_gives_a_finite_loss(precision):
    detector, rest = head(), stage()
    with torch.autocast("cpu", precision, precision == torch.bfloat16):
        maps = stage()[0](torch.randn(2, 8, 16, 16))[:, :8]
        loss = RegionDetection("boxes", CLASSES).loss(detector(maps, rest), truth())
    loss.backward()
    assert torch.isfinite(loss)


@pytest.mark.slow
@pytest.mark.parametrize("norm", [False, True])
def test_two_planted_images_are_learnt_by_heart(norm):
    backbone = load_backbone("resnet10_w16:random@3,size=64")
    task = RegionDetection("boxes", CLASSES, norm)
    reading = read_for(backbone, task)
    torch.manual_seed(0)
    learner = Tuned(backbone, task, task.head(reading.told, np.empty(0), SIZE), reading, "train").train()
    images, planted = 0.2 * torch.rand(2, 3, SIZE, SIZE), truth()
    for image, boxes in zip(images, planted, strict=True):
        for x0, y0, x1, y1, label, _ in boxes.long().tolist():
            if label >= 0:
                image[label, y0:y1, x0:x1] += 2
    optimiser = torch.optim.AdamW(learner.parameters(), 3e-3)

    def ap50() -> float:
        with torch.inference_mode():
            found = task.score(task.answer(learner.eval().outputs(images)), planted.numpy())
        return found["ap50"].value

    assert ap50() < 0.3
    for _ in range(25):
        loss = learner.train()((images, planted))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert ap50() > 0.95
