"""The file that `pretrained` of a backbone names."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from urllib.parse import unquote, urlparse

from mmengine.dist import barrier, get_rank

from vmamba.errors import UserError
from vmamba.models import short_name
from vmamba.weights import fetch_pretrained, weights_folder
from vmamba.weights.fetching import download


def weights_file(pretrained: str) -> Path:
    """Return the file of `pretrained`: a path, an address, or a model's name, whose released weights are meant.

    The published long names and timm's tags are names too. What is not there is fetched, by the first process before
    the others. Raises `UserError` for an empty name and `CheckpointError` for what cannot be fetched; whether a path
    exists is seen when it is read.
    """
    if not pretrained:
        raise UserError(
            "pretrained: it is empty; name a checkpoint or a released model such as 'vmamba_tiny_s1l8', "
            "or write None to start from scratch"
        )
    if get_rank() > 0:
        barrier()
        return _located(pretrained)
    path = _located(pretrained)
    barrier()
    return path


def _located(pretrained: str) -> Path:
    short = short_name(pretrained)
    if short is not None:
        return fetch_pretrained(short)
    if not pretrained.startswith(("http://", "https://")):
        return Path(os.path.expanduser(pretrained))
    named = Path(unquote(urlparse(pretrained).path)).name
    path = weights_folder() / f"{hashlib.sha256(pretrained.encode()).hexdigest()[:12]}-{named}"
    if not path.exists():
        download(pretrained, path)
    return path
