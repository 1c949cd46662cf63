"""For how many of timm's architectures are layers, levels, readouts and early stop right?

A probing tool is as good as its taps: one that averages channels for positions, or a class token into the
patches, gives numbers all the same. So every name that timm lists is built with random weights and held
against what timm declares (``feature_info``: module, channels, stride) and computes (``forward_head``,
``forward_intermediates``).

Source: timm's own declarations; design of the taps in ``decisions/0002-plain-hooks.md``.

Command: ``probekit run analyses/timm_sweep.py --out reports/timm_sweep``

Minutes: about 55 on one core; finished names are kept and found again.

Expected: (measured with timm 1.0.31, 1,371 names) levels 100 %, penultimate 99.7 %, early stop 99.3 %, layers
99.1 %, strides 99.0 %, readouts 98.9 % right; 121 names of more than 350 million parameters are checked by
shapes only. Wrong are CoaT and CrossViT with a dagger (readouts), SelecSLS60 and 84 (a stage without a block
of its own), CLIP's ResNets (tokens of the attention pooling) and networks for many sizes (Gemma4, DeepSeek).
PiT with distillation and ResMLP, wrong in the committed report, were mended after it.

Would falsify it: a name that is wrong and not listed with its reason, or a share below 95 %.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from probekit import Plan, ResultTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLAN = Plan("analyses/timm_sweep.py", {"names": "*", "seconds": 60, "most_parameters": 350_000_000})


def run(plan: Plan) -> dict[str, ResultTable]:
    """Check every name."""
    # Here, so that figures are drawn from the table where torch is not.
    from timm_checks.checking import sweep

    return {"sweep": sweep(plan.settings)}


def draw(tables: dict[str, ResultTable]) -> dict[str, Figure]:
    """Draw the share of names that are right, check by check."""
    from probekit.figures.style import finish, new_figure, strip_axes, styled

    frame = tables["sweep"].frame
    frame = frame[frame["model"] == "timm"]
    with styled():
        figure = new_figure(6.4, 2.8)
        axes = figure.subplots()
        axes.plot(frame["value"], frame["target"], "o", color="#4477aa")
        for place, (share, count) in enumerate(zip(frame["value"], frame["n"], strict=True)):
            axes.text(share - 0.002, place, f"{share:.1%} of {count}", ha="right", va="center")
        axes.axvline(0.95, color="black", linewidth=0.8, linestyle="--")
        axes.set(xlim=(0.93, 1.002), xlabel="Share of timm's architectures that are right", ylabel="")
        axes.invert_yaxis()
        strip_axes(axes)
        return {
            "shares": finish(
                figure, "The dashed line is the goal, 95 %. Names that were not checked do not count."
            )
        }


def smoke(plan: Plan) -> Plan:
    """Shrink to a few small names."""
    return plan.having(names=["resnet10t", "test_vit", "test_efficientnet"], seconds=20)
