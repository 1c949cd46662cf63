"""Arms: equal starts, keys, queues, groups, checkpoints, killed and resumed, two processes as one."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from torch import Tensor, nn
from torch.nn import functional as F

from probekit import inspect_checkpoint, load_backbone
from probekit.errors import InputError
from probekit.pretraining.arms import ARMS, MomentumContrast, Setup, Views, build_learner, find_arm
from probekit.pretraining.checkpoints import write_checkpoint
from probekit.pretraining.networks import (
    GroupedBatchNorm2d,
    draw_network,
    group_batch_norm,
    last_map,
)
from probekit.training.loop import Journal, train
from probekit.training.optimisers import Optimisation

SETUP = Setup("resnet10_w16", 16, 4, groups=2, queue=24, momentum=0.9)
PLAN = Optimisation(steps=4, lr=0.05)


def views(step: int, n: int = 16) -> Views:
    draws = torch.Generator().manual_seed(step)
    return Views(
        torch.randn(n, 3, 16, 16, generator=draws),
        torch.randn(n, 3, 16, 16, generator=draws),
        torch.arange(n) % 4,
    )


def test_all_arms_of_a_seed_start_from_the_same_backbone():
    starts = [build_learner(arm, SETUP, 3).net.state_dict() for arm in ARMS.values()]
    body = [name for name in starts[0] if not name.startswith("fc.")]
    assert len(body) > 20
    for other in starts[1:]:
        assert all(torch.equal(starts[0][name], other[name]) for name in body)
    another = build_learner(ARMS["ce"], SETUP, 4).net.state_dict()
    assert not torch.equal(another["conv1.weight"], starts[0]["conv1.weight"])


def test_step_0_is_rebuilt_from_the_seed():
    one, path = draw_network("resnet10_w16", 7, 48)
    torch.rand(5)
    other, _ = draw_network("resnet10_w16", 7, 48)
    assert path == "fc"
    assert all(
        torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("name", list(ARMS))
def test_every_arm_lowers_its_loss(name: str):
    losses = []
    learner = build_learner(ARMS[name], SETUP, 0)

    def near(step: int) -> Views:
        """Return images of coarse colour that differ little between their views."""
        draws = torch.Generator().manual_seed(step)
        own = 2 * torch.eye(4)[:, :3].repeat(4, 1)
        coarse = torch.randn(16, 3, 2, 2, generator=draws) + own[:, :, None, None]
        images = F.interpolate(coarse, size=16)
        noise = 0.1 * torch.randn(16, 3, 16, 16, generator=draws)
        return Views(images, images + noise, torch.arange(16) % 4)

    keep_losses(learner, losses)
    train(learner, near, Optimisation(40, 0.05), Journal())
    # The first steps fill the queue.
    assert sum(losses[-5:]) < 0.9 * sum(losses[3:8])


@pytest.mark.parametrize("name", list(ARMS))
def test_forward_passes_in_bfloat16_hardly_change_the_losses(name: str):
    losses: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    for precision, own in losses.items():
        learner = build_learner(ARMS[name], SETUP, 0)
        keep_losses(learner, own)
        # Later steps start from weights that have gone apart.
        train(learner, views, Optimisation(2, 0.05), Journal(), precision=precision)
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.05)
    assert losses["bfloat16"] != losses["float32"]


def keep_losses(learner: nn.Module, losses: list[float]) -> None:
    original = learner.forward

    def forward(batch: Views) -> Tensor:
        loss: Tensor = original(batch)
        losses.append(float(loss.detach()))
        return loss

    learner.forward = forward  # type: ignore[method-assign]


def test_keys_follow_the_query_network():
    learner = build_learner(ARMS["moco-v2"], SETUP, 0)
    assert isinstance(learner, MomentumContrast)
    before = {name: one.clone() for name, one in learner.key_net.named_parameters()}
    train(learner, views, Optimisation(1, 0.05), Journal())
    for name, query in learner.net.named_parameters():
        expected = 0.9 * before[name] + 0.1 * query.detach()
        torch.testing.assert_close(learner.key_net.get_parameter(name), expected)
    assert all(not one.requires_grad for one in learner.key_net.parameters())


def test_the_queue_holds_the_last_keys_with_their_labels_and_goes_round():
    learner = build_learner(ARMS["exemplar-v2"], SETUP, 0)
    assert isinstance(learner, MomentumContrast)
    assert learner.queue_labels.unique().tolist() == [-1]
    found = []
    for step in range(2):
        learner.train()(views(step))
        assert learner._keys is not None
        found.append(learner._keys[0].clone())
        learner.after_step()
    assert int(learner.place) == (2 * 16) % 24
    torch.testing.assert_close(learner.queue[16:], found[1][:8])
    torch.testing.assert_close(learner.queue[:8], found[1][8:])
    torch.testing.assert_close(learner.queue[8:16], found[0][8:])
    assert learner.queue_labels[:8].tolist() == [0, 1, 2, 3] * 2
    torch.testing.assert_close(learner.queue.norm(dim=1), torch.ones(24))


@pytest.mark.parametrize(
    ("name", "alone"), [("exemplar-v1", True), ("exemplar-v2", True), ("moco-v2", False)]
)
def test_exemplar_has_nothing_to_tell_apart_within_one_class(name: str, alone: bool):
    learner = build_learner(ARMS[name], SETUP, 0)
    assert isinstance(learner, MomentumContrast)
    learner.queue_labels.zero_()
    one = views(0)
    loss = float(learner.train()(Views(one.first, one.second, torch.zeros(16, dtype=torch.long))).detach())
    assert (loss == 0) == alone


def test_shuffled_keys_come_back_in_order():
    learner = build_learner(ARMS["moco-v2"], SETUP, 0)
    assert isinstance(learner, MomentumContrast)
    learner.eval()  # without statistics of the batch, a key is its image's alone
    batch = views(0)
    with torch.no_grad():
        expected = F.normalize(learner.key_net(batch.second), dim=1)
        torch.testing.assert_close(learner._shuffled_keys(batch.second), expected)
        learner.train()
        plain = F.normalize(learner.key_net(batch.second), dim=1)
        # In training the parts are others, and so are their statistics.
        assert float((learner._shuffled_keys(batch.second) - plain).abs().max()) > 1e-3


def test_exemplar_with_labels_all_distinct_trains_as_moco_does():
    def distinct(step: int) -> Views:
        one = views(step)
        return Views(one.first, one.second, torch.arange(16) + 16 * step)

    setup = Setup("resnet10_w16", 16, 1000, groups=2, queue=64)
    nets = []
    for name in ("moco-v2", "exemplar-v2"):
        learner = build_learner(ARMS[name], setup, 0)
        train(learner, distinct, PLAN, Journal())
        nets.append(learner.net.state_dict())
    assert all(torch.equal(nets[0][name], nets[1][name]) for name in nets[0])


def test_groups_are_normalised_each_by_itself():
    plain, grouped = nn.Sequential(nn.BatchNorm2d(3)), nn.Sequential(nn.BatchNorm2d(3))
    group_batch_norm(grouped, 2)
    assert isinstance(grouped[0], GroupedBatchNorm2d)
    x = torch.randn(8, 3, 4, 4) * torch.arange(1, 9)[:, None, None, None]
    halves = [nn.BatchNorm2d(3), nn.BatchNorm2d(3)]
    expected = torch.cat([one(part) for one, part in zip(halves, x.chunk(2), strict=True)])
    torch.testing.assert_close(grouped(x), expected)
    for name in ("running_mean", "running_var"):
        mean = (halves[0].get_buffer(name) + halves[1].get_buffer(name)) / 2
        torch.testing.assert_close(grouped[0].get_buffer(name), mean)
    plain.load_state_dict(grouped.state_dict())
    torch.testing.assert_close(plain.eval()(x), grouped.eval()(x))


def test_the_last_map_is_found():
    module, _ = draw_network("resnet10_w16", 0, 48)
    path, channels, side = last_map(module, 48)
    assert path.startswith("layer4")
    assert (channels, side) == (128, 3)
    with pytest.raises(InputError, match="a network with maps"):
        last_map(nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4)), 16)


@pytest.mark.parametrize(
    ("name", "family"),
    [("moco-v1", "MoCo v1"), ("moco-v2", "MoCo v2"), ("exemplar-v2", "MoCo v2"), ("supcon", "SupCon")],
)
def test_checkpoints_are_recognised_and_load(name: str, family: str, tmp_path: Path):
    learner = build_learner(ARMS[name], SETUP, 0)
    train(learner, views, PLAN, Journal())
    write_checkpoint(tmp_path / "a.pth", learner, 4)
    assert family in str(inspect_checkpoint(tmp_path / "a.pth"))
    check_loads(tmp_path / "a.pth", learner.net)


@pytest.mark.parametrize("name", ["ce", "ce-mlp", "autoencoder"])
def test_plain_checkpoints_load(name: str, tmp_path: Path):
    learner = build_learner(ARMS[name], SETUP, 0)
    write_checkpoint(tmp_path / "a.pth", learner, 0)
    backbone = check_loads(tmp_path / "a.pth", learner.net)
    assert backbone.has_head == (name == "ce")


def check_loads(path: Path, net: nn.Module) -> Any:
    backbone = load_backbone("resnet10_w16", path)
    own = net.state_dict()
    for name, one in backbone.module.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(one, own[name]), name
    return backbone


def test_half_precision_is_half_as_large_and_near(tmp_path: Path):
    learner = build_learner(ARMS["ce"], SETUP, 0)
    write_checkpoint(tmp_path / "a.pth", learner, 0)
    write_checkpoint(tmp_path / "b.pth", learner, 0, half=True)
    sizes = [(tmp_path / name).stat().st_size for name in ("a.pth", "b.pth")]
    assert sizes[1] < 0.6 * sizes[0]
    one, other = (
        load_backbone("resnet10_w16", tmp_path / name).module.state_dict() for name in ("a.pth", "b.pth")
    )
    for name in one:
        torch.testing.assert_close(other[name].float(), one[name].float(), atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("name", list(ARMS))
def test_killed_and_resumed_is_bit_for_bit_the_same(name: str, tmp_path: Path):
    def until(step: int) -> Views:
        if step == 2:
            raise KeyboardInterrupt
        return views(step)

    whole = build_learner(ARMS[name], SETUP, 0)
    train(whole, views, PLAN, Journal())
    with pytest.raises(KeyboardInterrupt):
        train(build_learner(ARMS[name], SETUP, 0), until, PLAN, Journal(tmp_path, snapshot_s=0))
    resumed = build_learner(ARMS[name], SETUP, 0)
    train(resumed, views, PLAN, Journal(tmp_path, snapshot_s=0))
    own = resumed.state_dict()
    for key, one in whole.state_dict().items():
        assert torch.equal(one, own[key]), key


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _train_part(number: int, port: int, name: str, out: str) -> None:
    os.environ |= {
        "RANK": str(number), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=number, world_size=2)
    losses: list[float] = []

    learner = build_learner(ARMS[name], SETUP, 0)
    keep_losses(learner, losses)

    def part(step: int) -> Views:
        one = views(step)
        rows = slice(number * 8, (number + 1) * 8)
        return Views(one.first[rows], one.second[rows], one.labels[rows])

    train(learner, part, PLAN, Journal())
    torch.save({"losses": losses, "state": learner.state_dict()}, f"{out}/{number}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ce", "supcon", "moco-v2", "exemplar-v2"])
def test_two_processes_train_as_one(name: str, tmp_path: Path):
    processes.start_processes(
        _train_part, (_free_port(), name, str(tmp_path)), nprocs=2, start_method="spawn"
    )
    parts = [torch.load(tmp_path / f"{number}.pt", weights_only=True) for number in (0, 1)]
    learner = build_learner(ARMS[name], SETUP, 0)
    losses: list[float] = []
    keep_losses(learner, losses)
    train(learner, views, PLAN, Journal())
    both = [(a + b) / 2 for a, b in zip(parts[0]["losses"], parts[1]["losses"], strict=True)]
    assert both == pytest.approx(losses, rel=1e-4)
    own = learner.state_dict()
    for key, one in parts[0]["state"].items():
        torch.testing.assert_close(one, parts[1]["state"][key], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(
            one, own[key], atol=2e-4, rtol=2e-3, msg=lambda text, key=key: f"{key}: {text}"
        )


def test_groups_that_processes_cannot_share_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(InputError, match="3 processes can share"):
        build_learner(ARMS["ce"], SETUP, 0)


def test_unknown_arms_are_refused():
    with pytest.raises(InputError, match="The nearest is moco-v2"):
        find_arm("moco-v3")
