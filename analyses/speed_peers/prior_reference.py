"""Feature inversion by the deep image prior as its recipe is published: a plain loop, one image at a time.

The network is written from its description (Ulyanov et al. 2018): as many scales as the image has room for,
the forward pass runs to its end with a hook on the layer, the loss is the mean squared error, Adam moves the
network. The residual is looked at after every step, which the recipe does not do, so that it can stop at all.

# /// script
# dependencies = ["torch", "timm", "probekit-vision"]
# ///
"""

from inverting import given, told
from serve import serve

CHANNELS, KERNELS, SKIP = (16, 32, 64, 128, 128, 128), (7, 7, 5, 5, 3, 3), 4
NOISE_CHANNELS, NOISE = 32, 0.1


def skip_network(scales):
    """Return the hourglass with skip connections, without a sigmoid."""
    import torch
    from torch import nn

    def convolution(made_of, made, kernel):
        return nn.Conv2d(made_of, made, kernel, padding=kernel // 2)

    def finished(made):
        return [nn.BatchNorm2d(made), nn.LeakyReLU(0.2, inplace=True)]

    class Scale(nn.Module):
        def __init__(self, depth):
            super().__init__()
            made, kernel = CHANNELS[depth], KERNELS[depth]
            above = CHANNELS[depth - 1] if depth else NOISE_CHANNELS
            below = CHANNELS[min(depth + 1, scales - 1)]
            self.skip = nn.Sequential(convolution(above, SKIP, 1), *finished(SKIP))
            self.down = nn.Sequential(
                convolution(above, made, kernel), nn.AvgPool2d(2), *finished(made),
                convolution(made, made, kernel), *finished(made),
            )  # fmt: skip
            self.deeper = Scale(depth + 1) if depth + 1 < scales else nn.Identity()
            self.up = nn.Sequential(
                nn.BatchNorm2d(below + SKIP), convolution(below + SKIP, made, kernel), *finished(made),
                convolution(made, made, 1), *finished(made),
            )  # fmt: skip
            self.doubled = nn.Upsample(scale_factor=2, mode="nearest")

        def forward(self, maps):
            return self.up(torch.cat([self.skip(maps), self.doubled(self.deeper(self.down(maps)))], dim=1))

    return nn.Sequential(Scale(0), convolution(CHANNELS[0], 3, 1))


def prepare(request):
    """Load network, images and their activations; a round inverts all images."""
    import math
    import time

    import torch
    from torch import nn

    torch.set_num_threads(request["threads"])
    backbone, images, mean = given(request)
    body, held = backbone.module, {}
    layer = body.get_submodule(request["tap"])
    layer.register_forward_hook(lambda _module, _given, output: held.update(value=output.clone()))
    scales = int(math.log2(request["size"])) - 2

    def activation(image):
        body(image)
        return held["value"]

    def one(image):
        with torch.no_grad():
            target = activation(image)
        spread = float((target - mean).square().sum())
        prior = skip_network(scales).train()
        noise = torch.rand(1, NOISE_CHANNELS, request["size"], request["size"]) * NOISE
        adam, loss_of = torch.optim.Adam(prior.parameters(), request["rate"]), nn.MSELoss()
        residual, step = math.inf, 0
        while residual > request["residual"] and step < request["steps"]:
            step += 1
            adam.zero_grad()
            made = prior(noise)
            loss = loss_of(activation(made), target)
            residual = loss.item() * target.numel() / spread
            if residual > request["residual"]:
                loss.backward()
                adam.step()
        return made.detach(), residual, step

    def step():
        torch.manual_seed(request["seed"])
        began, began_cpu = time.perf_counter(), time.process_time()
        found = [one(image[None]) for image in images]
        seconds = time.perf_counter() - began, time.process_time() - began_cpu
        made, residuals, steps = zip(*found, strict=True)
        return told(request, torch.cat(made), residuals, steps, seconds)

    return step


if __name__ == "__main__":
    serve(prepare)
