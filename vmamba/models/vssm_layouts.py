"""The other way: a present state_dict under the names and shapes that published files have had.

| layout | names and shapes |
|---|---|
| present | those of the v2 releases and of this package |
| first_release | those of the v0 releases: patch_embed.proj, ln_1, self_attention, norm, head |
| single_file | the single-file version's: op.x_proj.weight, op.dt_projs.weight (2-D), downsample.1 and .2 |
| convolutions | present names, linear weights as 1x1 convolutions (4-D) |

`vssm_keys.rename_published_keys` reads each of them back, bit for bit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from ..errors import UserError, closest

_FIRST_RELEASE = (
    (re.compile(r"^patch_embed\.0\."), "patch_embed.proj."),
    (re.compile(r"^patch_embed\.2\."), "patch_embed.norm."),
    (re.compile(r"^(layers\.\d+\.blocks\.\d+)\.norm\."), r"\1.ln_1."),
    (re.compile(r"^(layers\.\d+\.blocks\.\d+)\.op\."), r"\1.self_attention."),
    (re.compile(r"^classifier\.(norm|head)\."), r"\1."),
)
_PROJECTION = re.compile(r"^(.*\.op\.)(x_proj|dt_projs)_weight$")
_LINEAR = re.compile(r"(^|\.)(in_proj|out_proj|fc1|fc2|head)\.weight$")


def _first_release(key: str, value: Tensor) -> tuple[str, Tensor]:
    for pattern, old in _FIRST_RELEASE:
        key = pattern.sub(old, key, count=1)
    return key, value


def _single_file(key: str, value: Tensor) -> tuple[str, Tensor]:
    if match := _PROJECTION.match(key):
        return f"{match[1]}{match[2]}.weight", value.flatten(0, 1)
    return key.replace(".downsample.norm.", ".downsample.1.").replace(".downsample.reduction.", ".downsample.2."), value


def _convolutions(key: str, value: Tensor) -> tuple[str, Tensor]:
    return key, value[:, :, None, None] if value.dim() == 2 and _LINEAR.search(key) else value


LAYOUTS: dict[str, Callable[[str, Tensor], tuple[str, Tensor]]] = {
    "present": lambda key, value: (key, value),
    "first_release": _first_release,
    "single_file": _single_file,
    "convolutions": _convolutions,
}


def in_layout(state_dict: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """The weights of a present VSSM under the names and shapes of a published layout; views, nothing is copied.

    UserError for an unknown layout, and for "first_release" where the network has parts that release could not name.
    """
    if layout not in LAYOUTS:
        raise UserError(f"layout: '{layout}' is not one of {', '.join(LAYOUTS)}.{closest(layout, LAYOUTS)}")
    if layout == "first_release" and "patch_embed.5.weight" in state_dict:
        raise UserError("layout: 'first_release' had a stem of one convolution, these weights have two; use 'present'")
    return dict(LAYOUTS[layout](key, value) for key, value in state_dict.items())


def layout_of(state_dict: Mapping[str, Tensor]) -> str:
    """The layout of the names and shapes of a VSSM's state_dict; "other" where they are of none, or of several."""
    marks = {
        "first_release": any(".self_attention." in key or ".ln_1." in key for key in state_dict),
        "single_file": any(".x_proj.weight" in key for key in state_dict),
        "convolutions": any(value.dim() == 4 and _LINEAR.search(key) for key, value in state_dict.items()),
    }
    if not any(key.startswith("layers.0.blocks.0.") for key in state_dict):
        return "other"
    found = [name for name, marked in marks.items() if marked]
    return "present" if not found else found[0] if len(found) == 1 else "other"
