"""Which forward pass reads which taps: decided when taps are first asked for, written down, then obeyed.

In a store of the plain pass every tap is read by the plain pass, and its values do not depend on what else is
read. In a store of the fused pass they may, in their last bits: a value that is read cannot be folded away.
So there the file of each tap names the pass that reads it and all taps that are read by it. Taps that come
later have a pass of their own: fused if that is proven, else the plain one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from probekit.features.store import TapFolder
from probekit.taps.tap import Tap, parse_tap

if TYPE_CHECKING:
    from probekit.features.trial import Trial


@dataclass(frozen=True)
class Pass:
    """One forward pass and what it reads.

    Attributes:
        path: ``eager`` or ``fused``.
        taps: All taps that are read, in order.
    """

    path: str
    taps: tuple[Tap, ...]

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Pass:
        """Read a pass from what stands in a tap's file."""
        return cls(facts["path"], tuple(parse_tap(text) for text in facts["taps"]))

    def facts(self) -> dict[str, Any]:
        """Return what stands in a tap's file."""
        return {"path": self.path, "taps": [str(tap) for tap in self.taps]}


def choose_passes(
    trial: Trial, folders: Mapping[Tap, TapFolder], new: Sequence[Tap], path: str, *, insist: bool
) -> dict[Tap, Pass]:
    """Return the pass that is to read each new tap.

    Args:
        trial: Proves that fusion is right.
        folders: Taps asked for, new ones and others.
        new: Taps of which nothing is written down.
        path: The store's.
        insist: Whether fused was asked for in so many words.

    Raises:
        FusionImpossible: If it was, and new taps of a fused store cannot be read so.
    """
    if path != "fused":
        return dict.fromkeys(new, Pass(path, tuple(new)))
    # Whoever wrote these down was interrupted, or is at it still: the others of a pass are decided on.
    written = [Pass.of(facts["pass"]) for one in folders.values() if "pass" in (facts := one.facts() or {})]
    chosen = {tap: one for tap in new for one in written if tap in one.taps}
    rest = tuple(tap for tap in new if tap not in chosen)
    if rest and insist:
        trial.fused(rest)
    return chosen | (dict.fromkeys(rest, Pass(trial.proven_path(rest), rest)) if rest else {})


def find_passes(folders: Mapping[Tap, TapFolder], path: str) -> dict[Pass, list[Tap]]:
    """Return which of these taps each pass over the images is to read, as it is written down.

    Args:
        folders: Declared taps that miss rows.
        path: The store's; those of which the file names no pass are read by it, together.
    """
    told = {tap: (one.facts() or {}).get("pass") for tap, one in folders.items()}
    common = Pass(path, tuple(tap for tap, facts in told.items() if facts is None))
    found: dict[Pass, list[Tap]] = {}
    for tap, facts in told.items():
        found.setdefault(common if facts is None else Pass.of(facts), []).append(tap)
    return found
