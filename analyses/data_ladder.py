"""Which images must a backbone be trained on, with labels and without, to transfer?

Source: Zhao, Wu, Lau and Lin, "What makes instance discrimination good for transfer learning?" (ICLR 2021),
table 2, in small: the data change and the number of images seen does not. Rungs: all images; a tenth of each
class; five classes at equal count; another domain; textures without shape (for synthetic streets, which share
little with photographs of objects); one family of shapes (for faces). Each trains a supervised and a
contrastive arm. What they know of the classes of the whole set is read next to what transfers: classes nobody
saw, and where things are.

Command: ``probekit run analyses/data_ladder.py --out reports/data_ladder``

Minutes: about 50 of one core: 14 trainings of ResNet-10 on 8,000 images of 48 px, 20 passes, of 3 minutes
each, and 6 of probes.

Expected: (measured, one seed; half-widths of intervals over images up to .03) with labels, unseen classes are
read .67 after all images, .36 to .48 after a tenth, five classes, another domain or one family of shapes, .19
after textures and photographs (chance .10). Without labels they are at chance on every rung (.10 to .13), as
are the classes of the whole set (.05 to .07). Where things are does not depend much on the images for MoCo (x
.85 to .88; random init .65) as long as they have shapes that move: after textures .59, after photographs .63.
As in the paper, without labels transfer depends little on what the images show; but of places alone, and
textures leave nothing. Cross-entropy on five classes reads x .04 [-1.7, .87]: single images far from all
others decide it.

Would falsify it: without labels, a spread of transfer over the rungs as large as with labels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ladders.climbing import best_rows, climb, draw_rungs

from probekit import Plan, ResultTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLAN = Plan(
    "analyses/data_ladder.py",
    {
        "arms": ["ce", "moco-v2"],
        # Of each rung the data, and what else it needs so that as many images are seen.
        "rungs": {
            "full": {"data": "shapeworld/source,train=8000,test=1000"},
            "tenth": {
                "data": "shapeworld/source,train=800,test=1000,name=tenth",
                "epochs": 224,
                "queue": 512,
            },
            "5-classes": {"data": "shapeworld/source,train=32000,test=4000,classes=5,name=five-classes"},
            "shifted": {"data": "shapeworld/shifted,train=8000,test=1000"},
            "textures": {"data": "shapeworld/textures,train=8000,test=1000"},
            "stars": {"data": "shapeworld/stars,train=8000,test=1000"},
            "photographs": {"data": "data/cifar10/cifar10_jpeg.zip", "epochs": 5.3333},
        },
        "classes": "shapeworld/source,train=4000,test=1000",
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
    """Train every arm on every rung, then probe the classes of the whole set, and transfer."""
    settings: dict[str, Any] = dict(plan.settings)
    probes = {
        "classes": (settings.pop("classes"), ["class"]),
        "transfer": (settings.pop("transfer"), settings.pop("targets")),
    }
    return climb(settings.pop("rungs"), probes, settings, settings.pop("taps"), keep=False)


def draw(tables: dict[str, ResultTable]) -> dict[str, Figure]:
    """Draw the trainings, and what each rung leaves."""
    from probekit.figures import plot_depth, plot_training

    own = best_rows(tables["classes"])
    return {
        "ladder": draw_rungs(tables, {"classes of the whole set": (own, "class")}, []),
        "training": plot_training(tables["pretrain"]),
        **{f"depth-{one}": plot_depth(tables["transfer"], one) for one in ("accuracy", "r2")},
    }


def smoke(plan: Plan) -> Plan:
    """Shrink to seconds: two rungs, a few images and steps."""
    return plan.having(
        rungs={
            "full": {"data": "shapeworld/source,train=120,test=40"},
            "textures": {"data": "shapeworld/textures,train=120,test=40"},
        },
        classes="shapeworld/source,train=60,test=40",
        transfer="shapeworld/unseen,train=60,test=40",
        arms=["moco-v2"],
        targets=["class", "x"],
        epochs=2,
        batch_size=32,
        queue=64,
        lr=0.1,
        precision="float32",
        taps=["layer4"],
        random=1,
    )
