"""Which augmentations make features that transfer, with labels and without?

Source: Zhao, Wu, Lau and Lin, "What makes instance discrimination good for transfer learning?" (ICLR 2021),
table 1, in small: each rung of the ladder (flip, resized crop, change of colour, greying, blur, one more a
rung) trains both a supervised and a contrastive arm on the same views. Beside the ladder, whose second rung
is the crop alone, stands colour alone. What an arm knows of its own classes is read next to what transfers:
classes it never saw, and where things are.

Command: ``probekit run analyses/augmentation_ladder.py --out reports/augmentation_ladder``

Minutes: about 40 of one core: 12 trainings of ResNet-10 on 8,000 images of 48 px, 20 passes, of 3 minutes
each, and 3 of probes.

Expected: (measured, one seed; half-widths of intervals over images up to .03) on its own classes
cross-entropy reads .92 with the flip alone and .68 with all five; on unseen classes .69, .83 with the crop
added, .67 with all. MoCo v2 stays at chance on its own classes (.05 to .07), and near it on unseen ones (.10
to .14, chance .10); where things are it reads better once colours change (x .78 and .80, then .88; random
init .65). So accuracy on the own classes is a poor guide to transfer, as in the paper; that augmentation
helps the contrastive arm more holds of places, not of classes.

Would falsify it: transfer that follows the accuracy on the own classes across rungs (rank correlation above
0.8).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ladders.climbing import climb, draw_rungs

from probekit import Plan, ResultTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLAN = Plan(
    "analyses/augmentation_ladder.py",
    {
        "arms": ["ce", "moco-v2"],
        "rungs": ["f", "fr", "frc", "frcg", "frcgb", "colour-only"],
        "data": "shapeworld/source,train=8000,test=1000",
        "transfer": "shapeworld/unseen,train=1000,test=1000",
        "targets": ["class", "x", "y", "rotation"],
        # Read with places too, so that a lost position is the layer's doing and not the readout's.
        "taps": ["stages", "layer4|grid(3)"],
        "seeds": 1,
        "epochs": 20,
        "batch_size": 128,
        "queue": 4096,
        "optimiser": "adamw",
        "weight_decay": 0.05,
        # As chosen for the whole ladder and the whole set (reports/pretraining).
        "lr": {"ce": 0.008, "moco-v2": 0.002},
        "precision": "bfloat16",
        "random": 3,
    },
)


def run(plan: Plan) -> dict[str, ResultTable]:
    """Train every arm on every rung, then probe what it knows of unseen classes and of places."""
    settings = dict(plan.settings)
    rungs = {rung: {"augmentation": rung} for rung in settings.pop("rungs")}
    probes = {"transfer": (settings.pop("transfer"), settings.pop("targets"))}
    return climb(rungs, probes, settings, settings.pop("taps"), keep=False)


def draw(tables: dict[str, ResultTable]) -> dict[str, Figure]:
    """Draw the trainings, transfer against depth, and transfer against the accuracy on the own classes."""
    from probekit.figures import plot_depth, plot_training

    own = tables["pretrain"].where(metric="accuracy").frame
    last = "The last rung is no part of the ladder"
    return {
        "ladder": draw_rungs(tables, {"own classes": (own, None)}, [last]),
        "training": plot_training(tables["pretrain"]),
        **{f"depth-{one}": plot_depth(tables["transfer"], one) for one in ("accuracy", "r2")},
    }


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
        lr=0.1,
        precision="float32",
        taps=["layer4"],
        random=1,
    )
