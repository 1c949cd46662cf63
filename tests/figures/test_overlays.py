"""Maps over images and cascades of resets, from made-up tables."""

from __future__ import annotations

import numpy as np
import pytest

from probekit.errors import InputError
from probekit.figures import draw_attribution
from probekit.figures.curves import plot_depth
from probekit.figures.overlays import plot_cascade, plot_overlays
from probekit.files import safe_name
from probekit.results.table import ResultTable

TAPS = {"a": ("low", 0.0), "b": ("mid", 0.5), "c": ("high", 1.0)}


def table(*, data: tuple[str, ...] = ("photos",), empty: bool = False) -> ResultTable:
    rows, attachments = [], {}
    random = np.random.default_rng(0)
    inside = np.zeros((2, 16, 16), np.uint8)
    inside[:, 4:9, 4:9] = 255
    for name in data:
        for model in ("one", "random@0"):
            for tap, (level, depth) in TAPS.items():
                shared = {
                    "model": model, "arch": "net", "data": name, "target": "class", "tap": f"{tap}|gap",
                    "block": tap, "level": level, "depth": depth, "split": "test", "n": 40,
                }  # fmt: skip
                baselines = {"uniform": 0.1, "centred Gaussian": 0.3}
                rows.append(shared | {
                    "metric": "energy_inside", "value": 0.2 + depth / 2, "ci_low": 0.1 + depth / 2,
                    "ci_high": 0.3 + depth / 2, "null": 0.15, "null_low": 0.1, "null_high": 0.2,
                    "null_kind": "permuted,3", "params": {"baselines": baselines},
                })  # fmt: skip
                for step, reset in enumerate(np.arange(depth, -0.1, -0.5)):
                    rows.append(shared | {
                        "metric": "cascade_spearman", "value": 0.8 / (1 + step), "null": 0.1, "null_low": 0.0,
                        "null_high": 0.2, "params": {"reset_depth": float(reset)},
                    })  # fmt: skip
                maps = random.normal(size=(2, 4, 4)).astype(np.float32)
                attachments[f"maps/{name}/{safe_name(model)}/{safe_name(f'{tap}|gap')}/class.npz"] = {
                    "images": random.integers(0, 255, (2, 16, 16, 3), dtype=np.uint8),
                    "maps": -np.abs(maps) if empty else maps,
                    "inside": inside,
                    "scores": np.full((2, 1), np.nan if empty else 0.25),
                    "metrics": np.array(["energy_inside"]),
                    "classes": np.array(["cat", "dog"]),
                    "ids": np.array(["x", "y"]),
                }
    return ResultTable.from_rows(rows, {"analysis": "attribute"}, attachments)


def test_a_row_an_image_and_a_column_a_tap_with_scores_under_them():
    figure = plot_overlays(table(), "one")
    assert len(figure.axes) == 2 * 4
    assert figure.axes[1].get_title(loc="left") == "low: a\n0.20"
    assert figure.axes[0].get_xlabel() == "cat"
    assert [one.get_xlabel() for one in figure.axes[1:4]] == ["0.25"] * 3
    grey, colours = (one.get_array() for one in figure.axes[1].images)
    assert grey.shape == (16, 16)
    shown = table().attachments["maps/photos/one/" + safe_name("a|gap") + "/class.npz"]["maps"][0]
    # What is not positive is transparent.
    np.testing.assert_array_equal(colours[..., 3] == 0, shown <= 0)


def test_maps_without_a_positive_value_show_the_image_alone():
    figure = plot_overlays(table(empty=True), "one")
    assert len(figure.axes[1].images) == 1
    assert figure.axes[1].get_xlabel() == "–"


def test_baselines_are_lines_of_the_depth_curve():
    figure = plot_depth(table(), "energy_inside")
    levels = {float(line.get_ydata()[0]) for line in figure.axes[0].lines if len(set(line.get_ydata())) == 1}
    assert {0.1, 0.3} <= levels
    assert [one.get_text() for one in figure.legends[0].get_texts()] == [
        "one", "null", "random init", "centred Gaussian", "uniform"
    ]  # fmt: skip


def test_a_cascade_has_a_panel_a_level_and_goes_down_to_the_right():
    figure = plot_cascade(table())
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == [f"tap at the end of {one}" for one in ("low", "mid", "high")]
    low, high = figure.axes[2].get_xlim()
    assert low > high
    line = next(line for line in figure.axes[2].lines if line.get_marker() == "o")
    np.testing.assert_allclose(line.get_xdata(), [0, 0.5, 1])
    np.testing.assert_allclose(line.get_ydata(), [0.8 / 3, 0.4, 0.8])


def test_figures_of_a_table_are_named_by_data_set():
    assert list(draw_attribution(table())) == ["depth-energy_inside", "overlays-one", "cascade-spearman"]
    both = draw_attribution(table(data=("photos", "paintings")))
    assert "paintings-overlays-one" in both
    for draw in (plot_overlays, plot_cascade):
        with pytest.raises(InputError, match="one data set"):
            draw(table(data=("photos", "paintings")))
    with pytest.raises(InputError, match="'two'"):
        plot_overlays(table(), "two")
