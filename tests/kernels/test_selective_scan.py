"""Values and gradients of the selective scan, for every backend, against a sequential scan in float64."""

from __future__ import annotations

import pytest
import torch

from vmamba_kernels import selective_scan, selective_scan_fn

from .selective_scan_cases import (
    BACKENDS,
    LAYOUTS,
    Case,
    assert_close,
    exact,
    relative_error,
    scan,
    sequential,
)

# Chunks are 64 steps up to 32 states and 128 above: lengths and state counts on both sides of every boundary.
SHAPES = [
    *(Case(length=length) for length in (1, 2, 63, 64, 65, 129)),
    *(Case(d_state=n, length=70) for n in (2, 3, 4, 8, 16, 17)),
    Case(batch=1, groups=1, group_channels=3, d_state=256, length=130),
    Case(batch=1, groups=1, group_channels=1, d_state=1, length=65),
    Case(batch=1, groups=4, group_channels=96, length=33),
    Case(batch=3, groups=1, group_channels=100, d_state=5, length=66),
    Case(batch=1, groups=3, group_channels=8, d_state=33, length=129),
    *(Case(d_state=n, optional=False) for n in (1, 4)),
    *(Case(d_state=n, softplus=False) for n in (1, 4)),
    *(Case(shared=shared, d_state=n) for shared in (2, 24) for n in (1, 4)),
]
TWO_STATES = pytest.mark.parametrize("d_state", [1, 4])


@pytest.mark.parametrize("run", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_float32_matches_float64(run, layout, case):
    device, backend = run
    tensors = case.tensors(layout=layout, device=device)
    ours = scan(tensors, backend, delta_softplus=case.softplus)
    assert ours["y"].dtype is torch.float32
    assert_close(ours, exact(tensors, case.softplus), 3e-6)


@pytest.mark.parametrize("run", BACKENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", [Case(), Case(d_state=4), Case(group_channels=9, shared=2)], ids=str)
@pytest.mark.parametrize("float_out", [True, False], ids=["float32_out", "same_out"])
def test_low_precision_is_no_worse_than_twice_the_reference(run, layout, dtype, case, float_out):
    device, backend = run
    tensors = case.tensors(dtype, layout, device)
    out_dtype = torch.float32 if float_out else dtype
    ours, reference = scan(tensors, backend, out_dtype=out_dtype), scan(tensors, "reference", out_dtype=out_dtype)
    expected = exact(tensors)
    assert ours["y"].dtype is out_dtype
    for name, tensor in zip(("du", "ddelta", "dB", "dC"), (tensors[0], tensors[1], tensors[3], tensors[4])):
        assert ours[name].dtype is tensor.dtype
    for name in ("last_state", "dA", "dD", "ddelta_bias"):
        assert ours[name].dtype is torch.float32
    for name in ours:
        ours_error, bound = relative_error(ours[name], expected[name]), relative_error(reference[name], expected[name])
        assert ours_error <= 2 * bound + 2e-6, f"{name}: {ours_error:.2e} against {bound:.2e} of the reference"


@pytest.mark.parametrize("run", BACKENDS)
@TWO_STATES
def test_softplus_around_its_threshold_and_far_below_zero(run, d_state):
    device, backend = run
    steps = torch.tensor([-60.0, -15.0, -1e-3, 0.0, 19.9, 20.1, 25.0, 60.0], device=device)
    tensors = Case(d_state=d_state, optional=False, length=8).tensors(device=device)
    tensors[1] = steps.expand_as(tensors[1]).contiguous()
    assert_close(scan(tensors, backend), exact(tensors), 3e-6)
    for step in range(8):
        single = [x[..., step : step + 1] if x is not None and x.dim() > 2 else x for x in tensors]
        ours = selective_scan(*single, return_last_state=True, backend=backend)[1]
        torch.testing.assert_close(ours.cpu().double(), exact(single)["last_state"], rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("run", BACKENDS)
@TWO_STATES
@pytest.mark.parametrize("decay", [-1e3, -1e4])
def test_huge_decay_over_a_long_sequence_is_finite_and_right(run, d_state, decay):
    device, backend = run
    tensors = Case(batch=1, groups=1, group_channels=8, d_state=d_state, length=4096).tensors(device=device)
    tensors[2] = torch.full_like(tensors[2], decay)
    ours = scan(tensors, backend)
    assert all(value.isfinite().all() for value in ours.values())
    short = [x[..., -64:] if x is not None and x.dim() > 2 else x for x in tensors]
    expected = exact(short)
    assert relative_error(ours["y"][..., -64:], expected["y"]) < 3e-6
    assert relative_error(ours["last_state"], expected["last_state"]) < 3e-6


@pytest.mark.parametrize("run", BACKENDS)
def test_a_long_sequence_with_a_slow_decay(run):
    device, backend = run
    tensors = Case(batch=1, groups=1, group_channels=8, length=16384).tensors(device=device)
    tensors[2] = torch.full_like(tensors[2], -1e-3)
    expected = scan([x if x is None else x.double() for x in tensors], "reference")
    assert_close(scan(tensors, backend), expected, 1e-5)


@pytest.mark.parametrize("run", BACKENDS)
@TWO_STATES
def test_a_growing_state_overflows_to_infinity_and_not_to_a_number(run, d_state):
    device, backend = run
    tensors = Case(d_state=d_state, length=80, batch=1).tensors(device=device)
    tensors[2] = tensors[2].abs()
    ours, expected = scan(tensors, backend), exact(tensors)
    assert_close({"y": ours["y"][..., :10]}, {"y": expected["y"][..., :10]}, 3e-6)
    tensors[2] = torch.full_like(tensors[2], 300.0)
    assert not scan(tensors, backend)["last_state"].isfinite().any()


@pytest.mark.parametrize("run", BACKENDS)
@TWO_STATES
@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "C", "D", "delta_bias"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=["nan", "inf"])
def test_nan_and_infinity_are_not_swallowed(run, d_state, name, bad):
    device, backend = run
    tensors = Case(batch=1, d_state=d_state, length=66).tensors(device=device)
    position = ("u", "delta", "A", "B", "C", "D", "delta_bias").index(name)
    tensors[position] = tensors[position].clone()
    tensors[position][(0,) * tensors[position].dim()] = bad
    plain = scan(tensors, "reference")
    ours = scan(tensors, backend)
    if bad != bad:
        assert ours["y"].isnan().any()
        assert torch.equal(ours["y"].isnan(), plain["y"].isnan())
    else:
        assert torch.equal(ours["y"].isfinite(), plain["y"].isfinite())


@pytest.mark.parametrize("run", BACKENDS)
def test_expanded_and_flipped_arguments(run):
    device, backend = run
    tensors = Case(d_state=3, length=40).tensors(device=device)
    tensors[0] = tensors[0][:, :, :1].expand_as(tensors[0])
    tensors[1] = tensors[1][:, :1].expand_as(tensors[1])
    tensors[3] = tensors[3].flip(-1)
    tensors[4] = tensors[4][:1].expand_as(tensors[4])
    assert_close(scan(tensors, backend), exact(tensors), 3e-6)


@pytest.mark.parametrize("run", BACKENDS)
@TWO_STATES
def test_a_subset_of_the_arguments_requires_gradients(run, d_state):
    device, backend = run
    tensors = Case(d_state=d_state).tensors(device=device)
    expected = exact(tensors)
    for position, name in ((0, "du"), (2, "dA"), (4, "dC"), (6, "ddelta_bias")):
        leaves = [x.detach() for x in tensors]
        leaves[position].requires_grad_()
        y, last = selective_scan(*leaves, return_last_state=True, backend=backend)
        make = torch.Generator().manual_seed(11)
        dy, dlast = torch.randn(y.shape, generator=make), torch.randn(last.shape, generator=make)
        (gradient,) = torch.autograd.grad([y, last], [leaves[position]], [dy.to(device), dlast.to(device)])
        assert relative_error(gradient, expected[name]) < 3e-6
        assert all(x.grad is None for x in leaves)


@pytest.mark.parametrize("run", BACKENDS)
def test_gradient_of_the_last_state_alone(run):
    device, backend = run
    tensors = [x.requires_grad_() for x in Case(d_state=2).tensors(device=device)]
    wide = [x.detach().double().cpu().requires_grad_() for x in tensors]
    selective_scan(*tensors, return_last_state=True, backend=backend)[1].square().sum().backward()
    sequential(*wide)[1].square().sum().backward()
    for ours, expected in zip(tensors, wide):
        if expected.grad is not None:
            assert relative_error(ours.grad, expected.grad) < 3e-6


@pytest.mark.parametrize("run", BACKENDS)
def test_without_gradients(run):
    device, backend = run
    tensors = [x.requires_grad_() for x in Case().tensors(device=device)]
    expected = selective_scan(*tensors, backend=backend)
    with torch.no_grad():
        assert torch.equal(selective_scan(*tensors, backend=backend), expected)
    with torch.inference_mode():
        assert torch.equal(selective_scan(*tensors, backend=backend), expected)


@pytest.mark.parametrize("run", BACKENDS)
def test_empty_batch(run):
    device, backend = run
    tensors = [None if x is None else x.to(device) for x in Case(batch=0).tensors()]
    values = scan(tensors, backend)
    assert values["y"].shape == (0, 24, 65) and values["dA"].abs().sum() == 0


@pytest.mark.parametrize("run", BACKENDS)
def test_published_signature(run):
    device, backend = run
    tensors = Case().tensors(torch.bfloat16, device=device)
    expected = selective_scan(*tensors, backend=backend)
    ours = selective_scan_fn(*tensors, True, True, backend)
    assert ours.dtype is torch.float32 and torch.equal(ours, expected)
    assert selective_scan_fn(*tensors, delta_softplus=True, oflex=False, backend=backend).dtype is torch.bfloat16
    assert torch.equal(selective_scan_fn(*tensors, backend="torch"), selective_scan(*tensors, backend="reference"))


@pytest.mark.parametrize("run", BACKENDS)
def test_autocast_widens_mixed_inputs_and_changes_nothing_else(run):
    device, backend = run
    tensors = Case().tensors(torch.bfloat16, device=device)
    with torch.autocast(device, torch.bfloat16):
        mixed = selective_scan(tensors[0].float(), *tensors[1:], backend=backend)
        same = selective_scan(*tensors, backend=backend)
    assert torch.equal(mixed, selective_scan(*(x.float() for x in tensors), backend=backend))
    assert torch.equal(same, selective_scan(*tensors, backend=backend))


@pytest.mark.parametrize("run", BACKENDS)
def test_weights_in_low_precision_are_used_in_float32(run):
    device, backend = run
    tensors = Case().tensors(torch.bfloat16, device=device)
    low = [x.bfloat16() for x in tensors]
    wide = [x.float() if i in (2, 5, 6) else x for i, x in enumerate(low)]
    assert torch.equal(selective_scan(*low, backend=backend), selective_scan(*wide, backend=backend))


@pytest.mark.parametrize("run", BACKENDS)
def test_vmap_over_inputs_and_over_weights(run):
    device, backend = run
    first, second = (Case(d_state=2, length=20).tensors(device=device) for _ in range(2))
    second = [x * 0.5 for x in second]

    def call(*tensors):
        return selective_scan(*tensors, backend=backend)

    every = torch.vmap(call)(*(torch.stack(pair) for pair in zip(first, second)))
    torch.testing.assert_close(every, torch.stack([call(*first), call(*second)]))
    some = torch.vmap(call, in_dims=(1, None, None, None, None, None, 0))(
        torch.stack([first[0], second[0]], 1), *first[1:6], torch.stack([first[6], second[6]])
    )
    torch.testing.assert_close(some[1], call(second[0], *first[1:6], second[6]))
