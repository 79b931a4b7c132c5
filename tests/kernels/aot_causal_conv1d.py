"""The Triton kernels of the causal convolution as they are compiled ahead of time, and what they may cost."""

from .triton_aot import AotKernel

_STRIDES = ("batch", "channel", "time")


def _kernel(name: str, tensors: dict[str, str], last: bool, block: tuple[int, int], **gates) -> AotKernel:
    """Both of Vim's directions from one x, 4 taps; the stride that is 1 is known, the others and the sizes are not."""
    one = "channel" if last else "time"
    strided = [t for t in ("dout", "x", "dx", "out") if t in tensors]
    strides = [f"{t}_{s}" for t in strided for s in _STRIDES]
    signature = {**tensors, "length": "i32", "channels": "i32"}
    signature |= {s: "i64" for s in strides if not s.endswith(one)}
    constexprs: dict[str, object] = {s: 1 for s in strides if s.endswith(one)}
    constexprs |= {"G": 2, "W": 4, "REVERSE": 2, "SILU": True, "FLIP": True, "SHARED": True, "HAS_BIAS": True}
    constexprs |= {"BLOCK_T": block[0], "BLOCK_C": block[1]}
    divisible = ("channels", *(s for s in signature if s in strides)) if last else ("length", *signature)[1:]
    return AotKernel(
        f"vmamba_kernels.causal_conv1d.triton:{name}", signature, constexprs, elements=block[0] * block[1],
        divisible=tuple(d for d in divisible if signature[d] in ("i32", "i64")), **gates,
    )  # fmt: skip


def _forward(dtype: str, last: bool, **gates) -> AotKernel:
    tensors = {"x": f"*{dtype}", "weight": "*fp32", "bias": "*fp32", "out": f"*{dtype}"}
    return _kernel("forward_kernel", tensors, last, (32, 64) if last else (64, 32), **gates)


def _backward(dtype: str, last: bool, **gates) -> AotKernel:
    tensors = {"dout": f"*{dtype}", "x": f"*{dtype}", "weight": "*fp32", "bias": "*fp32", "dx": f"*{dtype}"}
    tensors["partial"] = "*fp32"
    return _kernel("backward_kernel", tensors, last, (16, 64) if last else (64, 16), **gates)


KERNELS = [
    _forward("bf16", True, registers=96, instructions=95),
    _forward("bf16", False, registers=136, instructions=125),
    _forward("fp32", True, registers=96, instructions=95),
    _backward("bf16", True, registers=176, instructions=450),
    _backward("fp32", False, registers=176, instructions=420),
]
