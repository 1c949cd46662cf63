"""Plan → verb → tables → figures → page; what is finished is found again, never computed twice."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pandas as pd

from probekit.demo import ARMS, IMAGENET
from probekit.errors import InputError, near_names
from probekit.figures import (
    draw_attribution,
    draw_boxes,
    draw_diagnosis,
    draw_geometry,
    draw_invariance,
    draw_pretraining,
    draw_probe,
    draw_reconstruction,
    draw_similarity,
    draw_transfer,
    save_figures,
)
from probekit.figures.style import Prints
from probekit.plan import Plan, check_settings
from probekit.remote import address_of, fetch, listing, local_folder, send
from probekit.reporting.page import write_page
from probekit.results.storage import fetch_table, send_table
from probekit.results.table import ResultTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

# Verb → module and function; the module is imported only when the verb runs.
VERBS = {
    "probe": "probekit.probes.sweep:probe",
    "boxes": "probekit.probes.boxes:probe_boxes",
    "pretrain": "probekit.pretraining.sweep:pretrain",
    "geometry": "probekit.geometry.sweep:measure_geometry",
    "invariance": "probekit.invariance.sweep:measure_invariance",
    "reconstruct": "probekit.reconstruction.sweep:reconstruct",
    "attribute": "probekit.attribution.sweep:attribute",
    "similarity": "probekit.similarity.sweep:measure_similarity",
    "transfer": "probekit.finetuning.sweep:transfer",
    "reset": "probekit.finetuning.sweep:reset_curves",
    "diagnose": "probekit.finetuning.diagnosing:diagnose",
    "demo": "probekit.demo:demo",
}
PLAN = "plan.yaml"
# What says where and how to run, not what: kept out of plans, so that a plan runs on any machine.
PLACES = ("store", "device", "jobs")
# What a verb is shrunk to by ``smoke``: seconds on two cores, enough to see that all of it works.
SMOKE: dict[str, dict[str, Any]] = {
    "probe": {
        "penalties": [1.0, 0.1, 0.01],
        "permutations": 3,
        "bootstrap_draws": 200,
        "few_shot_draws": 2,
        "shots": [1, 5],
        "random": 1,
    },
    "boxes": {
        "penalties": [1.0, 0.1, 0.01],
        "permutations": 3,
        "bootstrap_draws": 200,
        "random": 1,
        "boxes": 200,
    },
    "pretrain": {"epochs": 2, "seeds": 1, "batch_size": 32, "queue": 64, "random": 1},
    "geometry": {"permutations": 3, "random": 1},
    "invariance": {"permutations": 3, "random": 1, "images": 20},
    "reconstruct": {
        "permutations": 3,
        "random": 1,
        "bootstrap_draws": 200,
        "penalties": [1.0, 0.1, 0.01],
        "draws": 2,
        "steps": 20,
        "shown": 2,
        "residual": 0.5,
    },
    "attribute": {
        "permutations": 3,
        "random": 1,
        "bootstrap_draws": 200,
        "penalties": [1.0, 0.1, 0.01],
        "images": 40,
    },
    "similarity": {"permutations": 2, "random": 1, "pairwise": 100, "groups": 5},
    "transfer": {"trials": 2, "steps": 4, "batch_size": 16, "lr": [1e-3]},
    "reset": {
        "trials": 2,
        "steps": 2,
        "batch_size": 8,
        "lr": [1e-3],
        "curves": ["prefix"],
        "modes": ["random"],
    },
    "diagnose": {"trials": 2, "steps": 4, "batch_size": 16, "lr": [1e-3], "permutations": 3},
    "demo": {
        "models": [IMAGENET, ARMS["moco"]],
        "alike": [ARMS["moco"]],
        "reset": [ARMS["moco"]],
        "task": "shapeworld/unseen,train=60,test=40",
        "steps": 2,
        "permutations": 2,
        "random": 1,
        "penalties": [1.0, 0.1, 0.01],
    },
}
SMOKE_IMAGES = 120


def execute(plan: Plan, out: str | Path | None, **places: Any) -> dict[str, ResultTable]:  # noqa: ANN401
    """Run a plan and leave tables, figures and a page.

    Writes ``plan.yaml``, ``tables/NAME/``, ``figures/NAME.svg|png`` and ``index.html`` under ``out``.
    Features and finished cells are kept in the store: the same call after an interruption goes on.

    Args:
        plan: What to run.
        out: Folder for the results, or a URL of object storage; None writes nothing.
        **places: ``store``, ``device``, ``jobs``: where and how, which no result depends on.

    Returns:
        Table name → table; that of a verb is named after it.

    Raises:
        InputError: If the plan names an unknown verb or setting, or objects of another process.
    """
    if plan.live:
        raise InputError(
            "a plan whose models and data can be opened by name",
            f"live objects under {', '.join(plan.live)}",
            "Call the verb in Python with these objects",
        )
    analysis = load_analysis(Path(plan.verb)) if plan.verb.endswith(".py") else None
    given = {name: value for name, value in places.items() if value is not None}
    if analysis is None:
        verb = find_verb(plan.verb)
        check_settings(verb, plan.settings, plan.verb)
    folder = local_folder(out) if out is not None else None
    if folder is not None:
        plan.write(folder / PLAN)
        send(folder / PLAN)  # an --out that cannot be written is known before the work
    if analysis is not None:
        tables: dict[str, ResultTable] = analysis.run(plan.having(**given))
    else:
        result = verb(**plan.settings, **given)
        tables = {plan.verb: result} if isinstance(result, ResultTable) else result
    if folder is not None and tables:
        _bring_tables(folder)
        command = f"probekit run {plan.verb if analysis is not None else 'plan.yaml'}"
        for name, table in tables.items():
            told = ResultTable(table.frame, {**table.provenance, "command": command}, table.attachments)
            told.write(folder / "tables" / name)
        # The page shows what is on disk, so that `probekit report` gives the same page.
        _draw_page(folder)
        if address_of(folder):
            for name in tables:
                send_table(folder / "tables" / name)
    return tables


DRAWINGS: dict[str, Callable[[ResultTable], dict[str, Figure]]] = {
    "probe": draw_probe,
    "boxes": draw_boxes,
    "pretrain": draw_pretraining,
    "geometry": draw_geometry,
    "invariance": draw_invariance,
    "reconstruct": draw_reconstruction,
    "attribute": draw_attribution,
    "similarity": draw_similarity,
    "transfer": draw_transfer,
    "reset": draw_transfer,
    "diagnose": draw_diagnosis,
}


def draw(tables: Mapping[str, ResultTable]) -> dict[str, Figure]:
    """Draw every figure that the tables of a verb support."""
    figures: dict[str, Figure] = {}
    for table in tables.values():
        drawing = DRAWINGS.get(str(table.provenance.get("analysis")))
        if drawing is not None:
            figures |= drawing(table)
    return figures


def redraw(out: str | Path) -> Path:
    """Draw figures and page again from the tables in a results folder; needs no weights and no images.

    Args:
        out: The folder, or a URL of object storage.

    Returns:
        Where the page is here.

    Raises:
        InputError: If there are no tables.
        RemoteUnreachable: If object storage cannot be read or written.
    """
    folder = local_folder(out)
    fetch(folder / PLAN)
    _bring_tables(folder)
    return _draw_page(folder)


def _bring_tables(folder: Path) -> None:
    """Make a folder that stands for object storage hold the tables that are there now, and no others."""
    if address_of(folder) is None:
        return
    there = {path.parent for path in listing(folder / "tables") if path.match("tables/*/provenance.json")}
    for place in (folder / "tables").glob("*"):
        if place not in there:
            shutil.rmtree(place)
    for place in sorted(there):
        fetch_table(place)


def _draw_page(folder: Path) -> Path:
    places = sorted(path.parent for path in (folder / "tables").glob("*/provenance.json"))
    if not places:
        raise InputError(
            f"tables under {folder / 'tables'}", "none", "Name the --out folder of an earlier run"
        )
    tables = {place.name: ResultTable.read(place) for place in places}
    plan = Plan.read(folder / PLAN) if (folder / PLAN).exists() else Plan("results")
    question = None
    if plan.verb.endswith(".py") and Path(plan.verb).is_file():
        analysis = load_analysis(Path(plan.verb))
        figures: dict[str, Figure] = analysis.draw(tables)
        question = (analysis.__doc__ or "").strip().split("\n")[0]
    else:
        figures = draw(tables)
    prints = {name: Prints(figure) for name, figure in figures.items()}
    drawn = save_figures(prints, folder / "figures")
    page = folder / "index.html"
    write_page(tables, prints, page, title=Path(plan.verb).stem, question=question)
    for path in (*drawn, page):
        send(path)
    log.info("page: %s", address_of(page) or page)
    return page


def foresee(plan: Plan, **places: Any) -> pd.DataFrame:  # noqa: ANN401
    """Say what a plan would compute: images, taps, bytes and seconds of every model on every data set.

    Loads the models and times one batch of each; computes nothing else and writes nothing.

    Args:
        plan: A plan with settings ``models`` and ``data``, or of an analysis with a ``foresee`` of its own.
        **places: ``device``; others are ignored.
    """
    from probekit.features.comparison import list_entries
    from probekit.features.extraction import estimate

    settings = plan.settings
    if plan.verb.endswith(".py"):
        own = getattr(load_analysis(Path(plan.verb)), "foresee", None)
        if own is not None:
            return pd.DataFrame(own(plan))
    if plan.verb == "pretrain":
        from probekit.pretraining.sweep import foresee_pretraining

        return foresee_pretraining(settings, places.get("device"))
    if "models" not in settings or "data" not in settings:
        raise InputError("a plan with models and data", ", ".join(settings) or "none", "Run it instead")
    sets = settings["data"] if isinstance(settings["data"], list) else [settings["data"]]
    entries = list_entries(settings["models"], settings.get("random", 3))
    taps = settings.get("taps", "stages")
    rows = [
        _with_regions(
            {"model": entry.name, **estimate(entry.model, data, taps, device=places.get("device"))},
            plan,
            data,
        )
        for data in sets
        for entry in entries
    ]
    return pd.DataFrame([_with_views(row, plan) for row in rows])


def _with_regions(row: dict[str, Any], plan: Plan, data: Any) -> dict[str, Any]:  # noqa: ANN401 - as in plans
    """Count features of regions in place of images, where boxes are probed."""
    if plan.verb != "boxes":
        return row
    from probekit.data.readers import open_images
    from probekit.probes.boxes import count_regions

    settings = plan.settings
    regions = count_regions(open_images(data), settings.get("target"), settings.get("boxes", 2000))
    size = row["size_bytes"] * regions * settings.get("grid", 3) ** 2 // row["images"]
    return {**row, "regions": regions, "size_bytes": size}


def _with_views(row: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """Add to what an extraction takes the changed images that invariance reads besides."""
    if plan.verb != "invariance":
        return row
    from probekit.data.perturbations import parse_perturbations

    asked = plan.settings.get("perturbations")
    changes = parse_perturbations([asked] if isinstance(asked, str) else asked)
    views = min(plan.settings.get("images", 200), row["images"]) * (1 + sum(map(len, changes.values())))
    factor = 1 + views / row["images"]
    return row | {
        "images": row["images"] + views,
        "size_bytes": round(row["size_bytes"] * factor),
        "forward_s": round(row["forward_s"] * factor, 1),
    }


def shrink(plan: Plan) -> Plan:
    """Return a plan that runs in seconds: fewer images, penalties, draws."""
    if plan.verb.endswith(".py"):
        smoke: Callable[[Plan], Plan] = load_analysis(Path(plan.verb)).smoke
        return smoke(plan)
    find_verb(plan.verb)
    if plan.settings.get("detections"):
        # They name all images of the data, and are judged in seconds.
        return plan.having(permutations=SMOKE[plan.verb]["permutations"])
    data = plan.settings.get("data", [])
    limited = [_limited(one) for one in data] if isinstance(data, list) else _limited(data)
    return plan.having(data=limited, **SMOKE[plan.verb])


def _limited(data: Any) -> Any:  # noqa: ANN401 - words, or a live object's reference
    return f"{data},limit={SMOKE_IMAGES}" if isinstance(data, str) and ",limit=" not in data else data


def find_verb(name: str) -> Callable[..., Any]:
    """Return the function of a verb.

    Raises:
        InputError: If there is no such verb.
    """
    if name not in VERBS:
        raise InputError(
            f"a verb among {', '.join(VERBS)}, or an analysis file",
            repr(name),
            f"The nearest is {near_names(name, VERBS, 1)}",
        )
    module, function = VERBS[name].split(":")
    verb: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return verb


def load_analysis(path: Path) -> ModuleType:
    """Import an analysis file: a module with ``PLAN``, ``run``, ``draw`` and ``smoke``.

    It may import what lies beside it, as a script may.

    Raises:
        InputError: If the file does not exist or lacks one of them.
    """
    if not path.is_file():
        raise InputError("an analysis file", f"{path}, which does not exist", "Check the path")
    name = f"analysis_{path.stem}"
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise InputError("a Python file", str(path), "Name a file that ends in .py")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    beside = str(path.resolve().parent)
    if beside not in sys.path:
        sys.path.append(beside)  # last, so that nothing installed is hidden
    found.loader.exec_module(module)
    missing = [part for part in ("PLAN", "run", "draw", "smoke") if not hasattr(module, part)]
    if missing:
        raise InputError(
            f"{', '.join(missing)} in {path}", "none", "CONTRIBUTING.md shows the form of an analysis"
        )
    return module
