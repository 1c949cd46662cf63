"""How much of the variation inside a class does each layer keep, and along which directions?

Source: finding 2 of Zhao, Wu, Lau and Lin, "What makes instance discrimination good for transfer learning?"
(ICLR 2021): supervised training makes features invariant inside categories. The pair to read is total
variance (ICC, class-distance normalised variance) and variance along the line between classes (directional;
Luthra, Salunkhe and Galanti 2026, arXiv 2603.03530), which alone makes a classifier of few images err.

Command: ``probekit run analyses/class_geometry.py --out reports/class_geometry``

Minutes: about 8 on two cores with the plan's own images. The committed report has four data sets and three
checkpoints, set by ``--set`` and without ``factors``; a second one, reports/class_geometry_cifar, three
CIFAR ResNets and an autoencoder on 6,000 images of CIFAR-10, whose classes the ResNets were trained on; a
third, reports/class_geometry_factors, what is known of ShapeWorld's factors inside classes. Their plans are
in the reports.

Expected: (measured, EfficientNet-Lite0 and MobileNetV2 at 96 px) ICC of ShapeWorld's class 0 at the first
stage and 0.23 [0.19, 0.26] at the fifth, 0.21 at the penultimate tap; 0.15 for MobileNetV2 of ImageNet,
0.03 after its training on birds; random init at most 0.014. On DTD, GTSRB and persons (face68) trained
networks peak at the fourth or fifth stage; early ICC of random init is as high as theirs on persons and
signs, which colour and light tell apart. Directional variance of trained networks falls to a twentieth or
thirtieth of the total at the last stages. On the classes they were trained on, networks end invariant
instead: ICC of CIFAR ResNets of 20, 32 and 56 layers is 0.23 at the first stage, 0.25, 0.26 and 0.23 at the
second, and 0.56, 0.59 and 0.61 [0.54, 0.67] at the last; that of an autoencoder 0.11 and 0.11, of random
init 0.08 to 0.19 throughout.

Inside classes (R² of ridge probes at the five stages, features as means over 3 × 3 places): position is not
lost by the layers (x 0.65 to 0.93, y 0.55 to 0.95 for Lite0) but by global pooling (0.00 at the first three
stages, then x 0.31 and 0.14, y 0.46 and 0.62). Rotation is read from 0.00, 0.35, 0.49, 0.62, 0.48, and from
pooled features at most 0.19; random networks read it at most to 0.15. Hue survives the training on birds
(pooled 0.69, 0.60, 0.79, 0.82, 0.79) and less that on ImageNet (Lite0 0.73, 0.29, 0.34, 0.46, 0.48). Random
networks lose what they had with depth (background 0.99 to 0.13).

Would falsify it: ICC that falls with depth up to the fourth stage, a random network whose ICC rises with
depth, or directional variance as high as total variance at the stage where the class is read best.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from probekit import Plan, ResultTable, measure_geometry
from probekit.figures import draw_geometry

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLAN = Plan(
    "analyses/class_geometry.py",
    {
        "models": ["imagenet=tf_efficientnet_lite0:wheel,size=96"],
        "data": ["shapeworld/source,train=2000,test=1000", "digits"],
        "taps": ["stages", "penultimate"],
        "random": 3,
        "permutations": 20,
    },
)


def run(plan: Plan) -> dict[str, ResultTable]:
    """Measure every stage."""
    return {"geometry": measure_geometry(**plan.settings)}


def draw(tables: dict[str, ResultTable]) -> dict[str, Figure]:
    """Draw the headline measures against depth."""
    return draw_geometry(tables["geometry"])


def smoke(plan: Plan) -> Plan:
    """Shrink to seconds: one control, one data set of a few images, few permutations."""
    return plan.having(
        data=["shapeworld/source,train=200,test=100"],
        models=["resnet10t:random,size=64"],
        random=1,
        permutations=3,
    )
