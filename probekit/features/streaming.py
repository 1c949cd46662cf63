"""Images pass once through a frozen backbone; every tap is read on the way."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from probekit.data.images import ImageSet
from probekit.data.transforms import Preprocessing

if TYPE_CHECKING:
    from probekit.backbones.backbone import Backbone
    from probekit.taps.tap import Tap

BATCH_SIZE = 64
# Decoding releases Python's lock, so threads suffice; two batches ahead hide its latency.
DECODERS = 2
BATCHES_AHEAD = 2


def stream(
    backbone: Backbone,
    images: ImageSet,
    taps: str | Tap | Sequence[str | Tap] = "stages",
    *,
    batch_size: int = BATCH_SIZE,
    start: int = 0,
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

    Yields:
        ids (n,) and a dict Tap → (n, …) float32 values, in the order of the taps asked for.

    Raises:
        TapError: If a tap cannot be read; before the first image is decoded where that can be known.
        ImageUnreadable: If an image cannot be decoded.
    """
    import torch

    from probekit.taps.layers import resolve_taps
    from probekit.taps.record import record

    resolved = resolve_taps(backbone, taps)
    with record(backbone, resolved) as run:
        for rows, pixels in pixel_batches(images, backbone.preprocessing, batch_size=batch_size, start=start):
            batch = backbone.prepare(torch.from_numpy(pixels).to(backbone.device, non_blocking=True))
            activations = run(batch)
            yield images.ids[rows], {tap: value.float().cpu().numpy() for tap, value in activations.items()}


def pixel_batches(
    images: ImageSet, preprocessing: Preprocessing, *, batch_size: int, start: int = 0
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.uint8]]]:
    """Yield row numbers (n,) and pixels (n, size, size, 3), decoded ahead of need.

    Raises:
        ImageUnreadable: If an image cannot be decoded, when its batch is due.
    """
    with ThreadPoolExecutor(DECODERS, thread_name_prefix="decode") as decoders:
        ahead: deque[tuple[NDArray[np.intp], list[Future[Any]]]] = deque()
        try:
            for first in range(start, len(images), batch_size):
                rows = np.arange(first, min(first + batch_size, len(images)))
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
