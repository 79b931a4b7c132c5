"""Milliseconds of the CUDA selective scan at VMamba's stages: ``python kernels/benchmarks/selective_scan_cuda.py``.

Times are medians of CUDA events around single calls, after a warm-up, over rotating input sets larger than the cache;
"of copy" is the share of the bandwidth of a device-to-device copy measured in the same run, counting every tensor once.
The peers see the same channel-first tensors: mamba-ssm where it is installed, and a plain PyTorch scan of the same
recurrence (doubling over time), where it fits into memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from vmamba_kernels import native, selective_scan

GROUPS = 4
STAGES = ((96, 3136), (192, 784), (384, 196), (768, 49))  # channels of a group, length
CACHE_BYTES = 256 << 20


def channel_last(x: Tensor) -> Tensor:
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def make_inputs(batch: int, channels: int, length: int, states: int, dtype: torch.dtype, layout: str) -> list[Tensor]:
    kd = GROUPS * channels
    u = torch.randn(batch, kd, length, device="cuda").to(dtype)
    delta = (torch.randn(batch, kd, length, device="cuda") - 2).to(dtype)
    if layout == "last":
        u, delta = channel_last(u), channel_last(delta)
    A = -torch.rand(kd, states, device="cuda") - 0.5
    B, C = (torch.randn(batch, GROUPS, states, length, device="cuda").to(dtype) for _ in range(2))
    return [u, delta, A, B, C, torch.randn(kd, device="cuda"), torch.randn(kd, device="cuda")]


def ours(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
    out = selective_scan(u, delta, A, B, C, D, bias, backend="cuda")
    assert isinstance(out, Tensor)
    return out


def doubling(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
    """The recurrence by log2(L) passes over [B, KD, N, L]: what plain PyTorch can do without a loop over time."""
    dt = torch.nn.functional.softplus(delta.float() + bias[:, None])
    wide = u.shape[1] // B.shape[1]
    a = torch.exp(dt[:, :, None] * A[:, :, None])
    h = (dt * u)[:, :, None] * B.float().repeat_interleave(wide, 1)
    step = 1
    while step < u.shape[2]:
        h = torch.cat([h[..., :step], h[..., step:] + a[..., step:] * h[..., :-step]], -1)
        a = torch.cat([a[..., :step], a[..., step:] * a[..., :-step]], -1)
        step *= 2
    return (h * C.float().repeat_interleave(wide, 1)).sum(2) + D[:, None] * u


def mamba_ssm() -> Callable[..., Tensor] | None:
    try:
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
    except (ImportError, RuntimeError):
        return None
    return lambda u, delta, A, B, C, D, bias: selective_scan_fn(
        u, delta, A, B, C, D, delta_bias=bias, delta_softplus=True
    )


def median_ms(calls: list[Callable[[], object]], repeats: int) -> float:
    for call in calls:
        call()
    times = []
    for i in range(repeats):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        calls[i % len(calls)]()
        stop.record()
        times.append((start, stop))
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(stop) for start, stop in times)


def forward_call(scan: Callable[..., Tensor], tensors: list[Tensor]) -> Callable[[], object]:
    def call() -> None:
        with torch.no_grad():
            scan(*tensors)

    return call


def backward_call(scan: Callable[..., Tensor], tensors: list[Tensor]) -> Callable[[], object]:
    """The backward alone, on a graph that is kept."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    out = scan(*leaves)
    dout = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, leaves, dout, retain_graph=True)


def copy_bandwidth() -> float:
    source = torch.randn(1 << 29, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / (median_ms([lambda: target.copy_(source)], 20) * 1e-3)


def necessary_bytes(tensors: list[Tensor], mode: str) -> int:
    """Inputs and outputs once: y is float32; backward reads dy and the inputs and writes their gradients."""
    read = sum(t.nbytes for t in tensors)
    y = tensors[0].numel() * 4
    return read + y if mode == "forward" else 2 * read + y


def measure(args: argparse.Namespace) -> list[dict[str, object]]:
    bandwidth = copy_bandwidth()
    print(f"copy bandwidth {bandwidth / 1e9:.0f} GB/s")
    peers: dict[str, Callable[..., Tensor] | None] = {"mamba_ssm": mamba_ssm(), "doubling": doubling}
    rows: list[dict[str, object]] = []
    print("mode     d_state type     layout stage      ms   GB/s  of copy   peers, times slower")
    for states in args.d_state:
        for dtype in args.dtypes:
            for layout in args.layouts:
                for stage, (channels, length) in enumerate(STAGES, 1):
                    shape = (args.batch_size, channels * args.ratio, length, states, getattr(torch, dtype), layout)
                    first = make_inputs(*shape)
                    sets = 1 + CACHE_BYTES // max(1, necessary_bytes(first, "forward"))
                    inputs = [first, *(make_inputs(*shape) for _ in range(min(sets, 8) - 1))]
                    for mode, make in (("forward", forward_call), ("backward", backward_call)):
                        ms = median_ms([make(ours, t) for t in inputs], args.repeats)
                        speed = necessary_bytes(first, mode) / (ms * 1e-3)
                        slower = {}
                        for name, peer in peers.items():
                            room = first[0].numel() * states * 4 * (12 if mode == "forward" else 80)
                            if peer is None or layout == "last":
                                continue
                            if name == "doubling" and room > torch.cuda.mem_get_info()[0]:
                                continue
                            seen = inputs if name == "mamba_ssm" else [first]
                            slower[name] = median_ms([make(peer, t) for t in seen], max(3, args.repeats // 10)) / ms
                        print(
                            f"{mode:8} {states:7} {dtype:8} {layout:6} {stage:5} {ms:8.3f} {speed / 1e9:6.0f} "
                            f"{speed / bandwidth:8.0%}   {', '.join(f'{n} {x:.1f}' for n, x in slower.items())}",
                            flush=True,
                        )
                        row = {"mode": mode, "d_state": states, "dtype": dtype, "layout": layout, "stage": stage}
                        rows.append({**row, "ms": ms, "bytes_per_second": speed, "copy": bandwidth, "slower": slower})
                    del inputs, first
                    torch.cuda.empty_cache()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--d-state", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--layouts", nargs="+", default=["first", "last"], choices=("first", "last"))
    parser.add_argument("--ratio", type=int, default=1, help="inner width over model width")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("error: this benchmark needs a CUDA device")
    if native.load("cuda").reason:
        raise SystemExit(f"error: {native.load('cuda').reason}")
    method = (
        f"method: {torch.cuda.get_device_name()}, torch {torch.__version__}, batch {args.batch_size}, {GROUPS} groups, "
        f"channels x {args.ratio}, y float32; CUDA events, median of {args.repeats} single calls over rotating inputs; "
        "clocks as they are; backward alone, forward without saved states; mamba-ssm writes y in the input's type"
    )
    print(method)
    rows = measure(args)
    if args.json:
        args.json.write_text(json.dumps({"method": method, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
