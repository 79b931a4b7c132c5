"""The model of a configuration, without a runner."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, init_default_scope

from vmamba.errors import UserError
from vmamba.openmmlab.configs import start_empty
from vmamba.openmmlab.running import refusals_of
from vmamba.weights import load_checkpoint, load_weights

SCOPES = ("mmdet", "mmseg", "mmpretrain")


def scope_of(cfg: Config) -> str:
    """Return the library that a configuration is for; `UserError` where it is none of the three."""
    scope = cfg.get("default_scope")
    if scope not in SCOPES:
        raise UserError(f"default_scope: expected one of {', '.join(SCOPES)}, got {scope!r}")
    return scope


def empty_model(cfg: Config, device: str = "meta") -> Any:
    """Return the model of a configuration without its weights to start from, by default without any memory."""
    init_default_scope(scope_of(cfg))
    start_empty(cfg)
    with torch.device(device), refusals_of("model"):
        return MODELS.build(cfg.model)


def open_checkpoint(cfg: Config, checkpoint: str, device: torch.device) -> Any:
    """Return the model of a configuration with a checkpoint's weights, ready for images: in evaluation, on `device`.

    It has `cfg` and `dataset_meta`, the class names, as the libraries' own functions expect. Every key must fit.
    """
    model = revert_sync_batchnorm(empty_model(cfg, "cpu"))
    payload = load_checkpoint(checkpoint)
    load_weights(model, payload, quiet=True)
    model.cfg, model.dataset_meta = cfg, _dataset_meta(cfg, payload)
    return model.to(device).eval()


def _dataset_meta(cfg: Config, payload: dict[str, Any]) -> dict[str, Any]:
    """Return class names and colours: what the checkpoint says, else the configuration's data set."""
    said = payload.get("meta")
    stored = said.get("dataset_meta") if isinstance(said, dict) else None
    own: dict[str, Any] = {}
    if cfg.get("test_dataloader"):
        with refusals_of("test_dataloader.dataset"):
            own = dict(DATASETS.build({**cfg.test_dataloader.dataset, "lazy_init": True}).metainfo)
    if isinstance(stored, dict):
        own.update({key.lower(): value for key, value in stored.items() if value is not None})
    if isinstance(own.get("palette"), list):  # published files have lists of lists, with which mmdet cannot draw
        own["palette"] = [tuple(colour) for colour in own["palette"]]
    return own
