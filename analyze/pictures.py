"""The images that a command looks at: files, or the photographs and digits that scikit-image and scikit-learn bring."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from vmamba.errors import UserError
from vmamba.features import find_images
from vmamba.photographs import photographs
from vmamba.preprocess import IMAGE_ERRORS, read_image

DIGITS = 10


def pictures(paths: list[Path] | None, mode: str = "RGB", count: int | None = None) -> dict[str, Image.Image]:
    """Return images by name: those of files and folders or, for None, bundled ones, at most `count`.

    A model of gray images (`mode` "L") gets handwritten digits, any other photographs. Raises `UserError` where there
    is none, or for a file that is no image.
    """
    if count is not None and count < 1:
        raise UserError("--count: give at least 1")
    if paths is not None:
        if not paths:
            raise UserError("--images: there is none; name image files or a folder of them")
        return _of_files(find_images(paths)[:count])
    found = _digits() if mode == "L" else photographs()
    return dict(list(found.items())[:count])


def _of_files(files: list[Path]) -> dict[str, Image.Image]:
    found = {}
    for number, path in enumerate(files):
        try:
            image = read_image(path)
        except IMAGE_ERRORS as error:
            raise UserError(f"{path} cannot be read as an image ({error}); give a PNG or JPEG file") from error
        found[path.stem if path.stem not in found else f"{path.stem}_{number}"] = image
    return found


def _digits() -> dict[str, Image.Image]:
    from sklearn.datasets import load_digits

    images = load_digits().images[:DIGITS]
    return {f"digit_{n}": Image.fromarray((image * 15.9).astype(np.uint8)) for n, image in enumerate(images)}
