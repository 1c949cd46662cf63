"""The verbs that the campaign of faults runs."""

from pathlib import Path

import pytest

from tests.faults.running import VERBS, Undisturbed


@pytest.fixture(params=VERBS)
def undisturbed(request: pytest.FixtureRequest, tmp_path: Path) -> Undisturbed:
    return Undisturbed(request.param, tmp_path / request.param)


@pytest.fixture(scope="session")
def features(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed("extract", tmp_path_factory.mktemp("extract"))
