"""Images per second of whole backbones, side by side in one run: ``python kernels/benchmarks/backbone.py``.

Every model sees the same random batch. Repeats of the models are interleaved, so that a slow minute of the machine
falls on all of them; the figure is the median over the repeats, the ratio is against the first model named.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch

import vmamba.models  # noqa: F401  registers the models with timm

MODELS = ("vmamba_tiny_s1l8", "swin_tiny_patch4_window7_224", "convnext_tiny")


def inference_step(model: torch.nn.Module, images: torch.Tensor) -> Callable[[], None]:
    model.eval()

    def step() -> None:
        with torch.inference_mode():
            model(images)

    return step


def training_step(model: torch.nn.Module, images: torch.Tensor) -> Callable[[], None]:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    labels = torch.arange(len(images), device=images.device)

    def step() -> None:
        loss = torch.nn.functional.cross_entropy(model(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def seconds(step: Callable[[], None], device: torch.device, count: int) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(count):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) / count


def measure(names: list[str], mode: str, args: argparse.Namespace) -> dict[str, list[float]]:
    """Return images per second, one value a repeat, of each model in `mode`."""
    device = torch.device(args.device)
    make = inference_step if mode == "inference" else training_step
    steps = {}
    for name in names:
        torch.manual_seed(0)
        model = timm.create_model(name).to(device)
        images = torch.randn(args.batch_size, 3, args.size, args.size, device=device)
        if args.channels_last:
            model, images = model.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
        step = make(model, images)
        if args.amp != "off":
            step = autocast(step, device.type, getattr(torch, args.amp))
        for _ in range(args.warmup):
            step()
        steps[name] = step
    speeds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(args.repeats):
        for name, step in steps.items():
            speeds[name].append(args.batch_size / seconds(step, device, args.steps))
    return speeds


def autocast(step: Callable[[], None], device_type: str, dtype: torch.dtype) -> Callable[[], None]:
    def wrapped() -> None:
        with torch.autocast(device_type, dtype):
            step()

    return wrapped


def method(args: argparse.Namespace) -> str:
    device = (
        torch.cuda.get_device_name() if args.device.startswith("cuda") else platform.processor() or platform.machine()
    )
    return (
        f"method: {device}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}, "
        f"torch {torch.__version__}, timm {timm.__version__}, float32 weights, autocast {args.amp}, "
        f"TF32 {torch.backends.cuda.matmul.allow_tf32}, channels_last {args.channels_last}, eager, batch "
        f"{args.batch_size} at {args.size}x{args.size}; {args.warmup} warm-up steps, median of {args.repeats} "
        f"interleaved repeats of {args.steps} steps; training = forward, loss, backward, AdamW"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="timm names, ours among them")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--size", type=int, default=224, help="pixels a side")
    parser.add_argument("--amp", choices=("off", "bfloat16", "float16"), default="off")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1, help="steps in one repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    args = parser.parse_args()

    print(method(args))
    figures: dict[str, dict[str, float]] = {}
    for mode in ("inference", "training"):
        speeds = measure(args.models, mode, args)
        first = statistics.median(speeds[args.models[0]])
        for name, values in speeds.items():
            median = statistics.median(values)
            figures.setdefault(name, {})[mode] = median
            spread = f"{min(values):.1f} to {max(values):.1f}"
            print(f"{mode:9}  {name:32} {median:8.1f} images/s  ({spread})  {median / first:.2f} x {args.models[0]}")
    if args.json:
        args.json.write_text(json.dumps({"method": method(args), "images_per_second": figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
