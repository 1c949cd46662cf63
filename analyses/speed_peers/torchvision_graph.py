"""torchvision's create_feature_extractor.

# /// script
# dependencies = ["torch", "torchvision", "timm"]
# ///
"""

from serve import collect, network, pooled, serve


def prepare(request):
    """Rewrite the network by FX; convolutions that compute their padding must be leaves."""
    from timm.layers import Conv2dSame
    from torchvision.models.feature_extraction import create_feature_extractor

    body = create_feature_extractor(
        network(request), request["taps"], tracer_kwargs={"leaf_modules": [Conv2dSame]}
    )
    return collect(request, lambda batch: [pooled(one) for one in body(batch).values()])


if __name__ == "__main__":
    serve(prepare)
