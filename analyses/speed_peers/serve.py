"""What every peer script shares: it is set up once, then does one round whenever it is told to.

A script is started with a request, JSON in its first argument. It answers with lines of JSON on standard
output: one when it is ready, one a round, one with its peak memory at the end. Standard output of the
libraries under test goes to standard error.
"""

import json
import os
import resource
import sys
import time


def serve(prepare):
    """Answer requests.

    Args:
        prepare: From the request to a function that does one round and returns what is to be told of it;
            ``seconds`` is added unless it says so itself.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def tell(**facts):
        print(json.dumps(facts), file=answers, flush=True)

    request = json.loads(sys.argv[1])
    try:
        step = prepare(request)
        before = peak_bytes()
        tell(ready=True, peak_bytes=before)
        for line in sys.stdin:
            if line.strip() != "go":
                break
            began = time.perf_counter()
            facts = step()
            tell(**({"seconds": time.perf_counter() - began} | facts), peak_bytes=peak_bytes())
    except Exception as error:  # what a peer raises is its result
        words = str(error).strip().splitlines() or [""]
        tell(error=f"{type(error).__name__}: {words[0]}"[:200])
        raise


def peak_bytes():
    """Return the largest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def images(request):
    """Return (n, side, side, 3) uint8 noise."""
    import numpy as np

    shape = (request["images"], request["size"], request["size"], 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def batches(request):
    """Yield normalised (n, 3, side, side) float32 batches."""
    import torch

    pixels = images(request)
    for start in range(0, len(pixels), request["batch_size"]):
        values = torch.from_numpy(pixels[start : start + request["batch_size"]]).permute(0, 3, 1, 2)
        yield values.contiguous().float().div_(255).sub_(0.5).div_(0.5)


def network(request, **settings):
    """Return timm's network with random or given weights, and torch on the threads asked for."""
    import timm
    import torch

    torch.set_num_threads(request["threads"])
    torch.manual_seed(0)
    net = timm.create_model(request["arch"], **settings)
    if "weights" in request:
        net.load_state_dict(torch.load(request["weights"], weights_only=True))
    return net.eval()


def pooled(value):
    """Return (n, D): the mean over positions of a map, or over the patches behind one class token."""
    return value.mean((2, 3)) if value.ndim == 4 else value[:, 1:].mean(1)


def collect(request, forward):
    """Return one round: every batch passes once, and the pooled values of every tap end up in one array."""
    import numpy as np
    import torch

    def step():
        with torch.inference_mode():
            found = [[one.numpy() for one in forward(batch)] for batch in batches(request)]
        arrays = [np.concatenate(column) for column in zip(*found, strict=True)]
        return {"images": len(arrays[0]), "taps": len(arrays)}

    step()
    return step


def probing(request):
    """Return features and labels of train, val and test, standardised by train, in float32."""
    import numpy as np

    x, y = np.load(request["features"]), np.load(request["labels"])
    train, val = request["train"], request["train"] + request["val"]
    mean, scale = x[:train].mean(0, dtype=np.float64), x[:train].std(0, dtype=np.float64)
    x = ((x - mean) / np.where(scale > 0, scale, 1)).astype(np.float32)
    return (x[:train], y[:train]), (x[train:val], y[train:val]), (x[val:], y[val:])


def sweep(request, fit):
    """Return one round of a sweep over penalties: fit each, score on val, choose, score on test once.

    Args:
        request: ``penalties``, and ``budget_s``: if one fit shows that the sweep would take longer, only
            that one is made and the time is extrapolated.
        fit: From training data and a penalty to (D, C) weights and (C,) intercepts.
    """
    import numpy as np

    train, val, test = probing(request)
    penalties = request["penalties"]

    def step():
        began = time.perf_counter()
        middle = len(penalties) // 2
        fits = {middle: fit(train, penalties[middle])}
        first = time.perf_counter() - began
        if first * len(penalties) > request["budget_s"]:
            return {"seconds": first * len(penalties), "extrapolated": True}
        fits |= {place: fit(train, one) for place, one in enumerate(penalties) if place != middle}
        found = chosen(request, fits, val, test)
        seconds = time.perf_counter() - began
        weights = np.stack([fits[place][0] for place in sorted(fits)])
        intercepts = np.stack([fits[place][1] for place in sorted(fits)])
        np.savez(request["answer"], penalties=penalties, weights=weights, intercepts=intercepts)
        return {"seconds": seconds, **found}

    return step


def chosen(request, fits, val, test):
    """Return the penalty with the best val accuracy, the stronger at a tie, and its test accuracy."""
    scores = {place: float(((val[0] @ w + b).argmax(1) == val[1]).mean()) for place, (w, b) in fits.items()}
    best = min(scores, key=lambda place: (-scores[place], -request["penalties"][place]))
    w, b = fits[best]
    return {
        "penalty": request["penalties"][best],
        "val": scores[best],
        "test": float(((test[0] @ w + b).argmax(1) == test[1]).mean()),
    }
