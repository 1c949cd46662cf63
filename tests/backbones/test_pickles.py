"""What is inside a checkpoint is never run: hostile pickles, and settings of libraries that stay closed."""

from __future__ import annotations

import argparse
import collections
import datetime
import io
import os
import pathlib
import pickle
import pickletools
import sys
import types
import zipfile
from contextlib import contextmanager, suppress
from struct import pack

import numpy as np
import pytest
import torch

from probekit.backbones.checkpoint import find_state_dicts, open_checkpoint
from probekit.backbones.pickles import INERT, LEGACY, StandIn, is_inert, list_globals
from probekit.errors import CheckpointError, UnsafeCheckpoint

WEIGHTS = {"conv.weight": torch.arange(6.0).reshape(2, 3), "bn.running_mean": torch.ones(2)}


@pytest.fixture(scope="module", autouse=True)
def opened_before(tmp_path_factory):
    """Let torch import what it needs for any file, so that a test sees what its own file brings in."""
    for zipped in (True, False):
        beside = {"w": WEIGHTS, "when": datetime.datetime.min, "args": argparse.Namespace()}
        open_checkpoint(save(beside, tmp_path_factory.mktemp("first") / "a.pth", zipped))
        with suppress(CheckpointError):
            open_checkpoint(wrap(P2 + b"cos\nsystem\n.", tmp_path_factory.mktemp("second") / "a.pth", zipped))


def save(value, path, zipped=True, **settings):
    torch.save(value, path, _use_new_zipfile_serialization=zipped, **settings)
    return path


def wrap(pickled, path, zipped):
    """Put a pickle where torch.save puts its own."""
    if zipped:
        with zipfile.ZipFile(path, "w") as opened:
            opened.writestr("archive/data.pkl", pickled)
            opened.writestr("archive/version", "3\n")
            opened.writestr("archive/byteorder", "little")
    else:
        parts = [b"\x80\x02" + LEGACY + b".", pickle.dumps(1001, 2), pickle.dumps({"little_endian": True}, 2)]
        path.write_bytes(b"".join([*parts, pickled, pickle.dumps([], 2)]))
    return path


def text(value):
    return b"X" + pack("<I", len(value)) + value.encode()


def call(module, name, *arguments):
    """Pickle a call of a function by name."""
    return b"c" + f"{module}\n{name}\n".encode() + b"(" + b"".join(map(text, arguments)) + b"tR"


def make(module, name):
    """Pickle an empty object of a class by name."""
    return f"c{module}\n{name}\n)".encode() + b"\x81"


P2 = b"\x80\x02"
TOUCH = "open('{flag}', 'w').close()"
SHELL = "touch {flag}"
# Name → a pickle meant to make a file; what the message must list, None if it may open.
HOSTILE = {
    "os.system": (P2 + call("os", "system", SHELL) + b".", "os.system"),
    "posix.system": (P2 + call("posix", "system", SHELL) + b".", "posix.system"),
    "nt.system": (P2 + call("nt", "system", SHELL) + b".", "nt.system"),
    "subprocess": (P2 + call("subprocess", "getoutput", SHELL) + b".", "subprocess.getoutput"),
    "eval": (P2 + call("builtins", "eval", TOUCH) + b".", "builtins.eval"),
    "exec of Python 2": (P2 + call("__builtin__", "exec", TOUCH) + b".", "builtins.exec"),
    "torch.load": (P2 + call("torch", "load", "/dev/null") + b".", "torch.load"),
    "torch.hub": (P2 + call("torch.hub", "load", "a", "b") + b".", "torch.hub.load"),
    "runpy in numpy": (
        P2 + call("numpy.testing._private.utils", "runstring", TOUCH, "") + b".",
        None,
    ),
    "getattr of an inert module": (
        P2 + b"cbuiltins\ngetattr\n(cpathlib\nPath\n" + text("touch") + b"tR(" + text("{flag}") + b"tR.",
        None,
    ),
    "getattr of os": (
        P2 + b"cbuiltins\ngetattr\n(cos\n__dict__\n" + text("system") + b"tR.",
        "os.__dict__",
    ),
    "touch by a path": (
        P2 + b"cpathlib\nPath.touch\n(" + call("pathlib", "PosixPath", "{flag}") + b"tR.",
        None,
    ),
    "setstate of an inert class": (
        P2 + make("argparse", "Namespace") + b"}(" + text("__class__") + b"cos\nsystem\nub.",
        "os.system",
    ),
    "attributes of an inert class": (
        P2
        + make("argparse", "Namespace")
        + b"}("
        + text("__class__")
        + call("builtins", "object")
        + text("__reduce__")
        + text(SHELL)
        + b"ub.",
        None,
    ),
    "slots of an inert class": (
        P2 + make("argparse", "Namespace") + b"N}(" + text("__class__") + text("x") + b"u\x86b.",
        None,
    ),
    "a call of an inert object": (
        P2 + call("argparse", "Namespace") + b"(" + text(SHELL) + b"tR.",
        None,
    ),
    "array inside arrays": (
        P2
        + b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t"
        + b"cnumpy._core.multiarray\n_reconstruct\n("
        + call("builtins", "eval", TOUCH)
        + b"tRtR.",
        "builtins.eval",
    ),
    "rebuilt by a hostile function": (
        P2
        + b"ctorch._tensor\n_rebuild_from_type_v2\n(cbuiltins\neval\nctorch\nTensor\n("
        + text(TOUCH)
        + b"t}tR.",
        "builtins.eval",
    ),
    "rebuilt by an inert one": (
        P2
        + b"ctorch._tensor\n_rebuild_from_type_v2\n(cpathlib\nPath.touch\nctorch\nTensor\n("
        + text("{flag}")
        + b"t}tR.",
        None,
    ),
    "persistent id": (P2 + call("os", "system", SHELL) + b"Q.", "os.system"),
    "in a key": (P2 + b"}" + call("os", "system", SHELL) + b"K\x01s.", "os.system"),
    "stack global": (
        b"\x80\x04" + text("os") + text("system") + b"\x93(" + text(SHELL) + b"tR.",
        "os.system",
    ),
    "stack global of short texts": (
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93(" + text(TOUCH) + b"tR.",
        "builtins.eval",
    ),
    "stack global from the memo": (
        b"\x80\x04" + text("os") + b"\x94" + text("system") + b"\x9400h\x00h\x01\x93(" + text(SHELL) + b"tR.",
        "os.system",
    ),
    "stack global past a pop": (
        b"\x80\x04" + text("os") + text("system") + text("pathlib") + b"0\x93(" + text(SHELL) + b"tR.",
        "os.system",
    ),
    "stack global of no text": (b"\x80\x04" + text("os") + b"K\x01\x93.", r"\?"),
    "from the memo": (
        P2 + b"cos\nsystem\nq\x000h\x00(" + text(SHELL) + b"tR.",
        "os.system",
    ),
    "instance": (b"(" + text(SHELL) + b"ios\nsystem\n.", "os.system"),
    "extension": (P2 + b"\x82\x01.", r"\?"),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_runs_nothing(tmp_path, name, zipped):
    flag = tmp_path / "ran"
    pickled, listed = HOSTILE[name]
    pickled = fill(pickled, str(flag))
    before = set(sys.modules)
    path = wrap(pickled, tmp_path / "a.pth", zipped)
    if listed is None:
        try:
            opened = open_checkpoint(path)
        except CheckpointError:
            opened = {}
        assert type(opened) is dict or isinstance(opened, StandIn)
    else:
        with pytest.raises(UnsafeCheckpoint, match=rf"needs .*{listed}"):
            open_checkpoint(path)
    assert not flag.exists()
    assert set(sys.modules) == before


def fill(pickled, flag):
    """Put the flag's path into the texts of a pickle, and mend their lengths."""
    for mould in (TOUCH, SHELL, "{flag}"):
        pickled = pickled.replace(text(mould), text(mould.replace("{flag}", flag)))
    return pickled


@pytest.mark.skipif(os.name != "posix", reason="the commands are those of a POSIX shell")
@pytest.mark.parametrize("name", ["os.system", "eval", "stack global from the memo", "instance"])
def test_the_hostile_pickles_do_run_in_an_ordinary_unpickler(tmp_path, name):
    flag = tmp_path / "ran"
    pickle.loads(fill(HOSTILE[name][0], str(flag)))
    assert flag.exists()


def test_every_refused_object_is_listed(tmp_path):
    pickled = (
        P2 + b"]" + b"".join(f"c{module}\nf\na".encode() for module in ("zeta", "alpha.b", "argparse")) + b"."
    )
    with pytest.raises(UnsafeCheckpoint, match=r"needs alpha\.b\.f, zeta\.f\."):
        open_checkpoint(wrap(pickled, tmp_path / "a.pth", True))


def test_names_are_found_as_torch_finds_them(tmp_path):
    value = {
        "w": WEIGHTS,
        "args": argparse.Namespace(p=pathlib.Path("x"), s=np.float64(1)),
        "d": datetime.date.min,
    }
    path = save(value, tmp_path / "a.pth")
    with zipfile.ZipFile(path) as opened:
        pickled = opened.read("a/data.pkl")
    wanted = set(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    found = list_globals(io.BytesIO(pickled))
    assert wanted <= found
    assert {
        name for name in found - wanted if not name.startswith(("torch.", "collections.", "_codecs."))
    } == set()
    four = list_globals(io.BytesIO(pickle.dumps(pickle.loads(pickle.dumps(argparse.Namespace())), 4)))
    assert four == {"argparse.Namespace"}


def test_following_the_stack_finds_the_names_of_pickletools():
    value = [
        argparse.Namespace(a=[1, {2: (3,)}]),
        collections.Counter("aab"),
        {4, 5},
        frozenset("x"),
        b"y",
        len,
        1 << 80,
    ]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        names = list_globals(io.BytesIO(pickle.dumps(value, protocol)))
        assert {"argparse.Namespace", "collections.Counter", "builtins.len"} <= names
        assert "?" not in names
        if protocol < 4:
            listed = {
                one.replace(" ", ".")
                for op, one, _ in pickletools.genops(pickle.dumps(value, protocol))
                if op.name == "GLOBAL"
            }
            modern = {
                name.replace("__builtin__", "builtins").replace("copy_reg", "copyreg") for name in listed
            }
            assert names == modern


FOREIGN = """
import enum
class Namespace:
    def __init__(self, **settings): self.__dict__.update(settings)
class Mapped(dict):
    pass
class Content:
    def __init__(self): self._content = {"lr": Namespace(value=0.1)}; self._parent = None
    def __getstate__(self): return {"_content": self._content}
    def __setstate__(self, state): raise SystemExit("run")
class Reduced(dict):
    def __reduce_ex__(self, protocol): return type(self), (dict(self),), None, None, None
class Colour(enum.Enum):
    RED = 1
class History:
    def __init__(self):
        self.values = __import__("numpy").arange(3.0); self.methods = {"mean": History.mean}
    def mean(self): ...
"""


@contextmanager
def library(name):
    """A library that exists while a checkpoint is written, and no more afterwards."""
    parts = name.split(".")
    names = [".".join(parts[: end + 1]) for end in range(len(parts))]
    before = {one: sys.modules.get(one) for one in names}
    for one in names:
        sys.modules[one] = types.ModuleType(one)
        sys.modules[one].__path__ = []
    module = sys.modules[name]
    exec(compile(FOREIGN, name, "exec"), module.__dict__)
    try:
        yield module
    finally:
        for one, old in before.items():
            sys.modules.pop(one)
            if old is not None:
                sys.modules[one] = old


FAMILIES = [
    *("omegaconf.dictconfig", "mmengine.logging.history_buffer", "mmengine.config.config", "yacs.config"),
    *(
        "pytorch_lightning.utilities.parsing",
        "lightning.fabric.utilities.data",
        "lightning.pytorch.callbacks",
    ),
    *("fairscale.optim.oss", "classy_vision.generic.util", "vissl.config.attr_dict", "easydict"),
]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_settings_of_training_libraries_stay_closed(tmp_path, family, zipped):
    with library(family) as made:
        mapped = made.Mapped(lr=0.1)
        mapped.note = "kept in attributes"
        beside = {
            "cfg": made.Content(),
            "hyper_parameters": mapped,
            "more": made.Reduced(a=1),
            made.Colour.RED: 1,
            "history": made.History(),
            "names": collections.defaultdict(list, {"a": [made.Namespace(x=1)]}),
            "counts": collections.Counter({made.Colour.RED: 2, "b": 1}),
            "last": collections.deque([made.Namespace(), 3], maxlen=5),
            "klass": made.Content,
            "when": datetime.datetime.now(tz=datetime.timezone.utc),
        }
        path = save({"state_dict": WEIGHTS, **beside}, tmp_path / "a.ckpt", zipped)
    before = set(sys.modules)
    opened = open_checkpoint(path)
    assert set(sys.modules) == before
    assert [one.label for one in find_state_dicts(opened)] == ["state_dict"]
    assert torch.equal(opened["state_dict"]["conv.weight"], WEIGHTS["conv.weight"])
    assert isinstance(opened["cfg"], StandIn)
    assert opened["cfg"].name == f"{family}.Content"
    assert len(opened["cfg"]) == 0
    assert opened["last"][1] == 3


@pytest.mark.parametrize("zipped", [True, False])
def test_a_container_that_holds_the_weights_keeps_them(tmp_path, zipped):
    held = {"ordered": collections.OrderedDict(WEIGHTS), "default": collections.defaultdict(dict, WEIGHTS)}
    with library("lightning.fabric.utilities.data") as made:
        held |= {"mapped": made.Mapped(WEIGHTS), "reduced": made.Reduced(WEIGHTS)}
        path = save(made.Mapped(held), tmp_path / "a.ckpt", zipped)
    found = find_state_dicts(open_checkpoint(path))
    assert [one.label for one in found] == list(held)
    assert all(torch.equal(one.tensors["conv.weight"], WEIGHTS["conv.weight"]) for one in found)


def test_arrays_in_place_of_tensors_are_refused_in_words(tmp_path):
    arrays = {f"layer{i}.weight": np.ones(3) for i in range(5)}
    for value in (arrays, {"model": arrays, "epoch": 1}):
        with pytest.raises(
            CheckpointError, match=r"NumPy arrays in their place, such as layer0\.weight.*from_numpy"
        ):
            open_checkpoint(save(value, tmp_path / "a.pth"))
    assert "epoch" in open_checkpoint(
        save({"model": WEIGHTS, "mean": np.ones(3), "epoch": 1}, tmp_path / "a.pth")
    )


class Declared:
    """What a library may have declared safe for the whole process."""

    ran = False

    def __setstate__(self, state):
        Declared.ran = True


def test_what_a_library_declared_safe_is_not_run_either(tmp_path):
    value = Declared()
    value.x = 1
    path = save({"state_dict": WEIGHTS, "extra": value}, tmp_path / "a.pth")
    with torch.serialization.safe_globals([Declared, argparse.Namespace]):
        with pytest.raises(UnsafeCheckpoint, match="Declared"):
            open_checkpoint(path)
        assert set(torch.serialization.get_safe_globals()) >= {Declared, argparse.Namespace}
        beside = save({"state_dict": WEIGHTS, "args": argparse.Namespace(a=1)}, tmp_path / "b.pth")
        assert not isinstance(open_checkpoint(beside)["args"], argparse.Namespace)
    assert not Declared.ran


def test_no_family_reaches_into_another():
    assert not any(
        map(is_inert, ("numpyx.f", "os.path", "builtins.eval", "builtins.getattribute", "types.CodeType"))
    )
    assert not any(
        map(is_inert, ("collections.OrderedDictX", "torch.nn.modules.linear.Linear", "subprocess.run"))
    )
    assert all(map(is_inert, INERT))


def test_a_stand_in_takes_anything():
    one = type(StandIn)("Any", (StandIn,), {"__slots__": (), "name": "a.Any"})(1, 2, key=3)
    one.__setstate__({"__class__": object})
    one["a"] = 1
    assert {one: 2}[one] == 2
    assert one != type(one)()
    assert type(one).name == "a.Any"
    with pytest.raises(AttributeError):
        one.anything = 3


def test_another_pickle_protocol_is_named(tmp_path):
    for zipped in (True, False):
        with pytest.raises(CheckpointError, match="another pickle protocol.*without pickle_protocol"):
            open_checkpoint(save({"state_dict": WEIGHTS}, tmp_path / "a.pth", zipped, pickle_protocol=4))


def test_whole_modules_and_shards_say_how_to_go_on(tmp_path):
    module = save({"model": torch.nn.Sequential(torch.nn.ReLU())}, tmp_path / "a.pth")
    with pytest.raises(
        UnsafeCheckpoint, match=r"torch\.nn\.modules\.activation\.ReLU.*module\.state_dict\(\)"
    ):
        open_checkpoint(module)
    pickled = P2 + b"ctorch.distributed.tensor\nDTensor\n."
    with pytest.raises(UnsafeCheckpoint, match="one process's shards"):
        open_checkpoint(wrap(pickled, tmp_path / "b.pth", True))
