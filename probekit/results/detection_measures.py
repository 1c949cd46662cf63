"""Facts about measures of detections."""

from __future__ import annotations

from probekit.results.metric import MetricFacts


def _cost(label: str, reading: str) -> MetricFacts:
    return MetricFacts(label, "rise of AP50", False, -1.0, 1.0, reading)


def _part(label: str, better: bool | None, reading: str) -> MetricFacts:
    return MetricFacts(label, "", better, 0.0, 1.0, reading)


def _repair(label: str, reading: str) -> MetricFacts:
    return MetricFacts(label, "", None, None, 1.0, reading)


DETECTION_MEASURES: dict[str, MetricFacts] = {
    "ap": MetricFacts(
        "AP",
        "",
        True,
        0.0,
        1.0,
        "Average precision of detections, mean over classes and over IoU 0.5, 0.55, …, 0.95, as in COCO's "
        "evaluation. It asks for exact boxes: AP50 counts what is found, AP75 what is found and well placed.",
    ),
    "ap50": MetricFacts(
        "AP50", "", True, 0.0, 1.0, "Average precision of detections that overlap an object by half or more."
    ),
    "ap75": MetricFacts(
        "AP75",
        "",
        True,
        0.0,
        1.0,
        "Average precision of detections at an IoU of 0.75: found and well placed.",
    ),
    "error_loc": _cost(
        "Cost of wrong places",
        "What AP50 would gain if boxes of the right class that overlap their object by 0.1 to 0.5 lay right.",
    ),
    "error_cls": _cost(
        "Cost of wrong classes",
        "What AP50 would gain if boxes in the right place were given their object's class.",
    ),
    "error_dupe": _cost(
        "Cost of duplicates", "What AP50 would gain without second boxes on an object that is found."
    ),
    "error_bkg": _cost(
        "Cost of boxes on background",
        "What AP50 would gain without boxes that overlap no object by more than 0.1.",
    ),
    "error_both": _cost(
        "Cost of wrong class and place",
        "What AP50 would gain without boxes that are near an object of another class, but not on it.",
    ),
    "error_miss": _cost(
        "Cost of missed objects",
        "What AP50 would gain if objects that no box is about were not asked for.",
    ),
    "error_false_positives": _cost(
        "Cost of all false boxes", "What AP50 would gain if every wrong box stood behind the right ones."
    ),
    "error_false_negatives": _cost(
        "Cost of all objects not found", "What AP50 would gain if only objects that are found were asked for."
    ),
    "hoiem_right": _part(
        "Right",
        True,
        "Share of the best N boxes of a class, N being its objects, that find one; mean over classes.",
    ),
    "hoiem_localisation": _part(
        "Wrong place",
        False,
        "Share of the best N boxes of a class that overlap an object of it by 0.1 or more and find none: "
        "misplaced boxes and duplicates.",
    ),
    "hoiem_similar": _part(
        "Similar class",
        False,
        "Share of the best N boxes of a class that lie on an object of a similar one; empty where no classes "
        "are said to be similar.",
    ),
    "hoiem_other": _part(
        "Other class", False, "Share of the best N boxes of a class that lie on an object of another one."
    ),
    "hoiem_background": _part(
        "Background", False, "Share of the best N boxes of a class that lie on nothing."
    ),
    "hoiem_none": _part(
        "Not made", None, "Share of the best N boxes of a class that is lacking, because fewer were made."
    ),
    "repaired_centre": _repair(
        "Repaired by the centre",
        "Share of the overlap lost by misplaced boxes that comes back when their centre alone is put right. "
        "The three repairs do not add up; below 0, a repair alone makes it worse.",
    ),
    "repaired_scale": _repair(
        "Repaired by the scale", "The same, when the square root of their area alone is put right."
    ),
    "repaired_aspect": _repair(
        "Repaired by the aspect ratio", "The same, when width over height alone is put right."
    ),
}
