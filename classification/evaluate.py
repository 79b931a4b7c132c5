"""Exact accuracy: counts summed over all processes, every image once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from classification.data import Batches
from classification.findings import Findings
from classification.meters import Clock, Meter, memory_megabytes
from classification.precision import Precision
from classification.world import World
from vmamba.errors import UserError


@dataclass(frozen=True)
class Score:
    """Percentages over `images` images, and the mean loss."""

    top1: float
    top5: float
    loss: float
    images: int

    @property
    def merit(self) -> float:
        """The accuracy at the first guess."""
        return self.top1


@torch.no_grad()
def evaluate(
    network: nn.Module,
    batches: Batches,
    precision: Precision,
    world: World,
    logger: logging.Logger,
    print_freq: int = 10,
    on_counted: Callable[[], None] = lambda: None,
    findings: Findings | None = None,
) -> Score:
    """Return the `Score` of `network`, the same on every process.

    With fewer than five classes, top-5 counts all of them. The network is left in evaluation mode. `on_counted` is
    called when all processes have counted their images, and may raise: where the batches of one were cut short.
    `findings` takes in every batch of this process.
    """
    network.eval()
    world.sync_buffers(network)
    totals = torch.zeros(4, dtype=torch.float64)
    clock, times = Clock(), Meter()
    losses, first, five = Meter(), Meter(), Meter()
    for step, (images, labels) in enumerate(batches):
        images, labels = (t.to(world.device, non_blocking=True) for t in (images, labels))
        with precision.autocast():
            logits = network(images)
        counts = _counts(logits.float(), labels)
        totals += counts
        if findings is not None:
            findings.observe(images, logits.float(), labels)
        for meter, value, factor in zip((first, five, losses), counts.tolist(), (100, 100, 1)):
            meter.update(factor * value / len(labels), len(labels))
        times.update(clock.lap())
        if step % print_freq == 0:
            logger.info(
                f"Test: [{step}/{len(batches)}]\t"
                f"Time {times.text(3)}\tLoss {losses.text()}\tAcc@1 {first.text(3)}\tAcc@5 {five.text(3)}\t"
                f"Mem {memory_megabytes(world.device):.0f}MB"
            )
    totals = world.sum(totals.to(world.device)).cpu()
    on_counted()
    right1, right5, loss, images_seen = totals.tolist()
    if not images_seen:
        raise UserError("no held-out image could be read; bad_samples.txt in the run folder names them")
    score = Score(100 * right1 / images_seen, 100 * right5 / images_seen, loss / images_seen, int(images_seen))
    logger.info(f" * Acc@1 {score.top1:.3f} Acc@5 {score.top5:.3f}")
    return score


def _counts(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return (right at first guess, right within five, summed loss, images) of a batch, float64 [4]."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = best == labels[:, None]
    loss = cross_entropy(logits, labels, reduction="sum")
    values = (hits[:, 0].sum(), hits.any(dim=1).sum(), loss, torch.tensor(len(labels)))
    return torch.stack([value.double().cpu() for value in values])
