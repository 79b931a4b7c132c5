"""Images per second of whole networks, side by side in one run: ``python kernels/benchmarks/backbone.py``.

Every network sees the same random batch. Their turns alternate, so that a slow minute of the machine falls on all of
them; the figure is the median over the turns, the ratio is against the first network named. NAME/unfused is a network
of ours whose scans and MLPs run as separate ops. Training is forward, loss, backward and AdamW.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

import timm
import torch
from report import Report

import vmamba.models  # noqa: F401  registers the models with timm
from vmamba.host_memory import keep_freed_memory
from vmamba.models import SS2D
from vmamba.models.layers import Mlp
from vmamba.steps import Step, autocast, by_turns, inference_step, training_step

NETWORKS = ("vmamba_tiny_s1l8", "vmamba_tiny_s1l8/unfused", "swin_tiny_patch4_window7_224", "convnext_tiny")


def build(name: str, device: torch.device) -> torch.nn.Module:
    """The network of that name with random weights, its scans and MLPs in separate ops if it ends in "/unfused"."""
    torch.manual_seed(0)
    published, _, how = name.partition("/")
    model = timm.create_model(published).to(device)
    if how not in ("", "unfused"):
        raise SystemExit(f"error: --networks {name}: after the slash only 'unfused' is known")
    if how:
        for module in model.modules():
            if isinstance(module, SS2D):
                module.options = replace(module.options, fused=False)
            if isinstance(module, Mlp):
                module.act.register_forward_hook(lambda *_: None)  # a layer with a hook is called as itself
    return model


def prepared(name: str, mode: str, args: argparse.Namespace) -> Step:
    """A warm step of a network."""
    device = torch.device(args.device)
    model = build(name, device)
    images = torch.randn(args.batch, 3, args.size, args.size, device=device)
    if args.channels_last:
        model, images = model.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    step = (inference_step if mode == "inference" else training_step)(model, images)
    if args.amp != "off":
        step = autocast(step, device.type, getattr(torch, args.amp))
    for _ in range(args.warmup):
        step()
    return step


def measure(mode: str, args: argparse.Namespace, report: Report) -> None:
    """A row for each network: images per second of a mode, or why there are none."""
    steps: dict[str, Step] = {}
    for name in args.networks:
        try:
            steps[name] = prepared(name, mode, args)
        except (RuntimeError, AssertionError) as error:  # out of memory, or an image size that a network refuses
            report.add(network=name, mode=mode, ms=None, skipped=str(error).splitlines()[0][:120])
            print(f"{mode:9}  {name:32} skipped: {report.rows[-1]['skipped']}")
    times = by_turns(steps, torch.device(args.device), args.turns, args.steps)
    speeds = {name: [args.batch / t for t in taken] for name, taken in times.items()}
    first = statistics.median(next(iter(speeds.values()), [1.0]))
    for name, values in speeds.items():
        median = statistics.median(values)
        row = {"images_per_second": median, "least": min(values), "most": max(values), "times_first": median / first}
        report.add(network=name, mode=mode, batch=args.batch, size=args.size, ms=1e3 * args.batch / median, **row)
        spread = f"{min(values):.1f} to {max(values):.1f}"
        print(f"{mode:9}  {name:32} {median:8.1f} images/s  ({spread})  {median / first:.2f} x {next(iter(speeds))}")


def method(args: argparse.Namespace, memory_kept: bool) -> str:
    return (
        f"float32 weights, autocast {args.amp}, TF32 {torch.backends.cuda.matmul.allow_tf32}, channels_last "
        f"{args.channels_last}, eager, batch {args.batch} at {args.size}x{args.size}; {args.warmup} warm-up steps, "
        f"median of {args.turns} turns of {args.steps} steps, the networks by turns; wall clock; training = forward, "
        f"loss, backward, AdamW; freed host memory {'kept' if memory_kept else 'returned'}, for every network"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), metavar="NAME", help="timm names, ours too")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--modes", nargs="+", default=["inference", "training"], choices=("inference", "training"))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224, help="pixels a side")
    parser.add_argument("--amp", choices=("off", "bfloat16", "float16"), default="off")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1, help="in one turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", type=Path, help="keep the figures in this file")
    args = parser.parse_args()

    report = Report("backbone", args.device, method(args, keep_freed_memory()))
    steps = args.turns * args.steps + args.warmup
    print(f"plan: {len(args.networks)} networks x {len(args.modes)} modes x {steps} steps")
    for mode in args.modes:
        measure(mode, args, report)
        if args.device == "cuda":
            torch.cuda.empty_cache()
    report.close(args.json)


if __name__ == "__main__":
    main()
