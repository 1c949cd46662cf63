"""Detections taken apart: parts by hand and by a loop, places against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probekit.errors import InputError
from probekit.functional.detection import BACKGROUND, FOUND, Marks, box_iou, diagnose_detections
from probekit.functional.detection_breakdown import (
    PARTS,
    hoiem_fractions,
    hoiem_parts,
    iou_histogram,
    localisation_split,
    mean_fractions,
    overlaps,
    top_of_class,
)

BOX = [0.0, 0.0, 10.0, 10.0]
R50 = 10 * np.sqrt(50)


def one_image(boxes, labels, scores=None, crowd=None):
    return Marks.of(np.zeros(len(labels)), labels, boxes, scores, crowd)


def random_case(seed: int, images: int = 5, classes: int = 4) -> tuple[Marks, Marks]:
    """Return detections, most of them near a true box, and true boxes with some crowds."""
    draws = np.random.default_rng(seed)
    corner = draws.uniform(0, 40, (24, 2))
    boxes = np.hstack([corner, corner + draws.uniform(8, 30, (24, 2))])
    truth = Marks.of(
        draws.integers(0, images, 24), np.arange(24) % classes, boxes, crowd=np.arange(24) % 9 == 8
    )
    source = draws.integers(0, 24, 60)
    near = boxes[source] + draws.normal(0, draws.choice([1.0, 5.0, 15.0], (60, 1)), (60, 4))
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
    named = np.where(draws.random(60) < 0.6, truth.classes[source], draws.integers(0, classes, 60))
    # Scores with ties.
    return Marks.of(truth.images[source], named, near, draws.integers(0, 20, 60) / 20), truth


def by_loop(kept: Marks, truth: Marks, groups: np.ndarray) -> dict[int, dict[str, float]]:
    """Count Hoiem's parts one detection at a time; matching is greedy, best score first, as in COCO."""
    taken: set[int] = set()
    parts: dict[int, str] = {}
    for row in np.argsort(-kept.scores, kind="stable").tolist():
        best = {"own": 0.0, "free": 0.0, "similar": 0.0, "other": 0.0, "crowd": 0.0}
        place = -1
        for true in range(len(truth)):
            if truth.images[true] != kept.images[row]:
                continue
            iou = float(box_iou(kept.boxes[row], truth.boxes[true])[0, 0])
            same = truth.classes[true] == kept.classes[row]
            if truth.crowd[true]:
                sides = np.minimum(kept.boxes[row][2:], truth.boxes[true][2:]) - np.maximum(
                    kept.boxes[row][:2], truth.boxes[true][:2]
                )
                area = (kept.boxes[row][2:] - kept.boxes[row][:2]).prod()
                best["crowd"] = max(best["crowd"], same * np.maximum(sides, 0).prod() / area)
                continue
            alike = groups[truth.classes[true]] == groups[kept.classes[row]]
            name = "own" if same else "similar" if alike else "other"
            best[name] = max(best[name], iou)
            if same and true not in taken and iou > best["free"]:
                best["free"], place = iou, true
        if best["free"] >= FOUND:
            taken.add(place)
            parts[row] = "right"
        elif best["crowd"] > FOUND:
            continue
        else:
            named = {"localisation": best["own"], "similar": best["similar"], "other": best["other"]}
            parts[row] = next((one for one, iou in named.items() if iou >= BACKGROUND), "background")
    found = {}
    for label in sorted(set(truth.classes[~truth.crowd].tolist())):
        count = int(((truth.classes == label) & ~truth.crowd).sum())
        order = [row for row in np.argsort(-kept.scores, kind="stable") if kept.classes[row] == label]
        best_ones = [parts[row] for row in order if row in parts][:count]
        shares = {part: best_ones.count(part) / count for part in PARTS}
        found[label] = shares | {"none": (count - len(best_ones)) / count}
    return found


@pytest.mark.parametrize("seed", range(20))
def test_fractions_are_those_of_a_loop(seed):
    detections, truth = random_case(seed)
    groups = np.array([0, 0, 1, 2])
    kept, told = diagnose_detections(detections, truth)
    near = overlaps(kept, truth, groups)
    found = hoiem_fractions(kept, truth, told, near)
    expected = by_loop(kept, truth, groups)
    assert set(found) == set(expected)
    for label, shares in found.items():
        assert shares == pytest.approx(expected[label]), label
        assert sum(shares.values()) == pytest.approx(1)
    assert sum(mean_fractions(found).values()) == pytest.approx(1)


def test_each_part_by_hand():
    # Classes 0 and 1 are alike; class 3 has no detection.
    truth = one_image(
        [BOX, [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]] + [[80, 0, 90, 10]] * 2, [0, 1, 2, 3, 0, 0]
    )
    said = [
        ([0, 0, 10, 9], 0, "right"),
        ([0, 0, 10, 10], 0, "localisation"),  # a duplicate, by its score
        ([5, 0, 15, 10], 0, "localisation"),  # IoU 1/3
        ([20, 0, 30, 10], 0, "similar"),
        ([40, 0, 50, 10], 0, "other"),
        ([200, 0, 210, 10], 0, "background"),
    ]
    detections = one_image(
        [box for box, _, _ in said], [label for _, label, _ in said], np.linspace(0.9, 0.4, 6)
    )
    kept, told = diagnose_detections(detections, truth)
    near = overlaps(kept, truth, [0, 0, 1, 2])
    assert hoiem_parts(told, near).tolist() == [part for _, _, part in said]
    # Three boxes of class 0: its three best detections count.
    assert top_of_class(kept, truth, told).tolist() == [True] * 3 + [False] * 3
    found = hoiem_fractions(kept, truth, told, near)
    assert found[0] == pytest.approx(dict.fromkeys(PARTS, 0.0) | {"right": 1 / 3, "localisation": 2 / 3})
    assert found[3]["none"] == 1
    # Without groups no class is similar to another.
    assert hoiem_parts(told, overlaps(kept, truth)).tolist()[3] == "other"


def test_overlaps_by_hand():
    truth = one_image([BOX, [0, 0, 10, 5], [0, 0, 30, 10]], [0, 1, 0], crowd=[False, False, True])
    near = overlaps(one_image([BOX, BOX, BOX], [0, 1, 2], [0.9, 0.8, 0.7]), truth, [0, 0, 1])
    assert near.own.tolist() == [1, 0.5, 0]
    assert near.match.tolist() == [0, 1, -1]
    assert near.similar.tolist() == [0.5, 1, 0]
    assert near.other.tolist() == [0, 0, 1]
    # In another image nothing is near.
    elsewhere = overlaps(Marks.of([7], [0], [BOX], [0.5]), truth)
    assert elsewhere.own.tolist() == [0]
    assert elsewhere.match.tolist() == [-1]
    with pytest.raises(InputError, match="a group for each of 2 classes"):
        overlaps(one_image([BOX], [1], [0.5]), truth, [0])


@pytest.mark.parametrize(
    ("box", "offset", "scale", "aspect", "repaired"),
    [
        # Moved by half its width, IoU 1/3: only the centre is wrong.
        ([5, 0, 15, 10], 0.5, 0, 0, [1, 0, 0]),
        # Twice as large around its centre, IoU 1/4: only the scale is wrong.
        ([-5, -5, 15, 15], 0, 1, 0, [0, 1, 0]),
        # Four times as wide as high, of equal area, IoU 50/150: only the aspect ratio is wrong.
        ([-5, 2.5, 15, 7.5], 0, 0, 2, [0, 0, 1]),
        # Twice as large from one corner, IoU 1/4: smaller about its own centre it overlaps by 25/175.
        ([0, 0, 20, 20], np.sqrt(0.5), 1, 0, [0, (1 / 7 - 1 / 4) / (3 / 4), 0]),
        # Twice as wide from one side, IoU 1/2. Centre: 10 × 10 of 200 overlap as before. Scale: √200 × √50
        # about (10, 5) overlaps by √50 · √50. Aspect ratio: √200 × √200 there overlaps by √50 · 10.
        ([0, 0, 20, 10], 0.5, 0.5, 1, [0, 2 * (50 / 150 - 0.5), 2 * (R50 / (300 - R50) - 0.5)]),
        (BOX, 0, 0, 0, [0, 0, 0]),
    ],
)
def test_places_by_hand(box, offset, scale, aspect, repaired):
    found = localisation_split([box], [BOX])
    assert found.offset == pytest.approx([offset])
    assert found.scale == pytest.approx([scale])
    assert found.aspect == pytest.approx([aspect])
    assert found.repaired == pytest.approx(np.array([repaired]), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.2, 5.0), st.floats(-40, 40))
def test_a_place_does_not_change_with_the_unit_or_origin(seed, factor, shift):
    draws = np.random.default_rng(seed)
    corner = draws.uniform(0, 20, (2, 6, 2))
    boxes, true = np.concatenate([corner, corner + draws.uniform(1, 20, (2, 6, 2))], axis=2)
    one, other = (
        localisation_split(boxes, true),
        localisation_split(factor * boxes + shift, factor * true + shift),
    )
    for name in ("offset", "scale", "aspect", "repaired"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-6)
    assert (one.repaired <= 1 + 1e-9).all()
    # What is wrong one way is wrong the other way with the other sign.
    back = localisation_split(true, boxes)
    np.testing.assert_allclose(back.scale, -one.scale, atol=1e-9)
    np.testing.assert_allclose(back.aspect, -one.aspect, atol=1e-9)


def test_the_histogram_counts_every_value_once():
    values = [0.0, 0.049, 0.05, 0.5, 0.99, 1.0, 1.0 + 1e-12]
    counts, edges = iou_histogram(values)
    assert counts.sum() == len(values)
    assert counts[[0, 1, 10, 19]].tolist() == [2, 1, 1, 3]
    assert edges[10] == pytest.approx(0.5)
    for wrong, bins in (([-0.1], 5), ([1.2], 5), ([np.nan], 5), ([0.5], 0)):
        with pytest.raises(InputError, match="IoUs from 0 to 1"):
            iou_histogram(wrong, bins)


def test_without_a_true_box_nothing_is_a_share():
    none = Marks.of([], [], [], [])
    kept, told = diagnose_detections(one_image([BOX], [0], [0.5]), none)
    assert hoiem_fractions(kept, none, told, overlaps(kept, none)) == {}
    assert np.isnan(mean_fractions({})["right"])
    with pytest.raises(InputError, match="a true box for each box"):
        localisation_split([BOX, BOX], [BOX])
    with pytest.raises(InputError, match="a true box for each box"):
        localisation_split([[0, 0, 0, 5]], [BOX])
