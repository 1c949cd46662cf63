"""Split roles: which images are for fitting, for choosing and for the one final score."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probekit.errors import DataError, SplitOverlap
from probekit.seeds import random_stream

ROLES = ("train", "val", "test")
TEST_FRACTION = 0.2
VALIDATION_FRACTION = 0.2

_ROLE_WORDS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation"), "val"
)
_log = logging.getLogger(__name__)


def role_of(word: str) -> str | None:
    """Return the role a folder or a cell of a table names, or None.

    Examples:
        >>> role_of("Valid"), role_of("cats")
        ('val', None)
    """
    return _ROLE_WORDS.get(word.strip().lower())


def stratified_order(labels: ArrayLike, stream: np.random.Generator) -> NDArray[np.int64]:
    """Order images so that the first m of them hold every class in proportion, for every m.

    Args:
        labels: (N,) class of each image.
        stream: Where the random order within classes comes from.

    Returns:
        (N,) places. Of a class with share p, the first m hold at least p·(m − C) and at most p·m + 1 images,
        and at least one once m reaches the number of classes C.
    """
    classes = np.asarray(labels)
    shuffled = stream.permutation(len(classes))
    by_class = np.argsort(classes[shuffled], kind="stable")
    _, first, counts = np.unique(classes[shuffled][by_class], return_index=True, return_counts=True)
    position = np.arange(len(classes)) - np.repeat(first, counts)
    # Image r of a class of n is due when the share r / n of everything has been taken.
    due = np.empty(len(classes))
    due[by_class] = position / np.repeat(counts, counts)
    return shuffled[np.argsort(due, kind="stable")].astype(np.int64)


def hold_out(
    labels: ArrayLike,
    fraction: float = VALIDATION_FRACTION,
    *,
    seed: int = 0,
    stratified: bool = True,
    use: str = "validation split",
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide images into a part to fit on and a part to hold out.

    Every class keeps at least one image in the part to fit on, so a class with one member stays there whole.

    Args:
        labels: (N,) class of each image; if not ``stratified``, anything of length N.
        fraction: Share to hold out, in (0, 1).
        seed: Seed of the named random stream.
        stratified: Whether classes are held out in proportion.
        use: Name of the random stream.

    Returns:
        Places kept and places held out, each ascending.

    Raises:
        DataError: If nothing can be held out.

    Examples:
        >>> kept, held = hold_out([0, 0, 0, 0, 0, 1, 1, 1, 1, 1], seed=3)
        >>> len(kept), len(held)
        (8, 2)
    """
    classes = np.asarray(labels)
    if not 0 < fraction < 1:
        raise DataError("a fraction to hold out between 0 and 1", f"{fraction}", "Use 0.2 for 20 %")
    if not stratified:
        classes = np.zeros(len(classes), np.int64)
    order = stratified_order(classes, random_stream(use, seed))
    spare = order[_not_last_of_class(classes[order])]
    if not len(spare):
        raise DataError(
            "a class with at least two images, of which one can be held out",
            f"{len(classes)} images of {len(set(classes.tolist()))} classes",
            "Add images, or name the split yourself",
        )
    held = spare[: max(1, round(fraction * len(classes)))]
    return np.setdiff1d(np.arange(len(classes)), held), np.sort(held)


def split_stratified(labels: ArrayLike | None, n: int, seed: int = 0) -> list[str]:
    """Give each of N images a role: 80 % train and 20 % test.

    Args:
        labels: (N,) class of each image, to be split in proportion; None to split without regard to classes.
        n: Number of images (N).
        seed: Seed of the stream ``split``.

    Raises:
        DataError: If there are too few images to hold any out.
    """
    _, held = hold_out(
        np.zeros(n) if labels is None else labels,
        TEST_FRACTION,
        seed=seed,
        stratified=labels is not None,
        use="split",
    )
    test = set(held.tolist())
    return ["test" if index in test else "train" for index in range(n)]


def complete_roles(named: Sequence[str | None], labels: ArrayLike | None, seed: int = 0) -> list[str]:
    """Give every image a role, from the roles that folders or a table name.

    - No role named, or ``train`` only: 20 % of the images, stratified, become ``test``.
    - ``train`` and ``val`` but no ``test``: ``val`` is the part kept for the end, so it becomes ``test``.
    - Otherwise the roles stay as they are.

    Args:
        named: (N,) roles, all None if the data name none.
        labels: (N,) class of each image, or None.
        seed: Seed of the stream ``split``.

    Raises:
        DataError: If some images have a role and others none, or too few images are there to be split.
    """
    found = set(named)
    if None in found and len(found) > 1:
        raise DataError(
            "a split for every image", f"{list(named).count(None)} without", "Fill it in or leave it out"
        )
    if found <= {None, "train"}:
        return split_stratified(labels, len(named), seed)
    if found == {"train", "val"}:
        _log.info("no test split: the images of 'val' are kept for the final score")
        return ["test" if role == "val" else "train" for role in named]
    return [role for role in named if role is not None]


def check_ids(ids: Sequence[str], splits: Sequence[str]) -> None:
    """Check that no image stands twice, within a split or in two of them.

    Raises:
        SplitOverlap: If an id stands in two splits.
        DataError: If an id stands twice in one split.
    """
    if len(set(ids)) == len(ids):
        return
    roles: dict[str, list[str]] = {}
    for name, role in zip(ids, splits, strict=True):
        roles.setdefault(name, []).append(role)
    across = [name for name, found in roles.items() if len(set(found)) > 1]
    if across:
        raise SplitOverlap(
            "each image in one split",
            f"{len(across)} in several, such as {_examples(across)}",
            "Remove them from one of the splits",
        )
    twice = [name for name, found in roles.items() if len(found) > 1]
    raise DataError(
        "ids that differ", f"{len(twice)} that repeat, such as {_examples(twice)}", "List each image once"
    )


def warn_of_copies(contents: Sequence[str], ids: Sequence[str], splits: Sequence[str], name: str) -> int:
    """Count images outside ``train`` whose content also stands in ``train``; log a warning if there are any.

    Copies under two names are common in published data sets, so they are told, not refused.

    Returns:
        Number of such images; 0 where content identity does not say (files are told apart by path).
    """
    train = {content for content, role in zip(contents, splits, strict=True) if role == "train"}
    copies = [
        found
        for content, found, role in zip(contents, ids, splits, strict=True)
        if role != "train" and content in train
    ]
    if copies:
        _log.warning(
            "%s: %d images outside the training split have a copy in it, such as %s",
            name,
            len(copies),
            _examples(copies),
        )
    return len(copies)


def _not_last_of_class(classes: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Return for each place whether its class occurs again after it."""
    _, last = np.unique(classes[::-1], return_index=True)
    again = np.ones(len(classes), np.bool_)
    again[len(classes) - 1 - last] = False
    return again


def _examples(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names[:3])
