"""Milliseconds of causal_conv1d beside torch's own convolution: ``python kernels/benchmarks/causal_conv1d.py``.

What a Vim mixer needs: from one x [B, L, C], stored with the channels side by side, both directions of a depthwise
convolution of 4 taps with bias and SiLU. "torch" is F.conv1d and F.silu on x and on its flip; "compiled" the same under
torch.compile. Repeats of all are interleaved, so that a slow minute of the machine falls on all of them; the figure is
the median over the repeats.
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
import torch.nn.functional as F
from torch import Tensor

from vmamba_kernels import causal_conv1d
from vmamba_kernels.native import explain

WIDTH = 4
# Channels of the mixer and length: 224 pixels in patches of 16 (Vim with a class token), and FastVim at 224, 512, 1024.
SHAPES = {
    "vim_tiny": (384, 197), "vim_small": (768, 197), "vim_base": (1536, 197),
    "fastvim_tiny": (384, 196), "fastvim_tiny_512": (384, 1024), "fastvim_tiny_1024": (384, 4096),
    "fastvim_base": (1536, 196),
}  # fmt: skip


def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return causal_conv1d(x, weight, bias, "silu", reverse=(False, True), flip_output=True)


def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    parts = []
    for g, part in enumerate((x, x.flip(-1))):
        y = F.conv1d(part, weight[g][:, None], bias[g], padding=WIDTH - 1, groups=x.shape[1])
        parts.append(F.silu(y[..., : x.shape[-1]]))
    return torch.cat(parts, 1)


def inputs(batch: int, shape: str, device: str, dtype: torch.dtype) -> list[Tensor]:
    channels, length = SHAPES[shape]
    torch.manual_seed(0)
    x = torch.randn(batch, length, channels, device=device, dtype=dtype).transpose(1, 2)
    return [x, torch.randn(2, channels, WIDTH, device=device) / 2, torch.randn(2, channels, device=device)]


def forward_step(function: Callable[..., Tensor], tensors: list[Tensor]) -> Callable[[], object]:
    def step() -> None:
        with torch.inference_mode():
            function(*tensors)

    return step


def training_step(function: Callable[..., Tensor], tensors: list[Tensor]) -> Callable[[], object]:
    leaves = [t.detach().requires_grad_() for t in tensors]
    dy = torch.randn_like(function(*leaves))
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


def necessary_bytes(x: Tensor, mode: str) -> int:
    """Each tensor once: x and both outputs, and on the way back both gradients, x and dx."""
    return x.nbytes * (3 if mode == "forward" else 3 + 4)


def measure(args: argparse.Namespace) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    bandwidth = copy_bandwidth(args.device)
    print(f"copy bandwidth {bandwidth / 1e9:.1f} GB/s")
    print("mode     shape               batch  compared      ms   ours ms  ratio  GB/s of ours (share of copy)")
    makers = {"forward": forward_step, "training": training_step}
    functions = {"torch": plain, **({"compiled": torch.compile(plain)} if args.compiled else {}), "ours": ours}
    for mode in args.modes:
        for batch in args.batch_size:
            for shape in args.shapes:
                tensors = inputs(batch, shape, args.device, getattr(torch, args.dtype))
                steps = {name: makers[mode](f, tensors) for name, f in functions.items()}
                times: dict[str, list[float]] = {name: [] for name in steps}
                for step in steps.values():
                    step()
                for _ in range(args.repeats):
                    for name, step in steps.items():
                        times[name].append(milliseconds(step, args.device, args.least))
                medians = {name: statistics.median(t) for name, t in times.items()}
                speed = necessary_bytes(tensors[0], mode) / (medians["ours"] * 1e-3)
                for name in list(functions)[:-1]:
                    print(
                        f"{mode:8} {shape:18} {batch:6}  {name:8} {medians[name]:9.3f} {medians['ours']:9.3f} "
                        f"{medians[name] / medians['ours']:6.1f}  {speed / 1e9:7.1f} ({speed / bandwidth:.0%})"
                    )
                row = {"mode": mode, "shape": shape, "batch": batch, "x": list(tensors[0].shape)}
                rows.append({**row, "ms": medians, "bytes_per_second": speed, "copy_bytes_per_second": bandwidth})
    return rows


def method(args: argparse.Namespace) -> str:
    device = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or platform.machine()
    used = next(r.backend for r in explain() if r.operator == "causal_conv1d" and r.device == args.device)
    load = f", load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"method: {device}, {torch.get_num_threads()} threads{load}, torch {torch.__version__}; backend {used}; "
        f"{args.dtype}, channel-last, 2 directions, {WIDTH} taps; training = forward and every gradient; one warm-up, "
        f"median of {args.repeats} interleaved repeats of at least {args.least} s; clocks as they are"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--modes", nargs="+", default=["forward", "training"], choices=("forward", "training"))
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument("--compiled", action=argparse.BooleanOptionalAction, default=True, help="also torch.compile")
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
