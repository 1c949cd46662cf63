"""Arms: what each one asks of a batch, and the state it needs for that.

Letters as in ``objectives``; G parts of a batch, each normalised by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from probekit.backbones.architectures import seeded
from probekit.backbones.backbone import copy_module
from probekit.compute import rank
from probekit.errors import InputError, near_names
from probekit.pretraining import objectives
from probekit.pretraining.networks import (
    EMBEDDING,
    ImageDecoder,
    draw_network,
    group_batch_norm,
    last_map,
    put_head,
)
from probekit.training.loop import Learner


@dataclass(frozen=True)
class Arm:
    """One way to pretrain.

    Attributes:
        name: In tables.
        kind: ``classify``, ``contrast``, ``momentum`` or ``reconstruct``: which learner.
        head: Of ``put_head``.
        labels: Whether it takes the labels.
        temperature: t, where it contrasts.
        family: Whose key layout its checkpoints have.
        source: Where it is from.
    """

    name: str
    kind: str
    head: str
    labels: bool
    temperature: float
    family: str
    source: str


_MOCO1 = "He et al., Momentum Contrast (CVPR 2020)"
_MOCO2 = "Chen et al., Improved Baselines with Momentum Contrastive Learning (arXiv 2003.04297)"
_ZHAO = "Zhao et al., What Makes Instance Discrimination Good for Transfer Learning? (ICLR 2021), section 5"
ARMS: Mapping[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("ce", "classify", "linear", True, 1.0, "torchvision", "cross-entropy"),
        Arm("ce-mlp", "classify", "projector", True, 1.0, "torchvision", "Wang et al. (CVPR 2022)"),
        Arm("supcon", "contrast", "mlp", True, 0.1, "SupCon", "Khosla et al. (NeurIPS 2020)"),
        Arm("moco-v1", "momentum", "linear", False, 0.07, "MoCo", _MOCO1),
        Arm("moco-v2", "momentum", "mlp", False, 0.2, "MoCo", _MOCO2),
        Arm("exemplar-v1", "momentum", "linear", True, 0.07, "MoCo", _ZHAO),
        Arm("exemplar-v2", "momentum", "mlp", True, 0.2, "MoCo", _ZHAO),
        Arm("autoencoder", "reconstruct", "none", False, 1.0, "torchvision", "convolutional autoencoder"),
    )
}


def find_arm(name: str) -> Arm:
    """Return an arm by name.

    Raises:
        InputError: If there is none of that name.
    """
    if name not in ARMS:
        raise InputError(
            f"an arm among {', '.join(ARMS)}", repr(name), f"The nearest is {near_names(name, ARMS, 1)}"
        )
    return ARMS[name]


@dataclass(frozen=True)
class Views:
    """A process's part of one batch.

    Attributes:
        first: (n, 3, S, S) one view of every image, normalised.
        second: (n, 3, S, S) another view.
        labels: (n,) classes; ``objectives.EMPTY`` throughout where there are none.
    """

    first: Tensor
    second: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Setup:
    """What all arms of one comparison share.

    Attributes:
        arch: Architecture of the backbone.
        size: Side of the views in px.
        classes: C.
        groups: G parts of a batch, over all processes, each with batch-norm statistics of its own.
        queue: Q, of the arms that have one.
        momentum: How much of the key network stays at each step.
    """

    arch: str
    size: int
    classes: int
    groups: int = 2
    queue: int = 4096
    momentum: float = 0.99


def build_learner(arm: Arm, setup: Setup, seed: int) -> Pretraining:
    """Return what is trained, at step 0; its backbone is the same for all arms of a seed."""
    return LEARNERS[arm.kind](arm, setup, seed)


class Pretraining(Learner[Views]):
    """A network with the head of its arm, and what the arm does with a batch."""

    def __init__(self, arm: Arm, setup: Setup, seed: int, outputs: int) -> None:
        super().__init__()
        self.arm, self.setup = arm, setup
        self.net, self.classifier = draw_network(setup.arch, seed, setup.size)
        put_head(self.net, self.classifier, arm.head, outputs, seed)
        world = rank()[1]
        if setup.groups % world:
            raise InputError(
                f"groups that {world} processes can share", f"{setup.groups}", "Give a multiple of it"
            )
        self.own_groups = setup.groups // world
        group_batch_norm(self.net, self.own_groups)

    def both(self, batch: Views) -> Tensor:
        """Return (2n, …) outputs for both views, first and second of each part together in one forward."""
        outputs: Tensor = self.net(self.both_views(batch))
        return outputs

    def both_views(self, batch: Views) -> Tensor:
        """Return (2n, 3, S, S) views, part by part."""
        parts = zip(batch.first.chunk(self.own_groups), batch.second.chunk(self.own_groups), strict=True)
        return torch.cat([one for part in parts for one in part])

    def labels_of_both(self, batch: Views) -> Tensor:
        """Return (2n,) labels in the order of ``both``."""
        return torch.cat([part.repeat(2) for part in batch.labels.chunk(self.own_groups)])

    def share_statistics(self) -> None:
        """Give all processes the mean of their batch-norm statistics."""
        world = rank()[1]
        shared = [one for name, one in self.named_buffers() if name.endswith(("running_mean", "running_var"))]
        if world == 1 or not shared:
            return
        together = torch.cat(shared)
        dist.all_reduce(together)
        means = torch.split(together / world, [len(one) for one in shared])
        for one, mean in zip(shared, means, strict=True):
            one.copy_(mean)

    def after_step(self) -> None:
        """Nothing, but for what processes share."""
        self.share_statistics()


class Classification(Pretraining):
    """Cross-entropy of both views."""

    def __init__(self, arm: Arm, setup: Setup, seed: int) -> None:
        super().__init__(arm, setup, seed, setup.classes)

    def forward(self, batch: Views) -> Tensor:
        """Return the mean loss of both views."""
        return objectives.cross_entropy(self.both(batch), self.labels_of_both(batch))


class SupervisedContrast(Pretraining):
    """All views of a class are pulled together, over all processes."""

    def __init__(self, arm: Arm, setup: Setup, seed: int) -> None:
        super().__init__(arm, setup, seed, EMBEDDING)

    def forward(self, batch: Views) -> Tensor:
        """Return the loss of the whole batch."""
        embeddings = _unit(self.both(batch))
        labels = _gathered(self.labels_of_both(batch))
        if rank()[1] > 1:
            from torch.distributed.nn.functional import all_gather

            embeddings = torch.cat(all_gather(embeddings))  # type: ignore[no-untyped-call]
        return objectives.supervised_contrast(embeddings, labels, self.arm.temperature)


class MomentumContrast(Pretraining):
    """A query network and, behind it, a key network whose embeddings fill a queue.

    Keys are computed in another order of the batch than queries, so that no part shares its statistics with
    the same part of the other side.
    """

    queue: Tensor
    queue_labels: Tensor
    place: Tensor
    step: Tensor

    def __init__(self, arm: Arm, setup: Setup, seed: int) -> None:
        super().__init__(arm, setup, seed, EMBEDDING)
        self.seed = seed
        self.key_net = copy_module(self.net).requires_grad_(False)
        draws = torch.Generator().manual_seed(seed)
        queue = F.normalize(torch.randn(setup.queue, EMBEDDING, generator=draws), dim=1)
        self.register_buffer("queue", queue)
        self.register_buffer("queue_labels", torch.full((setup.queue,), objectives.EMPTY))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        self._keys: tuple[Tensor, Tensor] | None = None

    def forward(self, batch: Views) -> Tensor:
        """Return the mean loss of this process's part: first views ask, second views answer."""
        query = _unit(self.net(batch.first))
        with torch.no_grad():
            every = self._shuffled_keys(_gathered(batch.second))
            self._keys = every, _gathered(batch.labels)
            n, own = len(query), rank()[0]
            key = every[own * n : (own + 1) * n]
        t = self.arm.temperature
        if self.arm.labels:
            return objectives.exemplar(query, key, self.queue, batch.labels, self.queue_labels, t)
        return objectives.instance_discrimination(query, key, self.queue, t)

    def _shuffled_keys(self, views: Tensor) -> Tensor:
        """Return the keys of all processes' views, in their order; parts are normalised in another."""
        draws = torch.Generator().manual_seed(2**32 * self.seed + int(self.step))
        order = torch.randperm(len(views), generator=draws).to(views.device)
        number, world = rank()
        n = len(views) // world
        own = _unit(self.key_net(views[order[number * n : (number + 1) * n]]))
        keys = _gathered(own)
        back = torch.empty_like(keys)
        back[order] = keys
        return back

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the key network towards the query network, and put the keys into the queue."""
        super().after_step()
        m = self.setup.momentum
        for key, query in zip(self.key_net.parameters(), self.net.parameters(), strict=True):
            key.lerp_(query, 1 - m)
        assert self._keys is not None
        keys, labels = self._keys
        places = (torch.arange(len(keys), device=keys.device) + self.place) % len(self.queue)
        self.queue[places] = keys
        self.queue_labels[places] = labels
        self.place.copy_((self.place + len(keys)) % len(self.queue))
        self.step.add_(1)
        self._keys = None


class Reconstruction(Pretraining):
    """Images are made from the last map of the backbone."""

    def __init__(self, arm: Arm, setup: Setup, seed: int) -> None:
        super().__init__(arm, setup, seed, EMBEDDING)
        self._maps: list[Tensor] = []
        path, channels, side = last_map(self.net, setup.size)
        self.net.get_submodule(path).register_forward_hook(lambda _m, _i, output: self._maps.append(output))
        with seeded("pretraining head", "decoder", channels, seed):
            self.decoder = ImageDecoder(channels, setup.size // side)
        group_batch_norm(self.decoder, self.own_groups)

    def forward(self, batch: Views) -> Tensor:
        """Return the mean squared error of both views."""
        views = self.both_views(batch)
        self._maps.clear()
        self.net(views)
        return objectives.reconstruction(self.decoder(self._maps.pop()), views)


LEARNERS: Mapping[str, Callable[[Arm, Setup, int], Pretraining]] = {
    "classify": Classification,
    "contrast": SupervisedContrast,
    "momentum": MomentumContrast,
    "reconstruct": Reconstruction,
}


def _unit(outputs: Tensor) -> Tensor:
    """Return (n, D) unit vectors in float32, whatever the precision of the forward pass was."""
    return F.normalize(outputs.float(), dim=1)


def _gathered(values: Tensor) -> Tensor:
    """Return the values of all processes, by rank; without gradient."""
    world = rank()[1]
    if world == 1:
        return values
    found = [torch.empty_like(values) for _ in range(world)]
    dist.all_gather(found, values.contiguous())
    return torch.cat(found)
