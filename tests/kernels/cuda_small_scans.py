"""Small odd scans through the CUDA ops and nothing else on the GPU: what compute-sanitizer runs.

Tensors are made on the host and copied, so that every kernel launched is ours and every byte read was written by a copy
or by our kernels.
"""

import torch

from vmamba_kernels import native


def main() -> None:
    assert native.load("cuda").loaded, native.load("cuda").reason
    scan, backward = torch.ops.vmamba.selective_scan, torch.ops.vmamba.selective_scan_backward
    g = torch.Generator().manual_seed(0)
    for states, length, channels, ratio, last in (
        (1, 49, 40, 1, False), (1, 70, 97, 1, True), (1, 33, 12, 3, True),
        (3, 67, 33, 1, False), (16, 40, 36, 1, True), (17, 35, 6, 2, False), (1, 37, 130, 1, True),
    ):  # fmt: skip
        for dtype in (torch.float32, torch.bfloat16):
            kd = 2 * channels

            def sequence(count: int, length=length, dtype=dtype, last=last) -> torch.Tensor:
                x = torch.randn(2, length, count, generator=g, dtype=torch.float32).to(dtype).cuda()
                if last:
                    return x.transpose(1, 2)
                return x.view(2, count, length)

            B, C = (torch.randn(2, 2, states, length, generator=g).to(dtype).cuda() for _ in range(2))
            A = (-torch.rand(kd, states, generator=g)).cuda()
            D, bias = torch.randn(kd, generator=g).cuda(), torch.randn(kd // ratio, generator=g).cuda()
            inputs = (sequence(kd), sequence(kd // ratio), A, B, C, D, bias)
            out, state, stored = scan(*inputs, True, torch.float32, True)
            dout = torch.randn(out.shape, generator=g).cuda()
            dlast = torch.randn(state.shape, generator=g).cuda()
            grads = backward(dout, dlast, *inputs, stored, True)
            with native.use_cuda_atomics():
                varying = backward(dout, dlast, *inputs, stored, True)
            for x in (out, state, *grads, *varying):
                assert torch.isfinite(x.cpu()).all()
    print("all scans ran")


if __name__ == "__main__":
    main()
