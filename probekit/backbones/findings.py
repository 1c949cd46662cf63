"""What an inspection found, as JSON values and in lines for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

# Classes of the ImageNet files of TensorFlow.
WITH_BACKGROUND = 1001
LISTED = 12
BATCH_NORM = {True: "folded into the convolutions", False: "not folded", None: ""}


@dataclass(frozen=True)
class Held:
    """One state dict of a checkpoint.

    Attributes:
        label: Its path in the file; empty at the top.
        entries: How many tensors it has.
        numbers: How many numbers these hold.
        dtypes: Type → how many tensors have it.
        prefix: What all its names begin with.
        parts: First word after that → how many tensors.
    """

    label: str
    entries: int
    numbers: int
    dtypes: Mapping[str, int]
    prefix: str
    parts: Mapping[str, int]

    def __str__(self) -> str:
        place = f"{self.label}: " if self.label else ""
        parts = [f"{part} ({count})" if count > 1 else part for part, count in self.parts.items()]
        more = f" and {len(parts) - LISTED} more" if len(parts) > LISTED else ""
        begin = f"{self.prefix} + " if self.prefix else ""
        return (
            f"{place}{self.entries} entries, {_count(self.numbers)} numbers, {', '.join(self.dtypes)}; "
            f"{begin}{', '.join(parts[:LISTED])}{more}"
        )


@dataclass(frozen=True)
class Fit:
    """An architecture and what the checkpoint lacks for it.

    Attributes:
        arch: Its name.
        kind: What was read of it in the weights.
        facts: Depth, width, patch, … as read.
        size: Side in pixels to build it for; None takes its own.
        whole: Whether every weight and statistic of it is there.
        entries: How many of them the architecture has, the classifier left out.
        lacking: What is not there, else empty.
        notes: What the weights cannot tell, and what would be renamed or resampled.
    """

    arch: str
    kind: str
    facts: Mapping[str, Any]
    size: int | None
    whole: bool
    entries: int
    lacking: str
    notes: tuple[str, ...]

    @property
    def words(self) -> str:
        """The architecture with its size, as in a model's words."""
        return f"{self.arch} at {self.size} px" if self.size else self.arch


@dataclass(frozen=True)
class Branch:
    """One copy of the backbone in a checkpoint.

    Attributes:
        place: Its path in the file.
        role: ``online``, ``ema`` or empty.
        default: Whether it is loaded where no branch is named.
    """

    place: str
    role: str
    default: bool

    def __str__(self) -> str:
        return (
            f"{self.place}{f' ({self.role})' if self.role else ''}{', the default' if self.default else ''}"
        )


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint holds, and which words load it.

    Attributes:
        file: Its name.
        states: Its state dicts.
        beside: What else it holds, by name; for stand-ins what they stand for.
        family: The project whose layout it has, ``unknown`` where none is recognised.
        family_note: What that project evaluates and what is dropped.
        looks_like: What kind of network its names and shapes are read as; empty where they say nothing.
        fits: The architectures that it fills; where there is none, those that it looks like.
        branches: Copies of the backbone; empty where no architecture fits.
        choice: Which branches there are, where the user must choose; else empty.
        parameters: How many the backbone has, its classifier included; where no architecture fits, those of
            the largest state dict.
        dtypes: Their types, the commonest first.
        n_classes: Outputs of the classifier; None without one.
        folded: Whether batch norm is folded into convolutions; None where there is none.
        preprocessing: How images would be prepared, in words.
        preprocessing_source: Where that is known from.
        notes: Everything else worth saying.
        words: What to write after ``--model``; empty where the architecture asked for does not fit, or the
            path has a comma.
    """

    file: str
    states: tuple[Held, ...]
    beside: tuple[str, ...]
    family: str
    family_note: str
    looks_like: str
    fits: tuple[Fit, ...]
    branches: tuple[Branch, ...]
    choice: str
    parameters: int
    dtypes: tuple[str, ...]
    n_classes: int | None
    folded: bool | None
    preprocessing: str
    preprocessing_source: str
    notes: tuple[str, ...]
    words: str

    def facts(self) -> dict[str, Any]:
        """Return everything as JSON values; the names of the fields are stable."""
        return {**_plain(asdict(self)), "format": 1}

    def __str__(self) -> str:
        lines = [self.file, *(f"  {name:<14}{text}" for name, text in self._lines() if text)]
        return "\n".join(lines)

    def _lines(self) -> list[tuple[str, str]]:
        whole = [fit for fit in self.fits if fit.whole]
        lines = [("holds" if not i else "", str(held)) for i, held in enumerate(self.states)]
        lines += [("beside", ", ".join(self.beside))]
        lines += [("family", f"{self.family}{f': {self.family_note}' if self.family_note else ''}")]
        lines += [("looks like", self.looks_like or "nothing that probekit knows")]
        for i, fit in enumerate(whole):
            lines.append(("fits" if not i else "also fits", f"{fit.words}: all {fit.entries} entries"))
        if not whole:
            lacking = [f"{fit.words}: {fit.lacking}" for fit in self.fits if fit.arch]
            lines += [("does not fit", text) for text in lacking] or [("fits", "no architecture known")]
        if len(self.branches) == 1:
            lines.append(("branch", f"{self.branches[0].place}, the only one"))
        else:
            lines += [("branches" if not i else "", str(one)) for i, one in enumerate(self.branches)]
        lines += [("branch", self.choice)]
        lines += [("parameters", f"{_count(self.parameters)}, {', '.join(self.dtypes)}")]
        lines += [("classifier", _classes(self.n_classes))]
        lines += [
            ("batch norm", {True: "folded into the convolutions", False: "not folded", None: ""}[self.folded])
        ]
        lines += [
            (
                "preprocessing",
                f"{self.preprocessing} ({self.preprocessing_source})" if self.preprocessing else "",
            )
        ]
        lines += [("note", note) for note in dict.fromkeys(note for fit in whole for note in fit.notes)]
        lines += [("note", note) for note in self.notes]
        return [*lines, ("next", f"--model {self.words}" if self.words else "")]


def _classes(count: int | None) -> str:
    if count is None:
        return "none"
    return f"{count} classes{', the first of them background' if count == WITH_BACKGROUND else ''}"


def _count(numbers: int) -> str:
    """Write a number of numbers shortly.

    Examples:
        >>> _count(23508032), _count(950)
        ('23.5 M', '950')
    """
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if numbers >= unit:
            return f"{numbers / unit:.3g} {name}"
    return str(numbers)


def _plain(value: Any) -> Any:  # noqa: ANN401 - any value of the fields
    """Turn tuples into lists, as JSON has them."""
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (tuple, list)) else value
