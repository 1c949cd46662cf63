"""How alike are the levels of one backbone, of backbones trained on other data, and of random ones?

Source: Kornblith, Norouzi, Lee and Hinton, "Similarity of Neural Network Representations Revisited" (ICML
2019), and its critics: debiased values beside biased ones, exact nulls, and what is left without each layer's
leading component (Davari et al., ICLR 2023).

Command: ``probekit run analyses/level_similarity.py --out reports/level_similarity``

Minutes: about 10 on two cores with the plan's own images. The committed report has two data sets and three
checkpoints, set by ``--set``; its plan is in the report: 800 images, one a class of ImageNet, and 3,636
traffic signs, read by EfficientNet-Lite0 and MobileNetV2 trained on ImageNet, and by MobileNetV2 trained on
birds.

Expected: (measured, 96 px, debiased CKA at the low, mid and high level) two architectures trained on ImageNet
are alike, 0.85, 0.86 and 0.55 (signs 0.93, 0.95 and 0.81), more than one architecture trained on ImageNet and
on birds, 0.64, 0.69 and 0.26 (signs 0.82, 0.82 and 0.46): at the high level it is the training data that
counts. A network and its random draw are alike at the low level alone: 0.46, 0.09 and 0.05 for Lite0, 0.28,
0.09 and 0.04 for MobileNetV2; on signs, which light and colour tell apart, 0.56, 0.19, 0.13 and 0.73, 0.19,
0.19. Without leading components trained pairs fall to 0.77, 0.80 and 0.54, and to 0.50, 0.60 and 0.20; random
high levels to 0.00. Neighbouring levels of Lite0 are less alike than the literature lets expect: low and mid
0.48, mid and high 0.34 (signs 0.35 and 0.79). Undebiased, high levels of 1,280 features read 0.64 instead of
0.55 over 800 images, with a null of 0.20.

Would falsify it: a trained high level as much like a random one as like the trained mid level.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from probekit import Plan, ResultTable, measure_similarity
from probekit.figures import draw_similarity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLAN = Plan(
    "analyses/level_similarity.py",
    {
        "models": ["imagenet=tf_efficientnet_lite0:wheel,size=96"],
        "data": ["shapeworld/source,train=1000,test=500", "digits"],
        "taps": ["levels"],
        "random": 1,
    },
)

# Most telling first; the others stand in the table.
DRAWN = ("cka_debiased", "cka_debiased_rest", "procrustes", "svcca", "mutual_knn")


def run(plan: Plan) -> dict[str, ResultTable]:
    """Compare all levels."""
    return {"similarity": measure_similarity(**plan.settings)}


def draw(tables: dict[str, ResultTable]) -> dict[str, Figure]:
    """Draw a heat-map a measure, with a panel a data set."""
    figures = draw_similarity(tables["similarity"])
    wanted = [f"layers-{metric}" for metric in DRAWN]
    return {name: figures[name] for name in wanted if name in figures}


def smoke(plan: Plan) -> Plan:
    """Shrink to seconds: one random network, few images, pairings and groups."""
    return plan.having(
        data=["shapeworld/source,train=120,test=60"],
        models=["resnet10t:random,size=64"],
        permutations=2,
        pairwise=60,
        groups=5,
    )
