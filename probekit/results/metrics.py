"""Facts about metrics, declared once: tables, figures and pages read them here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

_DIFFERENCE = "_difference"


@dataclass(frozen=True)
class MetricFacts:
    """What a reader and an axis need to know of one metric.

    Attributes:
        label: Words for an axis, without the unit.
        unit: Unit of the values, '' for a share or a pure number.
        higher_is_better: Which way is up; None where neither end is better.
        low: Smallest possible value, or None.
        high: Largest possible value, or None.
        reading: One or two sentences: how to read it, and what it cannot say.
        chance: Value without any information, from the number of classes; None where only a
            permutation can tell.
        formula: The chance value in words, '' if there is none.
        ratio: Whether values are ratios without an upper end: equal factors then look alike on an axis.
    """

    label: str
    unit: str = ""
    higher_is_better: bool | None = True
    low: float | None = None
    high: float | None = None
    reading: str = ""
    chance: Callable[[int], float] | None = None
    formula: str = ""
    ratio: bool = False

    @property
    def axis(self) -> str:
        """Label with its unit and, where less is more, the direction."""
        unit = f" ({self.unit})" if self.unit else ""
        return f"{self.label}{unit}" + (", lower is better" if self.higher_is_better is False else "")

    def better(self, one: float, other: float) -> bool:
        """Return whether one value is strictly better than another.

        Examples:
            >>> METRICS["bits"].better(0.5, 1.0), METRICS["accuracy"].better(0.5, 1.0)
            (True, False)
        """
        return one < other if self.higher_is_better is False else one > other


def _uniform(n_classes: int) -> float:
    return 1.0 / n_classes


def _share(label: str, reading: str, *, chance: bool = True) -> MetricFacts:
    formula = "1 / C for C equally frequent classes" if chance else ""
    return MetricFacts(label, "", True, 0.0, 1.0, reading, _uniform if chance else None, formula)


METRICS: dict[str, MetricFacts] = {
    "accuracy": _share(
        "Accuracy",
        "Share of test images whose class the probe names. It says how much of the target a linear map can "
        "read from the features, not whether the backbone uses it. Where classes are unequal, a probe that "
        "always names the largest one already scores its share: compare with the null.",
    ),
    "share_right": _share(
        "Share right",
        "Share of the cases checked that are right. It is a count of all of them, not an estimate.",
        chance=False,
    ),
    "balanced_accuracy": _share(
        "Balanced accuracy",
        "Mean over classes of the share of that class's test images that are named right; every class counts "
        "alike, so a frequent class cannot lift it.",
    ),
    "bits": MetricFacts(
        "Test cross-entropy",
        "bits per image",
        False,
        0.0,
        None,
        "How many bits per image the probe's probabilities leave open; 0 is certainty, and guessing evenly "
        "among C classes costs log2 C. It also sees confidence, which accuracy does not; values above the "
        "null mean confident errors.",
    ),
    "calibration_error": MetricFacts(
        "Calibration error",
        "",
        False,
        0.0,
        1.0,
        "How far stated confidence and the share of right answers lie apart, averaged over bins of "
        "confidence. A poor probe can be well calibrated: read it beside accuracy.",
    ),
    "accuracy_equal_d": _share(
        "Accuracy at equal D",
        "Accuracy after every tap's features were reduced to the same number of dimensions (principal "
        "components of the training split). Where it differs in shape from the plain curve, width explains "
        "part of the depth effect.",
    ),
    "knn_accuracy": _share(
        "k-NN accuracy",
        "Share of test images named right by a vote of their nearest training images (cosine similarity). "
        "Nothing is fitted, so it shows what the geometry gives away without help; k and temperature stand "
        "in the params.",
    ),
    "few_shot_accuracy": _share(
        "Few-shot accuracy",
        "Test accuracy of probes fitted on a few images per class, averaged over draws of those images; the "
        "interval is over draws and images as its kind says.",
    ),
    "description_length": MetricFacts(
        "Description length",
        "bits per image",
        False,
        0.0,
        None,
        "What the labels of train and val cost when they are coded block by block, each by probes fitted to "
        "the blocks before. It counts how early a class becomes readable, not only how well in the end. "
        "Without any information it is about log2 C, less where classes are unequal: compare with the null. "
        "The interval takes the code as it is, and so is about a fifth too narrow.",
    ),
    "compression": MetricFacts(
        "Compression",
        "",
        True,
        0.0,
        None,
        "log2 C over the description length: how many times shorter the labels' code is than a uniform one. "
        "Labels that the features say nothing of stay slightly below 1, which is what learning costs; "
        "unequal classes alone lift it above 1: compare with the null. It grows with the number of images.",
    ),
    "control_accuracy": MetricFacts(
        "Control accuracy",
        "",
        None,
        0.0,
        1.0,
        "Share of the fitting images whose random label a probe of the same penalty gives back after being "
        "fitted to it: what it knows by heart. It grows with the number of features and falls with images "
        "and penalty. Test images cannot be known by heart: what these probes score there is the null.",
    ),
    "selectivity": MetricFacts(
        "Selectivity",
        "",
        True,
        -1.0,
        1.0,
        "Test accuracy minus control accuracy. High: the probe reads more than it could learn by heart. Near "
        "or below 0: it could have stored its images, so that its score on them would say nothing; the test "
        "accuracy still holds. It judges the probe, and falls with the width of a tap: read it beside "
        "accuracy at equal D, and compare with the null.",
    ),
    "class_recall": _share(
        "Recall",
        "Share of one class's test images that are named right. With few images per class, single cells are "
        "noise: look for whole rows or columns.",
    ),
    "r2": MetricFacts(
        "R²",
        "",
        True,
        None,
        1.0,
        "Share of the target's test variance a linear map explains. 1 is exact, 0 is no better than the "
        "mean, below 0 is worse than the mean. It depends on how much the target varies in these images.",
    ),
    "mean_ap": MetricFacts(
        "Mean average precision",
        "",
        True,
        0.0,
        1.0,
        "Average precision of ranking test images for each label, averaged over labels. Chance is each "
        "label's frequency: compare with the null.",
    ),
    "icc": MetricFacts(
        "ICC(1)",
        "",
        None,
        None,
        1.0,
        "Share of the features' variance that lies between classes, debiased: 0 without class signal, 1 "
        "where all images of a class are one point. High means that the layer has become invariant to "
        "what varies inside a class; whether that helps depends on the task.",
    ),
    "omega_squared": MetricFacts(
        "ω²",
        "",
        None,
        None,
        1.0,
        "Share of the variance of these very images that their classes explain, debiased. Unlike ICC it "
        "counts frequent classes more.",
    ),
    "within_between": MetricFacts(
        "Within/between variance",
        "",
        None,
        0.0,
        None,
        "Total variance inside classes over that between them, debiased; low means that images of a class"
        " lie close. It has no upper end where classes do not differ, and is then left empty.",
        ratio=True,
    ),
    "cdnv": MetricFacts(
        "Class-distance normalised variance",
        "",
        None,
        0.0,
        None,
        "Median over pairs of classes: mean variance inside the two over their squared distance, "
        "debiased. It sees variance in all directions, also those in which the classes do not differ.",
        ratio=True,
    ),
    "directional_cdnv": MetricFacts(
        "Directional CDNV",
        "",
        None,
        0.0,
        None,
        "Median over pairs of classes: variance inside a class along the line to the other, over their "
        "squared distance. Only this variance makes a linear classifier of few images err: read it beside"
        " CDNV, which may be high while this is low.",
        ratio=True,
    ),
    "vci": MetricFacts(
        "Variability collapse index",
        "",
        None,
        0.0,
        1.0,
        "One minus the share of the shrunk total covariance that class means fill: 0 where classes are "
        "points, 1 where they do not differ. With fewer than ten images a feature it is low by chance: "
        "compare with the null.",
    ),
    "nc1": MetricFacts(
        "NC1",
        "",
        None,
        0.0,
        None,
        "Variance inside classes relative to that between them, direction by direction; 0 is collapse. It "
        "depends on D, the classes and images a class: compare with the null, not between taps.",
        ratio=True,
    ),
    "nc2_norms": MetricFacts(
        "NC2, norms",
        "",
        None,
        0.0,
        None,
        "How unequal the distances of class means from the centre are; 0 on a simplex. Means of noise "
        "look like a simplex as well: it says something only where ICC is above its null.",
    ),
    "nc2_angles": MetricFacts(
        "NC2, angles",
        "",
        None,
        0.0,
        None,
        "Mean deviation of the cosines between class means from −1/(C − 1); 0 on a simplex. Means of "
        "noise look like a simplex as well: it says something only where ICC is above its null.",
    ),
    "nc3": MetricFacts(
        "NC3",
        "",
        None,
        0.0,
        2.0,
        "Distance of the fitted probe's weights from the class means, both of unit norm: 0 is the same, √2 "
        "unrelated.",
    ),
    "nc4": MetricFacts(
        "NC4",
        "",
        None,
        0.0,
        1.0,
        "Share of test images that the fitted probe and the nearest class mean name alike.",
        _uniform,
        "about 1 / C",
    ),
    "cosine_intra": MetricFacts(
        "Cosine inside classes",
        "",
        None,
        -1.0,
        1.0,
        "Mean cosine of two images of a class. Features that are never negative have high cosines of any "
        "pair: read the gap, or the centred one.",
    ),
    "cosine_inter": MetricFacts(
        "Cosine between classes", "", None, -1.0, 1.0, "Mean cosine of two images of different classes."
    ),
    "cosine_gap": MetricFacts(
        "Cosine gap",
        "",
        None,
        -2.0,
        2.0,
        "Mean cosine inside classes minus that between them; 0 without class signal.",
    ),
    "alignment": MetricFacts(
        "Alignment", "", None, 0.0, 4.0, "Mean squared distance of two images of a class, at unit length."
    ),
    "uniformity": MetricFacts(
        "Uniformity",
        "",
        None,
        None,
        0.0,
        "How evenly features of unit length are spread: 0 where all are alike, about −4 where they fill a"
        " sphere of many dimensions.",
    ),
    "class_separation": MetricFacts(
        "Class separation R²",
        "",
        None,
        None,
        1.0,
        "One minus cosine distance inside classes over distance overall, debiased; 0 without class signal. "
        "Losses that raise it on the pretraining classes tend to transfer worse.",
    ),
    "silhouette": MetricFacts(
        "Silhouette",
        "",
        None,
        -1.0,
        1.0,
        "How much nearer an image is to its own class than to the next one, on average. It drifts with D at "
        "equal class signal.",
    ),
    "recall_at_1": _share("Recall@1", "Share of images whose nearest other image is of their class."),
    "recall_at_5": _share(
        "Recall@5", "Share of images with one of their class among the 5 nearest.", chance=False
    ),
    "recall_at_10": _share(
        "Recall@10", "Share of images with one of their class among the 10 nearest.", chance=False
    ),
    "map_at_r": _share(
        "MAP@R",
        "Average precision within the R nearest images, R being how many others the class has. Recall@1 "
        "saturates where this still tells layers apart.",
        chance=False,
    ),
    "within_class_r2": MetricFacts(
        "R² inside classes",
        "",
        None,
        None,
        1.0,
        "Share of a factor's test variance inside classes that a linear map reads from what features keep"
        " inside classes: 0 is nothing. Low means invariance to that factor, or a readout that cannot "
        "show it.",
    ),
    "whitened_cosine": MetricFacts(
        "Whitened cosine",
        "",
        None,
        -1.0,
        1.0,
        "Between an image and its changed copy, features whitened by all images: 1 is full invariance to "
        "the change, the null is that of other images. A layer that ignores everything carries nothing: "
        "read it beside the probes.",
    ),
    "mahalanobis": MetricFacts(
        "Mahalanobis distance",
        "",
        None,
        0.0,
        None,
        "Between an image and its changed copy, in units of how features vary between images; about √(2D) "
        "for two unrelated images.",
    ),
    "perturbation_variance": MetricFacts(
        "Variance made by the perturbation",
        "",
        None,
        None,
        1.0,
        "Share of the features' variance over images and strengths that lies between copies of one image: "
        "0 is invariance, 1 means that images can no longer be told apart.",
    ),
    "lidar": MetricFacts(
        "LiDAR",
        "",
        None,
        1.0,
        None,
        "Number of directions in which images differ by more than their changed copies do; at most the "
        "number of images less one, so it is compared at equal numbers only.",
    ),
    "target_invariance": MetricFacts(
        "Firing share of the best units",
        "",
        None,
        0.0,
        1.0,
        "How often the best units of a class fire for its held-out images, whatever is done to them, when "
        "each unit fires as often over all images as the class occurs. The null permutes the classes.",
    ),
    "cka": MetricFacts(
        "Linear CKA",
        "",
        None,
        0.0,
        1.0,
        "Alignment of the two layers' similarities of images; biased upwards by few images: the null is "
        "its mean over all pairings of images.",
    ),
    "cka_debiased": MetricFacts(
        "Debiased CKA",
        "",
        None,
        None,
        1.0,
        "The same from unbiased estimates: 0 on average for unrelated layers. A few directions of large "
        "variance can decide it: compare with the one without them.",
    ),
    "cka_debiased_rest": MetricFacts(
        "Debiased CKA without leading components",
        "",
        None,
        None,
        1.0,
        "After each layer lost its direction of largest variance.",
    ),
    "procrustes": MetricFacts(
        "Procrustes angle",
        "radians",
        None,
        0.0,
        1.5708,
        "Angle between the layers after the best rotation: 0 is the same shape, π/2 unrelated.",
    ),
    "svcca": MetricFacts(
        "SVCCA",
        "",
        None,
        0.0,
        1.0,
        "Mean canonical correlation of the directions that hold 99 % of each layer's variance.",
    ),
    "pwcca": MetricFacts(
        "PWCCA", "", None, 0.0, 1.0, "The same, weighted by what the first layer uses: not symmetric."
    ),
    "rsa": MetricFacts(
        "RSA",
        "",
        None,
        -1.0,
        1.0,
        "Rank correlation of the two layers' dissimilarities of all pairs of images.",
    ),
    "mutual_knn": MetricFacts(
        "Mutual neighbours",
        "",
        None,
        0.0,
        1.0,
        "Share of the nearest images that two layers have in common; chance is k/(N − 1), and N changes "
        "the scale.",
    ),
    "effective_rank": MetricFacts(
        "Effective rank",
        "",
        None,
        1.0,
        None,
        "exp of the entropy of the covariance's eigenvalues: over how many directions the variance spreads.",
    ),
    "participation_ratio": MetricFacts(
        "Participation ratio",
        "",
        None,
        1.0,
        None,
        "(Σλ)²/Σλ²: like the effective rank, less sensitive to small eigenvalues and to few images.",
    ),
    "rankme": MetricFacts(
        "RankMe",
        "",
        None,
        1.0,
        None,
        "exp of the entropy of the uncentred features' singular values. An offset common to all images, as "
        "after a ReLU, lowers it a lot; it was made to compare runs of one method.",
    ),
    "alpha_req": MetricFacts(
        "α of the spectrum",
        "",
        None,
        None,
        None,
        "Exponent of the power law fitted to the eigenvalues over the window in the params; another window "
        "gives another α.",
    ),
    "two_nn": MetricFacts(
        "Intrinsic dimension (TwoNN)",
        "",
        None,
        0.0,
        None,
        "From the ratio of distances to the two nearest images. It reads too low for high dimensions and few "
        "images.",
    ),
    "logme": MetricFacts(
        "LogME",
        "nats per image",
        True,
        None,
        None,
        "Log evidence of linear regression on the classes: higher foretells better linear transfer. It "
        "compares taps and models on the same images only.",
    ),
    "h_score": MetricFacts(
        "H-score",
        "",
        True,
        0.0,
        None,
        "How far class means stick out of the shrunk total covariance; 0 to C − 1. Compare with the null.",
    ),
    "ncm_accuracy": _share(
        "Nearest-mean accuracy",
        "Share of test images whose nearest class mean, of train and val, is that of their class.",
    ),
}
_UNIT_LENGTH, _CENTRED = "_l2", "_centred"


def metric_facts(metric: str) -> MetricFacts:
    """Return the facts of a metric; unknown ones get a plain label and no claims.

    A name ending in ``_difference`` is the paired difference of the metric before it, one in ``_l2`` the
    metric of features of unit length, one in ``_centred`` that of centred features.

    Examples:
        >>> metric_facts("accuracy_difference").label
        'Difference in accuracy'
        >>> metric_facts("effective_rank").label
        'Effective rank'
    """
    if metric in METRICS:
        return METRICS[metric]
    for suffix, words in ((_UNIT_LENGTH, "at unit length"), (_CENTRED, "centred")):
        if metric.removesuffix(suffix) in METRICS and metric.endswith(suffix):
            base = METRICS[metric.removesuffix(suffix)]
            return replace(base, label=f"{base.label}, {words}")
    if metric.endswith(_DIFFERENCE):
        return _difference(metric_facts(metric.removesuffix(_DIFFERENCE)))
    words = metric.replace("_", " ").strip() or "value"
    return MetricFacts(words[:1].upper() + words[1:], higher_is_better=None)


def base_metric(metric: str) -> str:
    """Return the metric that a name is a variant of: unit length, centred, or a difference.

    Examples:
        >>> base_metric("icc_l2"), base_metric("accuracy")
        ('icc', 'accuracy')
    """
    for suffix in (_UNIT_LENGTH, _CENTRED, _DIFFERENCE):
        if metric not in METRICS and metric.removesuffix(suffix) in METRICS:
            return metric.removesuffix(suffix)
    return metric


def kind_words(kind: str) -> str:
    """Say in words what a kind of interval or null is.

    Examples:
        >>> kind_words("permuted,20"), kind_words("t,draws"), kind_words("bootstrap,test units")
        ('permuted, 20 draws', 't-interval over draws', 'bootstrap over test units')
    """
    name, _, detail = (part.strip() for part in kind.rpartition(","))
    if not name or name == "analytic":
        return kind
    if detail.isdigit():
        return f"{name}, {detail} draws"
    return f"{'t-interval' if name == 't' else name} over {detail}"


def _difference(base: MetricFacts) -> MetricFacts:
    label = base.label if base.label[:2].isupper() or base.label[1:2] in "²-" else _lower(base.label)
    span = None if base.low is None or base.high is None else base.high - base.low
    return replace(
        base,
        label=f"Difference in {label}",
        low=None if span is None else -span,
        high=span,
        chance=None,
        formula="",
        reading=f"The first one's {label} minus the other's on the same test images; the interval resamples "
        "images and leaves the fitted probes as they are. 0 is no difference; judge by the Holm-adjusted p, "
        "which allows for the number of comparisons.",
    )


def _lower(label: str) -> str:
    return label[:1].lower() + label[1:]
