"""Taps read inside regions: exact on a ramp, whole images, one pass, nothing kept but regions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn

from probekit import Backbone, ImageSet, Preprocessing
from probekit.data.annotations import Boxes
from probekit.data.proposals import Proposals, draw_proposals
from probekit.data.whole import show_whole
from probekit.errors import InputError, NonFiniteFeatures, TapError
from probekit.features.features import Features
from probekit.features.regions import cell_stride, pool_regions, read_regions, resolve_places
from probekit.taps.record import record
from tests.data.boxed import boxed, boxes

SIDE, WIDTH, HEIGHT = 32, 64, 32
# The input is the pixels themselves, 0 to 255.
PIXELS = Preprocessing(SIDE, SIDE, (0.0, 0.0, 0.0), (1 / 255,) * 3, "nearest")


class Pooled(nn.Module):
    """Means over cells of 1, 4 and 8 pixels, and one vector an image; counts how often it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.mid, self.coarse = nn.AvgPool2d(1), nn.AvgPool2d(4), nn.AvgPool2d(8)
        self.fc = nn.Linear(3, 2)
        self.runs = [0]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.runs[0] += 1
        self.mid(self.fine(image))
        return self.fc(self.coarse(image).mean((2, 3)))


def pooled() -> Backbone:
    return Backbone.from_module(
        Pooled(), name="pooled", preprocessing=PIXELS, blocks=["fine", "mid", "coarse"]
    )


def ramps(annotated: list[Boxes]) -> ImageSet:
    """Images of 64 × 32 that hold x and y of the 32 × 16 pixels they are shown at: nothing is lost."""
    y, x = np.mgrid[:HEIGHT, :WIDTH] // 2
    # The third channel says which image it is.
    shown = [np.stack([x, y, np.full_like(x, 10 * row)], axis=-1) for row in range(len(annotated))]
    return boxed(annotated, np.array(shown, np.uint8))


def read(
    backbone: Backbone,
    images: ImageSet,
    store: Path,
    taps: tuple[str, ...] = ("fine", "mid", "coarse"),
    grid: int = 3,
    batch_size: int = 4,
    drawn: Proposals | None = None,
) -> dict[str, Features]:
    few, proposals = draw_proposals(images, "boxes", 1000) if drawn is None else (images, drawn)
    owners = proposals.images
    return read_regions(
        backbone,
        show_whole(few, backbone.preprocessing),
        resolve_places(backbone, list(taps)),
        proposals,
        splits=few.splits[owners],
        ids=few.ids[owners],
        grid=grid,
        store=store,
        batch_size=batch_size,
    )


def ramp_means(box: np.ndarray, axis: int, cell: int, grid: int, last: int) -> np.ndarray:
    """Return the mean of the ramp over each part of a region, sampled as RoIAlign says, by hand.

    Cell i, of centre (i + ½)·cell, holds the mean of its pixels' numbers, which is centre − ½; between
    centres it is interpolated, beyond the outermost ones it stays.
    """
    start, end = box[axis], box[axis + 2]
    points = int(np.ceil((end - start) / cell / grid))
    part = (end - start) / grid
    means = []
    for k in range(grid):
        places = start + k * part + (np.arange(points) + 0.5) * part / points
        means.append(np.clip(places, cell / 2, last - cell / 2).mean() - 0.5)
    return np.array(means)


@pytest.mark.parametrize(("tap", "cell"), [("fine", 1), ("mid", 4), ("coarse", 8)])
def test_a_ramp_is_read_as_its_closed_form_says(tap: str, cell: int, tmp_path: Path):
    images = ramps([boxes((4.2, 2, 40, 28.6), (0, 0, 64, 32), (50, 1, 63, 9)), boxes((11, 3.3, 30, 31))] * 3)
    few, proposals = draw_proposals(images, "boxes", 1000)
    found = read(pooled(), images, tmp_path, grid=3)[f"{tap}|roi(3)"]
    values = found.matrix().reshape(len(proposals), 3, 3, 3)
    placed = proposals.in_input(PIXELS)
    # The whole input is a ramp along x; along y the image ends at 16, which is checked below.
    expected = np.stack([ramp_means(box, 0, cell, 3, SIDE) for box in placed])
    # A region that ends where the image does is interpolated with what fills the input up.
    clear = placed[:, 3] <= 16 - cell / 2
    assert clear.sum() > 10
    for row in range(3):
        np.testing.assert_allclose(values[clear, 0, row], expected[clear], atol=1e-4)
    upright = np.stack([ramp_means(box, 1, cell, 3, SIDE) for box in placed])
    for column in range(3):
        np.testing.assert_allclose(values[clear, 1, :, column], upright[clear], atol=1e-4)
    own = np.broadcast_to(10.0 * proposals.images[clear, None, None], (clear.sum(), 3, 3))
    np.testing.assert_allclose(values[clear, 2], own, atol=1e-4)
    assert len(few) == 6


def test_what_fills_the_input_up_is_not_read_by_fine_maps(tmp_path: Path):
    images = boxed([boxes((0, 0, 64, 32))] * 3, np.full((3, 32, 64, 3), 200, np.uint8))
    found = read(pooled(), images, tmp_path, taps=("fine",), grid=1)["fine|roi(1)"]
    proposals = draw_proposals(images, "boxes", 1000)[1]
    inside = proposals.in_input(PIXELS)[:, 3] <= 15.5
    # All of the image is 200, the rest black: half a pixel at its end is interpolated, no more.
    np.testing.assert_allclose(found.matrix()[inside], 200, rtol=1e-6)
    assert (found.matrix()[~inside] > 200 * (1 - 0.25 / 8)).all()


def test_rows_are_regions_with_the_ids_and_splits_of_their_images(tmp_path: Path):
    images = ramps([boxes((4, 2, 40, 28), (0, 0, 60, 30)), boxes((11, 3, 30, 31)), boxes((8, 8, 20, 20))])
    found = read(pooled(), images, tmp_path)
    assert list(found) == ["fine|roi(3)", "mid|roi(3)", "coarse|roi(3)"]
    one = found["mid|roi(3)"]
    assert one.shape == (24, 27)
    assert one.axes == "N D"
    assert one.ids.tolist() == ["000000"] * 12 + ["000001"] * 6 + ["000002"] * 6
    assert one.splits.tolist() == ["train"] * 18 + ["test"] * 6
    assert (one.facts["readout"], one.facts["block"]) == ("roi(3)", "mid")


def test_a_box_reads_the_same_beside_others_and_in_any_batch(tmp_path: Path):
    alone = [boxes((4, 2, 40, 28)), boxes((11, 3, 30, 31)), boxes((20, 4, 60, 30))]
    among = [
        boxes((4, 2, 40, 28), (30, 10, 50, 30), (1, 1, 60, 20)),
        boxes((11, 3, 30, 31), (2, 2, 9, 9)),
        boxes((20, 4, 60, 30)),
    ]
    one = read(pooled(), ramps(alone), tmp_path / "one", batch_size=2)
    other = read(pooled(), ramps(among), tmp_path / "other", batch_size=3)
    for tap, features in one.items():
        few, many = features.matrix().reshape(3, 6, -1), other[tap].matrix().reshape(6, 6, -1)
        np.testing.assert_array_equal(few, many[[0, 3, 5]])


def test_what_is_kept_is_not_read_again(tmp_path: Path):
    backbone, images = pooled(), ramps([boxes((4, 2, 40, 28)), boxes((11, 3, 30, 31))])
    first = read(backbone, images, tmp_path, taps=("mid",))
    runs = backbone.module.runs
    before = runs[0]
    second = read(backbone, images, tmp_path, taps=("mid",))
    assert runs[0] == before
    np.testing.assert_array_equal(first["mid|roi(3)"].matrix(), second["mid|roi(3)"].matrix())
    read(backbone, images, tmp_path, taps=("mid", "coarse"))
    assert runs[0] == before + 1
    assert len(list(tmp_path.rglob("*.npy"))) == 2
    # Another grid, other regions or other images are other features.
    read(backbone, images, tmp_path, taps=("mid",), grid=2)
    read(backbone, images.select([1]), tmp_path, taps=("mid",))
    assert runs[0] == before + 3


def test_numbers_that_are_none_are_refused_and_leave_nothing(tmp_path: Path):
    backbone = Backbone.from_module(
        nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU()), name="bad", preprocessing=PIXELS
    )
    backbone.module[0].bias.data[:] = float("nan")
    with pytest.raises(NonFiniteFeatures, match="at 0 of bad"):
        read(backbone, ramps([boxes((4, 2, 40, 28))] * 3), tmp_path, taps=("0",))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in backbone.module.modules())


def test_patches_are_put_back_on_their_grid(tmp_path: Path):
    net = timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=0).eval()
    backbone = Backbone.from_module(net, name="vit", preprocessing=Preprocessing(64, 64))
    images = ramps([boxes((4, 2, 40, 28), (20, 4, 60, 30)), boxes((11, 3, 30, 31))])
    (tap,) = resolve_places(backbone, "blocks.1")
    found = read(backbone, images, tmp_path, taps=("blocks.1",), grid=2)["blocks.1|roi(2)"]
    few, proposals = draw_proposals(images, "boxes", 1000)
    shown = show_whole(few, backbone.preprocessing)
    pixels = np.stack([shown.pixels(row, backbone.preprocessing) for row in range(len(few))])
    with record(backbone, [tap]) as run:
        tokens = run(backbone.prepare(torch.from_numpy(pixels)))[tap]
    # One class token, then rows of four patches.
    maps = torch.stack([tokens[:, 1 + 4 * row : 5 + 4 * row] for row in range(4)], dim=1).permute(0, 3, 1, 2)
    placed = torch.tensor(proposals.in_input(backbone.preprocessing), dtype=torch.float32)
    expected = pool_regions(maps, placed, torch.tensor(proposals.images), stride=16.0, grid=2)
    np.testing.assert_allclose(found.matrix(), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("word", ["penultimate", ["mid", "fc"]])
def test_taps_without_positions_are_refused(word):
    with pytest.raises(TapError, match=r"positions.*at fc of pooled|positions.*at fc:in of pooled"):
        resolve_places(pooled(), word)


def test_readouts_are_refused():
    with pytest.raises(InputError, match=r"without a readout; got 'mid\|gap'"):
        resolve_places(pooled(), "mid|gap")


def test_cells_of_a_net_stand_for_its_stride():
    # 100 pixels through five halvings leave 4 cells of 32, the last of which reaches beyond the image.
    halvings = nn.Sequential(*(nn.Conv2d(1, 1, 3, stride=2, padding=1) for _ in range(5)))
    for size in (32, 48, 100, 160, 224, 225):
        side = halvings(torch.zeros(1, 1, size, size)).shape[-1]
        if side > 1:
            assert cell_stride(size, side) == 32
    assert cell_stride(224, 16, patches=True) == 14
