"""Facts about metrics, declared once: tables, figures and pages read them here."""

from __future__ import annotations

from dataclasses import replace

from probekit.results.measures import MEASURES
from probekit.results.metric import MetricFacts as MetricFacts
from probekit.results.metric import share

_DIFFERENCE = "_difference"

METRICS: dict[str, MetricFacts] = {
    "accuracy": share(
        "Accuracy",
        "Share of test images whose class the probe names. It says how much of the target a linear map can "
        "read from the features, not whether the backbone uses it. Where classes are unequal, a probe that "
        "always names the largest one already scores its share: compare with the null.",
    ),
    "share_right": share(
        "Share right",
        "Share of the cases checked that are right. It is a count of all of them, not an estimate.",
        chance=False,
    ),
    "balanced_accuracy": share(
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
    "accuracy_equal_d": share(
        "Accuracy at equal D",
        "Accuracy after every tap's features were reduced to the same number of dimensions (principal "
        "components of the training split). Where it differs in shape from the plain curve, width explains "
        "part of the depth effect.",
    ),
    "knn_accuracy": share(
        "k-NN accuracy",
        "Share of test images named right by a vote of their nearest training images (cosine similarity). "
        "Nothing is fitted, so it shows what the geometry gives away without help; k and temperature stand "
        "in the params.",
    ),
    "few_shot_accuracy": share(
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
    "class_recall": share(
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
    "what_accuracy": share(
        "Accuracy of what",
        "Share of test objects whose class a linear probe names from the features inside their true box. It "
        "is told where to look, and says nothing of finding. Where classes are unequal, naming the largest "
        "one already scores its share: compare with the null, and see the balanced accuracy.",
    ),
    "what_balanced_accuracy": share(
        "Balanced accuracy of what",
        "Mean over classes of the share of that class's test objects that are named right from the features "
        "inside their true box; every class that occurs counts alike.",
    ),
    "where_accuracy": share(
        "Accuracy of where",
        "Share of test regions whose overlap with their object (five bins of the IoU, equally frequent) a "
        "linear probe names from the features inside the region, whatever the class. Low means that "
        "features inside an object look alike wherever the region ends.",
    ),
    "offset_r2": MetricFacts(
        "R² of box offsets",
        "",
        True,
        None,
        1.0,
        "Share of the variance of the four offsets from a region to its true box (shift in sides of the "
        "region, logarithms of the scale) that a linear map reads inside the region, mean of the four; "
        "regions overlap their box by an IoU of 0.5 or more. 0 is no better than the mean, below 0 worse.",
    ),
    "offset_component_r2": MetricFacts(
        "R² of one box offset",
        "",
        True,
        None,
        1.0,
        "The same for one of the four, which the params name. Shifts may be read where scales are not: a "
        "region's sides tell which way the object lies, not how far it goes on.",
    ),
    **MEASURES,
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
