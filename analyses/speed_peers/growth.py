"""How probekit's memory and time grow with images, taps and rows.

# /// script
# dependencies = ["probekit-vision"]
# ///
"""

import tempfile
import time

import numpy as np
from serve import network, peak_bytes, serve


class Noise:
    """Images made when they are read, so that none of them is kept."""

    def __init__(self, size):
        self.pixels = np.random.default_rng(0).integers(0, 256, (64, size, size, 3), dtype=np.uint8)

    def read(self, index):
        return self.pixels[index % len(self.pixels)]


def prepare(request):
    """Extract from images, or solve on rows; peak memory before and after is told."""
    import torch

    torch.set_num_threads(request["threads"])
    return _extraction(request) if "images" in request else _rows(request)


def _extraction(request):
    from probekit import Backbone, ImageSet, Preprocessing, extract
    from probekit.data.targets import Target

    size, count = request["size"], request["images"]
    backbone = Backbone.from_module(network(request), preprocessing=Preprocessing(size, size))

    def images(number, name):
        target = Target(np.zeros(number, np.int64), "class", ("one", "other"))
        return ImageSet(
            name, np.arange(number).astype(str), {"class": target}, np.full(number, "train"), Noise(size),
            f"{number:064d}",
        )  # fmt: skip

    def step():
        with tempfile.TemporaryDirectory() as store:
            # What the model, one batch and the engine need is there before the count begins.
            extract(backbone, images(256, "few"), request["taps"], store=store, engine="fused")
            before, began = peak_bytes(), time.perf_counter()
            extract(backbone, images(count, "many"), request["taps"], store=store, engine="fused")
            return {"seconds": time.perf_counter() - began, "growth_bytes": peak_bytes() - before}

    return step


def _rows(request):
    from probekit.functional import fit_softmax

    stream = np.random.default_rng(0)
    d, classes = request["d"], request["classes"]
    centres = stream.normal(size=(classes, d)).astype(np.float32)

    def matrix(rows):
        labels = stream.integers(0, classes, rows)
        return centres[labels] * 0.5 + stream.standard_normal((rows, d), np.float32), labels

    def step():
        fit_softmax(*matrix(1000), request["penalties"], n_classes=classes)
        x, labels = matrix(request["rows"])
        before, began = peak_bytes(), time.perf_counter()
        fit_softmax(x, labels, request["penalties"], n_classes=classes)
        return {"seconds": time.perf_counter() - began, "growth_bytes": peak_bytes() - before}

    return step


if __name__ == "__main__":
    serve(prepare)
