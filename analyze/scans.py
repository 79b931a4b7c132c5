"""A scan of one image as data, and the rows of its mixing matrix.

M lines that are scanned apart (1 but for cascades), K sequences of each, J decays, each shared by P channels, N states,
L steps, c tokens a step (1 but for pooled scans), T tokens: those of the image in row-major order, then class tokens.

The output of step i of a channel is sum over j <= i of M_ij u_j, plus D u_i, with

    M_ij = sum over n of C_i[n] exp(A[n] (s_i - s_j)) B_j[n] delta_j,    s_i = sum of delta over steps up to i.

The exponent is never positive, so nothing overflows and nothing has to be clamped.
Source: Liu et al., "VMamba: Visual State Space Model", 2024, section 4.5, where exp(A s_i) and 1 / exp(A s_j) are
called w: this is the mode "CwBdtw".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MODES = ("CB", "CBdt", "CwBw", "CwBdtw", "ww")
BUDGET = 1 << 23  # numbers of a temporary tensor


@dataclass
class Scan:
    """The arguments of one scan of one image, in the order of its steps, float64.

    delta is the step size after softplus; `tokens` are the values that the skip D multiplies, those that each step
    writes to. reads and writes say which tokens a step stands for; the mean of a step's c tokens is read, times
    `read_scale`, and its output goes to all of them, times `scale`.
    """

    layer: str
    grid: tuple[int, int]  # of the image's tokens
    classes: int  # class tokens, numbered after them
    u: Tensor  # [M, K, J, P, L]
    delta: Tensor  # [M, K, J, L]
    A: Tensor  # [K, J, N], or [K, J, 1] where all states decay alike
    B: Tensor  # [M, K, N, L]
    C: Tensor  # [M, K, N, L]
    D: Tensor | None  # [K, J, P]
    tokens: Tensor  # [M, K, J, P, L, c]
    reads: Tensor  # [M, K, L, c]
    writes: Tensor  # [M, K, L, c]
    scale: float = 1.0
    read_scale: float = 1.0
    exact: bool = True  # False where a step is not the mean of its tokens, but their maximum

    @property
    def groups(self) -> int:
        """K."""
        return self.u.shape[1]

    @property
    def length(self) -> int:
        """T."""
        return self.grid[0] * self.grid[1] + self.classes


def mixing_rows(scan: Scan, line: int, group: int, steps: Tensor, mode: str = "CwBdtw", mean: bool = True) -> Tensor:
    """Return the rows `steps` [Q] of a sequence's matrix: [Q, L], the mean over channels, or [J, Q, L].

    Modes: CB the product of C and B; CBdt with the step size; CwBw with the decay between the steps; CwBdtw with both,
    which is what the scan applies; ww the decay alone. Zero above the diagonal. Only these rows are ever in memory,
    and of their decays a part of at most `BUDGET` numbers at a time.
    """
    if mode not in MODES:
        raise ValueError(f"mode: {mode!r} is not one of {', '.join(MODES)}")
    delta, A = scan.delta[line, group], scan.A[group]  # [J, L], [J, N or 1]
    B, C = scan.B[line, group], scan.C[line, group]  # [N, L]
    decays, length, states = len(delta), delta.shape[-1], B.shape[0]
    products = C[:, steps].T[:, None, :] * B.T[None]  # [Q, L, N]
    if mode == "ww":
        products = torch.ones_like(products)
    if A.shape[-1] == 1:  # one decay for all states
        products = products.sum(-1, keepdim=True)
    passed = delta.cumsum(-1)
    below = torch.arange(length, device=steps.device)[None] <= steps[:, None]  # [Q, L]
    total = delta.new_zeros(len(steps), length)
    parts = []
    chunk = max(1, BUDGET // max(1, len(steps) * length * min(states, A.shape[-1])))
    for start in range(0, decays, chunk):
        own = slice(start, start + chunk)
        if mode in ("CB", "CBdt"):
            part = products.sum(-1).expand(len(delta[own]), -1, -1)  # [j, Q, L]
        else:
            gap = (passed[own, steps][..., None] - passed[own, None, :]).clamp_min(0)  # [j, Q, L]
            part = (torch.exp(A[own, None, None, :] * gap[..., None]) * products).sum(-1)
        if mode in ("CBdt", "CwBdtw"):
            part = part * delta[own, None, :]
        part = part * below
        if mean:
            total += part.sum(0)
        else:
            parts.append(part)
    return total / decays if mean else torch.cat(parts)


def rows_over_tokens(scan: Scan, group: int, queries: Tensor, mode: str = "CwBdtw") -> Tensor:
    """Return [Q, T]: what tokens `queries` [Q] get from every token in one sequence, the mean over channels.

    The row of a step that stands for several tokens is shared out evenly among them.
    """
    rows = torch.zeros(len(queries), scan.length, dtype=torch.float64, device=scan.u.device)
    for line in range(scan.u.shape[0]):
        writes, reads = scan.writes[line, group], scan.reads[line, group]  # [L, c]
        hit, step = (writes.flatten()[None] == queries[:, None]).nonzero().T
        if not len(hit):
            continue
        step = step // writes.shape[1]
        found = mixing_rows(scan, line, group, step, mode)  # [q, L]
        share = found[..., None].expand(-1, -1, reads.shape[1]) / reads.shape[1] * scan.read_scale
        spread = torch.zeros(len(hit), scan.length, dtype=torch.float64, device=found.device)
        spread.index_add_(1, reads.flatten(), share.flatten(1))
        rows.index_add_(0, hit, spread)
    return rows * scan.scale


def mixed(scan: Scan) -> Tensor:
    """Return [J * P, T], what the scan makes of its tokens by the mixing matrices: M u + D u, put back and summed."""
    lines, groups, decays, width, length = scan.u.shape
    out = scan.u.new_zeros(decays * width, scan.length)
    steps = torch.arange(length, device=scan.u.device)
    for line in range(lines):
        for group in range(groups):
            matrix = mixing_rows(scan, line, group, steps, mean=False)  # [J, L, L]
            y = torch.einsum("jil,jpl->jpi", matrix, scan.u[line, group])[..., None]  # [J, P, L, 1]
            if scan.D is not None:
                y = y + scan.D[group][..., None, None] * scan.tokens[line, group]
            y = y.expand(-1, -1, -1, scan.writes.shape[-1])  # [J, P, L, c]
            out.index_add_(1, scan.writes[line, group].flatten(), y.reshape(decays * width, -1))
    return out * scan.scale
