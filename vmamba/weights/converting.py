"""A checkpoint into another format: safetensors, or the published ``.pth`` under any of the published names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from vmamba.errors import UserError
from vmamba.models.vssm_keys import rename_published_keys
from vmamba.models.vssm_layouts import in_layout
from vmamba.weights.contents import behind, choose_entry, choose_prefix, wrapper_prefixes
from vmamba.weights.files import save_checkpoint
from vmamba.weights.manifest import CheckpointError
from vmamba.weights.reading import load_checkpoint

SUFFIXES = (".safetensors", ".pth", ".pt")
# What a checkpoint says beside its weights, and is worth keeping with them.
_FACTS = ("config", "args", "class_names", "epoch", "max_accuracy", "max_accuracy_ema", "max_accuray_ema", "model_name")
# The same of mmengine's "meta"; its configuration may name folders of a machine.
_META = ("dataset_meta", "epoch", "iter")


def network_prefixes(state: Mapping[str, Tensor]) -> list[str]:
    """Return the wrappers, or "", behind which the keys of a network of this package stand."""
    return [prefix for prefix in wrapper_prefixes(state) if _is_network(behind(state, prefix))]


def plain_weights(payload: Mapping[str, Any], *, prefer_ema: bool = False, **where: Any) -> dict[str, Tensor]:
    """Return a checkpoint's weights, those of a network of this package without wrappers, a VSSM's under present names.

    `where` is `entry` or `name` of `find_state_dict`. Where the network is a part of a greater one, as in a detector,
    the whole keeps its prefixes. Weights of another kind of network keep all their names.
    """
    _, state = choose_entry(payload, prefer_ema=prefer_ema, **where)
    networks = network_prefixes(state)
    if not networks:
        return dict(state)
    prefix = choose_prefix(state, lambda part: _is_network(part), prefer_ema)
    whole = _is_part(state, networks)
    if not _is_vssm(behind(state, prefix)):
        return dict(state) if whole else behind(state, prefix)
    return rename_published_keys(state, prefix)[0] if whole else rename_published_keys(behind(state, prefix))[0]


def _is_vssm(state: Mapping[str, Tensor]) -> bool:
    return any(key.startswith("layers.0.blocks.0.") for key in state)


def _is_network(state: Mapping[str, Tensor]) -> bool:
    return _is_vssm(state) or any(key.startswith("layers.0.mixer.") for key in state)


def _is_part(state: Mapping[str, Tensor], networks: list[str]) -> bool:
    """True where weights, more than a counter, stand beside the networks."""
    return any(value.numel() > 1 and not key.startswith(tuple(networks)) for key, value in state.items())


def about(payload: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Return what a checkpoint says of its weights: configuration, classes, epoch, accuracies, mmengine's `meta`."""
    facts = {key: payload[key] for key in _FACTS if key in payload}
    meta = payload.get("meta")
    if isinstance(meta, dict):
        facts["meta"] = {key: meta[key] for key in _META if key in meta}
    return {**facts, **more}


def convert(
    source: str | Path,
    target: str | Path,
    *,
    layout: str = "present",
    entry: str | None = None,
    prefer_ema: bool = False,
) -> Path:
    """Write the weights of `source` to `target` and return its path; the suffix of `target` says the format.

    ``.safetensors`` holds the weights, and in its metadata the configuration and the key layout. ``.pth`` is the
    published ``{"model": weights}`` with the same beside it, for a detector ``{"state_dict": weights}``. `layout` is
    one of `vmamba.models.vssm_layouts`. The tensors are bit-equal; a file that exists is never overwritten. Raises
    `UserError` for a bad suffix or layout.
    """
    source, target = Path(source), Path(target)
    if target.suffix not in SUFFIXES:
        raise UserError(f"{target}: the name ends in '{target.suffix}'; it must be one of {', '.join(SUFFIXES)}")
    payload = load_checkpoint(source)
    state = plain_weights(payload, entry=entry, prefer_ema=prefer_ema, name=str(source))
    if layout != "present":
        if not _is_vssm(state):
            raise UserError(f"--layout {layout}: only a VSSM's weights have other layouts; leave it out for {source}")
        state = in_layout(state, layout)
    if target.exists():
        raise CheckpointError(f"{target} exists; delete it or choose another name")
    facts = about(payload, layout=layout)
    if target.suffix == ".safetensors":
        save_checkpoint(target, state, about=facts)
    else:
        key = "model" if _is_network(state) else "state_dict"
        save_checkpoint(target, {**facts, key: state})
    return target
