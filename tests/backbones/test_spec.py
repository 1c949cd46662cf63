"""Models in words."""

from __future__ import annotations

import pickle
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from probekit.backbones.spec import ModelSpec, function_parts, parse_model
from probekit.errors import InputError

plain = st.text("abcXYZ019_-. é@#()", min_size=1, max_size=12).map(str.strip).filter(bool)
identifiers = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
archs = st.one_of(
    st.sampled_from(["resnet50", "auto", "cifar_resnet20", "vit_small_patch14_dinov2.lvd142m"]),
    st.builds("{}.py:{}".format, st.sampled_from(["net", "nets/mine", "../a b"]), identifiers),
    st.builds("torchvision.models.{}".format, identifiers),
)
checkpoints = st.one_of(
    st.sampled_from(["random", "pretrained", "bundled@ce", "wheel", "C:\\runs\\a.pth", "/a=b/c:d.pth"]),
    st.integers(0, 10**9).map("random@{}".format),
    plain.map(lambda text: "dir/" + text),
)
numbers = st.floats(-10, 10, allow_nan=False)
positive = st.floats(1e-3, 10)
keys = st.fixed_dictionaries(
    {},
    optional={
        "branch": st.sampled_from(["online", "ema", "state_dict/module.encoder_k"]),
        "size": st.integers(1, 4096),
        "mean": st.tuples(numbers, numbers, numbers),
        "std": st.tuples(positive, positive, positive),
        "interpolation": st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"]),
        "levels": st.dictionaries(
            st.sampled_from(["layer1", "blocks.0", "s/".strip("/")]),
            st.sampled_from(["low", "mid", "high"]),
            min_size=1,
        ),
    },
)


@settings(deadline=None, max_examples=50)
@given(st.one_of(st.none(), plain), archs, checkpoints, keys)
def test_words_round_trip(name, arch, checkpoint, keys):
    spec = ModelSpec(name or arch, arch, checkpoint, keys)
    assert parse_model(str(spec)) == spec
    assert parse_model(spec.mapping()) == spec
    assert parse_model(yaml.safe_load(yaml.safe_dump(spec.mapping()))) == spec
    assert pickle.loads(pickle.dumps(spec)) == spec
    assert hash(parse_model(str(spec))) == hash(spec)


@settings(deadline=None, max_examples=50)
@given(st.text("ab=:,./@py019 ", max_size=20))
def test_any_text_parses_or_is_refused_in_words(text):
    with suppress(InputError):
        spec = parse_model(text)
        assert spec.name
        assert spec.arch
        assert spec.checkpoint


@pytest.mark.parametrize(
    ("text", "name", "arch", "checkpoint"),
    [
        ("resnet50:random", "resnet50", "resnet50", "random"),
        ("resnet50:/a=b.pth", "resnet50", "resnet50", "/a=b.pth"),
        ("sup=resnet50:sup.pth", "sup", "resnet50", "sup.pth"),
        ("m=net.py:make:ckpt.pth", "m", "net.py:make", "ckpt.pth"),
        ("net.py:make:random@7", "net.py:make", "net.py:make", "random@7"),
        ("C:\\nets\\net.py:make:a.pth", "C:\\nets\\net.py:make", "C:\\nets\\net.py:make", "a.pth"),
        (
            "torchvision.models.resnet18:a.pth",
            "torchvision.models.resnet18",
            "torchvision.models.resnet18",
            "a.pth",
        ),
        ("auto:C:\\a.pth", "auto", "auto", "C:\\a.pth"),
    ],
)
def test_parts(text, name, arch, checkpoint):
    spec = parse_model(text)
    assert (spec.name, spec.arch, spec.checkpoint) == (name, arch, checkpoint)


def test_keys_are_read():
    spec = parse_model("a=x:b,mean=0.5/0.25/1,std=1/2/3,size=32,levels=l1:low/l2:high,branch=ema")
    assert spec.keys == {
        "branch": "ema",
        "size": 32,
        "mean": (0.5, 0.25, 1.0),
        "std": (1.0, 2.0, 3.0),
        "levels": {"l1": "low", "l2": "high"},
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("resnet50", "random@SEED, pretrained, bundled@ARM or wheel"),
        ("sup=resnet50", "random@SEED, pretrained, bundled@ARM or wheel"),
        ("net.py:make", "random@SEED, pretrained, bundled@ARM or wheel"),
        ("resnet50:", "nothing"),
        (":random", "architecture before"),
        ("=resnet50:random", "name without commas"),
        ("a=b=resnet50:random", "without `=`"),
        ("resnet50:random@x", "whole number"),
        ("resnet50:random@-1", "whole number"),
        ("resnet50:a.pth,b.pth", "YAML"),
        ("resnet50:a.pth,sise=3", "'sise'"),
        ("resnet50:a.pth,size=3,size=4", "twice"),
        ("resnet50:a.pth,size=0", "whole pixels"),
        ("resnet50:a.pth,size=2.5", "whole pixels"),
        ("resnet50:a.pth,mean=0.5", "three numbers"),
        ("resnet50:a.pth,mean=0.5/nan/1", "finite"),
        ("resnet50:a.pth,std=0.5/0/1", "positive"),
        ("resnet50:a.pth,interpolation=cubic", "bicubic"),
        ("resnet50:a.pth,levels=layer1", "level for each block"),
        ("resnet50:a.pth,levels=layer1:top", "low, mid, high"),
        ("resnet50:a.pth,branch=", "online"),
        ("net.py::a.pth", "name of a function"),
        ("", "architecture"),
    ],
)
def test_errors_are_precise(text, said):
    with pytest.raises(InputError, match=said.replace("(", r"\(")):
        parse_model(text)


def test_a_mapping_needs_its_parts():
    with pytest.raises(InputError, match="'checkpoint'"):
        parse_model({"arch": "resnet50"})
    with pytest.raises(InputError, match="'sizes'"):
        parse_model({"arch": "resnet50", "checkpoint": "a", "sizes": 3})


def test_words_and_paths_are_told_apart():
    assert parse_model("r:random").seed == 0
    assert parse_model("r:random@5").seed == 5
    assert parse_model("r:a.pth").seed is None
    assert parse_model("r:./random").checkpoint_path == "random"
    for word in ("random", "random@3", "pretrained", "bundled@ce", "wheel"):
        assert parse_model(f"r:{word}").checkpoint_path is None


def test_user_code_is_told_from_names():
    assert parse_model("a.py:f:random").user_code
    assert parse_model("torchvision.models.resnet18:random").user_code
    assert not parse_model("resnet50.a1_in1k:random").user_code
    assert not parse_model("resnet50:random").user_code
    assert function_parts("json.loads") == ("json", "loads")


def test_a_control_bears_any_name():
    spec = replace(parse_model("resnet50:a.pth,size=64"), name="resnet50:random@1", checkpoint="random@1")
    assert parse_model(spec.mapping()) == spec


def test_words_load_neither_torch_nor_timm():
    code = "import sys, probekit.backbones.spec; print(sorted({'torch', 'timm'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
