"""timm's features_only.

# /// script
# dependencies = ["torch", "timm"]
# ///
"""

from serve import collect, network, pooled, serve


def prepare(request):
    """Build the network as a pyramid; tokens come as maps there."""
    last = len(network(request).feature_info)
    places = list(range(last))[-len(request["taps"]) :] if not request["indices"] else request["indices"]
    net = network(request, features_only=True, out_indices=places)
    return collect(request, lambda batch: [pooled(one) for one in net(batch)])


if __name__ == "__main__":
    serve(prepare)
