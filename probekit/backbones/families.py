"""Which project wrote a checkpoint: told by its containers and names, with what it evaluates and how."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probekit.backbones.checkpoint import StateDict, find_state_dicts
from probekit.data.transforms import Preprocessing
from probekit.errors import CheckpointError, InputError
from probekit.files import read_json

# What the evaluation code of the projects does: short side 256, centre 224, ImageNet's mean and std.
BILINEAR = Preprocessing(224, 256, interpolation="bilinear")
BICUBIC = Preprocessing(224, 256, interpolation="bicubic")
CLIP = Preprocessing(
    224, 224, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), "bicubic"
)
# The released files of Zhao, Wu, Lau, Lin (ICLR 2021): tables 1 and 2, and exemplar-based pretraining.
PAPER = re.compile(
    r"(moco_v2|supervised)_(imagenet(?:_aug_(?:f|fr|frc|frcg))?|imagenet1over10|imagenet100|places|celeba|coco"
    r"|synthia)\.pth|(exemplar_v[12])\.pth"
)
PROCESSOR = "preprocessor_config.json"
# Pillow's numbers for interpolations, as Hugging Face writes them.
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class Family:
    """The project a checkpoint comes from.

    Attributes:
        name: In words, such as ``MoCo v2``; ``unknown`` where nothing tells.
        note: Which branch the project evaluates, and what is left out.
        preprocessing: How it prepares images for evaluation; None where that is not known.
    """

    name: str
    note: str = ""
    preprocessing: Preprocessing | None = None


@dataclass(frozen=True)
class _Sign:
    """What a project's checkpoints look like.

    Attributes:
        family: The project.
        names: Regular expressions that each must be found in some ``container/name`` of a tensor.
        keys: Words that must stand at the top of the file.
    """

    family: Family
    names: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()


_ONLINE = "the online branch is evaluated; its momentum copy, projector and queue are left out"
_PLAIN = "the encoder is evaluated; projector and predictor are left out"
_TEACHER = "the teacher is evaluated; the student and all heads are left out"
_START = r"(^|[/.])"
# The first that matches counts.
SIGNS: tuple[_Sign, ...] = (
    _Sign(
        Family("I-JEPA", "projects evaluate the encoder or the target encoder: choose"),
        keys=("encoder", "target_encoder"),
    ),
    _Sign(Family("MoCo v3", _ONLINE, BILINEAR), (_START + r"base_encoder\.", _START + r"momentum_encoder\.")),
    _Sign(Family("MoCo v2", _ONLINE, BILINEAR), (_START + r"encoder_q\.", r"encoder_q\.fc\.2\.weight")),
    _Sign(Family("MoCo v1", _ONLINE, BILINEAR), (_START + r"encoder_q\.",)),
    _Sign(Family("DINOv3", _TEACHER), (r"(storage_tokens|layer\.0\.attention\.q_proj\.weight)$",)),
    _Sign(
        Family("DINOv2", _TEACHER, BICUBIC),
        (r"\.(ls1\.gamma|layer_scale1\.lambda1)$", r"(mask_token|register_tokens)$"),
    ),
    _Sign(
        Family("iBOT", _TEACHER, BICUBIC),
        (r"masked_embed$|teacher/.*head\.last_layer2|ibot_head",),
        ("teacher",),
    ),
    _Sign(Family("DINO", _TEACHER, BICUBIC), (r"student/", r"teacher/"), ("student", "teacher")),
    _Sign(
        Family("MAE", "the encoder is evaluated; the decoder is left out", BICUBIC),
        (_START + r"decoder_embed\.",),
    ),
    _Sign(
        Family("VISSL", "the trunk is evaluated; heads are left out", BILINEAR),
        (r"(_feature_blocks\.|classy_state_dict/base_model/model/trunk/)",),
    ),
    _Sign(
        Family("SwAV or DeepCluster-v2", "the backbone is evaluated; prototypes are left out", BILINEAR),
        (_START + r"prototypes\w*\.", _START + r"projection_head\."),
    ),
    _Sign(
        Family("Barlow Twins", _PLAIN, BILINEAR),
        (_START + r"backbone\.", _START + r"projector\.", r"module\.bn\.running_mean$"),
    ),
    _Sign(
        Family("lightly", "the online backbone is evaluated, of DINO and MoCo its moving average", BILINEAR),
        (
            r"(^|/)(backbone|student_backbone|teacher_backbone)\.",
            r"(^|/)(projection_head|prediction_head|online_classifier|knn_classifier|student_backbone|key_backbone"
            r"|teacher_backbone)",
        ),
    ),
    _Sign(
        Family(
            "solo-learn", "the backbone is evaluated; its momentum copy and projector are left out", BILINEAR
        ),
        (
            r"(^|/)(backbone|encoder)\.",
            r"(^|/)(momentum_(backbone|encoder|projector)|projector|classifier)\.",
        ),
        ("hyper_parameters",),
    ),
    _Sign(
        Family(
            "solo-learn", "the backbone is evaluated; its momentum copy and projector are left out", BILINEAR
        ),
        (r"(^|/)backbone\.", r"(^|/)momentum_(backbone|projector)\."),
    ),
    _Sign(
        Family("OpenMMLab", "the backbone is evaluated; neck, head and momentum copies are left out"),
        (r"(^|/)backbone\.",),
        ("meta",),
    ),
    _Sign(Family("VICReg", _PLAIN, BILINEAR), (r"module\.backbone\.", r"module\.projector\.")),
    _Sign(
        Family("SimSiam", _PLAIN, BILINEAR),
        (r"(^|/)module\.encoder\.", r"(^|/)module\.predictor\."),
    ),
    _Sign(
        Family("SupCon", "the encoder is evaluated; its projector is left out", BILINEAR),
        (r"(^|/)model/module\.encoder\.", r"(^|/)model/module\.head\."),
    ),
    _Sign(
        Family("SimCLR", "the backbone is evaluated; its projector is left out", BILINEAR),
        (r"(^|/)backbone\.fc\.0\.weight$",),
    ),
    _Sign(
        Family("CLIP", "the visual tower is used; the text tower and the projection are left out", CLIP),
        (r"(^|[/.])visual\.(trunk\.|class_embedding$|conv1\.weight$)",),
    ),
    _Sign(
        Family("torchvision ViT", "the classifier is kept", BILINEAR),
        (_START + r"encoder\.layers\.encoder_layer_0\.",),
    ),
    _Sign(Family("timm with a moving average", "the moving average is evaluated"), keys=("state_dict_ema",)),
    _Sign(Family("timm with a moving average", "the moving average is evaluated"), keys=("model_ema",)),
    _Sign(
        Family("Hugging Face"),
        (r"encoder\.(layer|stages)\.0\.(attention\.attention\.query|layers\.0\.layer)",),
    ),
)


def recognise(opened: Any, path: str | Path | None = None) -> Family:  # noqa: ANN401 - whatever the file holds
    """Say which project wrote a checkpoint.

    Args:
        opened: What ``open_checkpoint`` returned.
        path: Where it lies: the authors' files of the paper are known by name, and folders of Hugging Face
            say beside the weights how images are prepared.

    Raises:
        CheckpointError: If what stands beside the weights in a folder cannot be read.

    Examples:
        >>> import torch
        >>> names = ["module.encoder_q.conv1.weight", "module.encoder_q.fc.weight", "module.queue"]
        >>> recognise({"state_dict": {name: torch.ones(1) for name in names}}).name
        'MoCo v1'
    """
    states = find_state_dicts(opened)
    found = next((one.family for one in SIGNS if _matches(one, opened, states)), Family("unknown"))
    file = None if path is None else Path(path)
    paper = None if file is None else PAPER.fullmatch(file.name)
    if paper is not None:
        return _paper_family(paper, found)
    if isinstance(opened, Mapping) and isinstance(opened.get("config"), Mapping):
        return _hugging_face(opened["config"], found, file)
    return found


def _matches(sign: _Sign, opened: Any, states: list[StateDict]) -> bool:  # noqa: ANN401 - whatever it holds
    if not all(isinstance(opened, Mapping) and key in opened for key in sign.keys):
        return False
    names = [f"{state.label}/{name}".lstrip("/") for state in states for name in state.tensors]
    return all(any(re.search(pattern, name) for name in names) for pattern in sign.names)


def _paper_family(found: re.Match[str], content: Family) -> Family:
    objective, data, exemplar = found.groups()
    name = exemplar.replace("_", " ") if exemplar else f"{objective.replace('_', ' ')} on {data}"
    moco = "the online encoder is evaluated" if content.name.startswith("MoCo") else "as the file holds it"
    note = f"{moco}; released with Zhao et al. (ICLR 2021)"
    return Family(f"{content.name}: {name}" if content.name != "unknown" else name, note, BILINEAR)


def _hugging_face(config: Mapping[str, Any], found: Family, path: Path | None) -> Family:
    """Take the kind of network from config.json, and the preprocessing from the file beside it."""
    kind = config.get("model_type") or config.get("architecture")
    name = f"Hugging Face {kind}" if isinstance(kind, str) else "Hugging Face"
    beside = None if path is None or not path.is_dir() else path / PROCESSOR
    stated = _read_processor(beside) if beside is not None and beside.is_file() else None
    note = f"{found.note}; " if found.note else ""
    note += "images that are not square are cropped, where its own code may squash them" if stated else ""
    return Family(name, note.removesuffix("; "), stated or found.preprocessing)


def _read_processor(path: Path) -> Preprocessing | None:
    """Read how images are prepared; None where it does not say.

    Raises:
        CheckpointError: If it is not JSON, or holds impossible values.
    """
    try:
        facts = read_json(path)
        return _processor(facts) if isinstance(facts, Mapping) else None
    except (InputError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"a readable {PROCESSOR}", f"{path} ({error})", "Restore it, or remove it and state the keys"
        ) from error


def _processor(facts: Mapping[str, Any]) -> Preprocessing | None:
    resize, crop = _side(facts.get("size")), _side(facts.get("crop_size"))
    size = crop if facts.get("do_center_crop") and crop else resize
    if size is None or resize is None:
        return None
    scaled = facts.get("do_normalize", True)
    mean = tuple(facts.get("image_mean", (0.5, 0.5, 0.5))) if scaled else (0.0, 0.0, 0.0)
    std = tuple(facts.get("image_std", (0.5, 0.5, 0.5))) if scaled else (1.0, 1.0, 1.0)
    interpolation = RESAMPLE.get(facts.get("resample", 2), "bicubic")
    return Preprocessing(size, max(size, resize), mean, std, interpolation)


def _side(value: Any) -> int | None:  # noqa: ANN401 - as the file has it
    if isinstance(value, Mapping):
        value = value.get("shortest_edge") or value.get("height")
    return value if isinstance(value, int) and not isinstance(value, bool) else None
