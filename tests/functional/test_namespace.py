"""The public namespace: every name resolves, and light names stay light."""

from __future__ import annotations

import subprocess
import sys

import pytest

from probekit import functional

HEAVY = {
    "fit_softmax",
    "fit_sigmoid",
    "SoftmaxPath",
    "SigmoidPath",
    "nearest_neighbours",
    "vote",
    "vote_neighbours",
}


def test_every_name_resolves_and_is_no_submodule():
    for name in functional.__all__:
        assert getattr(functional, name).__name__ == name
        assert getattr(functional, name).__module__.startswith("probekit.functional.")
        assert getattr(functional, name).__doc__
        assert name not in functional._HOMES.values()
    assert dir(functional) == functional.__all__
    with pytest.raises(AttributeError, match="no attribute 'fit_forest'"):
        functional.fit_forest  # noqa: B018


def test_only_what_computes_on_devices_loads_torch():
    light = sorted(set(functional.__all__) - HEAVY)
    code = (
        "import sys; import probekit.functional as f\n"
        f"for name in {light}: getattr(f, name)\n"
        "print([name for name in ('torch', 'pandas', 'sklearn', 'timm') if name in sys.modules])"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert told.stdout.strip() == "[]"
