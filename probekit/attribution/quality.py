"""How far maps can be believed: do they foretell what hiding parts does, and do they hold still?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from probekit.attribution.composed import compose
from probekit.attribution.explainers import GRADIENT_BATCH, Settings, baseline_of, explainer, mean_image
from probekit.data.readers import open_images
from probekit.errors import InputError
from probekit.features.streaming import divide, pixel_batches, prepared
from probekit.seeds import named_seed, random_stream

if TYPE_CHECKING:
    from probekit.attribution.attributions import Attributions
    from probekit.backbones.backbone import Backbone
    from probekit.data.images import ImageSet
    from probekit.results.fitted import Probe

SQUARES = 40
# Side of a hidden square, as a share of the input's.
SQUARE = 0.25
COPIES = 10
# Largest change of a pixel, as a share of the range of pixel values.
RADIUS = 0.02


def measure_infidelity(
    backbone: Backbone,
    images: str | ImageSet,
    probe: Probe,
    found: Attributions,
    *,
    squares: int = SQUARES,
    seed: int = 0,
    batch_size: int = GRADIENT_BATCH,
) -> NDArray[np.float64]:
    """Return how badly maps foretell by how much the score falls where squares are hidden.

    min over β of E[(β·Σ_{square} φ − (s(x) − s(x with the square at the mean image)))²], over E of the fall
    squared: 0 is foretold up to a factor, 1 no better than a map of zeros.

    Source: Yeh, Hsieh, Suggala, Inouye and Ravikumar, On the (In)fidelity and Sensitivity of Explanations
    (NeurIPS 2019), definition 2.1 with square removal, and the factor β of their code; the division is ours.

    Args:
        backbone: What the probe was fitted to.
        images: Those of the maps.
        probe: The probe of the maps.
        found: What ``attribute_images`` returned for these images; maps of layers are upsampled.
        squares: Squares of a quarter of the side hidden in each image, the same in all images.
        seed: Fixes where they lie.
        batch_size: Squares in a forward pass.

    Returns:
        (N,) from 0 to 1; NaN where no square changes the score.

    Raises:
        InputError: If the maps are of other images.
    """
    from captum.metrics import infidelity

    _check_count("squares", squares)
    module, size = compose(backbone, probe), backbone.preprocessing.size
    maps = found.upsampled().maps
    opened = _opened(images, found)
    base, hidden = mean_image(backbone, opened), _squares(squares, size, seed).to(backbone.device)
    values = []
    for one in _one_by_one(backbone, opened, found):
        # A third of the map for each channel, as a square hides all three.
        own = torch.from_numpy(maps[one.row] / 3).to(base.device).expand(1, 3, -1, -1)
        error, all_of_it = (
            float(
                infidelity(
                    module, _Hiding(hidden, base, batch_size), one.image, given,
                    additional_forward_args=one.arguments, n_perturb_samples=squares,
                    max_examples_per_batch=min(batch_size, squares), normalize=True,
                )
            )
            for given in (own, torch.zeros_like(own))
        )  # fmt: skip
        values.append(max(error, 0.0) / all_of_it if all_of_it > 0 else float("nan"))
    return np.array(values)


class _Hiding:
    """Hides the next squares of an image each time it is called."""

    def __init__(self, masks: Tensor, base: Tensor, batch_size: int) -> None:
        self._masks, self._base = iter(torch.split(masks, batch_size)), base

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mask = next(self._masks).expand_as(images)
        return mask, torch.where(mask > 0, self._base, images)


def measure_sensitivity(
    backbone: Backbone,
    images: str | ImageSet,
    probe: Probe,
    found: Attributions,
    *,
    copies: int = COPIES,
    radius: float = RADIUS,
    seed: int = 0,
    batch_size: int = GRADIENT_BATCH,
) -> NDArray[np.float64]:
    """Return how far maps move when all pixels change a little: max ‖φ(x + δ) − φ(x)‖ / ‖φ(x)‖.

    Source: Yeh et al. (NeurIPS 2019), definition 2.2 (SENS_MAX), relative to the map's norm as in captum.

    Args:
        backbone: What the probe was fitted to.
        images: Those of the maps.
        probe: The probe of the maps.
        found: What ``attribute_images`` returned for these images, with its method, settings and outputs.
        copies: Changed copies of each image; the noise is the same for all images.
        radius: Largest change of a pixel, as a share of the range of pixel values; uniform within.
        seed: Fixes the noise.
        batch_size: Copies in a forward pass.

    Returns:
        (N,) of at least 0.

    Raises:
        InputError: If the maps are of other images.
    """
    from captum.metrics import sensitivity_max

    _check_count("copies", copies)
    names = {field.name for field in fields(Settings)}
    told = {name: value for name, value in found.settings.items() if name in names}
    settings = Settings(found.method, **told | {"batch_size": batch_size})
    explain, opened = explainer(backbone, probe, settings), _opened(images, found)
    base_of = baseline_of(backbone, opened, settings)
    share = radius / float(np.mean(backbone.preprocessing.std))
    values = []
    for one in _one_by_one(backbone, opened, found):

        def maps(given: tuple[Tensor, ...], arguments: tuple[Tensor, ...] = one.arguments) -> tuple[Tensor]:
            (batch,) = given
            outputs, *taken = (each.expand(len(batch)) for each in arguments)
            with torch.enable_grad():
                found = explain(batch, outputs, taken[0] if taken else None, base_of(batch))
            # A bare tensor would be taken apart image by image.
            return (found.contiguous(),)

        with torch.random.fork_rng():
            torch.manual_seed(named_seed("sensitivity", seed))
            largest = sensitivity_max(
                maps, one.image, perturb_radius=share, n_perturb_samples=copies,
                max_examples_per_batch=min(batch_size, copies),
            )  # fmt: skip
        values.append(float(largest))
    return np.array(values)


@dataclass(frozen=True, eq=False)
class _One:
    """One image with what is attributed.

    Attributes:
        row: Its number.
        image: (1, 3, size, size), prepared.
        arguments: Its output, and the one taken off if there is any, (1,) each.
    """

    row: int
    image: Tensor
    arguments: tuple[Tensor, ...]


def _one_by_one(backbone: Backbone, images: ImageSet, found: Attributions) -> Iterator[_One]:
    for rows, pixels in pixel_batches(images, backbone.preprocessing, divide(np.arange(len(images)), 1)):
        image = prepared(backbone, pixels)
        places = [found.outputs] if found.against is None else [found.outputs, found.against]
        yield _One(int(rows[0]), image, tuple(torch.from_numpy(one[rows]).to(image.device) for one in places))


def _opened(images: str | ImageSet, found: Attributions) -> ImageSet:
    opened = open_images(images) if isinstance(images, str) else images
    if opened.ids.tolist() != found.ids.tolist():
        raise InputError(
            f"the {len(found)} images of the maps", f"{len(opened)} of {opened.name}", "Give the same images"
        )
    return opened


def _check_count(name: str, count: int) -> None:
    if count < 1:
        raise InputError(f"at least one of {name}", str(count), "Leave it out")


def _squares(count: int, size: int, seed: int) -> Tensor:
    """Return (count, 1, size, size) masks, each one square that lies within the image."""
    side = max(round(SQUARE * size), 1)
    corners = random_stream("hidden squares", seed).integers(0, size - side + 1, (count, 2))
    masks = torch.zeros(count, 1, size, size)
    for mask, (row, column) in zip(masks, corners, strict=True):
        mask[:, row : row + side, column : column + side] = 1
    return masks
