"""iNaturalist, read from its own JSON files.

DATA_PATH/train2018.json, val2018.json   {"images": [{"id", "file_name"}], "annotations": [{"image_id", "category_id"}]}
DATA_PATH/categories.json                [{"id", "name", "genus", "family", ..., "kingdom"}], else in train2018.json
DATA_PATH/train_val2018/...              the images, by their file_name

Source: Van Horn et al., "The iNaturalist Species Classification and Detection Dataset", 2018.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from classification.files import FileImages, data_root, require_file, require_folder
from classification.names import printable
from vmamba.errors import UserError, closest

YEARS = {"inat2017": "2017", "inat2018": "2018", "inat2019": "2019"}


def open_inaturalist(data: CfgNode, train: bool) -> FileImages:
    """Return the images of a split; ``DATA.TARGET_KEY`` is the rank that is told, by default the species, "name".

    The classes are the names of that rank among the training images, in alphabetical order.
    """
    year, rank = YEARS[data.DATASET], data.TARGET_KEY or "name"
    root = require_folder(data_root(data.DATA_PATH, "the folder of the images and of their JSON files"))
    first = _read(root / f"train{year}.json")
    names = _names(root, first, rank)
    table = first if train else _read(root / f"val{year}.json")
    try:
        told = {row["category_id"] for row in first["annotations"]}
        classes = sorted({names[category] for category in told})
        number = {name: label for label, name in enumerate(classes)}
        of_image = {row["image_id"]: number[names[row["category_id"]]] for row in table["annotations"]}
        files = [row["file_name"] for row in table["images"]]
        labels = [of_image[row["id"]] for row in table["images"]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{root}: the JSON files of {data.DATASET} do not fit each other: no {error}") from None
    return FileImages(root, files, labels, [printable(name) for name in classes])


def _names(root: Path, table: dict[str, Any], rank: str) -> dict[int, str]:
    """Return {category: its name at that rank}."""
    path = root / "categories.json"
    rows = _read(path) if path.exists() else table.get("categories", [])
    if not rows:
        raise UserError(f"there is no {path}, and no categories in the training file; fetch it beside them")
    if rank not in rows[0]:
        ranks = [key for key in rows[0] if key != "id"]
        raise UserError(f"DATA.TARGET_KEY '{rank}' is no rank of {', '.join(ranks)}.{closest(rank, ranks)}")
    return {row["id"]: str(row[rank]) for row in rows}


def _read(path: Path) -> Any:
    try:
        return json.loads(require_file(path, "of iNaturalist").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is no complete JSON file: {error}; fetch it again") from None
