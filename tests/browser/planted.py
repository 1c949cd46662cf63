"""Pages made of planted tables: names that would run or break a page, and 200 checkpoints compared."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pandas as pd

from probekit.figures import draw_probe, save_figures
from probekit.reporting.page import write_page
from probekit.results.table import ResultTable

SYNTHETIC = runpy.run_path(str(Path(__file__).parents[1] / "results" / "synthetic.py"))
HOSTILE = (
    "<script>document.title='run'</script>",
    '"><img src=x onerror="document.title=\'run\'">',
    "'\"`</style></table><h1>",
    "javascript:document.title='run'",
    "very-long-" * 40,
    "شبكة عصبية مدربة",
    "\u202eevil\u202c <b>&amp;",
    "{{ 7 * 7 }} {% raw %}",
)
RUNS, STEPS = 8, 25
SHOWN = ("layer1.0|gap", "layer2.1|gap", "layer3.2|gap", "layer4.0|gap", "layer4.2|gap")


def hostile_page(folder: Path) -> Path:
    """Write a page whose models, classes, targets and data carry the hostile names."""
    made = SYNTHETIC["synthetic_probe_table"](
        n_test=40,
        classes=HOSTILE,
        factors=(),
        class_target=HOSTILE[1],
        models=("supervised", "moco", "random@0"),
    )
    frame = made.frame.replace({"moco": HOSTILE[0], "supervised": HOSTILE[4], "flowers": HOSTILE[5]})
    frame["tap"] = frame["tap"].replace({"layer4.2|gap": HOSTILE[6], "layer1.0|gap": HOSTILE[2]})
    facts = made.provenance["models"]
    models = {HOSTILE[0]: facts["moco"], HOSTILE[4]: facts["supervised"], "random@0": facts["random@0"]}
    models[HOSTILE[0]] = models[HOSTILE[0]] | {"checkpoint": HOSTILE[1], "preprocessing_text": HOSTILE[4]}
    provenance = made.provenance | {
        "models": models,
        "data": {HOSTILE[5]: {"targets": {HOSTILE[1]: {"kind": HOSTILE[3]}}, "digest": HOSTILE[2]}},
        "command": HOSTILE[4] + HOSTILE[0],
        "warnings": list(HOSTILE),
    }
    return _page(ResultTable(frame, provenance), folder, HOSTILE[0])


def many_checkpoints_page(folder: Path) -> Path:
    """Write the page of one comparison of 200 checkpoints, 25 steps of 8 trainings, at five taps."""
    return _page(many_checkpoints(), folder, "Two hundred checkpoints")


def many_checkpoints() -> ResultTable:
    """Return a probe table of 200 checkpoints whose accuracy rises along their training."""
    made = SYNTHETIC["synthetic_probe_table"](n_test=200, models=("moco", "random@0", "random@1", "random@2"))
    frame = made.frame[made.frame["tap"].isin(SHOWN)]
    one, rest = frame[frame["model"] == "moco"], frame[frame["model"] != "moco"]
    noise = np.random.default_rng(0)
    parts, facts = [], {}
    for run in range(RUNS):
        for step in range(STEPS):
            name = f"moco-v2-seed{run}-step{4000 * (step + 1):06d}"
            learnt = (0.4 + 0.6 * (1 - np.exp(-step / 6))) * (1 - 0.02 * run) + noise.normal(0, 0.01)
            ends = {column: one[column] * learnt for column in ("value", "ci_low", "ci_high")}
            parts.append(one.assign(model=name, weights=SYNTHETIC["digest_of"](name), **ends))
            facts[name] = made.provenance["models"]["moco"] | {"checkpoint": f"{name}.pth.tar"}
            facts[name] |= {"weights": SYNTHETIC["digest_of"](name)}
    facts |= {name: own for name, own in made.provenance["models"].items() if name != "moco"}
    shares = dict.fromkeys(facts, made.provenance["level_shares"]["moco"])
    provenance = made.provenance | {"models": facts, "level_shares": shares}
    return ResultTable(pd.concat([*parts, rest], ignore_index=True), provenance)


def _page(table: ResultTable, folder: Path, title: str) -> Path:
    figures = draw_probe(table)
    table.write(folder)
    save_figures(figures, folder / "figures")
    return write_page(
        {"probe": table}, figures, folder / "index.html", title=title, question="Which is best?"
    )
