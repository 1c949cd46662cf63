"""Feature inversion by probekit: with the network of the published recipe, or by a preset.

# /// script
# dependencies = ["probekit-vision"]
# ///
"""

import math
import time
from dataclasses import replace

from inverting import given, told
from serve import serve


def prepare(request):
    """Load network and images; a round inverts all images, tracing and proving the forward pass included."""
    import torch

    from probekit.reconstruction.inversion import PRESETS, invert

    backbone, images, mean = given(request)
    facts = backbone.preprocessing
    preset = replace(PRESETS[request["preset"]], steps=request["steps"], patience=request["steps"])
    if request["same"]:
        scales, paper = int(math.log2(request["size"])) - 2, PRESETS["paper"]
        preset = replace(
            paper, channels=paper.channels[:scales], kernels=paper.kernels[:scales], fixed=False,
            rate={"network": request["rate"]}, steps=request["steps"], patience=request["steps"],
        )  # fmt: skip
    mean_colour, std = (torch.tensor(one).view(3, 1, 1) for one in (facts.mean, facts.std))
    pixels = ((images * std + mean_colour) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()

    def step():
        began, began_cpu = time.perf_counter(), time.process_time()
        found = invert(
            backbone, pixels, f"{request['tap']}|raw", mean.numpy(), preset=preset,
            residual=request["residual"], seed=request["seed"], device="cpu",
        )  # fmt: skip
        seconds = time.perf_counter() - began, time.process_time() - began_cpu
        made = (torch.from_numpy(found.made).permute(0, 3, 1, 2) - mean_colour) / std
        return told(request, made, found.residuals.tolist(), found.steps.tolist(), seconds)

    return step


if __name__ == "__main__":
    serve(prepare)
