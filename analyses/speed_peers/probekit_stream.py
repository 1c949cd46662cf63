"""probekit's stream with the fused engine.

# /// script
# dependencies = ["probekit-vision"]
# ///
"""

import numpy as np
from serve import images, network, serve

MOST_ROUNDS = 50


class Endless:
    """The same pixels over and over, so that no round holds a start-up."""

    def __init__(self, pixels):
        self.pixels = pixels

    def read(self, index):
        return self.pixels[index % len(self.pixels)]


def prepare(request):
    """Open one stream and warm it up; a round takes its batches from there."""
    from probekit import Backbone, ImageSet, Preprocessing, stream
    from probekit.compute import keep_freed_memory
    from probekit.data.targets import Target

    keep_freed_memory()
    half = (0.5, 0.5, 0.5)
    backbone = Backbone.from_module(
        network(request), preprocessing=Preprocessing(request["size"], request["size"], half, half)
    )
    total, batch = MOST_ROUNDS * request["images"], request["batch_size"]
    data = ImageSet(
        "noise",
        np.arange(total).astype(str),
        {"class": Target(np.zeros(total, np.int64), "class", ("one", "other"))},
        np.full(total, "train"),
        Endless(images(request)),
        "0" * 64,
    )
    readout = "patch_mean" if backbone.prefix_tokens else "gap"
    taps = [f"{path}|{readout}" for path in request["taps"]]
    _, expected = next(stream(backbone, data, taps, batch_size=batch))
    reader = stream(backbone, data, taps, batch_size=batch, engine="fused")
    _, found = next(reader)
    errors = [float(np.linalg.norm(found[tap] - one) / np.linalg.norm(one)) for tap, one in expected.items()]

    def step():
        rows = [list(next(reader)[1].values()) for _ in range(request["images"] // batch)]
        arrays = [np.concatenate(column) for column in zip(*rows, strict=True)]
        return {"images": len(arrays[0]), "taps": len(arrays), "relative_error": max(errors)}

    step()
    return step


if __name__ == "__main__":
    serve(prepare)
