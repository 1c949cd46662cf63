"""Where a backbone was earlier in its own pretraining: step 0, step t."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from probekit.backbones.architectures import draw_initial
from probekit.backbones.backbone import Backbone, freeze
from probekit.backbones.bundled import bundled_facts
from probekit.backbones.checkpoint import Checkpoint
from probekit.backbones.loading import load_backbone
from probekit.backbones.spec import parse_model
from probekit.errors import CheckpointError, InputError

INITIAL = "initial"
_STEP = re.compile(r"checkpoint\((\d+)\)")


def is_past(word: str) -> bool:
    """Return whether a word names an earlier step: ``initial`` or ``checkpoint(STEP)``.

    Examples:
        >>> [is_past(word) for word in ("initial", "checkpoint(336)", "random")]
        [True, True, False]
    """
    return word == INITIAL or _STEP.fullmatch(word) is not None


def earlier(backbone: Backbone, word: str) -> Backbone:
    """Return a backbone as it was at an earlier step of its own pretraining.

    Step 0 of weights that come with the package is drawn again from their seed. Other steps are files beside
    the checkpoint, as ``probekit pretrain --weights all`` leaves them: ``step-000336.pth``, or
    ``seed-0-step-000336.pth`` beside ``seed-0.pth``.

    Args:
        backbone: Loaded by words, from a file or from the package.
        word: ``initial`` or ``checkpoint(STEP)``.

    Raises:
        InputError: If the word is none of these.
        CheckpointError: If that step is not known, as for checkpoints that were downloaded.

    Examples:
        >>> earlier(load_backbone("resnet10_w16:bundled@moco-v2"), "initial").checkpoint.word
        'bundled@moco-v2, initial'
    """
    if not is_past(word):
        raise InputError("initial or checkpoint(STEP)", repr(word), "Write checkpoint(336), for instance")
    found = _STEP.fullmatch(word)
    step = int(found.group(1)) if found else 0
    spec = None if backbone.spec is None else parse_model(backbone.spec)
    if spec is not None and spec.bundled is not None and step == 0:
        seed = int(bundled_facts(spec.bundled)["pretrain_seed"])
        module = draw_initial(backbone.arch, seed, backbone.preprocessing.size)
        return replace(
            backbone,
            module=freeze(module).to(backbone.device),
            checkpoint=Checkpoint(f"{spec.checkpoint}, {INITIAL}", notes=(f"step 0 of seed {seed}",)),
            has_head=False,
            spec=None,
            cache={},
        )
    names: list[str] = []
    if spec is not None and Path(spec.checkpoint).is_file():
        here = Path(spec.checkpoint)
        names = [f"step-{step:06d}.pth", f"{here.stem}-step-{step:06d}.pth"]
        for path in (here.with_name(name) for name in names):
            if path.is_file():
                return load_backbone(replace(spec, checkpoint=str(path))).to(backbone.device)
    raise CheckpointError(
        f"step {step} of the pretraining of {backbone.name}",
        f"no {' or '.join(names)} beside its checkpoint" if names else "a checkpoint without a past",
        "Pretrain with --weights all, or leave this mode out",
    )
