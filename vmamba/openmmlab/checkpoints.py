"""Checkpoints of mmengine, read without unsafe pickles on every torch.

Since 2.6 torch refuses what mmengine writes beside its weights: numpy arrays, and the history of each logged value,
which pickles functions. `vmamba.weights` reads such files with inert stand-ins for those classes, for the time of the
reading only, and the histories are then made anew from their numbers.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from vmamba.weights import find_state_dict, load_checkpoint


def read_with_ours() -> None:
    """Make mmengine read local checkpoints with `load_from_file`, in runners and everywhere else."""
    CheckpointLoader.register_scheme(prefixes="", loader=load_from_file, force=True)


def load_from_file(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Return the content of a checkpoint as mmengine wrote it, or of any other that `vmamba.weights` reads.

    Raises `CheckpointError`, one line, for a file that is missing, damaged, or wants to run code.
    """
    payload = load_checkpoint(Path(os.path.expanduser(filename)), map_location)
    if "state_dict" not in payload:  # a published file, whose weights mmengine would not find
        payload["state_dict"] = find_state_dict(payload, name=filename)
    hub = payload.get("message_hub")
    scalars = hub.get("log_scalars") if isinstance(hub, dict) else None
    if isinstance(scalars, dict):
        for name, history in scalars.items():
            if isinstance(history, dict) and "_log_history" in history:
                scalars[name] = _history(history)
    return payload


def _history(plain: dict[str, Any]) -> HistoryBuffer:
    """Return the history with the numbers of a pickled one."""
    return HistoryBuffer(plain["_log_history"], plain["_count_history"], plain["max_length"])
