"""One small tree of errors: each says what was expected, what came, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ProbekitError(Exception):
    """Base of every error a user can cause.

    Args:
        expected: What would have been right.
        came: What was found instead.
        todo: The next thing to try.

    Examples:
        >>> str(ProbekitError("a folder", "the file 'cat.png'", "Name the folder that holds it"))
        "Expected a folder; got the file 'cat.png'. Name the folder that holds it."
    """

    def __init__(self, expected: str, came: str, todo: str) -> None:
        self.expected, self.came, self.todo = expected, came, todo
        super().__init__(f"Expected {expected}; got {came}. {todo.rstrip('.')}.")

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        """Survive pickling between worker processes (Exception keeps only the message)."""
        return type(self), (self.expected, self.came, self.todo)


class InputError(ProbekitError, ValueError):
    """A setting or argument has a value that cannot be used."""


class CheckpointError(ProbekitError):
    """A checkpoint cannot be opened or does not fill the backbone."""


class UnsafeCheckpoint(CheckpointError):
    """A checkpoint needs code to be run before it opens."""


class CheckpointCoverage(CheckpointError):
    """A checkpoint leaves weights or batch-norm statistics of the backbone unfilled."""


class TapError(ProbekitError):
    """An activation cannot be read as asked."""


class TapNotFound(TapError):
    """No module has the path of a tap."""


class TapDidNotFire(TapError):
    """A tapped module was not called during the forward pass."""


class TapFiredManyTimes(TapError):
    """A tapped module was called several times and the tap does not say which call."""


class AmbiguousOutput(TapError):
    """A tapped module returned several tensors and the tap does not say which."""


class LayoutUnknown(TapError):
    """Which axis of an activation holds the channels is not known."""


class NoClassToken(TapError):
    """A readout asks for a class token that the backbone does not have."""


class DataError(ProbekitError):
    """Images or targets cannot be used."""


class ImageUnreadable(DataError):
    """An image file is missing, truncated or not an image."""


class SplitOverlap(DataError):
    """The same image stands in two splits."""


class FeatureError(ProbekitError):
    """Features cannot be computed, stored or used."""


class NonFiniteFeatures(FeatureError):
    """Features hold NaN or infinite values."""


class StoreDamaged(FeatureError):
    """A part, journal or manifest of a feature store, or an object of a remote one, is missing or altered."""


class StoreTooBig(FeatureError):
    """The features would not fit where they are to be kept."""


class FusionImpossible(FeatureError):
    """A forward pass cannot be traced, or cannot be rewritten without changing what it computes."""


class RemoteUnreachable(ProbekitError):
    """Object storage cannot be read or written as asked."""


class TrainingDiverged(ProbekitError):
    """A loss is NaN or infinite: the training stops, and its last snapshot stays."""


class SchemaMismatch(ProbekitError):
    """A result table does not follow the schema."""


def near_names(name: str, known: Iterable[str], count: int = 5) -> str:
    """List the known names most like a mistyped one, for the end of an error message.

    Examples:
        >>> near_names("layer1.0.bn", ["layer1.0.bn1", "fc"])
        'layer1.0.bn1'
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    return ", ".join(close or known[:count])
