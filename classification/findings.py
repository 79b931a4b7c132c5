"""What an evaluation finds beyond its score: figures per class, who is taken for whom, and the worst predictions."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from classification.world import World

WORST = 25
# Beyond this many classes the square of their number is no table for a reader, and gigabytes of memory.
MOST_CLASSES_FOR_CONFUSION = 2000


@dataclass(frozen=True)
class Prediction:
    """One image, the `position`-th of its process, and what the network said; `image` is its input [C, H, W], uint8.

    `name` is there once all processes are gathered.
    """

    loss: float
    label: int
    predicted: int
    probability: float
    position: int
    image: Tensor
    name: str = ""


@dataclass(frozen=True)
class ClassFigures:
    """One class: percentages over its `images`, mean loss, and the class for which its images are most often taken."""

    name: str
    images: int
    acc1: float
    acc5: float
    precision: float
    f1: float
    loss: float
    taken_for: str
    taken_for_images: int


class Findings:
    """Collects over the batches of one evaluation; `gather` makes it those of all processes.

    `name_of` names the image at a position of this process's part, when all is gathered; `mean` and `std` are those of
    the normalisation, which the pictures undo.
    """

    def __init__(
        self, classes: Sequence[str], mean: Sequence[float], std: Sequence[float], name_of: Callable[[int], str]
    ) -> None:
        self.classes = list(classes)
        self.worst: list[Prediction] = []
        count = len(self.classes)
        self.confusion: Tensor | None = None
        if count <= MOST_CLASSES_FOR_CONFUSION:
            self.confusion = torch.zeros(count, count, dtype=torch.int64)
        # images, right at first guess, right within five, summed loss, times predicted
        self._sums = torch.zeros(count, 5, dtype=torch.float64)
        self._mean, self._std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
        self._name_of, self._seen = name_of, 0

    def observe(self, images: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Take in a batch: images [B, C, H, W], float32 logits [B, classes], labels [B]."""
        losses = cross_entropy(logits, labels, reduction="none")
        guesses = logits.topk(min(5, logits.shape[1]), dim=1).indices
        self._keep_worst(images, logits, labels, losses)
        labels, guesses, losses = labels.cpu(), guesses.cpu(), losses.double().cpu()
        predicted, hits = guesses[:, 0], guesses == labels[:, None]
        columns = (torch.ones(len(labels)), hits[:, 0], hits.any(dim=1), losses)
        each = torch.stack([column.double() for column in columns], dim=1)
        self._sums[:, :4].index_add_(0, labels, each)
        self._sums[:, 4] += torch.bincount(predicted, minlength=len(self.classes))
        if self.confusion is not None:
            pairs = labels * len(self.classes) + predicted
            self.confusion += torch.bincount(pairs, minlength=self.confusion.numel()).view_as(self.confusion)
        self._seen += len(labels)

    def gather(self, world: World) -> None:
        """Add up what all processes found; the worst predictions are then the worst of all."""
        self._sums = world.sum(self._sums)
        if self.confusion is not None:
            self.confusion = world.sum(self.confusion)
        # first the losses alone: the images of hundreds of processes would be gigabytes on each of them
        losses = [loss for part in world.gather([found.loss for found in self.worst]) for loss in part]
        bound = min(heapq.nlargest(WORST, losses), default=0.0)
        mine = [found for found in self.worst if found.loss >= bound]
        parts = world.gather([replace(found, name=self._name_of(found.position)) for found in mine])
        everyone = [found for part in parts for found in part]
        self.worst = heapq.nlargest(WORST, everyone, key=lambda found: found.loss)

    def per_class(self) -> Iterator[ClassFigures]:
        """Yield the figures of each class; those of a class without images are NaN."""
        for number, (images, right, right5, loss, predicted) in enumerate(self._sums.tolist()):
            other, times = self._taken_for(number)
            yield ClassFigures(
                name=self.classes[number],
                images=int(images),
                acc1=100 * _share(right, images),
                acc5=100 * _share(right5, images),
                precision=100 * _share(right, predicted),
                f1=100 * _share(2 * right, images + predicted),
                loss=_share(loss, images),
                taken_for=other,
                taken_for_images=times,
            )

    def _taken_for(self, number: int) -> tuple[str, int]:
        if self.confusion is None:
            return "", 0
        row = self.confusion[number].clone()
        row[number] = 0
        other = int(row.argmax())
        return (self.classes[other], int(row[other])) if row[other] else ("", 0)

    def _keep_worst(self, images: Tensor, logits: Tensor, labels: Tensor, losses: Tensor) -> None:
        bound = self.worst[-1].loss if len(self.worst) == WORST else float("-inf")
        values, places = losses.topk(min(WORST, len(losses)))
        places = places[values > bound]
        if len(places) == 0:
            return
        probabilities, predicted = logits[places].softmax(dim=1).max(dim=1)
        pixels = (images[places].float().cpu() * self._std + self._mean).clamp(0, 1).mul(255).round().byte()
        columns = (losses[places], labels[places], predicted, probabilities, places)
        rows = zip(*(column.tolist() for column in columns), pixels)
        found = [
            Prediction(loss, label, guess, probability, self._seen + place, image.clone())
            for loss, label, guess, probability, place, image in rows
        ]
        self.worst = heapq.nlargest(WORST, [*self.worst, *found], key=lambda item: item.loss)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
