"""Whether two runs have ended alike: state, best weights, and the figures of all epochs."""

from __future__ import annotations

from pathlib import Path

import torch

from classification.records import read_metrics
from vmamba.weights import load_checkpoint

STATE = (
    "model", "model_ema", "optimizer", "lr_scheduler", "scaler", "rng", "so_far", "layout", "nonfinite_in_a_row",
    "max_accuracy", "max_accuracy_ema", "best_is_ema", "epoch",
)  # fmt: skip
BEST = ("model", "weights", "epoch", "max_accuracy", "max_accuracy_ema")
_TIMES = ("seconds", "images_per_second")


def states_equal(a, b) -> bool:
    """Return True when two trees of tensors and plain values are equal, bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(states_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(states_equal, a, b))
    return a == b


def differences(whole: Path, broken: Path) -> list[str]:
    """Return what differs between the ends of two run folders, times aside; empty when nothing does."""
    found = []
    for file, keys in (("last.pth", STATE), ("best.pth", BEST)):
        states = [load_checkpoint(folder / file) for folder in (whole, broken)]
        found += [f"{file} {key}" for key in keys if not states_equal(states[0][key], states[1][key])]
    tables = [read_metrics(folder / "metrics.csv") for folder in (whole, broken)]
    timeless = [[{k: v for k, v in row.items() if k not in _TIMES} for row in rows] for rows in tables]
    return found if timeless[0] == timeless[1] and timeless[0] else [*found, "metrics.csv"]
