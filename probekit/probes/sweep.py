"""The verb ``probe``: every model, every data set, every tap, with controls."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit.backbones.spec import ModelSpec, parse_model
from probekit.compute import rank, software_versions
from probekit.data.images import ImageSet
from probekit.data.kept import kept_pixels
from probekit.data.readers import open_images
from probekit.data.targets import KINDS
from probekit.errors import InputError, near_names
from probekit.features.extraction import extract
from probekit.features.features import Features
from probekit.features.streaming import BATCH_SIZE
from probekit.files import cache_folder, canonical_json, digest_json, safe_name
from probekit.grid import run_cells
from probekit.plan import live_reference
from probekit.probes.protocol import PENALTIES, Protocol, Roles, assign_roles
from probekit.results.table import ResultTable
from probekit.version import __version__

if TYPE_CHECKING:
    from probekit.backbones.backbone import Backbone

# Changes whenever a stored cell would no longer hold what the code computes.
CELL_FORMAT = 3


@dataclass(frozen=True)
class Entry:
    """One model of a comparison.

    Attributes:
        name: Its name in tables.
        model: A parsed model, or a live Backbone.
        control_of: Name of the model whose random-init control it is; None for a model that was asked for.
        seed: Which random draw it is, for a control.
    """

    name: str
    model: ModelSpec | Backbone
    control_of: str | None = None
    seed: int | None = None


def probe(
    models: str | ModelSpec | Backbone | Sequence[str | ModelSpec | Backbone],
    data: str | ImageSet | Sequence[str | ImageSet],
    *,
    taps: str | Sequence[str] = "stages",
    targets: str | Sequence[str] | None = None,
    random: int = 3,
    penalties: Sequence[float] = PENALTIES,
    val_fraction: float = 0.2,
    permutations: int = 20,
    bootstrap_draws: int = 2000,
    neighbours: int = 20,
    shots: Sequence[int] = (1, 2, 5, 10, 20),
    few_shot_draws: int = 5,
    equal_d: bool = True,
    gap: float = 1e-4,
    seed: int = 0,
    dtype: str = "float32",
    precision: str = "float32",
    batch_size: int = BATCH_SIZE,
    device: str | None = None,
    store: str | Path | None = None,
    jobs: int = 1,
) -> ResultTable:
    """Fit and score probes on every tap of every model: what does each layer know?

    Class targets get multinomial logistic regression, nearest neighbours and a few-shot curve, multi-label
    targets sigmoid probes, continuous targets ridge regression. Penalties are chosen on val, the test split
    is scored once. Every model is compared with random draws of its architecture. What is finished is
    kept: an interrupted call goes on where it stopped.

    Args:
        models: One or several models, in the grammar ``[NAME=]ARCH:CHECKPOINT[,key=value…]`` or loaded.
        data: One or several data sets, in the grammar of ``open_images`` or opened.
        taps: Paths, globs or presets of ``resolve_taps``.
        targets: Names of the targets to probe; None takes all.
        random: Random draws of each architecture as controls (``random@0`` …); 0 leaves them out.
        penalties: Candidates for ½·penalty·‖W‖².
        val_fraction: Share of train to choose on where there is no val split.
        permutations: Fits to permuted targets behind each null.
        bootstrap_draws: Resamples of test units behind each interval.
        neighbours: k of the nearest-neighbour score; 0 leaves it out.
        shots: Images a class of the few-shot curve; empty leaves it out.
        few_shot_draws: Independent draws of those images.
        equal_d: Also score at the smallest width of all taps and models (principal components of train).
        gap: Largest relative objective gap of a fitted probe.
        seed: Fixes splits, permutations, draws and resamples.
        dtype: Storage type of features.
        precision: Of the forward passes: ``float32``, or ``bfloat16``, whose error at each tap then stands in
            ``params``.
        batch_size: Images a forward pass.
        device: Where backbones run; None chooses.
        store: Folder that keeps features and finished cells; None takes the user's cache folder.
        jobs: Parallel workers for the cells (one model, data set and tap each).

    Returns:
        One table; fitted probes and per-image scores are attached.

    Raises:
        ProbekitError: If a model, data set, tap or setting cannot be used; before any probe is fitted.
    """
    began = time.monotonic()
    if rank() != (0, 1):
        raise InputError(
            "one process", "one of several under torchrun", "Run `torchrun -m probekit extract`, then probe"
        )
    settings = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in locals().items()
        if name not in {"began", "models", "data", "store", "jobs", "device"}
    }
    protocol = Protocol(
        tuple(float(one) for one in penalties),
        val_fraction,
        permutations,
        bootstrap_draws,
        neighbours,
        shots=tuple(int(one) for one in shots),
        few_shot_draws=few_shot_draws,
        gap=gap,
        seed=seed,
    )
    folder = Path(store) if store is not None else cache_folder()
    entries = list_entries(models, random)
    sets = [open_images(one) if isinstance(one, str) else one for one in _each(data)]
    _check_names([images.name for images in sets], "data sets")
    # What can be refused is refused before the first image is read.
    chosen = choose_targets(sets, targets)
    roles = {images.name: assign_roles(images, protocol) for images in sets}
    read = partial(
        extract,
        taps=taps,
        store=folder,
        dtype=dtype,
        precision=precision,
        batch_size=batch_size,
        device=device,
    )
    tables, features = [], {}
    for images in sets:
        # Several models see the same images: they are decoded for the first of them.
        with kept_pixels(images, folder / "pixels") as shared:
            found = {
                one.name: read(one.model, shared, recalibrate=one.control_of is not None) for one in entries
            }
        features[images.name] = found
        width = min(one.shape[-1] for taps_ in found.values() for one in taps_.values()) if equal_d else None
        tables += _probe_images(
            images, chosen[images.name], entries, found, roles[images.name], protocol, width, folder, jobs
        )
    provenance = _provenance(settings, models, data, entries, sets, features, time.monotonic() - began)
    joined = ResultTable.concat(tables)
    frame = joined.frame.assign(run_id=provenance["run_id"])
    return ResultTable(frame, provenance, joined.attachments)


def list_entries(
    models: str | ModelSpec | Backbone | Sequence[str | ModelSpec | Backbone], random: int
) -> list[Entry]:
    """Return the models of a comparison, each architecture followed by its random-init controls.

    Raises:
        InputError: If two models bear one name, or controls are asked for of a live backbone whose
            architecture cannot be drawn anew.
    """
    read = [parse_model(one) if isinstance(one, str | Mapping) else one for one in _each(models)]
    asked = [Entry(one.name, one) for one in read]
    if not asked:
        raise InputError("at least one model", "none", "Write NAME=ARCH:CHECKPOINT")
    _check_names([one.name for one in asked], "models")
    builds: dict[str, Entry] = {}
    for one in asked:
        builds.setdefault(_build(one.model), one)
    archs = [one.model.arch for one in builds.values()]
    controls = []
    for one in builds.values():
        own = one.model.arch if archs.count(one.model.arch) == 1 else one.name
        for k in range(random):
            name = f"random@{k}" if len(builds) == 1 else f"{own}:random@{k}"
            controls.append(Entry(name, _drawn(one.model, name, k), one.name, k))
    return asked + controls


def choose_targets(sets: Sequence[ImageSet], targets: str | Sequence[str] | None) -> dict[str, list[str]]:
    """Return the targets to probe in each data set; each name asked for must stand in at least one.

    Boxes, masks and key points are no targets of a probe, which needs one value an image.

    Raises:
        InputError: If a name stands in no data set or is no target of a probe, or a data set has none left.
    """
    known = sorted({name for images in sets for name, one in images.targets.items() if one.kind in KINDS})
    marked = {
        name: one.kind for images in sets for name, one in images.targets.items() if one.kind not in KINDS
    }
    wanted = known if targets is None else list(_each(targets))
    for name in wanted:
        if name in marked and name not in known:
            raise InputError(
                "a target with one value an image: a class, labels or numbers",
                f"{name!r}, which is {marked[name]}",
                f"There are {', '.join(known)}" if known else "Open other annotations",
            )
        if name not in known:
            raise InputError("a target of the data", repr(name), f"The nearest are {near_names(name, known)}")
    chosen = {
        images.name: [name for name, one in images.targets.items() if name in wanted and one.kind in KINDS]
        for images in sets
    }
    for name, names in chosen.items():
        if not names:
            raise InputError(
                f"a target in {name} with one value an image",
                "none of those asked for" if targets is not None else "boxes, masks or key points alone",
                "Leave `targets` out to take all, or open other annotations",
            )
    return chosen


def _probe_images(
    images: ImageSet,
    names: Sequence[str],
    entries: Sequence[Entry],
    found: Mapping[str, Mapping[str, Features]],
    roles: Roles,
    protocol: Protocol,
    width: int | None,
    folder: Path,
    jobs: int,
) -> list[ResultTable]:
    """Run the cells of one data set and say of each row which model and data it belongs to."""
    targets = {name: images.targets[name] for name in names}
    cells: dict[str, Callable[[], ResultTable]] = {}
    owners: dict[tuple[str, str], str] = {}
    for entry in entries:
        for tap, one in found[entry.name].items():
            key = digest_json(
                [
                    CELL_FORMAT,
                    __version__,
                    one.provenance["key"],
                    tap,
                    str(one.values.dtype),
                    images.digest,
                    list(names),
                    protocol.facts(),
                    width,
                ]
            )[:32]
            owners[entry.name, tap] = key
            cells[key] = partial(_probe_tap, one, targets, roles, protocol, width)
    results = run_cells(
        cells,
        folder=folder / "probes",
        save=_save_cell,
        load=ResultTable.read,
        jobs=jobs,
        label=f"probes on {images.name}",
    )
    by_name = {entry.name: entry for entry in entries}
    return [
        _owned(results[key], by_name[name], found[name][tap], images, protocol)
        for (name, tap), key in owners.items()
    ]


def _probe_tap(*given: Any) -> ResultTable:  # noqa: ANN401 - those of ``probe_tap``
    # What solves probes takes seconds to import, and is not needed where every cell is finished.
    from probekit.probes.cell import probe_tap

    return probe_tap(*given)


def _owned(
    table: ResultTable, entry: Entry, features: Features, images: ImageSet, protocol: Protocol
) -> ResultTable:
    """Add to a cell's rows what only the sweep knows, and give its attachments their place."""
    facts = features.provenance["model"]
    frame = table.frame.assign(
        analysis="probe",
        model=entry.name,
        arch=facts["arch"],
        weights=features.provenance["weights"],
        data=images.name,
        split="test",
        trial_seed=protocol.seed,
        pretrain_seed=entry.seed,
    )
    tap = features.facts
    frame = frame.assign(
        tap=features.tap, **{key: tap[key] for key in ("block", "level", "depth", "readout")}
    )
    place = "/".join(safe_name(part) for part in (entry.name, features.tap))
    prefix = f"{safe_name(images.name)}/{place}"
    attachments = {}
    for path, value in table.attachments.items():
        kind, name = path.split("/")
        attachments[f"{kind}/{prefix}/{name}"] = value
    return ResultTable(frame, table.provenance, attachments)


def _save_cell(table: ResultTable, place: Path) -> None:
    """Write a finished cell under its name only once it is whole."""
    unfinished = place.with_name(f".{place.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    table.write(unfinished)
    unfinished.rename(place)


def _build(model: ModelSpec | Backbone) -> str:
    """Return what tells apart architectures for their random draws: the body and the images it is given."""
    if isinstance(model, ModelSpec):
        keys = {name: str(value) for name, value in model.keys.items() if name != "branch"}
        return canonical_json([model.arch, keys])
    return canonical_json([model.arch, model.preprocessing.facts()])


def _drawn(model: ModelSpec | Backbone, name: str, seed: int) -> ModelSpec | Backbone:
    if isinstance(model, ModelSpec):
        keys = {key: value for key, value in model.keys.items() if key != "branch"}
        return replace(model, name=name, checkpoint=f"random@{seed}", keys=keys)
    from probekit.backbones.reset import random_control

    return random_control(model, name, seed)


def _provenance(
    settings: Mapping[str, Any],
    models: Any,  # noqa: ANN401 - as the caller wrote them
    data: Any,  # noqa: ANN401 - as the caller wrote them
    entries: Sequence[Entry],
    sets: Sequence[ImageSet],
    features: Mapping[str, Mapping[str, Mapping[str, Features]]],
    wall_s: float,
) -> dict[str, Any]:
    """Return what made the table; the run's id follows from it, but not from time or place."""
    known = {}
    for entry in entries:
        facts = next(iter(next(iter(features.values()))[entry.name].values())).provenance["model"]
        known[entry.name] = {**facts, "random_init": entry.seed is not None, "control_of": entry.control_of}
    made_by = {
        "probekit": __version__,
        "settings": {
            "models": [_reference(one) for one in _each(models)],
            "data": [_reference(one) for one in _each(data)],
            **settings,
        },
        "models": known,
        "data": {images.name: _data_facts(images) for images in sets},
        "versions": software_versions(),
    }
    return {
        "format": 1,
        "analysis": "probe",
        "run_id": digest_json(made_by)[:12],
        "seed": settings["seed"],
        **made_by,
        "level_shares": {name: facts.get("level_shares", {}) for name, facts in known.items()},
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "wall_s": round(wall_s, 2),
    }


def _data_facts(images: ImageSet) -> dict[str, Any]:
    return {
        "digest": images.digest,
        "n": {role: len(images.indices(role)) for role in ("train", "val", "test")},
        "targets": {name: target.facts() for name, target in images.targets.items()},
        "seen_in_pretraining": images.seen_in_pretraining,
        "skipped": len(images.skipped),
        "spec": images.spec,
    }


def _reference(one: Any) -> Any:  # noqa: ANN401 - whatever the caller gave
    """Return the words of a model or data set, or its digest if it lives only in this process."""
    if isinstance(one, str | Mapping):
        return one
    if isinstance(one, ImageSet):
        return one.spec or live_reference("images", one.name, one.digest)
    if isinstance(one, ModelSpec):
        return str(one)
    return one.spec or live_reference("backbone", one.name, one.weights)


def _each(value: Any) -> list[Any]:  # noqa: ANN401 - one or several of anything
    return list(value) if isinstance(value, list | tuple) else [value]


def _check_names(names: Sequence[str], what: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            f"{what} with names of their own",
            f"{twice[0]!r} twice",
            "Write NAME= before it, or name= after a comma",
        )
