"""What a file is, told from its first bytes and never from its name."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

SAFETENSORS, ZIP, PICKLE, TORCHSCRIPT = "safetensors", "torch zip", "torch pickle", "TorchScript"
READABLE = (SAFETENSORS, ZIP, PICKLE)

_LARGEST_HEADER = 100 << 20  # of safetensors, by its own rule
_WEB = (b"<!doctype", b"<html", b"<?xml", b"<head")
# Kinds that are no weights, and what to do about each.
NEXT_STEP = {
    "an empty file": "the copy or download stopped at once; fetch it again",
    "a web page (HTML)": "the download gave a page instead of the weights; fetch the file itself",
    "a Git LFS pointer": "the weights themselves were not fetched; run `git lfs pull`",
    "a JSON text": "an index or an error message is no weights; fetch the file itself",
    "a gzip archive": "unpack it first",
    "a zip archive of other files": "name the checkpoint inside it",
    "a compressed zip archive": "torch packs its files without compression; unpack it and take the checkpoint inside",
    "a tar archive": "unpack it first; PyTorch's own tar format, which ended in 2017, is not read",
    TORCHSCRIPT: "it holds a program; save the weights alone, as {'model': model.state_dict()}",
}


def kind_of(path: Path) -> str:
    """Return the kind of a file: one of `READABLE`, of the keys of `NEXT_STEP`, or "unknown"."""
    with open(path, "rb") as file:
        start = file.read(512)
    if not start:
        return "an empty file"
    if start.startswith(b"PK"):
        return _kind_of_zip(path)
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(_WEB):
        return "a web page (HTML)"
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer"
    if start.startswith(b"\x1f\x8b"):
        return "a gzip archive"
    if start[257:262] == b"ustar" or _is_old_tar(start):
        return "a tar archive"
    if len(start) > 8 and start[8:9] == b"{" and struct.unpack("<Q", start[:8])[0] <= _LARGEST_HEADER:
        return SAFETENSORS
    if text.startswith((b"{", b"[")):
        return "a JSON text"
    return PICKLE if start[:1] == b"\x80" else "unknown"


def _kind_of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
    except (zipfile.BadZipFile, OSError):
        return ZIP
    names = [part.filename.rpartition("/")[2] for part in parts]
    if "constants.pkl" in names:
        return TORCHSCRIPT
    if "data.pkl" not in names:
        return "a zip archive of other files"
    # what a few bytes unpack to may be more than the memory
    return ZIP if all(part.compress_type == zipfile.ZIP_STORED for part in parts) else "a compressed zip archive"


def _is_old_tar(start: bytes) -> bool:
    """True for a tar header without a magic word: its checksum field is the sum of its bytes."""
    if len(start) < 512:
        return False
    field = start[148:156].strip(b" \0")
    expected = sum(start) - sum(start[148:156]) + 8 * ord(" ")
    return field.isdigit() and not field.strip(b"01234567") and int(field, 8) == expected
