"""Compiled inference against eager on this machine, the two timed in turns: a ratio for each T model.

Method: each model runs one batch in eval mode under torch.inference_mode: eager, through torch.compile(fullgraph), and
through the same with options={"freezing": True}, which takes the weights for constants and packs them once. After the
compilations and a warm-up the three take turns, in an order that moves on each round, so that what else the machine
does meets all alike. A ratio is the median over the rounds of eager time by compiled time: above 1, compiled is faster.
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


def compare(name: str, device: str, batch: int, size: int, rounds: int, dynamic: bool) -> dict[str, list[float]]:
    """Seconds of each round, by contender."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = vmamba.create_model(name).eval().to(device)
    contenders: dict[str, Callable[[Tensor], Tensor]] = {
        "eager": model,
        "compiled": torch.compile(model, fullgraph=True, dynamic=dynamic or None),
        "frozen": torch.compile(model, fullgraph=True, dynamic=dynamic or None, options={"freezing": True}),
    }
    x = torch.randn(batch, 3, size, size, device=device)
    times: dict[str, list[float]] = {contender: [] for contender in contenders}
    with torch.inference_mode():
        for call in contenders.values():
            torch.testing.assert_close(call(x), model(x), rtol=1e-3, atol=1e-3)
        for number in range(rounds + 1):
            turn = number % len(contenders)
            for contender in (*list(contenders)[turn:], *list(contenders)[:turn]):
                times[contender].append(seconds(contenders[contender], x))
    return {contender: taken[1:] for contender, taken in times.items()}


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
    print("| model | eager, ms | compiled, ms | frozen, ms | eager / compiled | eager / frozen |")
    print("|---|---|---|---|---|---|")
    rows: list[dict[str, object]] = []
    for name in options.models:
        times = compare(name, options.device, options.batch, options.size, options.rounds, options.dynamic)
        ms = [1e3 * statistics.median(taken) for taken in times.values()]
        ratios = [statistics.median(a / b for a, b in zip(times["eager"], times[c])) for c in ("compiled", "frozen")]
        rows.append({"model": name, "ms": dict(zip(times, ms)), "compiled": ratios[0], "frozen": ratios[1]})
        print(
            f"| {name} | {' | '.join(f'{n:.1f}' for n in ms)} | {' | '.join(f'{r:.2f}' for r in ratios)} |", flush=True
        )
    if options.json:
        setting = {"torch": torch.__version__, "device": options.device, "batch": options.batch, "size": options.size}
        options.json.write_text(json.dumps({"setting": setting, "rows": rows}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
