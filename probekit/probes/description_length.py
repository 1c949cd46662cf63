"""Description length: what labels cost in bits where features are seen and labels are learnt as they come."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, logsumexp

from probekit.data.targets import Target
from probekit.functional.intervals import bootstrap_means
from probekit.functional.rows import empty_rows, row_blocks
from probekit.functional.softmax_regression import fit_softmax
from probekit.probes.controls import null_columns, permute_rows
from probekit.probes.linear import NULL_GAP
from probekit.probes.protocol import Protocol, TapData
from probekit.seeds import random_stream

# t₁ … t_S in percent of the images, Voita and Titov (2020), section 4.1.
PORTIONS = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.25, 12.5, 25.0, 50.0, 100.0)
CODED = "train+val"
CI_KIND = "bootstrap,coded images"
# Images a class that every fit sees besides those whose labels are known: Laplace's rule of succession.
_IMAGINARY = 1.0
# A penalty that cost this many bits more than the best one on the last block has no say in the next.
_DROPPED_BITS = 10.0


@dataclass(frozen=True)
class OnlineCode:
    """What labels cost, for L labellings of the same N images.

    Attributes:
        bits: (L, N) bits of each image's label.
        penalties: (L,) penalty with the most say when the last block was coded.
    """

    bits: NDArray[np.float64]
    penalties: NDArray[np.float64]


def portion_ends(count: int) -> list[int]:
    """Return after how many images the code learns anew: t₁ < … < t_S = N.

    Few images have fewer portions, of which none is empty.

    Args:
        count: N of at least 1.

    Examples:
        >>> portion_ends(1000), portion_ends(8)
        ([1, 2, 4, 8, 16, 32, 62, 125, 250, 500, 1000], [1, 2, 4, 8])
    """
    return sorted({max(1, round(share * count / 100)) for share in PORTIONS})


def encode(
    features: NDArray[np.float32],
    labellings: NDArray[np.int64],
    penalties: NDArray[np.float64],
    *,
    n_classes: int,
    gap: float = NULL_GAP,
) -> OnlineCode:
    """Code labels block by block, each by probes fitted to the blocks before it.

    L = t₁·log₂ C − Σᵢ log₂ p_θᵢ(y_{tᵢ+1..tᵢ₊₁} | x), Voita and Titov, Information-theoretic probing with
    minimum description length (EMNLP 2020), equation 3. Whoever decodes sees the same features, so that only
    labels cost bits.

    Every fit also sees one imaginary image a class at the features' mean. So a class that has not turned up
    keeps a probability above 0, and a fit to nothing else is the uniform code of the first block. Penalties
    share the say: p = Σ w·p_penalty with w ∝ 2^(−bits of the last block), all alike at first. No label of a
    block has a part in how it is coded.

    Args:
        features: (N, D) of mean 0, in the order of coding.
        labellings: (L, N) labels from 0 to C − 1, each coded on its own.
        penalties: (P,) candidates on ½‖W‖² beside the mean cross-entropy, sorted.
        n_classes: C.
        gap: Largest relative objective gap of a fit. Any fit gives a code that can be decoded: a wider gap
            costs bits, not truth.

    Examples:
        >>> code = encode(np.zeros((8, 1), np.float32), np.arange(8)[None] % 2, np.ones(1), n_classes=2)
        >>> code.bits.round(1).tolist()
        [[1.0, 1.6, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]]
    """
    labelled, count = labellings.shape
    bits = np.full((labelled, count), np.log2(n_classes))
    weights = last = np.full((labelled, len(penalties)), 1 / len(penalties))
    for start, end in pairwise(portion_ends(count)):
        log_p = _predict(features[:end], labellings[:, :end], start, penalties, weights > 0, n_classes, gap)
        log_w = np.log(weights, out=np.full_like(weights, -np.inf), where=weights > 0)
        for part in row_blocks(end - start, weights.size):
            said = logsumexp(log_w[:, :, None] + log_p[:, :, part], axis=1)
            bits[:, start:end][:, part] = -said / np.log(2)
        last, weights = weights, _weigh(-log_p.sum(axis=2) / np.log(2))
    return OnlineCode(bits, penalties[last.argmax(axis=1)])


def _predict(
    features: NDArray[np.float32],
    labellings: NDArray[np.int64],
    known: int,
    penalties: NDArray[np.float64],
    wanted: NDArray[np.bool_],
    n_classes: int,
    gap: float,
) -> NDArray[np.float64]:
    """Return (L, P, n − known) log p of the labels not known; −∞ for the penalties not wanted."""
    labelled, place = np.nonzero(wanted)
    imaginary = np.broadcast_to(np.arange(n_classes), (len(place), n_classes))
    shown = empty_rows((known + n_classes, features.shape[1]), np.float32)
    shown[:known], shown[known:] = features[:known], 0
    path = fit_softmax(
        shown,
        np.concatenate([labellings[labelled, :known], imaginary], axis=1),
        penalties[place],
        n_classes=n_classes,
        sample_weight=np.concatenate([np.ones(known), np.full(n_classes, _IMAGINARY)]),
        gap=gap,
    )
    found = empty_rows((*wanted.shape, len(features) - known), np.float64)
    found[:] = -np.inf
    fits = zip(labelled, place, path.weights, path.intercepts, strict=True)
    for labelling, penalty, weight, intercept in fits:
        truth = labellings[labelling, known:, None]
        for part in row_blocks(len(truth), max(weight.shape)):
            log_p = log_softmax(features[known:][part] @ weight + intercept, axis=1)
            found[labelling, penalty, part] = np.take_along_axis(log_p, truth[part], axis=1)[:, 0]
    return found


def _weigh(bits: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (L, P) shares in the next block from (L, P) bits of the last, infinite where nothing was fitted.

    The best penalty moves with the number of images. So those next to one that is kept stay in the running,
    and come back to it, as if they were just about to be dropped.
    """
    behind = bits - bits.min(axis=1, keepdims=True)
    kept = behind <= _DROPPED_BITS
    near = kept.copy()
    near[:, 1:] |= kept[:, :-1]
    near[:, :-1] |= kept[:, 1:]
    share = np.where(near, 2.0 ** -np.minimum(behind, _DROPPED_BITS), 0.0)
    return np.asarray(share / share.sum(axis=1, keepdims=True))


def description_rows(data: TapData, name: str, target: Target, protocol: Protocol) -> list[dict[str, Any]]:
    """Code the labels of train and val, which the probe is fitted on; test images are not touched.

    The length depends on the order of the images and is averaged over several. The interval resamples coded
    images and leaves the code as it is, as intervals of test scores leave the probe. The null codes permuted
    labels, once in every order, with penalties weighed anew: what the same procedure pays where there is
    nothing to learn.

    Returns:
        A row of ``description_length`` in bits an image and one of ``compression``, N·log₂ C/L; none for 0
        orders.
    """
    if not protocol.orders:
        return []
    penalties = np.array(sorted(protocol.penalties, reverse=True))
    gap = max(NULL_GAP, protocol.gap)
    labels = target.values[data.roles.fitting]
    count = len(labels)
    lots = permute_rows(count, protocol.orders, seed=protocol.seed, name=f"coded {name}")
    costs = np.zeros(count)
    lengths, nulls, heaviest = [], [], []
    for number, lot in enumerate(lots):
        order = random_stream(f"order {name}", protocol.seed, number).permutation(count)
        shown = [labels[order], labels[lot]] if protocol.permutations else [labels[order]]
        code = encode(
            _ordered(data.refit.fit, order), np.stack(shown), penalties, n_classes=target.n_classes, gap=gap
        )
        costs[order] += code.bits[0] / protocol.orders
        lengths.append(float(code.bits[0].mean()))
        nulls += code.bits[1:].mean(axis=1).tolist()
        heaviest.append(float(code.penalties[0]))
    low, high = bootstrap_means(
        costs[:, None],
        draws=protocol.bootstrap_draws,
        stream=random_stream(f"bootstrap {name}", protocol.seed),
    )
    params = {
        "orders": protocol.orders,
        "order_sd": float(np.std(lengths, ddof=1)) if len(lengths) > 1 else None,
        "first_block": portion_ends(count)[0],
        "penalty": heaviest,
        "penalties": [float(penalties.min()), float(penalties.max())],
        "gap": gap,
    }
    ends = np.array([costs.mean(), low[0], high[0]])
    uniform = np.log2(target.n_classes)
    return [
        _row("description_length", ends, np.array(nulls), count, params),
        # The shorter, the more compressed: ends change places.
        _row("compression", uniform / ends[[0, 2, 1]], uniform / np.array(nulls), count, params),
    ]


def _ordered(features: NDArray[np.float32], order: NDArray[np.intp]) -> NDArray[np.float32]:
    rows = empty_rows(features.shape, np.float32)
    for part in row_blocks(*rows.shape):
        rows[part] = features[order[part]]
    return rows


def _row(
    metric: str, ends: NDArray[np.float64], nulls: NDArray[np.float64], count: int, params: dict[str, Any]
) -> dict[str, Any]:
    value, low, high = (float(one) for one in ends)
    row = {"metric": metric, "value": value, "ci_low": low, "ci_high": high, "ci_kind": CI_KIND}
    return row | null_columns(nulls) | {"n": count, "split": CODED, "params": params}
