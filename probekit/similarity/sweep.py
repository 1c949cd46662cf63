"""The verb ``measure_similarity``: every layer against every other, within and between backbones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit.features.comparison import Comparison, stored_settings
from probekit.features.streaming import BATCH_SIZE
from probekit.results.table import ResultTable

if TYPE_CHECKING:
    from probekit.backbones.backbone import Backbone
    from probekit.backbones.spec import ModelSpec
    from probekit.data.images import ImageSet
    from probekit.features.features import Features

# Changes whenever a stored cell would no longer hold what the code computes.
CELL_FORMAT = 4


def measure_similarity(
    models: str | ModelSpec | Backbone | Sequence[str | ModelSpec | Backbone],
    data: str | ImageSet | Sequence[str | ImageSet],
    *,
    taps: str | Sequence[str] = "levels",
    random: int = 1,
    subsample: int = 5000,
    pairwise: int = 1000,
    groups: int = 20,
    permutations: int = 5,
    k: int = 10,
    seed: int = 0,
    dtype: str = "float32",
    precision: str = "float32",
    batch_size: int = BATCH_SIZE,
    device: str | None = None,
    store: str | Path | None = None,
    jobs: int = 1,
) -> ResultTable:
    """Measure how alike layers are, every tap of every model against every other over the same images.

    Linear CKA (biased, with its exact null; debiased; debiased without each layer's leading component), the
    Procrustes angle, SVCCA and PWCCA, RSA and mutual neighbours. High values are no evidence by themselves:
    read each beside its null. No labels are used.

    Args:
        models: One or several models, in the grammar ``[NAME=]ARCH:CHECKPOINT[,key=value…]`` or loaded.
        data: One or several data sets, in the grammar of ``open_images`` or opened. All their images count.
        taps: Paths, globs or presets of ``resolve_taps``.
        random: Random draws of each architecture as controls; 0 leaves them out.
        subsample: Most images; of more, so many are drawn, the same for every layer.
        pairwise: Most images of RSA and mutual neighbours.
        groups: Groups of images left out one at a time for the intervals of CKA.
        permutations: How often images are paired anew for nulls that have no formula.
        k: Neighbours of ``mutual_knn``.
        seed: Fixes subsamples, groups and permutations.
        dtype: Storage type of features.
        precision: Of the forward passes.
        batch_size: Images a forward pass.
        device: Where backbones run; None chooses.
        store: Folder or URL that keeps features and finished cells; None takes the user's cache folder.
        jobs: Parallel workers for the cells (one layer against all others each).

    Returns:
        One table, a row for every ordered pair of layers and measure; ``target`` names the other layer, as
        ``model tap``.

    Raises:
        ProbekitError: If a model, data set, tap or setting cannot be used; before any image is read.
    """
    settings = stored_settings(locals())
    from probekit.similarity.cell import Layer
    from probekit.similarity.side import SimilaritySettings

    chosen = SimilaritySettings(subsample, pairwise, groups, permutations, k, seed)
    comparison = Comparison.open("similarity", models, data, random=random, store=store)
    read: dict[str, Any] = {
        "dtype": dtype,
        "precision": precision,
        "batch_size": batch_size,
        "device": device,
    }
    tables, features = [], {}
    for images in comparison.sets:
        found = features[images.name] = comparison.read(images, taps, **read)
        others = [Layer(model, tap, one) for model, own in found.items() for tap, one in own.items()]
        names = [[one.model, one.tap, one.features.provenance["key"]] for one in others]
        tables += comparison.run_taps(
            images,
            found,
            partial(_measure, others=others, settings=chosen),
            [CELL_FORMAT, names, chosen.facts()],
            kind="similarity",
            seed=seed,
            jobs=jobs,
        )
    return comparison.join(tables, settings, features)


def _measure(features: Features, **given: Any) -> ResultTable:  # noqa: ANN401 - those of the cell
    from probekit.similarity.cell import similarity_of_tap

    return similarity_of_tap(features, **given)
