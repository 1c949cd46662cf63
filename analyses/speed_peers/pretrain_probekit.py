"""One arm of probekit's pretraining: steps of its own loop, views included.

# /// script
# dependencies = ["probekit-vision"]
# ///
"""

from serve import images, serve

CLASSES = 20


def prepare(request):
    """A round trains on all images once."""
    import numpy as np
    import torch

    from probekit import load_backbone
    from probekit.pretraining.arms import Setup, build_learner, find_arm
    from probekit.pretraining.batches import TwoViews
    from probekit.training.augmentation import parse_augmentation
    from probekit.training.loop import Journal, train
    from probekit.training.optimisers import Optimisation

    torch.set_num_threads(request["threads"])
    pixels, size, batch = images(request), request["size"], request["batch_size"]
    labels = np.arange(len(pixels)) % CLASSES
    setup = Setup("resnet10_w16", size, CLASSES, queue=request["queue"])
    learner = build_learner(find_arm(request["arm"]), setup, 0).to(memory_format=torch.channels_last)
    preprocessing = load_backbone("resnet10_w16", "random").preprocessing
    views = TwoViews(
        pixels,
        labels,
        parse_augmentation("frcgb"),
        preprocessing,
        batch,
        setup.groups,
        0,
        torch.device("cpu"),
    )
    optimisation = Optimisation(len(pixels) // batch, 0.03)

    def step():
        train(learner, views, optimisation, Journal())
        return {"images": optimisation.steps * batch}

    step()
    return step


if __name__ == "__main__":
    serve(prepare)
