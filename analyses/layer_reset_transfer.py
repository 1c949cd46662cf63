"""Which levels of a backbone carry what a new task gains from it?

Source: the question is that of Zhao, Wu, Lau and Lin, "What makes instance discrimination good for transfer
learning?" (ICLR 2021), whose first claim is that low and mid levels transfer; keeping some levels and
replacing the others is ours, after Yosinski et al. (NeurIPS 2014) and Matsoukas et al. (CVPR 2022), section
3. Arms that differ in their objective alone learn classes nobody saw, parts of objects and boxes, with the
first or the last levels kept, and the others drawn anew at random or with the statistics of their weights.

Command: ``probekit run analyses/layer_reset_transfer.py --out reports/layer_reset_transfer``

Minutes: 13 of one core for a model on GTSRB's signs (55 trainings); not measured for these tasks. Finished
trainings are kept and found again.

Expected: keeping low and mid recovers the whole gain, keeping mid and high or high alone does not;
where training was supervised the high level hurts. On GTSRB's signs, 200 steps, cross-entropy on ShapeWorld
(one pretraining, three trials): whole .837, scratch .780, low and mid kept .858, mid and high kept .673.

Would falsify it: a high-level share above one half whose interval leaves 0.2 out, on parts or boxes; or a
curve with the last levels kept above that with the first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from probekit import Plan, ResultTable, reset_curves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ARMS = ("ce", "moco-v2", "exemplar-v2")

PLAN = Plan(
    "analyses/layer_reset_transfer.py",
    {
        "models": [f"{arm}=resnet10_w16:bundled@{arm}" for arm in ARMS],
        # Name of a table → task and data.
        "tasks": {
            "unseen": ["classification", "shapeworld/unseen,train=2000,test=2000"],
            "parts": ["landmarks", "shapeworld/scenes,train=2000,test=2000,annotations=keypoints"],
            "boxes": ["detection", "shapeworld/scenes,train=2000,test=2000,annotations=boxes"],
        },
        "curves": ["prefix", "suffix"],
        "modes": ["random", "stats"],
        "by": "level",
        "trials": 3,
        "steps": 200,
        "lr": [0.001, 0.003, 0.01],
    },
)


def run(plan: Plan) -> dict[str, ResultTable]:
    """Learn every task from every state of every model."""
    settings = dict(plan.settings)
    tasks, models = settings.pop("tasks"), settings.pop("models")
    return {name: reset_curves(models, data, task=task, **settings) for name, (task, data) in tasks.items()}


def draw(tables: dict[str, ResultTable]) -> dict[str, Figure]:
    """Draw the curves and the trainings of every task."""
    from probekit.figures import draw_transfer

    return {
        f"{kind}-{name}": figure
        for name, table in tables.items()
        for kind, figure in draw_transfer(table).items()
    }


def smoke(plan: Plan) -> Plan:
    """Shrink to seconds: one random model, few images and steps."""
    return plan.having(
        models=["resnet10_w16:random"],
        tasks={
            "unseen": ["classification", "shapeworld/unseen,train=120,test=40"],
            "boxes": ["detection", "shapeworld/scenes,train=120,test=40,annotations=boxes"],
        },
        curves=["prefix"],
        modes=["random"],
        trials=2,
        steps=2,
        lr=[0.001],
    )
