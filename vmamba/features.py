"""Features of image files, into one file: ``python -m vmamba.features IMAGES --out FILE.npz --level 3 --pool``."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vmamba.command_line import Parser
from vmamba.errors import UserError, exit_on_user_error
from vmamba.image_model import open_model
from vmamba.using import features_of

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"}
FORMATS = (".npz", ".safetensors")


def find_images(places: Iterable[Path]) -> list[Path]:
    """Return the image files among `places` and, sorted, below the folders among them; `UserError` if one has none."""
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            inside = sorted(p for p in place.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            if not inside:
                raise UserError(f"{place}: no image file lies in this folder ({', '.join(sorted(IMAGE_SUFFIXES))})")
            found += inside
        elif place.is_file():
            found.append(place)
        else:
            raise UserError(f"there is no image file or folder {place}; check the path")
    return found


def write_features(path: Path, features: dict[str, Tensor], images: list[str]) -> None:
    """Write features by name, and which image each row is of, whole or not at all.

    npz: an array "images" of paths beside the features. safetensors: the paths as JSON under "images" of the metadata.
    """
    part = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file({k: v.contiguous() for k, v in features.items()}, part, {"images": json.dumps(images)})
        else:
            arrays = {name: value.numpy() for name, value in features.items()}
            with open(part, "wb") as file:
                np.savez(file, images=np.array(images), **arrays)  # type: ignore[arg-type]
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise UserError(f"{path} cannot be written ({error.strerror or error}); give another --out") from error


def _levels(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f"--level {text}: give stages such as 3, -1 or 0,1,2,3") from None


@exit_on_user_error
def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m vmamba.features", description=__doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGES", type=Path, help="image files, and folders of them")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="a file .npz or .safetensors")
    parser.add_argument("--model", metavar="NAME", help="a model of this package; alone: with its released weights")
    parser.add_argument("--weights", type=Path, help="a checkpoint; alone: one of the trainer, such as best.pth")
    parser.add_argument("--level", default="-1", metavar="I[,J]", help="stages from 0, or from the end (default -1)")
    parser.add_argument("--pool", action="store_true", help="mean over the positions: one vector for each image")
    parser.add_argument("--batch", type=int, default=16, metavar="N", help="images at once (default 16)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 or auto (default): a GPU when there is one")
    arguments = parser.parse(argv)
    if arguments.out.suffix not in FORMATS:
        raise UserError(f"--out {arguments.out}: the file ends in {' or '.join(FORMATS)}")
    if arguments.batch < 1:
        raise UserError(f"--batch {arguments.batch}: give at least 1")
    levels, images = _levels(arguments.level), find_images(arguments.images)
    opened = open_model(arguments.model, arguments.weights, arguments.device)
    starts = range(0, len(images), arguments.batch)
    parts = [features_of(opened, images[i : i + arguments.batch], levels, arguments.pool) for i in starts]
    features = {f"level{n}": torch.cat(maps) for n, maps in zip(levels, zip(*parts, strict=True), strict=True)}
    write_features(arguments.out, features, [str(path) for path in images])
    for name, value in features.items():
        print(f"{arguments.out}: {name} {'x'.join(map(str, value.shape))}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
