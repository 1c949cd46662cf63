"""What analyses share: arms over their seeds, on planted tables."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.stats import t as student

from probekit import ResultTable
from probekit.running import load_analysis

SEEDS = range(4)
NOISE = np.array([-0.02, 0.0, 0.01, 0.01])


@pytest.fixture(scope="module")
def arms() -> ModuleType:
    load_analysis(Path("analyses/pretraining.py"))
    from ladders import arms

    found: ModuleType = arms
    return found


def planted(**at: float) -> ResultTable:
    """Return R² of x: ``ARM_RUNG`` is an arm at the mean given, four seeds each; and three random inits."""
    models = {
        f"{arm} seed-{seed} {rung}": value + NOISE[seed] * (1 + (arm != "ce"))
        for (arm, rung), value in ((key.split("_"), value) for key, value in at.items())
        for seed in SEEDS
    }
    models |= {"random@0": 0.1, "random@1": 0.2, "random@2": 0.3}
    rows = [
        {
            "analysis": "probe", "model": name, "data": "d", "target": "x", "tap": "layer4|gap",
            "readout": "gap", "depth": 1.0, "metric": "r2", "value": value,
        }
        for name, value in models.items()
    ]  # fmt: skip
    return ResultTable.from_rows(rows)


def differences(table: ResultTable, model: str, start: str) -> dict[str, object]:
    own = table.where(model=model, metric="r2_difference").frame
    (found,) = own[own["params"].str.contains(f'"from":"{start}"')].to_dict("records")
    return {str(key): value for key, value in found.items()}


def test_means_have_a_t_interval_over_seeds(arms: ModuleType):
    table = arms.over_seeds(planted(ce_images=0.5))
    (found,) = table.where(model="ce", metric="r2").frame.to_dict("records")
    half = student.ppf(0.975, 3) * NOISE.std(ddof=1) / 2
    np.testing.assert_allclose(
        [found["value"], found["ci_low"], found["ci_high"]], [0.5, 0.5 - half, 0.5 + half]
    )
    assert found["n"] == 4


def test_differences_from_random_init_are_welchs(arms: ModuleType):
    found = differences(arms.over_seeds(planted(ce_images=0.5)), "ce", "random init")
    a, b = NOISE.var(ddof=1) / 4, 0.01 / 3
    freedom = (a + b) ** 2 / (a**2 / 3 + b**2 / 2)
    half = student.ppf(0.975, freedom) * np.sqrt(a + b)
    np.testing.assert_allclose(
        [found["value"], found["ci_low"], found["ci_high"]], [0.3, 0.3 - half, 0.3 + half]
    )


def test_differences_from_cross_entropy_are_paired_by_seed(arms: ModuleType):
    found = differences(arms.over_seeds(planted(ce_images=0.5, supcon_images=0.7)), "supcon", "ce")
    # The second arm has twice the noise, in the same order: what is left of it is the noise itself.
    half = student.ppf(0.975, 3) * NOISE.std(ddof=1) / 2
    np.testing.assert_allclose(
        [found["value"], found["ci_low"], found["ci_high"]], [0.2, 0.2 - half, 0.2 + half]
    )


@pytest.mark.parametrize(
    ("at", "status"),
    [
        ({"supcon_images": 0.7, "supcon_time": 0.6}, "ok"),
        ({"supcon_images": 0.7, "supcon_time": 0.4}, "does not count: another sign at equal time"),
        ({"supcon_images": 0.7}, "does not count yet: not trained for equal time"),
        ({"supcon_images": 0.501, "supcon_time": 0.6}, "does not count: the interval holds 0"),
    ],
)
def test_a_difference_counts_if_its_sign_holds_at_equal_images_and_time(
    arms: ModuleType, at: dict[str, float], status: str
):
    assert differences(arms.over_seeds(planted(ce_images=0.5, **at)), "supcon", "ce")["status"] == status


def test_without_cross_entropy_nothing_is_compared_with_it(arms: ModuleType):
    frame = arms.over_seeds(planted(supcon_images=0.7)).frame
    assert not frame["params"].str.contains('"from":"ce"').any()


def test_the_figure_has_a_panel_a_target_and_every_arm(arms: ModuleType):
    figure = arms.draw_arms(planted(ce_images=0.5, supcon_images=0.7, supcon_time=0.6))
    (axes,) = figure.axes
    assert [one.get_text() for one in axes.get_yticklabels()] == ["ce", "supcon", "supcon, time"]


def test_a_ladder_has_the_interval_of_a_lone_seed_and_of_the_mean_of_several(arms: ModuleType):
    from ladders.climbing import draw_rungs

    shared = {
        "analysis": "probe",
        "data": "d",
        "target": "x",
        "tap": "layer4|gap",
        "metric": "r2",
        "depth": 1.0,
    }
    lone = {"model": "ce seed-0 f", "value": 0.5, "ci_low": 0.4, "ci_high": 0.7, "null": -0.2}
    several = [
        {
            "model": f"ce seed-{seed} fr",
            "value": 0.6 + NOISE[seed],
            "ci_low": 0.0,
            "ci_high": 1.0,
            "null": 0.0,
        }
        for seed in SEEDS
    ]
    random = {"model": "random@0", "value": 0.1, "null": 9.0}
    tables = {
        "pretrain": ResultTable.from_rows(
            [{**shared, "model": f"ce seed 0, {one}", "value": 0.0} for one in ("f", "fr")]
        ),
        "transfer": ResultTable.from_rows([{**shared, **one} for one in (lone, *several, random)]),
    }
    (axes,) = draw_rungs(tables, {}, []).axes
    (bars,) = axes.containers[0].lines[2]
    ends = [segment[:, 1].tolist() for segment in bars.get_segments()]
    half = student.ppf(0.975, 3) * NOISE.std(ddof=1) / 2
    np.testing.assert_allclose(ends, [[0.4, 0.7], [0.6 - half, 0.6 + half]])
    dashed, dotted = (one.get_ydata()[0] for one in axes.lines[-2:])
    # The null is that of the arms; the value of random init is a line of its own.
    np.testing.assert_allclose([dashed, dotted], [-0.2 / 5, 0.1])
