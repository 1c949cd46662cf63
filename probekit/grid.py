"""Cells of a grid through joblib; a finished cell is read back, never computed again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from joblib import Parallel, delayed

from probekit.files import safe_name
from probekit.progress import progress_bar

Result = TypeVar("Result")


def run_cells(
    cells: Mapping[str, Callable[[], Result]],
    *,
    folder: Path | None,
    save: Callable[[Result, Path], None],
    load: Callable[[Path], Result],
    jobs: int = 1,
    label: str = "cells",
) -> dict[str, Result]:
    """Run the cells that are not finished yet and return the results of all, in the order given.

    A cell is finished once ``folder/NAME/`` exists whole: ``save`` must put it there atomically. After an
    interruption the same call goes on with the cells that are missing.

    Args:
        cells: Cell name → what computes it. Names must tell apart everything the result depends on.
        folder: Where finished cells are kept; None keeps nothing.
        save: Writes one result into a new folder.
        load: Reads one result back from its folder.
        jobs: Parallel workers; the backend is joblib's, chosen by the caller with ``joblib.parallel_config``.
        label: What the progress bar says.
    """
    results: dict[str, Result] = {}
    places = {name: folder / safe_name(name) if folder else None for name in cells}
    waiting = [name for name, place in places.items() if place is None or not place.is_dir()]
    with progress_bar(len(cells), label, "cell") as bar:
        bar.update(len(cells) - len(waiting))
        computed = Parallel(n_jobs=jobs, return_as="generator")(delayed(cells[name])() for name in waiting)
        for name, result in zip(waiting, computed, strict=True):
            place = places[name]
            if place is not None:
                save(result, place)
            results[name] = result
            bar.update()
    return {name: results[name] if name in results else load(places[name] or Path()) for name in cells}
