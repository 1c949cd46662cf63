"""What images does a layer not tell apart, and how fast can they be made?

Two parts: images made from a low, a middle and a high layer of pretrained networks, all to one residual of
the features, beside random networks; and a race to that residual against the published recipe in a plain
loop.

Source: Zhao, Wu, Lau and Lin, "What makes instance discrimination good for transfer learning?" (ICLR 2021),
section 3, and its published code; Ulyanov, Vedaldi and Lempitsky, "Deep Image Prior" (CVPR 2018).

Command: ``probekit run analyses/feature_inversion.py --out reports/feature_inversion``

Minutes: of the committed report, with three checkpoints at 64 px, their controls and two photographs of
ImageNet in two draws, set by ``--set``, about 19 for the pictures on one core; of the race 2 to 5 for a cell
at 64 px and about 11 at 128 px. Finished cells are kept and found again.

Expected: (measured, residual 0.05) low layers give the picture back: PSNR 24.1 dB (EfficientNet-Lite0), 24.6
(MobileNetV2) and 32.0 (ResNet-56 trained on CIFAR-10), other images 7 to 9; middle layers keep outline and
some colour, 14.8, 13.9 and 24.4; of the high layers only the ResNet's reaches the residual (15.9), the others
end at 0.06 and are not ranked. Random networks are harder to invert than trained ones: no tap reaches the
residual with all images. The race, on four other photographs: the preset needs a quarter to a fourteenth of
the processor's time of the published recipe, the recipe's own network in probekit's loop half to five sixths;
at the same residual the preset's images are nearer to the true ones in seven of eight cells (0.1 to 6.0 dB,
the interval above zero in one), and 0.7 dB further in one (ResNet-18, 128 px; the interval holds zero).

Would falsify it: PSNR that rises with depth; a cell of the race where the preset is less than twice as fast,
or its images are further from the true ones, by an interval that leaves zero out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from speed_peers.racing import Facts, Method, race

from probekit import ImageSet, Plan, ResultTable, open_images, reconstruct
from probekit.compute import software_versions
from probekit.files import append_line, cache_folder, digest_json, read_lines
from probekit.functional import t_interval
from probekit.progress import progress_bar
from probekit.results.schema import LEVELS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

PLAN = Plan(
    "analyses/feature_inversion.py",
    {
        # "photographs": squares cut from the two sample images of scikit-learn, which are always at hand.
        "data": "photographs",
        "models": ["imagenet=tf_efficientnet_lite0:wheel,size=64"],
        "taps": "levels",
        "random": 1,
        "shown": 6,
        "draws": 3,
        "residual": 0.05,
        "preset": "preview",
        "race": {
            # Network, side in pixels, preset, level.
            "cells": [
                ["tf_efficientnet_lite0:wheel", 64, "preview", "low"],
                ["tf_efficientnet_lite0:wheel", 64, "preview", "mid"],
                ["resnet18:random", 64, "preview", "low"],
                ["resnet18:random", 64, "preview", "mid"],
                ["mobilenetv2_100:random", 64, "preview", "low"],
                ["mobilenetv2_100:random", 64, "preview", "mid"],
                ["tf_efficientnet_lite0:wheel", 128, "standard", "low"],
                ["resnet18:random", 128, "standard", "low"],
                ["tf_efficientnet_lite0:wheel", 64, "preview", "high"],
                ["resnet18:random", 128, "standard", "mid"],
            ],
            "rates": [0.01],
            "images": 4, "steps": 1000, "rounds": 1, "threads": 1, "budget_s": 3600,
        },
    },
)  # fmt: skip
CROP_PX, CROPS = 192, 12
REFERENCE, SAME = "published recipe, rate {:g}", "probekit, the recipe's network, rate {:g}"
PRESET = "probekit, preset"


def run(plan: Plan) -> dict[str, ResultTable]:
    """Make the images, then race; cells of both are kept in the cache folder."""
    settings = dict(plan.settings)
    racing = settings.pop("race")
    word = settings.pop("data")
    images = photographs() if word == "photographs" else open_images(word)
    tables = {"inversions": reconstruct(data=images, method="inversion", **settings)}
    if racing["cells"]:
        tables["race"] = _race(images, racing, settings["residual"])
    return tables


def photographs() -> ImageSet:
    """Return squares of the two sample images of scikit-learn, evenly spaced."""
    from sklearn.datasets import load_sample_images

    squares = []
    for photograph in load_sample_images().images:
        height, width = photograph.shape[:2]
        rows = np.linspace(0, height - CROP_PX, 3).round().astype(int)
        columns = np.linspace(0, width - CROP_PX, CROPS // 3).round().astype(int)
        squares += [photograph[row : row + CROP_PX, one : one + CROP_PX] for row in rows for one in columns]
    pixels = np.stack(squares)
    return ImageSet.from_arrays(
        "photographs", pixels, np.arange(len(pixels)) // CROPS, np.full(len(pixels), "test")
    )


def _race(images: ImageSet, settings: Mapping[str, Any], residual: float) -> ResultTable:
    names = ("model", "size", "preset", "level")
    cells = [dict(zip(names, cell, strict=True)) for cell in settings["cells"]]
    kept = {name: value for name, value in settings.items() if name != "cells"}
    common = {**kept, "residual": residual, "data": images.digest}
    journal = (
        cache_folder() / "inversion_race" / digest_json([common, software_versions()])[:16] / "cells.jsonl"
    )
    done = {line["key"]: line for line in read_lines(journal)}
    rows: list[Facts] = []
    with progress_bar(len(cells), "Racing", "cell") as bar:
        for cell in cells:
            key = digest_json(cell)
            if key not in done:
                done[key] = {"key": key, **_cell(images, cell, settings, residual)}
                append_line(journal, done[key])
            rows += _rows(cell, done[key], settings["images"])
            bar.update(1)
    return ResultTable.from_rows(rows, {"analysis": "race", "versions": software_versions()})


def _cell(images: ImageSet, cell: Facts, settings: Mapping[str, Any], residual: float) -> Facts:
    # Here, so that figures are drawn from the table where torch is not.
    from probekit import load_backbone
    from probekit.reconstruction.inversion import mean_activation
    from probekit.taps.layers import resolve_taps

    model = f"{cell['model']},size={cell['size']}"
    backbone = load_backbone(model)
    tap = resolve_taps(backbone, "levels")[LEVELS.index(cell["level"])].path
    mean, _ = mean_activation(backbone, images, f"{tap}|raw")
    # In the middle of as many equal parts; the settings of the presets were tried on other images.
    chosen = (len(images) * (np.arange(settings["images"]) + 0.5) / settings["images"]).astype(int)
    pixels = np.stack([images.pixels(int(row), backbone.preprocessing) for row in chosen])
    asks = {name: settings[name] for name in ("steps", "threads")}
    asks |= {"model": model, "size": cell["size"], "preset": cell["preset"], "tap": tap}
    asks |= {"residual": residual, "seed": 0}
    methods = [Method(PRESET, "prior_probekit", {"same": False})]
    for rate in settings["rates"]:
        methods.append(Method(REFERENCE.format(rate), "prior_reference", {"rate": rate}))
        methods.append(Method(SAME.format(rate), "prior_probekit", {"same": True, "rate": rate}))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "images.npz"
        np.savez(path, pixels=pixels, mean=mean)
        said = race(
            methods, {**asks, "images": str(path)}, rounds=settings["rounds"], budget=settings["budget_s"]
        )
    return {"tap": tap, "said": said}


def _rows(cell: Facts, found: Facts, count: int) -> Iterator[Facts]:
    """Yield seconds, PSNR and SSIM of every method where all images reached the residual.

    Beside them stand the differences to the recipe, image by image, with a t interval.
    """
    recipes = [
        answers[-1]
        for name, answers in found["said"].items()
        if name.startswith("published") and answers[-1].get("reached") == count
    ]
    for name, answers in found["said"].items():
        last = answers[-1]
        row: Facts = {
            "analysis": "race", "model": name, "arch": cell["model"], "tap": found["tap"],
            "level": cell["level"], "data": f"{cell['size']} px", "n": count,
        }  # fmt: skip
        if "error" in last:
            yield row | {"metric": "seconds", "status": last["error"]}
            continue
        told = {name: last[name] for name in ("steps", "residual", "reached")}
        if last["reached"] < count:
            status = (
                f"{last['reached']} of {count} images reached the residual, the worst {last['residual']:.3g}"
            )
            yield row | {"metric": "seconds", "status": status, "params": told}
            continue
        # Of the processor: one thread, whatever else the machine does meanwhile.
        seconds = [one["cpu_s"] for one in answers]
        span = {"ci_low": min(seconds), "ci_high": max(seconds), "ci_kind": f"range,{len(seconds)}"}
        yield row | {"metric": "seconds", "value": float(np.median(seconds)), "params": told, **span}
        for metric in ("psnr", "ssim"):
            yield row | {"metric": metric, "value": float(np.mean(last[metric]))}
            if recipes and not name.startswith("published"):
                nearest = max(recipes, key=lambda one: float(np.mean(one[metric])))
                away = np.subtract(last[metric], nearest[metric])
                yield row | {"metric": f"{metric}_difference", **_mean_with_interval(away)}


def _mean_with_interval(values: NDArray[np.float64]) -> Facts:
    """Return the mean of a few numbers with its 95 % t interval; none with fewer than two."""
    found: Facts = {"value": float(values.mean())}
    if len(values) < 2:
        return found
    low, high = t_interval(values)
    return found | {"ci_low": low, "ci_high": high, "ci_kind": f"t,{len(values)}"}


def draw(tables: dict[str, ResultTable]) -> dict[str, Figure]:
    """Draw made images, errors, residuals, and the race."""
    from probekit.figures import draw_reconstruction

    figures = draw_reconstruction(tables["inversions"])
    if "race" in tables:
        figures["race"] = _draw_race(tables["race"].frame)
    return figures


def _draw_race(frame: pd.DataFrame) -> Figure:
    from probekit.figures.style import COLOURS, finish, new_figure, styled

    rows = frame[(frame["metric"] == "seconds") & frame["value"].notna()]
    cells = list(rows[["data", "arch", "level"]].drop_duplicates().itertuples(index=False, name=None))
    with styled():
        figure = new_figure(6.4, 1.2 + 0.28 * len(cells))
        axes = figure.subplots()
        for place, cell in enumerate(cells):
            own = rows[(rows["data"] == cell[0]) & (rows["arch"] == cell[1]) & (rows["level"] == cell[2])]
            fastest = _fastest(own)
            for name, colour in zip(fastest, COLOURS, strict=False):
                axes.plot(fastest[name], place, "o", color=colour, label=None if place else name)
        axes.set_yticks(
            range(len(cells)), [f"{arch.split(':')[0]}, {level}, {data}" for data, arch, level in cells]
        )
        axes.set_ylim(len(cells) - 0.5, -0.5)
        axes.set(xscale="log", xlabel="Seconds of one core to the same residual, all images")
        axes.legend(fontsize=7, frameon=False)
    return finish(figure, "Seconds until every image has the residual; recipes at their fastest rate.")


def _fastest(rows: pd.DataFrame) -> dict[str, float]:
    """Return the least seconds of the recipe, of its network in probekit's loop, and of the preset."""
    kinds: Sequence[tuple[str, str]] = (
        ("published recipe", "published recipe"), ("probekit, same network", SAME.split(",")[1]),
        (PRESET, PRESET),
    )  # fmt: skip
    found = {name: rows.loc[rows["model"].str.contains(part, regex=False), "value"] for name, part in kinds}
    return {name: float(values.min()) for name, values in found.items() if len(values)}


def smoke(plan: Plan) -> Plan:
    """Shrink to seconds: one control, two images, a coarse residual, one cell of the race."""
    racing = {**plan.settings["race"], "rates": [0.01], "images": 1, "steps": 200}
    racing["cells"] = [["resnet10t:random", 32, "preview", "low"]]
    return plan.having(
        models=["resnet10t:random,size=32"], random=1, shown=2, draws=2, residual=0.5, race=racing
    )
