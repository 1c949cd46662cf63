"""Objectives: brute-force loops, independent libraries, limits, gradients by finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from probekit.errors import InputError
from probekit.pretraining import objectives

T = 0.2


def unit(count: int, seed: int, width: int = 6) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, width, generator=draws, dtype=torch.float64), dim=1)


QUERY, KEY, QUEUE = unit(5, 0), unit(5, 1), unit(9, 2)
LABELS = torch.tensor([0, 1, 1, 2, 0])
QUEUE_LABELS = torch.tensor([0, 0, 1, 1, 2, 3, -1, 3, 2])


def by_loops(masked: bool) -> float:
    total = 0.0
    for q, k, label in zip(QUERY, KEY, LABELS.tolist(), strict=True):
        positive = math.exp(float(q @ k) / T)
        below = positive
        for entry, other in zip(QUEUE, QUEUE_LABELS.tolist(), strict=True):
            if not masked or other != label:
                below += math.exp(float(q @ entry) / T)
        total -= math.log(positive / below)
    return total / len(QUERY)


def test_instance_discrimination_is_its_equation():
    found = objectives.instance_discrimination(QUERY, KEY, QUEUE, T)
    assert float(found) == pytest.approx(by_loops(masked=False), rel=1e-12)


def test_exemplar_is_its_equation():
    found = objectives.exemplar(QUERY, KEY, QUEUE, LABELS, QUEUE_LABELS, T)
    assert float(found) == pytest.approx(by_loops(masked=True), rel=1e-12)
    assert float(found) < by_loops(masked=False) - 0.1


def test_exemplar_with_labels_all_distinct_is_instance_discrimination():
    own = objectives.exemplar(QUERY, KEY, QUEUE, torch.arange(5), torch.arange(10, 19), T)
    assert torch.equal(own, objectives.instance_discrimination(QUERY, KEY, QUEUE, T))


def test_empty_entries_stay_for_every_query():
    everyone = torch.full((9,), objectives.EMPTY)
    own = objectives.exemplar(QUERY, KEY, QUEUE, LABELS, everyone, T)
    assert torch.equal(own, objectives.instance_discrimination(QUERY, KEY, QUEUE, T))


def test_a_query_without_any_entry_left_has_no_loss_and_no_gradient():
    query = QUERY.clone().requires_grad_()
    one_class = torch.zeros(5, dtype=torch.long)
    loss = objectives.exemplar(query, KEY, QUEUE, one_class, torch.zeros(9, dtype=torch.long), T)
    loss.backward()
    assert float(loss.detach()) == 0
    assert query.grad is not None
    assert bool((query.grad == 0).all())


def test_instance_discrimination_is_info_nce_of_another_library():
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    # Every query is an anchor with its key as positive and the queue as negatives.
    loss = losses.NTXentLoss(temperature=T)
    anchors = torch.arange(5)
    pairs = (
        anchors,
        anchors,
        anchors.repeat_interleave(9),
        torch.arange(5, 14).repeat(5),
    )
    theirs = loss(QUERY, indices_tuple=pairs, ref_emb=torch.cat([KEY, QUEUE]), ref_labels=torch.arange(14))
    ours = objectives.instance_discrimination(QUERY, KEY, QUEUE, T)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-6)


def test_instance_discrimination_is_lightlys():
    loss = pytest.importorskip("lightly.loss").NTXentLoss(temperature=T, memory_bank_size=(9, 6))
    loss.memory_bank.bank = QUEUE.float()
    loss.memory_bank.bank_ptr = torch.zeros(1, dtype=torch.long)
    theirs = loss(QUERY.float(), KEY.float())
    ours = objectives.instance_discrimination(QUERY.float(), KEY.float(), QUEUE.float(), T)
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)


def test_supervised_contrast_is_that_of_another_library():
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    views, labels = unit(12, 3), torch.arange(4).repeat(3)
    theirs = losses.SupConLoss(temperature=T)(views, labels)
    assert float(objectives.supervised_contrast(views, labels, T)) == pytest.approx(float(theirs), rel=1e-6)


def test_supervised_contrast_is_its_equation():
    views, labels = unit(8, 4), [0, 1, 0, 1, 0, 0, 1, 0]
    total = 0.0
    for i in range(8):
        below = sum(math.exp(float(views[i] @ views[a]) / T) for a in range(8) if a != i)
        others = [p for p in range(8) if p != i and labels[p] == labels[i]]
        total -= sum(math.log(math.exp(float(views[i] @ views[p]) / T) / below) for p in others) / len(others)
    found = objectives.supervised_contrast(views, torch.tensor(labels), T)
    assert float(found) == pytest.approx(total / 8, rel=1e-12)
    with pytest.raises(InputError, match="two views"):
        objectives.supervised_contrast(views[:1], torch.tensor([0]), T)


@pytest.mark.parametrize("name", ["cross_entropy", "instance", "exemplar", "contrast", "reconstruction"])
def test_gradients_are_those_of_finite_differences(name: str):
    logits = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    losses = {
        "cross_entropy": (lambda x: objectives.cross_entropy(x, LABELS), logits),
        "instance": (lambda x: objectives.instance_discrimination(x, KEY, QUEUE, T), QUERY),
        "exemplar": (lambda x: objectives.exemplar(x, KEY, QUEUE, LABELS, QUEUE_LABELS, T), QUERY),
        "contrast": (lambda x: objectives.supervised_contrast(x, LABELS, T), QUERY),
        "reconstruction": (
            lambda x: objectives.reconstruction(x, KEY.view(5, 1, 2, 3)),
            QUERY.view(5, 1, 2, 3),
        ),
    }
    loss, at = losses[name]
    assert torch.autograd.gradcheck(loss, (at.clone().requires_grad_(),))


def test_images_of_one_class_do_not_move_each_other_under_exemplar():
    """∂L/∂q has no part along the queue's entries of the query's class; under MoCo it has."""
    query = QUERY.clone().requires_grad_()
    queue = QUEUE.clone().requires_grad_()
    objectives.exemplar(query, KEY, queue, LABELS, QUEUE_LABELS, T).backward()
    assert queue.grad is not None
    # Class 3 is nobody's: it pushes all. Of class 0 two queries are members, the other three push.
    own = torch.zeros_like(queue)
    probabilities = torch.softmax(
        torch.cat([(QUERY * KEY).sum(1, keepdim=True), QUERY @ QUEUE.T], 1).masked_fill(
            torch.cat([torch.zeros(5, 1, dtype=torch.bool), LABELS[:, None] == QUEUE_LABELS], 1), -math.inf
        )
        / T,
        dim=1,
    )[:, 1:]
    own = probabilities.T @ QUERY / T / 5
    torch.testing.assert_close(queue.grad, own)
    assert bool((probabilities[LABELS[:, None] == QUEUE_LABELS] == 0).all())
