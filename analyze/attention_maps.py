"""Pictures from mixing matrices: which sequences, how scaled, and rolled out over blocks.

A map is named SELECTION[_NORM]_MODE, such as "a0_absnorm_CwBdtw". SELECTION is a0, a1, ... (a sequence, over the
image), ao0, ao1, ... (a sequence, over its own steps), all (the sum of the sequences) or nall (the mean of the
sequences, each normalised first); NORM is norm (from the least to the greatest value to 0..1) or absnorm (absolute
values over the greatest); MODE one of `analyze.scans.MODES`. "rollout" is the roll-out of the absolute exact matrices.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from analyze.scans import BUDGET, MODES, Scan, mixing_rows, rows_over_tokens
from vmamba.errors import UserError, closest

ROLLOUT = "rollout"
_NAME = re.compile(r"(ao\d+|a\d+|nall|all)(?:_(norm|absnorm))?_(\w+)")


@dataclass(frozen=True)
class MapName:
    """A parsed map name; `norm` is "" where values are left as they are."""

    selection: str
    norm: str
    mode: str


def parse_map(text: str) -> MapName:
    """Return the parts of a map's name; `UserError`, with the nearest that exists, for any other word."""
    if text == ROLLOUT:
        return MapName(ROLLOUT, "", "CwBdtw")
    found = _NAME.fullmatch(text)
    if found is None or found[3] not in MODES:
        known = [f"{s}_{n}_{m}" for s in ("a0", "ao0", "all", "nall") for n in ("norm", "absnorm") for m in MODES]
        raise UserError(
            f"--maps {text}: a map is SELECTION[_norm|_absnorm]_MODE, such as a0_absnorm_CwBdtw, with the modes "
            f"{', '.join(MODES)}, or rollout.{closest(text, known)}"
        )
    return MapName(found[1], found[2] or "", found[3])


def normalised(rows: Tensor, norm: str) -> Tensor:
    """Return rows [..., T] scaled each by itself: "norm" from least to greatest to 0..1, "absnorm" by the greatest."""
    tiny = torch.finfo(rows.dtype).tiny
    if norm == "norm":
        least = rows.amin(-1, keepdim=True)
        return (rows - least) / (rows.amax(-1, keepdim=True) - least).clamp_min(tiny)
    if norm == "absnorm":
        return rows.abs() / rows.abs().amax(-1, keepdim=True).clamp_min(tiny)
    return rows


def selected(scan: Scan, queries: Tensor, name: MapName) -> Tensor:
    """Return the map [Q, T] of tokens `queries` [Q]; of an "ao" selection [Q, L] over the steps of its sequence.

    Rows of class tokens among the T are last. `UserError` for a sequence that the scan does not have.
    """
    kind = re.sub(r"\d", "", name.selection)
    if kind in ("a", "ao"):
        group = int(name.selection[len(kind) :])
        if group >= scan.groups:
            raise UserError(f"--maps {name.selection}: this scan has the sequences 0 to {scan.groups - 1}")
        if kind == "a":
            return normalised(rows_over_tokens(scan, group, queries, name.mode), name.norm)
        if scan.u.shape[0] > 1:
            raise UserError(f"--maps {name.selection}: a cascade scans every line apart; name a0 or a1")
        steps = queries.clamp_max(scan.u.shape[-1] - 1)
        return normalised(mixing_rows(scan, 0, group, steps, name.mode), name.norm)
    rows = torch.stack([rows_over_tokens(scan, k, queries, name.mode) for k in range(scan.groups)])
    if kind == "nall":
        return normalised(rows, name.norm or "norm").mean(0)
    return normalised(rows.sum(0), name.norm)


def rolled_out(scans: Sequence[Scan], queries: Tensor) -> Tensor:
    """Return [Q, T], how much of tokens `queries` after the last scan comes from each token before the first.

    The product, over the scans, of 0.5 (|M| + I) with rows that sum to 1, M the sum of the sequences' matrices; its
    rows sum to 1. The matrices are made a few rows at a time. Source: Abnar and Zuidema, "Quantifying Attention Flow in
    Transformers", 2020. Raises `UserError` for scans of different numbers of tokens.
    """
    lengths = {scan.length for scan in scans}
    if len(lengths) != 1:
        raise UserError(f"rollout: the scans have {sorted(lengths)} tokens; name blocks of one stage")
    length = lengths.pop()
    flow = torch.nn.functional.one_hot(queries, length).double()
    for scan in reversed(scans):
        after = torch.zeros_like(flow)
        wide = max(scan.u.shape[2] // 8, scan.B.shape[2])
        chunk = max(1, min(length, BUDGET // (length * max(wide, 1))))
        for start in range(0, length, chunk):
            own = torch.arange(start, min(start + chunk, length), device=queries.device)
            rows = torch.zeros(len(own), length, dtype=torch.float64, device=queries.device)
            for group in range(scan.groups):
                rows += rows_over_tokens(scan, group, own)
            rows = 0.5 * rows.abs()
            rows[torch.arange(len(own)), own] += 0.5
            after += flow[:, own] @ (rows / rows.sum(-1, keepdim=True))
        flow = after
    return flow


def over_image(rows: Tensor, scan: Scan) -> Tensor:
    """Return rows [Q, T] over the grid of the image, [Q, H, W], without the class tokens."""
    height, width = scan.grid
    return rows[:, : height * width].unflatten(1, (height, width))
