"""A few training steps under torch's profiler: what they spend their time and memory on."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from classification.world import World
from vmamba.weights import write_bytes, write_text

PROFILE = "profile"
TRACE, OPERATORS, MEMORY, SNAPSHOT = "trace.json.gz", "operators.txt", "memory.txt", "memory_snapshot.pickle"
# The first steps allocate, compile and fill caches: they are no picture of the others.
SKIPPED, WARM_UP = 3, 1
_ROWS, _MEMORY_EVENTS = 40, 200_000


class StepProfile:
    """Traces `steps` training steps of the first process into ``profile/`` of the run folder, then is done; 0: nothing.

    `step` is called after each training step, and hands its text on to `then`. ``trace.json.gz`` opens in
    https://ui.perfetto.dev and chrome://tracing; ``memory_snapshot.pickle``, on a GPU, in
    https://pytorch.org/memory_viz.
    """

    def __init__(
        self, steps: int, folder: Path, world: World, logger: logging.Logger, then: Callable[[str], None]
    ) -> None:
        self._steps, self._folder, self._logger, self._then = steps, folder, logger, then
        self._cuda = world.device.type == "cuda"
        self._profile: profile | None = None
        self._seen = 0
        if steps > 0 and world.first:
            self._profile = profile(
                activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._cuda else [])],
                schedule=schedule(wait=SKIPPED, warmup=WARM_UP, active=steps, repeat=1),
                on_trace_ready=self._write,
                record_shapes=True,
                profile_memory=True,
                acc_events=True,
            )

    def __enter__(self) -> StepProfile:
        if self._profile is not None:
            if self._cuda:
                torch.cuda.memory._record_memory_history(max_entries=_MEMORY_EVENTS)
            self._profile.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._profile is not None:
            least = SKIPPED + WARM_UP + 1
            self._finish()
            if self._seen < least:
                self._logger.warning(f"no profile: the run ended after {self._seen} steps, and it takes {least}")

    def step(self, text: str) -> None:
        """Count one training step; after the last one that was asked for, write and stop."""
        self._then(text)
        if self._profile is None:
            return
        self._seen += 1
        self._profile.step()
        if self._seen == SKIPPED + WARM_UP + self._steps:
            self._finish()

    def _finish(self) -> None:
        assert self._profile is not None
        found, self._profile = self._profile, None
        found.stop()
        if self._cuda:
            torch.cuda.memory._record_memory_history(enabled=None)

    def _write(self, found: profile) -> None:
        """Write all files; a disk that refuses costs a warning."""
        target = self._folder / PROFILE
        temporary = self._folder / f".profile.tmp-{os.getpid()}.json.gz"
        clock, memory = ("self_device_time_total", "self_device_memory_usage") if self._cuda else (
            "self_cpu_time_total", "self_cpu_memory_usage")  # fmt: skip
        try:
            target.mkdir(exist_ok=True)
            found.export_chrome_trace(str(temporary))
            write_bytes(target / TRACE, temporary.read_bytes())
            for name, order in ((OPERATORS, clock), (MEMORY, memory)):
                write_text(target / name, found.key_averages().table(sort_by=order, row_limit=_ROWS) + "\n")
            if self._cuda:
                torch.cuda.memory._dump_snapshot(str(temporary))
                write_bytes(target / SNAPSHOT, temporary.read_bytes())
        except (OSError, ValueError) as error:
            self._logger.warning(f"the profile cannot be written: {error}; the run goes on without it")
            return
        finally:
            temporary.unlink(missing_ok=True)
        self._logger.info(f"profile    {target}: {TRACE} for https://ui.perfetto.dev, {OPERATORS}, {MEMORY}")
