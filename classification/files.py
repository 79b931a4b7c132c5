"""Images in files: one folder per class, or a list of paths and labels."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from classification.decoding import decode
from classification.names import PackedNames, printable
from vmamba.errors import UserError, closest

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")


class StoredImages:
    """Labelled images that are decoded when asked for; what extends it says where the bytes of one are."""

    def __init__(self, names: Iterable[str], labels: Sequence[int] | np.ndarray, classes: list[str]) -> None:
        self.names = names if isinstance(names, PackedNames) else PackedNames(names)
        self.labels = np.asarray(labels, dtype=np.int64)
        self.classes = classes

    def open(self, index: int) -> BinaryIO:
        """Return the bytes of image `index` as a file."""
        raise NotImplementedError

    def load(self, index: int) -> Image.Image:
        """Return image `index`, decoded and upright."""
        with self.open(index) as file:
            return decode(file)

    def name(self, index: int) -> str:
        """Return what an error message calls image `index`."""
        return printable(self.names[index])


class FileImages(StoredImages):
    """Images in files below a folder, by their paths relative to it."""

    def __init__(
        self, root: Path, names: Iterable[str], labels: Sequence[int] | np.ndarray, classes: list[str]
    ) -> None:
        super().__init__(names, labels, classes)
        self.root = root

    def open(self, index: int) -> BinaryIO:
        """Open the file of image `index`."""
        return open(self.root / self.names[index], "rb")

    def name(self, index: int) -> str:
        """Return its path."""
        return printable(self.root / self.names[index])


class FolderSource(FileImages):
    """Images in one folder per class."""

    def __init__(self, root: Path) -> None:
        classes = sorted(entry.name for entry in _entries(root) if entry.is_dir())
        if not classes:
            raise UserError(f"{root} holds no class folders; images are expected as {root}/CLASS/IMAGE.jpg")
        names: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            found = sorted(path for path in _files_below(root, name) if is_image(path))
            if not found:
                kinds = ", ".join(IMAGE_SUFFIXES)
                raise UserError(f"{printable(root / name)} holds no images ({kinds}); add some or remove the folder")
            names += found
            labels += [label] * len(found)
        super().__init__(root, names, labels, [printable(name) for name in classes])


def is_image(name: str) -> bool:
    """True for a file name with the ending of an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def require_folder(path: Path) -> Path:
    """Return `path`; `UserError` with the nearest name when there is no such folder."""
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{path} is a file, not a folder of images")
    siblings = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
    raise UserError(f"there is no folder {path}.{closest(path.name, siblings)}")


def require_file(path: Path, what: str) -> Path:
    """Return `path`; `UserError` with the nearest name when there is no such file, which holds `what`."""
    if path.is_file():
        return path
    if path.exists():
        raise UserError(f"{path} is no file; it should be {what}")
    siblings = [p.name for p in path.parent.iterdir() if p.is_file()] if path.parent.is_dir() else []
    raise UserError(f"there is no file {path}, {what}.{closest(path.name, siblings)}")


def data_root(path: str, what: str = "the folder that holds train/ and val/") -> Path:
    """Return ``DATA.DATA_PATH`` as a path; `UserError` where it is empty."""
    if not path:
        raise UserError(f"DATA.DATA_PATH is empty; --data-path names {what}")
    return Path(path)


def _entries(folder: Path | str) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except PermissionError:
        raise UserError(f"the folder {printable(folder)} is not readable; check its permissions") from None


def _files_below(root: Path, folder: str) -> list[str]:
    """Return the files below `folder`, a path relative to `root`, as such paths."""
    files: list[str] = []
    for entry in _entries(root / folder):
        path = f"{folder}/{entry.name}"
        files += _files_below(root, path) if entry.is_dir() else [path]
    return files
