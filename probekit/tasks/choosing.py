"""From a word and a data set to a task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from probekit.data.images import ImageSet
from probekit.errors import InputError, near_names
from probekit.tasks.classification import Classification
from probekit.tasks.detection import Detection, RegionDetection
from probekit.tasks.few_shot import FewShot
from probekit.tasks.landmarks import Landmarks
from probekit.tasks.segmentation import DECODERS, Segmentation
from probekit.tasks.task import Task

# Word → task, and what of it the word chooses.
TASKS: Mapping[str, tuple[type[Task], Mapping[str, Any]]] = {
    "classification": (Classification, {}),
    "episodes": (FewShot, {}),
    "episodes/novel": (FewShot, {"novel": True}),
    "landmarks": (Landmarks, {}),
    "segmentation": (Segmentation, {}),
    **{f"segmentation/{one}": (Segmentation, {"decoder": one}) for one in DECODERS},
    "detection": (Detection, {}),
    "detection/c4": (RegionDetection, {}),
    "detection/c4-norm": (RegionDetection, {"norm": True}),
}


def find_task(word: str, images: ImageSet, target: str | None = None) -> Task:
    """Return a task on a data set.

    Args:
        word: One of ``TASKS``; what follows a slash chooses the head, or the classes.
        images: The data set.
        target: Name of its target; None takes the first of the kind that the task needs.

    Raises:
        InputError: If there is no such task, or the data set has no target of its kind.

    Examples:
        >>> from probekit import open_images
        >>> find_task("classification", open_images("digits")).metrics[0]
        'accuracy'
    """
    if word not in TASKS:
        raise InputError(
            f"a task among {', '.join(TASKS)}", repr(word), f"The nearest is {near_names(word, TASKS, 1)}"
        )
    task, choices = TASKS[word]
    found = [one for one, held in images.targets.items() if held.kind == task.kind]
    chosen = target if target is not None else next(iter(found), None)
    if chosen is None or chosen not in found:
        raise InputError(
            f"a target of kind {task.kind} for {word}, in {images.name}",
            f"{target or 'none'} among {', '.join(images.targets) or 'none'}",
            "Open other data, or annotations=… with it",
        )  # fmt: skip
    return task(chosen, images.targets[chosen].classes, **choices)
