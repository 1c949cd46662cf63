"""Damaged, odd and hostile input of every kind: what can be read is read, all else is an error of ours.

Nothing that a file holds is run, nothing is written anywhere, and memory stays bounded. Every case has a
number: ``PROBEKIT_FUZZ_CASE=checkpoint:1234`` runs that case alone.
"""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import random
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save as safetensors_bytes

from probekit import Plan, load_backbone
from probekit.backbones.checkpoint import find_state_dicts, open_checkpoint
from probekit.backbones.spec import parse_model
from probekit.data.decoding import as_rgb, decode
from probekit.data.readers import open_images
from probekit.data.specs import DataSpec
from probekit.errors import ProbekitError

log = logging.getLogger(__name__)
# Target → cases of a campaign. Every run of the tests has a sample.
COUNTS = {
    "checkpoint": 5000,
    "nested": 1500,
    "hostile": 600,
    "weights": 400,
    "archive": 800,
    "image": 8000,
    "table": 1500,
    "coco": 1500,
    "voc": 1200,
    "plan": 2000,
    "words": 2000,
}
SAMPLE = 40
Stream = random.Random


# What all share


def mutated(content: bytes, stream: Stream) -> bytes:
    """Return content with some bits flipped, a part cut, doubled, filled or exchanged."""
    changed = bytearray(content)
    for _ in range(stream.choice([1, 1, 1, 2, 4, 16])):
        if not changed:
            break
        place, length = stream.randrange(len(changed)), stream.choice([1, 2, 4, 8, 64])
        match stream.randrange(6):
            case 0:
                changed[place] ^= 1 << stream.randrange(8)
            case 1:
                changed[place] = stream.randrange(256)
            case 2:
                del changed[place : place + length]
            case 3:
                changed[place:place] = changed[place : place + length]
            case 4:
                changed[place : place + length] = bytes([stream.choice([0, 255, 127])]) * length
            case _:
                other = stream.randrange(len(changed))
                changed[place : place + length] = changed[other : other + length]
    if stream.random() < 0.1:
        del changed[stream.randrange(len(changed) + 1) :]
    return bytes(changed)


def number(stream: Stream) -> Any:
    return stream.choice(
        [
            0,
            -1,
            1,
            3,
            2.5,
            -0.5,
            1e308,
            2**63,
            10**30,
            float("nan"),
            float("inf"),
            "7",
            "",
            None,
            [],
            {},
            True,
        ]
    )


def altered(value: Any, stream: Stream) -> Any:
    """Return a JSON value with one place exchanged, dropped or renamed."""
    if isinstance(value, dict) and value and stream.random() < 0.9:
        key = stream.choice(sorted(value))
        changed = dict(value)
        match stream.randrange(8):
            case 0:
                del changed[key]
            case 1:
                changed[stream.choice(["", "id", "__class__", "<script>", key.upper()])] = changed.pop(key)
            case _:
                changed[key] = altered(value[key], stream)
        return changed
    if isinstance(value, list) and value and stream.random() < 0.9:
        place = stream.randrange(len(value))
        match stream.randrange(8):
            case 0:
                return value[:place] + value[place + 1 :]
            case 1:
                return [*value, value[place]]
            case _:
                return [*value[:place], altered(value[place], stream), *value[place + 1 :]]
    return number(stream)


# Checkpoints


@cache
def weights() -> dict[str, torch.Tensor]:
    return {
        "conv1.weight": torch.arange(54.0).reshape(2, 3, 3, 3),
        "bn1.weight": torch.ones(2),
        "n": torch.tensor(3),
    }


@cache
def checkpoints() -> list[bytes]:
    made = [safetensors_bytes(weights())]
    for zipped in (True, False):
        held = io.BytesIO()
        beside = {"epoch": 3, "args": {"lr": 0.1}, "scores": np.float64(0.5)}
        torch.save({"state_dict": weights(), **beside}, held, _use_new_zipfile_serialization=zipped)
        made.append(held.getvalue())
    return made


def look(path: Path) -> None:
    for state in find_state_dicts(open_checkpoint(path)):
        for one in state.tensors.values():
            one.float().sum()


def checkpoint(folder: Path, stream: Stream) -> None:
    path = folder / "a.pth"
    path.write_bytes(mutated(stream.choice(checkpoints()), stream))
    look(path)


def nested_value(stream: Stream, depth: int = 0) -> Any:
    kind = stream.randrange(12 if depth < 5 else 8)
    keys: list[Any] = ["state_dict", "model", "module.x", "", 0, ("a", 1), None, "weight", "teacher"]
    match kind:
        case 0:
            return torch.randn(stream.choice([(), (0,), (3,), (2, 3), (2, 3, 1, 1)]))
        case 1:
            return torch.full((2,), stream.choice([float("nan"), float("inf")]))
        case 2:
            return torch.zeros(3).to(
                stream.choice([torch.float16, torch.bfloat16, torch.int8, torch.complex64, torch.bool])
            )
        case 3:
            return np.arange(4)
        case 4:
            return torch.sparse_coo_tensor(torch.zeros(1, 1, dtype=torch.long), torch.ones(1), (3,))
        case 5 | 6 | 7:
            return number(stream)
        case 8:
            return [nested_value(stream, depth + 1) for _ in range(stream.randrange(4))]
        case 9:
            return tuple(nested_value(stream, depth + 1) for _ in range(stream.randrange(3)))
        case _:
            return {stream.choice(keys): nested_value(stream, depth + 1) for _ in range(stream.randrange(5))}


def nested(folder: Path, stream: Stream) -> None:
    path = folder / "a.pth"
    value = nested_value(stream)
    if stream.random() < 0.1:
        loop: dict[str, Any] = {"state_dict": value}
        loop["self"] = loop
        value = loop
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(value, path, _use_new_zipfile_serialization=stream.random() < 0.7)
    look(path)


class Runs:
    """Calls something as it is unpickled."""

    def __init__(self, function: Callable[..., Any], *given: Any) -> None:
        self.called = function, given

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.called


def hostile(folder: Path, stream: Stream) -> None:
    """Files that would run something, or claim to be huge: none may be read."""
    path, canary = folder / "a.pth", folder / "canary"
    match stream.randrange(5):
        case 0 | 1:
            function, given = stream.choice(
                [
                    (os.system, (f"touch {canary}",)),
                    (exec, (f"open({str(canary)!r}, 'w')",)),
                    (eval, (f"open({str(canary)!r}, 'w')",)),
                    (os.mkdir, (str(canary),)),
                    (Path.touch, (canary,)),
                    (open, (str(canary), "w")),
                ]
            )
            bomb: Any = Runs(function, *given)
            for _ in range(stream.randrange(4)):
                bomb = stream.choice(
                    [lambda one: {"state_dict": one, **weights()}, lambda one: [one, 1], lambda one: (one,)]
                )(bomb)
            if stream.random() < 0.5:
                path.write_bytes(pickle.dumps(bomb, protocol=stream.randrange(6)))
            else:
                torch.save(bomb, path, _use_new_zipfile_serialization=stream.random() < 0.5)
        case 2:
            count = stream.choice([2**40, 2**62, 10**18])
            entry = {"dtype": "F32", "shape": [count], "data_offsets": [0, stream.choice([4 * count, 16, 0])]}
            header = json.dumps({"w": entry}).encode()
            path.write_bytes(struct.pack("<Q", stream.choice([len(header), 2**60])) + header + bytes(16))
        case 3:
            held = io.BytesIO()
            torch.save({"w": torch.ones(4)}, held)
            with zipfile.ZipFile(held) as old, zipfile.ZipFile(path, "w") as new:
                for name in old.namelist():
                    content = old.read(name)
                    if name.endswith("data.pkl"):
                        # BININT1 4, the number of elements, becomes LONG1 of eight bytes.
                        content = content.replace(
                            b"K\x04", b"\x8a\x08" + struct.pack("<q", stream.choice([2**40, 2**62, -1]))
                        )
                    new.writestr(name, content)
        case _:
            depth = stream.choice([2000, 100_000])
            path.write_bytes(b"\x80\x02" + b"]" * depth + b"a" * (depth - 1) + b".")
    look(path)
    raise AssertionError("a hostile file was read")


@cache
def whole_weights() -> dict[str, torch.Tensor]:
    return load_backbone("resnet10_w16:bundled@ce").module.state_dict()


def weights_case(folder: Path, stream: Stream) -> None:
    """Weights of an architecture with something wrong about them: loaded whole, or refused."""
    state = dict(whole_weights())
    name = stream.choice(sorted(state))
    wrong = True
    match stream.randrange(6):
        case 0:
            del state[name]
        case 1:
            state[name] = state[name].flatten()[None] if state[name].numel() > 1 else torch.ones(2, 2)
        case 2:
            wrong = state[name].is_floating_point()
            state[name] = torch.full_like(state[name], float("nan") if wrong else 1)
        case 3:
            state[f"{name}.x"] = state.pop(name)
        case 4:
            state[name] = state[name].to(torch.complex64)
        case _:
            wrong = False
            state = (
                {f"{stream.choice(['module.', 'backbone.'])}{key}": value for key, value in state.items()}
                if stream.random() < 0.1
                else {f"module.{key}": value for key, value in state.items()}
            )
    torch.save({"state_dict": state}, folder / "a.pth")
    loaded = load_backbone(f"resnet10_w16:{folder / 'a.pth'}")
    assert not wrong or name.startswith("fc.") or "num_batches_tracked" in name, (name, "was loaded")
    assert all(bool(one.isfinite().all()) for one in loaded.module.state_dict().values())


# Images and archives


@cache
def pictures() -> list[bytes]:
    made = []
    stream = np.random.default_rng(0)
    for mode, form, more in [
        ("RGB", "JPEG", {}),
        ("CMYK", "JPEG", {}),
        ("L", "JPEG", {"progressive": True}),
        ("RGBA", "PNG", {}),
        ("P", "PNG", {}),
        ("I;16", "PNG", {}),
        ("1", "PNG", {}),
        ("RGB", "GIF", {}),
        ("RGB", "BMP", {}),
        ("RGB", "TIFF", {}),
        ("F", "TIFF", {}),
        ("LA", "PNG", {}),
        ("RGB", "WEBP", {}),
        ("RGB", "PPM", {}),
    ]:
        image = Image.fromarray(stream.integers(0, 256, (24, 20, 3), np.uint8)).convert(
            "L" if mode == "I;16" else mode
        )
        if mode == "I;16":
            image = Image.fromarray(stream.integers(0, 65536, (24, 20)).astype(np.uint16))
        held = io.BytesIO()
        if form == "GIF":
            image.save(held, form, save_all=True, append_images=[image.rotate(90), image])
        else:
            exif = Image.Exif()
            exif[0x0112] = int(stream.integers(0, 10))
            image.save(held, form, **(more | ({"exif": exif} if form in ("JPEG", "WEBP") else {})))
        made.append(held.getvalue())
    return made


def image(folder: Path, stream: Stream) -> None:
    content = mutated(stream.choice(pictures()), stream)
    if stream.random() < 0.02:
        # A PNG that says it is 30,000 pixels wide and high.
        content = content[:16] + struct.pack(">II", 30_000, 30_000) + content[24:]
    found = as_rgb(decode(io.BytesIO(content), "a"), "a")
    assert found.mode == "RGB"
    assert found.width * found.height <= 2 * (Image.MAX_IMAGE_PIXELS or 0)


def archive(folder: Path, stream: Stream) -> None:
    path = folder / "in" / "a.zip"
    path.parent.mkdir()
    names = [
        "cat/1.png",
        "cat/2.png",
        "dog/1.png",
        "dog/2.png",
        "../out.png",
        "/abs/1.png",
        "cat/../../3.png",
        "C:\\x\\1.png",
        "cat//4.png",
        "dog/\x001.png",
        "cat/" + "a" * 300 + ".png",
        "__MACOSX/cat/1.png",
        "cat/1.png",
        "dog/ä.png",
    ]
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        warnings.simplefilter("ignore")
        for name in [*names[:4], *stream.sample(names[4:], 2)]:
            info = zipfile.ZipInfo(name)
            content = stream.choice(pictures()[:4])
            if stream.random() < 0.1:
                info.external_attr, content = 0o120777 << 16, b"/etc/passwd"  # a symbolic link
            if stream.random() < 0.05:
                content = bytes(30 << 20)  # little when packed, much when opened
            made.writestr(info, content, zipfile.ZIP_DEFLATED)
    if stream.random() < 0.5:
        path.write_bytes(mutated(path.read_bytes(), stream))
    opened = open_images(path, skip_unreadable=stream.random() < 0.5)
    for place in range(len(opened)):
        opened.image(place)


# Annotations


def tree(folder: Path) -> Path:
    for place, name in enumerate(["cat.1.png", "cat.2.png", "dog.1.png", "dog.2.png"]):
        (folder / name).write_bytes(pictures()[3 if place % 2 else 6])
    return folder


def read_all(opened: Any) -> None:
    for place in range(len(opened)):
        opened.image(place)


def table(folder: Path, stream: Stream) -> None:
    text = "path,label,split,width\n" + "".join(
        f"{name}.png,{name.split('.')[0]},{split},{width}\n"
        for name, split, width in [
            ("cat.1", "train", 1),
            ("cat.2", "test", 2.5),
            ("dog.1", "train", 1e9),
            ("dog.2", "test", -3),
        ]
    )
    path = tree(folder) / "table.csv"
    path.write_bytes(mutated(text.encode(), stream))
    read_all(open_images(path))


def coco(folder: Path, stream: Stream) -> None:
    tree(folder)
    content: Any = {
        "images": [
            {"id": n, "file_name": f"{name}.png", "width": 20, "height": 24}
            for n, name in enumerate(["cat.1", "cat.2", "dog.1", "dog.2"])
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "<script>alert(1)</script>"}],
        "annotations": [
            {
                "id": n,
                "image_id": n % 4,
                "category_id": 1 + n % 2,
                "bbox": [1, 2, 5, 6],
                "iscrowd": n % 5 == 4,
                "area": 30,
                "segmentation": [[1, 2, 6, 2, 6, 8]]
                if n % 2
                else {"counts": [0, 100, 380], "size": [24, 20]},
            }
            for n in range(8)
        ],
    }
    for _ in range(stream.choice([1, 1, 2, 3])):
        content = altered(content, stream)
    text = json.dumps(content)
    (folder / "instances_train.json").write_bytes(
        mutated(text.encode(), stream) if stream.random() < 0.3 else text.encode()
    )
    read_all(open_images(f"{folder},format=coco"))


VOC = """<?xml version="1.0"?>{doctype}<annotation><filename>{name}.png</filename><size><width>20</width>
<height>24</height><depth>3</depth></size><object><name>cat{entity}</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin>
<xmax>9</xmax><ymax>12</ymax></bndbox></object></annotation>"""
LAUGHS = (
    "<!DOCTYPE a [<!ENTITY l0 'ha'>"
    + "".join(f"<!ENTITY l{n} '{f'&l{n - 1};' * 10}'>" for n in range(1, 9))
    + "]>"
)
OUTSIDE = "<!DOCTYPE a [<!ENTITY l8 SYSTEM 'file:///etc/passwd'>]>"


def voc(folder: Path, stream: Stream) -> None:
    for part in ("JPEGImages", "Annotations"):
        (folder / part).mkdir()
    odd = stream.choice("abcd")
    for name in "abcd":
        (folder / "JPEGImages" / f"{name}.png").write_bytes(pictures()[3])
        doctype = stream.choice(["", "", "", LAUGHS, OUTSIDE]) if name == odd else ""
        content = VOC.format(name=name, doctype=doctype, entity="&l8;" if doctype else "").encode()
        (folder / "Annotations" / f"{name}.xml").write_bytes(
            mutated(content, stream) if name == odd else content
        )
    opened = open_images(folder)
    assert not any("root:" in name for one in opened.targets.values() for name in one.classes)
    read_all(opened)


# Plans and words

PLAN = b"""format: 1
verb: probe
models: [a=resnet18:random, "b=resnet18:x.pth,size=64"]
data: [digits, "shapeworld/source,train=10,test=5"]
taps: stages
permutations: 20
penalties: [0.1, 1.0e-3]
nested: &a {x: 1, y: [true, null, 2020-01-01, !!python/object/apply:os.system ["touch CANARY"]]}
"""


def plan(folder: Path, stream: Stream) -> None:
    text = PLAN.replace(b"CANARY", str(folder / "canary").encode())
    if stream.random() < 0.7:
        text = text[: text.index(b"nested")]
    Plan.from_yaml(mutated(text, stream).decode("utf-8", "replace"), "plan.yaml")


def words(folder: Path, stream: Stream) -> None:
    known = [
        "a=resnet18:x.pth,size=64,branch=teacher",
        "resnet18:random",
        "b=vit_small:y@z,mean=0.5/0.5/0.5,std=1",
        "flowers/,limit=20,classes=a+b",
        "shapeworld/source,train=10,test=5",
        "x.zip,format=coco,annotations=boxes",
    ]
    text = mutated(stream.choice(known).encode(), stream).decode("utf-8", "replace")
    (parse_model if stream.random() < 0.5 else DataSpec.parse)(text)


TARGETS: dict[str, Callable[[Path, Stream], None]] = {
    "checkpoint": checkpoint,
    "nested": nested,
    "hostile": hostile,
    "weights": weights_case,
    "archive": archive,
    "image": image,
    "table": table,
    "coco": coco,
    "voc": voc,
    "plan": plan,
    "words": words,
}


def run_case(target: str, case: int, folder: Path) -> bool:
    """Run one case; return whether it was refused."""
    place = folder / str(case)
    place.mkdir()
    before = set(folder.iterdir())
    try:
        with warnings.catch_warnings():
            # Libraries warn of what they mend; here an error or a result is asked for.
            warnings.simplefilter("ignore")
            TARGETS[target](place, random.Random(f"{target}:{case}"))
        return False
    except ProbekitError:
        return True
    except BaseException as error:
        error.add_note(f"PROBEKIT_FUZZ_CASE={target}:{case}")
        raise
    finally:
        assert not (place / "canary").exists(), f"{target}:{case} ran what it holds"
        assert set(folder.iterdir()) == before, f"{target}:{case} wrote a file outside its folder"
        for path in sorted(place.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        place.rmdir()


def cases(target: str, count: int) -> Iterator[int]:
    named, _, number = os.environ.get("PROBEKIT_FUZZ_CASE", "").partition(":")
    if named:
        return iter([int(number)] if named == target else [])
    return iter(range(count))


# Names of a zip and dates of YAML that are none, and null bytes in names, were found by these.
@pytest.mark.parametrize(("target", "case"), [("archive", 225), ("plan", 815), ("table", 5)])
def test_cases_that_once_failed(target: str, case: int, tmp_path: Path):
    run_case(target, case, tmp_path)


@pytest.mark.parametrize("target", TARGETS)
def test_some_cases(target: str, tmp_path: Path):
    for case in cases(target, SAMPLE):
        run_case(target, case, tmp_path)


@pytest.mark.campaign
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("target", TARGETS)
def test_many_cases(target: str, tmp_path: Path):
    import resource

    first = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = [run_case(target, case, tmp_path) for case in cases(target, COUNTS[target])]
    log.info("%s: %d cases, %d refused", target, len(refused), sum(refused))
    # In kilobytes: nothing that a small file claims takes a gigabyte.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - first < 1 << 20
