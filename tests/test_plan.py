"""Plans: YAML, plan and call hold the same keys."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probekit.errors import InputError
from probekit.plan import Plan, check_settings, live_reference

VALUES = st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=8)
SETTINGS = st.dictionaries(
    st.text(min_size=1, max_size=8).filter(lambda name: name not in {"verb", "format"}),
    VALUES | st.lists(VALUES, max_size=3),
    max_size=4,
)


@given(SETTINGS)
@settings(deadline=None, max_examples=50)
def test_yaml_round_trip(given_settings: dict[str, object]):
    plan = Plan("probe", given_settings)
    assert Plan.from_yaml(plan.to_yaml()) == plan
    assert Plan.from_yaml(plan.to_yaml()).digest == plan.digest


@pytest.mark.parametrize("text", ["\x85", "\u2028 x", "é/ü", "a\nb", "\x00"])
def test_unusual_letters_survive(text: str):
    plan = Plan("probe", {"data": text, text: None})
    assert Plan.from_yaml(plan.to_yaml()) == plan


def test_a_plan_cannot_be_changed_in_place():
    plan = Plan("probe", {"data": "digits"})
    with pytest.raises(TypeError):
        plan.settings["data"] = "other"
    assert plan.having(data="other").settings["data"] == "other"
    assert plan.settings["data"] == "digits"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("verb: [", "YAML"),
        ("- a\n- b", "mapping"),
        ("models: [a]", "verb"),
        ("verb: probe\nformat: 99", "format 1"),
        ("verb: !!python/object/apply:os.system ['true']", "YAML"),
    ],
)
def test_bad_plans_are_refused_in_words(text: str, named: str):
    with pytest.raises(InputError, match=named):
        Plan.from_yaml(text)


def test_missing_file_is_named(tmp_path: Path):
    with pytest.raises(InputError, match="plan.yaml"):
        Plan.read(tmp_path / "plan.yaml")


def test_live_objects_are_found():
    plan = Plan(
        "probe", {"models": ["a:random", live_reference("backbone", "b", "0" * 64)], "data": "digits"}
    )
    assert plan.live == ["models"]


def test_settings_are_checked_against_the_verb():
    def verb(models: str, *, taps: str = "stages") -> None: ...

    check_settings(verb, {"models": "a"}, "probe")
    with pytest.raises(InputError, match="nearest are taps"):
        check_settings(verb, {"models": "a", "tap": "x"}, "probe")
    with pytest.raises(InputError, match="models"):
        check_settings(verb, {}, "probe")
