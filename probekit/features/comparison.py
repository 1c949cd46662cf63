"""Several models over several data sets: features of all of them, cells of their taps, one table."""

from __future__ import annotations

import math
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
from probekit.data.targets import GROUP
from probekit.data.transforms import Preprocessing
from probekit.errors import FeatureError, InputError, near_names
from probekit.features.extraction import extract, open_model
from probekit.features.features import Features
from probekit.features.statistics import recalibrated
from probekit.files import canonical_json, digest_json, making_folder, safe_name
from probekit.grid import run_cells
from probekit.plan import live_reference
from probekit.remote import store_folder
from probekit.results.table import ResultTable
from probekit.version import __version__

if TYPE_CHECKING:
    from probekit.backbones.backbone import Backbone

# ``seen_in_pretraining`` → the column ``split`` of measures that hold nothing out.
SPLITS = {"yes": "seen", "no": "unseen", "unknown": "unknown"}


MOST_GRID = 4
# Layout → places of height and width in the shape of an image's activation.
_SIDES = {"NCHW": (1, 2), "NHWC": (0, 1)}
# What decides which pixels a model is given.
_GEOMETRY = ("size", "resize", "interpolation")
# Keywords of a verb that stand in the provenance by themselves, or change nothing in its table.
_NOT_STORED = frozenset({"models", "data", "store", "jobs", "device"})


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


@dataclass(frozen=True, eq=False)
class Body:
    """How to open again what features were read from.

    Attributes:
        model: A parsed model, or a live Backbone.
        images: Images from whose training split a random-init control has its batch-norm statistics.
        is_control: Whether it is one.
        device: Where it runs; None chooses.
        weights: Digest of the weights that the features say they were read with.
    """

    model: ModelSpec | Backbone
    images: ImageSet
    is_control: bool
    device: str | None
    weights: str

    def open(self) -> Backbone:
        """Load it.

        Raises:
            FeatureError: If it has other weights than the features were read with.
        """
        backbone = open_model(self.model, self.device)
        if self.is_control:
            backbone = recalibrated(backbone, self.images)
        if backbone.weights != self.weights:
            raise FeatureError(
                f"the weights {self.weights[:12]} that the features were read with",
                backbone.weights[:12],
                "Run again with an empty store: a file may have changed meanwhile",
            )
        return backbone


@dataclass(frozen=True)
class Comparison:
    """Models and data sets of one call, opened and checked, before an image is read.

    Attributes:
        analysis: The verb, as in the column of that name.
        models: As the caller wrote them.
        data: As the caller wrote them.
        entries: Models asked for and their controls.
        sets: Opened data sets.
        folder: Keeps features and finished cells.
        began: When the call began, of ``time.monotonic``.
    """

    analysis: str
    models: Any
    data: Any
    entries: list[Entry]
    sets: list[ImageSet]
    folder: Path
    began: float

    @classmethod
    def open(
        cls,
        analysis: str,
        models: str | ModelSpec | Backbone | Sequence[str | ModelSpec | Backbone],
        data: str | ImageSet | Sequence[str | ImageSet],
        *,
        random: int,
        store: str | Path | None,
    ) -> Comparison:
        """Open what can be opened, and refuse what can be refused, before the first image is read.

        Raises:
            InputError: If this is one of several processes, or names clash.
            ProbekitError: If a model, data set or store cannot be opened.
        """
        began = time.monotonic()
        if rank() != (0, 1):
            raise InputError(
                "one process",
                "one of several under torchrun",
                f"Run `torchrun -m probekit extract`, then {analysis}",
            )
        entries = list_entries(models, random)
        folder = store_folder(store)
        sets = [open_images(one) if isinstance(one, str) else one for one in each(data)]
        _check_names([images.name for images in sets], "data sets")
        return cls(analysis, models, data, entries, sets, folder, began)

    def read(
        self,
        images: ImageSet,
        taps: str | Sequence[str] | Mapping[str, Sequence[str]],
        *,
        training: ImageSet | None = None,
        **settings: Any,  # noqa: ANN401 - those of ``extract``
    ) -> dict[str, Mapping[str, Features]]:
        """Return the features of every model: model name → tap → features.

        Args:
            images: The data set.
            taps: Of all models alike, or model name → taps; a model without any is left out.
            training: Images on whose training split random-init controls re-estimate their batch-norm
                statistics; None takes ``images``.
            **settings: Passed to ``extract``.
        """
        own = taps if isinstance(taps, Mapping) else {one.name: taps for one in self.entries}
        # Several models see the same images: they are decoded for the first of them.
        with kept_pixels(images, self.folder / "pixels") as shared:
            calibration = shared if training is None else training
            return {
                one.name: extract(
                    one.model,
                    shared,
                    own[one.name],
                    store=self.folder,
                    recalibrate=calibration if one.control_of is not None else False,
                    **settings,
                )
                for one in self.entries
                if own.get(one.name)
            }

    def bodies(
        self, images: ImageSet, found: Mapping[str, Mapping[str, Features]], device: str | None
    ) -> dict[str, Body]:
        """Return how to open again what the features of a data set were read from, by weights."""
        made: dict[str, Body] = {}
        for entry in self.entries:
            for one in found.get(entry.name, {}).values():
                weights = one.provenance["weights"]
                body = Body(entry.model, images, entry.control_of is not None, device, weights)
                made.setdefault(weights, body)
        return made

    def run_taps(
        self,
        images: ImageSet,
        found: Mapping[str, Mapping[str, Features]],
        compute: Callable[[Features], ResultTable],
        identity: Sequence[Any],
        *,
        kind: str,
        seed: int,
        jobs: int,
    ) -> list[ResultTable]:
        """Run one cell for every model and tap of a data set, and say of each row whose it is.

        Args:
            images: The data set.
            found: Model name → tap → features.
            compute: What a cell computes: rows without model, data and run.
            identity: JSON values that, beside features, data and version, tell one cell from another.
            kind: Folder of the finished cells in the store.
            seed: Goes to the column ``trial_seed``.
            jobs: Parallel workers.
        """
        cells: dict[str, Callable[[], ResultTable]] = {}
        owners: dict[tuple[str, str], str] = {}
        for entry in self.entries:
            for tap, one in found.get(entry.name, {}).items():
                parts = [
                    __version__,
                    one.provenance["key"],
                    tap,
                    str(one.values.dtype),
                    images.digest,
                    *identity,
                ]
                key = digest_json(parts)[:32]
                owners[entry.name, tap] = key
                cells[key] = partial(compute, one)
        results = run_cells(
            cells,
            folder=self.folder / kind,
            save=_save_cell,
            load=ResultTable.read,
            jobs=jobs,
            label=f"{kind} on {images.name}",
        )
        by_name = {entry.name: entry for entry in self.entries}
        return [
            _owned(self.analysis, results[key], by_name[name], found[name][tap], images, seed)
            for (name, tap), key in owners.items()
        ]

    def join(
        self,
        tables: Sequence[ResultTable],
        settings: Mapping[str, Any],
        features: Mapping[str, Mapping[str, Mapping[str, Features]]],
    ) -> ResultTable:
        """Return one table of all, with what made it.

        Args:
            tables: Of all data sets.
            settings: Of the call, as JSON values, ``seed`` among them.
            features: Data name → model name → tap → features.
        """
        provenance = _provenance(self, settings, features)
        joined = ResultTable.concat(list(tables))
        return ResultTable(joined.frame.assign(run_id=provenance["run_id"]), provenance, joined.attachments)


def find_class_target(images: ImageSet, target: str | None) -> str | None:
    """Return the name of the class target of a data set, or of its groups; None if it has neither.

    Args:
        images: The data set.
        target: Its name; None takes the first.

    Raises:
        InputError: If there is none of that name.
    """
    known = [name for kind in ("class", GROUP) for name, one in images.targets.items() if one.kind == kind]
    if target is None:
        return known[0] if known else None
    if target not in known:
        near = f"The nearest are {near_names(target, known)}" if known else "It has none"
        raise InputError(f"a class target of {images.name}", repr(target), near)
    return target


def common_grid(found: Mapping[str, Mapping[str, Features]]) -> tuple[int, dict[str, list[str]]]:
    """Return the side of the grid that all maps and tokens have room for, at most 4, and the taps read by it.

    Under global average pooling a lost position is the readout's doing; a grid of means keeps some of it.

    Args:
        found: Model name → tap → features, by any readout.

    Returns:
        Side, 0 where there is nothing with places; model name → its taps with that readout.
    """
    sides = {
        model: {tap: _side(one.facts) for tap, one in own.items() if _side(one.facts)}
        for model, own in found.items()
    }
    side = min([MOST_GRID, *(one for own in sides.values() for one in own.values())])
    if not any(sides.values()):
        return 0, {model: [] for model in found}
    paths = {model: dict.fromkeys(tap.rpartition("|")[0] for tap in own) for model, own in sides.items()}
    return side, {model: [f"{path}|grid({side})" for path in own] for model, own in paths.items()}


def common_preprocessing(found: Mapping[str, Mapping[str, Features]]) -> Preprocessing:
    """Return how all models take their images.

    Raises:
        InputError: If they do not take the same pixels.
    """
    facts = {
        model: next(iter(own.values())).provenance["model"]["preprocessing"] for model, own in found.items()
    }
    views = {model: [one[name] for name in _GEOMETRY] for model, one in facts.items()}
    first, *others = views.items()
    for model, view in others:
        if view != first[1]:
            raise InputError(
                "models that take the same pixels",
                f"{first[0]}: {_words(first[1])}; {model}: {_words(view)}",
                "Give all of them one size=, resize= and interpolation=",
            )
    size, resize, interpolation = first[1]
    return Preprocessing(size, resize, interpolation=interpolation)


def _words(view: Sequence[Any]) -> str:
    size, resize, interpolation = view
    return f"resize {resize} {interpolation}, crop {size}"


def _side(facts: Mapping[str, Any]) -> int:
    """Return the smaller side of a map, or of the square of patches among tokens; 0 for vectors."""
    layout, shape = facts.get("layout"), facts.get("shape", ())
    if layout in _SIDES and len(shape) == 3:
        return int(min(shape[place] for place in _SIDES[layout]))
    # Class and register tokens are fewer than what the next square would need, but for the smallest inputs.
    return math.isqrt(shape[0]) if layout == "NLC" and len(shape) == 2 else 0


def stored_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords of a verb, its first ``locals()``, as the JSON values its table keeps.

    Examples:
        >>> stored_settings({"taps": ("a", "b"), "seed": 0, "jobs": 2})
        {'taps': ['a', 'b'], 'seed': 0}
    """
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in given.items()
        if name not in _NOT_STORED
    }


def list_entries(
    models: str | ModelSpec | Backbone | Sequence[str | ModelSpec | Backbone], random: int
) -> list[Entry]:
    """Return the models of a comparison, each architecture followed by its random-init controls.

    Raises:
        InputError: If two models bear one name, or controls are asked for of a live backbone whose
            architecture cannot be drawn anew.
    """
    read = [parse_model(one) if isinstance(one, str | Mapping) else one for one in each(models)]
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


def _owned(
    analysis: str, table: ResultTable, entry: Entry, features: Features, images: ImageSet, seed: int
) -> ResultTable:
    """Add to a cell's rows what only the sweep knows, and give its attachments their place."""
    facts = features.provenance["model"]
    frame = table.frame.assign(
        analysis=analysis,
        model=entry.name,
        arch=facts["arch"],
        weights=features.provenance["weights"],
        data=images.name,
        trial_seed=seed,
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
    with making_folder(place) as folder:
        table.write(folder)


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
    comparison: Comparison,
    settings: Mapping[str, Any],
    features: Mapping[str, Mapping[str, Mapping[str, Features]]],
) -> dict[str, Any]:
    """Return what made the table; the run's id follows from it, but not from time or place."""
    known = {}
    for entry in comparison.entries:
        facts = next(iter(next(iter(features.values()))[entry.name].values())).provenance["model"]
        known[entry.name] = {**facts, "random_init": entry.seed is not None, "control_of": entry.control_of}
    made_by = {
        "probekit": __version__,
        "settings": {
            "models": [reference(one) for one in each(comparison.models)],
            "data": [reference(one) for one in each(comparison.data)],
            **settings,
        },
        "models": known,
        "data": {images.name: data_facts(images) for images in comparison.sets},
        "versions": software_versions(),
    }
    return {
        "format": 1,
        "analysis": comparison.analysis,
        "run_id": digest_json(made_by)[:12],
        "seed": settings["seed"],
        **made_by,
        "level_shares": {name: facts.get("level_shares", {}) for name, facts in known.items()},
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "wall_s": round(time.monotonic() - comparison.began, 2),
    }


def data_facts(images: ImageSet) -> dict[str, Any]:
    """Return what provenance says of a data set."""
    return {
        "digest": images.digest,
        "n": {role: len(images.indices(role)) for role in ("train", "val", "test")},
        "targets": {name: target.facts() for name, target in images.targets.items()},
        "seen_in_pretraining": images.seen_in_pretraining,
        "skipped": len(images.skipped),
        "spec": images.spec,
    }


def reference(one: Any) -> Any:  # noqa: ANN401 - whatever the caller gave
    """Return the words of a model or data set, or its digest if it lives only in this process."""
    if isinstance(one, str | Mapping):
        return one
    if isinstance(one, ImageSet):
        return one.spec or live_reference("images", one.name, one.digest)
    if isinstance(one, ModelSpec):
        return str(one)
    return one.spec or live_reference("backbone", one.name, one.weights)


def each(value: Any) -> list[Any]:  # noqa: ANN401 - one or several of anything
    """Return one or several of anything as a list."""
    return list(value) if isinstance(value, list | tuple) else [value]


def _check_names(names: Sequence[str], what: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            f"{what} with names of their own",
            f"{twice[0]!r} twice",
            "Write NAME= before it, or name= after a comma",
        )
