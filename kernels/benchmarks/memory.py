"""Peak memory of a training step, fused against unfused: ``python kernels/benchmarks/memory.py``.

Each network runs in a process of its own: two steps of forward, loss, backward and AdamW, then a third that is
measured. "allocated" is exact: on a CPU every allocation and release of PyTorch's allocator in that step, from its
profiler, on top of what lives before it (weights, optimizer, images); on a GPU the allocator's own maximum. "resident"
is the most memory that the process ever held (CPU), interpreter, libraries and the scratch of native code included.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path

import torch
from backbone import build
from report import Report

from vmamba.host_memory import allocated_by, living
from vmamba.steps import autocast, training_step

MIB = 2**20
NETWORKS = ("vmamba_tiny_s1l8", "vmamba_tiny_s1l8/unfused")


def one(name: str, args: argparse.Namespace) -> dict[str, float]:
    """The figures of one network, in MiB; run in a process of its own."""
    device = torch.device(args.device)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    model = build(name, device)
    images = torch.randn(args.batch, 3, args.size, args.size, device=device)
    step = training_step(model, images)
    if args.amp != "off":
        step = autocast(step, device.type, getattr(torch, args.amp))
    step()
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        return {"allocated": torch.cuda.max_memory_allocated() / MIB}
    step()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    step_peak = allocated_by(step)
    total = step_peak + living(model, 2, images)
    return {
        "allocated": total / MIB,
        "allocated by the step": step_peak / MIB,
        "resident": resident,
        "resident before the model": before,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), metavar="NAME", help="the last: the yardstick")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224, help="pixels a side")
    parser.add_argument("--amp", choices=("off", "bfloat16", "float16"), default="off")
    parser.add_argument("--json", type=Path, help="keep the figures in this file")
    parser.add_argument("--one", action="store_true", help="measure one network here and print JSON")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.networks[0], args)))
        return
    method = (
        f"training step, batch {args.batch} at {args.size}x{args.size}, float32 weights, autocast {args.amp}, a "
        "process each; allocated: the allocator's own count; resident: ru_maxrss"
    )
    report = Report("memory", args.device, method)
    options = ["--device", args.device, "--batch", str(args.batch), "--size", str(args.size), "--amp", args.amp]
    for name in args.networks:
        command = [sys.executable, __file__, "--one", "--networks", name, *options]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        figures = json.loads(done.stdout.splitlines()[-1])
        report.add(network=name, batch=args.batch, size=args.size, unit="MiB", **figures)
        print(f"{name:32} " + ", ".join(f"{key} {value:.0f} MiB" for key, value in figures.items()), flush=True)
    yardstick = report.rows[-1]
    for row in report.rows[:-1]:
        for key in ("allocated", "allocated by the step", "resident"):
            if key in row:
                print(f"{row['network']}: {key} {row[key] / yardstick[key] - 1:+.0%} of {yardstick['network']}")
    report.close(args.json)


if __name__ == "__main__":
    main()
