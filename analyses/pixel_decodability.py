"""How much of the image can a linear map read back from each layer, and where?

Source: Zhao, Wu, Lau and Lin, "What makes instance discrimination good for transfer learning?" (ICLR 2021),
section 3: images are inverted from features, and supervised features lose many regions. Inversion with an
image prior shows pictures; this puts a number on what a linear map reads, the same for every tap, with a
ceiling, a null and random networks beside it.

Command: ``probekit run analyses/pixel_decodability.py --out reports/pixel_decodability``

Minutes: about 1 on two cores with the plan's own images.

Expected: not measured yet.

Would falsify it: R² that rises with depth, permuted images far from 0, or a ceiling below 0.99.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from probekit import Plan, ResultTable, reconstruct
from probekit.figures import draw_reconstruction

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLAN = Plan(
    "analyses/pixel_decodability.py",
    {
        "models": ["imagenet=tf_efficientnet_lite0:wheel,size=128"],
        "data": ["shapeworld/source,train=1000,test=300"],
        "taps": "stages",
        "random": 3,
        "permutations": 20,
    },
)


def run(plan: Plan) -> dict[str, ResultTable]:
    """Read pixels from every stage."""
    return {"reconstruct": reconstruct(**plan.settings)}


def draw(tables: dict[str, ResultTable]) -> dict[str, Figure]:
    """Draw R² against depth and by place, and examples."""
    return draw_reconstruction(tables["reconstruct"])


def smoke(plan: Plan) -> Plan:
    """Shrink to seconds: one control, a few images, few permutations."""
    return plan.having(
        data=["shapeworld/source,train=200,test=60"],
        models=["resnet10t:random,size=128"],
        random=1,
        permutations=3,
    )
