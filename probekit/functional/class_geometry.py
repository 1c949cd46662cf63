"""How classes lie in feature space: variance inside and between them, distances, directions, neighbours.

Everything but the last section follows from counts, class means and class scatters. Estimators are debiased:
a class mean of n images is off by Σ_W/n, which makes classes look apart that are not (with 5 images a class
the plain within/between ratio reads 1.8 where 4.0 is true). Intervals are a jackknife that leaves out one
class at a time: images of one class are no independent draws of classes.

Letters: N images, D features, C classes; of a class n_c images, mean μ_c, unbiased total variance v_c.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, logit

from probekit.functional.arguments import AnyFloats, FloatArray, IntArray
from probekit.functional.intervals import jackknife_interval
from probekit.functional.moments import Moments
from probekit.functional.rows import row_blocks

# Standard deviations above its null from which a variance between classes is more than noise.
_NOISE = 2.0
# Hits or misses below which a share of queries has no interval.
_LEAST_OF_A_SHARE = 10


@dataclass(frozen=True)
class Estimate:
    """A number, its interval, and whether there is one.

    Attributes:
        value: NaN where it is not defined.
        low: Lower end of the interval; NaN where there is none.
        high: Upper end.
        status: ``ok``, or why there is no value.
    """

    value: float
    low: float = float("nan")
    high: float = float("nan")
    status: str = "ok"


@dataclass(frozen=True, eq=False)
class Classes:
    """What the measures below are made of.

    Attributes:
        counts: (C,) images of each class, at least one.
        scatters: (C,) Σ ‖x − μ_c‖².
        gram: (C, C) inner products of class means, taken around the mean of all images.
        sums: (C, C) inner products of class sums around 0; what cosines are made of.
        width: D.
    """

    counts: FloatArray
    scatters: FloatArray
    gram: FloatArray
    sums: FloatArray
    width: int

    @classmethod
    def of(cls, moments: Moments) -> Classes:
        """Take what is needed from statistics; classes without an image are left out."""
        kept = moments.of_classes(np.flatnonzero(moments.counts > 0))
        centred = kept.means - kept.mean
        sums = kept.sums + kept.counts[:, None] * kept.shift
        return cls(
            kept.counts.astype(np.float64), kept.scatters, centred @ centred.T, sums @ sums.T, len(kept.shift)
        )

    def __len__(self) -> int:
        return len(self.counts)

    def undefined(self) -> str | None:
        """Say why variance inside and between classes cannot be told apart, or None."""
        if len(self) < 2:
            return "one class only"
        if self.counts.max() < 2:
            return "one image a class: the variance inside classes is not known"
        if not self.scatters.any() and not np.diagonal(self.gram).any():
            return "every feature is constant"
        return None


@dataclass(frozen=True, eq=False)
class _Components:
    """Sums of squares of B selections of classes, each (B,)."""

    between: FloatArray
    within: FloatArray
    count: FloatArray
    classes: FloatArray
    mean_count: FloatArray

    @property
    def msb(self) -> FloatArray:
        return self.between / (self.classes - 1)

    @property
    def msw(self) -> FloatArray:
        return self.within / (self.count - self.classes)

    @property
    def between_variance(self) -> FloatArray:
        """σ²_B = (MSB − MSW) / n₀, summed over features."""
        return (self.msb - self.msw) / self.mean_count


def _components(classes: Classes, kept: FloatArray) -> _Components:
    """Return the analysis of variance of (B, C) selections, 1 for a class that is in it."""
    n = kept * classes.counts
    count, number = n.sum(axis=1), kept.sum(axis=1)
    # SSB = Σ n_c‖μ_c‖² − ‖Σ n_c μ_c‖²/N
    between = n @ np.diagonal(classes.gram) - ((n @ classes.gram) * n).sum(axis=1) / count
    # n₀ = (N − Σ n_c²/N) / (C − 1)
    mean_count = (count - np.square(n).sum(axis=1) / count) / (number - 1)
    return _Components(np.maximum(between, 0), kept @ classes.scatters, count, number, mean_count)


def _all_and_without(count: int) -> FloatArray:
    """Return (1 + C, C) selections: all classes, then all but one."""
    return np.concatenate([np.ones((1, count)), 1.0 - np.eye(count)])


def _estimate(
    classes: Classes, statistic: Callable[[FloatArray], FloatArray], why_not: str | None = None
) -> Estimate:
    """Evaluate a statistic of selections of classes, and its jackknife."""
    reason = why_not or classes.undefined()
    if reason:
        return Estimate(float("nan"), status=reason)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = statistic(_all_and_without(len(classes)))
    return Estimate(float(values[0]), *jackknife_interval(float(values[0]), values[1:]))


def intraclass_correlation(classes: Classes) -> Estimate:
    """Return ICC(1): the share of variance that lies between classes; unbiased, 0 without class signal.

    (MSB − MSW) / (MSB + (n₀ − 1)·MSW). Low means that a layer keeps what tells images of a class apart.
    Source: Shrout and Fleiss, Intraclass Correlations, Psychological Bulletin 86 (1979), case 1, traces taken
    over features.
    """

    def statistic(kept: FloatArray) -> FloatArray:
        c = _components(classes, kept)
        return (c.msb - c.msw) / (c.msb + (c.mean_count - 1) * c.msw)

    return _estimate(classes, statistic)


def omega_squared(classes: Classes) -> Estimate:
    """Return ω² = (SSB − (C − 1)·MSW) / (SST + MSW): the share of this data's variance that classes explain.

    Source: Hays, Statistics for Psychologists (1963), traces taken over features.
    """

    def statistic(kept: FloatArray) -> FloatArray:
        c = _components(classes, kept)
        return (c.between - (c.classes - 1) * c.msw) / (c.between + c.within + c.msw)

    return _estimate(classes, statistic)


def within_between_ratio(classes: Classes) -> Estimate:
    """Return tr Σ_W / tr Σ_B with both debiased: MSW / σ²_B. The interval is one of its logarithm.

    Empty where σ²_B is within noise of 0: then the ratio has no upper end.
    """

    def statistic(kept: FloatArray) -> FloatArray:
        c = _components(classes, kept)
        return np.log(c.msw / c.between_variance)

    return _exponential(_estimate(classes, statistic, no_signal(classes)))


def no_signal(classes: Classes) -> str | None:
    """Say why nothing can be divided by the variance between classes, or None.

    Means of classes that do not differ still spread: MSB is MSW then, with a standard deviation of
    √(2·tr Σ_W²/(C − 1)). MSB must be above that by two of them. tr Σ_W² is read from how much the total
    variances of the classes differ, which is 2·tr Σ_W²/(n_c − 1) for normal images of equal classes, and more
    for others.

    Examples:
        >>> same = Classes(np.full(3, 5.0), np.full(3, 4.0), np.zeros((3, 3)), np.zeros((3, 3)), 2)
        >>> no_signal(same)
        'variance between classes is within noise of 0'
    """
    reason = classes.undefined()
    if reason:
        return reason
    c = _components(classes, np.ones((1, len(classes))))
    msb, msw = float(c.msb[0]), float(c.msw[0])
    several = classes.counts >= 2
    free = classes.counts[several] - 1
    spread = free * np.square(classes.scatters[several] / free - msw)
    square = float(spread.sum()) / 2 / max(1, int(several.sum()) - 1)
    square = min(max(square, msw**2 / classes.width), msw**2)
    noise = np.sqrt(2 * square / (len(classes) - 1))
    return None if msb - msw > _NOISE * noise else "variance between classes is within noise of 0"


def _exponential(log: Estimate) -> Estimate:
    value, low, high = (float(np.exp(one)) for one in (log.value, log.low, log.high))
    return Estimate(value, low, high, log.status)


def class_distance_variance(classes: Classes) -> tuple[Estimate, tuple[float, float]]:
    """Return the median class-distance normalised variance over pairs of classes, and its quartiles.

    V_ij = (v_i + v_j) / (2·‖μ_i − μ_j‖²), the distance debiased by v_i/n_i + v_j/n_j. A pair whose debiased
    distance is not above 0 counts as infinitely close; where half of them are, there is no median. The
    interval is one of the logarithm. Source: Galanti, György and Hutter, On the Role of Neural Collapse in
    Transfer Learning (ICLR 2022), definition 1, with its factor 2.
    """
    known = np.flatnonzero(classes.counts >= 2)
    none = float("nan"), float("nan")
    reason = no_signal(classes) or ("fewer than 2 classes of two images" if len(known) < 2 else None)
    if reason:
        return Estimate(float("nan"), status=reason), none
    pairs = _pair_variances(classes, known)
    first, second = np.triu_indices(len(known), 1)
    logs = pairs[first, second]
    without = np.array([_median(logs[(first != c) & (second != c)]) for c in range(len(known))])
    value = _median(logs)
    if not np.isfinite(value):
        return Estimate(float("nan"), status="half of the class means are within noise of each other"), none
    quartiles = np.exp(np.quantile(logs, [0.25, 0.75], method="inverted_cdf"))
    found = _exponential(Estimate(value, *jackknife_interval(value, without)))
    return found, (float(quartiles[0]), float(quartiles[1]))


def _pair_variances(classes: Classes, known: IntArray) -> FloatArray:
    """Return (C, C) log V_ij; infinite where the debiased distance is not above 0."""
    n, norms = classes.counts[known], np.diagonal(classes.gram)[known]
    v = classes.scatters[known] / (n - 1)
    distance = norms[:, None] + norms - 2 * classes.gram[np.ix_(known, known)]
    distance -= (v / n)[:, None] + v / n
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log((v[:, None] + v) / 2) - np.log(np.maximum(distance, 0))
    return np.asarray(np.nan_to_num(logs, nan=np.inf, posinf=np.inf, neginf=-np.inf))


def _median(values: FloatArray) -> float:
    return float(np.median(values)) if len(values) else float("nan")


def class_cosines(classes: Classes) -> dict[str, Estimate]:
    """Return mean cosines inside and between classes, of statistics of unit rows.

    ``cosine_intra``: mean over classes of mean_{i<j∈c} cos = (‖S_c‖² − n_c) / (n_c(n_c − 1)), exact without a
    pair; ``cosine_inter``: over pairs of images of different classes; ``cosine_gap``: their difference.
    ``alignment`` is 2 − 2·cosine_intra, the mean squared distance of two images of a class (Wang and Isola,
    Understanding Contrastive Representation Learning through Alignment and Uniformity (ICML 2020), with class
    as what makes a pair). Features that are never negative have high cosines of any pair: read the gap, or
    cosines of centred features.
    """
    n, own = classes.counts, np.diagonal(classes.sums)
    several = (n >= 2).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        inside = np.where(several > 0, (own - n) / (n * (n - 1)), 0.0)

    def intra(kept: FloatArray) -> FloatArray:
        return np.asarray(kept @ inside / (kept @ several))

    def inter(kept: FloatArray) -> FloatArray:
        # Σ over ordered pairs of different classes of S_c·S_d, over n_c·n_d
        total = ((kept @ classes.sums) * kept).sum(axis=1) - kept @ own
        return np.asarray(total / (np.square(kept @ n) - kept @ np.square(n)))

    return {
        "cosine_intra": _estimate(classes, intra),
        "cosine_inter": _estimate(classes, inter),
        "cosine_gap": _estimate(classes, lambda kept: intra(kept) - inter(kept)),
        "alignment": _estimate(classes, lambda kept: 2 - 2 * intra(kept)),
    }


def class_separation(classes: Classes) -> Estimate:
    """Return class separation R² of statistics of unit rows: 1 − distance inside classes / distance overall.

    Distances are 1 − cos, every class weighs alike, and an image is not compared with itself, which takes the
    bias of small classes away. Source: Kornblith, Chen, Lee and Norouzi, Why Do Better Loss Functions Lead to
    Less Transferable Features? (NeurIPS 2021), equation 11.
    """
    n = classes.counts
    if n.min() < 2:
        return Estimate(float("nan"), status="a class of one image has no distance inside")
    inside = (np.diagonal(classes.sums) - n) / (n * (n - 1))
    means = classes.sums / np.outer(n, n)
    np.fill_diagonal(means, inside)

    def statistic(kept: FloatArray) -> FloatArray:
        number = kept.sum(axis=1)
        overall = ((kept @ means) * kept).sum(axis=1) / np.square(number)
        return np.asarray(1 - (1 - kept @ inside / number) / (1 - overall))

    return _estimate(classes, statistic)


# Measures that need the rows themselves


def directional_variance(
    features: AnyFloats, labels: IntArray, *, pairs: int = 2000, stream: np.random.Generator
) -> tuple[Estimate, tuple[float, float], int]:
    """Return the median directional class-distance normalised variance over ordered pairs, and its quartiles.

    Var((x − μ_i)·u) / ‖μ_j − μ_i‖² with u the direction from μ_i to μ_j: what variance inside class i lies
    along the line on which class j must be told apart. It is split in halves, since a direction found in
    noisy means points along the noise of the same images: u from one half, the variance from the other,
    ‖μ_j − μ_i‖² = δ₁·δ₂ from both, averaged over which half is which. A pair whose δ₁·δ₂ is not above 0
    counts as infinitely close. Source: Luthra, Salunkhe and Galanti (2026), arXiv 2603.03530, section 3;
    their mean over pairs is a median here, as of class-distance normalised variance.

    Args:
        features: (N, D) finite rows; may be memory-mapped.
        labels: (N,) classes.
        pairs: Most pairs of classes; of more, so many are drawn.
        stream: Splits classes and draws pairs.

    Returns:
        The estimate (interval: one class left out at a time, of the logarithm), the quartiles, and the number
        of unordered pairs used.
    """
    halves = _split_classes(labels, stream)
    none = float("nan"), float("nan")
    if len(halves) < 3:
        return Estimate(float("nan"), status="fewer than 3 classes of four images"), none, 0
    first, second = np.triu_indices(len(halves), 1)
    if len(first) > pairs:
        kept = np.sort(stream.choice(len(first), pairs, replace=False))
        first, second = first[kept], second[kept]
    means = np.array([[_mean(features, half) for half in both] for both in halves])
    # δ of both halves, and what they agree on
    steps = means[second] - means[first]
    distance = np.einsum("pd,pd->p", steps[:, 0], steps[:, 1])
    logs = np.full((len(first), 2), np.inf)
    for number, own in enumerate((first, second)):
        variance = np.zeros(len(first))
        for c in np.unique(own):
            here = np.flatnonzero(own == c)
            for half in (0, 1):
                with np.errstate(divide="ignore", invalid="ignore"):
                    u = steps[here, 1 - half] / np.linalg.norm(steps[here, 1 - half], axis=1)[:, None]
                    variance[here] += _projected(features, halves[c][half], u).var(axis=0, ddof=1) / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            logs[:, number] = np.log(variance) - np.log(np.maximum(distance, 0))
    logs = np.nan_to_num(logs, nan=np.inf, posinf=np.inf, neginf=-np.inf)
    value = _median(logs.ravel())
    if not np.isfinite(value):
        return (
            Estimate(float("nan"), status="half of the class means are within noise of each other"),
            none,
            0,
        )
    without = np.array([_median(logs[(first != c) & (second != c)].ravel()) for c in range(len(halves))])
    low, high = np.exp(np.quantile(logs, [0.25, 0.75], method="inverted_cdf"))
    found = _exponential(Estimate(value, *jackknife_interval(value, without)))
    return found, (float(low), float(high)), len(first)


def _mean(features: AnyFloats, rows: IntArray) -> FloatArray:
    """Return the (D,) mean of chosen rows."""
    parts = row_blocks(len(rows), features.shape[1])
    return np.asarray(sum(features[rows[part]].astype(np.float64).sum(axis=0) for part in parts) / len(rows))


def _projected(features: AnyFloats, rows: IntArray, directions: FloatArray) -> FloatArray:
    """Return (n, P) coordinates of n chosen rows along (P, D) directions."""
    parts = row_blocks(len(rows), max(features.shape[1], len(directions)))
    return np.concatenate([features[rows[part]].astype(np.float64) @ directions.T for part in parts])


def _split_classes(labels: IntArray, stream: np.random.Generator) -> list[tuple[IntArray, IntArray]]:
    """Return row numbers of two halves of every class of at least four images."""
    halves = []
    for c in np.unique(labels):
        rows = stream.permutation(np.flatnonzero(labels == c))
        if len(rows) >= 4:
            halves.append((np.sort(rows[: len(rows) // 2]), np.sort(rows[len(rows) // 2 :])))
    return halves


def uniformity(unit_rows: AnyFloats, t: float = 2.0) -> float:
    """Return log E_{i≠j} exp(−t‖x_i − x_j‖²) of unit rows: 0 where all are alike, lower is more spread.

    The diagonal is left out: with it, 500 rows of 2,048 features read −3.90 instead of −4.00. Source: Wang
    and Isola (ICML 2020), equation 2.

    Examples:
        >>> round(uniformity(np.eye(3)), 6)
        -4.0
    """
    x = unit_rows.astype(np.float64)
    squares = np.maximum(2 - 2 * (x @ x.T), 0)
    exponents = -t * squares[~np.eye(len(x), dtype=bool)]
    largest = exponents.max()
    return float(largest + np.log(np.exp(exponents - largest).mean()))


def retrieval(
    unit_rows: AnyFloats, labels: IntArray, ks: tuple[int, ...] = (1, 5, 10)
) -> dict[str, Estimate]:
    """Search every row's class among all other rows by cosine: recall@k and MAP@R.

    ``recall_at_k`` is the share of rows with one of their class among their k nearest; ``map_at_r`` the mean
    over rows of average precision within the R nearest, R being the number of others of the class (Musgrave,
    Belongie and Lim, A Metric Learning Reality Check (ECCV 2020), section 3.2). A row without another of its
    class is no query.

    The interval leaves out the queries of one class at a time; of recall in logits, with none where fewer
    than ten queries are hit or missed. It is widened by C/(C − 1), because classes also are each other's
    gallery: without that, simulated coverage falls to 91 % at 10 classes.

    Args:
        unit_rows: (N, D) rows of length 1.
        labels: (N,) classes.
        ks: How many neighbours.
    """
    return Gallery.of(unit_rows).score(labels, ks)


@dataclass(frozen=True, eq=False)
class Gallery:
    """Rows in which each is searched among the others; neighbours do not depend on labels.

    Attributes:
        nearest: (N, N − 1) the other rows, the most similar first.
    """

    nearest: IntArray

    @classmethod
    def of(cls, unit_rows: AnyFloats) -> Gallery:
        """Sort all other rows of each of (N, D) unit rows; equally similar ones stay in order."""
        x = unit_rows.astype(np.float64)
        similar = x @ x.T
        np.fill_diagonal(similar, -np.inf)
        return cls(np.argsort(-similar, axis=1, kind="stable")[:, :-1])

    def score(self, labels: IntArray, ks: tuple[int, ...] = (1, 5, 10)) -> dict[str, Estimate]:
        """Return recall@k and MAP@R of (N,) labels; see ``retrieval``."""
        names = [*(f"recall_at_{k}" for k in ks), "map_at_r"]
        values, y = np.unique(labels, return_inverse=True)
        counts = np.bincount(y)
        if len(values) < 2 or counts.max() < 2:
            why = "one class only" if len(values) < 2 else "one image a class: nothing to be found"
            return {name: Estimate(float("nan"), status=why) for name in names}
        deep = min(len(y) - 1, max(*ks, int(counts.max()) - 1))
        queries = np.flatnonzero(counts[y] > 1)
        nearest = y[self.nearest[queries, :deep]]
        scores = _retrieval_scores(nearest, y[queries], counts, ks)
        own = np.bincount(y[queries], minlength=len(values)).astype(np.float64)
        asked = np.flatnonzero(own)
        sums = np.stack([np.bincount(y[queries], one, len(values)) for one in scores.T], axis=1)
        with np.errstate(invalid="ignore"):
            without = ((sums.sum(axis=0) - sums) / (own.sum() - own)[:, None])[asked]
        whole, count = scores.mean(axis=0), len(queries)
        recalls = {
            name: _share(whole[place], without[:, place], count) for place, name in enumerate(names[:-1])
        }
        low, high = _widened(float(whole[-1]), without[:, -1])
        return {**recalls, "map_at_r": Estimate(float(whole[-1]), max(low, 0.0), high)}


def _share(share: float, without: FloatArray, count: int) -> Estimate:
    """Return a share with an interval in logits, if it is far enough from both ends."""
    if min(share, 1 - share) * count < _LEAST_OF_A_SHARE:
        return Estimate(float(share))
    inside = np.clip(without, 0.5 / count, 1 - 0.5 / count)
    low, high = _widened(float(logit(share)), logit(inside))
    return Estimate(float(share), float(expit(low)), float(expit(high)))


def _widened(value: float, without: FloatArray) -> tuple[float, float]:
    low, high = jackknife_interval(value, without)
    factor = len(without) / max(1, len(without) - 1)
    return value + factor * (low - value), value + factor * (high - value)


def _retrieval_scores(nearest: IntArray, own: IntArray, counts: IntArray, ks: tuple[int, ...]) -> FloatArray:
    """Return (M, K + 1) hits at each k and average precision within R; the nearest come first."""
    right = nearest == own[:, None]
    hits = [right[:, :k].any(axis=1) for k in ks]
    wanted = counts[own] - 1
    most = int(wanted.max())
    right = right[:, :most] & (np.arange(most) < wanted[:, None])
    precision = np.cumsum(right, axis=1) / np.arange(1, most + 1)
    return np.stack([*hits, (precision * right).sum(axis=1) / wanted], axis=1).astype(np.float64)
