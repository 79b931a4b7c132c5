"""What is reached without looking at the image: ``python -m vmamba.openmmlab.nuclei_baselines --data data/nuclei``.

Segmentation: every pixel is background, the commonest class. Detection: boxes of the median size of the training set on
a grid all over the image, all of the training set's commonest class.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vmamba.command_line import Parser
from vmamba.errors import UserError, exit_on_user_error

_BOXES = 100  # an image's: COCO's average precision looks at no more


def majority_miou(root: Path, classes: int = 4) -> float:
    """Return the mIoU, 0 to 1, of the commonest training class everywhere, for the trees that `nuclei` makes."""
    answer = int(np.argmax(_pixels(root / "annotations" / "training", classes)))
    truth = _pixels(root / "annotations" / "validation", classes)
    present = int((truth > 0).sum())
    if not truth[answer]:
        present += 1
    return float(truth[answer] / truth.sum() / present)


def _pixels(folder: Path, classes: int) -> np.ndarray:
    maps = sorted(folder.glob("*.png"))
    if not maps:
        raise UserError(f"{folder}: no label maps; python -m vmamba.openmmlab.nuclei makes them")
    counts = [np.bincount(np.asarray(Image.open(path)).ravel(), minlength=classes) for path in maps]
    return np.sum(counts, axis=0)


def majority_boxes(root: Path) -> list[dict[str, Any]]:
    """Return the grid's boxes for each validation image, as COCO's results."""
    train, val = (_annotations(root, split) for split in ("train", "val"))
    label = Counter(nucleus["category_id"] for nucleus in train["annotations"]).most_common(1)[0][0]
    width, height = np.median([nucleus["bbox"][2:] for nucleus in train["annotations"]], axis=0).tolist()
    side = int(_BOXES**0.5)
    results = []
    for image in val["images"]:
        for x in np.linspace(0, image["width"] - width, side).tolist():
            for y in np.linspace(0, image["height"] - height, side).tolist():
                box = [x, y, width, height]
                results.append(dict(image_id=image["id"], category_id=label, bbox=box, score=1.0))
    return results


def _annotations(root: Path, split: str) -> Any:
    path = root / "annotations" / f"instances_{split}.json"
    if not path.is_file():
        raise UserError(f"{path}: not there; python -m vmamba.openmmlab.nuclei makes it")
    return json.loads(path.read_text(encoding="utf-8"))


def box_ap50(annotations: Path, results: list[dict[str, Any]]) -> float:
    """Return the mean over the classes of the average precision, 0 to 1, of boxes at an overlap of 0.5."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[1])


def main(argv: Sequence[str] | None = None) -> int:
    """Print the two figures."""
    parser = Parser(prog="python -m vmamba.openmmlab.nuclei_baselines", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data/nuclei"))
    data = parser.parse(argv).data
    precision = box_ap50(data / "coco" / "annotations" / "instances_val.json", majority_boxes(data / "coco"))
    print(f"majority: mIoU {majority_miou(data / 'mmseg'):.1%}, box AP50 {precision:.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_on_user_error(main)())
