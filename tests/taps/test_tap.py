from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probekit.errors import InputError
from probekit.taps.tap import READOUTS, Tap, grid_side, parse_tap

names = st.text(
    st.characters(blacklist_categories=["Z", "C"], blacklist_characters="#@:|,"), min_size=1
).filter(lambda text: not any(letter.isspace() for letter in text))
keys = names.filter(lambda text: not (text.isascii() and text.isdigit()))
readouts = st.sampled_from([*READOUTS, "auto", "grid(1)", "grid(14)"])
taps = st.builds(
    Tap,
    path=names,
    call=st.none() | st.integers(0, 99),
    element=st.none() | st.integers(0, 99) | keys,
    side=st.sampled_from(["in", "out"]),
    readout=readouts,
)


@given(taps)
@settings(deadline=None, max_examples=50)
def test_text_form_reads_back(tap):
    assert parse_tap(str(tap)) == tap


@given(taps, taps)
@settings(deadline=None, max_examples=50)
def test_different_taps_have_different_texts(one, other):
    assert (str(one) == str(other)) == (one == other)


@pytest.mark.parametrize(
    ("text", "tap"),
    [
        ("layer4", Tap("layer4")),
        ("layer1.0.relu#1|gap", Tap("layer1.0.relu", call=1, readout="gap")),
        ("stage4.1@3", Tap("stage4.1", element=3)),
        ("encoder@last_hidden|tokens", Tap("encoder", element="last_hidden", readout="tokens")),
        ("fc:in", Tap("fc", side="in")),
        ("a#0@1:in|grid(4)", Tap("a", 0, 1, "in", "grid(4)")),
        ("blocks.3|cls+patch_mean", Tap("blocks.3", readout="cls+patch_mean")),
    ],
)
def test_spelling(text, tap):
    assert parse_tap(text) == tap
    assert str(tap) == text


@pytest.mark.parametrize(
    "text",
    ["", "a b", "a#last", "a#-1", "a@", "a#", "a|", "a|average", "a|grid(0)", "a|grid", "a:out", "a,b",
     "a|gap|cls", "a:in#0", "a|gap\n"],
)  # fmt: skip
def test_other_spellings_are_refused(text):
    with pytest.raises(InputError):
        parse_tap(text)


@pytest.mark.parametrize(
    "values",
    [{"path": ""}, {"call": -1}, {"element": -1}, {"element": "0"}, {"side": "both"}, {"readout": "avg"}],
)
def test_impossible_taps_are_refused(values):
    with pytest.raises(InputError):
        Tap(**{"path": "a", **values})


def test_grid_side():
    assert grid_side("grid(12)") == 12
    assert grid_side("gap") is None


def test_taps_are_named_without_torch():
    code = "import sys, probekit.taps.tap, probekit.backbones.levels; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
