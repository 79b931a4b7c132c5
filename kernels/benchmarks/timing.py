"""How everything here is timed: the calls of one table take turns, and the figure is the median of their turns.

CPU: the wall clock around as many calls as a turn has time for. CUDA: events around each call, after a write over the
cache, so that its inputs come from memory; the GPU sleeps while the turn's calls are enqueued, so that the time is the
GPU's and not the interpreter's, which is measured apart.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Call = Callable[[], object]
TURNS = 5
LEAST_TURNS = 3  # of a call that takes longer than the time for its figure
CACHE_BYTES = 256 << 20  # more than the last cache of any GPU
CYCLES = 2.5e9  # of the GPU in a second, at least


@dataclass(frozen=True)
class Sample:
    """Seconds of one call: the median over its turns, the fastest and the slowest; `host` is what enqueuing took."""

    median: float
    fastest: float
    slowest: float
    calls: int
    host: float | None = None


class TooSlow(Exception):
    """A call that would take longer than its limit."""


class Clock:
    """Times calls on a device, each for about `seconds`; one that takes over `longest` is refused with TooSlow."""

    def __init__(self, device: str, seconds: float, longest: float) -> None:
        self.device, self.seconds, self.longest = torch.device(device), seconds, longest
        self.cuda = self.device.type == "cuda"
        self.scrub = torch.empty(CACHE_BYTES, dtype=torch.uint8, device=self.device) if self.cuda else None

    def method(self) -> str:
        """How the figures are taken, in a sentence."""
        how = "wall clock, inputs in whatever cache holds them"
        if self.cuda:
            how = f"CUDA events around single calls, {CACHE_BYTES >> 20} MiB written over the cache before each, "
            how += "enqueued while the GPU sleeps"
        return (
            f"{how}; 2 warm-up calls, then median (fastest to slowest) of {TURNS} turns, the contenders by turns, "
            f"about {self.seconds:g} s each; {LEAST_TURNS} turns if one call takes longer than that, and over "
            f"{self.longest:g} s it is skipped by name"
        )

    def synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def once(self, call: Call) -> float:
        """Wall seconds of one call, to its end."""
        self.synchronize()
        start = time.perf_counter()
        call()
        self.synchronize()
        return time.perf_counter() - start

    def warm_up(self, call: Call) -> float:
        """Wall seconds of the second call; TooSlow if it takes too long, or the first (it may compile) 4 times so."""
        took = self.once(call)
        if took > 4 * self.longest:
            raise TooSlow(f"the first call took {took:.0f} s")
        took = self.once(call)
        if took > self.longest:
            raise TooSlow(f"a call took {took:.0f} s")
        return took

    def by_turns(self, calls: Mapping[str, Call], each: Mapping[str, float]) -> dict[str, Sample]:
        """The sample of each of some warm calls, of which `each` says what one takes."""
        times: dict[str, list[float]] = {name: [] for name in calls}
        counts = dict.fromkeys(calls, 0)
        hosts: dict[str, float | None] = dict.fromkeys(calls)
        for turn in range(TURNS):
            for name, call in calls.items():
                if each[name] > self.seconds and turn >= LEAST_TURNS:
                    continue
                count = max(1, round(self.seconds / TURNS / max(each[name], 1e-6)))
                if self.cuda:
                    count = min(count, 50)
                    taken, hosts[name] = self._on_gpu(call, count)
                else:
                    taken = self._on_cpu(call, count)
                times[name].append(taken)
                counts[name] += count
        return {n: Sample(statistics.median(t), min(t), max(t), counts[n], hosts[n]) for n, t in times.items()}

    def _on_cpu(self, call: Call, count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            call()
        return (time.perf_counter() - start) / count

    def _on_gpu(self, call: Call, count: int) -> tuple[float, float]:
        """Median seconds of `count` calls on the GPU, and the seconds that the host took to enqueue one."""
        assert self.scrub is not None
        start = time.perf_counter()
        call()
        host = time.perf_counter() - start
        self.synchronize()
        pairs = [tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(count)]
        torch.cuda._sleep(int(CYCLES * min(1.0, host * count)))
        for before, after in pairs:
            self.scrub.zero_()
            before.record()
            call()
            after.record()
        self.synchronize()
        return statistics.median(before.elapsed_time(after) for before, after in pairs) / 1e3, host


def copy_call(device: torch.device | str, nbytes: int) -> Call:
    """A call that copies memory, reading and writing `nbytes` together."""
    source = torch.ones(max(1, nbytes // 2), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def copy_bandwidth(clock: Clock) -> float:
    """Bytes per second, read and written, of the best turn of copying 1 GiB on a GPU, 256 MiB on a CPU."""
    nbytes = (2 << 30) if clock.cuda else (512 << 20)
    copy = copy_call(clock.device, nbytes)
    return nbytes / clock.by_turns({"copy": copy}, {"copy": clock.warm_up(copy)})["copy"].fastest
