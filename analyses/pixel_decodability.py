"""How much of the image can a linear map, or a small trained decoder, read back from each layer, and where?

Source: Zhao, Wu, Lau and Lin, "What makes instance discrimination good for transfer learning?" (ICLR 2021),
section 3: images are inverted from features, and supervised features lose many regions. Inversion with an
image prior shows pictures; this puts a number on what a linear map reads, the same for every tap, with a
ceiling, a null and random networks beside it. A small up-convolutional decoder (after Dosovitskiy and Brox,
CVPR 2016), trained alike on every tap, shows what is there in another form and makes pictures.

Command: ``probekit run analyses/pixel_decodability.py --out reports/pixel_decodability``

Minutes: about 6 with the plan's own images, 4 with ``--jobs 2``; most of it the decoder: 15 to 19 s of one
busy core for each tap (three trainings and the null; a fixed budget, whatever the number of images). The
committed report has 800 photographs of ImageNet, fitted on 640, three checkpoints at 128 px and boxes of
COCO, set by ``--set``; its plan is in the report. Its linear part took five minutes.

Expected: (measured, linear) R² of 8 × 8 cells falls from 0.88 (EfficientNet-Lite0; 0.88 and 0.87 MobileNetV2
trained on ImageNet and on birds; 0.83 and 0.84 random init) at the first stage to 0.51 to 0.62 at the
third, 0.18, 0.23 and 0.28 (random 0.08 and 0.07) at the fourth and 0.07, 0.05 and 0.11 (random 0) at the
fifth. Fine detail goes first: 0.24 to 0.33 at the first stage, at most 0.09 behind it; the mean colour is
still read at R² 0.12 to 0.23 at the fifth. The ceiling is above 0.99999, permuted images give −0.70 to
−0.01: the penalty chosen for the true images overfits them. Relative to its own variance the background is
read better than the foreground in all first stages (ratio of errors 0.52 to 0.57), by trained and random
networks alike; the ratio nears 1 with depth, for the network of birds latest (0.78 at the fourth stage,
where the others have 0.93 to 0.97). That supervised training loses the background first is not seen here.

Of the decoder, measured on the same photographs outside of the report: R² of 32 × 32 pixels 0.68, 0.55, 0.38,
0.12 and 0.02 over the stages of EfficientNet-Lite0, where its ceiling of the pixels themselves is 0.74, and
0.65, 0.56, 0.38, 0.03 and −0.01 of a random network; permuted images −0.02 to −0.01. On 512 training images
it reads no more than a linear map does: in bands that both have, it comes to 0.99, 0.96 and 0.85 at the first
stage where the map has 1.00, 0.99 and 0.95.

Would falsify it: R² that rises with depth, permuted images above 0 on average, or a linear ceiling below
0.99.
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
        "draws": 3,
        "steps": 200,
    },
)


def run(plan: Plan) -> dict[str, ResultTable]:
    """Read pixels from every stage, by a linear map and by a decoder."""
    settings = dict(plan.settings)
    # Judges made images, of which a linear map has none.
    perceptual = settings.pop("perceptual", None)
    return {
        "linear": reconstruct(**settings, method="linear"),
        "decoder": reconstruct(**settings, method="decoder", perceptual=perceptual),
    }


def draw(tables: dict[str, ResultTable]) -> dict[str, Figure]:
    """Draw R² against depth and by place, and examples, of both."""
    return {
        f"{method}-{name}": figure
        for method, table in tables.items()
        for name, figure in draw_reconstruction(table).items()
    }


def smoke(plan: Plan) -> Plan:
    """Shrink to seconds: one control, a few images, few permutations and steps."""
    return plan.having(
        data=["shapeworld/source,train=200,test=60"],
        models=["resnet10t:random,size=64"],
        taps=["layer1", "layer4"],
        random=1,
        permutations=3,
        draws=2,
        steps=10,
    )
