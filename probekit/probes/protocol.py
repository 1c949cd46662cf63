"""The protocol every probe follows: fit on train, choose on val, refit on both, score test once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probekit.data.images import ImageSet
from probekit.data.splits import hold_out
from probekit.errors import DataError, InputError
from probekit.features.features import Features
from probekit.functional.rows import empty_rows, row_blocks
from probekit.functional.standardise import standardisation

# Half decades from 1e-5 to 10, in units of the objective: mean loss + ½·penalty·‖W‖².
PENALTIES = tuple(float(f"{10**power:.3g}") for power in np.arange(1.0, -5.01, -0.5))


@dataclass(frozen=True)
class Protocol:
    """The settings all probes of one run share.

    Attributes:
        penalties: P candidates on the squared weights, any order.
        val_fraction: Share of train held out to choose on, where the data has no val split.
        permutations: How often targets are permuted to find the null; 0 leaves it out.
        bootstrap_draws: Resamples of the test units behind every interval.
        neighbours: k of the k-nearest-neighbour score; 0 leaves it out.
        temperature: Its temperature.
        shots: Images a class of the few-shot curve; empty leaves it out.
        few_shot_draws: Independent draws of those images.
        orders: Orders of the images in which labels are coded for their description length; 0 leaves it out.
        gap: Largest relative objective gap a fitted probe may have.
        seed: Fixes splits, permutations, draws and resamples.
    """

    penalties: tuple[float, ...] = PENALTIES
    val_fraction: float = 0.2
    permutations: int = 20
    bootstrap_draws: int = 2000
    neighbours: int = 20
    temperature: float = 0.07
    shots: tuple[int, ...] = (1, 2, 5, 10, 20)
    few_shot_draws: int = 5
    orders: int = 0
    gap: float = 1e-4
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.penalties or min(self.penalties) <= 0 or not np.isfinite(self.penalties).all():
            raise InputError(
                "at least one positive penalty", str(list(self.penalties)), "Leave them out for 13"
            )
        if not 0 < self.val_fraction < 1:
            raise InputError("a val_fraction between 0 and 1", str(self.val_fraction), "0.2 is the default")
        for name in ("permutations", "neighbours", "orders", "seed"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} of at least 0", str(getattr(self, name)), "0 leaves it out")
        for name in ("bootstrap_draws", "few_shot_draws", *(f"shots[{i}]" for i in range(len(self.shots)))):
            value = self.shots[int(name[6:-1])] if name.startswith("shots[") else getattr(self, name)
            if value < 1:
                raise InputError(f"{name} of at least 1", str(value), "Choose a positive number")

    def facts(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }


@dataclass(frozen=True)
class Roles:
    """Row numbers of the three splits, disjoint."""

    train: NDArray[np.intp]
    val: NDArray[np.intp]
    test: NDArray[np.intp]

    @property
    def fitting(self) -> NDArray[np.intp]:
        """Rows of train and val together: what the scored probe is fitted on."""
        return np.concatenate([self.train, self.val])


def assign_roles(images: ImageSet, protocol: Protocol) -> Roles:
    """Return the rows of train, val and test, holding out part of train where there is no val split.

    Raises:
        DataError: If there is no training or no test image.
    """
    train, val, test = (images.indices(role) for role in ("train", "val", "test"))
    for role, rows in (("train", train), ("test", test)):
        if len(rows) == 0:
            raise DataError(
                f"images in the split {role!r} of {images.name}",
                "none",
                "Give folders train/ and test/, or a `split` column",
            )
    if len(val) == 0:
        labels = next((one.values for one in images.targets.values() if one.kind == "class"), None)
        strata = np.zeros(len(train), np.int64) if labels is None else labels[train]
        kept, held = hold_out(strata, protocol.val_fraction, seed=protocol.seed)
        train, val = train[kept], train[held]
    return Roles(train, val, test)


@dataclass(frozen=True)
class Stage:
    """Features standardised by the rows a probe is fitted on.

    Attributes:
        fit: (n, D) rows to fit on: zero mean, unit variance.
        score: (m, D) rows to score, moved and scaled alike.
        mean: (D_raw,) means of the fitting rows.
        scale: (D_raw,) their standard deviations.
        kept: (D_raw,) False at columns that are constant over the fitting rows and left out of both.
    """

    fit: NDArray[np.float32]
    score: NDArray[np.float32]
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    kept: NDArray[np.bool_]

    @classmethod
    def of(cls, fit: NDArray[np.float32], score: NDArray[np.float32]) -> Stage:
        """Standardise by ``fit``."""
        by = standardisation(fit)
        return cls(_moved(fit, *by), _moved(score, *by), *by)

    def move(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Move and scale other rows of (n, D_raw) features alike."""
        return _moved(rows, self.mean, self.scale, self.kept)


def _moved(
    rows: NDArray[np.float32],
    mean: NDArray[np.float64],
    scale: NDArray[np.float64],
    kept: NDArray[np.bool_],
) -> NDArray[np.float32]:
    moved = empty_rows((len(rows), int(kept.sum())), np.float32)
    for part in row_blocks(*rows.shape):
        # (x − μ)/σ in float64: features far from zero would lose their variance in float32.
        moved[part] = (rows[part][:, kept] - mean[kept]) / scale[kept]
    return moved


@dataclass(frozen=True)
class TapData:
    """One tap's features, ready for both steps of the protocol.

    Attributes:
        features: Where they come from.
        roles: Rows of the splits.
        choose: Train against val.
        refit: Train and val against test, with mean and scale estimated anew.
    """

    features: Features
    roles: Roles
    choose: Stage
    refit: Stage

    @classmethod
    def of(cls, features: Features, roles: Roles) -> TapData:
        """Read the features of one tap and standardise them for both steps."""
        fitting, test = features.matrix(roles.fitting), features.matrix(roles.test)
        train, val = fitting[: len(roles.train)], fitting[len(roles.train) :]
        return cls(features, roles, Stage.of(train, val), Stage.of(fitting, test))

    @classmethod
    def of_matrices(
        cls,
        features: Features,
        roles: Roles,
        train: NDArray[np.float32],
        val: NDArray[np.float32],
        test: NDArray[np.float32],
    ) -> TapData:
        """Standardise given matrices, such as features reduced to fewer dimensions."""
        fitting = empty_rows((len(train) + len(val), train.shape[1]), np.float32)
        fitting[: len(train)], fitting[len(train) :] = train, val
        return cls(features, roles, Stage.of(train, val), Stage.of(fitting, test))

    @property
    def dead(self) -> bool:
        """Whether every feature is constant over the fitting rows."""
        return not self.refit.kept.any() or not self.choose.kept.any()


@dataclass(frozen=True)
class Choice:
    """The penalty chosen on val.

    Attributes:
        penalty: Its value.
        score: The metric on val at that penalty.
        edge: ``low`` or ``high`` if it stands at an end of the grid, else None.
    """

    penalty: float
    score: float
    edge: str | None


def choose_penalty(
    penalties: NDArray[np.float64],
    scores: NDArray[np.float64],
    tie_breaker: NDArray[np.float64] | None = None,
) -> Choice:
    """Choose the penalty with the highest val score; ties go to the lower tie-breaker, then the stronger.

    Args:
        penalties: (P,) candidates, the strongest first.
        scores: (P,) val metric, higher is better; or fewer, where the weakest were left out as past the best.
        tie_breaker: (P,) lower is better, such as the val cross-entropy.

    Examples:
        >>> choose_penalty(np.array([1.0, 0.1, 0.01]), np.array([0.5, 0.7, 0.7])).penalty
        0.1
    """
    loss = np.zeros(len(scores)) if tie_breaker is None else tie_breaker
    best = min(range(len(scores)), key=lambda p: (-scores[p], loss[p], -penalties[p]))
    penalty = float(penalties[best])
    edge = None
    if len(penalties) > 1:
        edge = "low" if penalty == penalties.min() else "high" if penalty == penalties.max() else None
    return Choice(penalty, float(scores[best]), edge)


@dataclass(frozen=True)
class Outcome:
    """What one probe adds to a result table.

    Attributes:
        rows: Partial rows of the schema; the sweep adds what all rows of a tap share.
        attachments: Relative path under ``scores/…`` or ``probes/…`` → value.
        images: Metric → (n_test,) per-image score whose mean is the metric's value.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    arrays: Mapping[str, Any] | None = None
    images: Mapping[str, NDArray[Any]] = field(default_factory=dict)
