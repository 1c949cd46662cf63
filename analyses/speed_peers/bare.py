"""The forward pass alone, nothing read: eager, or compiled by inductor with frozen weights.

# /// script
# dependencies = ["torch", "timm"]
# ///
"""

from serve import batches, network, serve


def prepare(request):
    """Compile if asked to, and warm up; batches are made beforehand and not timed."""
    import torch

    net = network(request)
    given = list(batches(request))
    if request["compiled"]:
        import torch._inductor.config

        torch._inductor.config.freezing = True
        net = torch.compile(net.to(memory_format=torch.channels_last))
        given = [one.contiguous(memory_format=torch.channels_last) for one in given]

    def step():
        with torch.inference_mode():
            for one in given:
                net(one)
        return {"images": request["images"]}

    step()
    return step


if __name__ == "__main__":
    serve(prepare)
