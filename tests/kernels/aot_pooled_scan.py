"""The Triton kernels of the pooled scan at the shapes of FastVim-T, as their launcher specialises them."""

from __future__ import annotations

from .triton_aot import AotKernel

MODULE = "vmamba_kernels.pooled_scan.triton_kernels"
# E = 384 channels a direction, 14 x 14 tokens: channels and their strides are multiples of 16, sizes of the image not.
U = ("u_b", "u_c", "u_t", "delta_b", "delta_c", "delta_t")
PROJECTIONS = ("B_b", "B_k", "B_n", "B_t", "C_b", "C_k", "C_n", "C_t")
RECURRENCE = ("batch", "groups", "channels", "steps", "N", "ratio", "reverse")


def integers(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "i32")


def scan(dtype: str, keep: bool, registers: int) -> AotKernel:
    pointers = dict.fromkeys(("u", "delta"), f"*{dtype}") | {"A": "*fp32"} | dict.fromkeys(("B", "C"), f"*{dtype}")
    pointers |= dict.fromkeys(("bias", "z", "states"), "*fp32")
    dense = {"u_c": 1, "delta_c": 1, "ratio": 1}
    sizes = {n: t for n, t in integers(*U, *PROJECTIONS, *RECURRENCE).items() if n not in dense}
    return AotKernel(
        f"{MODULE}:scan_kernel",
        {**pointers, **sizes},
        {**dense, "CHUNK": 32, "WIDTH": 64, "STATES": 16, "SOFTPLUS": True, "BIAS": True, "KEEP": keep},
        registers=registers,
        num_warps=2,
        divisible=("u_b", "u_t", "delta_b", "delta_t", "channels", "N"),
        load_bits=0,
        store_bits=0,
    )


def scan_backward(dtype: str, chunk: int, width: int, warps: int, registers: int, stack: int = 0) -> AotKernel:
    narrow, wide = f"*{dtype}", "*fp32"
    pointers = {"dz": wide, "u": narrow, "delta": narrow, "A": wide, "B": narrow, "C": narrow, "bias": wide}
    pointers |= {"states": wide, "du": narrow, "ddelta": narrow, "dA": wide, "dbias": wide, "dBC": wide, "carry": wide}
    dense = {"u_c": 1, "delta_c": 1, "du_c": 1, "ddelta_c": 1, "ratio": 1}
    results = ("du_b", "du_c", "du_t", "ddelta_b", "ddelta_c", "ddelta_t")
    named = integers("dz_k", *U, *PROJECTIONS, *results, *RECURRENCE, "dz_width")
    sizes = {n: t for n, t in named.items() if n not in dense}
    return AotKernel(
        f"{MODULE}:scan_backward_kernel",
        {**pointers, **sizes},
        {**dense, "CHUNK": chunk, "WIDTH": width, "SOFTPLUS": True, "BIAS": True},
        registers=registers,
        stack=stack,
        num_warps=warps,
        divisible=("u_b", "u_t", "delta_b", "delta_t", "du_b", "du_t", "ddelta_b", "ddelta_t", "channels", "dz_width"),
        load_bits=0,
        store_bits=0,
    )


def tile(last: bool) -> dict[str, object]:
    sizes = {"TOKENS": 16, "WIDTH": 128} if last else {"TOKENS": 64, "WIDTH": 16}
    return {"ADDED": 2, "SKIP": True, "CHANNEL_LAST": last, **sizes}


def expand(dtype: str, out: str, last: bool, registers: int, instructions: float) -> AotKernel:
    sizes = integers("u_b", "u_k", "u_line", "y_b", "y_line")
    sizes |= integers("groups", "channels", "tokens", "steps", "inner", "pool2", "pool")
    line = ("u_line", "y_line") if last else ()
    return AotKernel(
        f"{MODULE}:expand_kernel",
        {"u": f"*{dtype}", "D": "*fp32", "z": "*fp32", "y": f"*{out}", **sizes},
        tile(last),
        registers=registers,
        elements=2048 if last else 1024,
        instructions=instructions,
        divisible=("u_b", "u_k", "y_b", "channels", *line),
        load_bits=128 if last else 0,
        store_bits=128 if last else 0,
        note=f"channel-{'last' if last else 'first'} to {out}",
    )


def gather(dtype: str, gradient: str, last: bool, registers: int, instructions: float) -> AotKernel:
    sizes = integers("dy_b", "dy_line", "u_b", "u_k", "u_line", "du_b", "du_k", "du_line")
    sizes |= integers("groups", "channels", "steps", "inner", "pool1", "pool2", "splits")
    line = ("dy_line", "u_line", "du_line") if last else ()
    pointers = {"dy": f"*{gradient}", "u": f"*{dtype}", "D": "*fp32", "du": f"*{dtype}", "dz": "*fp32", "dD": "*fp32"}
    return AotKernel(
        f"{MODULE}:gather_kernel",
        {**pointers, **sizes},
        tile(last),
        registers=registers,
        elements=2048 if last else 1024,
        instructions=instructions,
        divisible=("dy_b", "u_b", "u_k", "du_b", "du_k", "channels", *line),
        load_bits=128 if last else 0,
        store_bits=64 if last else 0,
        note=f"channel-{'last' if last else 'first'} from {gradient}",
    )


KERNELS: list[AotKernel] = [
    scan("bf16", False, 128),
    scan("fp32", True, 128),
    scan_backward("bf16", 16, 64, 4, 255, stack=24),  # 8 warps spill nothing and take 1.4 times the instructions
    scan_backward("bf16", 32, 32, 8, 232),
    expand("bf16", "bf16", True, 72, 36.0),
    expand("bf16", "fp32", True, 72, 40.0),
    expand("bf16", "bf16", False, 72, 80.0),
    gather("bf16", "bf16", True, 184, 75.0),
    gather("bf16", "fp32", False, 240, 176.0),
]
