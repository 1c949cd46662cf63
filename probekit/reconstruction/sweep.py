"""The verb ``reconstruct``: how much of the images can be read back from every tap of every model?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probekit.data.images import ImageSet
from probekit.data.readers import open_images
from probekit.data.regions import region_target
from probekit.errors import InputError, near_names
from probekit.features.comparison import Comparison, Entry, stored_settings
from probekit.features.streaming import BATCH_SIZE
from probekit.plan import live_reference
from probekit.probes.protocol import PENALTIES, Protocol
from probekit.reconstruction.decoding import Decoding, decode_set
from probekit.reconstruction.inverting import RESIDUAL, SHOWN, Inverting, invert_taps
from probekit.results.table import ResultTable

if TYPE_CHECKING:
    from probekit.backbones.backbone import Backbone
    from probekit.backbones.spec import ModelSpec
    from probekit.reconstruction.decoder import DecoderSettings
    from probekit.reconstruction.linear import DecodingSettings

METHODS = ("linear", "decoder", "inversion")


def reconstruct(
    models: str | ModelSpec | Backbone | Sequence[str | ModelSpec | Backbone],
    data: str | ImageSet | Sequence[str | ImageSet],
    *,
    method: str = "linear",
    taps: str | Sequence[str] = "stages",
    regions: str | ImageSet | None = None,
    width: int = 256,
    draws: int = 3,
    steps: int = 200,
    preset: str = "preview",
    prior: str | None = None,
    shown: int = SHOWN,
    residual: float = RESIDUAL,
    perceptual: str | Backbone | None = None,
    random: int = 3,
    penalties: Sequence[float] = PENALTIES,
    permutations: int = 20,
    bootstrap_draws: int = 2000,
    seed: int = 0,
    dtype: str = "float32",
    precision: str = "float32",
    batch_size: int = BATCH_SIZE,
    device: str | None = None,
    store: str | Path | None = None,
    jobs: int = 1,
) -> ResultTable:
    """Measure how much of the images can be read back from every tap.

    ``linear`` and ``decoder`` read all test images: maps and tokens are read as one grid of means, the same
    for all, projected at random to equally many features; then a ridge regression reads 8 × 8 cells of mean
    colour, in seconds, or a small up-convolutional network, trained for a fixed number of steps, makes an
    image of 32 × 32 pixels. Both give R² of all cells, of each band of spatial frequency, and cell by cell.
    Where there is no train or no test split, a fifth of all images is held out; classes play no part.

    ``inversion`` makes pictures of a few images, in minutes a tap: images that the layer does not tell from
    the true ones, by a prior of images with weights of its own for each, until the activations are as near as
    ``residual``; see ``probekit.reconstruction.inversion.invert``. Taps where images end above it are shown,
    not ranked. The images have the size the backbones take: load them with ``size=64`` for ``preview``.

    Made images are compared with the true ones. What is not read may still be there.

    Source: after Dosovitskiy and Brox, Inverting Visual Representations with Convolutional Networks (CVPR
    2016); inversion as Zhao, Wu, Lau and Lin, What makes instance discrimination good for transfer learning?
    (ICLR 2021), section 3.

    Args:
        models: One or several models, in the grammar ``[NAME=]ARCH:CHECKPOINT[,key=value…]`` or loaded. All
            take images of one size.
        data: One or several data sets, in the grammar of ``open_images`` or opened.
        method: ``linear``, ``decoder`` or ``inversion``.
        taps: Paths, globs or presets of ``resolve_taps``, without readouts; inversion takes a readout, too.
        regions: Images with masks or boxes, whose foreground and background are scored apart with the maps
            fitted on each data set; None takes the test images of a data set that has them. An inversion
            scores those that it makes.
        width: Features that every tap is projected to; the narrowest tap bounds it.
        draws: Trainings of the decoder, or draws of the prior of an inversion, behind each interval.
        steps: Of each training of the decoder.
        preset: ``preview``, ``standard`` or ``paper``: prior, rate and steps of an inversion.
        prior: ``pyramid``, ``network``, ``fourier`` or ``pixels``; None takes that of the preset.
        shown: Test images that are inverted, evenly spaced.
        residual: Relative residual of the activations at which an inversion is done.
        perceptual: A further network, ``NAME=ARCH:CHECKPOINT`` or loaded, in whose features made images are
            compared with the true ones; it must be none of the models. None leaves that out.
        random: Random draws of each architecture as controls; 0 leaves them out.
        penalties: Candidates for ½·penalty·‖W‖² of the linear map.
        permutations: Linear fits to permuted images behind each null.
        bootstrap_draws: Resamples of test images behind each interval of a linear map.
        seed: Fixes splits, projections, trainings, permutations and resamples.
        dtype: Storage type of features.
        precision: Of the forward passes.
        batch_size: Images a forward pass.
        device: Where backbones run; None chooses.
        store: Folder or URL that keeps features and finished cells; None takes the user's cache folder.
        jobs: Parallel workers for the cells (one model, data set and tap each).

    Returns:
        One table: ``pixel_r2`` with ``target`` ``all`` or the band of frequency, ``foreground_error``,
        ``background_error`` and their ratio; of made images ``psnr``, ``ssim``, ``gradient_deviation``,
        ``image_r2`` and ``perceptual_distance``, and of an inversion ``feature_residual``. Attached are R² by
        cell and by image and examples, or true and made images, maps of errors and curves.

    Raises:
        ProbekitError: If a model, data set, tap or setting cannot be used.
    """
    settings = stored_settings(locals())
    if isinstance(regions, ImageSet):
        settings["regions"] = live_reference("images", regions.name, regions.digest)
    if perceptual is not None and not isinstance(perceptual, str):
        settings["perceptual"] = live_reference("model", perceptual.name, perceptual.weights)
    if method not in METHODS:
        raise InputError(
            f"a method among {', '.join(METHODS)}", repr(method), f"Nearest: {near_names(method, METHODS, 1)}"
        )
    if width < 1:
        raise InputError("at least one feature to project to", str(width), "256 is the default")
    if perceptual is not None and method == "linear":
        raise InputError(
            "a method that makes images beside `perceptual`", "linear", "Choose decoder or inversion"
        )
    inverting = Inverting(taps, preset, prior, shown, draws, residual, seed, device, jobs)
    chosen: DecodingSettings | DecoderSettings | None = None
    if method == "inversion":
        inverting.check()
        if regions is not None:
            raise InputError(
                "no `regions` beside an inversion", str(settings["regions"]),
                "Name images with masks or boxes as data: those that are inverted are scored",
            )  # fmt: skip
    elif method == "decoder":
        from probekit.reconstruction.decoder import DecoderSettings
        from probekit.reconstruction.upconvolution import Budget

        chosen = DecoderSettings(width, draws, seed, Budget(steps))
    else:
        from probekit.reconstruction.linear import DecodingSettings

        chosen = DecodingSettings(width, permutations, bootstrap_draws, tuple(penalties), seed)
    Protocol(tuple(penalties), permutations=permutations, bootstrap_draws=bootstrap_draws, seed=seed)
    comparison = Comparison.open("reconstruct", models, data, random=random, store=store)
    scored = open_images(regions) if isinstance(regions, str) else regions
    if scored is not None and region_target(scored) is None:
        raise InputError(f"masks or boxes in {scored.name}", "neither", "Name images that have them")
    read: dict[str, Any] = {
        "dtype": dtype,
        "precision": precision,
        "batch_size": batch_size,
        "device": device,
    }
    network = None if perceptual is None else _open_judge(perceptual, comparison.entries)
    tables, features = [], {}
    for images in comparison.sets:
        if chosen is None:
            found, features[images.name] = invert_taps(comparison, images, inverting, network)
        else:
            decoding = Decoding(method, taps, scored, chosen, read, network, jobs)
            found, features[images.name] = decode_set(comparison, images, decoding)
        tables += found
    return comparison.join(tables, settings, features)


def _open_judge(perceptual: str | Backbone, entries: Sequence[Entry]) -> Backbone:
    """Return the network that judges made images, refused if it is a model of the comparison."""
    from probekit.backbones.backbone import Backbone
    from probekit.backbones.loading import load_backbone
    from probekit.reconstruction.perceptual import refuse_scored

    network = load_backbone(perceptual) if isinstance(perceptual, str) else perceptual
    known = {
        one.name: one.model if isinstance(one.model, Backbone) else load_backbone(one.model)
        for one in entries
    }
    refuse_scored(network, {name: one.facts() for name, one in known.items()})
    return network
