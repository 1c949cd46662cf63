"""Maths on arrays: solvers, neighbours, intervals; nothing here knows of images, files or tables.

Names resolve on first use, so that importing one function never loads the libraries of another.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Public name → the submodule that defines it.
_HOMES = {
    "PairedDifference": "intervals",
    "RidgePath": "ridge",
    "SigmoidPath": "sigmoid_regression",
    "SoftmaxPath": "softmax_regression",
    "adjust_holm": "intervals",
    "bootstrap_means": "intervals",
    "bootstrap_statistic": "intervals",
    "cross_entropy_bits": "calibration",
    "expected_calibration_error": "calibration",
    "fit_ridge": "ridge",
    "fit_sigmoid": "sigmoid_regression",
    "fit_softmax": "softmax_regression",
    "nearest_neighbours": "neighbours",
    "paired_difference": "intervals",
    "principal_axes": "standardise",
    "resampled_sums": "intervals",
    "standardisation": "standardise",
    "t_interval": "intervals",
    "vote": "neighbours",
    "vote_neighbours": "neighbours",
}

__all__ = sorted(_HOMES)

if TYPE_CHECKING:
    from probekit.functional.calibration import cross_entropy_bits as cross_entropy_bits
    from probekit.functional.calibration import expected_calibration_error as expected_calibration_error
    from probekit.functional.intervals import PairedDifference as PairedDifference
    from probekit.functional.intervals import adjust_holm as adjust_holm
    from probekit.functional.intervals import bootstrap_means as bootstrap_means
    from probekit.functional.intervals import bootstrap_statistic as bootstrap_statistic
    from probekit.functional.intervals import paired_difference as paired_difference
    from probekit.functional.intervals import resampled_sums as resampled_sums
    from probekit.functional.intervals import t_interval as t_interval
    from probekit.functional.neighbours import nearest_neighbours as nearest_neighbours
    from probekit.functional.neighbours import vote as vote
    from probekit.functional.neighbours import vote_neighbours as vote_neighbours
    from probekit.functional.ridge import RidgePath as RidgePath
    from probekit.functional.ridge import fit_ridge as fit_ridge
    from probekit.functional.sigmoid_regression import SigmoidPath as SigmoidPath
    from probekit.functional.sigmoid_regression import fit_sigmoid as fit_sigmoid
    from probekit.functional.softmax_regression import SoftmaxPath as SoftmaxPath
    from probekit.functional.softmax_regression import fit_softmax as fit_softmax
    from probekit.functional.standardise import principal_axes as principal_axes
    from probekit.functional.standardise import standardisation as standardisation


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
