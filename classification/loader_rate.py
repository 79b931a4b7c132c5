"""Images that one core prepares in a second: ``python -m classification.loader_rate``.

Reading, decoding and augmenting as in training, in one process and one thread. The clock is the processor time of the
process, so other programs on the machine hardly move the figure. Without ``--data-path`` the images are the bundled
photographs, at the size of ImageNet's average image.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from yacs.config import CfgNode

from classification.config import load_config
from classification.data import Data, build_data
from classification.photographs import write_photographs
from classification.world import World
from vmamba.command_line import Parser
from vmamba.errors import UserError, exit_on_user_error
from vmamba.preprocess import read_image

# The parts of the published augmentation, one after the other.
RECIPES = {
    "crop and flip": ("AUG.AUTO_AUGMENT", "none", "AUG.COLOR_JITTER", "0.0", "AUG.REPROB", "0.0"),
    "and RandAugment": ("AUG.REPROB", "0.0"),
    "and erasing: the ImageNet recipe": (),
}


@dataclass(frozen=True)
class Rate:
    """Images per second of one core: the median of the turns, and the slowest and fastest of them."""

    median: float
    slowest: float
    fastest: float

    def __str__(self) -> str:
        return f"{self.median:8.0f} ({self.slowest:.0f} to {self.fastest:.0f})"


def measure_loader(data: Data, images: int, turns: int) -> Rate:
    """Return the rate of the training loader over the first batches of an epoch, at least `images` images a turn."""
    assert data.train is not None
    batches, rates = data.train, []
    for epoch in range(turns + 1):
        batches.sampler.set_epoch(epoch)
        start, seen = time.process_time(), 0
        for _, labels in batches:
            seen += len(labels)
            if seen >= images:
                break
        rates.append(seen / (time.process_time() - start))
    return _rate(rates[1:])


def measure_decoding(root: Path, images: int, turns: int) -> Rate:
    """Return the rate of reading and decoding `images` training files alone."""
    files = (path for path in (root / "train").rglob("*") if path.is_file())
    paths, rates = list(islice(files, images)), []
    for _ in range(turns + 1):
        start = time.process_time()
        for path in paths:
            read_image(path).convert("RGB")
        rates.append(len(paths) / (time.process_time() - start))
    return _rate(rates[1:])


def _rate(rates: list[float]) -> Rate:
    return Rate(statistics.median(rates), min(rates), max(rates))


def _data(root: Path, size: int, batch: int, recipe: tuple[str, ...]) -> Data:
    settings = ["DATA.DATASET", "imagenet", "DATA.DATA_PATH", str(root), "DATA.NUM_WORKERS", "0"]
    settings += ["DATA.IMG_SIZE", str(size), "DATA.BATCH_SIZE", str(batch), *recipe]
    config: CfgNode
    config, stated = load_config(opts=settings)
    return build_data(config, stated, World())


@exit_on_user_error
def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    parser = Parser(prog="python -m classification.loader_rate", description=__doc__)
    parser.add_argument("--data-path", metavar="DIR", help="an image folder; default: the bundled photographs")
    parser.add_argument("--size", type=int, default=224, metavar="N", help="side of the network's input (default 224)")
    parser.add_argument("--images", type=int, default=120, metavar="N", help="images a turn (default 120)")
    parser.add_argument("--turns", type=int, default=5, metavar="N", help="turns of each row (default 5)")
    options = parser.parse(argv)
    if min(options.size, options.images, options.turns) < 1:
        raise UserError("--size, --images and --turns are at least 1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(options.data_path or folder)
            if not options.data_path:
                size = write_photographs(root, max(options.images, 6), 6)
                print(f"{options.images} photographs of 187,500 pixels, JPEG of {size:,} bytes on average")
            print(f"{'images a second on one core, median (range)':<44} at {options.size} x {options.size}")
            print(f"{'read and decode':<44} {measure_decoding(root, options.images, options.turns)}")
            for title, recipe in RECIPES.items():
                data = _data(root, options.size, min(options.images, 30), recipe)
                print(f"{title:<44} {measure_loader(data, options.images, options.turns)}", flush=True)
    finally:
        torch.set_num_threads(threads)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
