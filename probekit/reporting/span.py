"""A value with its ends, as pages write it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from probekit.results.presentation import fixed


@dataclass(frozen=True)
class Span:
    """A value with its ends, as text and as places in the drawing."""

    text: str
    ends: str
    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, low: float, high: float) -> Span:
        """Write a value and its ends with three digits."""
        if np.isnan(value):
            return cls("–", "", value, value, value)
        known = not (np.isnan(low) or np.isnan(high))
        ends = f"{digits(low)} to {digits(high)}" if known else ""
        return cls(digits(value), ends, value, low if known else value, high if known else value)


def digits(value: float) -> str:
    """Write a number with three digits."""
    return fixed(value, 3)
