"""What the training loop costs beside a bare PyTorch loop: ``python -m classification.overhead``.

Both train a network of one layer from the same loader on the same batches, by turns, an epoch each. The bare loop is
what a tutorial shows: forward, loss, backward, step. Ours also clips, checks that all is finite, keeps its schedule,
meters and log. The figure is the ratio of the medians. A busy machine moves it; the ratio of the processor time that
both take, and what a step of ours takes more, hardly.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import nn
from yacs.config import CfgNode

from classification.build import build_trainer
from classification.config import load_config
from classification.data import Batches, Data, build_data
from classification.log import Bar, close_logger, create_logger
from classification.photographs import write_photographs
from classification.progress import EpochSoFar
from classification.rng import seed_everything
from classification.train import Trainer, train_one_epoch
from classification.world import World
from vmamba.command_line import Parser
from vmamba.devices import choose_device
from vmamba.errors import exit_on_user_error
from vmamba.models.from_config import input_channels
from vmamba.preprocess import image_size

# What is no part of a loop but of a recipe is off on both sides.
_PLAIN = ("AUG.MIXUP", "0.0", "AUG.CUTMIX", "0.0", "EMA.ENABLE", "False", "AMP_ENABLE", "False")
_SMALL = ("DATA.IMG_SIZE", "8", "MODEL.VSSM.IN_CHANS", "1", "DATA.MEAN", "[0.3]", "DATA.STD", "[0.4]")


@dataclass(frozen=True)
class Case:
    """One loader: its settings, its batch, and how many images an epoch has where they are made for it."""

    title: str
    settings: tuple[str, ...]
    batch: int
    images: int = 0


CASES = {
    "digits": Case(
        "digits, 8 x 8, padded crop",
        ("DATA.DATASET", "digits", *_SMALL, "AUG.AUTO_AUGMENT", "none", "AUG.COLOR_JITTER", "0.0"),
        batch=128,
    ),
    "photographs": Case("photographs, 224 x 224, ImageNet recipe", ("DATA.DATASET", "imagenet"), batch=32, images=192),
}


@dataclass(frozen=True)
class Measured:
    """What an epoch of each loop took, by turns: (wall seconds, seconds of the processor); and what an epoch holds."""

    ours: list[tuple[float, float]]
    bare: list[tuple[float, float]]
    images: int
    steps: int

    def medians(self, clock: int) -> tuple[float, float]:
        """Return the median seconds of our loop and of the bare one; clock 0 is the wall's, 1 the processor's."""
        ours, bare = (statistics.median(turn[clock] for turn in turns) for turns in (self.ours, self.bare))
        return ours, bare

    def row(self, title: str) -> str:
        """Return the line of the table: images per second of both, their ratio, that by processor time, one step."""
        (ours, bare), (our_cpu, bare_cpu) = self.medians(0), self.medians(1)
        rates = f"{self.images / ours:>9.0f} {self.images / bare:>9.0f} {bare / ours:>7.3f}"
        return f"{title:<40} {rates} {bare_cpu / our_cpu:>9.3f} {1e6 * (our_cpu - bare_cpu) / self.steps:>7.0f} us"


def one_layer(config: CfgNode) -> nn.Module:
    """Return a linear classifier of the configured images."""
    height, width = image_size(config)
    return nn.Sequential(nn.Flatten(), nn.Linear(input_channels(config) * height * width, config.MODEL.NUM_CLASSES))


def bare_epoch(
    network: nn.Module, batches: Batches, optimizer: torch.optim.Optimizer, criterion: nn.Module, device: torch.device
) -> None:
    """Train one epoch as a tutorial does."""
    network.train()
    for images, labels in batches:
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        optimizer.zero_grad()
        criterion(network(images), labels).backward()
        optimizer.step()


def measure(case: Case, device: torch.device, workers: int, repeats: int) -> Measured:
    """Return the seconds of `repeats` epochs of each loop, by turns, after one of each."""
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        folder = Path(name)
        settings = [*case.settings, *_PLAIN, "DATA.NUM_WORKERS", str(workers), "DATA.BATCH_SIZE", str(case.batch)]
        if case.images:
            write_photographs(folder, case.images, 6)
            settings += ["DATA.DATA_PATH", str(folder)]
        config, stated = load_config(opts=settings)
        world = World(device=device)
        data = build_data(config, stated, world)
        console = Console(file=io.StringIO())
        logger = create_logger("overhead", 0, folder, console)
        try:
            ours, bare = _loops(config, data, world, logger, console)
            seconds: tuple[list[tuple[float, float]], list[tuple[float, float]]] = ([], [])
            for turn in range(repeats + 1):
                order = (0, 1) if turn % 2 else (1, 0)
                for which in order:
                    seconds[which].append(_timed((ours, bare)[which], turn, device))
        finally:
            close_logger(logger)
    assert data.train is not None
    steps = len(data.train)
    return Measured(seconds[0][1:], seconds[1][1:], steps * case.batch, steps)


def _loops(config: CfgNode, data: Data, world: World, logger, console: Console) -> tuple[Callable, Callable]:
    """Return our epoch and the bare one, as functions of the epoch's number."""
    assert data.train is not None
    batches = data.train
    seed_everything(0)
    trainer = build_trainer(config, one_layer(config).to(world.device), data, world, logger)
    bar = Bar(console, total=len(batches), done=0, visible=True)
    network = one_layer(config).to(world.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)

    def bare(epoch: int) -> None:
        batches.sampler.set_epoch(epoch)
        bare_epoch(network, batches, optimizer, trainer.criterion, world.device)

    return lambda epoch: our_epoch(trainer, batches, epoch, bar), bare


def our_epoch(trainer: Trainer, batches: Batches, epoch: int, bar: Bar) -> None:
    """Train one epoch as the trainer does."""
    trainer.so_far = EpochSoFar()
    train_one_epoch(trainer, batches, epoch, bar.step)


def _timed(epoch: Callable[[int], None], number: int, device: torch.device) -> tuple[float, float]:
    start = time.perf_counter(), time.process_time()
    epoch(number)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start[0], time.process_time() - start[1]


@exit_on_user_error
def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    parser = Parser(prog="python -m classification.overhead", description=__doc__)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="loader processes (default 0: in the loop)")
    parser.add_argument("--repeats", type=int, default=9, metavar="N", help="epochs of each loop (default 9)")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES), help="which loaders")
    options = parser.parse(argv)
    device = choose_device(options.device)
    print(f"{device}, {options.workers} loader processes, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"{'images a second, one layer':<40} {'ours':>9} {'bare':>9} {'ratio':>7} {'processor':>9} {'a step':>10}")
    for name in options.cases:
        found = measure(CASES[name], device, options.workers, options.repeats)
        print(found.row(CASES[name].title))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
