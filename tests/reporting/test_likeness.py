"""The headline of layers against layers: most alike layers of different models, never a layer and itself."""

from __future__ import annotations

import pytest

from probekit.cli.run import _headline
from probekit.reporting.facts import general_rows, reading_rows
from probekit.reporting.headline import headline_blocks
from probekit.reporting.likeness import likeness_blocks
from probekit.reporting.page import write_page
from probekit.results.table import ResultTable

LIKE = {("a t0", "b t0"): 0.4, ("a t1", "b t1"): 0.6, ("a t1", "b t2"): 0.8, ("a t2", "b t2"): 0.9}
LEVELS = {"t0": "low", "t1": "high", "t2": "high"}


def made(models=("a", "b", "random@0", "random@1")) -> ResultTable:
    layers = [(model, tap) for model in models for tap in LEVELS]
    rows = []
    for model, tap in layers:
        for other, beside in layers:
            names = (f"{model} {tap}", f"{other} {beside}")
            drawn = {"random@0": 0.1, "random@1": 0.3}.get(other, 0.2) if tap == beside else 0.25
            value = 1.0 if names[0] == names[1] else LIKE.get(names, LIKE.get(names[::-1], drawn))
            rows.append(
                {"analysis": "similarity", "model": model, "arch": "net", "tap": tap, "level": LEVELS[tap]}
                | {"target": names[1], "metric": "cka_debiased", "value": value, "n": 50, "data": "pets"}
                | {"ci_low": value - 0.1, "ci_high": value + 0.1, "ci_kind": "jackknife,groups of images"}
                | {"null": 0.0, "null_kind": "analytic, unrelated layers"}
            )
    known = {one: {"arch": "net", "random_init": one.startswith("random")} for one in models}
    return ResultTable(ResultTable.from_rows(rows).frame, {"models": known})


def test_the_most_alike_layers_of_each_level_stand_beside_their_own_controls():
    (block,) = likeness_blocks(made())
    assert (block.data, block.n, block.null_kind) == ("pets", "50", "analytic, unrelated layers")
    assert list(block.levels) == ["low", "high"]
    (low,), (high,) = block.levels["low"], block.levels["high"]
    assert (low.one, low.other, low.value.text) == ("a t0", "b t0", "0.400")
    # Not 1, the likeness of a layer to itself.
    assert (high.one, high.other, high.value.text) == ("a t2", "b t2", "0.900")
    assert high.value.ends == "0.800 to 1.000"
    assert (high.random.text, high.random.ends) == ("0.200", "0.100 to 0.300")


def test_one_model_is_compared_with_its_controls():
    (block,) = likeness_blocks(made(("a", "random@0")))
    assert {row.other.split()[0] for rows in block.levels.values() for row in rows} == {"random@0"}
    assert likeness_blocks(made(("a",))) == []


def test_the_command_line_says_it():
    lines = _headline(made()).splitlines()
    assert lines[0].startswith("pets: Debiased CKA")
    assert lines[1] == "  low    a t0 ~ b t0: 0.400 [0.300 to 0.500]  null 0.000  random init 0.200"
    assert len(lines) == 3


def test_the_page_has_it_instead_of_best_taps_and_prints_every_null(tmp_path):
    table = made()
    assert headline_blocks(table) == []
    text = write_page({"similarity": table}, {}, tmp_path / "index.html", title="Alike").read_text()
    assert "most alike layers of different models" in text
    assert "Kernel alignment" in text
    assert "null 0.000 (analytic, unrelated layers)" in text
    assert "paired with other images" in text
    assert "at its best tap" not in text
    assert "test images" not in text


def test_families_hold_their_metrics_and_variants_and_others_come_first():
    names = ("icc", "icc_l2", "cdnv", "unheard_of")
    rows = [
        {"analysis": "geometry", "metric": name, "value": 0.5, "null": k / 10, "null_kind": "permuted,20"}
        for name in names
        for k in (1, 2)
    ]
    table = ResultTable.from_rows([row | {"tap": f"t{i}"} for i, row in enumerate(rows)])
    families = reading_rows({"geometry": table})
    assert [[one["name"] for one in family["metrics"]] for family in families] == [
        ["unheard_of"],
        ["icc", "icc_l2"],
        ["cdnv"],
    ]
    assert families[1]["title"].startswith("Variance")
    assert families[1]["metrics"][0]["facts"] == "to 1; null 0.100 to 0.200 (permuted, 20 draws)"
    assert "class labels were permuted" in general_rows({"geometry": table})[0]["text"]


@pytest.mark.parametrize(
    ("metric", "split", "title"), [("icc", "unseen", "highest"), ("accuracy", "test", "best tap")]
)
def test_taps_are_best_only_where_one_end_is_better(metric, split, title, tmp_path):
    rows = [
        {"model": "a", "tap": f"t{i}", "metric": metric, "value": i / 4, "split": split, "n": 9}
        for i in (1, 2)
    ]
    text = write_page({"t": ResultTable.from_rows(rows)}, {}, tmp_path / "i.html", title="x").read_text()
    assert title in text.split('id="headline"')[1].split("</h2>")[0]
    assert ("9 test images" in text) == (split == "test")
