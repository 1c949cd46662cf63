"""Feature inversion: images whose activation at a tap is that of a given image."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from probekit.compute import choose_device, keep_freed_memory, one_thread
from probekit.data.images import ImageSet
from probekit.errors import InputError, NonFiniteFeatures
from probekit.features.streaming import BATCH_SIZE, stream
from probekit.files import digest_bytes, digest_json, replacing
from probekit.progress import progress_bar
from probekit.reconstruction.forward import TapForward, resolve_raw
from probekit.reconstruction.priors import (
    PRIORS,
    FourierPrior,
    PixelPrior,
    Prior,
    PyramidPrior,
    SkipNetwork,
    image_streams,
    most_scales,
    network_side,
    rows_of,
)
from probekit.remote import is_url
from probekit.results.schema import OK

if TYPE_CHECKING:
    from probekit.backbones.backbone import Backbone
    from probekit.taps.tap import Tap

FORMAT = 2
# Seconds between snapshots, and images that are made side by side.
SNAPSHOT_S, BATCH = 30.0, 8
# An image has a plateau if its residual fell by less than this share of itself over the last quarter.
PLATEAU = 0.01
# Share of the squared activation under which it is its own mean.
ALIKE = 1e-9
# Images behind the mean activation, and points of a curve that are kept.
MEAN_IMAGES, CURVE_POINTS = 256, 200


@dataclass(frozen=True)
class Preset:
    """How images are made.

    Attributes:
        name: Its name.
        size: Side of the images it is made for, in pixels: load backbones with this ``size=``.
        prior: ``pyramid``, ``network``, ``fourier`` or ``pixels``.
        rate: Learning rate of Adam, by prior.
        steps: Steps at most.
        patience: Steps before a plateau is looked for.
        channels: Of the scales of pyramid or network, the finest first.
        kernels: Side of the convolutions of each scale.
        fixed: Whether all scales are there or the image is refused; else only those the image has room for.
        betas: Of Adam. With a long memory of gradients, residuals of deep layers swing (measured).
    """

    name: str
    size: int
    prior: str
    rate: Mapping[str, float]
    steps: int
    patience: int
    channels: tuple[int, ...] = (16, 32, 64, 64)
    kernels: tuple[int, ...] = (3, 3, 3, 3)
    fixed: bool = False
    betas: tuple[float, float] = (0.5, 0.99)

    def facts(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return asdict(self) | {name: list(getattr(self, name)) for name in ("channels", "kernels", "betas")}


_RATES = {"pyramid": 1e-2, "network": 1e-2, "fourier": 1e-2, "pixels": 1e-1}
_NETWORKS = ("pyramid", "network")
PRESETS = {
    one.name: one
    for one in (
        Preset("preview", 64, "pyramid", _RATES, steps=1200, patience=200),
        Preset("standard", 128, "pyramid", _RATES, steps=2000, patience=200),
        Preset(
            "paper", 224, "network", {**_RATES, "network": 1e-3}, steps=3000, patience=500,
            channels=(16, 32, 64, 128, 128, 128), kernels=(7, 7, 5, 5, 3, 3), fixed=True, betas=(0.9, 0.999),
        ),
    )
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Inversions:
    """Images made from the activations of one tap.

    Attributes:
        made: (N, size, size, 3) float32 in [0, 1], of each image the first that reached the target residual,
            or else the one of the least residual.
        residuals: (N,) relative residual of ``made``.
        steps: (N,) steps after which ``made`` was there.
        statuses: (N,) ``ok``, or why it ended above the target.
        curves: Columns ``image`` (its number), ``step``, ``wall_s``, ``residual``, thinned.
        wall_s: Seconds in the loop, of all images together.
        facts: What made them, as JSON values.
    """

    made: NDArray[np.float32]
    residuals: NDArray[np.float64]
    steps: NDArray[np.int64]
    statuses: list[str]
    curves: pd.DataFrame
    wall_s: float
    facts: dict[str, Any] = field(default_factory=dict)


def mean_activation(
    backbone: Backbone,
    images: ImageSet,
    tap: str | Tap,
    *,
    most: int = MEAN_IMAGES,
    batch_size: int = BATCH_SIZE,
) -> tuple[NDArray[np.float32], int]:
    """Return the mean activation of a tap, position by position, over evenly spaced images.

    Args:
        backbone: A frozen backbone.
        images: The data set.
        tap: What is read, in full unless it names a readout.
        most: Images at most.
        batch_size: Images a forward pass; memory holds one batch and the sum.

    Returns:
        The mean, in the shape of one image's activation, and the number of images behind it.
    """
    resolved = resolve_raw(backbone, tap)
    rows = np.unique(np.linspace(0, len(images) - 1, min(most, len(images))).round().astype(int))
    total: NDArray[np.float64] | float = 0.0
    for _, read in stream(backbone, images.select(rows), [resolved], batch_size=batch_size):
        total = total + read[resolved].sum(axis=0, dtype=np.float64)
    return np.asarray(total / len(rows), np.float32), len(rows)


def invert(
    backbone: Backbone,
    pixels: NDArray[np.uint8],
    tap: str | Tap,
    mean: NDArray[np.floating[Any]],
    *,
    preset: str | Preset = "preview",
    prior: str | None = None,
    residual: float = 0.05,
    ids: Sequence[str] | None = None,
    seed: int | Sequence[int] = 0,
    steps: int | None = None,
    batch: int = BATCH,
    fused: bool = True,
    store: str | Path | None = None,
    device: str | None = None,
) -> Inversions:
    """Make images that a layer does not tell apart from given ones.

    An image prior with weights of its own for each image is fitted by Adam until the relative residual
    r = ‖Φ(x̂) − Φ₀‖² / ‖Φ₀ − Φ̄‖² is at most ``residual``, so that layers and models are compared at one
    residual; Φ̄ is the mean activation. An image ends earlier on a plateau (its least residual fell by less
    than 1 % over the last quarter of its steps, of at least ``patience``), at the preset's most steps, or
    where a value is not finite; its status says so, and the image of the least residual is kept.

    The size of the images is the backbone's input size: load it with the ``size=`` of the preset. ``preview``
    is made for 64 px and ``standard`` for 128 px, both a pyramid of up to four scales with 3 × 3 kernels;
    ``paper`` is that of Zhao et al. for 224 px (cut from 256): the skip network of six scales without a
    sigmoid, learning rate 1e-3, 3,000 steps, which takes hours without an accelerator.

    Source: Zhao, Wu, Lau and Lin, What makes instance discrimination good for transfer learning? (ICLR 2021),
    section 3, and its published code; Mahendran and Vedaldi, Understanding Deep Image Representations by
    Inverting Them (CVPR 2015), equation 1, for the normalised loss.

    Args:
        backbone: A frozen backbone.
        pixels: (N, size, size, 3), as the backbone takes them.
        tap: What is inverted, in full unless it names a readout. Without places (a vector), where things are
            in the image is left to the prior.
        mean: Φ̄ of ``mean_activation``, in the shape of one activation.
        preset: Its name, or one of your own.
        prior: ``pyramid``, ``network``, ``fourier`` or ``pixels``; None takes that of the preset.
        residual: Target.
        ids: (N,) names that, with the seed, fix where each image starts; None counts them.
        seed: Fixes the draw of the prior; (N,) seeds draw for each image by its own.
        steps: Steps at most; None takes those of the preset.
        batch: Images side by side.
        fused: Whether the fused forward pass may be taken where it is proven.
        store: Folder of snapshots: an interrupted call goes on to the same result, a finished one is found
            again. None keeps none.
        device: Where to compute; None chooses.

    Raises:
        InputError: If a setting cannot be used, or the images are too small for the prior.
        TapError: If the tap cannot be read, or no gradient reaches the image.
        NonFiniteFeatures: If an activation of the true images is not finite.
    """
    chosen = choose_preset(preset, prior, backbone.preprocessing.size, steps)
    if not 0 < residual < 1 or batch < 1:
        raise InputError("a target residual between 0 and 1, and at least one image a batch",
                         f"{residual} and {batch}", "0.05 and 8 are the defaults")  # fmt: skip
    names = list(ids) if ids is not None else [str(number) for number in range(len(pixels))]
    if not len(pixels) or len(names) != len(pixels):
        raise InputError("at least one image, and an id for each", f"{len(pixels)} images, {len(names)} ids",
                         "Give an id an image")  # fmt: skip
    seeds = [seed] * len(pixels) if isinstance(seed, int) else list(seed)
    if len(seeds) != len(pixels):
        raise InputError("a seed, or one an image", f"{len(seeds)} seeds", f"Give {len(pixels)}")
    place = backbone.to(choose_device(device))
    resolved = resolve_raw(place, tap)
    keep_freed_memory()
    if store is not None and is_url(store):
        raise InputError("a folder for snapshots", repr(store), "Name one on this machine")
    folder = Path(store) if store is not None else None
    with one_thread() if place.device.type == "cpu" else nullcontext():
        prepared = place.prepare(torch.from_numpy(np.ascontiguousarray(pixels)).to(place.device))
        forward = TapForward(place, resolved, prepared[:batch], fused=fused)
        forward.check()
        parts = []
        with progress_bar(
            chosen.steps * len(pixels), f"Inverting {resolved} of {backbone.name}", "step"
        ) as bar:
            for first in range(0, len(pixels), batch):
                rows = slice(first, first + batch)
                run = _Run.begin(
                    forward, prepared[rows], mean, chosen, residual, names[rows], seeds[rows], folder
                )
                parts.append(run.finish(bar))
    return _joined(parts, chosen, forward, residual)


def choose_preset(preset: str | Preset, prior: str | None, size: int, steps: int | None = None) -> Preset:
    """Return a preset as it is for images of a size, or refuse it in words.

    Raises:
        InputError: If a name is unknown, or the images are too small.

    Examples:
        >>> choose_preset("preview", None, 32).channels
        (16, 32, 64)
    """
    known = PRESETS.get(preset) if isinstance(preset, str) else preset
    if known is None:
        raise InputError(f"a preset among {', '.join(PRESETS)}", repr(preset), "Choose one")
    made = replace(known, prior=prior or known.prior, steps=known.steps if steps is None else steps)
    if made.prior not in PRIORS:
        raise InputError(f"a prior among {', '.join(PRIORS)}", repr(prior), "Choose one")
    if made.steps < 1:
        raise InputError("at least one step", str(made.steps), f"{known.steps} is the default")
    if made.prior in _NETWORKS:
        if not made.fixed:
            scales = max(1, min(len(made.channels), most_scales(size)))
            made = replace(made, channels=made.channels[:scales], kernels=made.kernels[:scales])
        network_side(size, len(made.channels))
    return made


def make_prior(preset: Preset, backbone: Backbone, ids: Sequence[str], seeds: Sequence[int]) -> Prior:
    """Return the prior of a preset for some images, on the backbone's device."""
    facts, draws = backbone.preprocessing, image_streams(seeds, ids)
    if preset.prior in _NETWORKS:
        network = PyramidPrior if preset.prior == "pyramid" else SkipNetwork
        made: Prior = network(draws, facts.size, preset.channels, preset.kernels)
        if backbone.device.type != "mps":
            made = made.to(memory_format=torch.channels_last)
    else:
        kind = FourierPrior if preset.prior == "fourier" else PixelPrior
        made = kind(draws, facts.size, facts.mean, facts.std)
    return made.to(backbone.device)


class _Run:
    """Some images that are made side by side, from the first step or from a snapshot."""

    def __init__(
        self,
        forward: TapForward,
        target: Tensor,
        spread: Tensor,
        prior: Prior,
        preset: Preset,
        residual: float,
        snapshot: Path | None,
    ) -> None:
        count = len(target)
        self.forward, self.target, self.spread, self.prior = forward, target, spread, prior
        self.preset, self.residual, self.snapshot = preset, residual, snapshot
        self.step, self.wall_s = 0, 0.0
        self.active = list(range(count))
        self.statuses = [""] * count
        self.curves: list[list[float]] = [[] for _ in range(count)]
        self.seconds: list[float] = []
        self.least = torch.full((count,), torch.inf, dtype=torch.float64)
        self.found = torch.zeros(count, dtype=torch.int64)
        self.best = torch.zeros(count, 3, *([forward.backbone.preprocessing.size] * 2))
        self._optimise()

    @classmethod
    def begin(
        cls,
        forward: TapForward,
        images: Tensor,
        mean: NDArray[np.floating[Any]],
        preset: Preset,
        residual: float,
        ids: Sequence[str],
        seeds: Sequence[int],
        folder: Path | None,
    ) -> _Run:
        """Read the true activations and start, or go on where a snapshot says."""
        target = forward(images).detach()
        if np.shape(mean) != tuple(target.shape[1:]):
            raise InputError(
                f"a mean activation of shape {tuple(target.shape[1:])}",
                str(np.shape(mean)),
                "Take it from `mean_activation` at the same tap",
            )
        away = target - torch.from_numpy(np.asarray(mean, np.float32)).to(target.device)
        spread = _squares(away)
        # Of the mean itself, rounding leaves a little.
        if not bool(torch.isfinite(spread).all()) or not bool((spread > ALIKE * _squares(target)).all()):
            raise NonFiniteFeatures(
                "finite activations that differ from their mean",
                f"NaN, infinity or no difference at {forward.tap}",
                "Check the backbone and the images, and take the mean over several images",
            )
        snapshot = None
        if folder is not None:
            backbone = forward.backbone
            told = [
                FORMAT,
                backbone.weights,
                backbone.code,
                str(forward.tap),
                preset.facts(),
                residual,
                list(seeds),
            ]
            told += [list(ids), backbone.preprocessing.facts(), backbone.device.type, torch.__version__]
            told += [digest_bytes(one.detach().cpu().numpy().tobytes()) for one in (images, away)]
            snapshot = folder / f"{digest_json(told)[:32]}.pt"
        run = cls(
            forward,
            target,
            spread,
            make_prior(preset, forward.backbone, ids, seeds),
            preset,
            residual,
            snapshot,
        )
        if snapshot is not None and snapshot.exists():
            run._restore(torch.load(snapshot, map_location="cpu", weights_only=True))
        return run

    def finish(self, bar: Any) -> _Run:  # noqa: ANN401 - tqdm's class is generic at type-checking only
        """Step until every image has ended; what is kept then is no more than the result."""
        total = self.preset.steps
        bar.update(sum(len(curve) if row in self.active else total for row, curve in enumerate(self.curves)))
        saved = time.monotonic()
        while self.active:
            before = len(self.active)
            began = time.perf_counter()
            self.take_step()
            self.wall_s += time.perf_counter() - began
            self.seconds.append(self.wall_s)
            ended = before - len(self.active)
            bar.update(before + ended * (total - self.step))
            bar.set_postfix(residual=f"{float(self.least.max()):.3g}", left=len(self.active), refresh=False)
            if self.snapshot is not None and self.active and time.monotonic() - saved >= SNAPSHOT_S:
                self._save(self.snapshot)
                saved = time.monotonic()
        if self.snapshot is not None:
            self._save(self.snapshot)
        return self

    def take_step(self) -> None:
        """Make the images, measure them, end those that are done, and move the others."""
        self.optimiser.zero_grad()
        images = self.prior()
        # r = ‖Φ(x̂) − Φ₀‖² / ‖Φ₀ − Φ̄‖², summed: the step of an image does not depend on how many there are
        residuals = _squares(self.forward(images) - self.target) / self.spread
        residuals.sum().backward()  # type: ignore[no-untyped-call]
        values = residuals.detach().double().cpu()
        self.step += 1
        for place, (row, value) in enumerate(zip(self.active, values.tolist(), strict=True)):
            self.curves[row].append(value)
            if value < float(self.least[row]):
                self.least[row], self.found[row] = value, self.step
                self.best[row] = images[place].detach().cpu()
            self.statuses[row] = self._status(row, value)
        going = [place for place, row in enumerate(self.active) if not self.statuses[row]]
        if len(going) == len(self.active):
            self.optimiser.step()
        elif going:
            # Those that go on take the step that is due.
            self.optimiser.step()
            self._keep(going)
        self.active = [self.active[place] for place in going]

    def _status(self, row: int, value: float) -> str:
        """Return why an image ends now, or ''."""
        curve, least = self.curves[row], float(self.least[row])
        if value <= self.residual:
            return OK
        above = f"above the target {self.residual:g}"
        if not np.isfinite(value):
            return f"a value was not finite at step {self.step}, {_told(least)} {above}"
        last = max(self.preset.patience, self.step // 4)
        if self.step >= 2 * last and least > (1 - PLATEAU) * min(curve[:-last]):
            return f"plateau at {_told(least)} after {self.step} steps, {above}"
        if self.step >= self.preset.steps:
            return f"stopped by the most steps, {self.step}, at {_told(least)}, {above}"
        return ""

    def _optimise(self) -> None:
        rate = self.preset.rate[self.preset.prior]
        fused = self.target.device.type in ("cpu", "cuda")
        self.optimiser = torch.optim.Adam(self.prior.parameters(), rate, betas=self.preset.betas, fused=fused)

    def _keep(self, places: list[int]) -> None:
        """Go on with some of the active images."""
        count, states = self.prior.count, self.optimiser.state
        held = [dict(states[one]) for one in self.prior.parameters()]
        self.prior.keep(places)
        self.target, self.spread = self.target[places], self.spread[places]
        self._optimise()
        for parameter, state in zip(self.prior.parameters(), held, strict=True):
            self.optimiser.state[parameter] = {
                name: value if value.dim() == 0 else _like(rows_of(value, count, places), parameter)
                for name, value in state.items()
            }

    def _save(self, path: Path) -> None:
        state = {
            "step": self.step,
            "wall_s": self.wall_s,
            "active": self.active,
            "statuses": self.statuses,
            "curves": self.curves,
            "seconds": self.seconds,
            "least": self.least,
            "found": self.found,
            "best": self.best,
            "prior": [one.detach() for one in self.prior.tensors()] if self.active else [],
            "adam": [dict(self.optimiser.state[one]) for one in self.prior.parameters()]
            if self.active
            else [],
        }
        with replacing(path) as temporary:
            torch.save(state, temporary)

    def _restore(self, state: Mapping[str, Any]) -> None:
        for name in ("step", "wall_s", "statuses", "curves", "seconds", "least", "found", "best"):
            setattr(self, name, state[name])
        whole, self.active = len(self.active), state["active"]
        if not self.active:
            return
        if len(self.active) < whole:
            self.prior.keep(state["active"])
            self.target, self.spread = self.target[state["active"]], self.spread[state["active"]]
            self._optimise()
        with torch.no_grad():
            for held, value in zip(self.prior.tensors(), state["prior"], strict=True):
                held.copy_(value)
        for parameter, held in zip(self.prior.parameters(), state["adam"], strict=True):
            self.optimiser.state[parameter] = {
                name: value.clone() if value.dim() == 0 else _like(value.to(parameter.device), parameter)
                for name, value in held.items()
            }


def _like(value: Tensor, parameter: Tensor) -> Tensor:
    """Return values in the order of memory of a parameter."""
    return torch.empty_like(parameter).copy_(value)


def _squares(values: Tensor) -> Tensor:
    """Return Σ v² of each image, (N,)."""
    return values.flatten(1).square().sum(dim=1)


def _told(residual: float) -> str:
    return f"residual {residual:.3g}"


def _joined(parts: Sequence[_Run], preset: Preset, forward: TapForward, residual: float) -> Inversions:
    facts = forward.backbone.preprocessing
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in (facts.mean, facts.std))
    best = torch.cat([one.best for one in parts])
    made = (best * std + mean).clamp(0, 1).permute(0, 2, 3, 1)
    curves, number = [], 0
    for one in parts:
        for curve in one.curves:
            last = len(curve)
            kept = np.unique(np.append(np.geomspace(1, last, CURVE_POINTS).round().astype(int), last))
            columns = {"image": number, "step": kept, "wall_s": np.asarray(one.seconds)[kept - 1]}
            curves.append(pd.DataFrame({**columns, "residual": np.asarray(curve)[kept - 1]}))
            number += 1
    return Inversions(
        made.contiguous().numpy(),
        torch.cat([one.least for one in parts]).numpy(),
        torch.cat([one.found for one in parts]).numpy(),
        [status for one in parts for status in one.statuses],
        pd.concat(curves, ignore_index=True),
        sum(one.wall_s for one in parts),
        {
            "preset": preset.facts(),
            "target_residual": residual,
            "engine": forward.engine,
            "places": parts[0].target.dim() > 2,
        },
    )
