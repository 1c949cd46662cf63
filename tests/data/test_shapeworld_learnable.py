"""ShapeWorld can be learnt: a small CNN finds the classes, another all factors (minutes each on one core)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from probekit.data.shapeworld import FACTORS, render, sample

pytestmark = [pytest.mark.campaign, pytest.mark.timeout(3600)]

N_TEST, BATCH = 4000, 64


class Block(nn.Module):
    def __init__(self, inside, outside, stride):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inside, outside, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outside),
            nn.ReLU(),
            nn.Conv2d(outside, outside, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outside),
        )
        self.shortcut = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
            )

    def forward(self, x):
        return F.relu(self.body(x) + self.shortcut(x))


def resnet10(n_outputs, readout):
    """One block a stage, widths 16-32-64-128, stride-2 stem; 48 px become a 3 × 3 map."""
    pool = nn.AdaptiveAvgPool2d(1 if readout == "gap" else 3)
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2), Block(64, 128, 2)),
        *(pool, nn.Flatten(), nn.Linear(128 if readout == "gap" else 128 * 9, n_outputs)),
    ).to(memory_format=torch.channels_last)


def planes(images):
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def normalised(batch):
    return ((batch.float() - 128) / 48).contiguous(memory_format=torch.channels_last)


def fit(network, images, targets, loss_of, epochs):
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
    steps = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 3e-3, total_steps=epochs * steps, pct_start=0.15
    )
    network.train()
    for _ in range(epochs):
        order = torch.randperm(len(images))
        for step in range(steps):
            rows = order[step * BATCH : (step + 1) * BATCH]
            loss = loss_of(network(normalised(images[rows])), targets[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()


@torch.no_grad()
def outputs(network, images):
    network.eval()
    return torch.cat([network(normalised(part)) for part in images.split(500)])


@pytest.fixture(autouse=True)
def one_thread_and_seed():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def test_a_small_network_learns_the_classes(record_property):
    n_train = 16000
    images, labels = planes(render("source", range(n_train))), sample("source", n_train).labels
    network = resnet10(20, "gap")
    fit(network, images, torch.from_numpy(labels), F.cross_entropy, epochs=14)
    accuracy = {}
    for world in ("source", "shifted"):
        found = outputs(network, planes(render(world, range(N_TEST), seed=1))).argmax(dim=1).numpy()
        accuracy[world] = float((found == sample(world, N_TEST, seed=1).labels).mean())
    record_property("accuracy", accuracy)
    assert accuracy["source"] >= 0.85
    # the other style is another domain, not another task
    assert 0.10 < accuracy["shifted"] < accuracy["source"] - 0.05


def test_one_network_reads_every_factor(record_property):
    def factors(n, seed):
        facts = sample("source", n, seed=seed).factors
        return np.concatenate([facts[name] for name in FACTORS], axis=1)

    n_train = 24000
    train, test = factors(n_train, 0), factors(N_TEST, 1)
    mean, std = train.mean(axis=0), train.std(axis=0)
    targets = torch.from_numpy(((train - mean) / std).astype(np.float32))
    network = resnet10(train.shape[1], "grid")
    fit(network, planes(render("source", range(n_train))), targets, F.mse_loss, epochs=14)
    guessed = outputs(network, planes(render("source", range(N_TEST), seed=1))).numpy() * std + mean
    r2 = 1 - ((guessed - test) ** 2).mean(axis=0) / test.var(axis=0)
    columns = [name for name, values in sample("source", 1).factors.items() for _ in values[0]]
    record_property("r2", dict(zip(columns, r2.round(3).tolist(), strict=True)))
    assert r2.min() >= 0.9
