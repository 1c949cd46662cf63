"""From rules and measured values to a verdict: supported, refuted or inconclusive, and why.

A rule weighs values of arms, seed by seed: sum of weight × value against a bound. Sums over the same seeds
are paired, so that a ratio to a gain is judged as a difference (part − share × gain), which has an interval
even where the gain is small; that is Fieller's argument.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import t as student

SUPPORTED, REFUTED, INCONCLUSIVE = "supported", "refuted", "inconclusive"
# Chance of finding an effect of the size that is called detectable, and most seeds that are counted up to.
POWER, MOST_SEEDS = 0.8, 1000


@dataclass(frozen=True)
class Rule:
    """One numeric predicate.

    Attributes:
        name: In words.
        terms: ``quantity[arm]`` → weight.
        side: ``above`` or ``below``: where the sum has to lie for the rule to hold.
        bound: In the units of the sum; the minimal effect is in it.
    """

    name: str
    terms: Mapping[str, float]
    side: str
    bound: float

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> Rule:
        """Read one rule of the file.

        Raises:
            ValueError: If a part is missing, or the side is none.
        """
        missing = [part for part in ("name", "sum", "is", "bound") if part not in told]
        if missing or told["is"] not in ("above", "below") or not told["sum"]:
            raise ValueError(f"Expected name, sum, is (above or below) and bound; got {dict(told)}.")
        terms = {str(term): float(weight) for term, weight in told["sum"].items()}
        return cls(str(told["name"]), terms, str(told["is"]), float(told["bound"]))


@dataclass(frozen=True)
class Judged:
    """What the values say of a rule.

    Attributes:
        rule: The rule.
        value: Mean of the sum over seeds; NaN without any.
        low: Lower end of its 95 % t-interval.
        high: Upper end.
        p: One-sided chance of a sum this far on the rule's side if it were at the bound; NaN with one seed.
        seeds: Number of seeds that have all terms.
        detectable: Least distance from the bound that these seeds find four times in five.
        needed: Seeds that would settle the rule at the measured spread, if the mean stays; None if the mean
            is on the other side, or the spread is not known.
        missing: Terms without values.
    """

    rule: Rule
    value: float
    low: float
    high: float
    p: float
    seeds: int
    detectable: float
    needed: int | None
    missing: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether the whole interval lies beyond the bound."""
        return bool(self.low > self.rule.bound if self.rule.side == "above" else self.high < self.rule.bound)


@dataclass(frozen=True)
class Verdict:
    """What is said of a finding, and what decided it.

    Attributes:
        word: ``supported``, ``refuted`` or ``inconclusive``.
        reason: In words, with the rule that decided.
        required: The rules that all have to hold.
        falsifiers: The rules of which one is enough to refute.
    """

    word: str
    reason: str
    required: tuple[Judged, ...]
    falsifiers: tuple[Judged, ...]


def judge(values: pd.DataFrame, rules: Mapping[str, Any], alpha: float = 0.05) -> Verdict:
    """Return the verdict on one finding.

    Supported: all required rules hold, with their intervals beyond the bound, and every falsifier could have
    been found. Refuted: a falsifier holds at
    ``alpha`` after Holm's correction over the falsifiers. Everything else, a missing arm included, is
    inconclusive, as is a finding of which both are true.

    Args:
        values: ``quantity``, ``arm``, ``seed`` and ``value``; at most one row for each of the first three.
        rules: ``required`` and ``falsifiers``, lists of rules; one with ``all`` in the place of a sum holds
            if all the rules in it do, and its p-value is the largest of theirs.
        alpha: Of the falsifiers together.

    Raises:
        ValueError: If a rule cannot be read, or a value stands twice.
    """
    twice = values.duplicated(["quantity", "arm", "seed"])
    if twice.any():
        first = values[twice].iloc[0].to_dict()
        raise ValueError(f"Expected one value a quantity, arm and seed; got twice {first}.")
    required, falsifiers = (
        tuple(_judge_one(values, one) for one in rules[part]) for part in ("required", "falsifiers")
    )
    adjusted = holm([one.p for one in falsifiers])
    refuting = [one for one, p in zip(falsifiers, adjusted, strict=True) if p < alpha]
    open_ = [one for one in required if not one.holds]
    # What was not measured could have refuted it.
    unheard = [one for one in falsifiers if np.isnan(one.p)]
    if refuting and open_:
        return Verdict(REFUTED, f"{refuting[0].rule.name}: {said(refuting[0])}", required, falsifiers)
    if refuting:
        reason = f"all required rules hold, and so does a falsifier: {refuting[0].rule.name}"
        return Verdict(INCONCLUSIVE, reason, required, falsifiers)
    if required and not open_ and not unheard:
        return Verdict(SUPPORTED, "all required rules hold", required, falsifiers)
    return Verdict(
        INCONCLUSIVE, "; ".join(_why_open(one) for one in (*open_, *unheard)), required, falsifiers
    )


def _judge_one(values: pd.DataFrame, told: Mapping[str, Any]) -> Judged:
    """Judge a rule, or several of which the weakest speaks for all."""
    if "all" not in told:
        return judge_rule(values, Rule.read(told))
    parts = [judge_rule(values, Rule.read(one)) for one in told["all"]]
    if not parts:
        raise ValueError(f"Expected rules in all; got {dict(told)}.")
    # An intersection of hypotheses is refuted at a level at which each of its parts is.
    weakest = max(parts, key=lambda one: np.inf if np.isnan(one.p) else one.p)
    name = f"{told['name']} ({weakest.rule.name})"
    return replace(weakest, rule=replace(weakest.rule, name=name))


def judge_rule(values: pd.DataFrame, rule: Rule) -> Judged:
    """Return what the values say of one rule.

    Examples:
        >>> values = {"quantity": "hue", "arm": "moco", "seed": range(3), "value": [0.8, 0.9, 1.0]}
        >>> found = judge_rule(pd.DataFrame(values), Rule("hue stays", {"hue[moco]": 1.0}, "above", 0.5))
        >>> round(found.value, 3), round(found.low, 3), found.holds
        (0.9, 0.652, True)
    """
    columns, missing = {}, []
    for term in rule.terms:
        quantity, _, arm = term.removesuffix("]").partition("[")
        own = values[(values["quantity"] == quantity) & (values["arm"] == arm)].dropna(subset=["value"])
        if own.empty:
            missing.append(term)
        columns[term] = own.set_index("seed")["value"]
    nothing = Judged(rule, np.nan, -np.inf, np.inf, np.nan, 0, np.inf, None, tuple(missing))
    if missing:
        return nothing
    table = pd.DataFrame(columns).dropna()
    sums = table.to_numpy(float) @ np.array(list(rule.terms.values()))
    if len(sums) < 2:
        return Judged(rule, float(sums.mean()) if len(sums) else np.nan, -np.inf, np.inf, np.nan, len(sums),
                      np.inf, None)  # fmt: skip
    return _from_sums(rule, sums)


def _from_sums(rule: Rule, sums: NDArray[np.float64]) -> Judged:
    n, mean, sd = len(sums), float(sums.mean()), float(sums.std(ddof=1))
    error = sd / np.sqrt(n)
    half = float(student.ppf(0.975, n - 1) * error)
    sign = 1 if rule.side == "above" else -1
    distance = sign * (mean - rule.bound)
    p = float(student.sf(distance / error, n - 1)) if error > 0 else (0.0 if distance > 0 else 1.0)
    detectable = float((student.ppf(0.975, n - 1) + student.ppf(POWER, n - 1)) * error)
    return Judged(rule, mean, mean - half, mean + half, p, n, detectable, _seeds_needed(distance, sd))


def _seeds_needed(distance: float, sd: float) -> int | None:
    """Return the least number of seeds whose interval ends before the bound, if mean and spread stay."""
    if distance <= 0:
        return None
    counts = np.arange(2, MOST_SEEDS + 1)
    enough = student.ppf(0.975, counts - 1) * sd / np.sqrt(counts) < distance
    return int(counts[enough.argmax()]) if enough.any() else None


def holm(ps: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values; those that are NaN stay so, and count as tests.

    Examples:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    given = np.array([np.inf if np.isnan(p) else p for p in ps])
    order = np.argsort(given, kind="stable")
    adjusted = np.empty(len(given))
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(given) - rank) * given[place]))
        adjusted[place] = largest
    return [float("nan") if np.isnan(p) else float(one) for p, one in zip(ps, adjusted, strict=True)]


def said(one: Judged) -> str:
    """Return value, interval and number of seeds in words."""
    if one.seeds < 2:
        return f"{one.value:.3g} from one seed" if one.seeds else "no values"
    interval = f"{one.value:.3g} [{one.low:.3g}, {one.high:.3g}]"
    return f"{interval}, {one.seeds} seeds, {one.rule.side} {one.rule.bound:g}?"


def _why_open(one: Judged) -> str:
    """Return why a required rule does not hold, and what would settle it."""
    if one.missing:
        return f"{one.rule.name}: no values of {', '.join(one.missing)}"
    if one.seeds < 2:
        return f"{one.rule.name}: one seed has no interval"
    if one.needed is not None:
        more = f"{one.needed} seeds would settle it at this spread"
    else:
        more = "the mean is on the other side" if np.isfinite(one.value) else "no mean"
    return f"{one.rule.name}: {said(one)}; detectable {one.detectable:.2g}; {more}"


def rule_rows(finding: str, verdict: Verdict) -> Iterable[dict[str, Any]]:
    """Yield a row a rule for a table of results."""
    for part, rules in (("required", verdict.required), ("falsifier", verdict.falsifiers)):
        for one in rules:
            row: dict[str, Any] = {
                "analysis": "findings", "model": finding, "metric": "rule_value",
                "value": one.value if np.isfinite(one.value) else None, "n": one.seeds,
                "params": {
                    "rule": one.rule.name, "part": part, "is": one.rule.side, "bound": one.rule.bound,
                    "holds": one.holds, "detectable": one.detectable if np.isfinite(one.detectable) else None,
                    "seeds_needed": one.needed, "p": None if np.isnan(one.p) else one.p,
                    "terms": dict(one.rule.terms),
                },
            }  # fmt: skip
            if np.isfinite([one.low, one.high]).all():
                row |= {"ci_low": one.low, "ci_high": one.high, "ci_kind": "t,pretraining seeds"}
            if one.missing:
                row["status"] = f"no values of {', '.join(one.missing)}"
            elif one.seeds < 2:
                row["status"] = "one seed has no interval"
            yield row


def verdict_row(finding: str, says: str, verdict: Verdict) -> dict[str, Any]:
    """Return the row of a verdict: 1 for supported, −1 for refuted, 0 for inconclusive."""
    value = {SUPPORTED: 1.0, REFUTED: -1.0, INCONCLUSIVE: 0.0}[verdict.word]
    params = {"says": says, "verdict": verdict.word, "reason": verdict.reason}
    return {"analysis": "findings", "model": finding, "metric": "verdict", "value": value, "params": params}
