"""The verbs that the campaign of faults runs."""

from pathlib import Path

import pytest

from tests.faults.running import VERBS, Undisturbed


@pytest.fixture(params=VERBS)
def undisturbed(request: pytest.FixtureRequest, tmp_path: Path) -> Undisturbed:
    return Undisturbed(request.param, tmp_path / request.param)
