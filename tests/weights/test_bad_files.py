"""Files that are damaged, unsafe or something else: one line that names file and reason, and nothing has run."""

from __future__ import annotations

import argparse
import collections
import io
import os
import pickle
import struct
import subprocess
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from yacs.config import CfgNode

from vmamba.weights import CheckpointError, load_checkpoint, save_checkpoint
from vmamba.weights.__main__ import main
from vmamba.weights.converting import convert


class Call:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts

    def __call__(self) -> None:
        """Pickle wants a function to be callable; nobody calls this one."""


def calls(canary: Path) -> dict[str, tuple[Any, str]]:
    """Objects that would write the canary when unpickled, each with the name that the refusal must tell."""
    code = f"open({str(canary)!r}, 'w').close()"
    return {
        "os.system": (Call(os.system, f"touch {canary}"), "system"),
        "subprocess": (Call(subprocess.call, ["touch", str(canary)]), "call"),
        "Popen": (Call(subprocess.Popen, ["touch", str(canary)]), "Popen"),
        "eval": (Call(eval, code), "eval"),
        "exec": (Call(exec, code), "exec"),
        "open": (Call(open, str(canary), "w"), "io.open"),
        "import": (Call(__import__, "os"), "__import__"),
        "method": (Call(Path.touch, canary), "pathlib.Path"),
        "function by name": (Call(Call(getattr, canary, "touch")), "result of a getattr"),
        "numpy save": (Call(np.save, str(canary), [1]), "numpy.save"),
        "torch save": (Call(torch.save, [1], str(canary)), "torch.serialization.save"),
        "state": (Call(argparse.Namespace, state={"x": Call(os.system, f"touch {canary}")}), "system"),
        "default": (Call(collections.defaultdict, Call(os.system, f"touch {canary}")), "system"),
    }


NAMES = tuple(calls(Path("x")))


def in_config(evil: Any) -> CfgNode:
    config = CfgNode({"MODEL": {"NAME": "x"}})
    dict.__setitem__(config.MODEL, "HOOK", evil)
    return config


def in_config_state(evil: Any) -> CfgNode:
    config = CfgNode({"MODEL": {"NAME": "x"}})
    config.__dict__[CfgNode.DEPRECATED_KEYS] = {evil}
    return config


# Where in a checkpoint the object hides.
PLACES = {
    "alone": lambda evil: evil,
    "beside the weights": lambda evil: {"model": {"w": torch.ones(1)}, "extra": evil},
    "among the weights": lambda evil: {"model": {"w": torch.ones(1), "v": evil}},
    "in a config": lambda evil: {"model": {"w": torch.ones(1)}, "config": in_config(evil)},
    "in a config's state": lambda evil: {"model": {"w": torch.ones(1)}, "config": in_config_state(evil)},
    "in a namespace": lambda evil: {"model": {"w": torch.ones(1)}, "args": argparse.Namespace(hook=[(evil,)])},
    "as a key": lambda evil: {"model": {"w": torch.ones(1)}, evil: 1},
}


def write_tar(payload: Any, path: Path) -> None:
    """The format of 2017: a tar of pickles."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            data = pickle.dumps(payload, protocol=2)
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))


def write_zip_by_hand(payload: Any, path: Path, protocol: int = 4) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(payload, protocol=protocol))
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")


WRITERS = {
    "zip": lambda payload, path: torch.save(payload, path),
    "old pickle": lambda payload, path: torch.save(payload, path, _use_new_zipfile_serialization=False),
    "tar": write_tar,
    "plain pickle": lambda payload, path: path.write_bytes(pickle.dumps(payload, protocol=2)),
    "newest pickle": lambda payload, path: path.write_bytes(pickle.dumps(payload)),
    "zip of a newer pickle": write_zip_by_hand,
    "oldest pickle": lambda payload, path: path.write_bytes(pickle.dumps(payload, protocol=0)),
}
TOLD = ("zip", "old pickle", "plain pickle")  # the others are refused before a name is read


def refuse(path: Path, canary: Path) -> str:
    """Return the one line that refuses `path`, whatever its name says; the canary must not appear."""
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path)
    path.rename(path.with_suffix(".safetensors"))
    with pytest.raises(CheckpointError):
        load_checkpoint(path.with_suffix(".safetensors"))
    assert not canary.exists(), "the file ran code"
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("name", NAMES)
def test_a_malicious_pickle_leaves_no_canary(name, writer, tmp_path):
    canary, path = tmp_path / "canary", tmp_path / "evil.pth"
    evil, told = calls(canary)[name]
    place = "beside the weights" if writer in ("zip", "old pickle") else "alone"
    WRITERS[writer](PLACES[place](evil), path)
    line = refuse(path, canary)
    if writer in TOLD:
        assert f"{told}'" in line and "nothing was executed" in line


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("writer", ["zip", "old pickle"])
@pytest.mark.parametrize("name", ["os.system", "eval", "function by name"])
def test_it_may_hide_anywhere(name, place, writer, tmp_path):
    canary, path = tmp_path / "canary", tmp_path / "evil.pth"
    evil, told = calls(canary)[name]
    WRITERS[writer](PLACES[place](evil), path)
    assert f"{told}'" in refuse(path, canary)


@pytest.mark.parametrize("name", NAMES)
def test_the_canary_would_sing(name, tmp_path):
    """The objects do write it where nothing restrains the unpickling; an import alone leaves no trace."""
    canary = tmp_path / "canary"
    try:
        made = pickle.loads(pickle.dumps(calls(canary)[name][0], protocol=2))  # noqa: S301
    except TypeError:  # of what is called twice
        made = None
    if isinstance(made, subprocess.Popen):
        made.wait()
    assert canary.exists() or canary.with_suffix(".npy").exists() or name == "import"


@pytest.mark.parametrize("command", [["inspect"], ["inspect", "--keys"], ["convert", "OUT"], ["publish"]])
def test_the_commands_refuse_it_too(command, tmp_path, capsys):
    canary, path = tmp_path / "canary", tmp_path / "evil.pth"
    torch.save({"model": {"w": torch.ones(1)}, "x": calls(canary)["os.system"][0]}, path)
    words = [command[0], str(path), *(str(tmp_path / "o.pth") if word == "OUT" else word for word in command[1:])]
    assert main(words) == 2
    out, errors = capsys.readouterr()
    assert out == "" and len(errors.splitlines()) == 1 and "system'" in errors
    assert [p.name for p in tmp_path.iterdir()] == ["evil.pth"]


def test_a_stand_in_cannot_be_called(tmp_path):
    """What stands for getattr returns a thing that the unpickler refuses to call."""

    method = Call(Call(getattr, argparse.Namespace, "mro"))
    torch.save({"model": {"w": torch.ones(1)}, "x": method}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"wants to run or build 'the result of a getattr'"):
        load_checkpoint(tmp_path / "c.pth")


def test_reading_leaves_no_class_allowed(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    torch.save({"model": {"w": torch.ones(1)}, "args": argparse.Namespace(a=1)}, tmp_path / "c.pth")
    load_checkpoint(tmp_path / "c.pth")
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.fixture(params=["pth", "safetensors", "old.pth"])
def good(request, tmp_path, make) -> Path:
    """A checkpoint without a manifest beside it."""
    path = tmp_path / f"c.{request.param}"
    state = make().state_dict()
    if path.suffix == ".safetensors":
        save_checkpoint(path, state)
        (tmp_path / "manifest.json").unlink()
    else:
        torch.save({"model": state}, path, _use_new_zipfile_serialization="old" not in path.name)
    return path


@pytest.mark.parametrize("part", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(good, part, capsys):
    data = good.read_bytes()
    good.write_bytes(data[: int(part * len(data))])
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(good)
    assert str(good) in str(error.value) and "\n" not in str(error.value)
    assert main(["inspect", str(good)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("part", [0.01, 0.2, 0.5, 0.8, 0.95])
def test_a_flipped_byte_is_refused_without_a_manifest(good, part):
    if good.name == "c.old.pth":
        pytest.skip("the format before zip has no checksum: a manifest or a digest in the name guards it")
    data = bytearray(good.read_bytes())
    data[int(part * len(data))] ^= 1
    good.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged|not a readable"):
        load_checkpoint(good)


@pytest.mark.parametrize("part", [0.01, 0.5, 0.95])
def test_a_flipped_byte_is_refused_by_the_digest_in_the_name(good, part):
    from vmamba.weights.manifest import sha256_of

    named = good.with_name(f"net-{sha256_of(good)[:16]}.pth")
    good.rename(named)
    load_checkpoint(named)
    data = bytearray(named.read_bytes())
    data[int(part * len(data))] ^= 1
    named.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"its sha256 is .* as its name says"):
        load_checkpoint(named)


def test_a_date_in_a_name_is_no_digest(tmp_path):
    torch.save({"model": {"w": torch.ones(1)}}, tmp_path / "run-20240229.pth")
    assert load_checkpoint(tmp_path / "run-20240229.pth")


OTHERS = {
    "empty": (b"", "is an empty file, not weights"),
    "html": (b"\n<!DOCTYPE html><html><body>Sign in</body></html>" * 20, "is a web page (HTML), not weights"),
    "html without a type": (b"<HTML>Not Found</HTML>", "is a web page (HTML), not weights"),
    "git lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a Git LFS pointer"),
    "json": (b'{"message": "Not Found"}', "is a JSON text, not weights"),
    "gzip": (b"\x1f\x8b\x08\x00" + b"\0" * 600, "is a gzip archive, not weights: unpack it first"),
    "text": (b"Not Found", "is not a readable checkpoint"),
    "noise": (bytes(range(255, 0, -1)) * 9, "is not a readable checkpoint"),
    "long header": (struct.pack("<Q", 1 << 62) + b"{" + b" " * 600, "is not a readable checkpoint"),
    "safetensors header": (struct.pack("<Q", 20) + b'{"a": 1' + b" " * 600, "is damaged or no safetensors file"),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", OTHERS)
def test_other_files_are_called_by_their_name(name, suffix, tmp_path, capsys):
    data, said = OTHERS[name]
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path)
    assert str(error.value).startswith(f"{path} ")
    assert said in str(error.value) or (suffix == ".safetensors" and "no safetensors file" in str(error.value))
    assert main(["inspect", str(path)]) == 2


def test_other_archives(tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.pth", "w") as archive:
        archive.writestr("a.txt", "x")
    with pytest.raises(CheckpointError, match="is a zip archive of other files, not weights"):
        load_checkpoint(tmp_path / "photos.pth")
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", b"0" * 1_000_000)
    with pytest.raises(CheckpointError, match="is a compressed zip archive, not weights"):
        load_checkpoint(tmp_path / "bomb.pth")
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(tmp_path / "script.pt")
    with pytest.raises(CheckpointError, match="is TorchScript, not weights: it holds a program"):
        load_checkpoint(tmp_path / "script.pt")
    with tarfile.open(tmp_path / "v7.pth", "w", format=tarfile.USTAR_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("pickle"))
    with pytest.raises(CheckpointError, match="is a tar archive, not weights: unpack it first"):
        load_checkpoint(tmp_path / "v7.pth")


def test_a_folder_and_a_missing_file(tmp_path, capsys):
    torch.save({"model": {"w": torch.ones(1)}}, tmp_path / "best.pth")
    for path, said in (
        (tmp_path, "is a folder; name a checkpoint"),
        (tmp_path / "bset.pth", "Did you mean 'best.pth'"),
    ):
        with pytest.raises(CheckpointError, match=said):
            load_checkpoint(path)
        with pytest.raises(CheckpointError, match=said):
            convert(path, tmp_path / "o.pth")
        assert main(["inspect", str(path)]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("payload", [[1, 2], 3, torch.ones(2), {}, {"epoch": 3}, {"model": {"a": 1}}])
def test_no_weights_inside(payload, tmp_path, capsys):
    torch.save(payload, tmp_path / "c.pth")
    assert main(["convert", str(tmp_path / "c.pth"), str(tmp_path / "o.pth")]) == 2
    errors = capsys.readouterr().err
    assert "holds" in errors and "c.pth" in errors and len(errors.splitlines()) == 1


def test_a_whole_module_is_refused_by_name(tmp_path):
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "c.pth")
    with pytest.raises(CheckpointError, match=r"'torch.nn.modules.linear.Linear'.*save the weights alone"):
        load_checkpoint(tmp_path / "c.pth")


def test_a_tree_without_end_is_refused(tmp_path):
    """A pickle may nest as deep as it likes, and may hold itself."""
    endless: dict = {"model": {"w": torch.ones(1)}}
    endless["self"] = endless
    torch.save(endless, tmp_path / "endless.pth")
    assert load_checkpoint(tmp_path / "endless.pth")["self"]["model"]["w"] == 1
    data = b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b"."
    with zipfile.ZipFile(tmp_path / "deep.pth", "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
    with pytest.raises(CheckpointError, match="deep.pth"):
        load_checkpoint(tmp_path / "deep.pth")
