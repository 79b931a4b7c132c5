"""What matrix products leave for everything else: ``python kernels/benchmarks/floor.py``.

The products and dense convolutions of one step of each network are recorded and timed alone, beside the whole step. The
floor is the ratio to the last network that the others would reach if all that is not a product cost nothing.
"""

from __future__ import annotations

import argparse
import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from backbone import build
from report import Report
from timing import Clock
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vmamba.host_memory import keep_freed_memory
from vmamba.models.layers import Mlp
from vmamba.models.vim_mixer import VimMixer
from vmamba.steps import by_turns, inference_step, training_step

NETWORKS = ("vmamba_tiny_s1l8", "swin_tiny_patch4_window7_224")
ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
GROUPS = {"aten::convolution": 8, "aten::convolution_backward": 9, "vmamba::conv2d": 6, "vmamba::conv2d_backward": 6}
Call = tuple[str, tuple[Any, ...]]  # the op and its arguments, a tensor as its size and strides


class Products(TorchDispatchMode):
    """Counts the matrix products, dense convolutions and attentions that run inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Call] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, groups = func._schema.name.partition("::")[2], GROUPS.get(func._schema.name)
        product = name in ("mm", "addmm", "bmm", "baddbmm") or name.startswith("_scaled_dot")
        if product or (groups is not None and args[groups] == 1):
            kept = (((a.shape, a.stride()) if isinstance(a, Tensor) else a) for a in args)
            self.calls[name, tuple(tuple(a) if isinstance(a, list) else a for a in kept)] += 1
        return func(*args, **(kwargs or {}))


def _made(form: Any, device: torch.device) -> Tensor:
    size, stride = form
    length = 1 + sum((n - 1) * s for n, s in zip(size, stride))
    return torch.rand(length, device=device).as_strided(size, stride)


def _attention(name: str, tensors: list[Tensor]) -> Callable[[], Any]:
    """The products of an attention: two forward, four backward."""
    q, k, v = (t.flatten(0, 1).contiguous() for t in tensors[1 if name.endswith("backward") else 0 :][:3])
    p = q @ k.mT
    if not name.endswith("backward"):
        return lambda: (q @ k.mT, p @ v)
    return lambda: (q @ v.mT, p.mT @ q, p @ k, p.mT @ q)


def _convolution_backward(name: str, made: list[Any]) -> dict[str, Callable[[], Any]]:
    """The gradients of a dense convolution by PyTorch's operator and by ours, the recorded one first."""
    if name == "conv2d_backward":
        dy, x, weight, stride, padding, dilation, groups, wanted, _ = made
        dy, x = (t.permute(0, 3, 1, 2) for t in (dy, x))
    else:
        dy, x, weight, _, stride, padding, dilation, _, _, groups, wanted = made
    lasts, options = [t.permute(0, 2, 3, 1) for t in (dy, x)], (stride, padding, dilation)
    theirs, ours = torch.ops.aten.convolution_backward, torch.ops.vmamba.conv2d_backward
    ways = {
        "convolution_backward": lambda: theirs(dy, x, weight, [len(weight)], *options, False, [0, 0], groups, wanted),
        "conv2d_backward": lambda: ours(*lasts, weight, *options, groups, wanted, ""),
    }
    return {name: ways.pop(name), **ways}


def contenders(call: Call, device: torch.device) -> dict[str, Callable[[], Any]]:
    """The ways to compute a recorded call, on random tensors of its sizes and strides."""
    name, args = call
    made = [_made(a, device) if isinstance(a, tuple) and a and isinstance(a[0], torch.Size) else a for a in args]
    if name.startswith("_scaled_dot"):
        return {"bmm": _attention(name, [m for m in made if isinstance(m, Tensor)])}
    if name == "conv2d_backward" or (name == "convolution_backward" and made[2].dim() == 4 and not made[7]):
        return _convolution_backward(name, made)
    library = torch.ops.vmamba if name == "conv2d" else torch.ops.aten
    found: dict[str, Callable[[], Any]] = {name: lambda: getattr(library, name)(*made)}
    if name in ("mm", "addmm") and ONEDNN is not None and device.type == "cpu":
        *bias, a, b = made if name == "mm" else (made[0], *made[1:3])
        added = bias[0].contiguous() if bias else None
        found["oneDNN"] = lambda: ONEDNN(a.contiguous(), b.T.contiguous(), added, "none", [], "")
    return found


def alone(calls: Counter[Call], clock: Clock) -> tuple[float, float]:
    """Seconds of all calls, each by the way that the step takes, and each by its fastest way."""
    taken, best = 0.0, 0.0
    for call, count in calls.items():
        ways = contenders(call, clock.device)
        samples = clock.by_turns(ways, {name: clock.warm_up(way) for name, way in ways.items()})
        medians = [sample.median for sample in samples.values()]
        taken, best = taken + count * medians[0], best + count * min(medians)
    return taken, best


def step_of(name: str, mode: str, images: Tensor, seen: bool) -> Callable[[], object]:
    """A warm step of a network; if `seen`, the products inside its fused layers are made by ops of their own."""
    model = build(name, images.device)
    for module in model.modules() if seen else ():
        if isinstance(module, Mlp | VimMixer):  # a layer with a hook is called as itself
            (module.act if isinstance(module, Mlp) else module.layernorm).register_forward_hook(lambda *_: None)
    step = inference_step(model, images) if mode == "inference" else training_step(model, images, optimizer=False)
    if seen and mode == "inference":
        step = torch.no_grad()(lambda: model.eval()(images))  # inference mode would show layers, not their products
    step()
    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), metavar="NAME", help="as backbone.py has them")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--modes", nargs="+", default=["inference", "training"], choices=("inference", "training"))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224, help="pixels a side")
    parser.add_argument("--turns", type=int, default=5, help="of the whole networks")
    parser.add_argument("--seconds", type=float, default=0.1, help="for each way of each product")
    parser.add_argument("--json", type=Path, help="keep the figures in this file")
    args = parser.parse_args()

    clock, memory_kept = Clock(args.device, args.seconds, 60.0), keep_freed_memory()
    method = (
        f"float32, eager, batch {args.batch} at {args.size}x{args.size}, freed host memory "
        f"{'kept' if memory_kept else 'returned'}; whole: forward, in training loss and backward too, median of "
        f"{args.turns} turns, the networks by turns. Products: every mm, addmm, bmm, dense convolution and the "
        "products of every attention of one such step (seed 0, with the images that DropPath left), on random tensors "
        f"of their sizes and strides; {clock.method()}; fastest: the better of the step's call and oneDNN's linear "
        "layer with the copies that it needs; for a dense convolution's gradients, of PyTorch's operator and conv2d's"
    )
    report = Report("floor", args.device, method)
    images = torch.randn(args.batch, 3, args.size, args.size, device=clock.device)
    for mode in args.modes:
        alones = {}
        for name in args.networks:
            step = step_of(name, mode, images, seen=True)
            with Products() as recorded:
                step()
            alones[name] = (*alone(recorded.calls, clock), sum(recorded.calls.values()))
        steps = {name: step_of(name, mode, images, seen=False) for name in args.networks}
        times = by_turns(steps, clock.device, args.turns, 1)
        last = statistics.median(times[args.networks[-1]])
        for name, (taken, best, count) in alones.items():
            whole = statistics.median(times[name])
            row = {"products_ms": 1e3 * taken, "fastest_ms": 1e3 * best, "outside": 1 - taken / whole}
            row |= {"ratio": last / whole, "floor": last / best}
            report.add(network=name, mode=mode, ms=1e3 * whole, count=count, **row)
            print(
                f"{mode:9}  {name:30} whole {1e3 * whole:7.0f} ms, {count} products alone "
                f"{1e3 * taken:7.0f} ms (fastest {1e3 * best:.0f}), outside {100 * row['outside']:.0f} %; "
                f"{row['ratio']:.2f} x {args.networks[-1]}, at most {row['floor']:.2f} x",
                flush=True,
            )
    report.close(args.json)


if __name__ == "__main__":
    main()
