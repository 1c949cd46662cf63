"""What the peers that invert features share: networks, images, and what is said of the images made."""


def given(request):
    """Return the backbone, prepared images (n, 3, size, size) and the mean activation."""
    import numpy as np
    import torch

    from probekit import load_backbone

    backbone = load_backbone(request["model"])
    with np.load(request["images"]) as held:
        pixels, mean = torch.from_numpy(held["pixels"]), torch.from_numpy(held["mean"])
    return backbone, backbone.prepare(pixels), mean


def told(request, made, residuals, steps, seconds):
    """Return seconds, residuals, steps, and how near the made normalised images come to the true ones.

    Args:
        request: What was asked.
        made: (n, 3, size, size) normalised.
        residuals: (n,).
        steps: (n,).
        seconds: By the clock and of the processor; the second counts less of what else the machine does.
    """
    import numpy as np
    import torch

    from probekit import load_backbone
    from probekit.functional import peak_signal_to_noise, structural_similarity

    facts = load_backbone(request["model"]).preprocessing
    mean, std = (torch.tensor(one).view(3, 1, 1) for one in (facts.mean, facts.std))
    with np.load(request["images"]) as held:
        true = held["pixels"] / 255
    pixels = (made.float() * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return {
        "seconds": seconds[0],
        "cpu_s": seconds[1],
        "reached": int(sum(one <= request["residual"] for one in residuals)),
        "residual": float(max(residuals)),
        "steps": float(np.mean(steps)),
        "psnr": peak_signal_to_noise(pixels, true).tolist(),
        "ssim": structural_similarity(pixels, true)[0].tolist(),
    }
