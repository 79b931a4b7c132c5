"""What is wrong before a run begins: files that are missing, classes that do not fit, images that are broken."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import get_dist_info
from PIL import Image
from torch import nn

from vmamba.errors import UserError, closest

IMAGE_CHECKS = ("ends", "all", "none")
_TAIL = 4096
_HEAD = re.compile(r"(?:^|\.)(?!rpn_|semantic_)\w*head(?:\.\d+)?$")


def check_files(cfg: Config, splits: Iterable[str]) -> None:
    """Raise `UserError` for the first annotation file or image folder of the splits ("train", ...) that is missing."""
    for split in splits:
        loader = cfg.get(f"{split}_dataloader")
        for where, dataset in _datasets(f"{split}_dataloader.dataset", (loader or {}).get("dataset")):
            root = dataset.get("data_root") or ""
            if dataset.get("ann_file"):
                _require(f"{where}.ann_file", _joined(root, dataset["ann_file"]), "annotation file")
            prefix = dataset.get("data_prefix")
            for name, folder in prefix.items() if isinstance(prefix, Mapping) else ():
                if isinstance(folder, str):
                    _require(f"{where}.data_prefix.{name}", _joined(root, folder), "folder")
        evaluators = cfg.get(f"{split}_evaluator") if loader else None
        for evaluator in evaluators if isinstance(evaluators, list) else [evaluators or {}]:
            if evaluator.get("ann_file"):
                _require(f"{split}_evaluator.ann_file", evaluator["ann_file"], "annotation file")


def check_classes(model: nn.Module, dataset: Any, where: str) -> None:
    """Raise `UserError` where a head of `model` has another number of classes than `dataset`, or a class no examples.

    `dataset` is one of mmengine's; without named classes nothing can be said.
    """
    classes = (getattr(dataset, "metainfo", None) or {}).get("classes")
    if not classes:
        return
    for name, module in model.named_modules():
        heads = getattr(module, "num_classes", None)
        if _HEAD.search(name) and isinstance(heads, int) and heads != len(classes):
            raise UserError(
                f"{where} has {len(classes)} classes ({', '.join(classes[:3])}{', ...' if classes[3:] else ''}), and "
                f"{name} of the model is for {heads}; set num_classes of every head to {len(classes)}, or metainfo"
            )
    for part in _parts(dataset):
        known = getattr(part, "cat_ids", None)
        if known is not None and len(known) != len(part.metainfo["classes"]):
            raise UserError(
                f"{where}: of the {len(part.metainfo['classes'])} classes of its metainfo {part.ann_file} has "
                f"{len(known)}; write the names there as in its categories"
            )


def check_images(dataset: Any, where: str, how: str = "ends") -> None:
    """Raise `UserError` for the first image or label map of `dataset` that is missing or broken.

    Each process looks at its share.

    `how` is "ends", which reads the beginning and the end of each file, "all", which decodes it, or "none".
    """
    if how == "none":
        return
    rank, world = get_dist_info()
    samples = (dataset.get_data_info(i) for i in range(rank, len(dataset), world))
    files = (sample.get(key) for sample in samples for key in ("img_path", "seg_map_path"))
    local = [path for path in files if isinstance(path, str) and "://" not in path]
    with ThreadPoolExecutor(4) as pool:
        for path, problem in zip(local, pool.map(lambda p: image_problem(p, how == "all"), local)):
            if problem:
                raise UserError(f"{where}: the image {path} {problem}; replace it, or take it out of the annotations")


def image_problem(path: str | Path, decode: bool = False) -> str:
    """Return what is wrong with an image file, or an empty string; a JPEG without its end is decoded to be sure."""
    try:
        with open(path, "rb") as file:
            start = file.read(2)
            size = file.seek(0, os.SEEK_END)
            file.seek(-min(size, _TAIL), os.SEEK_END)
            cut = start == b"\xff\xd8" and b"\xff\xd9" not in file.read()
        if not size:
            return "is empty"
        with Image.open(path) as image:
            if decode or cut:
                image.load()
            else:
                image.verify()
    except FileNotFoundError:
        return "is missing"
    except Exception as error:  # decoders raise anything on damaged bytes
        return f"cannot be read ({' '.join(str(error).split()) or type(error).__name__})"
    return ""


def _datasets(where: str, dataset: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (dotted place, settings) of each data set inside wrappers such as RepeatDataset and ConcatDataset."""
    if not isinstance(dataset, Mapping):
        return
    inner, many = dataset.get("dataset"), dataset.get("datasets")
    if isinstance(inner, Mapping):
        yield from _datasets(f"{where}.dataset", inner)
    elif isinstance(many, list | tuple):
        for i, one in enumerate(many):
            yield from _datasets(f"{where}.datasets.{i}", one)
    else:
        yield where, dataset


def _parts(dataset: Any) -> Iterator[Any]:
    """Yield the data sets inside a built one."""
    inner = getattr(dataset, "dataset", None)
    for part in getattr(dataset, "datasets", None) or ([inner] if inner is not None else []):
        yield from _parts(part)
    if inner is None and not hasattr(dataset, "datasets"):
        yield dataset


def _joined(root: str, path: str) -> str:
    return path if "://" in path or os.path.isabs(path) else os.path.join(root, path)


def _require(key: str, path: str, kind: str) -> None:
    place = Path(path)
    if "://" in path or (place.is_dir() if kind == "folder" else place.is_file()):
        return
    siblings = [other.name for other in place.parent.iterdir()] if place.parent.is_dir() else []
    raise UserError(f"{key}: there is no {kind} {path}.{closest(place.name, siblings)} --cfg-options {key}=... sets it")
