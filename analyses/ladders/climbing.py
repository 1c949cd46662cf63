"""What the two ladders share: rungs that differ in one thing are trained, then probed alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from ladders.arms import ARCH

from probekit import ResultTable, pretrain, probe
from probekit.files import cache_folder, digest_bytes
from probekit.functional.intervals import t_interval
from probekit.remote import local_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def climb(
    rungs: Mapping[str, Mapping[str, Any]],
    probes: Mapping[str, tuple[str, Sequence[str]]],
    settings: dict[str, Any],
    taps: Sequence[str],
    *,
    keep: bool = True,
) -> dict[str, ResultTable]:
    """Train every arm on every rung, then probe all of them.

    Args:
        rungs: Name, one word → what this rung gives ``pretrain`` beside the settings.
        probes: Name of a table → data and targets that all trainings are probed on.
        settings: Keywords of ``pretrain``, and ``random``, the controls of the probes.
        taps: Of the probes.
        keep: Whether checkpoints are attached; the command of the analysis makes them again.

    Returns:
        ``pretrain``, and the tables of the probes.
    """
    places = {name: settings.pop(name) for name in ("store", "device", "jobs") if name in settings}
    random = settings.pop("random")
    trained, models = [], []
    for rung, own in rungs.items():
        given = {"arch": ARCH, **settings, **own}
        table = pretrain(random=0, **given, **places)
        trained.append(_named(table, rung, ("curves", "checkpoints") if keep else ("curves",)))
        models += _models(table, f"{rung}={given['arch']}", places.get("store"))
    tables = {"pretrain": ResultTable.concat(trained)}
    for name, (data, targets) in probes.items():
        probed = probe(
            models, data, taps=taps, targets=targets, random=random, shots=[], equal_d=False, **places
        )
        # Fitted probes are not what this asks for, and would be most of the report.
        tables[name] = ResultTable(probed.frame, _without_places(probed.provenance))
    return tables


def _without_places(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return the provenance without the words that say where this machine keeps the checkpoints."""
    models = {name: {**facts, "spec": None} for name, facts in provenance["models"].items()}
    settings = {**provenance["settings"], "models": list(models)}
    return {**provenance, "models": models, "settings": settings}


def _named(table: ResultTable, rung: str, folders: Sequence[str]) -> ResultTable:
    """Return the table with its rung in the names of models and attachments, those of the folders."""
    frame = table.frame.assign(model=table.frame["model"] + f", {rung}")
    kept = {
        f"{folder}/{arm}_{rung}/{name}": value
        for (folder, arm, name), value in (
            (key.split("/"), value) for key, value in table.attachments.items() if key.count("/") == 2
        )
        if folder in folders
    }
    by_model = {
        part: {f"{name}, {rung}": facts for name, facts in table.provenance[part].items()}
        for part in ("models", "level_shares")
    }
    for name, facts in by_model["models"].items():
        # Where the checkpoint is attached, in words that load it.
        arch, _, place = facts["spec"].partition(":")
        folder, arm, file = place.split("/")
        spec = f"{arch}:{folder}/{arm}_{rung}/{file}" if folder in folders else None
        by_model["models"][name] = {**facts, "spec": spec}
    return ResultTable(frame, {**table.provenance, **by_model}, kept)


def _models(table: ResultTable, ending: str, store: str | Path | None) -> list[str]:
    """Return the words that load every attached checkpoint, written where it can be loaded from.

    Args:
        table: Of ``pretrain``.
        ending: ``RUNG=ARCHITECTURE``.
        store: The store; None for the user's cache folder.
    """
    folder = (local_folder(store) if store else cache_folder()) / "ladders"
    folder.mkdir(parents=True, exist_ok=True)
    words = []
    for key, content in table.attachments.items():
        if not key.startswith("checkpoints/"):
            continue
        _, arm, name = key.split("/")
        path = folder / f"{digest_bytes(content)[:16]}.pth"
        if not path.exists():
            path.write_bytes(content)
        words.append(f"{arm} {name.removesuffix('.pth')} {ending}:{path}")
    return words


def draw_rungs(
    tables: Mapping[str, ResultTable], first: Mapping[str, tuple[pd.DataFrame, str | None]], notes: list[str]
) -> Figure:
    """Draw a panel for each of the first frames and for each target of transfer, rung by rung.

    Args:
        tables: Of ``climb``; ``transfer`` among them.
        first: Title → rows and their target, None for all rows.
        notes: For the footer.
    """
    from probekit.figures.style import add_footer, add_legend, finish, looks, new_figure, plain, styled

    named = tables["pretrain"].frame["model"]
    rungs = list(dict.fromkeys(one.rpartition(", ")[2] for one in named))
    arms = list(dict.fromkeys(one.partition(" seed ")[0] for one in named))
    best = best_rows(tables["transfer"])
    panels = {**first, **{f"transfer: {one}": (best, str(one)) for one in dict.fromkeys(best["target"])}}
    with styled():
        figure = new_figure(1.2 + 1.9 * len(panels), 3.4)
        look = looks(arms)
        handles: dict[str, Any] = {}
        for axes, (title, (frame, target)) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
        ):
            rows = frame if target is None else frame[frame["target"] == target]
            for arm in arms:
                points = np.array([_point(rows, arm, rung) for rung in rungs]).T
                bars = np.clip([points[0] - points[1], points[2] - points[0]], 0, None)
                own = {"color": look[arm].colour, "marker": look[arm].marker, "capsize": 2}
                handles[plain(arm)] = axes.errorbar(range(len(rungs)), points[0], bars, **own)
            controls = rows["model"].astype(str).str.startswith("random@")
            axes.axhline(rows.loc[~controls, "null"].mean(), color="0.5", linestyle="--", linewidth=0.9)
            if bool(controls.any()):
                axes.axhline(rows.loc[controls, "value"].mean(), color="0.5", linestyle=":", linewidth=0.9)
            axes.set_xticks(range(len(rungs)), rungs, rotation=60, ha="right")
            axes.set_title(plain(title))
            axes.set_ylabel("R²" if target not in (None, "class") else "Accuracy")
        add_legend(figure, list(handles.values()), list(handles))
        add_footer(
            figure,
            [
                "At the tap that is best on val",
                "Bars: 95 %, over test images where there is one seed, over seeds where there are several",
                "Dashed: null; dotted: random init, mean of its draws",
                *notes,
            ],
        )
    return finish(figure, "What each rung leaves: classes, unseen classes, factors.")


def best_rows(table: ResultTable) -> pd.DataFrame:
    """Return accuracies and R² of each model and target at the tap that is best on val."""
    known = [metric for metric in ("accuracy", "r2") if metric in set(table.frame["metric"])]
    return pd.concat([table.best(metric).frame for metric in known])


def _point(frame: pd.DataFrame, arm: str, rung: str) -> tuple[float, float, float]:
    """Return the value of an arm on a rung and its interval: of its row, or of the mean of its seeds."""
    words = frame["model"].astype(str).str.replace(",", "").str.split()
    chosen = frame[(words.str[0] == arm) & (words.str[-1] == rung)]
    if len(chosen) == 1:
        value, low, high = chosen[["value", "ci_low", "ci_high"]].to_numpy(float)[0]
        return value, low, high
    values = chosen["value"].to_numpy(float)
    low, high = t_interval(values)
    return float(values.mean()), low, high
