"""Which figures a table supports, and how they are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from probekit.errors import InputError, near_names
from probekit.figures.boxes import SKILLS, plot_what_where
from probekit.figures.curves import plot_depth, plot_few_shot, plot_strengths
from probekit.figures.detection import plot_costs, plot_ious, plot_shares
from probekit.figures.foremost import foremost
from probekit.figures.inversions import plot_error_maps, plot_inversions, plot_residuals
from probekit.figures.layers import plot_layers
from probekit.figures.matrices import plot_class_recall, plot_targets
from probekit.figures.overlays import plot_cascade, plot_overlays
from probekit.figures.places import plot_examples, plot_places
from probekit.figures.style import Prints
from probekit.figures.training import plot_training
from probekit.figures.transfer import plot_learning, plot_reset_curves, plot_rewinds
from probekit.files import replacing, safe_name
from probekit.results.table import ResultTable

KINDS: dict[str, Callable[..., Figure]] = {
    "depth": plot_depth,
    "few_shot": plot_few_shot,
    "what_where": plot_what_where,
    "class_recall": plot_class_recall,
    "targets": plot_targets,
    "layers": plot_layers,
    "strengths": plot_strengths,
    "places": plot_places,
    "examples": plot_examples,
    "training": plot_training,
    "reset": plot_reset_curves,
    "learning": plot_learning,
    "rewind": plot_rewinds,
    "costs": plot_costs,
    "shares": plot_shares,
    "ious": plot_ious,
    "overlays": plot_overlays,
    "cascade": plot_cascade,
}
# Metrics drawn against depth, most telling first.
DEPTH_METRICS = (
    "accuracy", "mean_ap", "r2", "bits", "compression", "selectivity", "knn_accuracy", "accuracy_equal_d",
    "calibration_error",
)  # fmt: skip
GEOMETRY_METRICS = (
    "icc", "directional_cdnv", "cdnv", "vci", "within_class_r2", "cosine_gap_centred", "map_at_r",
    "effective_rank", "two_nn",
)  # fmt: skip
TRAINING_METRICS = ("pretraining_loss", "images_per_s")
ATTRIBUTION_METRICS = ("energy_inside", "relevance_rank", "best_iou", "pointing_game")
# From this many targets on, one matrix says more than panels.
MANY_TARGETS = 5


def draw(table: ResultTable, kind: str = "depth", **settings: Any) -> Figure:  # noqa: ANN401 - per kind
    """Draw one figure of a table.

    Args:
        table: What to draw.
        kind: ``depth``, ``few_shot``, ``what_where``, ``class_recall``, ``targets``, ``layers``,
            ``strengths``, ``places``, ``examples``, ``overlays``, ``cascade``, ``training``, ``reset``,
            ``learning``, ``rewind``, ``costs``, ``shares`` or ``ious``.
        **settings: Passed to ``plot_depth``, ``plot_few_shot``, ``plot_class_recall``, ``plot_targets``,
            ``plot_layers``, ``plot_strengths``, ``plot_places``, ``plot_examples``, ``plot_overlays``,
            ``plot_cascade`` or ``plot_training``.

    Raises:
        InputError: If the kind is unknown or the table lacks its rows.
    """
    if kind not in KINDS:
        raise InputError(
            f"a kind among {', '.join(KINDS)}", repr(kind), f"Nearest: {near_names(kind, KINDS)}"
        )
    return KINDS[kind](table, **settings)


def draw_probe(table: ResultTable) -> dict[str, Figure]:
    """Draw every figure a probe table supports.

    Returns:
        Name → figure, most telling first; names serve as file names.
    """
    figures: dict[str, Figure] = {}
    for prefix, part in _by_data_set(table, table.frame):
        figures |= {prefix + key: figure for key, figure in _draw_data_set(part).items()}
    return figures


def draw_boxes(table: ResultTable) -> dict[str, Figure]:
    """Draw what against where by data set, then each of the scores against depth.

    Returns:
        Name → figure; names serve as file names.
    """
    frame = table.frame[table.frame["value"].notna()]
    figures: dict[str, Figure] = {}
    for prefix, part in _by_data_set(table, frame):
        if bool(part.frame["metric"].isin(SKILLS).any()) and part.trained:
            figures[f"{prefix}what-where"] = plot_what_where(part)
    for metric in (*SKILLS, "what_balanced_accuracy"):
        if bool((frame["metric"] == metric).any()):
            figures[f"depth-{metric}"] = plot_depth(table, metric)
    return figures


def draw_geometry(table: ResultTable) -> dict[str, Figure]:
    """Draw the measures of a geometry table against depth, a panel a data set.

    Returns:
        Name → figure, the headline first; names serve as file names.
    """
    frame = table.frame[table.frame["value"].notna()]
    figures: dict[str, Figure] = {}
    for metric in GEOMETRY_METRICS:
        rows = frame[frame["metric"] == metric]
        if len(rows) and not rows["model"].isin(set(table.controls)).all() and _has_depth(rows):
            figures[f"depth-{metric}"] = plot_depth(table, metric)
    return figures


def draw_invariance(table: ResultTable) -> dict[str, Figure]:
    """Draw each perturbation's share of the variance against depth, and strength curves, by data set.

    Returns:
        Name → figure; names serve as file names.
    """
    frame = table.frame[table.frame["value"].notna()]
    figures: dict[str, Figure] = {}
    for prefix, part in _by_data_set(table, frame):
        known = set(part.frame.loc[part.frame["value"].notna(), "metric"])
        if "perturbation_variance" in known:
            figures[f"{prefix}depth-perturbation_variance"] = plot_depth(part, "perturbation_variance")
        if "whitened_cosine" in known:
            figures[f"{prefix}strengths-whitened_cosine"] = plot_strengths(part)
    for metric in ("lidar", "target_invariance"):
        if bool((frame["metric"] == metric).any()):
            figures[f"depth-{metric}"] = plot_depth(table, metric)
    return figures


def draw_reconstruction(table: ResultTable) -> dict[str, Figure]:
    """Draw R² of pixels against depth by band, R² by place, and examples, by data set; scores of made images.

    Of an inversion, draw made images, maps of their errors, scores against depth, residuals against steps.

    Returns:
        Name → figure; names serve as file names.
    """
    frame = table.frame[table.frame["value"].notna()]
    figures: dict[str, Figure] = {}
    for prefix, part in _by_data_set(table, frame):
        known = set(part.frame.loc[part.frame["value"].notna(), "metric"])
        if "pixel_r2" in known:
            figures[f"{prefix}depth-pixel_r2"] = plot_depth(part, "pixel_r2")
            figures[f"{prefix}places-pixel_r2"] = plot_places(part)
            figures |= {
                f"{prefix}examples-{safe_name(model)}": plot_examples(part, model)
                for model in foremost(part, part.trained)
            }
        if "feature_residual" in known:
            figures |= {f"{prefix}{name}": one for name, one in _draw_inversions(part).items()}
    inverted = bool((frame["metric"] == "feature_residual").any())
    for metric in ("perceptual_distance", "background_ratio", *(() if inverted else ("ssim",))):
        if bool((frame["metric"] == metric).any()):
            figures[f"depth-{metric}"] = plot_depth(table, metric)
    return figures


def _draw_inversions(table: ResultTable) -> dict[str, Figure]:
    """Draw the first image of an inversion, and every score that some tap has."""
    figures = {
        "inversions": plot_inversions(table),
        "inversion-errors": plot_error_maps(table),
        "inversion-residuals": plot_residuals(table),
    }
    known = set(table.frame.loc[table.frame["value"].notna(), "metric"])
    scores = [one for one in ("image_r2", "psnr", "ssim") if one in known]
    return figures | {f"depth-{metric}": plot_depth(table, metric) for metric in scores}


def draw_pretraining(table: ResultTable) -> dict[str, Figure]:
    """Draw the trainings along their way, then every figure that their probes support.

    Returns:
        Name → figure; names serve as file names.
    """
    probes = ResultTable(
        table.frame[~table.frame["metric"].isin(TRAINING_METRICS)], table.provenance, table.attachments
    )
    return {"training": plot_training(table), **(draw_probe(probes) if len(probes) else {})}


def draw_transfer(table: ResultTable) -> dict[str, Figure]:
    """Draw what is learnt with some blocks kept, and how the trainings went, where there were any.

    Returns:
        Name → figure; names serve as file names.
    """
    figures = {"reset": plot_reset_curves(table)}
    if any(key.startswith("curves/") for key in table.attachments):
        figures["learning"] = plot_learning(table)
    if {"rewind", "leave-one-out"} & set(table.provenance["settings"].get("curves", [])):
        figures["rewind"] = plot_rewinds(table)
    return figures


def draw_diagnosis(table: ResultTable) -> dict[str, Figure]:
    """Draw what errors of detection cost, what the best boxes are, and how far boxes overlap.

    Returns:
        Name → figure; names serve as file names.
    """
    if not table.frame["value"].notna().any():
        return {}
    return {"costs": plot_costs(table), "shares": plot_shares(table), "ious": plot_ious(table)}


def draw_attribution(table: ResultTable) -> dict[str, Figure]:
    """Draw scores of maps against depth, maps over images, and what a cascade leaves of them, by data set.

    Returns:
        Name → figure; names serve as file names.
    """
    frame = table.frame[table.frame["value"].notna()]
    figures: dict[str, Figure] = {}
    for prefix, part in _by_data_set(table, frame):
        scored = part.frame[part.frame["value"].notna()]
        known = set(scored["metric"])
        figures |= {
            f"{prefix}depth-{metric}": plot_depth(part, metric)
            for metric in ATTRIBUTION_METRICS
            if metric in known and _has_depth(scored[scored["metric"] == metric])
        }
        if "energy_inside" in known:
            there = set(scored.loc[scored["metric"] == "energy_inside", "model"])
            figures |= {
                f"{prefix}overlays-{safe_name(model)}": plot_overlays(part, model)
                for model in foremost(part, part.trained)
                if model in there
            }
        figures |= {
            f"{prefix}cascade-{metric.removeprefix('cascade_')}": plot_cascade(part, metric)
            for metric in ("cascade_spearman", "cascade_ssim")
            if metric in known
        }
    return figures


def draw_similarity(table: ResultTable) -> dict[str, Figure]:
    """Draw layers against layers, a heat-map a measure with a panel a data set.

    Returns:
        Name → figure; names serve as file names.
    """
    frame = table.frame[table.frame["value"].notna()]
    return {f"layers-{metric}": plot_layers(table, str(metric)) for metric in dict.fromkeys(frame["metric"])}


def save_figures(figures: Mapping[str, Figure | Prints], folder: str | Path) -> list[Path]:
    """Write every figure as SVG and PNG, each file atomically and with the same bytes every time.

    Returns:
        The paths written.
    """
    paths = []
    for name, figure in figures.items():
        for form in ("svg", "png"):
            path = Path(folder) / f"{safe_name(name)}.{form}"
            content = Prints.of(figure).get(form)
            with replacing(path) as temporary:
                temporary.write_bytes(content)
            paths.append(path)
    return paths


def _draw_data_set(table: ResultTable) -> dict[str, Figure]:
    frame = table.frame[table.frame["value"].notna() & ~table.frame["split"].isin(("train", "val"))]
    figures: dict[str, Figure] = {}
    for metric in DEPTH_METRICS:
        rows = frame[frame["metric"] == metric]
        if not len(rows) or rows["model"].isin(set(table.controls)).all():
            continue
        if rows["target"].nunique() >= MANY_TARGETS and metric in ("accuracy", "mean_ap", "r2"):
            figures[f"targets-{metric}"] = plot_targets(table, metric)
        elif _has_depth(rows) and rows["target"].nunique() < MANY_TARGETS:
            figures[f"depth-{metric}"] = plot_depth(table, metric)
    if bool((frame["metric"] == "few_shot_accuracy").any()):
        figures["few-shot"] = plot_few_shot(table)
    named = foremost(table, table.trained)
    recalls = frame[(frame["metric"] == "class_recall") & frame["model"].isin(named)]
    for target, model in recalls[["target", "model"]].drop_duplicates().itertuples(index=False, name=None):
        name = "-".join(safe_name(part) for part in ("class-recall", target, model))
        figures[name] = plot_class_recall(table, target, model)
    return figures


def _by_data_set(table: ResultTable, frame: pd.DataFrame) -> Iterator[tuple[str, ResultTable]]:
    """Yield what figures of each data set in the frame are called by, and its part of the table."""
    names = [str(name) for name in frame["data"].unique()]
    for name in names:
        prefix = f"{safe_name(name)}-" if len(names) > 1 else ""
        yield prefix, table.where(data=name) if name else table.where(data=None)


def _has_depth(rows: pd.DataFrame) -> bool:
    return bool(rows["depth"].notna().all())
