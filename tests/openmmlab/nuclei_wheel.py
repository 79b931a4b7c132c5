"""Photographs and outlines of nuclei in a wheel as small as can be."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import shapely
from PIL import Image

from vmamba.openmmlab import nuclei


def photograph(seed: int = 0) -> tuple[Image.Image, list, list[int]]:
    """Three by one tiles: a nucleus in the first, one across the border of the first two, one in each other tile."""
    noise = np.random.default_rng(seed).integers(0, 255, (250, 750, 3), dtype=np.uint8)
    polygons = [
        shapely.box(10, 20, 40, 60),
        shapely.box(230, 100, 270, 110),
        shapely.box(300, 30, 320, 50),
        shapely.box(600, 200, 640, 220),
        shapely.box(499, 10, 519, 20),
    ]
    return Image.fromarray(noise), polygons, [0, 1, 2, 2, 1]


def write_wheel(path: Path) -> Path:
    """Write a wheel with the files that are read of the real one."""
    with zipfile.ZipFile(path, "w") as archive:
        for seed, (picture, outlines) in enumerate(nuclei._PHOTOGRAPHS.values()):
            image, polygons, labels = photograph(seed)
            image.save(path.with_suffix(".jpg"))
            names = [nuclei.CLASSES[label] for label in labels]
            table = pa.table(dict(geometry=list(shapely.to_wkb(polygons)), class_name=names))
            pyarrow.parquet.write_table(table, path.with_suffix(".parquet"))
            archive.write(path.with_suffix(".jpg"), f"histolytics/data/{picture}")
            archive.write(path.with_suffix(".parquet"), f"histolytics/data/{outlines}")
    return path
