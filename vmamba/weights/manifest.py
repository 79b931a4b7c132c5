"""The manifest beside the checkpoints: which bytes each file must have.

An entry is written *before* its file is renamed into place, and names the digest of the file it replaces. So at
every moment, whatever was interrupted, the file under a name matches one of the two digests of its entry.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

from vmamba.errors import UserError

MANIFEST = "manifest.json"


class CheckpointError(UserError):
    """A checkpoint that is missing, damaged, unsafe or does not fit; one line that names the file."""


def sha256_of(path: Path) -> str:
    """Return the hexadecimal sha256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_manifest(folder: Path) -> dict[str, dict]:
    """Return {file name: entry} of `folder`, empty without a manifest; `CheckpointError` when it is damaged."""
    path = Path(folder) / MANIFEST
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); delete it to go on without digests") from None
    return files


def manifest_text(files: dict[str, dict]) -> str:
    """Return the text of a manifest that holds `files`."""
    return json.dumps({"version": 1, "files": files}, indent=1, sort_keys=True) + "\n"


def entry_for(path: Path, final: Path, files: dict[str, dict], epoch: int | None) -> dict:
    """Return the manifest entry for the finished file `path` that is about to replace `final`."""
    entry: dict = {"sha256": sha256_of(path), "size": path.stat().st_size, "epoch": epoch}
    if final.exists() and final.name in files:
        entry["replaces"] = sha256_of(final)
    return entry


def verify(path: str | Path) -> str | None:
    """Return what is wrong with the checkpoint at `path`, or None.

    A file that the manifest lists must have the listed digest (or, while it is being replaced, the one before). One
    that no manifest lists is checked against the checksums inside it, where its format has them.
    """
    path = Path(path)
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
    return _check_archive(path)


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
    except (zipfile.BadZipFile, OSError) as error:
        return f"it is cut short or damaged ({error})"
    return f"its part {broken} is damaged" if broken else None
