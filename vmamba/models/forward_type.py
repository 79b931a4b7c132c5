"""The published `forward_type` strings ("v05_noz") as named options of the token mixer: the one place that reads them.

A string is a version and any number of suffixes, in any order: v05_onnone_noz, v05_noz_onnone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import UserError, closest

OUT_NORMS = ("ln", "none", "dwconv3", "cnorm", "softmax", "sigmoid")


@dataclass(frozen=True)
class ForwardType:
    """The options of SS2D that a `forward_type` string stands for; an instance may be given in its place.

    scan_order: a registered scan order (`vmamba_kernels.register_scan_order` adds one), or "cascade2d".
    gate: multiply by an activated second half of in_proj; gate_act: activate it.
    out_norm: "ln", "none", "dwconv3", "cnorm" (LayerNorm, then a depthwise 3x3), "softmax" (over L) or "sigmoid".
    out_act: GELU after out_norm.
    fp32_scan: widen the scan's inputs to float32, also under autocast.
    flip_back: in "cascade2d", put the reversed sequences back in order before the sum. The published models do not.
    backend: of `vmamba_kernels.ss2d` and `selective_scan`; None chooses by device.
    fused: scan by the one operator ss2d where it has a kernel; the plain operators give the same numbers, slower.
    ssd: the state-space dual scan of mamba2, one decay for a head of channels, in place of the selective scan. The
        token mixer is then SS2DMamba2, and `backend` one of `vmamba_kernels.ssd`.
    """

    scan_order: str = "cross2d"
    gate: bool = True
    gate_act: bool = True
    out_norm: str = "ln"
    out_act: bool = False
    fp32_scan: bool = False
    flip_back: bool = False
    backend: str | None = None
    fused: bool = True
    ssd: bool = False

    def __post_init__(self) -> None:
        if self.out_norm not in OUT_NORMS:
            raise UserError(
                f"out_norm: {self.out_norm!r} is not one of {', '.join(OUT_NORMS)}.{closest(self.out_norm, OUT_NORMS)}"
            )
        if self.ssd and self.scan_order == "cascade2d":
            raise UserError("scan_order: 'cascade2d' is two selective scans in turn and has no state-space dual form")


_CROSS = ForwardType()
_WIDE = ForwardType(fp32_scan=True)
_UNI = ForwardType(scan_order="unidi")
_BI = ForwardType(scan_order="bidi")
_CASCADE = ForwardType(scan_order="cascade2d")

VERSIONS: dict[str, ForwardType] = {
    "v0": _WIDE,
    "v0seq": _WIDE,
    "v01": _WIDE,
    "v02": _WIDE,
    "v03": _WIDE,
    "v04": _CROSS,
    "v05": _CROSS,
    "v051d": _UNI,
    "v052d": _BI,
    "v052dc": _CASCADE,
    "v052d3": ForwardType(scan_order="rot90"),
    "v1": _WIDE,
    "v2": _WIDE,
    "v3": _CROSS,
    "v4": _CROSS,
    "v31d": _UNI,
    "v32d": _BI,
    "v32dc": _CASCADE,
    "m0": ForwardType(ssd=True),
}

SUFFIXES: dict[str, dict[str, object]] = {
    "noz": {"gate": False},
    "nozact": {"gate_act": False},
    "oact": {"out_act": True},
    "no32": {"fp32_scan": False},
    "onnone": {"out_norm": "none"},
    "ondwconv3": {"out_norm": "dwconv3"},
    "oncnorm": {"out_norm": "cnorm"},
    "onsoftmax": {"out_norm": "softmax"},
    "onsigmoid": {"out_norm": "sigmoid"},
}

_KNOWN = f"known: {', '.join(VERSIONS)}, each with any of _{', _'.join(SUFFIXES)}"


def parse_forward_type(text: str | ForwardType) -> ForwardType:
    """The options that a published string stands for; a ForwardType is returned as it is.

    UserError for an unknown version or suffix (with the known ones and the nearest), for suffixes that contradict one
    another, and for "xv..." (never worked at the published head, no weights use it).
    """
    if isinstance(text, ForwardType):
        return text
    if not isinstance(text, str):
        raise UserError(f"forward_type: expected a string or a ForwardType, got {type(text).__name__}; {_KNOWN}")
    version, *suffixes = text.lower().split("_")
    if version.startswith("xv"):
        raise UserError(
            f"forward_type: {text!r} is not supported: xv was an experiment that fails in the published code and no "
            "published weights use it; the published design is 'v05_noz'"
        )
    unknown = [s for s in suffixes if s not in SUFFIXES]
    if version not in VERSIONS or unknown:
        raise UserError(f"forward_type: unknown {text!r}.{_nearest(version, suffixes)} {_KNOWN}")
    changes: dict[str, object] = {}
    for suffix in suffixes:
        if changes.keys() & SUFFIXES[suffix].keys():
            raise UserError(f"forward_type: {text!r} says {next(iter(SUFFIXES[suffix]))} twice; keep one suffix of it")
        changes.update(SUFFIXES[suffix])
    if {"noz", "nozact"} <= set(suffixes):
        raise UserError(f"forward_type: {text!r} has both _noz (no gate) and _nozact (gate, no activation); keep one")
    return replace(VERSIONS[version], **changes)  # type: ignore[arg-type]


def _nearest(version: str, suffixes: list[str]) -> str:
    """A sentence with the nearest string that parses; empty if nothing is near."""
    spelled = {v + (f"_{s}" if s else "") for v in VERSIONS for s in ("", *SUFFIXES)}
    if version in VERSIONS:
        fixed = [s if s in SUFFIXES else closest(s, SUFFIXES)[len(" Did you mean '") : -2] for s in suffixes]
        text = "_".join([version, *fixed])
        return f" Did you mean '{text}'?" if all(fixed) and _parses(text) else ""
    return closest("_".join([version, *suffixes]), spelled)


def _parses(text: str) -> bool:
    try:
        parse_forward_type(text)
    except UserError:
        return False
    return True
