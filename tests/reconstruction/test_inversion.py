"""The loop of feature inversion: residuals, ends, resuming, refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from probekit import Backbone, ImageSet, Preprocessing
from probekit.errors import InputError, NonFiniteFeatures, TapError
from probekit.reconstruction import inversion
from probekit.reconstruction.forward import PLAIN, TapForward, resolve_raw
from probekit.reconstruction.inversion import PRESETS, choose_preset, invert, mean_activation

SIZE = 32
QUICK = replace(PRESETS["preview"], channels=(8, 8), kernels=(3, 3), steps=60, patience=20)


def network(last=None):
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)]
    parts += [nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), *([last] if last else [])]
    return Backbone.from_module(nn.Sequential(*parts), preprocessing=Preprocessing(SIZE, SIZE))


@pytest.fixture(scope="module")
def photographs():
    """Smooth images."""
    small = np.random.default_rng(0).integers(40, 216, (12, 4, 4, 3), dtype=np.uint8)
    pixels = small.repeat(8, axis=1).repeat(8, axis=2)
    return ImageSet.from_arrays("smooth", pixels, np.arange(12) % 2, np.full(12, "test"))


def pixels_of(images, backbone, count=3):
    return np.stack([images.pixels(i, backbone.preprocessing) for i in range(count)])


def started(photographs, tap="4", last=None, **settings):
    backbone = network(last)
    mean, _ = mean_activation(backbone, photographs, tap)
    return invert(backbone, pixels_of(photographs, backbone), tap, mean, preset=QUICK, **settings)


def test_the_mean_is_that_of_activations_position_by_position(photographs):
    backbone = network()
    mean, count = mean_activation(backbone, photographs, "4", batch_size=5)
    batch = backbone.prepare(torch.from_numpy(pixels_of(photographs, backbone, 12)))
    np.testing.assert_allclose(mean, backbone.module(batch).mean(dim=0), atol=1e-5)
    assert count == 12
    assert mean_activation(backbone, photographs, "4", most=4)[1] == 4


def test_made_images_have_the_residual_that_is_told(photographs):
    backbone = network()
    mean, _ = mean_activation(backbone, photographs, "4")
    pixels = pixels_of(photographs, backbone)
    made = invert(backbone, pixels, "4", mean, preset=QUICK, prior="fourier", residual=0.25, steps=300)
    assert made.statuses == ["ok"] * 3
    assert (made.residuals <= 0.25).all()
    module = backbone.module
    facts = backbone.preprocessing
    images = (torch.from_numpy(made.made) - torch.tensor(facts.mean)) / torch.tensor(facts.std)
    found = module(images.permute(0, 3, 1, 2))
    true = module(backbone.prepare(torch.from_numpy(pixels)))
    off = (found - true).square().flatten(1).sum(1) / (true - torch.from_numpy(mean)).square().flatten(1).sum(
        1
    )
    # Pixels of this prior lie in [0, 1], so clipping changes nothing.
    np.testing.assert_allclose(made.residuals, off, rtol=1e-3)
    for number, (curve, step) in enumerate(zip(curves_of(made), made.steps, strict=True)):
        assert curve.iloc[-1]["step"] == step
        assert curve.iloc[-1]["residual"] == pytest.approx(made.residuals[number])
        assert (curve.iloc[:-1]["residual"] > 0.25).all()
        assert curve["wall_s"].is_monotonic_increasing
    assert made.facts["engine"] == "fused"
    assert made.facts["places"]


def curves_of(made):
    return [one for _, one in made.curves.groupby("image")]


def test_the_fused_pass_and_the_plain_one_make_the_same_images(photographs):
    one, other = (started(photographs, residual=0.3, steps=10, fused=fused) for fused in (True, False))
    assert other.facts["engine"] == PLAIN
    np.testing.assert_allclose(one.made, other.made, atol=2e-3)


def test_an_image_is_made_alike_alone_in_a_batch_and_in_batches(photographs):
    backbone = network()
    mean, _ = mean_activation(backbone, photographs, "4")
    pixels = pixels_of(photographs, backbone, 5)
    settings = {"preset": QUICK, "residual": 0.01, "steps": 4, "ids": list("abcde")}
    together = invert(backbone, pixels, "4", mean, **settings)
    parts = invert(backbone, pixels, "4", mean, batch=2, **settings)
    alone = invert(backbone, pixels[3:4], "4", mean, **{**settings, "ids": ["d"]})
    np.testing.assert_allclose(together.made, parts.made, atol=2e-3)
    np.testing.assert_allclose(together.residuals, parts.residuals, rtol=1e-3)
    np.testing.assert_allclose(together.made[3:4], alone.made, atol=2e-3)
    two = invert(backbone, pixels[[3, 3]], "4", mean, **{**settings, "ids": ["d", "d"], "seed": [0, 1]})
    np.testing.assert_allclose(two.made[0], alone.made[0], atol=2e-3)
    assert np.abs(two.made[0] - two.made[1]).max() > 0.05
    # Even so the images differ, and so do draws.
    assert np.abs(together.made[3] - together.made[2]).max() > 0.05
    assert np.abs(together.made - invert(backbone, pixels, "4", mean, seed=1, **settings).made).max() > 0.05


def test_images_that_end_early_leave_the_others_as_they_would_be(photographs):
    loose = started(photographs, residual=0.25, prior="fourier", steps=300)
    assert len(set(loose.steps.tolist())) > 1
    backbone = network()
    mean, _ = mean_activation(backbone, photographs, "4")
    for number in range(3):
        pixels = pixels_of(photographs, backbone)[number : number + 1]
        own = invert(backbone, pixels, "4", mean, preset=QUICK, residual=0.25, prior="fourier", steps=300,
                     ids=[str(number)])  # fmt: skip
        assert abs(int(own.steps[0]) - int(loose.steps[number])) <= 2
        np.testing.assert_allclose(own.made[0], loose.made[number], atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("prior", ["pyramid", "network", "fourier"])
def test_an_interrupted_run_goes_on_to_the_same_bytes(photographs, tmp_path, monkeypatch, prior):
    settings = {"residual": 0.12, "steps": 100, "prior": prior}
    whole = started(photographs, **settings)
    monkeypatch.setattr(inversion, "SNAPSHOT_S", 0.0)
    step = inversion._Run.take_step
    first, last = min(whole.steps), max(whole.steps)
    assert first + 1 < last
    # Before any image has ended, and after one has.
    for stop in (7, first + 1):

        def interrupted(run, stop=stop):
            if run.step == stop:
                raise KeyboardInterrupt
            step(run)

        monkeypatch.setattr(inversion._Run, "take_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            started(photographs, store=tmp_path, **settings)
    (snapshot,) = tmp_path.glob("*.pt")
    assert torch.load(snapshot, weights_only=True)["step"] == first + 1
    monkeypatch.setattr(inversion._Run, "take_step", step)
    resumed = started(photographs, store=tmp_path, **settings)
    assert resumed.made.tobytes() == whole.made.tobytes()
    assert resumed.residuals.tolist() == whole.residuals.tolist()
    assert resumed.statuses == whole.statuses
    columns = ["image", "step", "residual"]
    assert resumed.curves[columns].equals(whole.curves[columns])
    # What is finished is found again without a step.
    monkeypatch.setattr(inversion._Run, "take_step", lambda run: pytest.fail("worked"))
    assert started(photographs, store=tmp_path, **settings).made.tobytes() == whole.made.tobytes()


def test_a_plateau_and_the_most_steps_are_told_apart(photographs):
    few = started(photographs, residual=1e-6, steps=12)
    assert all(one.startswith("stopped by the most steps, 12, at residual") for one in few.statuses)
    # What still falls after twice the patience is no plateau.
    falling = started(photographs, residual=1e-6)
    assert all(one.startswith("stopped by the most steps, 60") for one in falling.statuses)
    # A rate that moves nothing is one.
    still = replace(QUICK, rate=dict.fromkeys(QUICK.rate, 1e-12))
    backbone = network()
    mean, _ = mean_activation(backbone, photographs, "4")
    flat = invert(backbone, pixels_of(photographs, backbone), "4", mean, preset=still, residual=1e-6)
    assert all("plateau at residual" in one and "after 40 steps" in one for one in flat.statuses)
    assert all("above the target 1e-06" in one for one in flat.statuses)


def test_a_value_that_is_not_finite_ends_its_image_alone(photographs, monkeypatch):
    class Spoilt(TapForward):
        calls = 0

        def __call__(self, batch):
            value = super().__call__(batch)
            Spoilt.calls += 1
            # The first call reads the true images.
            return (
                value * torch.tensor([1.0, torch.nan, 1.0]).view(3, 1, 1, 1) if Spoilt.calls == 11 else value
            )

    monkeypatch.setattr(inversion, "TapForward", Spoilt)
    made = started(photographs, residual=1e-6, steps=30)
    assert made.statuses[1].startswith("a value was not finite at step 10, residual")
    assert made.steps[1] <= 9
    assert np.isfinite(made.made).all()
    assert all("most steps, 30" in made.statuses[number] for number in (0, 2))
    assert made.residuals[1] == pytest.approx(np.nanmin(curves_of(made)[1]["residual"]))


def test_a_vector_is_inverted_and_said_to_have_no_places(photographs):
    made = started(photographs, tap="4|gap", residual=0.3, steps=100)
    assert not made.facts["places"]
    assert (made.residuals < 1).all()


class Rounded(nn.Module):
    def forward(self, maps):
        return torch.round(maps * 10)


class Detached(nn.Module):
    def forward(self, maps):
        return maps.detach() * 1


class Undefined(nn.Module):
    def forward(self, maps):
        return torch.where(maps > maps.mean(), torch.nan, maps)


@pytest.mark.parametrize("last", [Rounded(), Detached()])
def test_a_tap_that_no_gradient_passes_is_refused(photographs, last):
    backbone = network(last)
    with pytest.raises(TapError, match="through which gradients reach the image"):
        invert(backbone, pixels_of(photographs, backbone), "5", np.zeros((8, 16, 16)), preset=QUICK)


def test_what_cannot_be_inverted_is_refused_before_any_work(photographs, monkeypatch):
    backbone = network(Undefined())
    pixels = pixels_of(photographs, backbone)
    monkeypatch.setattr(inversion._Run, "take_step", lambda run: pytest.fail("worked"))
    with pytest.raises(NonFiniteFeatures):
        invert(backbone, pixels, "5", np.zeros((8, 16, 16)), preset=QUICK)
    with pytest.raises(InputError, match="shape"):
        invert(backbone, pixels, "4", np.zeros((8, 16)), preset=QUICK)
    with pytest.raises(InputError, match="more than 192 pixels"):
        invert(backbone, pixels, "4", np.zeros((8, 16, 16)), preset="paper")
    with pytest.raises(InputError, match="preview, standard, paper"):
        invert(backbone, pixels, "4", np.zeros((8, 16, 16)), preset="fast")
    with pytest.raises(InputError, match="target residual"):
        invert(backbone, pixels, "4", np.zeros((8, 16, 16)), preset=QUICK, residual=0)
    with pytest.raises(InputError, match="id"):
        invert(backbone, pixels, "4", np.zeros((8, 16, 16)), preset=QUICK, ids=["a"])
    with pytest.raises(TapError):
        invert(backbone, pixels, "nowhere", np.zeros((8, 16, 16)), preset=QUICK)
    true = backbone.prepare(torch.from_numpy(pixels))
    alike = network().module(true)[0].numpy()
    with pytest.raises(NonFiniteFeatures, match="differ from their mean"):
        invert(network(), pixels, "4", alike, preset=QUICK)


def test_presets_adapt_to_the_size_and_paper_is_that_of_the_paper():
    assert choose_preset("preview", None, 32).channels == (16, 32, 64)
    assert choose_preset("standard", "network", 128).channels == (16, 32, 64, 64)
    paper = choose_preset("paper", None, 224)
    assert paper.prior == "network"
    assert (paper.channels, paper.kernels) == ((16, 32, 64, 128, 128, 128), (7, 7, 5, 5, 3, 3))
    assert (paper.rate["network"], paper.steps) == (1e-3, 3000)


def test_the_backbone_stays_as_it_is_and_hooks_are_gone(photographs):
    backbone = network()
    before = backbone.weights
    mean, _ = mean_activation(backbone, photographs, "4")
    for fused in (True, False):
        invert(backbone, pixels_of(photographs, backbone), "4", mean, preset=QUICK, steps=3, fused=fused)
    assert replace(backbone, cache={}).weights == before
    assert all(not one._forward_hooks and not one._forward_pre_hooks for one in backbone.module.modules())
    assert not any(one.requires_grad for one in backbone.module.parameters())


def test_a_network_that_cannot_be_traced_is_inverted_by_the_plain_pass(photographs):
    class Branching(nn.Module):
        def forward(self, maps):
            return maps * 2 if float(maps.sum()) > 0 else maps

    backbone = network(Branching())
    tap = resolve_raw(backbone, "5")
    example = backbone.prepare(torch.from_numpy(pixels_of(photographs, backbone)))
    forward = TapForward(backbone, tap, example)
    forward(example)
    assert forward.engine == PLAIN
