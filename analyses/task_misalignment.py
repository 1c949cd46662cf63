"""Do labels make a backbone invariant to what another task needs, and does that task suffer?

Source: finding 2 of Zhao, Wu, Lau and Lin, "What makes instance discrimination good for transfer learning?"
(ICLR 2021), and its diagnosis of detection errors. Arms that differ in their objective alone are held against
each other three times: how invariant they are inside the classes they were trained on (ICC, and R² of place
and colour inside classes), what of an object and of its place is read inside boxes at each level, and why the
boxes of detectors made from them are wrong.

Command: ``probekit run analyses/task_misalignment.py --out reports/task_misalignment``

Minutes: 2 where the store holds what ``findings.py`` and ``layer_reset_transfer.py`` left; from nothing about
90 of one core more: 42 trainings of detectors of 40 seconds each, 30 diagnoses of 95 to 180.

Expected: (from the paper, on ImageNet and VOC07) more errors of place after supervised training. In
ShapeWorld, five pretrainings each: labels lose hue (R² inside classes 0 after cross-entropy, .92 after
MoCo) and background (.73, .98), and the place hardly (y .85, .91). Inside boxes, at the level that tells
most, where a region lies is read as well (accuracy .49 and .50; offsets R² .39 and .41), and what it is only
after labels (.45, .07). So nearly all errors of detectors are of class, after all arms: they cost .62 [.49,
.75] of AP50 after cross-entropy, .92 [.89, .95] after MoCo, wrong places .001 or less.

Would falsify it: an arm that is as invariant inside classes as cross-entropy and places boxes as well as
MoCo.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ladders.arms import draw_depth, over_seeds, seed_words

from probekit import Plan, ResultTable, diagnose, measure_geometry, probe_boxes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCENES = "shapeworld/scenes,train=3000,test=2000,annotations=boxes"
PLAN = Plan(
    "analyses/task_misalignment.py",
    {
        # Where ``analyses/pretraining.py`` left the arms, and their folders in it.
        "checkpoints": "reports/pretraining/tables/pretrain/checkpoints",
        "arms": {
            "ce": "ce_images",
            "ce-mlp": "ce-mlp_images",
            "supcon": "supcon_3x-images",
            "moco-v2": "moco-v2_images",
            "exemplar-v2": "exemplar-v2_images",
        },
        "seeds": 5,
        "size": 64,
        "geometry": {"data": "shapeworld/source,train=3000,test=1000", "permutations": 3, "random": 3},
        "regions": {"data": SCENES, "permutations": 3, "random": 3},
        "boxes": {
            "data": SCENES,
            "steps": 200,
            "batch_size": 32,
            "lr": [0.001, 0.003, 0.01],
            "precision": "bfloat16",
            # As in findings.py, so that a detector is diagnosed once for both.
            "permutations": 3,
        },
    },
)

TAPS = "levels"


def run(plan: Plan) -> dict[str, ResultTable]:
    """Measure geometry and regions of every seed of every arm, and diagnose detectors made from them."""
    settings = dict(plan.settings)
    folder, arms, seeds, size = (settings.pop(name) for name in ("checkpoints", "arms", "seeds", "size"))
    geometry, regions, boxes = (settings.pop(name) for name in ("geometry", "regions", "boxes"))
    specs = {arm: seed_words(f"{folder}/{place}", seeds) for arm, place in arms.items()}
    models = [
        f"{arm} seed-{seed} images={words}" for arm, own in specs.items() for seed, words in enumerate(own)
    ]
    inside = measure_geometry(models, taps=TAPS, target="class", **geometry, **settings)
    read = probe_boxes([f"{one},size={size}" for one in models], taps=TAPS, **regions, **settings)
    sized = {arm: seed_words(f"{folder}/{place}", seeds, size) for arm, place in arms.items()}
    return {
        "geometry": inside,
        "regions": read,
        "boxes": diagnose(arms=sized, **boxes, **settings),
        "arms": ResultTable.concat(
            [over_seeds(inside, ("icc", "within_class_r2")), over_seeds(read, tuple(read.metrics))]
        ),
    }


def draw(tables: dict[str, ResultTable]) -> dict[str, Figure]:
    """Draw invariance, what is read inside boxes, and the errors of detectors."""
    from probekit.figures import draw_diagnosis

    inside = {
        "between classes": ("icc", None),
        "y inside classes": ("within_class_r2", "y"),
        "hue inside classes": ("within_class_r2", "hue"),
    }
    read = {
        "what": ("what_accuracy", None),
        "where": ("where_accuracy", None),
        "offsets": ("offset_r2", None),
    }
    return {
        "geometry": draw_depth(tables["geometry"], inside, ["Pooled features"]),
        "regions": draw_depth(tables["regions"], read, ["Inside regions of known overlap with a box"]),
        **draw_diagnosis(tables["boxes"]),
    }


def smoke(plan: Plan) -> Plan:
    """Shrink to seconds: two arms of two seeds, few images and steps."""
    return plan.having(
        arms={"ce": "ce_images", "moco-v2": "moco-v2_images"},
        seeds=2,
        size=48,
        geometry={"data": "shapeworld/source,train=200,test=100", "permutations": 3, "random": 1},
        regions={
            "data": "shapeworld/scenes,train=60,test=30,annotations=boxes",
            "permutations": 2,
            "random": 1,
            "boxes": 40,
        },
        boxes={
            "data": "shapeworld/scenes,train=60,test=20,annotations=boxes",
            "steps": 2,
            "lr": [0.001],
            "permutations": 1,
        },
    )
