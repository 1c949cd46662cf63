"""Images pass once through a frozen backbone; every tap is read on the way."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from probekit.compute import cores, engine_facts
from probekit.data.images import ImageSet
from probekit.data.transforms import Preprocessing
from probekit.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from probekit.backbones.backbone import Backbone
    from probekit.taps.tap import Tap

BATCH_SIZE = 64
MOST_DECODERS = 16
# Two batches ahead hide the latency of decoding.
BATCHES_AHEAD = 2


def stream(
    backbone: Backbone,
    images: ImageSet,
    taps: str | Tap | Sequence[str | Tap] = "stages",
    *,
    batch_size: int = BATCH_SIZE,
    start: int = 0,
    engine: str = "eager",
) -> Iterator[tuple[NDArray[np.str_], dict[Tap, NDArray[np.float32]]]]:
    """Yield image ids and what every tap says of them, batch by batch.

    One forward pass a batch, whatever the number of taps; readouts run inside the hooks, the forward stops at
    the deepest tap, and memory does not grow with the number of images.

    Args:
        backbone: A frozen backbone.
        images: Images in the order in which they are read.
        taps: What to read; see ``resolve_taps``.
        batch_size: Images a forward pass. The last bits of an activation may depend on it.
        start: Number of the first image.
        engine: ``eager``, the plain forward pass, or ``fused``, the faster one, proven on the first batch:
            see ``extract``.

    Yields:
        ids (n,) and a dict Tap → (n, …) float32 values, in the order of the taps asked for.

    Raises:
        TapError: If a tap cannot be read; before the first image is decoded where that can be known.
        FusionImpossible: If the fused pass is asked for and does not give what the plain one gives.
        ImageUnreadable: If an image cannot be decoded.
    """
    from probekit.features.trial import Trial, open_forward
    from probekit.taps.layers import resolve_taps

    if engine not in ("eager", "fused"):
        raise InputError("the engine eager or fused", repr(engine), "eager is the default")
    resolved = resolve_taps(backbone, taps)
    batches = divide(np.arange(start, len(images)), batch_size)
    facts = engine_facts(backbone.device, batch_size, path=engine)
    trial = Trial(backbone, lambda: first_batch(backbone, images, batch_size))
    with open_forward(trial, resolved, facts) as forward:
        for rows, values in read_batches(backbone, images, forward, batches, channels_last=engine == "fused"):
            yield images.ids[rows], values


@dataclass
class Waiting:
    """Seconds a pass spent waiting: for pixels, for the model, and for whoever takes the values.

    Examples:
        >>> Waiting(decode=1.0, model=6.0, disk=1.0).bottleneck()
        'model 75%'
    """

    decode: float = 0.0
    model: float = 0.0
    disk: float = 0.0

    def bottleneck(self) -> str:
        """Return what most of the time went to, and its share."""
        name, seconds = max(vars(self).items(), key=lambda pair: pair[1])
        return f"{name} {seconds / max(sum(vars(self).values()), 1e-9):.0%}"


def read_batches(
    backbone: Backbone,
    images: ImageSet,
    forward: Callable[[Tensor], Mapping[Tap, Tensor]],
    batches: Sequence[NDArray[np.intp]],
    waiting: Waiting | None = None,
    *,
    channels_last: bool = False,
) -> Iterator[tuple[NDArray[np.intp], dict[Tap, NDArray[np.float32]]]]:
    """Yield row numbers and what a forward pass says of them, batch by batch.

    Args:
        backbone: Prepares pixels.
        images: Where they come from.
        forward: From a prepared batch to a dict Tap → (n, …) tensor.
        batches: Row numbers of each batch.
        waiting: Is told where the time goes.
        channels_last: How the forward pass wants its batch.

    Raises:
        ImageUnreadable: If an image cannot be decoded.
    """
    waiting = Waiting() if waiting is None else waiting
    then = time.perf_counter()
    for rows, pixels in pixel_batches(images, backbone.preprocessing, batches):
        waiting.decode += (now := time.perf_counter()) - then
        activations = forward(prepared(backbone, pixels, channels_last=channels_last))
        values = {tap: value.float().cpu().numpy() for tap, value in activations.items()}
        waiting.model += (then := time.perf_counter()) - now
        yield rows, values
        waiting.disk += (now := time.perf_counter()) - then
        then = now


def prepared(backbone: Backbone, pixels: NDArray[np.uint8], *, channels_last: bool = False) -> Tensor:
    """Return (n, size, size, 3) pixels as the backbone's input, on its device.

    The copy to an accelerator is from pinned memory and does not wait.
    """
    import torch

    batch = torch.from_numpy(pixels)
    if backbone.device.type == "cuda":
        batch = batch.pin_memory()
    return backbone.prepare(batch.to(backbone.device, non_blocking=True), channels_last=channels_last)


def first_batch(backbone: Backbone, images: ImageSet, batch_size: int) -> Tensor:
    """Return the first images of a set as the backbone's input."""
    rows = np.arange(min(batch_size, len(images)))
    _, pixels = next(pixel_batches(images, backbone.preprocessing, [rows]))
    return prepared(backbone, pixels)


def divide(rows: NDArray[np.intp], batch_size: int) -> list[NDArray[np.intp]]:
    """Return rows in batches; the last may be short."""
    return [rows[first : first + batch_size] for first in range(0, len(rows), batch_size)]


def pixel_batches(
    images: ImageSet, preprocessing: Preprocessing, batches: Sequence[NDArray[np.intp]]
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.uint8]]]:
    """Yield row numbers (n,) and pixels (n, size, size, 3), decoded ahead of need.

    Raises:
        ImageUnreadable: If an image cannot be decoded, when its batch is due.
    """
    # Decoding releases Python's lock, so threads suffice.
    with ThreadPoolExecutor(min(MOST_DECODERS, max(2, cores())), thread_name_prefix="decode") as decoders:
        ahead: deque[tuple[NDArray[np.intp], list[Future[Any]]]] = deque()
        try:
            for rows in batches:
                ahead.append(
                    (rows, [decoders.submit(images.pixels, int(row), preprocessing) for row in rows])
                )
                if len(ahead) > BATCHES_AHEAD:
                    yield _collect(*ahead.popleft())
            while ahead:
                yield _collect(*ahead.popleft())
        finally:
            for _, waiting in ahead:
                for one in waiting:
                    one.cancel()


def _collect(
    rows: NDArray[np.intp], decoded: list[Future[Any]]
) -> tuple[NDArray[np.intp], NDArray[np.uint8]]:
    return rows, np.stack([one.result() for one in decoded])
