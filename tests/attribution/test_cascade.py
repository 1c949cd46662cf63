"""Cascading randomisation: from the top down, one block more at every step."""

from __future__ import annotations

import pytest
import torch

from probekit.attribution.cascade import cascade
from probekit.backbones.loading import load_backbone
from probekit.errors import InputError
from probekit.taps.facts import list_blocks


@pytest.mark.parametrize("words", ["resnet10t:random@9,size=32", "cifar_resnet20:random@9"])
def test_blocks_fall_from_the_top_and_the_last_step_is_the_whole_draw(words: str):
    backbone = load_backbone(words)
    blocks, before = list_blocks(backbone), backbone.weights
    paths, reset = [], []
    for block, found in cascade(backbone, seed=1):
        paths.append(block.path)
        reset.append(found)
    assert paths == [block.path for block in reversed(blocks)]
    assert backbone.weights == before
    whole = load_backbone(words.replace("@9", "@1")).module.state_dict()
    own = backbone.module.state_dict()
    for step, found in enumerate(reset):
        for name, value in found.module.state_dict().items():
            place = next((i for i, block in enumerate(reversed(blocks)) if block.holds(name)), None)
            # The classifier belongs to no block.
            done = place is not None and place <= step
            assert torch.equal(value, whole[name] if done else own[name]), (step, name)
    heads = {name for name in own if not any(block.holds(name) for block in blocks)}
    assert {name.split(".")[0] for name in heads} <= {"fc", "linear"}


def test_blocks_above_the_start_keep_their_weights():
    backbone = load_backbone("cifar_resnet20:random@9")
    block, found = next(cascade(backbone, seed=1, start="layer2.0"))
    assert block.path == "layer2.0"
    changed = {
        name.rpartition(".conv")[0]
        for name, value in found.module.state_dict().items()
        if "conv" in name and not torch.equal(value, backbone.module.state_dict()[name])
    }
    assert changed == {"layer2.0"}
    with pytest.raises(InputError, match="nearest"):
        next(cascade(backbone, start="layer7"))
