"""How alike are the levels of one backbone, of backbones trained on other data, and of random ones?

Source: Kornblith, Norouzi, Lee and Hinton, "Similarity of Neural Network Representations Revisited" (ICML
2019), and its critics: debiased values beside biased ones, exact nulls, and what is left without each layer's
leading component (Davari et al., ICLR 2023).

Command: ``probekit run analyses/level_similarity.py --out reports/level_similarity``

Minutes: about 10 on two cores with the plan's own images.

Expected: (from the literature, not measured yet) neighbouring levels of one backbone alike (debiased CKA over
0.5), random levels less like trained ones the deeper they lie, and values that fall, but not to 0, without
leading components.

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


def run(plan: Plan) -> dict[str, ResultTable]:
    """Compare all levels."""
    return {"similarity": measure_similarity(**plan.settings)}


def draw(tables: dict[str, ResultTable]) -> dict[str, Figure]:
    """Draw a heat-map a measure and data set."""
    return draw_similarity(tables["similarity"])


def smoke(plan: Plan) -> Plan:
    """Shrink to seconds: one random network, few images, pairings and groups."""
    return plan.having(
        data=["shapeworld/source,train=120,test=60"],
        models=["resnet10t:random,size=64"],
        permutations=2,
        pairwise=60,
        groups=5,
    )
