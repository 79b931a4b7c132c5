"""Reading a pickle of torch with stand-ins for the classes that hold settings: no code of the file runs."""

from __future__ import annotations

import re
import threading
import warnings
from pathlib import Path
from typing import Any

import torch

from vmamba.weights.manifest import CheckpointError, reading
from vmamba.weights.stand_ins import STAND_INS, plain

_LOCK = threading.Lock()  # the list of allowed names belongs to the process
_REFUSED = re.compile(r"GLOBAL (\S+)|reduce for unrecognized function (.+)")


def unpickle(path: Path, map_location: str | torch.device = "cpu") -> Any:
    """Return the plain content of a ``.pth`` file, zip or older pickle, read by torch's restricted unpickler.

    Raises `CheckpointError`, naming the global, for a pickle that wants anything but tensors, plain data and the
    classes that `stand_ins` knows; nothing is executed. Damaged bytes raise it too.
    """
    allowed: list[Any] = [(stand_in, name) for name, stand_in in STAND_INS.items()]
    try:
        with reading(path), _LOCK, torch.serialization.safe_globals(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of protocols and deprecated storages
            return plain(torch.load(path, map_location=map_location, weights_only=True))
    except CheckpointError:
        raise
    except Exception as error:  # damaged bytes make the unpickler raise anything
        raise CheckpointError(f"{path} {_reason(error, path)}") from None


def _reason(error: Exception, path: Path) -> str:
    named = _REFUSED.search(str(error))
    if named:
        wanted = named[1] or named[2]
        return (
            f"wants to run or build '{wanted}', which is neither a tensor nor a plain type: refused, nothing "
            "was executed; save the weights alone, as {'model': model.state_dict()}"
        )
    with reading(path), open(path, "rb") as file:
        start = file.read(8)
    return f"is not a readable checkpoint (it starts with {start!r}; {type(error).__name__})"
