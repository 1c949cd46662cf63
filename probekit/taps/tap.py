"""A tap names one place where an activation is read, and how it becomes a vector."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from probekit.errors import InputError

Side = Literal["in", "out"]

READOUTS = ("gap", "max", "gem", "cls", "patch_mean", "cls+patch_mean", "tokens", "raw")
AUTO = "auto"

_GRID = re.compile(r"grid\(([1-9][0-9]*)\)\Z")
_NAME = r"[^#@:|,\s]+"
_TAP = re.compile(
    rf"(?P<path>{_NAME})(?:\#(?P<call>[0-9]+))?(?:@(?P<element>{_NAME}))?(?P<side>:in)?(?:\|(?P<readout>[^|]+))?\Z"
)
_PART = re.compile(rf"{_NAME}\Z")
_NUMBER = re.compile(r"0\Z|[1-9][0-9]*\Z")


@dataclass(frozen=True)
class Tap:
    """One place in a backbone, and the readout applied there.

    Written ``path[#call][@element][:in][|readout]``: ``str(tap)`` is this text, ``parse_tap`` reads it back.

    Attributes:
        path: Module path, as in ``named_modules``.
        call: Which call of the module within one forward pass, counted from 0; None where it is called once.
            Calls are not counted from the end: a name must not change its meaning with the model.
        element: Position or key of the tensor in a tuple, list or mapping; None for a bare tensor.
        side: ``out`` reads what the module returns, ``in`` what it is given.
        readout: ``auto`` (chosen from the layout) or one of ``READOUTS`` or ``grid(k)``.

    Examples:
        >>> str(Tap("layer1.0.relu", call=1, readout="gap"))
        'layer1.0.relu#1|gap'
        >>> Tap("fc", side="in") == parse_tap("fc:in")
        True
    """

    path: str
    call: int | None = None
    element: int | str | None = None
    side: Side = "out"
    readout: str = AUTO

    def __post_init__(self) -> None:
        if not _PART.match(self.path):
            raise InputError("a module path without '#@:|,' or blanks", repr(self.path), _TODO)
        if self.call is not None and self.call < 0:
            raise InputError("a call number of at least 0", str(self.call), "Count the calls from 0")
        if not _is_element(self.element):
            raise InputError(
                "a position of at least 0 or a key in words (without '#@:|,' or blanks)",
                repr(self.element),
                "Write a position as a number",
            )
        if self.side not in ("in", "out"):
            raise InputError("the side 'in' or 'out'", repr(self.side), "Choose one")
        check_readout_name(self.readout)

    def __str__(self) -> str:
        """Return the text form, which stands in the ``tap`` column of tables."""
        call = "" if self.call is None else f"#{self.call}"
        element = "" if self.element is None else f"@{self.element}"
        side = ":in" if self.side == "in" else ""
        readout = "" if self.readout == AUTO else f"|{self.readout}"
        return f"{self.path}{call}{element}{side}{readout}"

    @property
    def place(self) -> str:
        """The text form without the readout.

        Examples:
            >>> Tap("blocks.3", readout="cls").place
            'blocks.3'
        """
        return str(replace(self, readout=AUTO))


_TODO = "Write a tap as path[#call][@element][:in][|readout], such as layer1.0.relu#1|gap"


def _is_element(element: int | str | None) -> bool:
    if element is None:
        return True
    if isinstance(element, str):
        return bool(_PART.match(element)) and not _NUMBER.match(element)
    return element >= 0


def parse_tap(text: str) -> Tap:
    """Read a tap from its text form ``path[#call][@element][:in][|readout]``.

    Raises:
        InputError: If the text has another form or names an unknown readout.

    Examples:
        >>> parse_tap("stage4.1@3|grid(2)")
        Tap(path='stage4.1', call=None, element=3, side='out', readout='grid(2)')
    """
    match = _TAP.match(text)
    if match is None:
        raise InputError("a tap", repr(text), _TODO)
    element: int | str | None = match["element"]
    if element is not None and _NUMBER.match(str(element)):
        element = int(element)
    return Tap(
        path=match["path"],
        call=None if match["call"] is None else int(match["call"]),
        element=element,
        side="in" if match["side"] else "out",
        readout=match["readout"] or AUTO,
    )


def check_readout_name(readout: str) -> None:
    """Refuse a readout that does not exist.

    Raises:
        InputError: If the readout is neither ``auto``, nor in ``READOUTS``, nor ``grid(k)`` with k ≥ 1.
    """
    if readout != AUTO and readout not in READOUTS and not _GRID.match(readout):
        raise InputError(f"a readout among {', '.join(READOUTS)}, grid(k)", repr(readout), "Choose one")


def grid_side(readout: str) -> int | None:
    """Return k of ``grid(k)``, None for other readouts.

    Examples:
        >>> grid_side("grid(4)"), grid_side("gap")
        (4, None)
    """
    match = _GRID.match(readout)
    return int(match[1]) if match else None
