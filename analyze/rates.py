"""Images per second, latency and peak memory of networks in turn, the batch halved where memory runs out."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from vmamba.errors import OutOfMemory
from vmamba.host_memory import allocated_by, living, out_of_memory
from vmamba.steps import Step, autocast, inference_step, seconds, synchronize, training_step

MIB = 2**20
MODES = ("inference", "training", "training-without-optimizer")
AMP = ("off", "bfloat16", "float16")
Size = tuple[int, int]


@dataclass(frozen=True)
class Protocol:
    """How a figure is taken: `warm_up` steps, then `turns` of `steps` steps, the networks by turns.

    `amp` is "off", "bfloat16" or "float16"; `layout` "channels_last" or "contiguous"; `compile` a mode of torch.compile
    or None; `sizes` of a training step are taken in turn where there are several.
    """

    mode: str = "inference"
    batch: int = 1
    sizes: tuple[Size, ...] = ((224, 224),)
    amp: str = "off"
    layout: str = "contiguous"
    compile: str | None = None
    warm_up: int = 2
    turns: int = 5
    steps: int = 1

    def described(self) -> str:
        """Return the method in a sentence."""
        precision = "float32" if self.amp == "off" else f"autocast {self.amp} over float32 weights"
        tf32 = "on" if torch.backends.cuda.matmul.allow_tf32 else "off"
        compiled = "eager" if self.compile is None else f"torch.compile, mode {self.compile}"
        return (
            f"random images, {precision}, TF32 {tf32}, {self.layout}, {compiled}; the device is synchronised before "
            f"the clock starts and before it stops; {self.warm_up} warm-up steps, then {self.turns} turns of "
            f"{self.steps} steps, the networks by turns; median over the turns, with the least and the most; "
            "training is forward, cross entropy, backward, and AdamW unless left out"
        )


@dataclass(frozen=True)
class Rate:
    """Images per second of one network, at the batch that fitted, the time of a step, and its peak memory in MiB."""

    batch: int
    median: float
    least: float
    most: float
    milliseconds: float
    memory: float | None
    halved: bool = False


@dataclass
class _Runner:
    """A network's warm step at a batch that fits, its peak memory, and the seconds of a step in each turn so far."""

    step: Step
    batch: int
    memory: float | None
    taken: list[float] = field(default_factory=list)


def step_of(network: nn.Module, protocol: Protocol, device: torch.device, channels: int) -> tuple[Step, Tensor]:
    """Return a step of a network by a protocol, not warm, and the images of its first batch.

    What is trained, or stored otherwise, is a copy.
    """
    layout = torch.channels_last if protocol.layout == "channels_last" else torch.contiguous_format
    if protocol.mode != "inference" or protocol.layout == "channels_last":
        network = copy.deepcopy(network).to(memory_format=layout)  # type: ignore[call-overload]
    batches = [
        torch.randn(protocol.batch, channels, *size, device=device).contiguous(memory_format=layout)
        for size in protocol.sizes
    ]
    run: Any = network if protocol.compile is None else torch.compile(network, mode=protocol.compile)
    if protocol.mode == "inference":
        step = inference_step(run, batches[0])
    else:
        network.requires_grad_(True)
        step = training_step(run, batches, optimizer=protocol.mode == "training")
    if protocol.amp != "off":
        step = autocast(step, device.type, getattr(torch, protocol.amp))
    return step, batches[0]


def measure(
    networks: Mapping[str, nn.Module],
    protocol: Protocol,
    device: torch.device,
    channels: int = 3,
    now: Callable[[], float] = time.perf_counter,
    with_memory: bool = True,
) -> dict[str, Rate | str]:
    """Return the rate of each network by one protocol, or in words why there is none.

    A batch that does not fit into memory is halved until it does, in the warm-up and in any turn; the networks may so
    end at different batches. The turns of one whose batch was halved start anew, those of the others go on.
    """
    found: dict[str, Rate | str] = {}
    runners: dict[str, _Runner] = {}

    def enter(name: str, batch: int) -> None:
        try:
            runners[name] = _fitting(networks[name], protocol, batch, device, channels, with_memory)
        except (ValueError, RuntimeError, AssertionError) as error:
            found[name] = _in_words(error)

    for name in networks:
        enter(name, protocol.batch)
    while waiting := [name for name, runner in runners.items() if len(runner.taken) < protocol.turns]:
        for name in waiting:
            try:
                fitted = _takes_turn(runners[name], protocol, device, now)
            except (ValueError, RuntimeError, AssertionError) as error:
                found[name] = _in_words(error)
                del runners[name]
                continue
            if not fitted:
                enter(name, runners.pop(name).batch // 2)
    for name, runner in runners.items():
        batch = runner.batch
        speeds = [batch / t for t in runner.taken]
        middle = statistics.median(speeds)
        halved = batch != protocol.batch
        found[name] = Rate(batch, middle, min(speeds), max(speeds), 1e3 * batch / middle, runner.memory, halved)
    return {name: found[name] for name in networks}


def _in_words(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def _takes_turn(runner: _Runner, protocol: Protocol, device: torch.device, now: Callable[[], float]) -> bool:
    """Time one turn; return False where memory ran out in it."""
    try:
        runner.taken.append(seconds(runner.step, device, protocol.steps, now))
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return False
    return True


def _fitting(
    network: nn.Module, protocol: Protocol, batch: int, device: torch.device, channels: int, with_memory: bool
) -> _Runner:
    """A network ready for its turns, at `batch` or, halved and halved again, at the largest that fits."""
    while batch:
        if device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            step, images = step_of(network, replace(protocol, batch=batch), device, channels)
            for _ in range(protocol.warm_up):
                step()
            return _Runner(step, batch, _peak(step, network, images, protocol, device) if with_memory else None)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        # Here the error is gone, and with it the frames that held what had been allocated.
        batch //= 2
    sizes = ", ".join(f"{h}x{w}" for h, w in protocol.sizes)
    raise OutOfMemory(f"out of memory even for one image of {sizes}; give a smaller --size")


def _peak(step: Step, network: nn.Module, images: Tensor, protocol: Protocol, device: torch.device) -> float:
    """MiB of tensors at the peak of a step, with weights, what AdamW keeps, and the images of one batch."""
    most = 0
    for _ in protocol.sizes:
        if device.type == "cpu":
            most = max(most, allocated_by(step))
            continue
        synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)  # other networks' too
        step()
        synchronize(device)
        most = max(most, torch.cuda.max_memory_allocated(device) - before)
    copies = 2 if protocol.mode == "training" else 0
    return (most + living(network, copies, images)) / MIB


def rows_of(
    found: Mapping[str, Rate | str], protocol: Protocol, sizes: Sequence[Size] | None = None
) -> list[dict[str, Any]]:
    """Return the figures as rows of a table, one a network; the first is the yardstick."""
    text = ", ".join(f"{h}x{w}" for h, w in sizes or protocol.sizes)
    first = next((rate for rate in found.values() if isinstance(rate, Rate)), None)
    rows = []
    for name, rate in found.items():
        row: dict[str, Any] = {"model": name, "mode": protocol.mode, "amp": protocol.amp, "size": text}
        if isinstance(rate, str):
            rows.append(row | {"batch": protocol.batch, "images/s": None, "note": rate})
            continue
        assert first is not None
        row |= {"batch": rate.batch, "images/s": rate.median, "least": rate.least, "most": rate.most}
        row |= {"ms a step": rate.milliseconds, "peak MiB": rate.memory, "times the first": rate.median / first.median}
        row["note"] = f"batch halved from {protocol.batch}: out of memory" if rate.halved else ""
        rows.append(row)
    return rows
