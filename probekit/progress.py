"""Progress bars with throughput and ETA; silent where nobody watches."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

# Anything shorter than this ends without a bar ever being drawn.
DELAY_S = 2.0


def progress_bar(total: int | None, label: str, unit: str) -> tqdm[Any]:
    """Return a tqdm bar: used as a context manager, advanced by ``update(n)``.

    It appears only after two seconds, and only if the error stream is a terminal.

    Args:
        total: How many units there are, or None if unknown.
        label: What is being done.
        unit: What is counted, such as ``"img"``.
    """
    return tqdm(
        total=total,
        desc=label,
        unit=unit,
        delay=DELAY_S,
        disable=not sys.stderr.isatty(),
        dynamic_ncols=True,
        leave=False,
    )
