"""What does each way to pretrain leave in a backbone, all else being equal?

Source: Zhao, Wu, Lau and Lin, "What makes instance discrimination good for transfer learning?" (ICLR 2021),
whose claims are about objectives: here the arms differ in nothing else. Each is a ResNet-10 trained on the
same views of ShapeWorld from the same weights of its seed: cross-entropy without and with a projector,
SupCon, MoCo v2, Exemplar v2; MoCo on crops or on colours alone; an autoencoder. Rung ``time`` trains again
with as many steps as fit in the time of cross-entropy; rungs of 2 and of 5 classes have as many images as the
whole set. Learning rates are chosen on images held out, by the class, from the same grid for every arm. Read
are the class and eight factors it is independent of, and classes that nobody was trained on.

Command: ``probekit run analyses/pretraining.py --out reports/pretraining``

Minutes: not measured as a whole; a training takes 2.5 to 3 minutes of one core by its seconds a step, SupCon
of three times the images 8, the autoencoder 6, and the plan has 60 and those that rates are chosen by;
finished ones are found again.

Expected: at the last block, mean over five seeds: hue .91 after MoCo v2 and Exemplar v2, 0 after
cross-entropy and after SupCon, .37 at random init; background .97, .66, .68, .91; the class .05, .50, .26
(SupCon has three times the images), .05. Place and size are read better than at random init after all of
these, with labels or without (y .88, .76, .76, .31): labels do not lose them. Crops alone leave x at random
init and keep hue (.94), colours alone lose hue (.31) and keep y (.88); an autoencoder keeps hue (.77) and
background, and little of place. Fewer classes change nothing that three seeds would show. SupCon at equal
images is not learnt.

Would falsify it: an arm without labels that keeps no factor better than random init; one with labels that
keeps hue or background as well as MoCo.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ladders.arms import draw_arms, over_seeds
from ladders.climbing import climb

from probekit import Plan, ResultTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLAN = Plan(
    "analyses/pretraining.py",
    {
        # Of each rung what it gives ``pretrain`` beside the settings below.
        "rungs": {
            "images": {"arms": ["ce", "ce-mlp", "moco-v2", "exemplar-v2"], "seeds": 5},
            # In as many steps as the others it does not leave chance at any rate tried (decision 24).
            "not-learnt": {"arms": ["supcon"], "lr": 0.002},
            "3x-images": {"arms": ["supcon"], "seeds": 5, "lr": 0.002, "epochs": 60},
            # Further trainings of MoCo and Exemplar have the rate that was chosen above.
            "crop-only": {"arms": ["moco-v2"], "seeds": 3, "augmentation": "crop-only", "lr": 0.002},
            "colour-only": {"arms": ["moco-v2"], "seeds": 3, "augmentation": "colour-only", "lr": 0.002},
            "decoder": {"arms": ["autoencoder"], "seeds": 3, "lr": 0.002},
            "time": {
                "arms": ["ce-mlp", "moco-v2", "exemplar-v2"], "seeds": 5, "budget": "time",
                "lr": {"ce-mlp": 0.004, "moco-v2": 0.002, "exemplar-v2": 0.002},
            },
            "2-classes": {
                "arms": ["moco-v2", "exemplar-v2"], "seeds": 3, "lr": 0.002,
                "data": "shapeworld/source,train=80000,test=10000,classes=2,name=two-classes",
            },
            "5-classes": {
                "arms": ["moco-v2", "exemplar-v2"], "seeds": 3, "lr": 0.002,
                "data": "shapeworld/source,train=32000,test=4000,classes=5,name=five-classes",
            },
        },
        "data": "shapeworld/source,train=8000,test=1000",
        "epochs": 20,
        "batch_size": 128,
        "queue": 4096,
        "optimiser": "adamw",
        "weight_decay": 0.05,
        "lr": [0.002, 0.004, 0.008],
        "precision": "bfloat16",
        # Of each table of probes the data and the targets.
        "probes": {
            "known": [
                "shapeworld/source,train=3000,test=1000",
                ["class", "x", "y", "scale", "rotation", "hue", "background", "clutter", "articulation"],
            ],
            "unseen": ["shapeworld/unseen,train=1000,test=1000", ["class", "x", "y", "rotation"]],
        },
        "taps": ["levels", "layer4|grid(3)"],
        "random": 5,
    },
)  # fmt: skip


def run(plan: Plan) -> dict[str, ResultTable]:
    """Train every arm of every rung, probe all of them, and compare them over seeds."""
    settings = dict(plan.settings)
    probes = {name: (data, targets) for name, (data, targets) in settings.pop("probes").items()}
    tables = climb(settings.pop("rungs"), probes, settings, settings.pop("taps"))
    return {**tables, "arms": ResultTable.concat([over_seeds(tables[name]) for name in probes])}


def draw(tables: dict[str, ResultTable]) -> dict[str, Figure]:
    """Draw arms against random init on each data set, and the trainings."""
    from probekit.figures import plot_training

    probed = [name for name in tables if name not in ("pretrain", "arms")]
    return {
        **{f"arms-{name}": draw_arms(tables[name]) for name in probed},
        "training": plot_training(tables["pretrain"]),
    }


def smoke(plan: Plan) -> Plan:
    """Shrink to seconds: two arms, few images and steps."""
    return plan.having(
        rungs={"images": {"arms": ["ce", "moco-v2"], "seeds": 2}},
        data="shapeworld/source,train=120,test=40",
        probes={"known": ["shapeworld/source,train=60,test=40", ["class", "x"]]},
        epochs=2,
        batch_size=32,
        queue=64,
        lr=0.1,
        precision="float32",
        taps=["layer4"],
        random=2,
    )
