"""Milliseconds of the fused ss2d beside the same mixer made of separate ops: ``python kernels/benchmarks/ss2d.py``.

Both see the same tensors: x and its projections x_dbl, in image order, channel-last. "unfused" is cross_scan of both,
the step-size projection, selective_scan and cross_merge, each as fast as this package has it. Repeats of the two are
interleaved, so that a slow minute of the machine falls on both; the figure is the median over the repeats.
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

from vmamba_kernels import cross_merge, cross_scan, selective_scan
from vmamba_kernels.native import explain
from vmamba_kernels.ss2d import ss2d

DIRECTIONS = 4
STAGES = ((56, 96, 6), (28, 192, 12), (14, 384, 24), (7, 768, 48))  # H = W, channels, rank of VMamba-T at 224
LAYOUT = {"in_channel_first": False, "out_channel_first": False}


def unfused(x: Tensor, x_dbl: Tensor, dt_weight: Tensor, A: Tensor, D: Tensor, delta_bias: Tensor) -> Tensor:
    _, H, W, channels = x.shape
    K, _, rank = dt_weight.shape
    d_state = A.shape[1]
    p = cross_scan(x_dbl.unflatten(3, (K, rank + 2 * d_state)), one_by_one=True, **LAYOUT)
    dt, b, c = p.split([rank, d_state, d_state], dim=-1)
    delta = torch.einsum("blkr,kdr->blkd", dt, dt_weight)
    u = cross_scan(x, **LAYOUT).flatten(2).transpose(1, 2)
    y = selective_scan(
        u, delta.flatten(2).transpose(1, 2), A, b.permute(0, 2, 3, 1), c.permute(0, 2, 3, 1), D, delta_bias
    )
    y = y.transpose(1, 2).reshape(-1, H, W, K, channels)
    return cross_merge(y, **LAYOUT).unflatten(1, (H, W))


def inputs(batch: int, stage: int, d_state: int, ratio: int, device: str, dtype: torch.dtype) -> list[Tensor]:
    size, channels, rank = STAGES[stage - 1]
    channels *= ratio
    torch.manual_seed(0)
    x = torch.randn(batch, size, size, channels, device=device, dtype=dtype)
    x_dbl = torch.randn(batch, size, size, DIRECTIONS * (rank + 2 * d_state), device=device, dtype=dtype)
    dt_weight = torch.randn(DIRECTIONS, channels, rank, device=device) * rank**-0.5
    A = -torch.rand(DIRECTIONS * channels, d_state, device=device) * d_state - 0.5
    D, bias = torch.ones(len(A), device=device), torch.rand(len(A), device=device) * 4 - 6
    return [x, x_dbl, dt_weight, A, D, bias]


def forward_step(function: Callable[..., Tensor], tensors: list[Tensor]) -> Callable[[], object]:
    def step() -> None:
        with torch.inference_mode():
            function(*tensors)

    return step


def training_step(function: Callable[..., Tensor], tensors: list[Tensor]) -> Callable[[], object]:
    leaves = [t.clone().requires_grad_() for t in tensors]
    dy = torch.randn(tensors[0].shape, device=tensors[0].device)
    return lambda: torch.autograd.grad(function(*leaves), leaves, dy)


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
    """Each tensor once: x, x_dbl and y, and on the way back dy, x, x_dbl, dx and dx_dbl."""
    x, x_dbl = tensors[0], tensors[1]
    y = x.numel() * 4
    forward = x.nbytes + x_dbl.nbytes + y
    return forward if mode == "forward" else forward + y + 2 * (x.nbytes + x_dbl.nbytes)


def measure(args: argparse.Namespace) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    bandwidth = copy_bandwidth(args.device)
    print(f"copy bandwidth {bandwidth / 1e9:.1f} GB/s")
    print("mode      d_state batch stage   unfused ms     fused ms  fused/unfused  GB/s (share of copy)")
    makers = {"forward": forward_step, "training": training_step}
    for mode in args.modes:
        for d_state in args.d_state:
            for batch in args.batch_size:
                for stage in args.stages:
                    tensors = inputs(batch, stage, d_state, args.ratio, args.device, getattr(torch, args.dtype))
                    steps = {f.__name__: makers[mode](f, tensors) for f in (unfused, ss2d)}
                    times: dict[str, list[float]] = {name: [] for name in steps}
                    for step in steps.values():
                        step()
                    for _ in range(args.repeats):
                        for name, step in steps.items():
                            times[name].append(milliseconds(step, args.device, args.least))
                    slow, fast = (statistics.median(times[f.__name__]) for f in (unfused, ss2d))
                    speed = necessary_bytes(tensors, mode) / (fast * 1e-3)
                    print(
                        f"{mode:9} {d_state:7} {batch:5} {stage:5} {slow:12.3f} {fast:12.3f} {fast / slow:14.2f}"
                        f"  {speed / 1e9:5.1f} ({speed / bandwidth:.0%})"
                    )
                    row = {"mode": mode, "d_state": d_state, "batch": batch, "stage": stage}
                    figures = {"unfused_ms": slow, "fused_ms": fast, "bytes_per_second": speed}
                    rows.append({**row, "shape": list(tensors[0].shape), **figures})
    return rows


def method(args: argparse.Namespace) -> str:
    device = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or platform.machine()
    used = ", ".join(f"{row.operator}: {row.backend}" for row in explain() if row.device == args.device)
    load = f", load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"method: {device}, {torch.get_num_threads()} threads{load}, torch {torch.__version__}; {used}; {args.dtype}, "
        f"channel-last, {DIRECTIONS} directions, channels x {args.ratio}; training = forward and every gradient; one "
        f"warm-up, median of {args.repeats} interleaved repeats of at least {args.least} s; clocks as they are"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="of x and x_dbl")
    parser.add_argument("--modes", nargs="+", default=["forward", "training"], choices=("forward", "training"))
    parser.add_argument("--d-state", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 2, 3, 4], choices=(1, 2, 3, 4))
    parser.add_argument("--ratio", type=int, default=1, help="inner width over model width: 1 for s1, 2 for s2 and v0")
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
