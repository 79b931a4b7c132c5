"""Small odd causal convolutions through the CUDA ops and nothing else on the GPU: what compute-sanitizer runs.

Tensors are made on the host and copied, so that every kernel launched is ours and every byte read was written by a copy
or by our kernels.
"""

import torch

from vmamba_kernels import native
from vmamba_kernels.causal_conv1d.compiled import parts

DEVICE = "cuda"


def main() -> None:
    assert native.load(DEVICE).loaded, native.load(DEVICE).reason
    forward, backward = torch.ops.vmamba._causal_conv1d, torch.ops.vmamba._causal_conv1d_backward
    g = torch.Generator().manual_seed(0)
    for length, channels, groups, width, own, last, flip in (
        (197, 36, 2, 4, False, True, True), (21, 10, 2, 3, False, True, False), (270, 3, 2, 4, False, False, True),
        (35, 5, 3, 8, True, False, False), (24, 16, 3, 4, True, True, True), (1, 7, 1, 1, False, True, False),
        (530, 2, 1, 5, False, False, False),
    ):  # fmt: skip
        for dtype in (torch.float32, torch.bfloat16):

            def sequence(count: int, filled: bool, length=length, dtype=dtype, last=last) -> torch.Tensor:
                shape = (2, length, count) if last else (2, count, length)
                if filled:
                    x = torch.randn(shape, generator=g).to(dtype).to(DEVICE)
                else:
                    x = torch.empty(shape, dtype=dtype, device=DEVICE)
                return x.transpose(1, 2) if last else x

            inputs, outputs = channels * (groups if own else 1), channels * groups
            x, dout = sequence(inputs, True), sequence(outputs, True)
            weight = torch.randn(groups, channels, width, generator=g).to(DEVICE)
            bias = torch.randn(groups, channels, generator=g).to(DEVICE)
            out, dx = sequence(outputs, False), sequence(inputs, False)
            dweight, dbias = torch.empty_like(weight), torch.empty_like(bias)
            partial = weight.new_empty(parts(x), groups, width + 1, channels)
            options = (2 if groups > 1 else 1, True, flip)  # the first of several groups is not reversed
            forward(x, weight, bias, out, *options)
            backward(dout, x, weight, bias, dx, dweight, dbias, partial, *options)
            for result in (out, dx, dweight, dbias):
                assert torch.isfinite(result.cpu()).all()
    print("all convolutions ran")


if __name__ == "__main__":
    main()
