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
    """

    label: str
    unit: str = ""
    higher_is_better: bool | None = True
    low: float | None = None
    high: float | None = None
    reading: str = ""
    chance: Callable[[int], float] | None = None
    formula: str = ""

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
}


def metric_facts(metric: str) -> MetricFacts:
    """Return the facts of a metric; unknown ones get a plain label and no claims.

    A name ending in ``_difference`` is the paired difference of the metric before it.

    Examples:
        >>> metric_facts("accuracy_difference").label
        'Difference in accuracy'
        >>> metric_facts("effective_rank").label
        'Effective rank'
    """
    if metric in METRICS:
        return METRICS[metric]
    if metric.endswith(_DIFFERENCE):
        return _difference(metric_facts(metric.removesuffix(_DIFFERENCE)))
    words = metric.replace("_", " ").strip() or "value"
    return MetricFacts(words[:1].upper() + words[1:], higher_is_better=None)


def kind_words(kind: str) -> str:
    """Say in words what a kind of interval or null is.

    Examples:
        >>> kind_words("permuted,20"), kind_words("t,draws"), kind_words("bootstrap,test units")
        ('permuted, 20 draws', 't-interval over draws', 'bootstrap over test units')
    """
    name, _, detail = (part.strip() for part in kind.rpartition(","))
    if not name:
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
