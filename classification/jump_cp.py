"""JUMP-CP: crops of cells under the microscope, eight channels each, labelled by what their well was treated with.

DATA_PATH/PLATE.pq                      a row for each image: columns path and well_loc
DATA_PATH/.../*compound_platemap.*      which sample is in which well: broad_sample, well_position
DATA_PATH/.../*compound_metadata.*      what a sample acts on: broad_sample, target
DATA_PATH/.../*.npy                     the images [C, H, W], values from 0 to 255

Source: Chandrasekaran et al., "Three million images and morphological profiles of cells treated with matched chemical
and genetic perturbations", 2024; the labels and the split are those of Kapse et al., "Fast Vision Mamba", 2025.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from yacs.config import CfgNode

from classification.decoding import UnreadableImage, reason_of
from classification.files import FileImages, data_root, require_file, require_folder
from classification.names import printable
from classification.tables import Column, read_table
from vmamba.errors import UserError, closest
from vmamba.models.from_config import input_channels

NAME = "jumpcp"
SPLITS = ("train", "val", "test")
_TRAIN, _VAL = 0.6, 0.2
_INDICES = (".pq", ".parquet")
_CONTROL = "control"
# images of an index of which one at least must be there, to tell where the paths begin
_LOOKED_FOR = 100


class CellImages(FileImages):
    """Numpy files as images [H, W, C], uint8 or float32, of `channels` channels; `notes` says what was left out."""

    def __init__(
        self, root: Path, names: Sequence[str], labels: Sequence[int], classes: list[str], channels: int, note: str
    ) -> None:
        super().__init__(root, names, labels, classes)
        self.channels = channels
        self.notes = [note] if note else []

    def load(self, index: int) -> np.ndarray:  # type: ignore[override]
        """Return image `index`; raises `UnreadableImage` for a file that holds something else."""
        with self.open(index) as file:
            try:
                array = np.lib.format.read_array(file, allow_pickle=False)
            except Exception as error:  # the header of a damaged file makes numpy raise nearly anything
                raise UnreadableImage(reason_of(error)) from error
        return _pixels(array, self.channels)


def is_cells(name: str) -> bool:
    """True for a ``DATA.DATASET`` that is read here: all plates of the folder, or jumpcp/PLATE."""
    return name.partition("/")[0] == NAME


def open_jump_cp(config: CfgNode, split: str) -> CellImages:
    """Return the images of a split, train, val or test, that lie in labelled wells; `notes` counts the others.

    Each plate is split by itself, always in the same way: 60, 20 and 20 per cent of its rows.
    """
    if split not in SPLITS:
        hint = closest(split, SPLITS)
        raise UserError(f"{config.DATA.DATASET} has the splits {', '.join(SPLITS)}, not '{split}'.{hint}")
    root = require_folder(data_root(config.DATA.DATA_PATH, "the folder of the plates, their tables and images"))
    wells, classes = well_labels(root)
    names: list[str] = []
    labels: list[int] = []
    empty: dict[str, int] = {}
    for plate in _plates(root, config.DATA.DATASET.partition("/")[2]):
        paths, places = read_table(plate, ("path", "well_loc"))
        above = _parts_above(root, plate, paths)
        for row in split_rows(len(paths), split):
            path, well = paths[row], places[row]
            if well is not None and well in wells and path is not None:
                names.append("/".join(Path(path).parts[above:]))
                labels.append(wells[well])
            else:
                empty[well or "no well"] = empty.get(well or "no well", 0) + 1
    if not names:
        known = ", ".join(sorted(wells)[:3]) or "none"
        raise UserError(
            f"no image of {config.DATA.DATASET}, split '{split}', lies in a labelled well: {_listed(empty)}; the "
            f"tables label {known}, ..."
        )
    missing = sum(empty.values())
    note = f"{missing} of {missing + len(names)} images of '{split}' lie in wells without a label and are left out"
    return CellImages(
        root, names, labels, classes, input_channels(config), f"{note}: {_listed(empty)}" if missing else ""
    )


def split_rows(count: int, split: str) -> np.ndarray:
    """Return the rows of `count` that a split has."""
    order = np.random.RandomState(0).permutation(count)
    first, second = int(_TRAIN * count), int(_TRAIN * count) + int(_VAL * count)
    return {"train": order[:first], "val": order[first:second], "test": order[second:]}[split]


def well_labels(root: Path) -> tuple[dict[str, int], list[str]]:
    """Return ({well: class number}, class names): 0 without a target, the targets in the order of the metadata.

    The two tables are joined by their sample; rows of both without a sample belong together, as those of the solvent.
    """
    samples, wells = read_table(_table(root, "platemap"), ("broad_sample", "well_position"))
    treated, targets = read_table(_table(root, "metadata"), ("broad_sample", "target"))
    places: dict[str | None, list[str]] = {}
    for sample, well in zip(samples, wells):
        if well is not None:
            places.setdefault(sample, []).append(well)
    numbers: dict[str, int] = {}
    labels: dict[str, int] = {}
    for sample, target in zip(treated, targets):
        for well in places.get(sample, ()):
            labels[well] = 0 if target is None else numbers.setdefault(target, len(numbers) + 1)
    return labels, [_CONTROL, *map(printable, numbers)]


def _table(root: Path, kind: str) -> Path:
    """Return the one table of the compounds of that kind, in `root` or in a folder of it."""
    name = f"*compound_{kind}.*"
    found = sorted([*root.glob(name), *root.glob(f"*/{name}")])
    if len(found) != 1:
        what = "there is no" if not found else f"{len(found)} files are called"
        raise UserError(f"{root}: {what} {name}, here or one folder below; it says what the wells are treated with")
    return found[0]


def _plates(root: Path, plate: str) -> list[Path]:
    if plate:
        present = [root / f"{plate}{ending}" for ending in _INDICES]
        return [next((path for path in present if path.is_file()), None) or require_file(present[0], "a plate's index")]
    found = sorted(path for path in root.iterdir() if path.suffix in _INDICES)
    if not found:
        kinds = ", ".join(f"*{ending}" for ending in _INDICES)
        raise UserError(f"{root} holds no index of a plate ({kinds}), whose rows name path and well_loc")
    return found


def _parts_above(root: Path, plate: Path, paths: Column) -> int:
    """Return how many leading parts the paths have that are not below `root`, such as those of a bucket."""
    first = [path for path in paths if path is not None][:_LOOKED_FOR]
    for path in first:
        parts = Path(path).parts
        for above in range(parts[0] == "/", len(parts)):
            if root.joinpath(*parts[above:]).is_file():
                return above
    if not first:
        raise UserError(f"{plate} names no image")
    raise UserError(f"{plate} names {printable(first[0])}, which is not below {root}, nor is any end of that path")


def _pixels(array: np.ndarray, channels: int) -> np.ndarray:
    """Return an array [C, H, W] as an image [H, W, C]; raises `UnreadableImage` for one that is none."""
    if array.ndim != 3 or array.shape[0] != channels or 0 in array.shape:
        raise UnreadableImage(f"its shape is {list(array.shape)}, not [{channels}, height, width]")
    if array.dtype.kind not in "uif":
        raise UnreadableImage(f"its values are of type {array.dtype}, not numbers")
    if array.dtype != np.uint8:
        array = array.astype(np.float32)
        low, high = array.min(), array.max()
        if not (low >= 0 and high <= 255):  # false for NaN as well
            raise UnreadableImage(f"its values lie between {low:g} and {high:g}; expected 0 to 255")
    return array.transpose(1, 2, 0)


def _listed(wells: dict[str, int], limit: int = 6) -> str:
    names = sorted(wells)
    more = f", ... {len(names) - limit} more wells" if len(names) > limit else ""
    return ", ".join(f"{name} ({wells[name]})" for name in names[:limit]) + more
