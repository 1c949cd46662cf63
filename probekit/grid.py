"""Cells of a grid through joblib; a finished cell is read back, never computed again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout
from joblib import Parallel, delayed

from probekit.compute import rank
from probekit.files import check_folder, safe_name
from probekit.progress import progress_bar
from probekit.remote import share_folders

Result = TypeVar("Result")
log = logging.getLogger(__name__)


@contextmanager
def alone_at(place: Path) -> Iterator[None]:
    """Hold a finished cell's place for one process of all that see the folder; the others wait.

    The lock is the system's: it ends with the process, however that ends. Where none is to be had, as on some
    network file systems, a warning says so, and two processes may compute the same cell. So may two machines
    whose store is on object storage: what another one has finished is brought before, and what is finished
    here is sent after.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(place.with_name(f".{place.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("Another process is at %s; waiting for it", place)
        lock.acquire()
    except (NotImplementedError, OSError) as error:
        log.warning("No lock at %s: %s; another process may compute the same", place, error)
    try:
        share_folders([place])
        yield
        share_folders([place])
        if place.is_dir():
            # Whoever still waits for this file finds the cell finished, so nobody needs it any more.
            Path(lock.lock_file).unlink(missing_ok=True)
    finally:
        lock.release()


def run_cells(
    cells: Mapping[str, Callable[[], Result]],
    *,
    folder: Path | None,
    save: Callable[[Result, Path], None],
    load: Callable[[Path], Result],
    jobs: int = 1,
    label: str = "cells",
    hold: Callable[[Path], AbstractContextManager[None]] = alone_at,
) -> dict[str, Result]:
    """Run the cells that are not finished yet and return the results of all, in the order given.

    A cell is finished once ``folder/NAME/`` exists whole: ``save`` must put it there by ``finish_folder``.
    After an interruption the same call goes on with the cells that are missing. Several processes may share
    a folder: what one of them is computing the others wait for, and read.

    Args:
        cells: Cell name → what computes it. Names must tell apart everything the result depends on.
        folder: Where finished cells are kept; None keeps nothing.
        save: Writes one result into a new folder.
        load: Reads one result back from its folder.
        jobs: Parallel workers; the backend is joblib's, chosen by the caller with ``joblib.parallel_config``.
        label: What the progress bar says.
        hold: Keeps other processes from a cell's folder while this one computes it.

    Raises:
        InputError, StoreDamaged: If a finished cell is not as it was written.
        RemoteUnreachable: If object storage cannot be read or written; what is finished is kept here.
    """
    results: dict[str, Result] = {}
    places = {name: folder / safe_name(name) if folder else None for name in cells}
    # Processes of torchrun must agree on what is finished: they share it themselves.
    if rank()[1] == 1:
        share_folders([place for place in places.values() if place is not None])
    waiting = [name for name, place in places.items() if place is None or not place.is_dir()]
    with progress_bar(len(cells), label, "cell") as bar:
        bar.update(len(cells) - len(waiting))
        computed = Parallel(n_jobs=jobs, return_as="generator")(
            delayed(_run_cell)(cells[name], places[name], save, load, hold) for name in waiting
        )
        for name, result in zip(waiting, computed, strict=True):
            results[name] = result
            bar.update()
    return {
        name: results[name] if name in results else _read(place or Path(), load)
        for name, place in places.items()
    }


def _run_cell(
    compute: Callable[[], Result],
    place: Path | None,
    save: Callable[[Result, Path], None],
    load: Callable[[Path], Result],
    hold: Callable[[Path], AbstractContextManager[None]],
) -> Result:
    """Compute and keep one cell, unless another process has just done so."""
    if place is None:
        return compute()
    with hold(place):
        if place.is_dir():
            return _read(place, load)
        result = compute()
        save(result, place)
        return result


def _read(place: Path, load: Callable[[Path], Result]) -> Result:
    check_folder(place)
    return load(place)
