"""Tar archives of images, read at random places: class folders inside, one archive per class, or WebDataset shards.

    DATASET tar     DATA_PATH/train.tar                CLASS/IMAGE inside
                    DATA_PATH/train/*.tar              CLASS/IMAGE inside, or CLASS.tar with the images of one class
    DATASET shards  DATA_PATH/*train*.tar              KEY.jpg and KEY.cls inside (WebDataset)
                    DATA_PATH/train/*.tar

The archives must not be compressed. Reading by position, not as a stream, is what keeps the order, the exact resume and
an evaluation that counts every image once.
"""

from __future__ import annotations

import itertools
import re
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from yacs.config import CfgNode

from classification.archives import Archive, ArchiveImages, is_junk, labels_from_folders
from classification.files import IMAGE_SUFFIXES, data_root, is_image, require_folder
from classification.lists import class_names
from classification.names import PackedNames, printable
from vmamba.errors import UserError

_BLOCK = tarfile.BLOCKSIZE
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


class TarMembers:
    """The regular files in some tar archives."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self.archives = [Archive(path) for path in paths]
        names: list[str] = []
        rows: list[tuple[int, int, int]] = []
        for number, archive in enumerate(self.archives):
            for member in _scan(archive.path):
                names.append(member.name.removeprefix("./"))
                rows.append((number, member.offset_data, member.size))
        self.names = PackedNames(names)
        self.which, self._start, self._size = np.array(rows, dtype=np.int64).reshape(-1, 3).T.copy()

    def read(self, index: int) -> bytes:
        """Return the content of member `index`; raises OSError for a damaged one."""
        return self.archives[self.which[index]].read(int(self._start[index]), int(self._size[index]))

    def title(self, index: int) -> str:
        """Return "archive: member" for messages."""
        return f"{self.archives[self.which[index]].path}: {self.names[index]}"


def open_tar(data: CfgNode, split: str) -> ArchiveImages:
    """Return the images of ``DATA_PATH/{split}.tar`` or of the archives in ``DATA_PATH/{split}/``, by class folders."""
    root = require_folder(data_root(data.DATA_PATH, f"the folder that holds {split}.tar or {split}/*.tar"))
    single = root / f"{split}.tar"
    paths = [single]
    if not single.is_file():
        paths = _archives(root, [f"{split}/*.tar"], f"{single} and no {root / split}/*.tar")
    members = TarMembers(paths)
    named = []
    for index, name in enumerate(members.names):
        if is_image(name) and not is_junk(name):
            # an image at the top belongs to the class that the archive is named after
            stem = "" if "/" in name or single.is_file() else f"{members.archives[members.which[index]].path.stem}/"
            named.append((stem + name, index))
    if not named:
        raise UserError(f"{paths[0]} holds no images; expected CLASS/IMAGE.jpg inside")
    named.sort()
    labels, classes = labels_from_folders([name for name, _ in named], str(paths[0].parent))
    return ArchiveImages(members, [index for _, index in named], labels, classes)


def open_shards(data: CfgNode, split: str) -> ArchiveImages:
    """Return the images of WebDataset shards: files with one name, an image and a class number in ``.cls``.

    `split` is a part of the shards' names, the folder they lie in, or a pattern such as ``train-{0000..0127}.tar``.
    """
    root = require_folder(data_root(data.DATA_PATH, "the folder of the shards"))
    patterns = _expand(split) if split.endswith(".tar") else [f"*{split}*.tar", f"{split}/*.tar"]
    members = TarMembers(_archives(root, patterns, f"{root}/{patterns[0]}"))
    images: dict[tuple[int, str], int] = {}
    numbers: dict[tuple[int, str], int] = {}
    for index, name in enumerate(members.names):
        folder, slash, base = name.rpartition("/")
        stem, _, ending = base.partition(".")
        key = (int(members.which[index]), folder + slash + stem)
        if ending == "cls":
            numbers[key] = _number(members, index)
        elif f".{ending.lower()}" in IMAGE_SUFFIXES and not is_junk(name):
            images[key] = index
    if not images:
        raise UserError(f"{members.archives[0].path} holds no images; expected KEY.jpg and KEY.cls inside")
    for key, index in images.items():
        if key not in numbers:
            raise UserError(f"{printable(members.title(index))} has no file of that name with the ending .cls")
    labels = [numbers[key] for key in images]
    named = class_names(data)
    classes = named or [str(number) for number in range(max(labels) + 1)]
    if max(labels) >= len(classes):
        raise UserError(f"{root}: class number {max(labels)} is beyond the {len(classes)} names of classes.txt")
    return ArchiveImages(members, list(images.values()), labels, classes)


def _number(members: TarMembers, index: int) -> int:
    text = members.read(index).strip()
    if not text.isdigit():
        raise UserError(f"{printable(members.title(index))} holds no class number but {text[:40]!r}")
    return int(text)


def _archives(root: Path, patterns: list[str], expected: str) -> list[Path]:
    if any(pattern.startswith("/") for pattern in patterns):
        raise UserError(f"the archives {patterns[0]} are named by an absolute path; name them relative to {root}")
    found = sorted({path for pattern in patterns for path in root.glob(pattern) if path.is_file()})
    if not found:
        raise UserError(f"there is no {expected}; DATA.TRAIN_SPLIT and DATA.VAL_SPLIT name the archives")
    return found


def _expand(pattern: str) -> list[str]:
    """Return the names that ``a-{000..127}.tar`` stands for; digits keep their number of places."""
    parts: list[list[str]] = []
    position = 0
    for match in _RANGE.finditer(pattern):
        first, last = match.groups()
        parts.append([pattern[position : match.start()]])
        parts.append([f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)])
        position = match.end()
    parts.append([pattern[position:]])
    return ["".join(choice) for choice in itertools.product(*parts)]


def _scan(path: Path) -> list[tarfile.TarInfo]:
    """Return the regular files of an archive, which must end as tar archives do: one cut short has fewer images."""
    try:
        with tarfile.open(path, "r:") as file:
            members = file.getmembers()
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise UserError(f"{path} is no complete, uncompressed tar archive ({error}); copy it again") from None
    end = max((member.offset_data + -(-member.size // _BLOCK) * _BLOCK for member in members), default=0)
    with open(path, "rb") as raw:
        raw.seek(end)
        if raw.read(_BLOCK) != bytes(_BLOCK):
            raise UserError(f"{path} is cut short: it has no end mark; copy it again")
    return [member for member in members if member.isreg() and not member.issparse()]
