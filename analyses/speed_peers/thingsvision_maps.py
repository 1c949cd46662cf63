"""thingsvision as pip installs it: it returns whole maps, which are pooled afterwards.

# /// script
# dependencies = ["thingsvision"]
# ///
"""

from serve import batches, network, pooled, serve


def prepare(request):
    """Hand the network to its extractor; all modules are read in one pass."""
    import torch
    from thingsvision import get_extractor_from_model

    extractor = get_extractor_from_model(model=network(request), device="cpu", backend="pt")

    def step():
        found = extractor.extract_features(
            batches=list(batches(request)), module_names=request["taps"], flatten_acts=False
        )
        arrays = [pooled(torch.from_numpy(one)).numpy() for one in found.values()]
        return {"images": len(arrays[0]), "taps": len(arrays)}

    step()
    return step


if __name__ == "__main__":
    serve(prepare)
