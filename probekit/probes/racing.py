"""Finding the penalty that is best on val without solving every one of them to the last digit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

from probekit.functional.rows import row_blocks
from probekit.functional.softmax_regression import SoftmaxPath

# Relative gap at which penalties race: what is right on val then differs by a few images at most.
_RACING_GAP = 1e-2
# Products a pass of one fit (N·D·C) below which all penalties together take less time than one by one.
_WORTH_A_RACE = 5e7
# Standard errors of a paired difference on val beyond which accuracy has fallen, and loss has risen.
_ACCURACY_DOUBT = 1.0
_LOSS_DOUBT = 4.0
_STEPS = 2
# What a fit still at the racing gap may gain: so many val images, such a share, or as many as one has so far.
_LEAST_SLACK, _LEAST_SLACK_SHARE = 4, 0.002


class Race:
    """Says which penalties to fit and how well, until the best on val stands.

    Penalties race at a wide gap: the stronger half together, then the weaker ones one by one, until one is
    past the best (`is_past_best`). Those that may still be the best are then solved to the asked gap.

    Args:
        features: (n, D) standardised val rows.
        truth: (n,) their labels.
        gap: Relative gap of the penalties that may be chosen.
        work: Products a pass of one fit takes (N·D·C): small ones are all fitted at once.
    """

    def __init__(
        self, features: NDArray[np.float32], truth: NDArray[np.int64], *, gap: float, work: float = np.inf
    ) -> None:
        self._features, self._truth, self._gap, self._small = features, truth, gap, work < _WORTH_A_RACE
        self._known: dict[tuple[float, float], tuple[NDArray[np.bool_], NDArray[np.float64]]] = {}
        self._slack = max(_LEAST_SLACK, _LEAST_SLACK_SHARE * len(truth))
        self._loose: dict[float, float] = {}
        self._begun = 0

    def refine(self, path: SoftmaxPath) -> NDArray[np.float64]:
        """Return the (P,) gaps wanted next: what `fit_softmax` asks.

        Args:
            path: What is solved so far, the strongest penalty first.
        """
        count, racing = len(path.penalties), max(_RACING_GAP, self._gap)
        wanted = np.full(count, np.inf)
        if self._begun == 0:
            self._begun = count if self._small else (count + 1) // 2
            wanted[: self._begun] = racing
            return wanted
        hits, loss = self.scores(path.at(range(self._begun)))
        if self._begun < count and not is_past_best(hits, loss):
            wanted[self._begun] = racing
            self._begun += 1
            return wanted
        wanted[: self._begun][self._may_be_best(path, hits.sum(axis=1))] = self._gap
        return wanted

    def _may_be_best(self, path: SoftmaxPath, right: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return (P,) whether a penalty, by the (P,) images it has right so far, may be the best."""
        solved = path.gap[: len(right)] <= self._gap
        for penalty, count, done in zip(path.penalties, right, solved, strict=False):
            if not done:
                self._loose[penalty] = count
            elif penalty in self._loose:
                self._slack = max(self._slack, abs(count - self._loose[penalty]))
        return np.asarray(right + np.where(solved, 0, self._slack) >= right.max())

    def scores(self, path: SoftmaxPath) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """Return (P, n) whether each val image is classified rightly, and (P, n) its cross-entropy."""
        keys = list(zip(path.penalties.tolist(), path.gap.tolist(), strict=True))
        new = [place for place, key in enumerate(keys) if key not in self._known]
        for place in new:
            self._known[keys[place]] = np.empty(len(self._truth), bool), np.empty(len(self._truth))
        fits = path.at(new)
        for rows in row_blocks(len(self._truth), max(path.weights.shape[1:])):
            truth = self._truth[rows]
            for place, logits in zip(new, fits.logits(self._features[rows]), strict=True):
                right, loss = self._known[keys[place]]
                right[rows] = logits.argmax(axis=1) == truth
                loss[rows] = -log_softmax(logits, axis=1)[np.arange(len(truth)), truth]
        hits, losses = zip(*(self._known[key] for key in keys), strict=True)
        return np.stack(hits), np.stack(losses)


def is_past_best(hits: NDArray[np.bool_], loss: NDArray[np.float64]) -> bool:
    """Say whether the weakest penalty is past the best one, so that weaker ones need no fit.

    Overfitting shows in the loss first: it is if the val loss has risen for two penalties in a row and is
    above its lowest beyond doubt (four standard errors of the paired difference), and the accuracy has not
    risen for two in a row and is below its highest by more than one. On 94 sweeps over features of four
    data sets no choice was changed by it (decisions/0013).

    Args:
        hits: (P, n) whether each val image is classified rightly, the strongest penalty first.
        loss: (P, n) its cross-entropy.

    Examples:
        >>> hits = np.arange(200) < np.array([[100], [160], [150], [120]])
        >>> loss = np.ones((4, 200)) * np.array([[1.0], [0.6], [0.7], [1.5]]) + hits / 100
        >>> is_past_best(hits[:3], loss[:3]), is_past_best(hits, loss)
        (False, True)
    """
    accuracy, mean = hits.mean(axis=1), loss.mean(axis=1)
    best, lowest, last = int(accuracy.argmax()), int(mean.argmin()), len(mean) - 1
    if last - max(best, lowest) < _STEPS:
        return False
    steps = slice(last - _STEPS, None)
    if (np.diff(mean[steps]) <= 0).any() or (np.diff(accuracy[steps]) > 0).any():
        return False
    risen, fallen = loss[last] - loss[lowest], hits[best].astype(np.float64) - hits[last]
    return _beyond(risen, _LOSS_DOUBT) and _beyond(fallen, _ACCURACY_DOUBT)


def _beyond(differences: NDArray[np.float64], errors: float) -> bool:
    """Return whether the mean of (n,) differences is above zero by more than some standard errors."""
    if len(differences) < 2:
        return False
    return bool(differences.mean() > errors * differences.std(ddof=1) / np.sqrt(len(differences)))
