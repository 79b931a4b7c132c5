"""Checkpoints: written atomically, verified when read, loaded into a model with a strict report.

A folder of checkpoints looks like this::

    ckpt_epoch_3.pth  ckpt_epoch_4.pth  best.pth  last.pth
    manifest.json     sha256, size and epoch of each file above

Nothing is ever unpickled without ``weights_only=True``. ``python -m vmamba.weights`` inspects, converts and publishes.
"""

from vmamba.weights.contents import find_state_dict
from vmamba.weights.fetching import fetch_pretrained, weights_folder
from vmamba.weights.files import (
    adopt_checkpoint,
    drop_checkpoint,
    link_checkpoint,
    newest_good_checkpoint,
    remove_leftovers,
    save_checkpoint,
    set_aside,
    write_bytes,
    write_text,
)
from vmamba.weights.loading import fit_weights, load_weights
from vmamba.weights.manifest import CheckpointError, verify
from vmamba.weights.reading import load_checkpoint
from vmamba.weights.released import RELEASED, Released
from vmamba.weights.report import LoadReport, WeightsDoNotFit

__all__ = [
    "RELEASED",
    "CheckpointError",
    "LoadReport",
    "Released",
    "WeightsDoNotFit",
    "adopt_checkpoint",
    "drop_checkpoint",
    "fetch_pretrained",
    "find_state_dict",
    "fit_weights",
    "link_checkpoint",
    "load_checkpoint",
    "load_weights",
    "newest_good_checkpoint",
    "remove_leftovers",
    "save_checkpoint",
    "set_aside",
    "verify",
    "weights_folder",
    "write_bytes",
    "write_text",
]
