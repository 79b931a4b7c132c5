"""Names that published VMamba checkpoints have had, read into the present ones."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError

_RENAMES = (
    (re.compile(r"^patch_embed\.proj\."), "patch_embed.0."),
    (re.compile(r"^patch_embed\.norm\."), "patch_embed.2."),
    (re.compile(r"^(layers\.\d+\.blocks\.\d+)\.ln_1\."), r"\1.norm."),
    (re.compile(r"^(layers\.\d+\.blocks\.\d+)\.self_attention\."), r"\1.op."),
    (re.compile(r"^norm\."), "classifier.norm."),
    (re.compile(r"^head\."), "classifier.head."),
)
_PROJECTION = re.compile(r"^(.*\.op\.)(x_proj|dt_projs)\.(weight|bias)$")
_MERGING = re.compile(r"^(layers\.\d+\.downsample)\.([12])\.(weight|bias)$")
_LINEAR = re.compile(r"(^|\.)(in_proj|out_proj|fc1|fc2|reduction|head)\.weight$")


def rename_published_keys(
    state_dict: Mapping[str, Tensor], prefix: str = ""
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state_dict under the present names and shapes, and {old name: new name} of what changed.

    Reads the names of the first releases (ln_1, self_attention, patch_embed.proj, norm, head), the single-file
    version's (op.x_proj.weight, op.dt_projs.weight, downsample.1 and .2 of patch merging), and linear weights that are
    stored as 1x1 convolutions. A weight that only changes shape is listed under its own name. Keys that do not start
    with `prefix` pass unchanged. The input is not modified. UserError if two keys become the same one.
    """
    result: dict[str, Tensor] = {}
    changed: dict[str, str] = {}
    for key, tensor in state_dict.items():
        new, value = key, tensor
        if key.startswith(prefix):
            new, value = _renamed(key[len(prefix) :], tensor, state_dict, prefix)
            new = prefix + new
        if new in result or (new != key and new in state_dict):
            raise UserError(f"checkpoint: {key!r} and another key both mean {new!r}; remove one of them")
        if new != key or value is not tensor:
            changed[key] = new
        result[new] = value
    return result, changed


def _renamed(key: str, tensor: Tensor, state_dict: Mapping[str, Tensor], prefix: str) -> tuple[str, Tensor]:
    for pattern, replacement in _RENAMES:
        key = pattern.sub(replacement, key, count=1)
    if match := _PROJECTION.match(key):
        op, layer, kind = match.groups()
        old_op = re.sub(r"\.op\.$", ".self_attention.", op)
        biases = (state_dict.get(f"{prefix}{name}dt_projs_bias") for name in (op, old_op))
        groups = next((len(b) for b in biases if b is not None and b.dim() == 2), 4)
        rows = tensor.shape[0] // groups
        shape = (groups, rows, tensor.shape[1]) if kind == "weight" else (groups, rows)
        return f"{op}{layer}_{kind}", tensor.reshape(shape)
    if match := _MERGING.match(key):
        stage, number, kind = match.groups()
        if number == "1" and (kind == "bias" or tensor.dim() == 1):
            weight = state_dict.get(f"{prefix}{stage}.1.weight")
            if weight is not None and weight.dim() == 1:
                return f"{stage}.norm.{kind}", tensor
        if number == "2" and kind == "weight":
            key = f"{stage}.reduction.weight"
    if tensor.dim() == 4 and tensor.shape[2:] == (1, 1) and _LINEAR.search(key):
        tensor = tensor.flatten(1)
    return key, tensor


def resize_pos_embed(pos_embed: Tensor, size: tuple[int, int]) -> Tensor:
    """`pos_embed` [1, C, h, w] resized to [1, C, *size] by bicubic interpolation, in its own type."""
    if pos_embed.dim() != 4:
        raise UserError(f"pos_embed: expected [1, C, h, w], got {tuple(pos_embed.shape)}")
    resized = F.interpolate(pos_embed.to(torch.float32), size=size, mode="bicubic", align_corners=False)
    return resized.to(pos_embed.dtype)
