"""The catalogue of errors: every class has its place there, and its commands exist."""

from __future__ import annotations

import pickle
import re

import pytest
import typer

from probekit import errors
from probekit.cli.main import app
from tests.conftest import ROOT

CATALOGUE = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
CLASSES = {
    name: one
    for name, one in vars(errors).items()
    if isinstance(one, type) and issubclass(one, errors.ProbekitError) and one is not errors.ProbekitError
}


def test_every_error_has_its_heading_and_every_heading_its_error():
    assert set(re.findall(r"^### (\w+)$", CATALOGUE, re.MULTILINE)) == set(CLASSES)


def test_every_verb_it_names_exists():
    verbs = set(re.findall(r"`probekit (\w+)", CATALOGUE))
    assert verbs
    assert verbs <= set(typer.main.get_command(app).commands)


def test_every_key_of_a_model_is_listed():
    from probekit.backbones.spec import READ_KEY

    assert f"keys are `{', '.join(READ_KEY)}`" in CATALOGUE


@pytest.mark.parametrize("name", CLASSES)
def test_an_error_says_three_things_and_survives_a_process(name):
    error = CLASSES[name]("a cat", "a dog", "Feed it.")
    assert str(error) == "Expected a cat; got a dog. Feed it."
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is CLASSES[name]
    assert (again.expected, again.came, again.todo) == ("a cat", "a dog", "Feed it.")
