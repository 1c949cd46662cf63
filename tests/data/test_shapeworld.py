"""ShapeWorld: what an image shows, what it depends on, and that no shortcut leads to its class."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import pytest
from scipy import ndimage, stats
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from probekit.data import shapeworld, worlds
from probekit.data.shapes import FAMILIES, KEYPOINTS
from probekit.data.shapeworld import (
    FACTORS,
    SIZE,
    WORLDS,
    annotate,
    class_names,
    content_digest,
    render,
    sample,
)
from probekit.errors import InputError

SINGLE = ("source", "unseen", "shifted", "stars")
SEEN_WHOLE = [world for world in WORLDS if world != "textures"]
# SHA-256 of the first 60 images of each world, seed 0: VERSION must change when one of these does
PIXELS = {
    "source": "99a54b1b8396e65da256e970c98b990dde1a9858249982aecbb7d387017fab58",
    "unseen": "8c56270f30d7cc9a6e6381de0214934e9b351c176ecc0e0670429c1d08a014d3",
    "shifted": "f7f5e45d326c06ec476e8ba9d0c40a4c3fc3dcae1a958272daa1bee651da15df",
    "scenes": "20957708427b567c42f9588cd7b124347b3c2d907b6ae371a40c8c8614aa4e94",
    "textures": "9556f51514220ce8f2f8c7a37a55312028060728f5d13976707b81c6ecb3cedc",
    "stars": "c6e406851893b2f820a54aa4b16c5b81a8938916756a5f4766d38353390e9bff",
}
DIGEST_PROGRAM = """
import hashlib
from probekit.data import shapeworld
for world in shapeworld.WORLDS:
    print(world, hashlib.sha256(shapeworld.render(world, range(60)).tobytes()).hexdigest())
"""


def digest(pixels):
    return hashlib.sha256(pixels.tobytes()).hexdigest()


# --- what an image depends on


@pytest.mark.golden
@pytest.mark.parametrize("world", WORLDS)
def test_pixels_are_those_of_this_version(world):
    assert shapeworld.VERSION == 1
    assert digest(render(world, range(60))) == PIXELS[world]


@pytest.mark.golden
def test_facts_are_those_of_this_version():
    facts = sample("source", 3)
    assert facts.labels.tolist() == [13, 18, 14]
    np.testing.assert_allclose(facts.factors["x"].ravel(), [28.844269, 15.413258, 26.346988], atol=1e-6)
    np.testing.assert_allclose(
        facts.factors["articulation"].ravel(), [59.096608, 83.668392, 63.966068], atol=1e-6
    )


def test_pixels_do_not_depend_on_the_instructions_of_the_processor():
    found = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    if not found:
        pytest.skip("NumPy has one code path only on this processor")
    environment = {**os.environ, "NPY_DISABLE_CPU_FEATURES": " ".join(found)}
    plain = subprocess.run(
        [sys.executable, "-c", DIGEST_PROGRAM],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    expected = {world: digest(render(world, range(60))) for world in WORLDS}
    assert dict(line.split() for line in plain.stdout.splitlines()) == expected


@pytest.mark.parametrize("world", WORLDS)
def test_an_image_is_the_same_in_any_batch_and_order(world):
    images, annotations = render(world, range(70)), annotate(world, range(70))
    shuffled = np.random.default_rng(0).permutation(70)
    np.testing.assert_array_equal(render(world, shuffled), images[shuffled])
    np.testing.assert_array_equal(annotate(world, shuffled).masks, annotations.masks[shuffled])
    np.testing.assert_array_equal(annotate(world, shuffled).keypoints, annotations.keypoints[shuffled])
    for index in (0, 33, 69):
        np.testing.assert_array_equal(render(world, [index])[0], images[index])
    np.testing.assert_array_equal(render(world, [5, 5, 4]), images[[5, 5, 4]])


@pytest.mark.parametrize("world", WORLDS)
def test_a_sample_from_the_middle_is_the_middle_of_a_sample(world):
    whole, part = sample(world, 50, seed=4), sample(world, 13, seed=4, start=31)
    np.testing.assert_array_equal(part.labels, whole.labels[31:44])
    for name in FACTORS:
        np.testing.assert_array_equal(part.factors[name], whole.factors[name][31:44])


def test_images_far_apart_are_reached():
    far = 10**12
    assert sample("source", 2, start=far).labels.shape == (2,)
    np.testing.assert_array_equal(render("source", [far, 3])[1], render("source", [3])[0])


def test_seeds_and_worlds_differ():
    images = [render("source", range(6)), render("source", range(6), seed=1), render("shifted", range(6))]
    for i, one in enumerate(images):
        for other in images[i + 1 :]:
            assert all((a != b).mean() > 0.5 for a, b in zip(one, other, strict=True))
    assert (sample("source", 40).labels != sample("source", 40, seed=1).labels).any()


def test_no_two_images_are_equal():
    images = render("source", range(500))
    assert len({image.tobytes() for image in images}) == 500


def test_the_digest_changes_with_whatever_the_pixels_depend_on(monkeypatch):
    digests = {
        content_digest("source", 10, 0),
        content_digest("source", 11, 0),
        content_digest("source", 10, 1),
        content_digest("shifted", 10, 0),
    }
    assert {len(text) for text in digests} == {64}
    assert content_digest("source", 10, 0) in digests
    monkeypatch.setattr(shapeworld, "VERSION", 2)
    assert content_digest("source", 10, 0) not in digests
    assert len(digests) == 4


def test_render_gives_bytes_of_colour_and_nothing_for_nothing():
    assert render("source", range(3)).shape == (3, SIZE, SIZE, 3)
    assert render("source", range(3)).dtype == np.uint8
    assert render("scenes", []).shape == (0, SIZE, SIZE, 3)
    assert annotate("scenes", []).boxes.shape == (0, 3, 4)
    assert sample("source", 0).factors["hue"].shape == (0, 2)


def test_drawing_stays_in_single_precision():
    objects, scenery = (
        worlds.draw_objects("source", np.arange(4), 0),
        worlds.draw_scenery("source", np.arange(4), 0),
    )
    canvas = shapeworld._background(worlds.STYLES["source"], scenery, np.arange(4))
    assert canvas.dtype == np.float32
    drawn = shapeworld._with_object(canvas, worlds.STYLES["source"], objects, np.arange(4), 0, 2)
    assert drawn.dtype == np.float32


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: render("sauce", [0]), "source"),
        (lambda: class_names("scene"), "scenes"),
        (lambda: content_digest("x", 1, 0), "a world among"),
        (lambda: render("source", [-1]), "image numbers"),
        (lambda: render("source", [0.5]), "image numbers"),
        (lambda: sample("source", -3), "at least 0"),
        (lambda: sample("source", 3, start=-2), "at least 0"),
        (lambda: annotate("source", [[1, 2]]), "image numbers"),
    ],
)
def test_wrong_words_and_numbers_are_refused_by_name(call, words):
    with pytest.raises(InputError, match=words):
        call()


# --- labels


def test_class_names_say_family_and_texture():
    assert [len(class_names(world)) for world in WORLDS] == [20, 10, 20, 20, 4, 4]
    assert class_names("shifted") == class_names("source") == class_names("scenes")
    families = {world: {name.split("-")[0] for name in class_names(world)} for world in WORLDS}
    assert families["source"].isdisjoint(families["unseen"])
    assert all(len(set(class_names(world))) == len(class_names(world)) for world in WORLDS)
    assert all(name.isascii() for world in WORLDS for name in class_names(world))


@pytest.mark.parametrize("world", WORLDS)
def test_labels_are_balanced_in_every_run(world):
    n_classes = len(class_names(world))
    labels = sample(world, 12 * n_classes).labels
    for start in range(11 * n_classes):
        counts = np.bincount(labels[start : start + n_classes], minlength=n_classes)
        assert counts.max() <= 2
        assert start % n_classes or counts.tolist() == [1] * n_classes


def test_labels_cannot_be_told_from_the_order():
    labels = sample("source", 20 * 3000).labels.reshape(3000, 20)
    for place in range(20):
        assert stats.chisquare(np.bincount(labels[:, place], minlength=20)).pvalue > 1e-4
    followers = np.zeros((20, 20))
    np.add.at(followers, (labels[:, 3], labels[:, 4]), 1)
    assert stats.chisquare(followers[~np.eye(20, dtype=bool)]).pvalue > 1e-4


# --- factors


@pytest.mark.parametrize("world", WORLDS)
def test_factors_are_finite_in_range_and_uncorrelated(world):
    facts = sample(world, 8000)
    assert tuple(facts.factors) == FACTORS
    values = np.concatenate([facts.factors[name] for name in FACTORS], axis=1)
    assert values.dtype == np.float64
    assert np.isfinite(values).all()
    for name in ("rotation", "hue"):
        np.testing.assert_allclose(np.hypot(*facts.factors[name].T), 1.0, atol=2e-6)
    # 3.9 standard errors of a correlation over 8,000 images
    others = np.corrcoef(values.T)[~np.eye(values.shape[1], dtype=bool)]
    assert np.abs(others).max() < 3.9 / np.sqrt(8000)
    assert set(facts.factors["clutter"].ravel()) == set(range(9))
    for name in ("x", "y"):
        assert 0 < facts.factors[name].min() < facts.factors[name].max() < SIZE


def test_colours_are_what_the_factors_say():
    facts, images = sample("source", 100), render("source", range(100)) / 255.0
    brighter, lighter = [], []
    for i, (image, mask) in enumerate(zip(images, annotate("source", range(100)).masks, strict=True)):
        red, green, blue = image[ndimage.binary_erosion(mask > 0)].mean(axis=0)
        # hue angle of a mean colour: atan2(√3·(G − B), 2R − G − B)
        seen = np.arctan2(np.sqrt(3) * (green - blue), 2 * red - green - blue)
        turned = (seen - np.arctan2(*facts.factors["hue"][i]) + np.pi) % (2 * np.pi) - np.pi
        assert abs(turned) < 0.15
        brighter.append((red + green + blue) / 3 - facts.objects.brightness[i, 0])
        lighter.append(np.median(image[mask == 0].mean(axis=1)) - facts.factors["background"][i, 0])
    for errors in (np.array(brighter), np.array(lighter)):
        assert np.abs(errors).max() < 0.12
        assert abs(errors.mean()) < 0.015


def test_confetti_is_counted_by_clutter():
    indices = np.arange(300)
    objects, scenery = worlds.draw_objects("source", indices, 0), worlds.draw_scenery("source", indices, 0)
    confetti = worlds.draw_confetti("source", indices, 0, objects, scenery)
    np.testing.assert_array_equal(confetti.present.sum(axis=(1, 2)), scenery.clutter)
    distance = np.hypot(confetti.x - objects.x[:, :, None], confetti.y - objects.y[:, :, None])
    np.testing.assert_array_less(objects.scale.min() * 0.8, distance[confetti.present].min())
    # pieces on a flat canvas are as many separate spots
    canvas = np.zeros((300, 3, SIZE, SIZE), np.float32)
    shapeworld._add_confetti(canvas, worlds.STYLES["source"], confetti, indices)
    spots = [ndimage.label(np.abs(image).max(axis=0) > 0.05)[1] for image in canvas]
    assert np.mean(np.array(spots) == scenery.clutter) > 0.9


# --- shapes and textures


def grid(half=2.2, step=0.01):
    axis = np.arange(-half, half, step) + step / 2
    return np.meshgrid(axis, axis)


@pytest.mark.parametrize("name", FAMILIES)
def test_bodies_have_equal_areas_about_their_centre(name):
    # a tilted grid: straight edges must not run along its lines
    u, v = grid()
    u, v = u * np.cos(0.3) - v * np.sin(0.3), u * np.sin(0.3) + v * np.cos(0.3)
    inside = FAMILIES[name].distance(u, v) < 0
    assert inside.sum() * 0.01**2 == pytest.approx(np.pi, rel=0.004)
    np.testing.assert_allclose([u[inside].mean(), v[inside].mean()], 0.0, atol=0.01)


@pytest.mark.parametrize("name", FAMILIES)
def test_distances_never_change_faster_than_the_way(name):
    u, v = grid(step=0.02)
    distance = FAMILIES[name].distance(u, v)
    for axis in (0, 1):
        assert np.abs(np.diff(distance, axis=axis)).max() <= 0.02 * 1.001
    slope = np.hypot(np.diff(distance, axis=0)[:, :-1], np.diff(distance, axis=1)[:-1])
    # unit slope almost everywhere: edges are one pixel soft at any size
    assert np.mean(np.abs(slope / 0.02 - 1) < 0.02) > 0.95


@pytest.mark.parametrize("name", FAMILIES)
def test_part_points_lie_on_the_outline(name):
    family = FAMILIES[name]
    for u, v in (family.head, family.left, family.right):
        assert abs(family.distance(np.float64(u), np.float64(v))) < 0.003
    u, v = family.hinge
    assert family.distance(np.float64(u), np.float64(v)) < 0.4
    assert abs(family.distance(np.float64(u), np.float64(v - family.neck))) < 0.003 or family.neck
    if family.neck:
        assert family.distance(np.float64(u), np.float64(v - family.neck)) < 0


def test_the_star_is_the_polygon_of_its_ten_corners():
    from matplotlib.path import Path as Outline

    turn = np.arange(10) * np.pi / 5
    # inner radius r from the area 5·R·r·sin 36° = π
    radius = np.where(np.arange(10) % 2, np.pi / (5 * 1.5 * np.sin(np.pi / 5)), 1.5)
    outline = Outline(np.stack([radius * np.sin(turn), -radius * np.cos(turn)], axis=1))
    u, v = grid(step=0.05)
    distance = FAMILIES["star"].distance(u, v)
    inside = outline.contains_points(np.stack([u.ravel(), v.ravel()], axis=1)).reshape(u.shape)
    clear = np.abs(distance) > 0.01
    np.testing.assert_array_equal((distance < 0)[clear], inside[clear])


@pytest.mark.parametrize("name", shapeworld.TEXTURES)
def test_textures_have_mean_zero_and_variance_one(name):
    a, b = np.meshgrid(*[(np.arange(600) + 0.5) / 200] * 2)
    pattern = shapeworld.TEXTURES[name](a, b)
    assert pattern.mean() == pytest.approx(0.0, abs=1e-3)
    assert pattern.std() == pytest.approx(1.0, abs=1e-3)
    assert np.abs(pattern).max() < 1.75


@pytest.mark.parametrize("world", WORLDS)
def test_hardly_any_colour_is_clipped(world):
    images = render(world, range(400))
    assert np.mean((images == 0) | (images == 255)) < 0.005


# --- boxes, masks, keypoints


@pytest.mark.parametrize("world", SEEN_WHOLE)
def test_boxes_hold_their_masks_tightly(world):
    found = annotate(world, range(120))
    for labels, boxes, mask in zip(found.labels, found.boxes, found.masks, strict=True):
        assert set(np.unique(mask)) == {0, *(np.flatnonzero(labels >= 0) + 1)}
        for place, (label, box) in enumerate(zip(labels, boxes, strict=True)):
            rows, columns = np.nonzero(mask == place + 1)
            if label < 0:
                assert box.tolist() == [0, 0, 0, 0]
            else:
                tight = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                assert box.tolist() == tight


def test_textures_fill_their_images():
    assert (annotate("textures", range(200)).masks == 1).all()


@pytest.mark.parametrize("world", SEEN_WHOLE)
def test_visible_feet_stand_in_the_mask_of_their_object(world):
    found = annotate(world, range(200))
    feet = [KEYPOINTS.index("left foot"), KEYPOINTS.index("right foot")]
    column, row = np.moveaxis(np.floor(found.keypoints[:, :, feet]).astype(int), -1, 0)
    image, place, _ = np.nonzero(found.visible[:, :, feet])
    shown = found.visible[:, :, feet]
    np.testing.assert_array_equal(found.masks[image, row[shown], column[shown]], place + 1)
    assert shown[found.labels >= 0].mean() > 0.85


def test_hidden_and_outlying_points_are_marked():
    found = annotate("scenes", range(600))
    x, y = np.moveaxis(found.keypoints, -1, 0)
    outside = (x < 0) | (x >= SIZE) | (y < 0) | (y >= SIZE)
    assert outside.any()
    assert not found.visible[outside].any()
    assert not found.visible[found.labels < 0].any()
    hidden = ~found.visible & ~outside & (found.labels >= 0)[:, :, None]
    assert 0 < hidden.sum() < 0.05 * hidden.size
    # the first place is the foremost: nothing hides it
    assert not hidden[:, 0].any()


@pytest.mark.parametrize("world", SINGLE)
def test_keypoints_follow_the_factors(world):
    facts, found = sample(world, 100), annotate(world, range(100))
    part = dict(zip(KEYPOINTS, np.moveaxis(found.keypoints[:, 0], 1, 0), strict=True))
    centre = np.concatenate([facts.factors["x"], facts.factors["y"]], axis=1)
    np.testing.assert_allclose(part["centre"], centre)
    # the head is above the centre at rotation 0 and turns clockwise: direction (sin, −cos)
    sine, cosine = facts.factors["rotation"].T
    up = np.stack([sine, -cosine], axis=1)
    for label, name in enumerate(class_names(world)):
        own = facts.labels == label
        head, hinge = FAMILIES[name.split("-")[0]].head[1], FAMILIES[name.split("-")[0]].hinge[1]
        scale = facts.factors["scale"][own]
        np.testing.assert_allclose(part["head"][own], centre[own] - up[own] * head * scale, atol=1e-4)
        np.testing.assert_allclose(part["hinge"][own], centre[own] - up[own] * hinge * scale, atol=1e-4)
    legs = [part[f"{side} foot"] - part["hinge"] for side in ("left", "right")]
    cosine = (legs[0] * legs[1]).sum(axis=1) / np.prod([np.linalg.norm(leg, axis=1) for leg in legs], axis=0)
    np.testing.assert_allclose(np.degrees(np.arccos(cosine)), facts.factors["articulation"][:, 0], atol=1e-3)


def test_turning_the_object_by_a_quarter_turns_its_mask():
    from dataclasses import replace

    drawn = worlds.draw_objects("source", np.arange(20), 0)
    centred = {"x": np.full((20, 1), SIZE / 2), "y": np.full((20, 1), SIZE / 2)}
    sine, cosine = np.moveaxis(drawn.rotation, -1, 0)
    quarter = np.stack([cosine, -sine], axis=-1)
    for name in FAMILIES:
        upright, turned = (
            shapeworld._coverage(FAMILIES[name], replace(drawn, rotation=turn, **centred), np.arange(20), 0)[
                1
            ]
            for turn in (drawn.rotation, quarter)
        )
        # clockwise on screen
        np.testing.assert_allclose(np.rot90(upright, -1, axes=(2, 3)), turned, atol=1e-4)


def test_larger_scale_covers_more_by_its_square():
    facts, found = sample("source", 400), annotate("source", range(400))
    areas = (found.masks > 0).sum(axis=(1, 2)) / facts.factors["scale"][:, 0] ** 2
    assert areas.std() / areas.mean() < 0.08


def test_scenes_hold_one_to_three_objects_the_largest_in_front():
    facts, found = sample("scenes", 900), annotate("scenes", range(900))
    counts = (found.labels >= 0).sum(axis=1)
    assert stats.chisquare(np.bincount(counts, minlength=4)[1:]).pvalue > 1e-3
    np.testing.assert_array_equal(found.labels[:, 0], facts.labels)
    np.testing.assert_array_equal(facts.objects.labels, found.labels)
    for one, other in pairwise(range(3)):
        assert (facts.objects.scale[:, one] >= facts.objects.scale[:, other]).all()
    np.testing.assert_array_equal(facts.objects.scale > 0, found.labels >= 0)
    others = found.labels[:, 1:][found.labels[:, 1:] >= 0]
    assert stats.chisquare(np.bincount(others, minlength=20)).pvalue > 1e-3


def test_nothing_hides_the_largest_object():
    objects, found = worlds.draw_objects("scenes", np.arange(200), 0), annotate("scenes", range(200))
    for i, label in enumerate(found.labels[:, 0]):
        family = FAMILIES[class_names("scenes")[label].split("-")[0]]
        _, alone = shapeworld._coverage(family, objects, np.array([i]), 0)
        np.testing.assert_array_equal(found.masks[i] == 1, alone[0, 0] >= 0.5)


# --- no shortcut to the class: 4,000 images to learn from, 2,000 to judge by


@pytest.fixture(scope="module")
def source():
    return sample("source", 6000), render("source", range(6000))


def judged(model, values, labels):
    """Accuracy on the last 2,000 of 6,000."""
    model = make_pipeline(StandardScaler(), model)
    return model.fit(values[:4000], labels[:4000]).score(values[4000:], labels[4000:])


@pytest.mark.slow
@pytest.mark.parametrize("what", ["factors", "mean colour", "mean colour and its spread"])
def test_the_class_is_not_in_the_factors_nor_in_the_mean_colour(source, what):
    facts, images = source
    if what == "factors":
        values = np.concatenate([facts.factors[name] for name in FACTORS], axis=1)
    else:
        pixels = images.reshape(6000, -1, 3).astype(np.float32)
        values = pixels.mean(axis=1)
        if what != "mean colour":
            values = np.concatenate([values, pixels.std(axis=1)], axis=1)
    for model in (
        LogisticRegression(),
        KNeighborsClassifier(10),
        HistGradientBoostingClassifier(max_iter=20, random_state=0),
    ):
        # chance is 0.05, its standard error over 2,000 images 0.005
        assert judged(model, values, facts.labels) <= 0.075


@pytest.mark.slow
def test_no_linear_template_of_the_pixels_tells_the_class(source):
    facts, images = source
    values = images.reshape(6000, -1).astype(np.float32)
    # penalty in the terms of mean cross-entropy + ½·penalty·‖W‖²
    best = max(
        judged(LogisticRegression(C=1 / (4000 * penalty), max_iter=40, tol=1e-2), values, facts.labels)
        for penalty in (10.0, 1.0, 0.1)
    )
    assert best <= 0.15


@pytest.mark.slow
def test_two_thousand_images_a_second_on_one_core():
    render("source", range(64))
    started = time.process_time()
    render("source", range(1000))
    assert 1000 / (time.process_time() - started) > 2000
