"""Pictures under one another in one file: ``python -m vmamba.openmmlab.montage A.png B.png --out C.png``.

`segmentation/tools/test.py --show-dir` and the same of detection leave a picture of each image, truth beside answer.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from vmamba.command_line import Parser
from vmamba.errors import UserError, exit_on_user_error


def montage(pictures: list[Path], width: int, colours: int = 256) -> Image.Image:
    """Return the pictures under one another, `width` pixels wide, in a palette that keeps the file small."""
    opened = []
    for path in pictures:
        try:
            image = Image.open(path).convert("RGB")
        except OSError as error:
            raise UserError(f"{path}: {error}") from None
        opened.append(image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS))
    whole = Image.new("RGB", (width, sum(image.height for image in opened)))
    top = 0
    for image in opened:
        whole.paste(image, (0, top))
        top += image.height
    return whole.quantize(colours)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the montage of the pictures named on the command line."""
    parser = Parser(prog="python -m vmamba.openmmlab.montage", description=__doc__)
    parser.add_argument("pictures", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--width", type=int, default=800)
    options = parser.parse(argv)
    montage(options.pictures, options.width).save(options.out, optimize=True)
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(exit_on_user_error(main)())
