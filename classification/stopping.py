"""Signals that end a run: noticed by one process, agreed by all, obeyed at the next update, answered by an exit code.

===================  ==============================================  =========
signal               what happens                                    exit code
===================  ==============================================  =========
SIGTERM              one checkpoint, end                             143
SIGINT (Ctrl-C)      one checkpoint, end                             130
SIGINT again         the end at once, without a checkpoint           130
SIGHUP               one checkpoint, end (unless under ``nohup``)    129
SIGUSR1, SIGUSR2     one checkpoint, end: start the run again        75
===================  ==============================================  =========
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

import torch

from classification.world import World

REQUEUE = 75  # EX_TEMPFAIL: the same command, started again, goes on
# By weight: a scheduler that preempts may send SIGTERM as well, and "start me again" must survive it.
_ASK = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
# A launcher and the terminal may both deliver one key press.
_SAME_PRESS = 0.5
_OVER = b"\0"


class Interrupted(Exception):
    """All processes have agreed to end on a signal; `code` is the exit code for it."""

    def __init__(self, signum: signal.Signals) -> None:
        super().__init__(signum.name)
        self.code = REQUEUE if signum in (signal.SIGUSR1, signal.SIGUSR2) else 128 + signum


class Stopping:
    """Notes signals while it is entered.

    `requested` goes into an agreement that the processes have anyway, its answer becomes `agreed`, and `obey` raises
    where the run can end. Handlers set a number and nothing else, so no signal can break a save or a collective.
    Outside the main thread there are no handlers, and nothing is requested.
    """

    def __init__(self) -> None:
        self.agreed = 0
        self._received = 0
        self._before: dict[int, Any] = {}
        self._parent: int | None = None
        self._bell: int | None = None

    def __enter__(self) -> Stopping:
        if threading.current_thread() is not threading.main_thread():
            return self
        if "TORCHELASTIC_RUN_ID" in os.environ:
            self._parent = os.getppid()
        for signum in _ASK:
            # nohup has the run ignore SIGHUP; the others are ignored only where a shell put it in the background
            if not (signum == signal.SIGHUP and signal.getsignal(signum) == signal.SIG_IGN):
                self._before[signum] = signal.signal(signum, self._note)
        listen, self._bell = os.pipe()
        os.set_blocking(self._bell, False)
        signal.set_wakeup_fd(self._bell, warn_on_full_buffer=False)
        threading.Thread(target=_end_at_second_interrupt, args=(listen,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bell is not None:
            signal.set_wakeup_fd(-1)
            os.write(self._bell, _OVER)
            os.close(self._bell)
            self._bell = None
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        late = _ASK[self._received - 1] if self._received > self.agreed > 0 else None
        handler = self._before.get(late) if late in (signal.SIGUSR1, signal.SIGUSR2) else None
        self._before.clear()
        if late is not None and callable(handler):  # a cluster's: it came after the end had been agreed
            signal.raise_signal(late)

    @property
    def requested(self) -> int:
        """The weight of what this process was sent, 0 without a signal; of SIGTERM where torchrun itself has died."""
        if not self._received and self._parent is not None and os.getppid() != self._parent:
            self._note(signal.SIGTERM)
        return self._received

    def check(self, world: World) -> None:
        """Raise `Interrupted` on all processes when one of them was sent a signal; all must call this together."""
        self.agreed = int(world.highest(torch.full((1,), float(self.requested), device=world.device))[0])
        self.obey()

    def obey(self) -> None:
        """Raise `Interrupted` when the processes have agreed to end."""
        if self.agreed:
            raise Interrupted(_ASK[self.agreed - 1])

    def _note(self, signum: int, _: FrameType | None = None) -> None:
        self._received = max(self._received, 1 + _ASK.index(signal.Signals(signum)))


def _end_at_second_interrupt(listen: int) -> None:
    """End the process at a SIGINT or SIGTERM that follows a SIGINT, even while the main thread waits in native code.

    torchrun answers the second Ctrl-C with a SIGTERM to its processes.
    """
    first: float | None = None
    while (signum := os.read(listen, 1)) != _OVER:
        now = time.monotonic()
        if first is not None and signum[0] in (signal.SIGINT, signal.SIGTERM) and now - first > _SAME_PRESS:
            os._exit(128 + signal.SIGINT)
        if first is None and signum[0] == signal.SIGINT:
            first = now
    os.close(listen)


def leave_signals_to_the_main_process(_: int = 0) -> None:
    """Take a loader's worker out of the process group that torchrun and the terminal signal; for ``worker_init_fn``.

    Its death would raise in the main process before the checkpoint is written. It ends with the main process anyway.
    """
    os.setpgrp()
    signal.set_wakeup_fd(-1)
    for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_IGN)
