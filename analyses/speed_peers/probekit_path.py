"""probekit's solver: all penalties together, or the strong ones alone where weaker ones are past the best.

# /// script
# dependencies = ["probekit-vision"]
# ///
"""

import numpy as np
from serve import probing, serve


def prepare(request):
    """Import, so that a round is the solve, the choice and one score on test."""
    import torch

    from probekit.compute import keep_freed_memory
    from probekit.functional import fit_softmax
    from probekit.probes.protocol import choose_penalty
    from probekit.probes.racing import Race

    keep_freed_memory()
    torch.set_num_threads(request["threads"])
    train, val, test = probing(request)
    penalties = np.array(sorted(request["penalties"], reverse=True))

    def step():
        work = float(train[0].size * request["classes"])
        race = Race(*val, gap=1e-4, work=work)
        path = fit_softmax(
            *train, penalties, n_classes=request["classes"], refine=race.refine if request["race"] else None
        )
        hits, losses = race.scores(path)
        choice = choose_penalty(penalties, hits.mean(1), losses.mean(1))
        best = path.at(np.flatnonzero(path.penalties == choice.penalty))
        accuracy = float((best.logits(test[0])[0].argmax(1) == test[1]).mean())
        np.savez(
            request["answer"], penalties=path.penalties, weights=path.weights, intercepts=path.intercepts,
            gap=path.gap, objective=path.objective,
        )  # fmt: skip
        return {
            "penalty": choice.penalty,
            "val": choice.score,
            "test": accuracy,
            "solved": len(path.penalties),
        }

    return step


if __name__ == "__main__":
    serve(prepare)
