"""Checkpoint files: atomic, verified, the newest good one found."""

from __future__ import annotations

import builtins
import errno
import json
import os
import signal
import struct
from pathlib import Path

import pytest
import torch

from vmamba.weights import (
    CheckpointError,
    drop_checkpoint,
    link_checkpoint,
    load_checkpoint,
    newest_good_checkpoint,
    remove_leftovers,
    save_checkpoint,
    verify,
)


def payload(epoch: int) -> dict:
    return {"model": {"weight": torch.arange(64.0) + epoch}, "epoch": epoch, "config": {"A": [1, 2]}, "names": ["x"]}


def same(loaded: dict, epoch: int) -> bool:
    return loaded["epoch"] == epoch and torch.equal(loaded["model"]["weight"], torch.arange(64.0) + epoch)


def flip_byte(path: Path, at: int = -300) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(bytes(data))


def test_a_checkpoint_comes_back_with_its_digest(tmp_path):
    path = tmp_path / "ckpt_epoch_3.pth"
    save_checkpoint(path, payload(3))
    assert same(load_checkpoint(path), 3)
    entry = json.loads((tmp_path / "manifest.json").read_text())["files"][path.name]
    assert entry["epoch"] == 3 and entry["size"] == path.stat().st_size and len(entry["sha256"]) == 64
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ckpt_epoch_3.pth", "manifest.json"]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_one_flipped_byte_is_refused_with_file_and_digest(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    save_checkpoint(path, {"weight": torch.randn(100)})
    load_checkpoint(path)
    flip_byte(path, -20 if suffix == ".safetensors" else -300)
    with pytest.raises(CheckpointError, match=rf"weights\{suffix} is damaged: its sha256 is .* not .*manifest.json"):
        load_checkpoint(path)


def test_a_flipped_byte_is_noticed_without_a_manifest_too(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"model": {"weight": torch.randn(1000)}}, path)
    assert verify(path) is None
    flip_byte(path, 1000)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


def test_newest_good_checkpoint_goes_by_epoch_and_digest_not_by_time(tmp_path):
    for epoch in (1, 2, 10):
        save_checkpoint(tmp_path / f"ckpt_epoch_{epoch}.pth", payload(epoch))
    os.utime(tmp_path / "ckpt_epoch_10.pth", (1, 1))
    assert newest_good_checkpoint(tmp_path) == (tmp_path / "ckpt_epoch_10.pth", [])
    newest = tmp_path / "ckpt_epoch_10.pth"
    newest.write_bytes(newest.read_bytes()[:500])
    found, rejected = newest_good_checkpoint(tmp_path)
    assert found == tmp_path / "ckpt_epoch_2.pth"
    assert [path.name for path, _ in rejected] == ["ckpt_epoch_10.pth"] and "500 bytes" in rejected[0][1]


def test_newest_good_checkpoint_of_nothing(tmp_path):
    assert newest_good_checkpoint(tmp_path) == (None, [])


@pytest.mark.parametrize("size", [0, 1000])
def test_newest_good_checkpoint_notices_truncation_without_a_manifest(tmp_path, size):
    whole = tmp_path / "ckpt_epoch_0.pth"
    torch.save(payload(0), whole)
    (tmp_path / "ckpt_epoch_1.pth").write_bytes(whole.read_bytes()[:size])
    found, rejected = newest_good_checkpoint(tmp_path)
    assert found == whole and rejected[0][0].name == "ckpt_epoch_1.pth"


@pytest.mark.parametrize("killed_at", ["before the manifest", "before the rename"])
def test_a_kill_during_save_keeps_the_previous_file(tmp_path, killed_at):
    path = tmp_path / "best.pth"
    save_checkpoint(path, payload(1))
    child = os.fork()
    if child == 0:
        rename = os.replace

        def killing(source, target):
            if killed_at == "before the manifest" or Path(target).name != "manifest.json":
                os.kill(os.getpid(), signal.SIGKILL)
            rename(source, target)

        os.replace = killing
        save_checkpoint(path, payload(2))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert same(load_checkpoint(path), 1)
    assert len(list(tmp_path.glob(".*.tmp-*"))) >= 1
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.pth", "manifest.json"]
    save_checkpoint(path, payload(3))
    assert same(load_checkpoint(path), 3)


def test_a_full_disk_is_one_line_and_the_old_file_stays(tmp_path, monkeypatch):
    path = tmp_path / "last.pth"
    save_checkpoint(path, payload(1))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="cannot write .*last.pth: No space left on device"):
        save_checkpoint(path, payload(2))
    monkeypatch.undo()
    assert same(load_checkpoint(path), 1)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("hard_links", [True, False])
def test_link_is_a_second_name_and_survives_the_first(tmp_path, monkeypatch, hard_links):
    if not hard_links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    first, last = tmp_path / "ckpt_epoch_0.pth", tmp_path / "last.pth"
    save_checkpoint(first, payload(0))
    link_checkpoint(first, last)
    drop_checkpoint(first)
    assert same(load_checkpoint(last), 0) and not first.exists()
    assert list(json.loads((tmp_path / "manifest.json").read_text())["files"]) == ["last.pth"]


class Canary:
    """Pickles into a call."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_malicious_pickle_is_named_and_not_run(tmp_path):
    path = tmp_path / "evil.pth"
    torch.save({"model": Canary(tmp_path / "canary")}, path)
    with pytest.raises(CheckpointError, match=r"evil.pth wants to run or build '\w+.mkdir'.*nothing was executed"):
        load_checkpoint(path)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("content", [b"<html>not found</html>", b"", b"PK\x03\x04broken", b"\x80\x02K\x05."])
def test_what_is_no_checkpoint_says_so(tmp_path, content):
    path = tmp_path / "page.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="page.pth (is|holds a int)"):
        load_checkpoint(path)


def test_missing_and_folder_name_the_next_step(tmp_path):
    save_checkpoint(tmp_path / "best.pth", payload(1))
    with pytest.raises(CheckpointError, match=r"there is no checkpoint .*bets.pth. Did you mean 'best.pth'\?"):
        load_checkpoint(tmp_path / "bets.pth")
    with pytest.raises(CheckpointError, match="is a folder"):
        load_checkpoint(tmp_path)


def test_a_damaged_manifest_is_one_line(tmp_path):
    save_checkpoint(tmp_path / "best.pth", payload(1))
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match="manifest.json is damaged"):
        load_checkpoint(tmp_path / "best.pth")


GOOD = {"sha256": "0" * 64, "size": 1}


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        {"files": []},
        {"files": {"best.pth": {}}},
        {"files": {"best.pth": 3}},
        {"files": {"best.pth": {**GOOD, "size": "1"}}},
        {"files": {"best.pth": {**GOOD, "replaces": 3}}},
        {"files": {"other.pth": 3}},
    ],
)
def test_a_manifest_of_another_shape_is_one_line(tmp_path, content):
    save_checkpoint(tmp_path / "best.pth", payload(1))
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    for act in (load_checkpoint, verify, drop_checkpoint, lambda path: save_checkpoint(path, payload(2))):
        with pytest.raises(CheckpointError, match=r"manifest.json is damaged \(.*delete it to go on") as error:
            (tmp_path / "best.pth").touch()
            act(tmp_path / "best.pth")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [AssertionError, AttributeError, TypeError, struct.error, MemoryError])
def test_whatever_the_unpickler_raises_is_one_line(tmp_path, monkeypatch, kind):
    path = tmp_path / "legacy.pth"
    torch.save(payload(1), path, _use_new_zipfile_serialization=False)

    def broken(*_, **__):
        raise kind("no\nreason")

    monkeypatch.setattr(torch, "load", broken)
    with pytest.raises(CheckpointError, match=f"legacy.pth is not a readable checkpoint .*{kind.__name__}") as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)


def test_a_damaged_legacy_file_is_one_line_wherever_the_byte(tmp_path):
    path = tmp_path / "legacy.pth"
    torch.save(payload(1), path, _use_new_zipfile_serialization=False)
    whole, refused = path.read_bytes(), 0
    for at in range(0, len(whole) - 300, 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            load_checkpoint(path)
        except CheckpointError as error:
            refused += "legacy.pth" in str(error) and "\n" not in str(error)
    assert refused > 20


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("listed", [True, False])
def test_an_unreadable_file_is_one_line_with_its_path(tmp_path, monkeypatch, suffix, listed):
    path = tmp_path / f"weights{suffix}"
    save_checkpoint(path, {"weight": torch.zeros(3)})
    if not listed:
        (tmp_path / "manifest.json").unlink()
    opened = builtins.open

    def refusing(file, *more, **named):
        if Path(file) == path:
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return opened(file, *more, **named)

    monkeypatch.setattr(builtins, "open", refusing)
    for act in (load_checkpoint, verify):
        with pytest.raises(CheckpointError, match=rf"^cannot read .*weights\{suffix}: Permission denied$"):
            act(path)


def test_an_unreadable_manifest_is_named(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "best.pth", payload(1))

    def refusing(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refusing)
    with pytest.raises(CheckpointError, match="cannot read .*manifest.json: Permission denied"):
        load_checkpoint(tmp_path / "best.pth")


class Stopped(Exception):
    """Stands for a kill before the rename."""


def stop_before_the_rename(monkeypatch, path: Path, epoch: int) -> None:
    rename = os.replace

    def stopping(source, target):
        if Path(target) == path:
            raise Stopped
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stopping)
        with pytest.raises(Stopped):
            save_checkpoint(path, payload(epoch))


def test_a_damaged_file_does_not_become_good_by_an_interrupted_save(tmp_path, monkeypatch):
    path = tmp_path / "best.pth"
    save_checkpoint(path, payload(1))
    flip_byte(path)
    stop_before_the_rename(monkeypatch, path, 2)
    with pytest.raises(CheckpointError, match="best.pth is damaged: its sha256"):
        load_checkpoint(path)


def test_two_interrupted_saves_keep_the_file_before_them(tmp_path, monkeypatch):
    path = tmp_path / "best.pth"
    save_checkpoint(path, payload(1))
    for epoch in (2, 3):
        stop_before_the_rename(monkeypatch, path, epoch)
        assert same(load_checkpoint(path), 1)


def test_safetensors_hold_tensors_only(tmp_path):
    with pytest.raises(CheckpointError, match="'epoch' is no tensor"):
        save_checkpoint(tmp_path / "weights.safetensors", payload(1) | {"model": torch.zeros(1)})
    tensors = {"a": torch.randn(3, 4).t(), "b": torch.zeros(2)}
    save_checkpoint(tmp_path / "weights.safetensors", tensors)
    loaded = load_checkpoint(tmp_path / "weights.safetensors")["model"]
    assert all(torch.equal(loaded[key], tensors[key]) for key in tensors)
