"""The main job on what is built in: what small arms and EfficientNet-Lite0 know, keep and give, by level."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from probekit.plan import Plan
from probekit.probes.protocol import PENALTIES
from probekit.results.table import ResultTable

# 96 px is the smallest input at which the deepest map of this network is still 3 × 3.
IMAGENET = "imagenet=tf_efficientnet_lite0:wheel,size=96"
ARMS = {
    name: f"{name}=resnet10_w16:bundled@{arm}"
    for name, arm in {"ce": "ce", "supcon": "supcon", "moco": "moco-v2", "exemplar": "exemplar-v2"}.items()
}
PLAN = Plan(
    "demo",
    {
        "models": [IMAGENET, *ARMS.values()],
        "alike": list(ARMS.values()),
        "data": "shapeworld/source,train=1000,test=600",
        "reset": [ARMS["ce"], ARMS["moco"]],
        "task": "shapeworld/unseen,train=600,test=600",
        "taps": "levels",
        "steps": 60,
        "trials": 3,
        "permutations": 5,
        "random": 2,
    },
)


def demo(
    models: Sequence[str],
    data: str,
    *,
    alike: Sequence[str],
    reset: Sequence[str],
    task: str,
    taps: str | Sequence[str] = "levels",
    steps: int = 60,
    trials: int = 3,
    permutations: int = 5,
    random: int = 2,
    penalties: Sequence[float] = PENALTIES,
    device: str | None = None,
    store: str | Path | None = None,
    jobs: int = 1,
) -> dict[str, ResultTable]:
    """Probe models, measure what varies inside classes, read pixels back, and reset levels of some of them.

    Args:
        models: Words that name them.
        data: With classes and factors, read by all of them.
        alike: Words of those that take the same pixels, which are read back from them.
        reset: Words of those of which the first levels are kept and the others drawn anew.
        task: With classes, which these learn.
        taps: Where the models are read.
        steps: Of every training.
        trials: Of every state.
        permutations: Behind each null.
        random: Random draws of every architecture.
        penalties: Of probes, to choose from.
        device: Where it runs; the fastest there is by default.
        store: Folder or URL of what is kept.
        jobs: Processes.

    Returns:
        Tables ``probe``, ``geometry``, ``reconstruct`` and ``reset``.

    Raises:
        InputError: As those verbs do.
    """
    # Plans and pages need none of these.
    from probekit.finetuning.sweep import reset_curves
    from probekit.geometry.sweep import measure_geometry
    from probekit.probes.sweep import probe
    from probekit.reconstruction.sweep import reconstruct

    places: dict[str, Any] = {"device": device, "store": store, "jobs": jobs}
    read: dict[str, Any] = {"taps": taps, "random": random, "permutations": permutations, **places}
    return {
        "probe": probe(models, data, shots=[1, 5, 20], penalties=penalties, **read),
        "geometry": measure_geometry(models, data, **read),
        "reconstruct": reconstruct(alike, data, penalties=penalties, **read),
        "reset": reset_curves(
            reset, task, curves=["prefix"], modes=["random"], trials=trials, steps=steps, lr=[0.003], **places
        ),
    }
