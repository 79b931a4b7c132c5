"""Zip archives of images: ``DATA.ZIP_MODE``, with or without the published list of labels, cached or not.

DATA_PATH/train.zip, val.zip             CLASS/IMAGE inside, or any names and beside them
DATA_PATH/train_map.txt, val_map.txt     a line per image: its path inside the archive, a tab, the class number
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from yacs.config import CfgNode

from classification.archives import Archive, ArchiveImages, is_junk, labels_from_folders
from classification.files import data_root, is_image, require_file, require_folder
from classification.lists import class_names, read_list
from classification.names import PackedNames, printable
from classification.world import World
from vmamba.errors import UserError

_LOCAL_HEADER = 30  # bytes of a member's own header before its name and extra field
_READABLE = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class ZipMembers:
    """The members of one zip archive. Its directory is read once, into arrays: a million `ZipInfo` fill a gigabyte."""

    def __init__(self, path: Path) -> None:
        self.archive = Archive(path)
        try:
            with zipfile.ZipFile(path) as file:
                infos = [info for info in file.infolist() if not info.is_dir()]
        except (zipfile.BadZipFile, OSError, EOFError, ValueError, struct.error) as error:
            raise UserError(f"{path} is no complete zip archive ({error}); copy it again") from None
        self.names = PackedNames(info.filename for info in infos)
        self._start = np.array([info.header_offset for info in infos], dtype=np.int64)
        self._packed = np.array([info.compress_size for info in infos], dtype=np.int64)
        self.sizes = np.array([info.file_size for info in infos], dtype=np.int64)
        self._checksum = np.array([info.CRC for info in infos], dtype=np.uint32)
        self._method = np.array([-1 if info.flag_bits & 1 else info.compress_type for info in infos], dtype=np.int16)

    def read(self, index: int) -> bytes:
        """Return the content of member `index`; raises OSError for a damaged one."""
        start, method, size = int(self._start[index]), int(self._method[index]), int(self.sizes[index])
        if method not in _READABLE:
            raise OSError("the zip member is encrypted or packed by a method other than store and deflate")
        header = self.archive.read(start, _LOCAL_HEADER)
        if not header.startswith(b"PK\x03\x04"):
            raise OSError("the zip member is damaged: it has no header")
        start += _LOCAL_HEADER + sum(struct.unpack("<HH", header[26:30]))
        data = self.archive.read(start, int(self._packed[index]))
        if method == zipfile.ZIP_DEFLATED:
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
            except zlib.error as error:
                raise OSError(f"the zip member is damaged: {error}") from None
        if len(data) != size or zlib.crc32(data) != self._checksum[index]:
            raise OSError("the zip member is damaged: its checksum is wrong")
        return data

    def title(self, index: int) -> str:
        """Return "archive: member" for messages."""
        return f"{self.archive.path}: {self.names[index]}"


class CachedImages(ArchiveImages):
    """Images of an archive, of which some are kept in memory, packed as they are in their own format."""

    def keep(self, wanted: np.ndarray) -> None:
        """Read the images `wanted` into memory; a damaged one is left where it is, and met when it is asked for."""
        assert isinstance(self.members, ZipMembers)
        sizes = self.members.sizes[self.chosen[wanted]]
        ends = np.cumsum(sizes)
        self._block = np.empty(int(ends[-1]) if len(ends) else 0, dtype=np.uint8)
        self._place = np.full(len(self.labels), -1, dtype=np.int64)
        for index, size, end in zip(wanted.tolist(), sizes.tolist(), ends.tolist()):
            try:
                data = self.members.read(int(self.chosen[index]))
            except OSError:
                continue
            self._block[end - size : end] = np.frombuffer(data, np.uint8)
            self._place[index] = end - size

    def open(self, index: int) -> BinaryIO:
        """Return the content of image `index` as a file."""
        place = int(self._place[index])
        if place < 0:
            return super().open(index)
        assert isinstance(self.members, ZipMembers)
        return io.BytesIO(self._block[place : place + int(self.members.sizes[self.chosen[index]])].tobytes())


def open_zip(data: CfgNode, split: str, world: World) -> ArchiveImages:
    """Return the images of ``DATA_PATH/{split}.zip``, in memory as far as ``DATA.CACHE_MODE`` says."""
    root = require_folder(data_root(data.DATA_PATH, "the folder that holds train.zip and val.zip"))
    path = require_file(root / f"{split}.zip", "the archive of images that zip mode reads")
    members = ZipMembers(path)
    listed = root / f"{split}_map.txt"
    found = _listed(members, listed, class_names(data)) if listed.is_file() else _named(members, path)
    chosen, labels, classes = found
    if data.CACHE_MODE == "no":
        return ArchiveImages(members, chosen, labels, classes)
    images = CachedImages(members, chosen, labels, classes)
    part = data.CACHE_MODE == "part"
    images.keep(np.arange(world.rank if part else 0, len(labels), world.size if part else 1))
    return images


def _listed(members: ZipMembers, path: Path, classes: list[str]) -> tuple[list[int], np.ndarray, list[str]]:
    names, labels = read_list(path, len(classes))
    place = {name: index for index, name in enumerate(members.names)}
    missing = next((name for name in names if name not in place), None)
    if missing is not None:
        raise UserError(f"{path} lists {printable(missing)}, which {members.archive.path.name} does not hold")
    return [place[name] for name in names], labels, classes


def _named(members: ZipMembers, path: Path) -> tuple[list[int], np.ndarray, list[str]]:
    named = [(name, index) for index, name in enumerate(members.names) if is_image(name) and not is_junk(name)]
    if not named:
        raise UserError(f"{path} holds no images; expected CLASS/IMAGE.jpg inside, or {path.stem}_map.txt beside it")
    named.sort()
    labels, classes = labels_from_folders([name for name, _ in named], str(path))
    return [index for _, index in named], np.array(labels), classes
