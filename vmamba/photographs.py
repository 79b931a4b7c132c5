"""The real photographs that scikit-image and scikit-learn bring along: pictures for figures, tests and benchmarks."""

from __future__ import annotations

import numpy as np
from PIL import Image

# ImageNet's average image has about this area.
AREA = 500 * 375


def photographs() -> dict[str, Image.Image]:
    """Return the bundled photographs in colour, by name, each scaled to the area of ImageNet's average image."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    flower = dict(zip(("china", "flower"), load_sample_images().images))
    arrays = {name: getattr(data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")} | flower
    return {name: _scaled(Image.fromarray(np.asarray(array)).convert("RGB")) for name, array in arrays.items()}


def _scaled(picture: Image.Image) -> Image.Image:
    factor = (AREA / (picture.width * picture.height)) ** 0.5
    return picture.resize((round(picture.width * factor), round(picture.height * factor)), Image.Resampling.BICUBIC)
