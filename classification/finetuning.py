"""Weights of another training, into this run's network."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from torch import Tensor, nn
from yacs.config import CfgNode

from classification.world import World
from vmamba.errors import UserError
from vmamba.weights import LoadReport, WeightsDoNotFit, load_weights, weights_folder
from vmamba.weights.fetching import download
from vmamba.weights.loading import find_weights


class DoNotFit(UserError):
    """Weights that do not fit: one line, and `table`, which names the keys."""

    def __init__(self, message: str, table: str) -> None:
        super().__init__(message)
        self.table = table


def fill(
    network: nn.Module,
    payload: Mapping[str, Any],
    path: str,
    *,
    entry: str | None = None,
    prefer_ema: bool = False,
    allow_head_mismatch: bool = False,
) -> LoadReport:
    """Fill `network` with the weights of a checkpoint, strictly, and return the `LoadReport`.

    Position embeddings and windows of another image size are resized: by the network itself, or by timm's filter of its
    family. With `allow_head_mismatch` the last layer may have another number of classes, and starts afresh. What
    ``MODEL.HEAD_NORM`` adds may be missing. Raises `DoNotFit`, where something else differs.
    """
    filtered = _through_timm(network, payload, path, entry, prefer_ema)
    try:
        return load_weights(
            network,
            payload if filtered is None else {"model": filtered},
            entry=entry if filtered is None else "model",
            prefer_ema=prefer_ema,
            allow_head_mismatch=allow_head_mismatch,
            quiet=True,
            source_name=path,
        )
    except WeightsDoNotFit as error:
        raise DoNotFit(str(error), f"{path} does not fit the model:\n{error.report.table()}") from None


def fetch_weights(config: CfgNode, world: World) -> None:
    """Download ``MODEL.PRETRAINED``, ``MODEL.RESUME`` and the teacher where they are addresses, once on each machine.

    The keys then name the files, which are kept beside the released weights (`weights_folder`).
    """
    for node, key in ((config.MODEL, "PRETRAINED"), (config.MODEL, "RESUME"), (config.DISTILL, "TEACHER_PATH")):
        if key == "TEACHER_PATH" and config.EVAL_MODE:
            continue
        if node[key].startswith(("http://", "https://")):
            world.once_per_machine(partial(_fetched, node[key]))
            node[key] = _fetched(node[key])


def _fetched(url: str) -> str:
    name = Path(urlsplit(url).path).name
    if not name:
        raise UserError(f"{url} names no file; give the address of the weights themselves")
    path = weights_folder() / hashlib.sha256(url.encode()).hexdigest()[:8] / name
    if not path.exists():
        download(url, path)
    return str(path)


def _through_timm(
    network: nn.Module, payload: Mapping[str, Any], path: str, entry: str | None, prefer_ema: bool
) -> dict[str, Tensor] | None:
    """Return the weights as timm's filter of the network's family gives them; None where there is no such filter."""
    family = type(network).__module__
    convert = getattr(sys.modules[family], "checkpoint_filter_fn", None) if family.startswith("timm.") else None
    if convert is None:
        return None
    state = find_weights(network, payload, entry=entry, prefer_ema=prefer_ema, name=path).state
    return dict(convert(dict(state), network))
