"""How far a run is: the epochs behind it, and the part of the present one that is done."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from classification.meters import Meter


@dataclass
class Progress:
    """The next epoch and the best scores so far, 0 where there is none yet; those of an autoencoder may be negative."""

    epoch: int = 0
    max_accuracy: float = 0.0
    max_accuracy_ema: float = 0.0
    best_is_ema: bool = False

    @property
    def best(self) -> float:
        """The best score of either set of weights."""
        return max(filter(None, (self.max_accuracy, self.max_accuracy_ema)), default=0.0)

    def best_was(self, earlier: Progress) -> None:
        """Take back the scores of weights that could not be saved."""
        self.max_accuracy, self.max_accuracy_ema = earlier.max_accuracy, earlier.max_accuracy_ema
        self.best_is_ema = earlier.best_is_ema


@dataclass
class EpochSoFar:
    """The part of an epoch that one process has trained: `step` batches, what they added up to, and for how long.

    It changes at update boundaries in full, so a checkpoint there needs no gradients.
    """

    step: int = 0
    seen: int = 0
    seconds: float = 0.0
    lr: float = 0.0
    losses: Meter = field(default_factory=Meter)
    norms: Meter = field(default_factory=Meter)

    def state(self) -> dict[str, Any]:
        """Return it as plain data."""
        plain = {name: getattr(self, name) for name in ("step", "seen", "seconds", "lr")}
        return {**plain, "losses": vars(self.losses).copy(), "norms": vars(self.norms).copy()}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> EpochSoFar:
        """Return what `state` gave."""
        so_far = cls(int(state["step"]), int(state["seen"]), float(state["seconds"]), float(state["lr"]))
        vars(so_far.losses).update(state["losses"])
        vars(so_far.norms).update(state["norms"])
        return so_far


def updates_of(steps: int, accumulation: int) -> int:
    """Return the updates that so many steps of an epoch make; the last one may take fewer steps than the others."""
    return -(-steps // accumulation)


@dataclass(frozen=True)
class Layout:
    """How an epoch is cut into steps and updates; `seed`, `images` and `order` fix that of its images."""

    images: int
    images_per_step: int
    steps: int
    accumulation: int
    seed: int
    order: str = ""

    @property
    def updates(self) -> int:
        """Updates in an epoch."""
        return self.updates_at(self.steps)

    def updates_at(self, step: int) -> int:
        """Return the updates of this epoch that the first `step` steps hold."""
        return updates_of(step, self.accumulation)

    def step_after(self, step: int, old: Layout) -> int:
        """Return the step of this layout at which an epoch goes on of which `old` has trained `step` steps.

        The order of the images is the same for any batch size, accumulation and number of processes, so the place in it
        carries over, rounded down to an update: no image is left out, and less than one update's images are seen
        twice. Of another order (other images, seed, repeats) nothing carries over: 0.
        """
        if self == old:
            return step
        if (self.images, self.seed, self.order) != (old.images, old.seed, old.order):
            return 0
        if step >= old.steps:
            return self.steps
        reached = min(step * old.images_per_step // self.images_per_step, self.steps)
        return reached - reached % self.accumulation

    def state(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)
