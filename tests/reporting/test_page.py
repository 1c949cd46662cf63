"""The page: self-contained, harmless, small, and saying what the tables say."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from probekit.errors import InputError
from probekit.figures import draw_probe, save_figures
from probekit.figures.style import finish, new_figure
from probekit.reporting import page as page_module
from probekit.reporting.embedding import embed_figures
from probekit.reporting.page import MAX_BYTES, write_page
from probekit.results.table import ResultTable

NASTY = "<script>alert(1)</script>"
VOID = {"meta", "img", "br", "line", "rect", "circle"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; complains about tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self.open = [], [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data.strip())

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.texts))


def read(path):
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def table(table):
    """The rows a page's headline and figures need."""
    return table.where(metric=["accuracy", "r2", "class_recall"], tap=[None, *table.taps[-3:]])


@pytest.fixture(scope="module")
def figures(table):
    return {"depth-r2": table.plot(metric="r2"), "class-recall": table.plot("class_recall", model="moco")}


def test_the_page_says_who_what_and_how(table, figures, tmp_path):
    page = read(
        write_page(
            {"probe": table}, figures, tmp_path / "index.html", title="Flowers", question="Which level?"
        )
    )
    wanted = [
        *("Flowers", "Which level?", "indicative", "318 of 318 weights filled", "resize 256 bicubic"),
        *("moco.pth (online)", "23.5 M parameters", "1280 / 320 / 400", "species (10 classes)"),
        *("probekit probe --model", "torch 2.14.0", "6 min 52 s", "layer4.2|gap", "64 %, 20 %"),
        *("permuted within class, 20 draws", "bootstrap over test units", "Fewer than 10 fitting images"),
        table.provenance["models"]["moco"]["weights"][:12],
    ]
    for words in wanted:
        assert words in page.text, words
    best = table.best("accuracy", model="moco").frame.iloc[0]
    assert f"{best['value']:.3f}" in page.text
    readings = {tag for tag in page.texts if tag == "Mean average precision"}
    assert not readings


def test_nothing_is_loaded_from_elsewhere_and_nothing_runs(table, figures, tmp_path):
    page = read(write_page({"probe": table}, figures, tmp_path / "index.html", title="t"))
    assert not {"script", "link", "iframe", "object", "embed", "form", "base"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        if name in ("src", "href", "srcset", "action", "data", "poster"):
            assert value.startswith(("data:image/", "#")), (tag, value)
    style = (tmp_path / "index.html").read_text().split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert page.tags.count("img") == 2


def test_every_name_is_printed_and_none_is_run(make_table, tmp_path):
    table = make_table(
        n_test=40, classes=(NASTY, "b"), factors=(), class_target=NASTY, models=("moco", "random@0")
    )
    frame = table.frame.replace(
        {"moco": NASTY, "flowers": NASTY, "bootstrap,test units": NASTY, "permuted,20": NASTY}
    )
    frame["tap"] = NASTY + frame["tap"]
    facts = ("arch", "weights", "checkpoint", "coverage", "preprocessing_text")
    provenance = {
        "models": {NASTY: dict.fromkeys(facts, NASTY)},
        "data": {NASTY: {"digest": NASTY, "targets": {NASTY: {"kind": NASTY}}, "seen_in_pretraining": NASTY}},
        "command": NASTY, "versions": {NASTY: NASTY}, "settings": {NASTY: NASTY}, "warnings": [NASTY],
    }  # fmt: skip
    table = ResultTable(frame, provenance)
    figures = {NASTY: finish(new_figure(1, 1), f'"{NASTY}')}
    path = write_page(
        {NASTY: table},
        figures,
        tmp_path / "index.html",
        title=NASTY,
        question=NASTY,
        links={NASTY: f'"{NASTY}'},
    )
    page = read(path)
    assert "script" not in page.tags
    assert page.text.count(NASTY) > 30
    assert ("img", "alt", f'"{NASTY}') in page.attributes


def test_the_same_page_has_the_same_bytes(table, figures, tmp_path):
    for name in ("one", "two"):
        write_page({"probe": table}, figures, tmp_path / f"{name}.html", title="t")
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()


def test_links_lead_to_files_that_are_there(table, figures, tmp_path):
    ResultTable(table.frame).write(tmp_path)
    save_figures({"depth-r2": figures["depth-r2"]}, tmp_path / "figures")
    page = read(write_page({"probe": table}, figures, tmp_path / "index.html", title="t"))
    found = {
        value
        for tag, name, value in page.attributes
        if tag == "a" and name == "href" and not value.startswith("#")
    }
    assert found == {"table.csv", "figures/depth-r2.svg"}
    assert all((tmp_path / place).is_file() for place in found)


def test_links_of_several_tables_are_told_apart(table, tmp_path):
    ResultTable(table.frame).write(tmp_path / "tables" / "probe")
    tables = {"probe": table, "other": table.where(model="moco")}
    page = read(write_page(tables, {}, tmp_path / "index.html", title="t", links={"other": "x/y.csv"}))
    found = [value for tag, name, value in page.attributes if name == "href" and not value.startswith("#")]
    assert found == ["tables/probe/table.csv", "x/y.csv"]


def test_too_many_figures_are_left_out_with_a_note(table, tmp_path, monkeypatch):
    figures = {name: finish(new_figure(2, 1), name) for name in ("one", "two", "three")}
    room = len(embed_figures({"one": figures["one"]})[0].source)
    monkeypatch.setattr(page_module, "FIGURE_BYTES", int(2.5 * room))
    page = read(write_page({"t": table}, figures, tmp_path / "some.html", title="t"))
    assert page.tags.count("img") == 2
    assert "three Left out to keep this page small" in page.text


def test_large_svgs_become_pngs_where_those_are_smaller(figures, monkeypatch):
    form = {name: one.source[:14] for name, one in zip(figures, embed_figures(figures), strict=True)}
    assert set(form.values()) == {"data:image/svg"}
    monkeypatch.setattr("probekit.reporting.embedding.LARGE_SVG_BYTES", 1000)
    monkeypatch.setattr(
        "probekit.figures.style.render", lambda _, form: b" " * {"svg": 3000, "png": 2000}[form]
    )
    assert embed_figures(figures)[0].source.startswith("data:image/png")
    monkeypatch.setattr(
        "probekit.figures.style.render", lambda _, form: b" " * {"svg": 3000, "png": 4000}[form]
    )
    assert embed_figures(figures)[0].source.startswith("data:image/svg")


def test_a_page_that_cannot_be_small_is_refused(table, tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "MAX_BYTES", 50_000)
    with pytest.raises(InputError, match="fewer tables"):
        write_page({"t": table}, {}, tmp_path / "index.html", title="t")
    assert not (tmp_path / "index.html").exists()


def test_long_tables_are_cut_on_the_page_and_say_so(table, tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "PRINTED_ROWS", 50)
    page = read(write_page({"probe": table, "more": table}, {}, tmp_path / "index.html", title="t"))
    assert f"the first 50 of {len(table)} rows" in page.text
    assert page.text.count("Show") == 1


def test_comparisons_have_a_section(table, tmp_path):
    made = table.compare(metric="accuracy", target="species", baseline="supervised", at="best", draws=200)
    page = read(write_page({"probe": table, "comparison": made}, {}, tmp_path / "index.html", title="t"))
    assert "Paired comparisons" in page.text
    assert "p, Holm" in page.text


def test_tables_without_provenance_or_primary_metrics_still_make_a_page(tmp_path):
    rows = [{"model": "a", "metric": "effective_rank", "value": 12.0, "tap": tap} for tap in ("t0", "t1")]
    page = read(write_page({"x": ResultTable.from_rows(rows)}, {}, tmp_path / "a.html", title="t"))
    assert "Effective rank" in page.text
    page = read(write_page({"x": ResultTable.from_rows([])}, {}, tmp_path / "b.html", title="t"))
    assert "0 rows" in page.text
    with pytest.raises(InputError, match="at least one table"):
        write_page({}, {}, tmp_path / "c.html", title="t")


def test_stacked_runs_are_all_named(table, tmp_path):
    other = ResultTable(
        table.frame.assign(run_id="second"), {**table.provenance, "run_id": "second", "command": "again"}
    )
    page = read(write_page({"both": ResultTable.concat([table, other])}, {}, tmp_path / "a.html", title="t"))
    assert "4f1d0c2ab9e7" in page.text
    assert "again" in page.text


@pytest.mark.slow
def test_a_hundred_classes_and_many_factors_stay_below_the_limit(make_table, tmp_path):
    classes, factors = [f"class {i}" for i in range(100)], [f"f{i}" for i in range(20)]
    table = make_table(n_test=600, classes=classes, factors=factors, models=("moco", "exemplar", "random@0"))
    figures = draw_probe(table)
    path = write_page({"probe": table}, figures, tmp_path / "index.html", title="t")
    assert path.stat().st_size < MAX_BYTES / 2
    page = read(path)
    assert page.tags.count("img") == len(figures) == 9
    assert "Left out" not in page.text
