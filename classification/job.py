"""One training as a job of a cluster: what each of its tasks runs, and how the job goes back into the queue.

submitit pickles a `Job` by its import name, so it lives apart from the command ``python -m classification.submit``.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from classification.stopping import REQUEUE
from vmamba.errors import exit_on_user_error

# Seconds in which a cluster ends the tasks of a job that it preempts, requeues or cancels.
_WAIT = 600


class Job:
    """Trains with `arguments`, those of ``python -m classification``, as one process among the tasks of the job.

    On the cluster's signal all processes write one checkpoint and end. Only then is submitit's own handler called,
    which puts the job back into the queue in the first task; started again, it goes on after that checkpoint. The other
    tasks then wait for the cluster to end them. So do all after a SIGTERM: it is the first word of a preemption, whose
    second queues the job again, or of a cancellation, which must not.
    """

    def __init__(self, arguments: list[str]) -> None:
        self.arguments = arguments

    def __call__(self) -> int:
        """Return 0 for a finished training; `RuntimeError` for any other end."""
        import submitit.helpers

        from classification.main import main

        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        code = exit_on_user_error(main)(self.arguments)
        preemption = getattr(signal, f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}")
        if callable(signal.getsignal(preemption)):
            if code == REQUEUE:
                signal.raise_signal(preemption)
            if code in (REQUEUE, 128 + signal.SIGTERM):
                time.sleep(_WAIT)
        if code:
            raise RuntimeError(f"the training ended with exit code {code}; its log says why")
        return code

    def checkpoint(self) -> Any:
        """Return what submitit starts when the job runs again: the same, which finds its checkpoint by itself."""
        import submitit.helpers

        return submitit.helpers.DelayedSubmission(Job(self.arguments))
