"""Control tasks: what a probe can learn by heart, and how far what it reads stands above that."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from probekit.functional.intervals import resampled_sums, t_interval
from probekit.functional.rows import row_blocks
from probekit.probes.controls import null_columns
from probekit.probes.protocol import Protocol
from probekit.seeds import random_stream


def memorised_shares(
    features: NDArray[np.float32],
    labellings: NDArray[np.integer[Any]],
    weights: NDArray[np.float64],
    intercepts: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return (B,) shares of images whose label a probe gives back that was fitted to these very labels.

    Args:
        features: (n, D).
        labellings: (B, n) what each probe was fitted to.
        weights: (B, D, C).
        intercepts: (B, C).
    """
    right = np.zeros(len(weights), np.int64)
    for rows in row_blocks(len(features), max(weights.shape[1:])):
        for place, (w, b) in enumerate(zip(weights, intercepts, strict=True)):
            given = (features[rows] @ w.astype(np.float32) + b).argmax(1)
            right[place] += (given == labellings[place, rows]).sum()
    return right / len(features)


def control_rows(
    hits: NDArray[Any],
    nulls: NDArray[np.float64],
    memorised: NDArray[np.float64],
    n_train: int,
    protocol: Protocol,
    name: str,
) -> list[dict[str, Any]]:
    """Score the control task, and the probe against it: selectivity = accuracy − control accuracy.

    The control task of Hewitt and Liang (Designing and interpreting probes with control tasks, EMNLP 2019)
    gives every word type a fixed random label, which a probe can only know by heart. What recurs among images
    is the image itself: so every image gets a random label, in the shares of the classes, and is asked for
    again (decisions/0015). These are the permuted labels of the null, which costs no further fit.

    Args:
        hits: (n,) whether the probe names each test image rightly.
        nulls: (B,) accuracy on test of the probes fitted to random labels.
        memorised: (B,) their accuracy on the images they were fitted on.
        n_train: How many those are.
        protocol: Shared settings.
        name: Target, which names the random stream.

    Returns:
        A row of ``control_accuracy`` and one of ``selectivity``; none without permutations.
    """
    if not len(memorised):
        return []
    low, high = t_interval(memorised)
    control: dict[str, Any] = {"metric": "control_accuracy", "value": float(memorised.mean())}
    control |= {"ci_low": low, "ci_high": high, "ci_kind": "t,labellings"} | null_columns(nulls)
    control |= {"n": n_train, "split": "train+val"}

    stream = random_stream(f"bootstrap {name}", protocol.seed)
    drawn = resampled_sums(hits[:, None], draws=protocol.bootstrap_draws, stream=stream)[:, 0] / len(hits)
    lots = stream.integers(len(memorised), size=(len(drawn), len(memorised)))
    low, high = np.quantile(drawn - memorised[lots].mean(axis=1), [0.025, 0.975])
    selectivity: dict[str, Any] = {"metric": "selectivity", "value": float(hits.mean() - memorised.mean())}
    selectivity |= {"ci_low": float(low), "ci_high": float(high)}
    selectivity |= {"ci_kind": "bootstrap,test units and labellings"} | null_columns(nulls - memorised)
    return [control, selectivity]
