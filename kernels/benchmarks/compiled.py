"""Compiled inference against eager on this machine, the two timed in turns: a ratio for each T model.

Method: each model runs one batch in eval mode under torch.inference_mode, eager and through torch.compile(fullgraph),
after the compilation and a warm-up of both; the calls alternate, so that what else the machine does meets both alike.
The ratio is the median over the rounds of eager time by compiled time: above 1, compiled is faster.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import vmamba

T_MODELS = (
    "vanilla_vmamba_tiny",
    "vmamba_tiny_s2l5",
    "vmamba_tiny_s1l8",
    "vmamba_tiny_0220",
    "vmamba_tiny_0229",
    "vmamba_tiny_0229flex",
)


def seconds(function: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """How long one call takes."""
    if x.is_cuda:
        torch.cuda.synchronize()
    start = time.perf_counter()
    function(x)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(name: str, device: str, batch: int, size: int, rounds: int, dynamic: bool) -> tuple[float, float, float]:
    """Median seconds of eager and of compiled, and the median of their ratios."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = vmamba.create_model(name).eval().to(device)
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic or None)
    x = torch.randn(batch, 3, size, size, device=device)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-3, atol=1e-3)
        pairs = []
        for number in range(rounds + 1):
            order = (model, compiled) if number % 2 else (compiled, model)
            times = {id(f): seconds(f, x) for f in order}
            if number:
                pairs.append((times[id(model)], times[id(compiled)]))
    eager, fast = (statistics.median(times) for times in zip(*pairs))
    return eager, fast, statistics.median(a / b for a, b in pairs)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=T_MODELS, metavar="NAME")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--dynamic", action="store_true", help="compile for any height and width")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args(argv)
    torch.backends.cudnn.allow_tf32 = False  # eager and compiled have to agree to the rounding of float32
    print(__doc__)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {options.batch} x 3 x {options.size}^2\n")
    print("| model | eager, ms | compiled, ms | eager / compiled |\n|---|---|---|---|")
    rows: list[dict[str, object]] = []
    ratios = []
    for name in options.models:
        eager, fast, ratio = compare(name, options.device, options.batch, options.size, options.rounds, options.dynamic)
        ratios.append(ratio)
        rows.append({"model": name, "eager_ms": eager * 1e3, "compiled_ms": fast * 1e3, "ratio": ratio})
        print(f"| {name} | {eager * 1e3:.1f} | {fast * 1e3:.1f} | {ratio:.2f} |", flush=True)
    print(f"\nleast ratio: {min(ratios):.2f}")
    if options.json:
        setting = {"torch": torch.__version__, "device": options.device, "batch": options.batch, "size": options.size}
        options.json.write_text(json.dumps({"setting": setting, "rows": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
