"""Images on disk to a table of probes, as one writes it by hand: timm, then scikit-learn.

# /// script
# dependencies = ["torch", "timm", "scikit-learn"]
# ///
"""

import time
from pathlib import Path

import numpy as np
from serve import network, serve


def prepare(request):
    """Nothing beforehand: a user's script starts from nothing, too."""

    def step():
        began = time.perf_counter()
        import timm.data
        import torch
        from PIL import Image
        from sklearn.linear_model import LogisticRegression

        net = network(request)
        transform = timm.data.create_transform(
            (3, request["size"], request["size"]), crop_pct=0.875, interpolation="bicubic"
        )
        rows, labels, splits = [], [], []
        files = sorted(Path(request["folder"]).rglob("*.jpg"))
        for start in range(0, len(files), 64):
            some = files[start : start + 64]
            batch = torch.stack([transform(Image.open(one).convert("RGB")) for one in some])
            with torch.inference_mode():
                maps = net.forward_intermediates(batch, len(request["taps"]), intermediates_only=True)
            rows.append([one.mean((2, 3)).numpy() for one in maps])
            labels += [one.parent.name for one in some]
            splits += [one.parent.parent.name for one in some]
        y, split = np.array(labels), np.array(splits)
        fitting = np.flatnonzero(split == "train")
        held = np.zeros(len(y), bool)
        held[fitting[::5]] = True
        train, val, test = (split == "train") & ~held, held, split == "test"
        table = []
        for column in zip(*rows, strict=True):
            x = np.concatenate(column)
            x = ((x - x[train].mean(0)) / (x[train].std(0) + 1e-9)).astype(np.float32)
            fits = [
                LogisticRegression(C=1 / (train.sum() * one), tol=request["tol"], max_iter=5000).fit(
                    x[train], y[train]
                )
                for one in request["penalties"]
            ]
            best = max(fits, key=lambda fit: fit.score(x[val], y[val]))
            best = LogisticRegression(C=best.C, tol=request["tol"], max_iter=5000).fit(
                x[train | val], y[train | val]
            )
            table.append(float(best.score(x[test], y[test])))
        return {"seconds": time.perf_counter() - began, "accuracies": table}

    return step


if __name__ == "__main__":
    serve(prepare)
