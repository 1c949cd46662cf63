"""From a word and a data set to a task."""

from __future__ import annotations

from collections.abc import Mapping

from probekit.data.images import ImageSet
from probekit.errors import InputError, near_names
from probekit.tasks.classification import Classification
from probekit.tasks.detection import Detection
from probekit.tasks.landmarks import Landmarks
from probekit.tasks.segmentation import DECODERS, Segmentation
from probekit.tasks.task import Task

TASKS: Mapping[str, type[Task]] = {
    one.name: one for one in (Classification, Landmarks, Segmentation, Detection)
}


def find_task(word: str, images: ImageSet, target: str | None = None) -> Task:
    """Return a task on a data set.

    Args:
        word: One of ``TASKS``; ``segmentation/one-layer`` chooses the decoder.
        images: The data set.
        target: Name of its target; None takes the first of the kind that the task needs.

    Raises:
        InputError: If there is no such task, or the data set has no target of its kind.

    Examples:
        >>> from probekit import open_images
        >>> find_task("classification", open_images("digits")).metrics[0]
        'accuracy'
    """
    name, _, variant = word.partition("/")
    if name not in TASKS or (variant and name != Segmentation.name):
        known = [*TASKS, *(f"{Segmentation.name}/{one}" for one in DECODERS)]
        raise InputError(
            f"a task among {', '.join(known)}", repr(word), f"The nearest is {near_names(word, known, 1)}"
        )
    kind = TASKS[name].kind
    found = [one for one, held in images.targets.items() if held.kind == kind]
    chosen = target if target is not None else next(iter(found), None)
    if chosen is None or chosen not in found:
        raise InputError(
            f"a target of kind {kind} for {name}, in {images.name}",
            f"{target or 'none'} among {', '.join(images.targets) or 'none'}",
            "Open other data, or annotations=… with it",
        )  # fmt: skip
    more = {"decoder": variant} if variant else {}
    return TASKS[name](chosen, images.targets[chosen].classes, **more)
