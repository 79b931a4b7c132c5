"""Vim and FastVim as their papers write them: a hidden state and its residual, sequences that are flipped, plain loops.

The parameters are those of the model at hand; nothing else of it is used.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """y [B, E, L] of u and delta [B, E, L], A [E, N], B and C [B, N, L], one step after the other."""
    h = u.new_zeros(u.shape[0], *A.shape)
    steps = []
    for t in range(u.shape[2]):
        dt = delta[:, :, t, None]
        h = torch.exp(dt * A) * h + dt * B[:, None, :, t] * u[:, :, t, None]
        steps.append((h * C[:, None, :, t]).sum(-1))
    return torch.stack(steps, -1)


def convolved(x: Tensor, convolution: Any) -> Tensor:
    """SiLU of the causal convolution of x [B, E, L]."""
    width = convolution.weight.shape[2]
    padded = F.pad(x, (width - 1, 0))
    return F.silu(F.conv1d(padded, convolution.weight, convolution.bias, groups=x.shape[1]))


def projected(x: Tensor, mixer: Any, suffix: str) -> tuple[Tensor, Tensor, Tensor]:
    """delta [B, E, L], B and C [B, N, L]."""
    x_dbl = getattr(mixer, f"x_proj{suffix}")(x.transpose(1, 2))
    dt, b, c = x_dbl.split([mixer.dt_rank, mixer.d_state, mixer.d_state], -1)
    projection = getattr(mixer, f"dt_proj{suffix}")
    return F.softplus(projection(dt)).transpose(1, 2), b.transpose(1, 2), c.transpose(1, 2)


def direction(x: Tensor, mixer: Any, suffix: str = "") -> Tensor:
    """One direction of "v2" for x [B, E, L] in its order."""
    u = convolved(x, getattr(mixer, f"conv1d{suffix}"))
    A = -getattr(mixer, "A_b_log" if suffix else "A_log").exp()
    D = mixer.D_b if suffix else mixer.D
    return scan(u, *_a_second(projected(u, mixer, suffix), A)) + D[:, None] * u


def _a_second(rest: tuple[Tensor, Tensor, Tensor], A: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    delta, b, c = rest
    return delta, A, b, c


def pooled_direction(x: Tensor, mixer: Any, suffix: str, grid: tuple[int, int]) -> Tensor:
    """One direction of FastVim for x [B, E, L] in its order, lines of a grid one after the other."""
    u = convolved(x, getattr(mixer, f"conv1d{suffix}"))
    lines = u.reshape(*u.shape[:2], *grid)
    steps = (lines.mean(-1) if mixer.collapse_method == "mean" else lines.amax(-1)) * mixer.scaling_factor
    A = -getattr(mixer, "A_b_log" if suffix else "A_log").exp()
    y = scan(steps, *_a_second(projected(steps, mixer, suffix), A))
    return y.repeat_interleave(grid[1], -1) + (mixer.D_b if suffix else mixer.D)[:, None] * u


def mixed(mixer: Any, tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
    """The mixer of tokens [B, L, D]; a grid makes it FastVim's."""
    x, z = mixer.in_proj(tokens).chunk(2, -1)
    x = x.transpose(1, 2)
    if grid is not None:
        y = (pooled_direction(x, mixer, "", grid) + pooled_direction(x.flip(-1), mixer, "_b", grid).flip(-1)) / 2
    elif mixer.bimamba_type == "none":
        y = direction(x, mixer)
    elif mixer.bimamba_type == "v2":
        y = direction(x, mixer) + direction(x.flip(-1), mixer, "_b").flip(-1)
        y = y / 2 if mixer.divide else y
    else:
        u = convolved(x, mixer.conv1d)
        rest = projected(u, mixer, "")
        forward = scan(u, *_a_second(rest, -mixer.A_log.exp())) + mixer.D[:, None] * u
        delta, b, c = (part.flip(-1) for part in rest)
        backward = scan(u.flip(-1), delta, -mixer.A_b_log.exp(), b, c) + mixer.D[:, None] * u.flip(-1)
        y = forward + backward.flip(-1)
    y = mixer.out_proj(mixer.layernorm(y.transpose(1, 2)) * F.silu(z))
    return y if mixer.gamma is None else y * mixer.gamma


def turned(x: Tensor, grid: tuple[int, int], pretrained_length: int) -> Tensor:
    """Tokens of a grid turned by their row, in the first half of the channels, and their column, in the second."""
    half = x.shape[-1] // 2
    result = x.clone()
    for place in range(x.shape[1]):
        for axis, number in enumerate((place // grid[1], place % grid[1])):
            position = number / grid[axis] * pretrained_length
            for pair in range(half // 2):
                angle = torch.tensor(position / 10000 ** (2 * pair / half))
                i = axis * half + 2 * pair
                a, b = x[:, place, i], x[:, place, i + 1]
                result[:, place, i] = a * angle.cos() - b * angle.sin()
                result[:, place, i + 1] = b * angle.cos() + a * angle.sin()
    return result


def tokens_of(model: Any, x: Tensor) -> Tensor:
    """The patches [B, h, w, D] of images."""
    return model.patch_embed.proj(x).permute(0, 2, 3, 1)


def encoded(model: Any, x: Tensor, grid: tuple[int, int]) -> Tensor:
    """The normed tokens after all blocks of Vim without stochastic depth, for tokens [B, L, D] with embeddings."""

    def block(layer: Any, hidden: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        residual = hidden if residual is None else residual + hidden
        return mixed(layer.mixer, layer.norm(residual)), residual

    hidden, residual = x, None
    layers = list(model.layers)
    while layers:
        if model.rope is not None:
            length = model.rope.pretrained_length
            hidden = turned(hidden, grid, length)
            if residual is not None and model.if_rope_residual:
                residual = turned(residual, grid, length)
        if model.if_bidirectional:
            first, second = block(layers[0], hidden, residual), None
            second = block(layers[1], hidden.flip(1), None if residual is None else residual.flip(1))
            hidden, residual = (a + b.flip(1) for a, b in zip(first, second, strict=True))
            layers = layers[2:]
        else:
            hidden, residual = block(layers.pop(0), hidden, residual)
    assert residual is not None
    return model.norm_f(hidden + residual)


def fast_encoded(model: Any, patches: Tensor) -> Tensor:
    """The normed tokens after all blocks of FastVim, odd ones transposed, for patches [B, h, w, D] with embeddings."""
    x = patches
    for number, layer in enumerate(model.layers):
        seen = layer.norm(x)
        seen = seen.transpose(1, 2) if number % 2 else seen
        grid = tuple(seen.shape[1:3])
        y = mixed(layer.mixer, seen.flatten(1, 2), grid).unflatten(1, grid)
        x = x + (y.transpose(1, 2) if number % 2 else y)
    return model.norm_f(x.flatten(1, 2))
