"""The verb ``probe``: every model, every data set, every tap, with controls."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit.backbones.spec import ModelSpec
from probekit.data.images import ImageSet
from probekit.data.targets import KINDS
from probekit.errors import InputError, near_names
from probekit.features.comparison import Comparison, each, stored_settings
from probekit.features.features import Features
from probekit.features.streaming import BATCH_SIZE
from probekit.probes.protocol import PENALTIES, Protocol, assign_roles
from probekit.results.table import ResultTable

if TYPE_CHECKING:
    from probekit.backbones.backbone import Backbone

# Changes whenever a stored cell would no longer hold what the code computes.
CELL_FORMAT = 4


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
    orders: int = 0,
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
        permutations: Fits to permuted targets behind each null, and to the control task behind selectivity.
        bootstrap_draws: Resamples of test units behind each interval.
        neighbours: k of the nearest-neighbour score; 0 leaves it out.
        shots: Images a class of the few-shot curve; empty leaves it out.
        few_shot_draws: Independent draws of those images.
        orders: Orders of the images in which class labels are coded for their description length; 0 leaves it
            out. Three add about half to the time that the probes of a tap take, more where images are few.
        equal_d: Also score at the smallest width of all taps and models (principal components of train).
        gap: Largest relative objective gap of a fitted probe.
        seed: Fixes splits, permutations, draws and resamples.
        dtype: Storage type of features.
        precision: Of the forward passes: ``float32``, or ``bfloat16``, whose error at each tap then stands in
            ``params``.
        batch_size: Images a forward pass.
        device: Where backbones run; None chooses.
        store: Folder or URL that keeps features and finished cells; None takes the user's cache folder.
        jobs: Parallel workers for the cells (one model, data set and tap each).

    Returns:
        One table; fitted probes and per-image scores are attached.

    Raises:
        ProbekitError: If a model, data set, tap or setting cannot be used; before any probe is fitted.
    """
    settings = stored_settings(locals())
    protocol = Protocol(
        tuple(float(one) for one in penalties),
        val_fraction,
        permutations,
        bootstrap_draws,
        neighbours,
        shots=tuple(int(one) for one in shots),
        few_shot_draws=few_shot_draws,
        orders=orders,
        gap=gap,
        seed=seed,
    )
    comparison = Comparison.open("probe", models, data, random=random, store=store)
    # What can be refused is refused before the first image is read.
    chosen = choose_targets(comparison.sets, targets)
    roles = {images.name: assign_roles(images, protocol) for images in comparison.sets}
    tables, features = [], {}
    for images in comparison.sets:
        found = features[images.name] = comparison.read(
            images, taps, dtype=dtype, precision=precision, batch_size=batch_size, device=device
        )
        width = min(one.shape[-1] for taps_ in found.values() for one in taps_.values()) if equal_d else None
        names = chosen[images.name]
        tables += comparison.run_taps(
            images,
            found,
            partial(
                _probe_tap,
                targets={name: images.targets[name] for name in names},
                roles=roles[images.name],
                protocol=protocol,
                equal_d=width,
            ),
            [CELL_FORMAT, list(names), protocol.facts(), width],
            kind="probes",
            seed=seed,
            jobs=jobs,
        )
    return comparison.join(tables, settings, features)


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
    wanted = known if targets is None else list(each(targets))
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


def _probe_tap(features: Features, **given: Any) -> ResultTable:  # noqa: ANN401 - those of ``probe_tap``
    # What solves probes takes seconds to import, and is not needed where every cell is finished.
    from probekit.probes.cell import probe_tap

    return probe_tap(features, **given)
