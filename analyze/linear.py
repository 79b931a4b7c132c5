"""A linear classifier on features: SGD with momentum over a cosine schedule, on whatever device they are on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# By the side of the images, as published for VMamba's probes.
LEARNING_RATES = {224: 0.05, 288: 0.05, 384: 0.05, 512: 0.2, 640: 0.5, 768: 0.5, 1024: 0.5}
EPOCHS, BATCH = 30, 4096


@dataclass(frozen=True)
class Probe:
    """Top-1 accuracy in percent before the training (None for a fresh head), and after each of its epochs."""

    before: float | None
    scores: list[float]

    @property
    def last(self) -> float:
        """The accuracy at the end."""
        return self.scores[-1]

    @property
    def best(self) -> float:
        """The best accuracy of any epoch."""
        return max(self.scores)


def learning_rate(side: int) -> float:
    """Return the published rate for images of a side, that of the nearest where it is not in the table."""
    return LEARNING_RATES[min(LEARNING_RATES, key=lambda known: (abs(known - side), known))]


def train_probe(
    train: tuple[Tensor, Tensor],
    held_out: tuple[Tensor, Tensor],
    classes: int,
    rate: float,
    head: nn.Linear | None = None,
    epochs: int = EPOCHS,
    batch: int = BATCH,
    seed: int = 0,
) -> tuple[Probe, nn.Linear]:
    """Return the accuracy of a linear classifier on features [n, C] with labels [n], and the classifier.

    It starts from `head` where one is given that has these classes, else from zeros.
    """
    features, labels = train
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(features.shape[1], classes).to(features)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    started = head is not None and tuple(head.weight.shape) == tuple(linear.weight.shape)
    if started:
        assert head is not None
        linear.load_state_dict({"weight": head.weight, "bias": linear.bias if head.bias is None else head.bias})
    before = top1_of(linear, held_out) if started else None
    optimizer = torch.optim.SGD(linear.parameters(), lr=rate, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    scores = []
    for _ in range(epochs):
        order = torch.randperm(len(labels), generator=generator).to(features.device)
        for part in order.split(batch):
            optimizer.zero_grad()
            F.cross_entropy(linear(features[part]), labels[part]).backward()
            optimizer.step()
        schedule.step()
        scores.append(top1_of(linear, held_out))
    return Probe(before, scores), linear


@torch.no_grad()
def top1_of(linear: nn.Linear, data: tuple[Tensor, Tensor]) -> float:
    """Return the top-1 accuracy of a classifier on (features, labels), in percent."""
    features, labels = data
    return 100 * float((linear(features).argmax(1) == labels).double().mean())
