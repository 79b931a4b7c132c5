"""Milliseconds of the pooled scan beside plain torch: ``python kernels/benchmarks/pooled_scan.py``.

Both see the same tensors, those of a FastVim mixer at 224 x 224 after the convolution: two directions, 14 x 14 tokens
stored channel-last, pooled to 14 steps of 16 states, and return the mean of the directions. "plain" flips the second
direction, runs `selective_scan` on each, repeats each pooled output for its tokens, adds the skip, flips back, adds and
halves, each step as fast as this package and torch have it. Repeats of the two are interleaved, so that a slow minute
of the machine falls on both; the figure is the median over the repeats.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from vmamba_kernels import pooled_scan, selective_scan
from vmamba_kernels.native import explain

WIDTHS = {"tiny": 384, "small": 768, "base": 1536}  # inner channels of FastVim-T, S, B
SIDE, STATES = 14, 16


def plain(
    u_full: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor, axis: int
) -> Tensor:
    width = A.shape[0] // 2
    outputs = []
    for k in range(2):
        part = slice(k * width, (k + 1) * width)
        walked = [u_full[:, part], u[:, part], delta[:, part], B[:, k : k + 1], C[:, k : k + 1]]
        full, pooled, step, B_k, C_k = (x.flip(-1) for x in walked) if k else walked
        z = selective_scan(pooled, step, A[part], B_k, C_k, None, bias[part])
        assert isinstance(z, Tensor)
        spread = z.repeat_interleave(SIDE, -1) if axis == -1 else z.repeat(1, 1, SIDE)
        y = spread + D[part, None] * full
        outputs.append(y.flip(-1) if k else y)
    return (outputs[0] + outputs[1]) / 2


def fused(
    u_full: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor, axis: int
) -> Tensor:
    options = {"grid": (SIDE, SIDE), "pooled_axes": axis, "reverse": (False, True), "average": True}
    return pooled_scan(u_full, u, delta, A, B, C, D, bias, **options)


def inputs(batch: int, width: int, device: str, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)

    def sequence(channels: int, length: int) -> Tensor:
        return torch.randn(batch, length, channels, device=device, dtype=dtype).transpose(1, 2)

    u_full, u = sequence(2 * width, SIDE * SIDE), sequence(2 * width, SIDE)
    delta, projections = sequence(2 * width, SIDE), sequence(4 * STATES, SIDE)
    B, C = projections.unflatten(1, (2, 2, STATES)).unbind(1)
    A = -torch.arange(1.0, STATES + 1, device=device).repeat(2 * width, 1)
    D, bias = torch.ones(2 * width, device=device), torch.rand(2 * width, device=device) * 4 - 6
    return [u_full, u, delta, A, B, C, D, bias]


def forward_step(function: Callable[..., Tensor], tensors: list[Tensor], axis: int) -> Callable[[], object]:
    def step() -> None:
        with torch.inference_mode():
            function(*tensors, axis)

    return step


def training_step(function: Callable[..., Tensor], tensors: list[Tensor], axis: int) -> Callable[[], object]:
    leaves = [t.clone(memory_format=torch.preserve_format).requires_grad_() for t in tensors]
    dy = torch.ones_like(function(*tensors, axis))
    return lambda: torch.autograd.grad(function(*leaves, axis), leaves, dy)


def milliseconds(step: Callable[[], object], device: str, least: float) -> float:
    """Time of one call, from as many as take `least` seconds."""

    def run(count: int) -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(count):
            step()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    count = max(1, round(least / max(run(1), 1e-6)))
    return 1e3 * run(count) / count


def copy_bandwidth(device: str) -> float:
    """Bytes per second, read and written, of a copy of 256 MiB."""
    source = torch.ones(1 << 26, device=device)
    target = torch.empty_like(source)
    times = [milliseconds(lambda: target.copy_(source), device, 0.0) for _ in range(5)]
    return 2 * source.nbytes / (min(times) * 1e-3)


def necessary_bytes(tensors: list[Tensor], mode: str) -> int:
    """Each tensor once: u_full and the output in float32, and on the way back its gradient, u_full and du_full."""
    full, pooled = tensors[0].nbytes, sum(t.nbytes for t in tensors[1:])
    y = tensors[0].numel() // 2 * 4
    forward = full + y + pooled
    return forward if mode == "forward" else forward + y + 2 * full + 2 * pooled


def measure(args: argparse.Namespace) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    bandwidth = copy_bandwidth(args.device)
    print(f"copy bandwidth {bandwidth / 1e9:.1f} GB/s")
    print("mode      model  batch pooled     plain ms     fused ms  fused/plain  GB/s (share of copy)")
    makers = {"forward": forward_step, "training": training_step}
    for mode in args.modes:
        for model in args.models:
            for batch in args.batch_size:
                for pooled, axis in (("rows", -1), ("columns", 0)):
                    tensors = inputs(batch, WIDTHS[model], args.device, getattr(torch, args.dtype))
                    torch.testing.assert_close(fused(*tensors, axis), plain(*tensors, axis), rtol=1e-3, atol=1e-3)
                    steps = {f.__name__: makers[mode](f, tensors, axis) for f in (plain, fused)}
                    times: dict[str, list[float]] = {name: [] for name in steps}
                    for step in steps.values():
                        step()
                    for _ in range(args.repeats):
                        for name, step in steps.items():
                            times[name].append(milliseconds(step, args.device, args.least))
                    slow, fast = (statistics.median(times[f.__name__]) for f in (plain, fused))
                    speed = necessary_bytes(tensors, mode) / (fast * 1e-3)
                    print(
                        f"{mode:9} {model:6} {batch:5} {pooled:7} {slow:11.3f} {fast:12.3f} {fast / slow:12.2f}"
                        f"  {speed / 1e9:5.1f} ({speed / bandwidth:.0%})"
                    )
                    row = {"mode": mode, "model": model, "batch": batch, "pooled": pooled}
                    figures = {"plain_ms": slow, "fused_ms": fast, "bytes_per_second": speed}
                    rows.append({**row, "shape": list(tensors[0].shape), **figures})
    return rows


def method(args: argparse.Namespace) -> str:
    device = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or platform.machine()
    used = ", ".join(f"{row.operator}: {row.backend}" for row in explain() if row.device == args.device)
    load = f", load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"method: {device}, {torch.get_num_threads()} threads{load}, torch {torch.__version__}; {used}; {args.dtype}, "
        f"channel-last, two directions, {SIDE} x {SIDE} tokens, {STATES} states, float32 output; training = forward "
        f"and every gradient; one warm-up, median of {args.repeats} interleaved repeats of at least {args.least} s; "
        "clocks as they are"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--modes", nargs="+", default=["forward", "training"], choices=("forward", "training"))
    parser.add_argument("--models", nargs="+", default=list(WIDTHS), choices=tuple(WIDTHS))
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--least", type=float, default=0.05, help="seconds of one repeat")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()

    print(method(args))
    rows = measure(args)
    if args.json:
        args.json.write_text(json.dumps({"method": method(args), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
