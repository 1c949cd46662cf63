"""timm's forward_intermediates.

# /// script
# dependencies = ["torch", "timm"]
# ///
"""

from serve import collect, network, pooled, serve


def prepare(request):
    """Ask for the places of the taps; tokens come as maps there."""
    net = network(request)
    places = request["indices"] or len(request["taps"])

    def forward(batch):
        return [pooled(one) for one in net.forward_intermediates(batch, places, intermediates_only=True)]

    return collect(request, forward)


if __name__ == "__main__":
    serve(prepare)
