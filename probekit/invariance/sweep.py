"""The verb ``measure_invariance``: which changes of an image does every tap of every model ignore?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from probekit.data.images import ImageSet
from probekit.data.kept import kept_pixels
from probekit.data.perturbations import parse_perturbations
from probekit.errors import InputError
from probekit.features.comparison import SPLITS, Comparison, find_class_target, stored_settings
from probekit.features.streaming import BATCH_SIZE
from probekit.results.table import ResultTable
from probekit.seeds import draw_rows, random_stream

if TYPE_CHECKING:
    from probekit.backbones.backbone import Backbone
    from probekit.backbones.spec import ModelSpec
    from probekit.features.features import Features

# Changes whenever a stored cell would no longer hold what the code computes.
CELL_FORMAT = 1
# Images a class where not all classes fit into the images that are changed.
IMAGES_A_CLASS = 8


def measure_invariance(
    models: str | ModelSpec | Backbone | Sequence[str | ModelSpec | Backbone],
    data: str | ImageSet | Sequence[str | ImageSet],
    *,
    taps: str | Sequence[str] = "stages",
    perturbations: str | Sequence[str] | None = None,
    images: int = 200,
    target: str | None = None,
    random: int = 3,
    permutations: int = 20,
    seed: int = 0,
    dtype: str = "float32",
    precision: str = "float32",
    batch_size: int = BATCH_SIZE,
    device: str | None = None,
    store: str | Path | None = None,
    jobs: int = 1,
) -> ResultTable:
    """Measure how far changes of an image move the features of every tap.

    Images are changed step by step (turned, shifted, cropped, recoloured, blurred, covered, …), after
    resizing and cropping, alike for all models. By strength: cosine and Mahalanobis distance between an image
    and its changed copy, whitened by all images of the data set; by perturbation: its share of the features'
    variance; of all together: LiDAR, and how often units fire for whatever is done to images of one class.

    Args:
        models: One or several models, in the grammar ``[NAME=]ARCH:CHECKPOINT[,key=value…]`` or loaded.
        data: One or several data sets, in the grammar of ``open_images`` or opened.
        taps: Paths, globs or presets of ``resolve_taps``.
        perturbations: ``NAME`` or ``NAME=STRENGTH/STRENGTH…`` of ``probekit.data.perturbations``; None: all.
        images: Most images that are changed; whitening takes all. Where not all classes fit in with eight
            images each, some classes are drawn.
        target: The class target; None takes the first, if there is one.
        random: Random draws of each architecture as controls; 0 leaves them out.
        permutations: New pairings of images, or permutations of the labels, behind each null.
        seed: Fixes images, what a strength leaves open, and permutations.
        dtype: Storage type of features.
        precision: Of the forward passes.
        batch_size: Images a forward pass.
        device: Where backbones run; None chooses.
        store: Folder or URL that keeps features and finished cells; None takes the user's cache folder.
        jobs: Parallel workers for the cells (one model, data set and tap each).

    Returns:
        One table; ``target`` names the perturbation, ``params`` its strength and unit.

    Raises:
        ProbekitError: If a model, data set, tap, perturbation or setting cannot be used; before any image is
            read.
    """
    settings = stored_settings(locals())
    from probekit.invariance.cell import InvarianceSettings

    if images < 2:
        raise InputError("at least 2 images to change", str(images), "200 is the default")
    asked = [perturbations] if isinstance(perturbations, str) else perturbations
    changes = parse_perturbations(asked, seed)
    chosen = InvarianceSettings(permutations, seed)
    comparison = Comparison.open("invariance", models, data, random=random, store=store)
    names = {one.name: find_class_target(one, target) for one in comparison.sets}
    read: dict[str, Any] = {
        "dtype": dtype,
        "precision": precision,
        "batch_size": batch_size,
        "device": device,
    }
    every = [change for own in changes.values() for change in own]
    tables, features = [], {}
    for whole in comparison.sets:
        clean = features[whole.name] = comparison.read(whole, taps, **read)
        name, split = names[whole.name], SPLITS[whole.seen_in_pretraining]
        rows = _draw_images(whole, name, images, seed)
        # The base keeps its own pixels: it is decoded once, not once a change.
        with kept_pixels(whole.select(rows), comparison.folder / "pixels") as few:
            found = comparison.read(few.with_views(every), taps, training=whole, **read)
        width = min(one.shape[-1] for own in found.values() for one in own.values())
        measure = partial(
            _measure,
            clean={
                (one.provenance["weights"], tap): one for own in clean.values() for tap, one in own.items()
            },
            changes=changes,
            target=None if name is None else (name, whole.targets[name].select(rows)),
            width=width,
            split=split,
            settings=chosen,
        )
        identity = [CELL_FORMAT, name, [str(one) for one in every], split, width, chosen.facts()]
        tables += comparison.run_taps(
            whole, found, measure, identity, kind="invariance", seed=seed, jobs=jobs
        )
    return comparison.join(tables, settings, features)


def _draw_images(images: ImageSet, name: str | None, most: int, seed: int) -> NDArray[np.intp]:
    """Return which images are changed: any, or those of some classes where not all classes fit in."""
    if name is not None:
        values = images.targets[name].values
        counts = np.bincount(values)
        large = np.flatnonzero(counts >= IMAGES_A_CLASS)
        if (counts > 0).sum() * IMAGES_A_CLASS > most and len(large) >= 2 and most >= 2 * IMAGES_A_CLASS:
            stream = random_stream("classes of changed images", seed)
            classes = stream.choice(large, min(len(large), most // IMAGES_A_CLASS), replace=False)
            rows = [
                stream.choice(np.flatnonzero(values == c), IMAGES_A_CLASS, replace=False) for c in classes
            ]
            return np.sort(np.concatenate(rows))
    return draw_rows(len(images), most, seed)


def _measure(features: Features, **given: Any) -> ResultTable:  # noqa: ANN401 - those of the cell
    # What measures takes seconds to import, and is not needed where every cell is finished.
    from probekit.invariance.cell import invariance_of_tap

    return invariance_of_tap(features, **given)
