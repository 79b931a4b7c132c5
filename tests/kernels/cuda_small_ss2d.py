"""Small odd images through the CUDA ss2d and nothing else on the GPU: what compute-sanitizer runs.

Tensors are made on the host and copied, so that every kernel launched is ours and every byte read was written by a copy
or by our kernels.
"""

import torch

from vmamba_kernels import native, scan_order


def padded(order: str, H: int, W: int) -> torch.Tensor:
    found = scan_order(order, H, W)
    return torch.cat([found, found[:, -1:].expand(-1, -found.shape[1] % 256)], dim=1).to(torch.int32).cuda()


def main() -> None:
    assert native.load("cuda").loaded, native.load("cuda").reason
    forward, backward = torch.ops.vmamba._ss2d_sequences, torch.ops.vmamba._ss2d_sequences_backward
    g = torch.Generator().manual_seed(0)
    for H, W, channels, states, rank, order in (
        (7, 7, 40, 1, 6, "cross2d"), (1, 70, 97, 1, 1, "bidi"), (33, 1, 12, 3, 5, "cross2d"),
        (67, 61, 9, 1, 6, "rot90"), (5, 8, 36, 16, 4, "rows_both"), (5, 7, 6, 40, 33, "unidi"),
        (150, 149, 3, 1, 2, "rows_both"),
    ):  # fmt: skip
        for dtype in (torch.float32, torch.bfloat16):
            L, K = H * W, len(scan_order(order, 1, 1))

            def random(*shape: int, g=g) -> torch.Tensor:
                return torch.randn(*shape, generator=g)

            x = random(2, L, channels).to(dtype).cuda().transpose(1, 2)
            x_dbl = random(2, L, K * (rank + 2 * states)).to(dtype).cuda()
            weight = (random(K, channels, rank) * rank**-0.5).cuda()
            A = (-torch.rand(K * channels, states, generator=g)).cuda()
            D, bias = random(K * channels).cuda(), (random(K * channels) - 1).cuda()
            inputs = (x, x_dbl, weight, A, D, bias, padded(order, H, W))
            y, stored = forward(*inputs, 32, torch.float32, True)
            dy = random(2, L, channels).cuda().transpose(1, 2)
            grads = backward(dy, *inputs, stored, 32)
            with native.use_cuda_atomics():
                varying = backward(dy, *inputs, stored, 32)
            for result in (y, stored, *grads, *varying):
                assert torch.isfinite(result.cpu()).all()
    print("all images ran")


if __name__ == "__main__":
    main()
