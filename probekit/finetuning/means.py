"""Means over trials and over folds, with what their intervals are over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probekit.functional.intervals import t_interval

Values = NDArray[np.float64]
# What intervals are over. Folds share most of their training images, so that an interval over them is too
# narrow: the variance of cross-validation has no unbiased estimate (Bengio and Grandvalet, JMLR 2004).
OVER_TRIALS, OVER_FOLDS, OVER_SEEDS = "t,trials", "t,folds", "t,pretraining seeds"


def mean_row(values: Values, kind: str, why: str = "no training was finished") -> dict[str, Any]:
    """Return the mean of what is known with its t-interval, or why there is none.

    Args:
        values: (T,) one a trial or fold; NaN where it is not known.
        kind: Of the interval.
        why: Status where nothing is known.
    """
    known = values[np.isfinite(values)]
    if not len(known):
        return {"value": None, "status": why}
    row: dict[str, Any] = {"value": float(known.mean()), "n": len(known)}
    if len(known) > 1:
        low, high = t_interval(known)
        row |= {"ci_low": low, "ci_high": high, "ci_kind": kind}
    return row


def over_trials(values: Sequence[Values] | Values) -> Values:
    """Return (F,) means over the trials of each fold that were finished; NaN for none.

    Args:
        values: (F, T) a metric of each fold and trial; NaN for one that failed.

    Examples:
        >>> over_trials(np.array([[1.0, 3.0], [2.0, np.nan]])).tolist()
        [2.0, 2.0]
    """
    return np.array([one[np.isfinite(one)].mean() if np.isfinite(one).any() else np.nan for one in values])
