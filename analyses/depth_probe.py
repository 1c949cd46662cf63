"""What does each level know? Class and nuisance factors, probed at every stage against random init.

Source: finding 1 of Zhao, Wu, Lau and Lin, "What makes instance discrimination good for transfer learning?"
(ICLR 2021), asked of a single supervised backbone: which of its levels hold what a new task may need? The
protocol (fit on train, choose on val, score test once) is that of ``probekit.probe``.

Command: ``probekit run analyses/depth_probe.py --out reports/depth_probe``

Minutes: about 4 on two cores with ``--jobs 2``.

Expected: (measured with these settings; half-widths of intervals mostly below 0.04, at most 0.11):
ShapeWorld's class is at chance at the first stage (0.06), best at the fourth (0.79) and a little lower at
the penultimate tap (0.74); random init stays at chance. Of the factors, the background (R² 0.99 to 0.56)
and hue (0.73 to 0.35) are read best at the first stage; clutter (0.91), scale (0.65) and position (x 0.31,
y 0.62) rise towards the fourth or fifth stage and fall after it; rotation (0.19) and articulation (0.03)
are hardly read at all. That position would be read best early was expected and is refuted: under global
average pooling early maps keep none of it.

Would falsify it: hue or background read as well at the penultimate tap as at the first stage (within the
intervals), class accuracy still rising after the fifth stage, or a random-init stage on a par with the
trained one on the class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from probekit import Plan, ResultTable, probe
from probekit.figures import draw_probe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLAN = Plan(
    "analyses/depth_probe.py",
    {
        "models": ["imagenet=tf_efficientnet_lite0:wheel,size=96"],
        "data": ["shapeworld/source,train=2000,test=1000", "digits"],
        "taps": ["stages", "penultimate"],
        "permutations": 20,
        "random": 3,
    },
)


def run(plan: Plan) -> dict[str, ResultTable]:
    """Probe every stage."""
    return {"probe": probe(**plan.settings)}


def draw(tables: dict[str, ResultTable]) -> dict[str, Figure]:
    """Draw every figure the table supports."""
    return draw_probe(tables["probe"])


def smoke(plan: Plan) -> Plan:
    """Shrink to seconds: one control, one data set of a few images, few penalties and draws."""
    return plan.having(
        data=["shapeworld/source,train=200,test=100"],
        models=["resnet10t:random,size=64"],
        random=1,
        permutations=3,
        penalties=[1.0, 0.1, 0.01],
        bootstrap_draws=200,
        shots=[1, 5],
        few_shot_draws=2,
    )
