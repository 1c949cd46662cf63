"""Where does a probe of each layer look, and is the thing there?

Source: Zhao, Wu, Lau and Lin, "What makes instance discrimination good for transfer learning?" (ICLR 2021),
section 3: what a representation keeps is asked place by place, here of probes. A linear probe of mean-pooled
features has an exact map (Zhou et al., CVPR 2016), so that no gradient is involved; scores after Zhang et al.
(IJCV 2018) and Arras et al. (2022), the reset of blocks after Adebayo et al. (NeurIPS 2018).

Command: ``probekit run analyses/where_probes_look.py --out reports/where_probes_look``

Minutes: MINUTES

Photographs: ``--set 'data=["data/coco_mini/coco_mini.zip,format=coco,annotations=instances"]'``, with labels
for classes and boxes for masks; 128 images to fit are few.

Expected: EXPECTED

Would falsify it: scores of the middle level within the range of probes of permuted labels, random networks at
the level of trained ones there, or maps that survive the reset of all blocks below their tap.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from probekit import Plan, ResultTable, attribute
from probekit.figures import draw_attribution

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLAN = Plan(
    "analyses/where_probes_look.py",
    {
        "models": ["imagenet=tf_efficientnet_lite0:wheel,size=96"],
        "data": ["shapeworld/source,train=1000,test=300,annotations=masks"],
        "taps": "levels",
        "images": 200,
        "random": 3,
        "permutations": 5,
        "cascade": True,
    },
)


def run(plan: Plan) -> dict[str, ResultTable]:
    """Score maps of probes at the end of every level."""
    return {"attribute": attribute(**plan.settings)}


def draw(tables: dict[str, ResultTable]) -> dict[str, Figure]:
    """Draw scores against depth, maps over images, and cascades of resets."""
    return draw_attribution(tables["attribute"])


def smoke(plan: Plan) -> Plan:
    """Shrink to seconds: one control, a few images, few permutations."""
    return plan.having(
        data=["shapeworld/source,train=200,test=60,annotations=masks"],
        models=["resnet10t:random,size=64"],
        images=20,
        random=1,
        permutations=2,
        penalties=[1.0, 0.1, 0.01],
    )
