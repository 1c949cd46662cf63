"""Which augmentations make features that transfer, with labels and without?

Source: Zhao, Wu, Lau and Lin, "What makes instance discrimination good for transfer learning?" (ICLR 2021),
table 1, in small: each rung of the ladder (flip, resized crop, change of colour, greying, blur, one more a
rung) trains both a supervised and a contrastive arm on the same views. Beside the ladder stand the crop alone
and colour alone. What an arm knows of its own classes is read next to what transfers: classes it never saw,
and where things are.

Command: ``probekit run analyses/augmentation_ladder.py --out reports/augmentation_ladder``

Minutes: not measured as a whole; a training of ResNet-10 on 8,000 images of 48 px, 30 passes, takes 4 to 6
minutes of two cores, and the plan has 14.

Expected: (from the paper, on ImageNet) with the flip alone instance discrimination reads its own classes
poorly and still transfers; each augmentation helps it more than the supervised arm; accuracy on the own
classes is a poor guide to transfer.

Would falsify it: transfer that follows the accuracy on the own classes across rungs (rank correlation above
0.8).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from probekit import Plan, ResultTable, pretrain, probe
from probekit.files import cache_folder, digest_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLAN = Plan(
    "analyses/augmentation_ladder.py",
    {
        "arms": ["ce", "moco-v2"],
        "rungs": ["f", "fr", "frc", "frcg", "frcgb", "crop-only", "colour-only"],
        "data": "shapeworld/source,train=8000,test=1000",
        "transfer": "shapeworld/unseen,train=1000,test=1000",
        "targets": ["class", "x", "y", "rotation"],
        "seeds": 1,
        "epochs": 30,
        "batch_size": 256,
        "queue": 4096,
        "lr": 0.1,
        "random": 3,
    },
)
ARCH = "resnet10_w16"
# Read with places, so that a lost position is the layer's doing and not the readout's.
TAPS = ["stages", "layer4|grid(3)"]


def run(plan: Plan) -> dict[str, ResultTable]:
    """Train every arm on every rung, then probe what it knows of unseen classes and of places."""
    settings = dict(plan.settings)
    rungs, transfer, targets = (settings.pop(name) for name in ("rungs", "transfer", "targets"))
    places = {name: settings.pop(name) for name in ("store", "device", "jobs") if name in settings}
    random = settings.pop("random")
    trained, models = [], []
    for rung in rungs:
        table = pretrain(augmentation=rung, arch=ARCH, random=0, **settings, **places)
        trained.append(_named(table, rung))
        models += _models(table, rung, places.get("store"))
    probed = probe(
        models, transfer, taps=TAPS, targets=targets, random=random, shots=[], equal_d=False, **places
    )
    # Fitted probes are not what this asks for, and would be most of the report.
    provenance = _without_places(probed.provenance)
    return {"pretrain": ResultTable.concat(trained), "transfer": ResultTable(probed.frame, provenance)}


def _without_places(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return the provenance without the words that say where this machine keeps the checkpoints."""
    models = {name: {**facts, "spec": None} for name, facts in provenance["models"].items()}
    settings = {**provenance["settings"], "models": list(models)}
    return {**provenance, "models": models, "settings": settings}


def _named(table: ResultTable, rung: str) -> ResultTable:
    """Return the table with its rung in the names of models and attachments."""
    frame = table.frame.assign(model=table.frame["model"] + f", {rung}")
    kept = {
        f"{folder}/{arm}_{rung}/{name}": value
        for (folder, arm, name), value in (
            (key.split("/"), value) for key, value in table.attachments.items() if key.count("/") == 2
        )
        if folder in ("curves", "checkpoints")
    }
    by_model = {
        part: {f"{name}, {rung}": facts for name, facts in table.provenance[part].items()}
        for part in ("models", "level_shares")
    }
    return ResultTable(frame, {**table.provenance, **by_model}, kept)


def _models(table: ResultTable, rung: str, store: str | Path | None) -> list[str]:
    """Return the words that load every attached checkpoint, written where it can be loaded from."""
    folder = (Path(store) if store else cache_folder()) / "augmentation_ladder"
    folder.mkdir(parents=True, exist_ok=True)
    words = []
    for key, content in table.attachments.items():
        if not key.startswith("checkpoints/"):
            continue
        _, arm, name = key.split("/")
        path = folder / f"{digest_bytes(content)[:16]}.pth"
        if not path.exists():
            path.write_bytes(content)
        words.append(f"{arm} {name.removesuffix('.pth')} {rung}={ARCH}:{path}")
    return words


def draw(tables: dict[str, ResultTable]) -> dict[str, Figure]:
    """Draw the trainings, transfer against depth, and transfer against the accuracy on the own classes."""
    from probekit.figures import draw_probe, plot_training

    return {
        "ladder": _draw_ladder(tables),
        "training": plot_training(tables["pretrain"]),
        **draw_probe(tables["transfer"]),
    }


def _draw_ladder(tables: dict[str, ResultTable]) -> Figure:
    from probekit.figures.style import add_footer, add_legend, finish, looks, new_figure, plain, styled

    own = tables["pretrain"].where(metric="accuracy").frame
    best = pd.concat([tables["transfer"].best(metric).frame for metric in ("accuracy", "r2")])
    rungs = list(dict.fromkeys(one.rpartition(", ")[2] for one in own["model"]))
    arms = list(dict.fromkeys(one.partition(" seed ")[0] for one in own["model"]))
    targets = list(dict.fromkeys(best["target"]))
    panels = [("own classes", None), *((str(one), str(one)) for one in targets)]
    with styled():
        figure = new_figure(1.2 + 1.9 * len(panels), 2.9)
        look = looks(arms)
        handles: dict[str, Any] = {}
        for axes, (title, target) in zip(figure.subplots(1, len(panels)), panels, strict=True):
            for arm in arms:
                values = [_mean(own if target is None else best, arm, rung, target) for rung in rungs]
                colour, marker = look[arm].colour, look[arm].marker
                (handles[plain(arm)],) = axes.plot(range(len(rungs)), values, color=colour, marker=marker)
            axes.set_xticks(range(len(rungs)), rungs, rotation=60, ha="right")
            axes.set_title(plain(title))
            axes.set_ylabel("R²" if target not in (None, "class") else "Accuracy")
        add_legend(figure, list(handles.values()), list(handles))
        notes = [
            "Means over seeds, at the tap that is best on val",
            "The last two rungs are no part of the ladder",
        ]
        add_footer(figure, notes)
    return finish(figure, "What each rung of augmentations leaves: own classes, unseen classes, factors.")


def _mean(frame: pd.DataFrame, arm: str, rung: str, target: str | None) -> float:
    words = frame["model"].astype(str).str.replace(",", "").str.split()
    chosen = (words.str[0] == arm) & (words.str[-1] == rung)
    if target is not None:
        chosen &= frame["target"] == target
    return float(frame.loc[chosen, "value"].mean())


def smoke(plan: Plan) -> Plan:
    """Shrink to seconds: two rungs, a few images and steps."""
    return plan.having(
        data="shapeworld/source,train=120,test=40",
        transfer="shapeworld/unseen,train=60,test=40",
        arms=["moco-v2"],
        rungs=["f", "frcgb"],
        targets=["class", "x"],
        epochs=2,
        batch_size=32,
        queue=64,
        random=1,
    )
