"""Lists of images and class numbers, in the two published forms.

The form of zip mode is a line per image, ``path TAB number``; that of ImageNet-22k is one JSON list of [path, number].
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from yacs.config import CfgNode

from classification.files import FileImages, data_root, require_file, require_folder
from vmamba.errors import UserError

IMAGENET_22K_CLASSES = 21841
_IMAGENET_22K_LIST = "ILSVRC2011fall_whole_map_{split}.txt"
_LIST = "{split}_map.txt"
_CLASSES = "classes.txt"


def read_list(path: Path, classes: int) -> tuple[list[str], np.ndarray]:
    """Return (paths, class numbers) of a list file; `UserError` names the entry whose number is not below `classes`."""
    rows = _rows(path)
    if not rows:
        raise UserError(f"{path} lists no image; expected lines of 'path TAB class number'")
    labels = np.array([label for _, label in rows], dtype=np.int64)
    beyond = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(beyond):
        number = int(beyond[0])
        raise UserError(
            f"{path}, image {number + 1}: class number {labels[number]} does not lie between 0 and {classes - 1}"
        )
    return [name for name, _ in rows], labels


def class_names(data: CfgNode) -> list[str]:
    """Return the class names of a data set of lists.

    They are the lines of ``DATA_PATH/classes.txt``, or numbers up to the highest one that a list names.
    """
    root = Path(data.DATA_PATH)
    named = root / _CLASSES
    if named.is_file():
        return _names(named)
    if data.DATASET == "imagenet22K":
        return [str(number) for number in range(IMAGENET_22K_CLASSES)]
    lists = [root / _LIST.format(split=split) for split in (data.TRAIN_SPLIT, data.VAL_SPLIT)]
    highest = max((label for path in lists if path.is_file() for _, label in _rows(path)), default=-1)
    return [str(number) for number in range(highest + 1)]


def open_list(data: CfgNode, split: str) -> FileImages:
    """Return the images that the list of `split` names, by paths relative to ``DATA_PATH``."""
    root = require_folder(data_root(data.DATA_PATH, "the folder of the images and of their lists"))
    pattern = _IMAGENET_22K_LIST if data.DATASET == "imagenet22K" else _LIST
    path = require_file(root / pattern.format(split=split), "the list of images and class numbers")
    classes = class_names(data)
    names, labels = read_list(path, len(classes))
    return FileImages(root, names, labels, classes)


def _names(path: Path) -> list[str]:
    names = [line.strip() for line in path.read_text(encoding="utf-8", errors="backslashreplace").splitlines()]
    names = [name for name in names if name]
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if not names or twice is not None:
        what = f"names '{twice}' twice" if twice else "is empty"
        raise UserError(f"{path} {what}; it holds one class name a line, in the order of the class numbers")
    return names


def _rows(path: Path) -> list[tuple[str, int]]:
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check its permissions") from None
    return _json_rows(path, text) if text.lstrip().startswith("[") else _tab_rows(path, text)


def _tab_rows(path: Path, text: str) -> list[tuple[str, int]]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        name, _, label = line.rstrip("\r").rpartition("\t")
        if not name or not label.strip().isdigit():
            raise UserError(f"{path}, line {number}: expected 'path TAB class number', not {line[:80]!r}")
        rows.append((name, int(label)))
    return rows


def _json_rows(path: Path, text: str) -> list[tuple[str, int]]:
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path} is no complete JSON list: {error}; fetch it again") from None
    rows = []
    for number, entry in enumerate(entries, 1):
        if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) and type(entry[1]) is int):
            raise UserError(f"{path}, entry {number}: expected [path, class number], not {str(entry)[:80]}")
        rows.append((entry[0], entry[1]))
    return rows
