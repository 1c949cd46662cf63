from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probekit.data.specs import DataSpec, TargetChoice, parse_targets
from probekit.errors import InputError

text = st.text(st.characters(exclude_characters=",", exclude_categories=["Cs"]), max_size=12)
keys = st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True)
names = st.text(st.characters(exclude_characters=",+:", exclude_categories=["Cs"]), min_size=1, max_size=8)
names = names.filter(lambda name: name == name.strip())


@settings(deadline=None, max_examples=50)
@given(source=text.filter(str.strip), options=st.dictionaries(keys, text, max_size=4))
def test_words_survive_the_round_trip(source, options):
    spec = DataSpec(source, tuple(options.items()))
    assert DataSpec.parse(str(spec)) == spec


@settings(deadline=None, max_examples=50)
@given(words=st.text(max_size=30))
def test_any_text_parses_to_itself_or_is_refused(words):
    try:
        spec = DataSpec.parse(words)
    except InputError:
        return
    assert str(spec) == words


@settings(deadline=None, max_examples=50)
@given(
    choices=st.lists(
        st.builds(
            TargetChoice,
            st.lists(names, min_size=1, max_size=3).map(tuple),
            st.sampled_from([None, "class", "multilabel", "continuous"]),
        ),
        min_size=1,
        max_size=3,
        unique_by=lambda choice: choice.name,
    )
)
def test_targets_survive_the_round_trip(choices):
    written = ",".join(choice.name + (f":{choice.kind}" if choice.kind else "") for choice in choices)
    assert parse_targets(written) == tuple(choices)


def test_commas_in_paths_and_values_stay():
    spec = DataSpec.parse("my,folder/a=b,split=test,target=x,y:class")
    assert spec.source == "my,folder/a=b"
    assert spec.options == (("split", "test"), ("target", "x,y:class"))


def test_defaults_come_after_the_words():
    spec = DataSpec.parse("digits,seed=3").with_defaults(
        {"seed": 1, "limit": 5, "target": ["a", "b"], "skip_unreadable": True, "name": None}
    )
    assert str(spec) == "digits,seed=3,limit=5,target=a,b,skip_unreadable=yes"


@pytest.mark.parametrize("words", ["", "  ", ",limit=3", "digits,limit=3,limit=4"])
def test_unclear_words_are_refused(words):
    with pytest.raises(InputError):
        DataSpec.parse(words)


def test_spec_that_would_be_read_otherwise_is_refused():
    with pytest.raises(InputError):
        DataSpec("a,limit=3")
    with pytest.raises(InputError):
        DataSpec("a", (("Key", "3"),))


def test_unknown_key_names_near_ones():
    with pytest.raises(InputError, match=r"Near: limit"):
        DataSpec.parse("digits,limt=3").check_keys(("limit", "split"))


@pytest.mark.parametrize("value", ["-1", "1.5", "x", "", "0"])
def test_counts_are_whole_numbers(value):
    with pytest.raises(InputError, match="at least 1"):
        DataSpec("digits", (("limit", value),)).count("limit", 5, least=1)


@pytest.mark.parametrize("words", ["", "a,,b", "a:kind", "a+", "a,a", "a:"])
def test_unclear_targets_are_refused(words):
    with pytest.raises(InputError):
        parse_targets(words)
