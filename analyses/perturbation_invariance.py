"""Which changes of an image does each layer ignore?

Source: Ericsson, Gouk and Hospedales, "Why Do Self-Supervised Models Transfer? On the Impact of Invariance on
Downstream Tasks" (BMVC 2022): features of an image and of its changed copy are compared after whitening, as a
curve against strength, because strengths of different changes have no common scale. Zhao, Wu, Lau and Lin
(ICLR 2021) ask the same of what varies inside a class; a change of the image is the part that can be made to
measure.

Command: ``probekit run analyses/perturbation_invariance.py --out reports/perturbation_invariance``

Minutes: about 2 on two cores with the plan's own images.

Expected: the literature's: invariance to colour and light grows with depth and is larger than to geometry;
trained networks are more invariant than random ones wherever depth has mixed the image. Not measured yet.

Would falsify it: a random network whose deep features move less than a trained one's, in units of how
features vary between images, or a trained network that is more sensitive to colour than to cropping at its
last stage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from probekit import Plan, ResultTable, measure_invariance
from probekit.figures import draw_invariance

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLAN = Plan(
    "analyses/perturbation_invariance.py",
    {
        "models": ["imagenet=tf_efficientnet_lite0:wheel,size=96"],
        "data": ["shapeworld/source,train=800,test=200"],
        "taps": ["stages", "penultimate"],
        "images": 200,
        "random": 3,
        "permutations": 20,
    },
)


def run(plan: Plan) -> dict[str, ResultTable]:
    """Measure every stage."""
    return {"invariance": measure_invariance(**plan.settings)}


def draw(tables: dict[str, ResultTable]) -> dict[str, Figure]:
    """Draw variance against depth and the curves of the last stage."""
    return draw_invariance(tables["invariance"])


def smoke(plan: Plan) -> Plan:
    """Shrink to seconds: one control, a few images and perturbations."""
    return plan.having(
        data=["shapeworld/source,train=60,test=20"],
        models=["resnet10t:random,size=64"],
        perturbations=["rotation=15/45", "contrast=0.5/0.2", "flip"],
        images=20,
        random=1,
        permutations=3,
    )
