"""The manifest beside the checkpoints: which bytes each file must have.

An entry is written *before* its file is renamed into place, and names the digest of the file it replaces. So at
every moment, whatever was interrupted, the file under a name matches one of the two digests of its entry.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vmamba.errors import UserError

MANIFEST = "manifest.json"
_NAMED_DIGEST = re.compile(r"-([0-9a-f]{8,64})\.\w+$")


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, unsafe or does not fit; one line that names the file."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Return a context in which a refusal of the file system becomes a `CheckpointError` that names `path`."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None


def sha256_of(path: Path) -> str:
    """Return the hexadecimal sha256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_manifest(folder: Path) -> dict[str, dict]:
    """Return {file name: entry} of `folder`, empty without a manifest.

    Each entry holds a ``sha256``, a ``size`` and maybe what it ``replaces``. `CheckpointError` when the manifest is
    damaged or cannot be read.
    """
    path = Path(folder) / MANIFEST
    try:
        with reading(path):
            if not path.exists():
                return {}
            content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise _damaged(path, str(error)) from None
    files = content.get("files") if isinstance(content, dict) else None
    if not isinstance(files, dict):
        raise _damaged(path, "it has no mapping 'files'")
    for name, entry in files.items():
        if not _is_entry(entry):
            raise _damaged(path, f"its entry {name!r} is no sha256 and size")
    return files


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("sha256"), str)
        and isinstance(entry.get("size"), int)
        and isinstance(entry.get("replaces", ""), str)
    )


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged ({why}); delete it to go on without digests")


def manifest_text(files: dict[str, dict]) -> str:
    """Return the text of a manifest that holds `files`."""
    return json.dumps({"version": 1, "files": files}, indent=1, sort_keys=True) + "\n"


def entry_for(path: Path, final: Path, files: dict[str, dict], epoch: int | None) -> dict:
    """Return the manifest entry for the finished file `path` that is about to replace `final`.

    What it replaces is a digest that the old entry names, so that a damaged file never becomes a good one.
    """
    entry: dict = {"sha256": sha256_of(path), "size": path.stat().st_size, "epoch": epoch}
    old = files.get(final.name)
    if old is not None and final.exists():
        # an interrupted save leaves the file that the old entry was to replace
        kept = old.get("replaces") == sha256_of(final)
        entry["replaces"] = old["replaces"] if kept else old["sha256"]
    return entry


def verify(path: str | Path) -> str | None:
    """Return what is wrong with the checkpoint at `path`, or None.

    A file that the manifest lists must have the listed digest (or, while it is being replaced, the one before). One
    that no manifest lists is checked against the checksums inside it, where its format has them. `CheckpointError`
    when the file or the manifest cannot be read.
    """
    path = Path(path)
    with reading(path):
        return _problem(path)


def _problem(path: Path) -> str | None:
    if not path.exists():
        return "it does not exist"
    entry = read_manifest(path.parent).get(path.name)
    if entry is not None:
        digest = sha256_of(path)
        if digest in (entry["sha256"], entry.get("replaces")):
            return None
        size = path.stat().st_size
        sizes = f", and has {size} bytes, not {entry['size']}" if size != entry["size"] else ""
        return f"its sha256 is {digest[:12]}..., not {entry['sha256'][:12]}... as {MANIFEST} says{sizes}"
    return _check_name(path) or _check_archive(path)


def _check_name(path: Path) -> str | None:
    """Compare the digest at the end of a published name, ``name-0123abcd.pth``, with the file's; a date is none."""
    named = _NAMED_DIGEST.search(path.name)
    if named is None or named[1].isdigit():
        return None
    digest = sha256_of(path)
    return (
        None if digest.startswith(named[1]) else f"its sha256 is {digest[:12]}..., not {named[1]}... as its name says"
    )


def _check_archive(path: Path) -> str | None:
    with open(path, "rb") as file:
        start = file.read(2)
    if not start:
        return "it is empty"
    if start != b"PK":
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except PermissionError:
        raise
    except (zipfile.BadZipFile, OSError) as error:
        return f"it is cut short or damaged ({error})"
    return f"its part {broken} is damaged" if broken else None
