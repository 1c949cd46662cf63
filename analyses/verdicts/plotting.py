"""Rules drawn against their bounds."""

from __future__ import annotations

import json
import textwrap
from typing import TYPE_CHECKING

from probekit import ResultTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_rules(table: ResultTable) -> Figure:
    """Draw value and interval of every rule as distance from its bound: right of the line it holds.

    Args:
        table: Of ``rule_rows`` and ``verdict_row``.
    """
    from probekit.figures.style import add_footer, finish, looks, new_figure, plain, styled

    every = [(row, json.loads(row["params"])) for _, row in table.frame.iterrows()]
    words = {row["model"]: told for row, told in every if row["metric"] == "verdict"}
    rules = [(row, told) for row, told in every if row["metric"] == "rule_value"]
    names = list(words)
    look = looks(["required", "falsifier"])
    with styled():
        figure = new_figure(7.2, 0.9 + 0.32 * len(rules) + 0.5 * len(names))
        heights = [sum(row["model"] == name for row, _ in rules) + 1 for name in names]
        panels = figure.subplots(len(names), 1, squeeze=False, height_ratios=heights).ravel()
        for axes, name in zip(panels, names, strict=True):
            own = [(row, one) for row, one in rules if row["model"] == name]
            for place, (row, one) in enumerate(own):
                if row["value"] != row["value"]:
                    axes.text(0, place, "no values", fontsize=6, va="center", color="0.4")
                    continue
                sign = 1 if one["is"] == "above" else -1
                value, low, high = (
                    sign * (row[end] - one["bound"]) for end in ("value", "ci_low", "ci_high")
                )
                part = look[one["part"]]
                axes.plot(value, place, marker=part.marker, color=part.colour, markersize=4)
                if low == low:
                    axes.plot([low, high], [place, place], color=part.colour, linewidth=1)
            axes.axvline(0, color="0.4", linewidth=0.8, linestyle=":")
            labels = [textwrap.shorten(one["rule"], 62, placeholder="…") for _, one in own]
            axes.set_yticks(range(len(own)), [plain(one) for one in labels], fontsize=6)
            axes.set_ylim(len(own) - 0.5, -0.5)
            axes.set_title(plain(f"{name}: {words[name]['verdict']}"))
        panels[-1].set_xlabel("Distance from the bound, on the rule's side")
        notes = ["Blue: required", "Orange: falsifiers", "Bars: 95 % t-interval over pretraining seeds"]
        add_footer(figure, notes)
    return finish(figure, "Rules of each finding against their bounds.")
