"""Do layers that ignore more of an image, or of what varies inside a class, tell more about the class?

Source: finding 2 of Zhao, Wu, Lau and Lin, "What makes instance discrimination good for transfer learning?"
(ICLR 2021): invariance inside categories of the pretraining weakens transfer. Here every tap of every model
is drawn by its invariance and by what a linear probe reads from it. Taps of one network are no independent
draws and a handful of networks is no sample: the figures show, they do not judge. Trained arms that differ in
nothing but their objective are needed for that.

Command: ``probekit run analyses/invariance_transfer.py --out reports/invariance_transfer``

Minutes: about 3 on two cores with the plan's own images. Of the committed report, with three checkpoints
and two data sets, set by ``--set``: about 6 beside what perturbation_invariance has left in the store.

Expected: (measured, 96 px) both rise together up to the fourth stage of trained networks (DTD: ICC 0.07 and
accuracy 0.30 at the first, 0.31 and 0.82 at the fourth of EfficientNet-Lite0); behind it ICC falls by half,
to 0.16, while accuracy stays at 0.83: the last stages spread images of a class without losing the class.
The network trained on birds loses both (0.25 and 0.70, then 0.07 and 0.56). Random networks start like the
trained ones and lose both with depth (ICC 0.05, accuracy 0.14 to 0.16 at the end), as perturbations take
over their variance (0.86). On traffic signs, which colour tells apart, ICC of early stages is as high as
that of late ones (0.26 at the first, 0.34 at the last of Lite0) while accuracy is 0.14 and 0.60: total
variance between classes does not foretell what can be read.

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
    probes = probe(**shared, targets=[target], shots=[])
    return {
        # Fitted probes are not what this asks for, and would be most of the report.
        "probe": ResultTable(probes.frame, probes.provenance),
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
