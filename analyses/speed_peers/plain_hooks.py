"""Forward hooks that pool on the spot, as one writes them by hand.

# /// script
# dependencies = ["torch", "timm"]
# ///
"""

from serve import collect, network, pooled, serve


def prepare(request):
    """Hook every tap."""
    net, seen = network(request), {}
    for path in request["taps"]:
        net.get_submodule(path).register_forward_hook(
            lambda _module, _args, value, path=path: seen.__setitem__(path, pooled(value))
        )

    def forward(batch):
        net(batch)
        return [seen[path] for path in request["taps"]]

    return collect(request, forward)


if __name__ == "__main__":
    serve(prepare)
