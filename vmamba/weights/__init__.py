"""Checkpoints: written atomically, verified when read, loaded into a model with a strict report.

A folder of checkpoints looks like this::

    ckpt_epoch_3.pth  ckpt_epoch_4.pth  best.pth  last.pth
    manifest.json     sha256, size and epoch of each file above

Nothing is ever unpickled without ``weights_only=True``.
"""

from vmamba.weights.files import (
    drop_checkpoint,
    link_checkpoint,
    newest_good_checkpoint,
    remove_leftovers,
    save_checkpoint,
    write_text,
)
from vmamba.weights.loading import LoadReport, load_weights
from vmamba.weights.manifest import CheckpointError, verify
from vmamba.weights.reading import load_checkpoint

__all__ = [
    "CheckpointError",
    "LoadReport",
    "drop_checkpoint",
    "link_checkpoint",
    "load_checkpoint",
    "load_weights",
    "newest_good_checkpoint",
    "remove_leftovers",
    "save_checkpoint",
    "verify",
    "write_text",
]
