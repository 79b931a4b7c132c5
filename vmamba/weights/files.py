"""Writing checkpoints so that a kill, a crash or a full disk never costs the previous one."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import torch

from vmamba.weights.manifest import MANIFEST, CheckpointError, entry_for, manifest_text, read_manifest, verify
from vmamba.weights.safetensors_file import write_safetensors

_LEFTOVER = ".*.tmp-*"


def save_checkpoint(
    path: str | Path, payload: dict[str, Any], *, epoch: int | None = None, about: dict[str, Any] | None = None
) -> None:
    """Write `payload` to `path` atomically and record its sha256 in the manifest beside it.

    The payload holds plain Python types and tensors only, so that it loads with ``weights_only=True``; a path that ends
    in ``.safetensors`` takes a flat dict of tensors, and `about`, plain data, for its metadata. Raises
    `CheckpointError` when the disk refuses; the old file is then untouched.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            write_safetensors(temporary, payload, about)
            _sync(temporary)
        else:
            _write(temporary, lambda file: torch.save(payload, file))
        _record_and_rename(temporary, path, payload.get("epoch") if epoch is None else epoch)
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def link_checkpoint(source: str | Path, path: str | Path) -> None:
    """Make `path` a second name of the checkpoint `source` (a copy where the file system has no hard links)."""
    source, path = Path(source), Path(path)
    temporary = _temporary(path)
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
            _sync(temporary)
        _record_and_rename(temporary, path, read_manifest(source.parent).get(source.name, {}).get("epoch"))
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def adopt_checkpoint(path: str | Path) -> str:
    """Record the sha256 of a file that came from elsewhere in the manifest beside it, and return it."""
    path = Path(path)
    files = read_manifest(path.parent)
    files[path.name] = entry_for(path, path, {}, None)
    write_text(path.parent / MANIFEST, manifest_text(files))
    return files[path.name]["sha256"]


def drop_checkpoint(path: str | Path) -> None:
    """Delete a checkpoint and its manifest entry."""
    path = Path(path)
    path.unlink(missing_ok=True)
    files = read_manifest(path.parent)
    if files.pop(path.name, None) is not None:
        write_text(path.parent / MANIFEST, manifest_text(files))


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically: readers see the old text or the new, never a part. `CheckpointError` if refused."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file atomically, in the manner of `write_text`."""
    path = Path(path)
    temporary = _temporary(path)
    try:
        _write(temporary, lambda file: file.write(data))
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise _refused(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: str | Path) -> list[Path]:
    """Delete the temporary files that an interrupted save left in `folder`, and return their paths."""
    leftovers = sorted(Path(folder).glob(_LEFTOVER))
    for path in leftovers:
        path.unlink(missing_ok=True)
    return leftovers


def set_aside(path: str | Path) -> Path:
    """Rename a damaged checkpoint to ``NAME.damaged``, out of the way of its successors, and return that path."""
    path = Path(path)
    aside = path.with_name(f"{path.name}.damaged")
    try:
        os.replace(path, aside)
        drop_checkpoint(path)
    except OSError as error:
        raise _refused(path, error) from error
    return aside


def newest_good_checkpoint(
    folder: str | Path,
    pattern: str = "ckpt_epoch_*.pth",
    place: Callable[[Path], Any] | None = None,
) -> tuple[Path | None, list[tuple[Path, str]]]:
    """Return the newest checkpoint that verifies, and (path, reason) of the newer ones that do not.

    `place` orders paths; without it the last number in the file name does. Modification times play no part. The path is
    None where nothing is good.
    """
    order = place or _last_number
    rejected: list[tuple[Path, str]] = []
    found = [path for path in Path(folder).glob(pattern) if re.search(r"\d", path.stem)]
    for path in sorted(found, key=order, reverse=True):
        reason = verify(path)
        if reason is None:
            return path, rejected
        rejected.append((path, reason))
    return None, rejected


def _last_number(path: Path) -> int:
    return int(re.findall(r"\d+", path.stem)[-1])


def _record_and_rename(temporary: Path, path: Path, epoch: int | None) -> None:
    files = read_manifest(path.parent)
    files[path.name] = entry_for(temporary, path, files, epoch)
    write_text(path.parent / MANIFEST, manifest_text(files))
    os.replace(temporary, path)
    _sync(path.parent)


def _refused(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"cannot write {path}: {error.strerror or error}; what was there before is intact")


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp-{os.getpid()}")


def _write(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    with open(path, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    """Flush a file, or the directory entry of a rename, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
