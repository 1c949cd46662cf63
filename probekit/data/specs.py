"""The words that name a data set, and the words that choose its targets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from probekit.data.targets import KINDS
from probekit.errors import InputError, near_names

# A comma divides only where a key follows, so paths and lists of targets may hold commas.
_DIVIDER = re.compile(r",(?=[a-z][a-z_]*=)")
_KEY = re.compile(r"[a-z][a-z_]*")


@dataclass(frozen=True)
class DataSpec:
    """A data set in words: ``SOURCE[,key=value…]``.

    Attributes:
        source: A path, or a word such as ``digits``.
        options: Pairs of key and value, in the order given.

    Raises:
        InputError: If the text would be read otherwise than meant, or a key stands twice.

    Examples:
        >>> spec = DataSpec.parse("flowers/,split=test,target=breed,x+y:continuous,limit=100")
        >>> spec.source, dict(spec.options)["target"]
        ('flowers/', 'breed,x+y:continuous')
        >>> str(spec)
        'flowers/,split=test,target=breed,x+y:continuous,limit=100'
    """

    source: str
    options: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        keys = [key for key, _ in self.options]
        clear = (
            bool(self.source.strip())
            and all(_KEY.fullmatch(key) for key in keys)
            and len(_DIVIDER.split(str(self))) == 1 + len(keys)
        )
        if not clear:
            raise InputError(
                "a data set written SOURCE[,key=value…]",
                repr(str(self)),
                "Write lower-case keys, and no `,word=` inside a path or value",
            )
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise InputError("each key once", f"{twice[0]!r} twice in {str(self)!r}", "Leave one out")

    def __str__(self) -> str:
        return ",".join([self.source, *(f"{key}={value}" for key, value in self.options)])

    @classmethod
    def parse(cls, text: str) -> DataSpec:
        """Read the words of a data set.

        Raises:
            InputError: If they have another form.
        """
        source, *pieces = _DIVIDER.split(text)
        pairs = [piece.partition("=") for piece in pieces]
        return cls(source, tuple((key, value) for key, _, value in pairs))

    def with_defaults(self, defaults: Mapping[str, Any]) -> DataSpec:
        """Add options that are not there yet; None is left out.

        Examples:
            >>> str(DataSpec.parse("digits,limit=5").with_defaults({"limit": 9, "seed": 1, "name": None}))
            'digits,limit=5,seed=1'
        """
        known = dict(self.options)
        added = [
            (key, _written(value))
            for key, value in defaults.items()
            if value is not None and key not in known
        ]
        return DataSpec(self.source, (*self.options, *added))

    def check_keys(self, known: tuple[str, ...]) -> None:
        """Check that every key is known.

        Raises:
            InputError: Otherwise, with the keys most like it.
        """
        for key, _ in self.options:
            if key not in known:
                raise InputError(
                    f"options of {self.source} among {', '.join(known)}",
                    repr(key),
                    f"Near: {near_names(key, known, 2)}",
                )

    def text(self, key: str) -> str | None:
        """Return an option as it is written; None if it is absent."""
        return dict(self.options).get(key)

    def count(self, key: str, default: int, least: int = 0) -> int:
        """Return an option that is a whole number.

        Raises:
            InputError: If it is not, or is below ``least``.
        """
        value = self.text(key)
        if value is None:
            return default
        if not re.fullmatch(r"[0-9]{1,12}", value) or int(value) < least:
            raise InputError(f"a whole number of at least {least} for {key}", repr(value), "Correct it")
        return int(value)

    def choice(self, key: str, choices: tuple[str, ...]) -> str | None:
        """Return an option that is one of a few words; None if it is absent.

        Raises:
            InputError: If it is another word.
        """
        value = self.text(key)
        if value is not None and value not in choices:
            raise InputError(f"{key} among {', '.join(choices)}", repr(value), "Choose one")
        return value


@dataclass(frozen=True)
class TargetChoice:
    """One target chosen in words: ``COLUMN[+COLUMN…][:KIND]``.

    Attributes:
        columns: Names of columns, arrays or targets.
        kind: ``class``, ``multilabel``, ``continuous``, or None to go by the values.
    """

    columns: tuple[str, ...]
    kind: str | None = None

    @property
    def name(self) -> str:
        """How the target is called in tables."""
        return "+".join(self.columns)


def parse_targets(text: str | None) -> tuple[TargetChoice, ...] | None:
    """Read a comma-separated list of targets; None stays None.

    Raises:
        InputError: If a name is empty, a kind unknown, or a target stands twice.

    Examples:
        >>> parse_targets("breed,x+y:continuous")
        (TargetChoice(columns=('breed',), kind=None), TargetChoice(columns=('x', 'y'), kind='continuous'))
    """
    if text is None:
        return None
    choices = []
    for piece in text.split(","):
        names, colon, kind = piece.partition(":")
        columns = tuple(name.strip() for name in names.split("+"))
        if not all(columns) or (colon and kind not in KINDS):
            raise InputError(
                f"targets written COLUMN[+COLUMN…][:KIND], KIND among {', '.join(KINDS)}",
                repr(text),
                "Write for example `target=breed` or `target=x+y:continuous`",
            )
        choices.append(TargetChoice(columns, kind or None))
    names_used = [choice.name for choice in choices]
    if len(set(names_used)) < len(names_used):
        raise InputError("each target once", repr(text), "Leave one out")
    return tuple(choices)


def _written(value: object) -> str:
    """Write a keyword's value as an option."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ",".join(str(one) for one in value)
    return str(value)
