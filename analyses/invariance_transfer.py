"""Do layers that ignore more of an image, or of what varies inside a class, tell more about the class?

Source: finding 2 of Zhao, Wu, Lau and Lin, "What makes instance discrimination good for transfer learning?"
(ICLR 2021): invariance inside categories of the pretraining weakens transfer. Here every tap of every model
is drawn by its invariance and by what a linear probe reads from it. Taps of one network are no independent
draws and a handful of networks is no sample: the figures show, they do not judge. Trained arms that differ in
nothing but their objective are needed for that.

Command: ``probekit run analyses/invariance_transfer.py --out reports/invariance_transfer``

Minutes: about 3 on two cores with the plan's own images.

Expected: not measured yet.

Would falsify it: accuracy that falls wherever the share of variance between the target's own classes rises.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from probekit import Plan, ResultTable, measure_geometry, measure_invariance, probe
from probekit.figures import plot_relation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLAN = Plan(
    "analyses/invariance_transfer.py",
    {
        "models": ["imagenet=tf_efficientnet_lite0:wheel,size=96"],
        "data": ["shapeworld/source,train=2000,test=1000"],
        "taps": ["stages", "penultimate"],
        "random": 1,
        "permutations": 20,
        "target": "class",
        "images": 200,
    },
)


def run(plan: Plan) -> dict[str, ResultTable]:
    """Measure geometry, invariance and probes of the same taps."""
    shared = {name: value for name, value in plan.settings.items() if name not in ("target", "images")}
    target, images = plan.settings["target"], plan.settings["images"]
    return {
        "probe": probe(**shared, targets=[target], shots=[]),
        "geometry": measure_geometry(**shared, target=target, factors=False),
        "invariance": measure_invariance(**shared, target=target, images=images),
    }


def draw(tables: dict[str, ResultTable]) -> dict[str, Figure]:
    """Draw accuracy against invariance inside classes, and against invariance to all perturbations."""
    found = {}
    for name, table, metric, target in (
        ("icc", "geometry", "icc", None),
        # Empty where classes cannot be told apart.
        ("directional", "geometry", "directional_cdnv", None),
        ("perturbations", "invariance", "perturbation_variance", "all"),
    ):
        if bool(tables[table].where(metric=metric).frame["value"].notna().any()):
            found[f"{name}-accuracy"] = plot_relation(tables[table], tables["probe"], metric, x_target=target)
    return found


def smoke(plan: Plan) -> Plan:
    """Shrink to seconds: one control, one data set of a few images, few permutations."""
    return plan.having(
        data=["shapeworld/source,train=200,test=100"],
        models=["resnet10t:random,size=64"],
        random=1,
        permutations=3,
        images=20,
    )
