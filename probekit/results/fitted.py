"""The fitted Probe: a linear map in standardised space, and how to take it out of there."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probekit.errors import InputError
from probekit.files import replacing

FloatArray = NDArray[np.float64]

KINDS = ("class", "multilabel", "continuous")
_FORMAT = 1
_TEXTS = ("kind", "tap", "target")
_ARRAYS = ("weights", "intercept", "mean", "scale", "kept", "classes", "penalty")


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear probe on frozen features, fitted on standardised columns.

    ``scores = ((features[:, kept] − mean) / scale) @ weights + intercept``

    Letters: N images, D_raw features of the tap, D of them kept, K outputs.

    Attributes:
        weights: (D, K) weights on standardised features.
        intercept: (K,) intercepts.
        mean: (D,) means of the kept columns over the fitting split; (D_raw,) is cut to them.
        scale: (D,) their standard deviations, positive; (D_raw,) is cut likewise.
        kept: (D_raw,) True at columns that vary over the fitting split; the others are ignored.
        classes: K names: classes, labels, or columns of a continuous target.
        kind: ``class`` (softmax), ``multilabel`` (sigmoid) or ``continuous``.
        tap: Where the features are read.
        penalty: Penalty on the squared weights the probe was fitted with.
        target: Name of the target.

    Raises:
        InputError: If shapes disagree, or values are not finite.

    Examples:
        >>> probe = Probe(weights=np.array([[-1.0, 1.0]]), intercept=np.zeros(2), mean=np.array([3.0]),
        ...               scale=np.array([2.0]), kept=np.array([False, True]), classes=("no", "yes"),
        ...               kind="class", tap="layer1", penalty=0.1, target="cat")
        >>> probe.predict(np.array([[9.0, 5.0], [9.0, 1.0]])).tolist()
        [1, 0]
    """

    weights: FloatArray
    intercept: FloatArray
    mean: FloatArray
    scale: FloatArray
    kept: NDArray[np.bool_]
    classes: tuple[str, ...]
    kind: str
    tap: str
    penalty: float
    target: str

    def __post_init__(self) -> None:
        kept = np.array(self.kept, dtype=np.bool_)
        object.__setattr__(self, "kept", _read_only(kept))
        for name in ("weights", "intercept", "mean", "scale"):
            values = np.array(getattr(self, name), dtype=np.float64)
            if name in ("mean", "scale") and values.shape == kept.shape:
                values = values[kept]
            object.__setattr__(self, name, _read_only(values))
        object.__setattr__(self, "classes", tuple(str(name) for name in self.classes))
        object.__setattr__(self, "penalty", float(self.penalty))
        _check(self)

    def __repr__(self) -> str:
        d, k = self.weights.shape
        return f"Probe({self.target} at {self.tap}: {self.kind}, D = {d} of {len(self.kept)}, K = {k})"

    def scores(self, features: ArrayLike) -> FloatArray:
        """Return the linear outputs: logits, or values of a continuous target.

        Args:
            features: (N, D_raw) features as the tap gives them, not standardised.

        Returns:
            (N, K) scores in float64.

        Raises:
            InputError: If the features are not (N, D_raw).
        """
        values = self._features(features)[:, self.kept]
        return np.asarray(((values - self.mean) / self.scale) @ self.weights + self.intercept)

    def probabilities(self, features: ArrayLike) -> FloatArray:
        """Return (N, K) probabilities: softmax over classes, or one sigmoid per label.

        Raises:
            InputError: If the target is continuous.
        """
        if self.kind == "continuous":
            raise InputError(
                "a class or multilabel probe", f"the continuous target {self.target!r}", "Use `scores`"
            )
        scores = self.scores(features)
        if self.kind == "multilabel":
            # Of the two forms of the sigmoid, the one whose exponent is not positive.
            small = np.exp(-np.abs(scores))
            return np.asarray(np.where(scores >= 0, 1.0, small) / (1.0 + small))
        exponentials = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))

    def predict(self, features: ArrayLike) -> NDArray[Any]:
        """Return the predicted target.

        Returns:
            ``class``: (N,) int64 places in ``classes``; ``multilabel``: (N, K) bool, True from a
            probability of one half; ``continuous``: (N, K) float64.
        """
        scores = self.scores(features)
        if self.kind == "class":
            return np.asarray(scores.argmax(axis=1), dtype=np.int64)
        return np.asarray(scores >= 0.0) if self.kind == "multilabel" else scores

    def raw_weights(self) -> tuple[FloatArray, FloatArray]:
        """Fold the standardisation into the weights, for use outside probekit.

        Returns:
            (D_raw, K) weights and (K,) intercepts with ``scores = features @ weights + intercepts``;
            weights are zero at columns that were not kept.
        """
        # w′ = w/σ, b′ = b − w·μ/σ
        folded = self.weights / self.scale[:, None]
        raw = np.zeros((len(self.kept), self.weights.shape[1]))
        raw[self.kept] = folded
        return raw, self.intercept - self.mean @ folded

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the probe as named arrays without objects: they open with ``allow_pickle=False``."""
        arrays: dict[str, NDArray[Any]] = {"format": np.array(_FORMAT)}
        arrays |= {name: np.asarray(getattr(self, name)) for name in (*_ARRAYS, *_TEXTS)}
        # NumPy drops trailing NULs of text; names come from files and never hold one.
        arrays["classes"] = np.array(self.classes, dtype=np.str_)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, ArrayLike]) -> Probe:
        """Build a probe from the arrays of ``to_arrays``.

        Raises:
            InputError: If an array is missing, of another format or of a wrong shape.
        """
        missing = [name for name in ("format", *_ARRAYS, *_TEXTS) if name not in arrays]
        if missing:
            raise InputError(
                "the arrays of a fitted probe",
                f"{', '.join(arrays) or 'nothing'} without {', '.join(missing)}",
                "Write probes with `Probe.save`",
            )
        version = int(np.asarray(arrays["format"]))
        if version != _FORMAT:
            raise InputError(
                f"probe format {_FORMAT}", f"format {version}", "Use the probekit version that wrote it"
            )
        read: dict[str, Any] = {name: np.asarray(arrays[name]) for name in _ARRAYS}
        read |= {name: str(np.asarray(arrays[name])) for name in _TEXTS}
        classes, penalty = tuple(read.pop("classes").tolist()), float(read.pop("penalty"))
        return cls(**read, classes=classes, penalty=penalty)

    def save(self, path: str | Path) -> None:
        """Write the probe atomically as one ``.npz`` file."""
        write_arrays(Path(path), self.to_arrays())

    @classmethod
    def load(cls, path: str | Path) -> Probe:
        """Read a probe written by ``save``.

        Raises:
            InputError: If the file is missing, damaged or not a probe.
        """
        return cls.from_arrays(read_arrays(Path(path)))

    def _features(self, features: ArrayLike) -> FloatArray:
        values = np.asarray(features, dtype=np.float64)
        if values.ndim != 2 or values.shape[1] != len(self.kept):
            raise InputError(
                f"features of shape (N, {len(self.kept)}) from the tap {self.tap!r}",
                f"shape {values.shape}",
                "Read them with the tap the probe was fitted on",
            )
        return values


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Write named arrays atomically as one ``.npz`` file, the same bytes for the same arrays."""
    # NumPy before 2.1 knows no ``allow_pickle`` here, and would write objects.
    held: dict[str, Any] = dict(arrays)
    if any(np.asarray(one).dtype.hasobject for one in held.values()):
        raise ValueError("arrays of objects, which only running code could read")
    with replacing(path) as temporary, temporary.open("wb") as opened:
        np.savez(opened, **held)


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Read an ``.npz`` file without running any code from it.

    Raises:
        InputError: If the file is missing, damaged or holds objects.
    """
    try:
        # Opened here because NumPy leaves a damaged file open.
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, AttributeError, TypeError) as error:
        raise InputError(f"an .npz file of plain arrays at {path}", str(error), "Write it again") from error


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    array.setflags(write=False)
    return array


def _check(probe: Probe) -> None:
    if probe.kind not in KINDS:
        raise InputError(f"a kind among {', '.join(KINDS)}", repr(probe.kind), "Choose one")
    d, k = int(probe.kept.sum()), len(probe.classes)
    shapes = {"weights": (d, k), "intercept": (k,), "mean": (d,), "scale": (d,)}
    for name, shape in shapes.items():
        value = getattr(probe, name)
        if value.shape != shape:
            raise InputError(
                f"{name} of shape {shape}, for {d} kept columns and {k} outputs",
                f"shape {value.shape}",
                "Give mean and scale of the kept columns only",
            )
        if not np.isfinite(value).all():
            raise InputError(f"finite {name}", "NaN or infinity", "Check the fit")
    if not (probe.scale > 0).all():
        raise InputError("positive scales", f"{probe.scale.min():g}", "Drop constant columns through `kept`")
