"""The command line adds nothing: flags, YAML, call and plan are one thing."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

import probekit
from probekit.cli import options
from probekit.cli.main import app, main
from probekit.errors import InputError
from probekit.plan import Plan

MODEL = "net=resnet10t:random,size=32"
DATA = "digits,limit=60"
QUICK = ["--permutations", "2", "--penalties", "1,0.1", "--shots", "2", "--set", "bootstrap_draws=100",
         "--set", "few_shot_draws=2", "--set", "neighbours=3"]  # fmt: skip
runner = CliRunner()


def invoke(*words: str) -> str:
    result = runner.invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize(
    "verb", ["layers", "extract", "probe", "pretrain", "attribute", "diagnose", "report", "run", "demo"]
)
def test_help_has_an_example(verb: str):
    assert f"Example: probekit {verb}" in invoke(verb, "--help")


def test_help_starts_without_torch():
    script = "import sys; sys.argv = ['probekit', '--help']\nfrom probekit.cli.main import main\n" + (
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'pandas', 'matplotlib') if name in sys.modules])"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
    assert time.monotonic() - began < 20  # a hang, not a speed test


def test_layers_lists_blocks_and_writes_csv(tmp_path: Path):
    output = invoke("layers", MODEL, "--blocks", "--csv", str(tmp_path / "layers.csv"))
    assert "layer4.0" in output
    table = pd.read_csv(tmp_path / "layers.csv")
    assert set(table["path"]) > {"layer1.0.bn1", "fc"}


def test_extract_says_what_it_keeps_and_exports(tmp_path: Path):
    output = invoke("extract", "-m", MODEL, "-d", DATA, "-t", "stages,penultimate", "--store", tmp_path / "s",
                    "--export", tmp_path / "out")  # fmt: skip
    assert output.count("N D") == 5
    files = list((tmp_path / "out").rglob("*.npz"))
    assert len(files) == 5


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of ``probekit probe``."""
    place = tmp_path_factory.mktemp("run")
    invoke("probe", "-m", MODEL, "-d", DATA, "-t", "levels", "--random", "1", "-o", place / "out",
           "--store", place / "store", *QUICK)  # fmt: skip
    return place


@pytest.mark.slow
def test_probe_leaves_plan_tables_figures_and_page(finished: Path):
    out = finished / "out"
    plan = Plan.read(out / "plan.yaml")
    assert plan.verb == "probe"
    assert plan.settings["models"] == [MODEL]
    assert plan.settings["taps"] == ["levels"]
    assert plan.settings["penalties"] == [1.0, 0.1]
    assert (out / "tables/probe/table.csv").exists()
    assert list((out / "figures").glob("*.svg"))
    page = (out / "index.html").read_text()
    assert "<script" not in page
    assert "resnet10t" in page


@pytest.mark.slow
def test_the_notebook_route_gives_the_same_numbers(finished: Path):
    told = probekit.ResultTable.read(finished / "out/tables/probe")
    called = probekit.probe(
        MODEL,
        DATA,
        taps=["levels"],
        random=1,
        permutations=2,
        penalties=[1.0, 0.1],
        shots=[2],
        bootstrap_draws=100,
        few_shot_draws=2,
        neighbours=3,
        store=finished / "another store",
    )
    assert called.frame.equals(told.frame)


@pytest.mark.slow
def test_run_repeats_a_plan_with_changes(finished: Path, tmp_path: Path):
    plan = finished / "out/plan.yaml"
    invoke("run", plan, "--out", tmp_path / "same", "--store", finished / "store")
    one, other = (
        probekit.ResultTable.read(place / "tables/probe") for place in (finished / "out", tmp_path / "same")
    )
    assert one.frame.equals(other.frame)
    invoke("run", plan, "--out", tmp_path / "seed", "--store", finished / "store", "--set", "seed=1")
    changed = probekit.ResultTable.read(tmp_path / "seed/tables/probe")
    assert Plan.read(tmp_path / "seed/plan.yaml").settings["seed"] == 1
    assert not changed.frame["value"].equals(one.frame["value"])


@pytest.mark.slow
def test_report_redraws_without_weights_or_torch(finished: Path):
    page = finished / "out/index.html"
    before = page.read_bytes()
    page.unlink()
    script = (
        "import sys; sys.argv = ['probekit', 'report', sys.argv[1]]\nfrom probekit.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\nprint('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(finished / "out")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().endswith("False")
    assert page.read_bytes() == before


@pytest.mark.slow
def test_dry_run_writes_nothing(tmp_path: Path):
    output = invoke("probe", "-m", MODEL, "-d", DATA, "--no-random", "--dry-run", "-o", tmp_path / "out")
    assert "forward_s" in output
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_orders_add_the_description_length(tmp_path: Path):
    invoke("probe", "-m", MODEL, "-d", DATA, "-t", "penultimate", "--no-random", "--orders", "1",
           "-o", tmp_path / "out", "--store", tmp_path / "store", *QUICK)  # fmt: skip
    assert Plan.read(tmp_path / "out/plan.yaml").settings["orders"] == 1
    table = probekit.ResultTable.read(tmp_path / "out/tables/probe")
    assert {"description_length", "compression", "selectivity"} <= set(table.metrics)
    page = (tmp_path / "out/index.html").read_text()
    assert "coded block by block" in page
    assert "learn by heart" in page
    assert (tmp_path / "out/figures/depth-compression.svg").exists()


def test_flags_override_the_config(tmp_path: Path):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"models": ["a:random"], "seed": 3, "data": ["digits"]}))
    plan = options.build_plan("probe", config, {"seed": 5, "taps": None, "data": []}, ["permutations=7"])
    assert dict(plan.settings) == {"models": ["a:random"], "seed": 5, "data": ["digits"], "permutations": 7}


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["probe", "-d", "digits"], "models"),
        (["probe", "-m", "resnet18", "-d", "digits"], "checkpoint"),
        (["probe", "-m", MODEL, "-d", "digits", "--set", "permutation=3"], "nearest are permutations"),
        (["probe", "-m", MODEL, "-d", "digits", "--penalties", "a"], "numbers"),
        (["probe", "-m", MODEL, "-d", "nowhere/"], "nowhere"),
        (["layers", "resnet99:random"], "resnet99"),
        (["run", "nowhere.yaml"], "nowhere.yaml"),
        (["report", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_end_in_one_sentence_and_status_2(
    words: list[str],
    named: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["probekit", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2
    assert named in message
    assert "Traceback" not in message


def test_commas_inside_a_tap_do_not_split_it():
    assert options.split_taps("a|grid(2), re:b[1,2],c") == ["a|grid(2)", "re:b[1,2]", "c"]
    with pytest.raises(InputError, match="KEY=VALUE"):
        options.parse_changes(["seed"])


@pytest.mark.slow
def test_attribute_shows_where_probes_look(tmp_path: Path):
    data = "shapeworld/source,train=120,test=40,annotations=masks"
    invoke("attribute", "-m", "net=resnet10t:random,size=48", "-d", data, "-t", "layer2.0", "--no-random",
           "--permutations", "1", "--images", "20", "--set", "penalties=[1.0, 0.1]", "-o", tmp_path / "out",
           "--store", tmp_path / "store")  # fmt: skip
    plan = Plan.read(tmp_path / "out" / "plan.yaml")
    assert plan.verb == "attribute"
    assert plan.settings["images"] == 20
    assert "cascade" not in plan.settings
    assert (tmp_path / "out" / "figures" / "overlays-net.png").is_file()
    page = (tmp_path / "out" / "index.html").read_text()
    assert "Places: does a probe find its class where it is?" in page
    assert "Energy inside" in page
