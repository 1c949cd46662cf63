"""Where does a probe of each layer look, and is the thing there?

Source: Zhao, Wu, Lau and Lin, "What makes instance discrimination good for transfer learning?" (ICLR 2021),
section 3: what a representation keeps is asked place by place, here of probes. A linear probe of
mean-pooled features has an exact map (Zhou et al., CVPR 2016), so that no gradient is involved; scores
after Zhang et al. (IJCV 2018) and Arras et al. (2022), the reset of blocks after Adebayo et al. (NeurIPS
2018).

Command: ``probekit run analyses/where_probes_look.py --out reports/where_probes_look``

Minutes: about 8 of one processor with the plan's own images. The committed report, with three models, the
controls of two architectures, and COCO beside ShapeWorld, took 48 minutes on a busy machine.

Photographs: ``--set 'data=["data/coco_mini/coco_mini.zip,format=coco,annotations=instances"]'``, with
labels for classes and boxes for masks; 128 images to fit and 61 to score are few.

Expected: (measured on 100 images at 96 px, one random network an architecture) at the end of the middle
level, EfficientNet-Lite0 has 0.35 (0.33 to 0.37) of its energy inside the object, where permuted labels
have 0.19, the centred Gaussian 0.28, a constant map 0.15 and a random network 0.18; MobileNetV2 has 0.35
trained on ImageNet and 0.31 trained on birds. At the end of the low level it is 0.31 to 0.35, beside 0.28
and 0.34 of random networks: there the contrast of the object is enough. At the end of the high level, three
places wide, maps are near the constant one (0.16 to 0.19), though Lite0's probe reads the class nearly as
well (accuracy 0.67 beside 0.72). Cascades: resetting a block with a shortcut leaves much of the map (rank
correlation 0.75 and 0.52 at the middle tap of MobileNetV2), the first block without one takes it to the
null (0.00), and so it stays. COCO-mini does not decide: scores of trained networks (0.27 to 0.34) and of
random ones (0.26 to 0.32) lie together, intervals are ±0.07 wide, and on the same images none is clearly
above the centred Gaussian (0.32).

Would falsify it: on ShapeWorld, scores of the middle level within the range of probes of permuted labels,
random networks at the level of trained ones there, or maps that survive the reset of all blocks below their
tap.
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
    table = attribute(**plan.settings)
    # Fitted probes are not what this asks for, and would be a quarter of the report.
    kept = {key: value for key, value in table.attachments.items() if not key.startswith("probes/")}
    return {"attribute": ResultTable(table.frame, table.provenance, kept)}


def draw(tables: dict[str, ResultTable]) -> dict[str, Figure]:
    """Draw scores against depth, maps over images, and cascades of resets."""
    return draw_attribution(tables["attribute"])


def smoke(plan: Plan) -> Plan:
    """Shrink to seconds: one control, a few images, few permutations."""
    return plan.having(
        data=["shapeworld/source,train=100,test=40,annotations=masks"],
        models=["resnet10t:random,size=64"],
        taps=["layer2", "layer3"],
        images=10,
        random=1,
        permutations=2,
        penalties=[1.0, 0.1, 0.01],
    )
