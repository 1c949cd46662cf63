"""Which levels of a backbone carry what a new task gains from it?

Source: the question is that of Zhao, Wu, Lau and Lin, "What makes instance discrimination good for transfer
learning?" (ICLR 2021), whose first claim is that low and mid levels transfer; keeping some levels and
replacing the others is ours, after Yosinski et al. (NeurIPS 2014) and Matsoukas et al. (CVPR 2022), section
3. Arms that differ in their objective alone, five pretraining seeds each, and EfficientNet-Lite0 learn
traffic signs, landmarks of faces, boxes and parts of objects, with the first or the last levels kept, and the
others drawn anew at random or with the statistics of their weights. The other arms learn them whole.

Command: ``probekit run analyses/layer_reset_transfer.py --out reports/layer_reset_transfer``

Minutes: of one core, for an arm of five seeds of which levels are reset (77 trainings): 12 on parts, 50 on
boxes; for an arm learnt whole, 1.5 and 7. Signs and faces were not timed with these settings. Finished
trainings are kept and found again.

Expected: keeping low and mid recovers the whole gain, keeping mid and high or high alone does not;
where training was supervised the high level hurts. Five pretrainings each, 95 % intervals: on boxes
cross-entropy gains .145 of AP [.074, .216], of which low and mid recover .82 [.80, .86], mid and high −.01
[−.04, .01]; MoCo and Exemplar gain nothing there in 200 steps (.000 [−.001, .002]). On parts the whole
backbone gains .048 [.024, .073] of the error after cross-entropy, .047 [.023, .072] after MoCo, .042 [.012,
.073] after Exemplar; low and mid recover 1.06 [.90, 1.35], .67 [.02, .94], .85 [.62, 1.17], mid and high .47
[−.15, .91], .97 [.45, 1.19], .98 [.74, 2.29]. After cross-entropy the expectation holds; after MoCo and
Exemplar the last levels carry as much as the first.

Would falsify it: a high-level share above one half whose interval leaves 0.2 out, on landmarks, parts or
boxes; or a curve with the last levels kept above that with the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ladders.arms import seed_words

from probekit import Plan, ResultTable, reset_curves, transfer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLAN = Plan(
    "analyses/layer_reset_transfer.py",
    {
        "models": ["lite0=tf_efficientnet_lite0:wheel,size=64"],
        # Theirs alone: backward through depthwise convolutions is slower in bfloat16 than in float32.
        "models_with": {"steps": 100, "precision": "float32"},
        # Where ``analyses/pretraining.py`` left the arms, and their folders in it.
        "checkpoints": "reports/pretraining/tables/pretrain/checkpoints",
        "arms": {"ce": "ce_images", "moco-v2": "moco-v2_images", "exemplar-v2": "exemplar-v2_images"},
        "whole": {
            "ce-mlp": "ce-mlp_images",
            "supcon": "supcon_3x-images",
            "crop-only": "moco-v2_crop-only",
            "colour-only": "moco-v2_colour-only",
            "autoencoder": "autoencoder_decoder",
        },
        "seeds": {"crop-only": 3, "colour-only": 3, "autoencoder": 3},
        # Name of a table → task, data, and the input size of the arms.
        "tasks": {
            "signs": ["classification", "data/gtsrb/gtsrb43.zip", 48],
            "faces": ["landmarks", "data/face68/face68_128px.zip", 64],
            "boxes": ["detection", "shapeworld/scenes,train=3000,test=2000,annotations=boxes", 64],
            "parts": ["landmarks", "shapeworld/scenes,train=3000,test=2000,annotations=keypoints", 64],
        },
        "curves": ["prefix", "suffix"],
        "modes": ["random", "stats"],
        "trials": 3,
        "steps": 200,
        "batch_size": 32,
        "lr": [0.001, 0.003, 0.01],
        "precision": "bfloat16",
    },
)

SEEDS = 5


def run(plan: Plan) -> dict[str, ResultTable]:
    """Learn every task from every state of models and arms, and from the other arms whole."""
    settings = dict(plan.settings)
    folder, seeds, models = (settings.pop(name) for name in ("checkpoints", "seeds", "models"))
    arms, others, tasks = (settings.pop(name) for name in ("arms", "whole", "tasks"))
    own = settings.pop("models_with")
    plain = {name: value for name, value in settings.items() if name not in ("curves", "modes")}
    tables: dict[str, ResultTable] = {}
    for name, (task, data, size) in tasks.items():
        tables[name] = reset_curves([], data, arms=_specs(arms, folder, seeds, size), task=task, **settings)
        if others:
            whole = _specs(others, folder, seeds, size)
            tables[f"{name}-whole"] = transfer([], data, arms=whole, task=task, **plain)
        tables[f"{name}-models"] = reset_curves(models, data, task=task, **{**settings, **own})
    return tables


def _specs(arms: Mapping[str, str], folder: str, seeds: Mapping[str, int], size: int) -> dict[str, Any]:
    """Return the words that load every pretraining seed of each arm."""
    return {arm: seed_words(f"{folder}/{place}", seeds.get(arm, SEEDS), size) for arm, place in arms.items()}


def draw(tables: dict[str, ResultTable]) -> dict[str, Figure]:
    """Draw the curves and the trainings of every task."""
    from probekit.figures import draw_transfer

    return {
        f"{kind}-{name}": figure
        for name, table in tables.items()
        for kind, figure in draw_transfer(table).items()
    }


def smoke(plan: Plan) -> Plan:
    """Shrink to seconds: a random model and an arm of two seeds, few images and steps."""
    return plan.having(
        models=["resnet10_w16:random"],
        models_with={},
        arms={"ce": "ce_images"},
        seeds={"ce": 2},
        whole={},
        tasks={
            "unseen": ["classification", "shapeworld/unseen,train=120,test=40", 48],
        },
        curves=["prefix"],
        modes=["random"],
        trials=2,
        steps=2,
        lr=[0.001],
        precision="float32",
    )
