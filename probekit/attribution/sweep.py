"""The verb ``attribute``: where does a probe of every tap of every model look, and is the thing there?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit.attribution.attributions import METHODS
from probekit.attribution.marked import find_pairs, find_targets, mark_pairs
from probekit.data.images import ImageSet
from probekit.data.kept import kept_pixels
from probekit.errors import InputError
from probekit.features.comparison import Comparison, common_preprocessing, stored_settings
from probekit.features.streaming import BATCH_SIZE
from probekit.probes.protocol import PENALTIES, Protocol, assign_roles
from probekit.results.table import ResultTable

if TYPE_CHECKING:
    from probekit.backbones.backbone import Backbone
    from probekit.backbones.spec import ModelSpec
    from probekit.features.features import Features

# Changes whenever a stored cell would no longer hold what the code computes.
CELL_FORMAT = 1
_MAPS = ("NCHW", "NHWC")
# Maps show the direction of weights, which a strong penalty leaves close to zero: fits go further than scores
# need.
GAP = 1e-6


def attribute(
    models: str | ModelSpec | Backbone | Sequence[str | ModelSpec | Backbone],
    data: str | ImageSet | Sequence[str | ImageSet],
    *,
    taps: str | Sequence[str] = "levels",
    target: str | None = None,
    method: str = "probe_cam",
    images: int = 200,
    tolerance_px: float = 0.0,
    cascade: bool = False,
    random: int = 3,
    penalties: Sequence[float] = PENALTIES,
    permutations: int = 5,
    bootstrap_draws: int = 2000,
    seed: int = 0,
    dtype: str = "float32",
    precision: str = "float32",
    batch_size: int = BATCH_SIZE,
    device: str | None = None,
    store: str | Path | None = None,
    jobs: int = 1,
) -> ResultTable:
    """Show where probes look for their classes, and score that against masks or boxes.

    At every tap a probe is fitted to the target as ``probe`` does it. Of each test image in which one of its
    classes is marked, the map towards that class is enlarged to the size of the input and compared with what
    is marked: whether its highest value lies inside, how much of its positive part does, which share of as
    many highest pixels as the mark has, and the intersection over union at the best threshold. The map is
    made whether the probe names the class or not. Classes that fewer than five of the fitting images have are
    left out.

    Maps of a tap near the image are fine but see little around each place; those of a deep tap are a few
    places wide. So compare with the same tap of random networks, with maps of probes of permuted labels, and
    with the two maps that know nothing, one constant and one a Gaussian in the middle.

    Args:
        models: One or several models, in the grammar ``[NAME=]ARCH:CHECKPOINT[,key=value…]`` or loaded. All
            take images of one size.
        data: One or several data sets with masks or boxes, in the grammar of ``open_images`` or opened.
        taps: Paths, globs or presets of ``resolve_taps``. Without a readout, maps are read by their mean over
            places, tokens by that over patches.
        target: The target of classes or labels; None takes the first.
        method: How maps are made: ``probe_cam``, the probe's score taken apart by places, or another one of
            ``attribute_images``, which are slower, above all for the null: a map for each permutation.
        images: Most test images that are scored.
        tolerance_px: By how many pixels of the input the pointing game may miss.
        cascade: Also reset blocks at random from each tap downwards, one more at every step, and compare maps
            with those before: a map that stays the same shows the image, not what the model has learnt.
        random: Random draws of each architecture as controls; 0 leaves them out.
        penalties: Candidates for ½·penalty·‖W‖².
        permutations: Probes of permuted labels behind each null; for ``cascade``, new pairings of images.
        bootstrap_draws: Resamples of test images behind each interval.
        seed: Fixes splits, images, permutations, resamples and what blocks are reset to.
        dtype: Storage type of features.
        precision: Of the forward passes that probes are fitted on; maps are made in float32.
        batch_size: Images a forward pass.
        device: Where backbones run; None chooses.
        store: Folder or URL that keeps features and finished cells; None takes the user's cache folder.
        jobs: Parallel workers for the cells (one model, data set and tap each).

    Returns:
        One table: ``energy_inside``, ``relevance_rank``, ``best_iou``, ``pointing_game``, each the mean over
        images; with ``cascade`` also ``cascade_spearman`` and ``cascade_ssim``. Attached are the probes, the
        scores of every image, and some images with their maps.

    Raises:
        ProbekitError: If a model, data set, tap or setting cannot be used, or nothing is marked; before any
            probe is fitted.
    """
    settings = stored_settings(locals())
    from probekit.attribution.cell import AttributionSettings

    if method not in METHODS:
        raise InputError(f"a method among {', '.join(METHODS)}", repr(method), "probe_cam is the default")
    if images < 1:
        raise InputError("at least 1 image to score", str(images), "200 is the default")
    if not tolerance_px >= 0:
        raise InputError("a tolerance of at least 0 px", str(tolerance_px), "0 is the default")
    protocol = Protocol(
        tuple(float(one) for one in penalties),
        permutations=permutations,
        bootstrap_draws=bootstrap_draws,
        neighbours=0,
        shots=(),
        gap=GAP,
        seed=seed,
    )
    chosen = AttributionSettings(protocol, method, float(tolerance_px), cascade, batch_size)
    comparison = Comparison.open("attribute", models, data, random=random, store=store)
    # What can be refused is refused before the first image is read.
    names = {one.name: find_targets(one, target) for one in comparison.sets}
    roles = {one.name: assign_roles(one, protocol) for one in comparison.sets}
    pairs = {
        one.name: find_pairs(one, *names[one.name], roles[one.name], images, seed) for one in comparison.sets
    }
    read: dict[str, Any] = {
        "dtype": dtype,
        "precision": precision,
        "batch_size": batch_size,
        "device": device,
    }
    tables, features = [], {}
    for whole in comparison.sets:
        name, marks = names[whole.name]
        with kept_pixels(whole, comparison.folder / "pixels") as kept:
            asked = comparison.read(kept, taps, **read)
            preprocessing = common_preprocessing(asked)
            found = asked
            if method == "probe_cam":
                found = comparison.read(kept, _readouts(asked), training=whole, **read)
        features[whole.name] = found
        marked = mark_pairs(whole, marks, *pairs[whole.name], preprocessing)
        measure = partial(
            _measure,
            target=(name, whole.targets[name]),
            roles=roles[whole.name],
            marked=marked,
            bodies=comparison.bodies(whole, found, device),
            baselines=marked.baselines(chosen.tolerance_px),
            settings=chosen,
        )
        identity = [CELL_FORMAT, name, marks, images, chosen.facts()]
        tables += comparison.run_taps(whole, found, measure, identity, kind="attribute", seed=seed, jobs=jobs)
    return comparison.join(tables, settings, features)


def _readouts(asked: Mapping[str, Mapping[str, Features]]) -> dict[str, list[str]]:
    """Return the taps of every model with readouts that are means over places.

    Raises:
        InputError: If a tap has no places, or was asked for by another readout.
    """
    return {model: [_with_places(tap, one.facts) for tap, one in own.items()] for model, own in asked.items()}


def _with_places(tap: str, facts: Mapping[str, Any]) -> str:
    path, _, readout = tap.rpartition("|")
    layout = facts.get("layout")
    if layout not in (*_MAPS, "NLC"):
        raise InputError(
            "a tap with places, such as a map or patches",
            f"{tap}, a vector an image",
            "Choose a tap before the pooling, such as those of levels or stages",
        )
    if layout == "NLC" and readout == "cls":
        # The default where there is a class token, whose score does not fall into places.
        return f"{path}|patch_mean"
    if readout in ("gap", "patch_mean") or readout.startswith("grid("):
        return tap
    raise InputError(
        "a readout that is a mean over places: gap, grid(k) or patch_mean", tap, "Leave the readout out"
    )


def _measure(features: Features, **given: Any) -> ResultTable:  # noqa: ANN401 - those of the cell
    # What measures takes seconds to import, and is not needed where every cell is finished.
    from probekit.attribution.cell import attribute_tap

    return attribute_tap(features, **given)
