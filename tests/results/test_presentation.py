"""Tables for people: right numbers, honest marks, harmless names."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probekit.errors import InputError
from probekit.results.presentation import escape_latex, grid
from probekit.results.table import ResultTable

NASTY = "<script>alert(1)</script> & 50%_$x$ | {y}"


def made(values, metric="accuracy"):
    taps = (("t1", 0.5), ("t0", 0.1))
    rows = [
        {
            "model": model,
            "tap": tap,
            "depth": depth,
            "value": value,
            "ci_low": value - 0.02,
            "ci_high": value + 0.04,
        }
        for model, row in values.items()
        for (tap, depth), value in zip(taps, row, strict=True)
    ]
    shared = {"target": "y", "metric": metric, "ci_kind": "bootstrap"}
    return ResultTable.from_rows(shared | row for row in rows)


def test_wide_orders_taps_by_depth_and_shows_half_the_interval():
    frame = made({"a": [0.5, 0.25]}).wide()
    assert list(frame.columns) == ["t0", "t1"]
    assert frame.loc["a"].tolist() == ["0.250 ± 0.030", "0.500 ± 0.030"]
    assert made({"a": [0.5, 0.25]}).wide(percent=True, decimals=1).loc["a", "t1"] == "50.0 ± 3.0"


def test_wide_by_params_and_by_target(table):
    few = table.where(tap="layer4.2|gap").wide("few_shot_accuracy", columns="shots")
    assert list(few.columns) == ["1", "2", "5", "10", "20"]
    both = table.wide("r2", columns="target")
    assert list(both.columns) == ["angle_deg", "size_px"]
    best = table.best("r2", target="size_px", model="moco").frame["value"].iloc[0]
    assert both.loc["moco", "size_px"].startswith(f"{best:.3f}")


def test_several_targets_get_rows_of_their_own(table):
    frame = table.wide("r2")
    assert frame.index.names == ["model", "target"]
    assert len(frame) == 12


def test_several_rows_for_one_cell_are_refused(table):
    with pytest.raises(InputError, match="several for"):
        table.wide("few_shot_accuracy")
    with pytest.raises(InputError, match=r"'shot'.*shots"):
        table.wide("few_shot_accuracy", columns="shot")


def test_missing_values_are_dashes_and_negative_numbers_have_a_minus_sign():
    table = ResultTable.from_rows(
        [
            {"model": "a", "tap": "t", "metric": "r2", "value": -0.25, "target": "y"},
            {"model": "b", "tap": "t", "metric": "r2", "status": "dead", "target": "y"},
        ]
    )
    assert table.wide()["t"].tolist() == ["−0.250", "–"]
    assert "$-$0.250" in table.to_latex()


def test_the_title_says_metric_target_and_data(table):
    assert grid(table, "r2", "size_px", "tap").title == "R² · size_px · flowers"
    assert grid(table, "r2", None, "tap").title == "R² · flowers"


def test_marks_compare_models_in_a_column_and_leave_controls_out():
    table = made({"a": [0.5, 0.2], "b": [0.6, 0.1], "random@0": [0.9, 0.9]})
    assert grid(table, None, None, "tap").marks() == [[1, 2], [2, 1], [0, 0]]
    assert "per column" in grid(table, None, None, "tap").note


def test_marks_compare_taps_where_there_is_one_model():
    assert grid(made({"a": [0.5, 0.2]}), None, None, "tap").marks() == [[2, 1]]


def test_marks_know_that_lower_can_be_better_and_share_ties():
    assert grid(made({"a": [0.5, 0.2]}, "bits"), None, None, "tap").marks() == [[1, 2]]
    assert grid(made({"a": [0.5, 0.5]}), None, None, "tap").marks() == [[1, 1]]
    assert grid(made({"a": [0.5, 0.2]}, "some_number"), None, None, "tap").marks() == [[0, 0]]


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.texts = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.texts.append(data)


def parsed(text):
    reader = Tags()
    reader.feed(text)
    return reader


def test_html_escapes_every_name():
    rows = [
        {"model": NASTY, "tap": NASTY, "target": NASTY, "metric": metric, "value": 0.5, "ci_kind": NASTY,
         "ci_low": 0.4, "ci_high": 0.6}
        for metric in ("accuracy", NASTY)
    ]  # fmt: skip
    reader = parsed(ResultTable.from_rows(rows)._repr_html_())
    assert "script" not in reader.tags
    assert reader.texts.count(NASTY) == 2


def test_html_marks_best_and_second():
    text = made({"a": [0.5, 0.2], "b": [0.6, 0.1]})._repr_html_()
    assert "<b>0.600</b>" in text
    assert "<u>0.500</u>" in text


def test_html_of_an_empty_table_and_of_one_that_needs_narrowing(table):
    assert "0 rows" in ResultTable.from_rows([])._repr_html_()
    few = table.where(metric="few_shot_accuracy")
    assert "several for" in few._repr_html_()


def test_a_table_with_many_targets_stays_short(make_table):
    wide = make_table(n_test=50, factors=[f"factor {i}" for i in range(12)], models=("moco",))
    assert wide._repr_html_().count("<table>") == 4
    assert "9 more" in wide._repr_html_()


def test_markdown_has_one_cell_per_column_even_with_nasty_names():
    table = ResultTable.from_rows(
        [{"model": NASTY, "tap": "a|b", "metric": "accuracy", "value": 0.5, "target": "y"}]
    )
    for line in table.to_markdown().splitlines():
        assert len(re.findall(r"(?<!\\)\|", line)) == 3


def test_markdown_needs_no_tabulate(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tabulate", None)
    assert "**0.500" in made({"a": [0.5, 0.2]}).to_markdown()


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=30))
def test_latex_specials_never_stay_bare(text):
    escaped = escape_latex(text)
    bare = re.sub(r"\\text[a-z]+\{\}|\\[&%$#_{}]", "", escaped)
    assert not set(bare) & set('&%$#_{}~^\\<>|"\n')


def test_latex_is_balanced_and_written(tmp_path):
    table = made({"a_1": [0.5, 0.2], "b": [0.6, 0.1]})
    text = table.to_latex(caption="50% of_it", label="tab:x", path=tmp_path / "t.tex")
    assert (tmp_path / "t.tex").read_text() == text
    for begin, end in ((r"\begin{table}", r"\end{table}"), (r"\begin{tabular}{lcc}", r"\end{tabular}")):
        assert text.count(begin) == text.count(end) == 1
    assert r"\toprule" in text
    assert r"a\_1" in text
    assert r"\textbf{0.600} {\scriptsize$\pm$ 0.030}" in text
    assert r"\underline{0.500}" in text
    assert r"\caption{50\% of\_it}" in text


def test_values_do_not_depend_on_the_order_of_rows(table):
    mixed = ResultTable(table.frame.sample(frac=1, random_state=1))
    one, two = table.wide("accuracy"), mixed.wide("accuracy")
    assert one.equals(two.loc[one.index, one.columns])
    assert list(one.columns) == list(two.columns)
    assert not np.asarray(one == "").any()
