"""Objectives of pretraining as pure functions of tensors.

Letters: N images of a batch, D length of an embedding, Q entries of the queue, C classes, t temperature; q
and k are unit vectors of two views of one image, y labels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from probekit.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

# Label of a queue entry that no image has filled yet: it belongs to no class.
EMPTY = -1


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean of −log softmax(logits) at the labels.

    Args:
        logits: (N, C).
        labels: (N,) integers.

    Examples:
        >>> import torch
        >>> float(cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3])).exp().round(decimals=4))
        4.0
    """
    from torch.nn import functional as F

    return F.cross_entropy(logits, labels)


def instance_discrimination(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Return the mean loss of telling each image's other view from the queue.

    L_q = −log exp(q·k⁺/t) / (exp(q·k⁺/t) + Σ_i exp(q·k_i/t)), i over the queue. Source: He, Fan, Wu, Xie and
    Girshick, Momentum Contrast for Unsupervised Visual Representation Learning (CVPR 2020), equation 1.

    Args:
        query: (N, D) unit vectors.
        key: (N, D) unit vectors of the other views, without gradient.
        queue: (Q, D) unit vectors of images seen before.
        temperature: t > 0.
    """
    return _first_of(*_similarities(query, key, queue), temperature)


def exemplar(
    query: Tensor,
    key: Tensor,
    queue: Tensor,
    labels: Tensor,
    queue_labels: Tensor,
    temperature: float,
) -> Tensor:
    """Return the mean loss of telling each image's other view from images of other classes.

    L_q = −log exp(q·k⁺/t) / (exp(q·k⁺/t) + Σ_{i: y_i ≠ y_q} exp(q·k_i/t)): entries of the query's own class
    leave the denominator, so that images of one class are neither pulled together nor pushed apart. A query
    all of whose entries leave has no loss. Source: Zhao, Wu, Lau and Lin, What Makes Instance Discrimination
    Good for Transfer Learning? (ICLR 2021), section 5.

    Args:
        query: (N, D) unit vectors.
        key: (N, D) unit vectors of the other views, without gradient.
        queue: (Q, D) unit vectors of images seen before.
        labels: (N,) classes of the queries.
        queue_labels: (Q,) classes of the entries; ``EMPTY`` is nobody's class and never leaves.
        temperature: t > 0.
    """
    positive, negative = _similarities(query, key, queue)
    own_class = labels[:, None] == queue_labels[None, :]
    return _first_of(positive, negative.masked_fill(own_class, -float("inf")), temperature)


def supervised_contrast(embeddings: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return the mean loss that pulls all views of a class together.

    L_i = −1/|P(i)| · Σ_{p ∈ P(i)} log( exp(z_i·z_p/t) / Σ_{a ≠ i} exp(z_i·z_a/t) ), P(i) all others of i's
    class. Source: Khosla et al., Supervised Contrastive Learning (NeurIPS 2020), equation 2 (L_out).

    Args:
        embeddings: (M, D) unit vectors, every view of every image one row.
        labels: (M,) classes of the rows; each has at least two rows.
        temperature: t > 0.

    Raises:
        InputError: If there are fewer than two rows.
    """
    import torch

    if len(embeddings) < 2:
        raise InputError("at least two views", str(len(embeddings)), "Use a larger batch")
    logits = _products(embeddings, embeddings) / temperature
    itself = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    logs = logits - logits.masked_fill(itself, -float("inf")).logsumexp(dim=1, keepdim=True)
    positives = (labels[:, None] == labels[None, :]) & ~itself
    means = (logs * positives).sum(dim=1) / positives.sum(dim=1).clamp(min=1)
    return -means.mean()


def reconstruction(made: Tensor, images: Tensor) -> Tensor:
    """Return the mean squared error of images made from their embeddings.

    Args:
        made: (N, 3, H, W).
        images: (N, 3, H, W).
    """
    from torch.nn import functional as F

    return F.mse_loss(made, images)


def _similarities(query: Tensor, key: Tensor, queue: Tensor) -> tuple[Tensor, Tensor]:
    """Return q·k⁺ (N, 1) and q·k_i (N, Q)."""
    return (query * key).sum(dim=1, keepdim=True), _products(query, queue)


def _products(left: Tensor, right: Tensor) -> Tensor:
    """Return the products of all rows in their own precision: the temperature multiplies what is rounded."""
    import torch

    with torch.autocast(left.device.type, enabled=False):
        return left @ right.T


def _first_of(positive: Tensor, negative: Tensor, temperature: float) -> Tensor:
    """Return the mean of −log softmax at the first place."""
    import torch

    logits = torch.cat([positive, negative], dim=1) / temperature
    return (logits.logsumexp(dim=1) - logits[:, 0]).mean()
