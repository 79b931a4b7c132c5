"""Configuration files of OpenMMLab, read with their mistakes told in one line, and fitted to the machine."""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import Runner

from vmamba.errors import UserError, closest

# What a configuration may set at its top: the runner's arguments, and what runners and tools read beside them.
KNOWN = {name for name in inspect.signature(Runner.__init__).parameters if name not in ("self", "cfg")}
KNOWN |= {"custom_imports", "runner_type", "model_wrapper_cfg", "find_unused_parameters", "sync_bn"}
KNOWN |= {"tta_model", "tta_pipeline", "max_epochs", "train_pipeline", "val_pipeline", "test_pipeline"}
_NEAR = 0.87  # a helper variable so like a known key is that key, misspelt


def read_config(path: str | Path, changes: Mapping[str, Any] | None = None) -> Config:
    """Return the configuration of a file with `changes`, {"model.backbone.drop_path_rate": 0.1}.

    Raises `UserError` for a file that is missing or cannot be read, and for a misspelt key at the top of the file or
    of a change. Deeper ones are refused by what is built of them.
    """
    path = Path(path)
    if not path.is_file():
        siblings = [other.name for other in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise UserError(f"there is no configuration {path}.{closest(path.name, siblings)}")
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a configuration is a program and may fail in any way
        raise UserError(f"{path} cannot be read: {line_of(error)}") from error
    for name in cfg:
        near = difflib.get_close_matches(name, KNOWN, n=1, cutoff=_NEAR)
        if name not in KNOWN and near:
            raise UserError(f"{path}: '{name}' has no effect. Did you mean '{near[0]}'?")
    for key in changes or {}:
        first = key.split(".")[0]
        if first not in cfg and first not in KNOWN:
            raise UserError(f"--cfg-options {key}: there is no '{first}'.{closest(first, KNOWN | set(cfg))}")
    try:
        cfg.merge_from_dict(dict(changes or {}))
    except Exception as error:
        raise UserError(f"--cfg-options: {line_of(error)}") from error
    return cfg


def line_of(error: BaseException) -> str:
    """Return an error's message in one line, its type where it has none or only a name."""
    text = " ".join(str(error.args[0] if len(error.args) == 1 else error).split())
    return f"{type(error).__name__}: {text}" if " " not in text else text


def fit_to_machine(cfg: Config) -> None:
    """Let a configuration for GPUs run on a machine without: gloo between processes, plain batch norms, float32.

    Mixed precision that is turned off is told by one warning.
    """
    if torch.cuda.is_available():
        return
    wrapper = cfg.get("optim_wrapper") or {}
    if wrapper.get("type") == "AmpOptimWrapper":
        warnings.warn("torch sees no GPU: float32 instead of the configuration's mixed precision", stacklevel=2)
        wrapper["type"] = "OptimWrapper"
        for key in ("loss_scale", "dtype", "use_fsdp"):
            wrapper.pop(key, None)
    cfg.setdefault("env_cfg", {}).setdefault("dist_cfg", {})["backend"] = "gloo"
    for part in _dicts(cfg.model):
        if part.get("type") == "SyncBN":
            part["type"] = "BN"
    parallel = dict(type="MMDistributedDataParallel", device_ids=None, broadcast_buffers=False)
    parallel["find_unused_parameters"] = cfg.get("find_unused_parameters", False)
    cfg.setdefault("model_wrapper_cfg", parallel)


def start_empty(cfg: Config) -> None:
    """Let no part of the model look for weights to start from, where a checkpoint brings all of them."""
    for part in _dicts(cfg.model):
        if "pretrained" in part:
            part["pretrained"] = None
        if isinstance(part.get("init_cfg"), Mapping) and part["init_cfg"].get("type") == "Pretrained":
            part["init_cfg"] = None


def _dicts(part: Any) -> Iterator[Any]:
    """Yield every dict inside a configuration, from the outside in."""
    if isinstance(part, dict):
        yield part
        part = list(part.values())
    if isinstance(part, list | tuple):
        for value in part:
            yield from _dicts(value)
