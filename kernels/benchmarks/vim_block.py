"""One block of Vim against the same block in plain PyTorch: ``python kernels/benchmarks/vim_block.py``.

RMSNorm, projections, convolution, scan in both directions, gate and residual of a published block, with its own initial
weights. "training" is the forward and the gradients of the input and of every parameter. "plain,mambapy" is the block
as one would write it in PyTorch, each direction by itself and the second on flipped tokens, around the parallel scan of
PyPI's mambapy; "plain,our scan" is the same around ours, so that the two ratios part what the scan gains from what the
rest does. What the C library does with freed memory weighs much in the tensors of a plain block, so its settings are
printed: by default none, as for the other operators; with MALLOC_MMAP_MAX_=0 and its kin it is kept, as in the trainer.
Before it is timed, a plain block has to give our output and our gradients on one image.
Necessary bytes: tokens and weights read and the output written once; backward: these but the output and dy read, the
gradients written.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from operator_runs import AGREEMENT, Benchmark, Case, Contender, main
from peers import Function, mambapy
from selective_scan import ours as our_scan
from shapes import NETWORKS, tokens
from torch import Tensor

from vmamba.models.vim_block import Block, RMSNorm
from vmamba.models.vim_mixer import VimMixer

KNOWN = [name for name in NETWORKS if name.startswith("vim")]
EPSILON = 1e-5
GRADIENTS_AGREE = 10.0  # a gradient may err so many times as much as an output: it is a sum over all tokens


def block_of(case: Case, device: torch.device) -> Block:
    """A block as in the published network, in the case's type."""
    torch.manual_seed(0)
    dim = case.scan.channels // 2
    norm = partial(RMSNorm, eps=EPSILON)
    return Block(dim, VimMixer(dim, case.scan.d_state), norm).to(device, getattr(torch, case.dtype))


def ours(block: Block) -> Function:
    """The block as a function of tokens [B, L, D] and of its parameters in their order.

    They are put in their places without `functional_call`, whose search of all modules no training step makes.
    """
    owned = [module._parameters for module in block.modules()]
    places = [(own, name) for own in owned for name, weight in own.items() if weight is not None]

    def computed(tokens: Tensor, *weights: Tensor) -> Tensor:
        for (parameters, name), weight in zip(places, weights, strict=True):
            parameters[name] = weight  # type: ignore[assignment]
        return block(tokens, None)

    return computed


def plain(block: Block, scan: Function) -> Function:
    """The same function by PyTorch's operators, around the scan of one direction."""
    names = [name.removeprefix("mixer.") for name, _ in block.named_parameters()]
    split = [block.mixer.dt_rank, block.mixer.d_state, block.mixer.d_state]

    def direction(x: Tensor, p: dict[str, Tensor], suffix: str) -> Tensor:
        taps = p[f"conv1d{suffix}.weight"]
        u = F.conv1d(x.mT, taps, p[f"conv1d{suffix}.bias"], padding=taps.shape[2] - 1, groups=x.shape[2])
        u = F.silu(u[..., : x.shape[1]])  # [B, E, L]
        dt, b, c = F.linear(u.mT, p[f"x_proj{suffix}.weight"]).split(split, dim=-1)
        delta = F.linear(dt, p[f"dt_proj{suffix}.weight"]).mT
        A = -torch.exp(p[f"A{suffix}_log"].float())
        skip, bias = p[f"D{suffix}"].float(), p[f"dt_proj{suffix}.bias"].float()
        return scan(u, delta, A, b.mT[:, None], c.mT[:, None], skip, bias).mT

    def computed(tokens: Tensor, *weights: Tensor) -> Tensor:
        p = dict(zip(names, weights))
        normed = F.rms_norm(tokens, tokens.shape[-1:], p["norm.weight"], EPSILON)
        x, z = F.linear(normed, p["in_proj.weight"]).chunk(2, dim=-1)  # [B, L, E]
        y = (direction(x, p, "") + direction(x.flip(1), p, "_b").flip(1)) / 2
        return tokens + F.linear(y.to(z.dtype) * F.silu(z), p["out_proj.weight"])

    return computed


def agreeing(function: Function, wanted: Function, tensors: list[Tensor], names: list[str]) -> Function:
    """`function`, whose output and gradients are those of `wanted`; RuntimeError that names the worst if they are not.

    Both are compared on the first image, by the norm of the difference over that of what is wanted.
    """
    leaves = [x.detach().requires_grad_() for x in (tensors[0][:1], *tensors[1:])]
    expected, found = wanted(*leaves), function(*leaves)
    toward = torch.randn_like(expected)
    pairs = {"output": (expected, found)}
    gradients = [torch.autograd.grad(y, leaves, toward) for y in (expected, found)]
    pairs |= {f"gradient of {name}": pair for name, *pair in zip(names, *gradients, strict=True)}
    for name, pair in pairs.items():
        ours, its = (y.detach().float() for y in pair)
        error = float((its - ours).norm() / ours.norm())
        if not error <= AGREEMENT[leaves[0].dtype] * (1 if name == "output" else GRADIENTS_AGREE):
            raise RuntimeError(f"its {name} is another: relative error {error:.1e}")
    return function


def contenders(case: Case, device: torch.device) -> list[Contender]:
    block = block_of(case, device)
    make = torch.Generator(device).manual_seed(0)
    width = case.scan.channels // 2
    x = torch.randn(case.batch, case.scan.length, width, generator=make, device=device).to(getattr(torch, case.dtype))
    given = [x, *(p.detach() for p in block.parameters())]
    names = ["tokens", *(name for name, _ in block.named_parameters())]
    room = 12.0 * case.elements * case.scan.d_state * 4  # bytes of that many float32 [B, 2*E, L, N]

    def around(scan: Callable[[], Function]) -> Callable[[], Function]:
        return lambda: agreeing(plain(block, scan()), ours(block), given, names)

    return [
        Contender("ours", (lambda: ours(block),), given),
        Contender("plain,our scan", (around(lambda: our_scan),), given),
        Contender("plain,mambapy", (around(mambapy),), given, room),
    ]


def necessary_bytes(case: Case) -> int:
    size = torch.empty(0, dtype=getattr(torch, case.dtype)).element_size()
    weights = sum(p.numel() for p in block_of(case, torch.device("cpu")).parameters())
    stream = case.elements // 4  # [B, L, D] of the [B, 2*E, L] that are scanned
    forward, backward = 2 * stream + weights, 3 * stream + 2 * weights
    return size * {"forward": forward, "backward": backward, "training": forward + backward}[case.mode]


BENCHMARK = Benchmark("vim_block", contenders, necessary_bytes)

if __name__ == "__main__":
    settings = {name: value for name, value in os.environ.items() if name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    print(f"host memory, for every contender: {settings or 'as the C library gives it, nothing set'}")
    modes = ["forward", "training"]
    main(BENCHMARK, __doc__, ["vim_tiny"], KNOWN, tokens, modes=modes, batch=[8], threads=2, seconds=2.0, budget=300.0)
