"""A plan: the stored keyword settings of one verb or analysis, frozen."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from probekit.errors import InputError, near_names
from probekit.files import canonical_json, digest_json, write_text

FORMAT = 1


@dataclass(frozen=True)
class Plan:
    """What to run: the name of a verb (or of an analysis file) and its keyword settings.

    YAML, plan and call hold the same keys. A live object (a backbone or image set made in Python) is kept
    as its digest: such a plan documents a run but cannot repeat it.

    Attributes:
        verb: A public verb such as ``"probe"``, or the path of an analysis file.
        settings: Keyword settings, JSON values only.

    Examples:
        >>> plan = Plan("probe", {"models": ["resnet18:random"], "data": "digits"})
        >>> plan.having(data="flowers/").settings["data"]
        'flowers/'
        >>> Plan.from_yaml(plan.to_yaml()) == plan
        True
    """

    verb: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", MappingProxyType(dict(self.settings)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.facts() == other.facts()

    def __hash__(self) -> int:
        return hash(self.digest)

    def facts(self) -> dict[str, Any]:
        """Return the plan as one JSON value."""
        return {"format": FORMAT, "verb": self.verb, **self.settings}

    @property
    def digest(self) -> str:
        """SHA-256 of the plan: equal for equal plans."""
        return digest_json(self.facts())

    @property
    def live(self) -> list[str]:
        """The settings that name live objects, which no other process can find again."""
        return [key for key, value in self.settings.items() if any(map(_is_live, _each(value)))]

    def having(self, **changes: Any) -> Plan:  # noqa: ANN401 - any JSON value
        """Return a copy with some settings changed or added."""
        return Plan(self.verb, {**self.settings, **changes})

    def to_yaml(self) -> str:
        """Return the plan as YAML text."""
        facts = self.facts()
        # Some line separators come back changed from YAML unless they are escaped.
        plain = canonical_json(facts).isprintable()
        return yaml.safe_dump(facts, sort_keys=False, allow_unicode=plain, width=100)

    def write(self, path: Path) -> None:
        """Write the plan as YAML, atomically."""
        write_text(path, self.to_yaml())

    @classmethod
    def from_yaml(cls, text: str, source: str = "the plan") -> Plan:
        """Read a plan from YAML text.

        Raises:
            InputError: If the text is not YAML, not a mapping, of an unknown format or without a verb.
        """
        try:
            facts = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError) as error:  # of a date that is none: ValueError
            raise InputError(
                f"YAML in {source}", str(error).replace("\n", " "), "Correct the file"
            ) from error
        if not isinstance(facts, dict) or not all(isinstance(key, str) for key in facts):
            raise InputError(
                f"a mapping of settings in {source}", type(facts).__name__, "Write `key: value` lines"
            )
        if facts.pop("format", FORMAT) != FORMAT:
            raise InputError(
                f"format {FORMAT} in {source}", "another format", "Read it with the version that wrote it"
            )
        verb = facts.pop("verb", None)
        if not isinstance(verb, str):
            raise InputError(f"a line `verb: NAME` in {source}", "none", "Add `verb: probe`, for example")
        return cls(verb, facts)

    @classmethod
    def read(cls, path: Path) -> Plan:
        """Read a plan file.

        Raises:
            InputError: If the file is missing or not a plan.
        """
        if not path.is_file():
            raise InputError("a plan file", f"{path}, which does not exist", "Check the path")
        return cls.from_yaml(path.read_text(encoding="utf-8"), str(path))


def check_settings(function: Callable[..., Any], settings: Mapping[str, Any], verb: str) -> None:
    """Check setting names against a verb's keywords before any work starts.

    Raises:
        InputError: If a setting is unknown or a required one is missing.
    """
    known = inspect.signature(function).parameters
    for name in settings:
        if name not in known:
            raise InputError(
                f"a setting of `{verb}`", repr(name), f"The nearest are {near_names(name, known)}"
            )
    missing = [
        name
        for name, one in known.items()
        if one.default is inspect.Parameter.empty
        and one.kind is not inspect.Parameter.VAR_KEYWORD
        and name not in settings
    ]
    if missing:
        raise InputError(
            f"a value for {', '.join(missing)}", "none", f"`probekit {verb} --help` shows an example"
        )


def live_reference(kind: str, name: str, digest: str) -> dict[str, str]:
    """Return what stands in a plan for an object that lives only in this process."""
    return {"live": kind, "name": name, "digest": digest}


def _is_live(value: Any) -> bool:  # noqa: ANN401 - any JSON value
    return isinstance(value, Mapping) and "live" in value


def _each(value: Any) -> Sequence[Any]:  # noqa: ANN401 - any JSON value
    return value if isinstance(value, (list, tuple)) else [value]
