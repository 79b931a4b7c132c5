"""The pooled scan in plain PyTorch: the selective scan of the pooled sequence, its expansion, and their gradients.

For channel c of group k and a token l that belongs to the pooled step p(l), in float32 (float64 for float64 input):

    y_l = z_p(l) + D u_l        z = the selective scan of u_pooled, delta, A, B, C without skip,
                                from the last step to the first in a reversed group

and, where the groups are averaged, y_l = the mean of that over the groups.

Shapes: B batch, K groups of D channels, KD = K*D, L tokens, P pooled steps, N states; `tokens` as in tokens.py.
Source: Kapse et al., "Fast Vision Mamba", 2025, section 3 (arXiv 2502.00594).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..selective_scan.layout import empty_projection, empty_sequence
from ..selective_scan.reference import SEQUENTIAL, Scan
from .arguments import Inputs
from .tokens import Tokens, empty_full, empty_output, orient


def _spread(pooled: Tensor, tokens: Tokens) -> Tensor:
    """[..., P] as [..., outer, 1, inner, 1], which broadcasts over the tokens."""
    return pooled.unflatten(-1, (tokens[0], 1, tokens[2], 1))


def forward(
    inputs: Inputs, out_dtype: torch.dtype, save_states: bool, scan: Scan = SEQUENTIAL
) -> tuple[Tensor, Tensor]:
    """Output [B, KD, L], averaged [B, D, L], and the kept states [K, B, chunks - 1, N, D] in the order of each scan."""
    u_full, u_pooled, delta, A, B, C, D, delta_bias, tokens, reverse, delta_softplus, average = inputs
    groups, channels = u_full.shape[1:3]
    with torch.autocast(u_full.device.type, enabled=False):
        turned = (orient(u_pooled, reverse), orient(delta, reverse), A, orient(B, reverse), orient(C, reverse))
        z, _, states = scan.forward(*turned, None, delta_bias, delta_softplus, A.dtype, save_states)
        z = _spread(orient(z, reverse).unflatten(1, (groups, channels)), tokens)
        y = z.expand(*z.shape[:-4], *tokens)
        if D is not None:
            y = y + D.view(groups, channels, 1, 1, 1, 1) * u_full.to(A.dtype).unflatten(-1, tokens)
        out = empty_output(u_full, out_dtype, average)
        out.copy_(y.mean(1).flatten(-4) if average else y.flatten(-4).flatten(1, 2))
        return out, states.unflatten(-1, (groups, channels)).permute(3, 0, 1, 2, 4).contiguous()


def backward(dy: Tensor, inputs: Inputs, states: Tensor, scan: Scan = SEQUENTIAL) -> tuple[Tensor, ...]:
    """Gradients of u_full, u_pooled, delta, A, B, C, D, delta_bias, in the types of the arguments.

    Those of u_full and D are empty without D, that of delta_bias without it. A pooled step receives the sum of the
    gradients of its tokens:

        dz_p = sum over the tokens of p of dy_l;   du_l = D dy_l;   dD = sum over l of dy_l u_l

    each over K where the groups are averaged.
    """
    u_full, u_pooled, delta, A, B, C, D, delta_bias, tokens, reverse, delta_softplus, average = inputs
    batch, groups, channels, _ = u_full.shape
    share = 1.0 / groups if average else 1.0
    with torch.autocast(u_full.device.type, enabled=False):
        g = dy.to(A.dtype) * share
        g = g.unsqueeze(1).expand(-1, groups, -1, -1) if average else g.unflatten(1, (groups, channels))
        dz = g.unflatten(-1, tokens).sum((-3, -1)).flatten(-2).flatten(1, 2)
        if D is None:
            du_full, dD = u_full.new_empty(0), A.new_empty(0)
        else:
            du_full = empty_full(u_full).copy_(g * D.view(groups, channels, 1))
            dD = (g * u_full.to(A.dtype)).sum((0, 3)).flatten()
        turned = (orient(u_pooled, reverse), orient(delta, reverse), A, orient(B, reverse), orient(C, reverse))
        kept = states.permute(1, 2, 3, 0, 4).flatten(-2).contiguous()
        grads = scan.backward(orient(dz, reverse), None, *turned, None, delta_bias, kept, delta_softplus)
        du, ddelta, dA, dB, dC, _, dbias = grads
        du = empty_sequence(u_pooled, du.dtype).copy_(orient(du, reverse))
        ddelta = empty_sequence(delta, ddelta.dtype).copy_(orient(ddelta, reverse))
        dB, dC = (empty_projection(x).copy_(orient(d, reverse)) for x, d in ((B, dB), (C, dC)))
        return du_full, du, ddelta, dA, dB, dC, dD, dbias
