"""What is to be known of one metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


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
            >>> MetricFacts("loss", higher_is_better=False).better(0.5, 1.0)
            True
            >>> MetricFacts("hits").better(0.5, 1.0)
            False
        """
        return one < other if self.higher_is_better is False else one > other


def uniform(n_classes: int) -> float:
    """Return the chance of naming one of C equally frequent classes."""
    return 1.0 / n_classes


def share(label: str, reading: str, *, chance: bool = True) -> MetricFacts:
    """Return the facts of a share of images, from 0 to 1, whose chance value is 1/C or not known."""
    formula = "1 / C for C equally frequent classes" if chance else ""
    return MetricFacts(label, "", True, 0.0, 1.0, reading, uniform if chance else None, formula)
