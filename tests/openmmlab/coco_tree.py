"""A few images of coloured boxes, with annotations in COCO's layout and its categories."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

SIZES = [(96, 128), (128, 96), (110, 90), (100, 130)]  # (height, width)
COUNTS = {"train2017": 4, "val2017": 3}


def make_coco(root: Path) -> Path:
    """Write the tree below `root` and return it: 4 images to train on and 3 to evaluate on, two boxes each."""
    from mmdet.datasets import CocoDataset

    random = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(CocoDataset.METAINFO["classes"])]
    for split, count in COUNTS.items():
        (root / split).mkdir()
        images, annotations = [], []
        for i in range(count):
            height, width = SIZES[i % len(SIZES)]
            pixels = random.integers(0, 60, (height, width, 3), dtype=np.uint8)
            name = f"{i:012d}.jpg"
            images.append(dict(id=i, file_name=name, height=height, width=width))
            for label, color in ((1, (255, 40, 40)), (2, (40, 255, 40))):
                w, h = (int(n) for n in random.integers(30, 50, 2))
                x, y = int(random.integers(0, width - w)), int(random.integers(0, height - h))
                pixels[y : y + h, x : x + w] = color
                corners = [x, y, x + w, y, x + w, y + h, x, y + h]
                box = dict(bbox=[x, y, w, h], area=w * h, segmentation=[corners], iscrowd=0)
                annotations.append(dict(id=len(annotations) + 1, image_id=i, category_id=label, **box))
            Image.fromarray(pixels).save(root / split / name, quality=95)
        content = dict(images=images, annotations=annotations, categories=categories)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root
