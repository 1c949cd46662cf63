"""Maths on arrays: solvers, neighbours, intervals; nothing here knows of images, files or tables.

Names resolve on first use, so that importing one function never loads the libraries of another.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Public name → the submodule that defines it.
_HOMES = {
    "Canonical": "similarity",
    "Classes": "class_geometry",
    "CrossMoments": "moments",
    "Diagnosis": "detection",
    "Episodes": "episodes",
    "Estimate": "class_geometry",
    "Gallery": "class_geometry",
    "Marks": "detection",
    "Moments": "moments",
    "Overlaps": "detection_breakdown",
    "PairedDifference": "intervals",
    "Placement": "detection_breakdown",
    "RidgePath": "ridge",
    "SigmoidPath": "sigmoid_regression",
    "SoftmaxPath": "softmax_regression",
    "TargetInvariance": "invariance",
    "Whitening": "transferability",
    "adjust_holm": "intervals",
    "average_precision": "detection",
    "best_threshold_iou": "localisation",
    "bootstrap_means": "intervals",
    "bootstrap_statistic": "intervals",
    "box_iou": "detection",
    "box_offsets": "detection",
    "canonical_correlations": "similarity",
    "centred_gaussian": "localisation",
    "class_cosines": "class_geometry",
    "class_distance_variance": "class_geometry",
    "class_separation": "class_geometry",
    "covariance_spectrum": "spectrum",
    "cross_entropy_bits": "calibration",
    "debiased_cka": "similarity",
    "diagnose_detections": "detection",
    "directional_variance": "class_geometry",
    "draw_episodes": "episodes",
    "effective_rank": "spectrum",
    "energy_inside": "localisation",
    "error_weights": "detection",
    "expected_calibration_error": "calibration",
    "fit_ridge": "ridge",
    "fit_sigmoid": "sigmoid_regression",
    "fit_softmax": "softmax_regression",
    "gradient_deviation": "image_quality",
    "h_score": "transferability",
    "hoiem_fractions": "detection_breakdown",
    "hoiem_parts": "detection_breakdown",
    "intraclass_correlation": "class_geometry",
    "iou_histogram": "detection_breakdown",
    "jackknife_interval": "intervals",
    "lidar": "invariance",
    "linear_cka": "similarity",
    "linear_cka_null": "similarity",
    "localisation_split": "detection_breakdown",
    "logme": "transferability",
    "map_scores": "probe_maps",
    "mean_average_precision": "detection",
    "mean_fractions": "detection_breakdown",
    "mean_over_episodes": "episodes",
    "merge": "moments",
    "minibatch_cka": "similarity",
    "mutual_neighbours": "similarity",
    "nearest_means": "transferability",
    "nearest_neighbours": "neighbours",
    "neural_collapse": "transferability",
    "omega_squared": "class_geometry",
    "overlaps": "detection_breakdown",
    "paired_difference": "intervals",
    "paired_iou": "detection",
    "participation_ratio": "spectrum",
    "peak_signal_to_noise": "image_quality",
    "perturbation_variance": "invariance",
    "pointing_game": "localisation",
    "principal_axes": "standardise",
    "procrustes_angle": "similarity",
    "rankme": "spectrum",
    "ratio_interval": "intervals",
    "relevance_rank": "localisation",
    "representational_similarity": "similarity",
    "resampled_sums": "intervals",
    "retrieval": "class_geometry",
    "row_cosines": "invariance",
    "row_distances": "invariance",
    "score_episodes": "episodes",
    "self_duality": "transferability",
    "spectral_decay": "spectrum",
    "standardisation": "standardise",
    "structural_similarity": "image_quality",
    "t_interval": "intervals",
    "target_invariance": "invariance",
    "top_of_class": "detection_breakdown",
    "two_nearest_dimension": "spectrum",
    "unbiased_hsic": "similarity",
    "uniformity": "class_geometry",
    "variability_collapse": "transferability",
    "vote": "neighbours",
    "vote_neighbours": "neighbours",
    "welch_interval": "intervals",
    "within_between_ratio": "class_geometry",
    "without_leading_component": "similarity",
}

__all__ = sorted(_HOMES)

if TYPE_CHECKING:
    from probekit.functional.calibration import cross_entropy_bits as cross_entropy_bits
    from probekit.functional.calibration import expected_calibration_error as expected_calibration_error
    from probekit.functional.class_geometry import Classes as Classes
    from probekit.functional.class_geometry import Estimate as Estimate
    from probekit.functional.class_geometry import Gallery as Gallery
    from probekit.functional.class_geometry import class_cosines as class_cosines
    from probekit.functional.class_geometry import class_distance_variance as class_distance_variance
    from probekit.functional.class_geometry import class_separation as class_separation
    from probekit.functional.class_geometry import directional_variance as directional_variance
    from probekit.functional.class_geometry import intraclass_correlation as intraclass_correlation
    from probekit.functional.class_geometry import omega_squared as omega_squared
    from probekit.functional.class_geometry import retrieval as retrieval
    from probekit.functional.class_geometry import uniformity as uniformity
    from probekit.functional.class_geometry import within_between_ratio as within_between_ratio
    from probekit.functional.detection import Diagnosis as Diagnosis
    from probekit.functional.detection import Marks as Marks
    from probekit.functional.detection import average_precision as average_precision
    from probekit.functional.detection import box_iou as box_iou
    from probekit.functional.detection import box_offsets as box_offsets
    from probekit.functional.detection import diagnose_detections as diagnose_detections
    from probekit.functional.detection import error_weights as error_weights
    from probekit.functional.detection import mean_average_precision as mean_average_precision
    from probekit.functional.detection import paired_iou as paired_iou
    from probekit.functional.detection_breakdown import Overlaps as Overlaps
    from probekit.functional.detection_breakdown import Placement as Placement
    from probekit.functional.detection_breakdown import hoiem_fractions as hoiem_fractions
    from probekit.functional.detection_breakdown import hoiem_parts as hoiem_parts
    from probekit.functional.detection_breakdown import iou_histogram as iou_histogram
    from probekit.functional.detection_breakdown import localisation_split as localisation_split
    from probekit.functional.detection_breakdown import mean_fractions as mean_fractions
    from probekit.functional.detection_breakdown import overlaps as overlaps
    from probekit.functional.detection_breakdown import top_of_class as top_of_class
    from probekit.functional.episodes import Episodes as Episodes
    from probekit.functional.episodes import draw_episodes as draw_episodes
    from probekit.functional.episodes import mean_over_episodes as mean_over_episodes
    from probekit.functional.episodes import score_episodes as score_episodes
    from probekit.functional.image_quality import gradient_deviation as gradient_deviation
    from probekit.functional.image_quality import peak_signal_to_noise as peak_signal_to_noise
    from probekit.functional.image_quality import structural_similarity as structural_similarity
    from probekit.functional.intervals import PairedDifference as PairedDifference
    from probekit.functional.intervals import adjust_holm as adjust_holm
    from probekit.functional.intervals import bootstrap_means as bootstrap_means
    from probekit.functional.intervals import bootstrap_statistic as bootstrap_statistic
    from probekit.functional.intervals import jackknife_interval as jackknife_interval
    from probekit.functional.intervals import paired_difference as paired_difference
    from probekit.functional.intervals import ratio_interval as ratio_interval
    from probekit.functional.intervals import resampled_sums as resampled_sums
    from probekit.functional.intervals import t_interval as t_interval
    from probekit.functional.intervals import welch_interval as welch_interval
    from probekit.functional.invariance import TargetInvariance as TargetInvariance
    from probekit.functional.invariance import lidar as lidar
    from probekit.functional.invariance import perturbation_variance as perturbation_variance
    from probekit.functional.invariance import row_cosines as row_cosines
    from probekit.functional.invariance import row_distances as row_distances
    from probekit.functional.invariance import target_invariance as target_invariance
    from probekit.functional.localisation import best_threshold_iou as best_threshold_iou
    from probekit.functional.localisation import centred_gaussian as centred_gaussian
    from probekit.functional.localisation import energy_inside as energy_inside
    from probekit.functional.localisation import pointing_game as pointing_game
    from probekit.functional.localisation import relevance_rank as relevance_rank
    from probekit.functional.moments import CrossMoments as CrossMoments
    from probekit.functional.moments import Moments as Moments
    from probekit.functional.moments import merge as merge
    from probekit.functional.neighbours import nearest_neighbours as nearest_neighbours
    from probekit.functional.neighbours import vote as vote
    from probekit.functional.neighbours import vote_neighbours as vote_neighbours
    from probekit.functional.probe_maps import map_scores as map_scores
    from probekit.functional.ridge import RidgePath as RidgePath
    from probekit.functional.ridge import fit_ridge as fit_ridge
    from probekit.functional.sigmoid_regression import SigmoidPath as SigmoidPath
    from probekit.functional.sigmoid_regression import fit_sigmoid as fit_sigmoid
    from probekit.functional.similarity import Canonical as Canonical
    from probekit.functional.similarity import canonical_correlations as canonical_correlations
    from probekit.functional.similarity import debiased_cka as debiased_cka
    from probekit.functional.similarity import linear_cka as linear_cka
    from probekit.functional.similarity import linear_cka_null as linear_cka_null
    from probekit.functional.similarity import minibatch_cka as minibatch_cka
    from probekit.functional.similarity import mutual_neighbours as mutual_neighbours
    from probekit.functional.similarity import procrustes_angle as procrustes_angle
    from probekit.functional.similarity import representational_similarity as representational_similarity
    from probekit.functional.similarity import unbiased_hsic as unbiased_hsic
    from probekit.functional.similarity import without_leading_component as without_leading_component
    from probekit.functional.softmax_regression import SoftmaxPath as SoftmaxPath
    from probekit.functional.softmax_regression import fit_softmax as fit_softmax
    from probekit.functional.spectrum import covariance_spectrum as covariance_spectrum
    from probekit.functional.spectrum import effective_rank as effective_rank
    from probekit.functional.spectrum import participation_ratio as participation_ratio
    from probekit.functional.spectrum import rankme as rankme
    from probekit.functional.spectrum import spectral_decay as spectral_decay
    from probekit.functional.spectrum import two_nearest_dimension as two_nearest_dimension
    from probekit.functional.standardise import principal_axes as principal_axes
    from probekit.functional.standardise import standardisation as standardisation
    from probekit.functional.transferability import Whitening as Whitening
    from probekit.functional.transferability import h_score as h_score
    from probekit.functional.transferability import logme as logme
    from probekit.functional.transferability import nearest_means as nearest_means
    from probekit.functional.transferability import neural_collapse as neural_collapse
    from probekit.functional.transferability import self_duality as self_duality
    from probekit.functional.transferability import variability_collapse as variability_collapse


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
