"""The shapes of the scans inside the published networks, for every benchmark of an operator.

B batch, K directions, D channels of one direction, R rank of the step size, N d_state, L = H*W.
Sources: Liu et al., "VMamba", 2024; Zhu et al., "Vision Mamba", 2024; Kapse et al., "FastVim", 2025.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

STAGES = (1, 2, 3, 4)


@dataclass(frozen=True)
class Scan:
    """One scan of a network at an image size: K directions over an image H x W of D channels; sequences have H = 1."""

    stage: int
    height: int
    width: int
    channels: int
    rank: int
    d_state: int
    directions: int

    @property
    def length(self) -> int:
        return self.height * self.width

    def __str__(self) -> str:
        return (
            f"K {self.directions}, D {self.channels}, L {self.height}x{self.width} = {self.length}, N {self.d_state}, "
            f"R {self.rank}"
        )


def _vmamba(dim: int, ratio: int, d_state: int, size: int) -> list[Scan]:
    scans = []
    for stage in STAGES:
        width, side = dim * 2 ** (stage - 1), size // 2 ** (stage + 1)
        scans.append(Scan(stage, side, side, ratio * width, math.ceil(width / 16), d_state, 4))
    return scans


def _vim(dim: int, size: int) -> list[Scan]:
    return [Scan(1, 1, (size // 16) ** 2 + 1, 2 * dim, math.ceil(dim / 16), 16, 2)]


def _fastvim(dim: int, size: int) -> list[Scan]:
    """Of the pooled sequence: one step for a row, or a column, of patches."""
    return [Scan(1, 1, size // 16, 2 * dim, math.ceil(dim / 16), 16, 2)]


# The small and the tiny VMamba differ in depth alone. A vanilla VMamba is the first published design, of d_state 16.
NETWORKS = {
    "vmamba_tiny": lambda size: _vmamba(96, 1, 1, size),
    "vmamba_small": lambda size: _vmamba(96, 1, 1, size),
    "vmamba_base": lambda size: _vmamba(128, 1, 1, size),
    "vanilla_vmamba_tiny": lambda size: _vmamba(96, 2, 16, size),
    "vanilla_vmamba_small": lambda size: _vmamba(96, 2, 16, size),
    "vanilla_vmamba_base": lambda size: _vmamba(128, 2, 16, size),
    "vim_tiny": lambda size: _vim(192, size),
    "vim_small": lambda size: _vim(384, size),
    "vim_base": lambda size: _vim(768, size),
    "fastvim_tiny": lambda size: _fastvim(192, size),
    "fastvim_small": lambda size: _fastvim(384, size),
    "fastvim_base": lambda size: _fastvim(768, size),
}
SIZES = (224, 512, 1024)
TWO_DIMENSIONAL = [name for name in NETWORKS if "vmamba" in name]


def scans(networks: list[str], size: int) -> dict[Scan, str]:
    """The different scans of the networks at images of size x size, each with the names of those that have it.

    A network's last stage, the smallest, comes first, so that a benchmark knows early what the next one will cost.
    """
    found: dict[Scan, list[str]] = {}
    for network in networks:
        for scan in reversed(NETWORKS[network](size)):
            found.setdefault(scan, []).append(network)
    return {scan: ", ".join(names) for scan, names in found.items()}


def tokens(networks: list[str], size: int) -> dict[Scan, str]:
    """The same of Vim and FastVim before anything is pooled: FastVim's sequence is the whole grid of patches."""
    found = scans(networks, size)
    return {replace(s, height=size // 16, width=size // 16) if "fastvim" in n else s: n for s, n in found.items()}
