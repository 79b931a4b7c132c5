"""Members of archives, read by their position: from any process, without an index of its own, in any order."""

from __future__ import annotations

import io
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from classification.files import StoredImages
from classification.names import PackedNames, printable
from vmamba.errors import UserError


class SourceFailed(RuntimeError):
    """A fault that concerns more than one image, such as another archive of that name: the run must not go on."""


class Archive:
    """The bytes of one file, which must stay the same file as long as the run reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = self._open()
        self._identity = self._look()

    def read(self, start: int, size: int) -> bytes:
        """Return `size` bytes from `start`; raises `SourceFailed` for another file, OSError where this one ends."""
        if self._look() != self._identity:
            raise SourceFailed(
                f"{self.path} was replaced or removed while the run read it; put the old file back and repeat the "
                "command to go on, or choose another --tag to train on the new one"
            )
        # at a position, not at the descriptor's own: loader processes share that one
        data = os.pread(self._descriptor, size, start)
        if len(data) < size:
            raise OSError(f"{self.path.name} ends early")
        return data

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "identity": self._identity}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path, self._identity = state["path"], state["identity"]
        self._descriptor = self._open()

    def _open(self) -> int:
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise UserError(f"cannot read {self.path}: {error.strerror}; check its permissions") from None
        # open for as long as the archive lives: data sets have no end of their own at which to close it
        weakref.finalize(self, os.close, descriptor)
        return descriptor

    def _look(self) -> tuple[int, int, int] | None:
        try:
            status = os.stat(self.path)
        except OSError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns


class Members(Protocol):
    """The files in one or several archives."""

    names: PackedNames

    def read(self, index: int) -> bytes:
        """Return the content of member `index`; raises OSError for a damaged one."""

    def title(self, index: int) -> str:
        """Return "archive: member" for messages."""


class ArchiveImages(StoredImages):
    """Images that are members of archives; `chosen` are the numbers of the members."""

    def __init__(
        self,
        members: Members,
        chosen: Sequence[int] | np.ndarray,
        labels: Sequence[int] | np.ndarray,
        classes: list[str],
    ) -> None:
        super().__init__((), labels, classes)
        self.members, self.chosen = members, np.asarray(chosen, dtype=np.int64)

    def open(self, index: int) -> BinaryIO:
        """Return the content of image `index` as a file."""
        return io.BytesIO(self.members.read(int(self.chosen[index])))

    def name(self, index: int) -> str:
        """Return its archive and name."""
        return printable(self.members.title(int(self.chosen[index])))


def labels_from_folders(names: Sequence[str], where: str) -> tuple[list[int], list[str]]:
    """Return (labels, class names) of images named [FOLDER/...]CLASS/[...]IMAGE.

    Folders that hold all images, such as a ``train/`` around the classes, are passed over.
    """
    folders = [tuple(name.split("/")[:-1]) for name in names]
    flat = next((name for name, folder in zip(names, folders) if not folder), None)
    if flat is not None:
        raise UserError(
            f"{where}: the image {printable(flat)} lies in no class folder; expected CLASS/IMAGE.jpg inside"
        )
    depth = 0
    while all(len(folder) > depth + 1 for folder in folders) and len({folder[depth] for folder in folders}) == 1:
        depth += 1
    found = sorted({folder[depth] for folder in folders})
    number = {name: label for label, name in enumerate(found)}
    return [number[folder[depth]] for folder in folders], [printable(name) for name in found]


def is_junk(name: str) -> bool:
    """True for what archive programs of macOS add beside each file."""
    return name.startswith("__MACOSX/") or name.rpartition("/")[2].startswith("._")
