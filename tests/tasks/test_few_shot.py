"""Episodes as a task: classes that are kept apart, the same episodes for all, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from probekit import ImageSet
from probekit.data.targets import Target
from probekit.errors import DataError, InputError
from probekit.functional import draw_episodes, score_episodes
from probekit.seeds import random_stream
from probekit.tasks.choosing import find_task
from probekit.tasks.few_shot import FewShot

NAMES = tuple("abcdefghijkl")


def labelled(each: int = 4, count: int = 12) -> ImageSet:
    labels = np.tile(np.arange(count), 2 * each)
    splits = ["train"] * (each * count) + ["test"] * (each * count)
    pixels = np.zeros((len(labels), 8, 8, 3), np.uint8)
    return ImageSet.from_arrays("labelled", pixels, {"class": Target(labels, "class", NAMES[:count])}, splits)


def test_half_of_the_classes_are_trained_on_and_the_others_scored():
    images = labelled()
    whole, task = find_task("episodes", images), find_task("episodes/novel", images)
    values = images.targets["class"].values
    base, novel = (set(values[task.rows(images, role)]) for role in ("train", "test"))
    assert len(base) == len(novel) == 6
    assert not base & novel
    np.testing.assert_array_equal(whole.rows(images, "test"), images.indices("test"))
    assert whole.facts() != task.facts()
    with pytest.raises(DataError, match="at least 10 classes, half of them"):
        find_task("episodes/novel", labelled(count=9)).rows(labelled(count=9), "train")


def test_scores_are_those_of_the_episodes_and_shots_are_nested():
    task = FewShot("class", NAMES, queries=3, episodes=50)
    truth = np.arange(120) % 12
    features = (
        np.random.default_rng(0).normal(size=(120, 5))
        + 0.3 * np.random.default_rng(1).normal(size=(12, 5))[truth]
    )
    drawn = draw_episodes(truth, shots=5, queries=3, count=50, stream=random_stream("episodes", "class"))
    found = task.score(features, truth)
    assert found["five_shot_accuracy"].value == pytest.approx(score_episodes(features, drawn).mean())
    assert found["one_shot_accuracy"].value == pytest.approx(
        score_episodes(features, drawn.of_shots(1)).mean()
    )
    low, high = found["five_shot_accuracy"].interval
    assert low < found["five_shot_accuracy"].value < high
    # Features moved and turned as a whole are named alike.
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(5, 5)))[0]
    assert task.score(3 * features @ turn + 7, truth)["one_shot_accuracy"].value == pytest.approx(
        found["one_shot_accuracy"].value
    )
    assert task.baseline(truth, truth) == {"five_shot_accuracy": 0.2, "one_shot_accuracy": 0.2}


def test_five_classes_have_no_interval():
    truth = np.arange(100) % 5
    task = FewShot("class", NAMES[:5], episodes=5)
    assert task.score(np.eye(5)[truth], truth)["five_shot_accuracy"].interval is None


def test_the_head_passes_features_as_they_are_and_learns_classes():
    task = FewShot("class", NAMES)
    head = task.head((6,), np.arange(12), 8)
    x = torch.randn(24, 6)
    outputs = head(x)
    np.testing.assert_array_equal(task.answer(outputs), x.numpy())
    truth = torch.arange(24) % 12
    assert float(task.loss(outputs, truth).detach()) == pytest.approx(
        float(torch.nn.functional.cross_entropy(outputs[1], truth).detach())
    )


def test_data_without_episodes_and_classes_that_are_trained_on_are_refused():
    task = FewShot("class", NAMES)
    test, base = np.repeat(np.arange(6), 20), np.repeat(np.arange(6, 12), 8)
    task.check(base, base, test, tuned=True)
    task.check(test, test[:1], test, tuned=False)
    with pytest.raises(DataError, match="at least 20 images of every class in test.*got 19 of a"):
        task.check(base, base, test[1:], tuned=False)
    with pytest.raises(DataError, match="at least 5 classes in test.*got 4"):
        task.check(base, base, test[40:], tuned=False)
    with pytest.raises(InputError, match="not trained on; got 6 classes in both.*episodes/novel"):
        task.check(test, base, test, tuned=True)
    with pytest.raises(DataError, match="at least 6 images of every class in val"):
        task.check(base, base[::2], test, tuned=True)
