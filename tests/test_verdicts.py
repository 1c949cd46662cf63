"""Rules and verdicts, on planted tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import optimize, stats
from statsmodels.stats.multitest import multipletests

from probekit import ResultTable
from probekit.running import load_analysis

SEEDS = range(5)
NOISE = np.array([-0.02, -0.01, 0.0, 0.01, 0.02])


@pytest.fixture(scope="module")
def judging() -> ModuleType:
    # Analyses see the folders beside them.
    load_analysis(Path("analyses/pretraining.py"))
    from verdicts import judging

    found: ModuleType = judging
    return found


def planted(**means: float) -> pd.DataFrame:
    """Return a quantity x of each arm: its mean plus noise, the same for two arms but for a factor."""
    rows = [
        {"quantity": "x", "arm": arm, "seed": seed, "value": mean + NOISE[seed] * (1 + place)}
        for place, (arm, mean) in enumerate(means.items())
        for seed in SEEDS
    ]
    return pd.DataFrame(rows, columns=["quantity", "arm", "seed", "value"])


def rule(side: str = "above", bound: float = 0.1, name: str = "a beats b", **terms: float) -> dict[str, Any]:
    given = {f"x[{arm}]": weight for arm, weight in (terms or {"a": 1.0, "b": -1.0}).items()}
    return {"name": name, "sum": given, "is": side, "bound": bound}


RULES = {"required": [rule()], "falsifiers": [rule("below", 0.0, "a loses to b")]}


@pytest.mark.parametrize(
    ("a", "b", "word"),
    [
        (0.8, 0.5, "supported"),
        (0.5, 0.8, "refuted"),
        (0.61, 0.5, "inconclusive"),
        (0.5, 0.49, "inconclusive"),
    ],
)
def test_each_verdict_is_given_where_it_is_planted(judging: ModuleType, a: float, b: float, word: str):
    assert judging.judge(planted(a=a, b=b), RULES).word == word


def test_arms_that_change_places_are_no_longer_supported(judging: ModuleType):
    frame = planted(a=0.8, b=0.5)
    assert judging.judge(frame, RULES).word == "supported"
    swapped = frame.assign(arm=frame["arm"].map({"a": "b", "b": "a"}))
    assert judging.judge(swapped, RULES).word == "refuted"


def test_a_missing_arm_is_inconclusive_and_named(judging: ModuleType):
    verdict = judging.judge(planted(a=0.8), RULES)
    assert verdict.word == "inconclusive"
    assert "no values of x[b]" in verdict.reason
    assert not verdict.required[0].holds


def test_one_seed_settles_nothing(judging: ModuleType):
    verdict = judging.judge(planted(a=0.8, b=0.1).query("seed == 0"), RULES)
    assert verdict.word == "inconclusive"
    assert "one seed has no interval" in verdict.reason


def test_the_interval_has_to_lie_beyond_the_minimal_effect(judging: ModuleType):
    one = judging.judge_rule(planted(a=0.61, b=0.5), judging.Rule.read(rule()))
    assert one.value == pytest.approx(0.11)
    assert one.low < 0.1 < one.high
    assert not one.holds
    assert judging.judge_rule(planted(a=0.8, b=0.5), judging.Rule.read(rule())).holds


def test_sums_are_paired_by_seed(judging: ModuleType):
    frame = planted(a=0.62, b=0.5)
    shuffled = frame.copy()
    shuffled.loc[shuffled["arm"] == "b", "seed"] = list(reversed(SEEDS))
    widths = []
    for one in (frame, shuffled):
        found = judging.judge_rule(one, judging.Rule.read(rule()))
        widths.append(found.high - found.low)
    assert widths[0] * 2 < widths[1]


def test_value_interval_and_p_are_those_of_a_t_test(judging: ModuleType):
    draws = np.random.default_rng(0).normal(0.3, 0.2, 7)
    frame = pd.DataFrame({"quantity": "x", "arm": "a", "seed": range(7), "value": draws})
    found = judging.judge_rule(frame, judging.Rule.read(rule("above", 0.1, a=1.0)))
    test = stats.ttest_1samp(draws, 0.1, alternative="greater")
    both = stats.ttest_1samp(draws, 0.1).confidence_interval(0.95)
    np.testing.assert_allclose([found.p, found.low, found.high], [test.pvalue, both.low, both.high])


def test_a_share_of_a_gain_is_judged_without_dividing(judging: ModuleType):
    lost, gain = 0.05 + NOISE / 10, 0.5 + NOISE
    frame = pd.concat([
        pd.DataFrame({"quantity": quantity, "arm": "a", "seed": SEEDS, "value": values})
        for quantity, values in (("lost", lost), ("gain", gain))
    ])  # fmt: skip
    told = {"name": "small share", "sum": {"lost[a]": 1.0, "gain[a]": -0.2}, "is": "below", "bound": 0.0}
    assert judging.judge(frame, {"required": [told], "falsifiers": []}).word == "supported"
    told["sum"] = {"lost[a]": 1.0, "gain[a]": -0.05}
    assert judging.judge(frame, {"required": [told], "falsifiers": []}).word == "inconclusive"


def test_falsifiers_are_corrected_by_holm(judging: ModuleType):
    ps = [0.04, 0.001, 0.03, 0.2]
    np.testing.assert_allclose(judging.holm(ps), multipletests(ps, method="holm")[1])
    assert np.isnan(judging.holm([0.01, float("nan")])[1])
    # p = 0.012 alone refutes; among ten falsifiers it does not.
    draws = -0.5 + 20 * NOISE
    frame = pd.DataFrame({"quantity": "x", "arm": "a", "seed": SEEDS, "value": draws})
    single = judging.judge_rule(frame, judging.Rule.read(rule("below", 0.0, a=1.0)))
    assert 0.005 < single.p < 0.05
    one = {"required": [rule("above", 5.0, a=1.0)], "falsifiers": [rule("below", 0.0, a=1.0)]}
    assert judging.judge(frame, one).word == "refuted"
    many = {
        **one,
        "falsifiers": one["falsifiers"] + [rule("above", 9.0, f"far {k}", a=1.0) for k in range(9)],
    }
    assert judging.judge(frame, many).word == "inconclusive"


def test_a_finding_whose_rules_and_falsifiers_both_hold_is_inconclusive(judging: ModuleType):
    both = {"required": [rule()], "falsifiers": [rule("above", 0.2, "too much")]}
    verdict = judging.judge(planted(a=0.8, b=0.5), both)
    assert verdict.word == "inconclusive"
    assert "too much" in verdict.reason


def test_seeds_that_would_settle_a_rule_are_counted(judging: ModuleType):
    one = judging.judge_rule(planted(a=0.61, b=0.5), judging.Rule.read(rule()))
    assert one.needed is not None
    assert one.needed > one.seeds
    sd = NOISE.std(ddof=1)
    for count, settles in ((one.needed, True), (one.needed - 1, False)):
        assert (stats.t.ppf(0.975, count - 1) * sd / np.sqrt(count) < 0.01) is np.bool_(settles)
    assert judging.judge_rule(planted(a=0.4, b=0.5), judging.Rule.read(rule())).needed is None


def test_rules_that_are_none_and_values_that_stand_twice_are_refused(judging: ModuleType):
    with pytest.raises(ValueError, match="name, sum, is"):
        judging.Rule.read({"name": "x", "sum": {"x[a]": 1}, "is": "near", "bound": 0})
    frame = planted(a=0.8, b=0.5)
    with pytest.raises(ValueError, match="got twice"):
        judging.judge(pd.concat([frame, frame.iloc[:1]]), RULES)


def test_rules_that_have_to_hold_together_are_as_weak_as_the_weakest(judging: ModuleType):
    parts = [rule("above", 0.0, "one"), rule("above", 0.5, "other")]
    told = {"required": [{"name": "both", "all": parts}], "falsifiers": []}
    verdict = judging.judge(planted(a=0.8, b=0.5), told)
    assert verdict.word == "inconclusive"
    assert "both (other)" in verdict.reason
    parts[1]["bound"] = 0.1
    assert judging.judge(planted(a=0.8, b=0.5), told).word == "supported"


RULES_FILE = yaml.safe_load(Path("analyses/findings_rules.yaml").read_text(encoding="utf-8"))


def terms_of(rules: dict[str, Any]) -> set[str]:
    every = [*rules["required"], *rules["falsifiers"]]
    return {term for one in every for part in one.get("all", [one]) for term in part["sum"]}


def solved(
    rules: list[dict[str, Any]], terms: list[str], against: Sequence[dict[str, Any]] = ()
) -> np.ndarray:
    """Return values of all terms with which every rule holds by a margin, and none of the others does."""
    parts = [(part, 1.0) for one in rules for part in one.get("all", [one])]
    parts += [(one.get("all", [one])[-1], -1.0) for one in against]
    rows, bounds = [], []
    for part, holds in parts:
        sign = holds * (-1.0 if part["is"] == "above" else 1.0)
        rows.append([sign * part["sum"].get(term, 0.0) for term in terms])
        bounds.append(sign * part["bound"] - 0.05)
    found = optimize.linprog(np.zeros(len(terms)), A_ub=rows, b_ub=bounds, bounds=[(-3, 3)] * len(terms))
    assert found.success, found.message
    return np.asarray(found.x)


def table(terms: list[str], means: np.ndarray) -> pd.DataFrame:
    rows = []
    for place, (term, mean) in enumerate(zip(terms, means, strict=True)):
        quantity, _, arm = term.removesuffix("]").partition("[")
        for seed in SEEDS:
            noise = NOISE[(seed + place) % len(NOISE)] / 20
            rows.append({"quantity": quantity, "arm": arm, "seed": seed, "value": mean + noise})
    return pd.DataFrame(rows)


@pytest.mark.parametrize("finding", RULES_FILE["findings"])
def test_every_finding_can_be_supported_refuted_and_left_open(judging: ModuleType, finding: str):
    rules = RULES_FILE["findings"][finding]
    terms = sorted(terms_of(rules))
    supported = table(terms, solved(rules["required"], terms, rules["falsifiers"]))
    assert judging.judge(supported, rules).word == "supported"
    for falsifier in rules["falsifiers"]:
        refuted = table(terms, solved([falsifier], terms))
        assert judging.judge(refuted, rules).word == "refuted", falsifier["name"]
    assert judging.judge(supported[supported["seed"] == 0], rules).word == "inconclusive"
    arms = sorted(set(supported["arm"]))
    for arm in arms:
        assert judging.judge(supported[supported["arm"] != arm], rules).word == "inconclusive", arm


@pytest.mark.parametrize("finding", RULES_FILE["findings"])
def test_exchanging_the_two_sides_of_a_required_rule_ends_the_support(judging: ModuleType, finding: str):
    rules = RULES_FILE["findings"][finding]
    terms = sorted(terms_of(rules))
    supported = table(terms, solved(rules["required"], terms, rules["falsifiers"]))
    for one in rules["required"]:
        ahead = [term for term, weight in one["sum"].items() if weight > 0]
        behind = [term for term, weight in one["sum"].items() if weight < 0]
        names = {ahead[0]: behind[0], behind[0]: ahead[0]}
        keys = supported["quantity"] + "[" + supported["arm"] + "]"
        moved = keys.map(lambda key, names=names: names.get(key, key)).str.removesuffix("]")
        parts = moved.str.partition("[")
        swapped = supported.assign(quantity=parts[0], arm=parts[2])
        assert judging.judge(swapped, rules).word != "supported", one["name"]


@pytest.fixture(scope="module")
def values() -> ModuleType:
    load_analysis(Path("analyses/pretraining.py"))
    from verdicts import values as found

    module: ModuleType = found
    return module


def test_values_of_models_are_those_of_the_deepest_tap_by_arm_and_seed(values: ModuleType):
    rows = [
        {
            "analysis": "probe", "model": model, "data": "d", "target": target, "tap": f"layer{k}|{readout}",
            "readout": readout, "depth": k / 4, "metric": "r2",
            "value": 0.1 * k + (target == "y") * 0.2 + place + (readout != "gap") * 5,
        }
        for place, model in enumerate(["ce seed-0 images", "ce seed-1 images", "moco-v2 seed-0 2-classes"])
        for target in ("x", "y")
        for k in (1, 4)
        for readout in ("gap", "grid(3)")
    ]  # fmt: skip
    table = ResultTable.from_rows(rows)
    found = values.of_models(table, "place", "r2", ["x", "y"])
    assert found[["arm", "seed"]].values.tolist() == [["ce", 0], ["ce", 1], ["moco-v2, 2-classes", 0]]
    assert found["value"].tolist() == pytest.approx([0.5, 1.5, 2.5])
    grid = values.of_models(table, "place", "r2", ["x"], "grid(3)")
    assert grid["value"].tolist() == pytest.approx([5.4, 6.4, 7.4])
    without_y = [row for row in rows if not (row["target"] == "y" and "moco" in row["model"])]
    found = values.of_models(ResultTable.from_rows(without_y), "place", "r2", ["x", "y"])
    assert found["value"].isna().tolist() == [False, False, True]


def states(metric: str, **value: float) -> ResultTable:
    kept = {"score": (["low", "mid", "high"], ""), "scratch": ([], "random"), "stats": ([], "stats"),
            "low_mid": (["low", "mid"], "random"), "mid_high": (["mid", "high"], "random"),
            "low": (["low"], "random"), "low_mid_stats": (["low", "mid"], "stats")}  # fmt: skip
    rows = [
        {"analysis": "reset", "model": "ce", "data": "d", "target": "boxes", "metric": metric,
         "value": value[name], "pretrain_seed": seed, "trial_seed": seed,
         "params": {"kept": own, "mode": mode}}
        for seed in (0, 1) for name, (own, mode) in kept.items()
    ]  # fmt: skip
    mean = {**rows[0], "pretrain_seed": None, "trial_seed": None, "metric": "gain"}
    return ResultTable.from_rows([*rows, mean])


@pytest.mark.parametrize(("metric", "sign"), [("ap", 1), ("normalised_error", -1)])
def test_values_of_states_are_turned_so_that_more_is_better(values: ModuleType, metric: str, sign: int):
    given = {name: k / 10 for k, name in enumerate(
        ("score", "scratch", "stats", "low_mid", "mid_high", "low", "low_mid_stats"))}  # fmt: skip
    found = values.of_states(states(metric, **given), "boxes")
    assert len(found) == 2 * 5
    first = found[found["seed"] == 0].set_index("quantity")["value"]
    assert first.to_dict() == {
        f"boxes.{name}": pytest.approx(sign * given[name])
        for name in ("score", "scratch", "stats", "low_mid", "mid_high")
    }


def test_values_of_errors_are_those_of_whole_backbones(values: ModuleType):
    table = states(
        "error_loc", score=0.3, scratch=0.1, stats=0, low_mid=0, mid_high=0, low=0, low_mid_stats=0
    )
    found = values.of_errors(table, "boxes", {"error_loc": "loc"})
    assert found.values.tolist() == [["boxes.loc", "ce", 0, 0.3], ["boxes.loc", "ce", 1, 0.3]]


def test_every_quantity_of_the_rules_is_one_that_is_made(values: ModuleType):
    made = {"own", "unseen", "place", "hue", "icc"}
    made |= {f"{task}.{state}" for task in ("boxes", "parts", "faces")
             for state in ("score", "scratch", "stats", "low_mid", "mid_high", "loc")}  # fmt: skip
    asked = {term.partition("[")[0] for rules in RULES_FILE["findings"].values() for term in terms_of(rules)}
    assert asked <= made
