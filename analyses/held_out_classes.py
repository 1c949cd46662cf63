"""What do arms know of photographs of classes they were never trained on?

Source: Zhao, Wu, Lau and Lin, "What makes instance discrimination good for transfer learning?" (ICLR 2021),
in small and on photographs: each arm trains a quarter-width ResNet-18 on seven classes of CIFAR-10. Read are
those seven, from test images, and three classes that no arm saw: bird, horse and ship. Labels help with what
they name; the question is whether they help, or hurt, with what they do not.

Command: ``probekit run analyses/held_out_classes.py --out reports/held_out_classes``

Minutes: about 170 of one core: 15 trainings of 6 to 10 minutes (the fastest of each arm, two side by side),
15 of a quarter of that for rates, and some 12 of probes.

Expected: (measured, three seeds, 95 % t-intervals, last block) of the seven classes cross-entropy reads .772
[.750, .793], with projector .763, SupCon .676, Exemplar .538, MoCo .522 [.480, .564], random init .301. Of
the three others .847 [.833, .861], .843, .818, .801, .794 [.778, .811] and .574: what labels are worth
shrinks from .250 [.227, .273] to .053 [.023, .083] on classes they did not name, and does not turn. Exemplar
is not told from MoCo.

Would falsify it: on classes nobody saw, an arm without labels that beats every arm with labels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ladders.arms import draw_arms, over_seeds
from ladders.climbing import climb

from probekit import Plan, ResultTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CIFAR = "data/cifar10/cifar10_jpeg.zip"
KNOWN = "classes=airplane+automobile+cat+deer+dog+frog+truck"
PLAN = Plan(
    "analyses/held_out_classes.py",
    {
        "rungs": {"images": {"arms": ["ce", "ce-mlp", "supcon", "moco-v2", "exemplar-v2"]}},
        "arch": "resnet18_w16_cifar",
        "data": f"{CIFAR},{KNOWN}",
        "seeds": 3,
        "epochs": 8,
        "batch_size": 128,
        "queue": 4096,
        "optimiser": "adamw",
        "weight_decay": 0.05,
        # A whole grid would take three times what the arms take.
        "lr": [0.001, 0.002, 0.004],
        "rate_epochs": 2,
        "precision": "bfloat16",
        "probes": {
            "known": [f"{CIFAR},{KNOWN},limit=3000,name=seven-classes", ["class"]],
            "unseen": [f"{CIFAR},classes=bird+horse+ship,limit=3000,name=bird-horse-ship", ["class"]],
        },
        "taps": ["stages"],
        "random": 3,
    },
)


def run(plan: Plan) -> dict[str, ResultTable]:
    """Train every arm on seven classes, probe those and the three others, and compare arms."""
    settings = dict(plan.settings)
    probes = {name: (data, targets) for name, (data, targets) in settings.pop("probes").items()}
    tables = climb(settings.pop("rungs"), probes, settings, settings.pop("taps"), keep=False)
    return {**tables, "arms": ResultTable.concat([over_seeds(tables[name]) for name in probes])}


def draw(tables: dict[str, ResultTable]) -> dict[str, Figure]:
    """Draw arms against random init on both sets of classes, by depth, and the trainings."""
    from probekit.figures import plot_training

    return {
        "arms-known": draw_arms(tables["known"]),
        "arms-unseen": draw_arms(tables["unseen"]),
        "training": plot_training(tables["pretrain"]),
    }


def smoke(plan: Plan) -> Plan:
    """Shrink to seconds: two arms, few images of ShapeWorld and steps."""
    return plan.having(
        rungs={"images": {"arms": ["ce", "moco-v2"], "seeds": 1}},
        arch="resnet10_w16",
        data="shapeworld/source,train=120,test=40",
        probes={"known": ["shapeworld/source,train=60,test=40", ["class"]],
                "unseen": ["shapeworld/unseen,train=60,test=40", ["class"]]},
        epochs=2,
        batch_size=32,
        queue=64,
        lr=0.1,
        rate_epochs=None,
        precision="float32",
        taps=["layer4"],
        random=1,
    )  # fmt: skip
