"""SS2DMamba2 against the text of its definition, written out with loops, and against the selective mixer."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmamba.errors import UserError
from vmamba.models import SS2D, VSSM, ForwardType, SS2DMamba2
from vmamba_kernels import scan_order

SUFFIXES = ["", "_noz", "_nozact", "_oact", "_no32", "_onnone", "_ondwconv3", "_oncnorm", "_onsoftmax", "_onsigmoid"]
LAST = (0, 2, 3, 1)


def scan_one(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """[L, R, P] from x [L, R, P], dt [L, R], A [R], B, C [L, N], D [R, P], head by head and step by step."""
    y = torch.empty_like(x)
    for r in range(x.shape[1]):
        h = x.new_zeros(x.shape[2], B.shape[1])
        for t in range(x.shape[0]):
            h = torch.exp(A[r] * dt[t, r]) * h + dt[t, r] * torch.outer(x[t, r], B[t])
            y[t, r] = h @ C[t] + D[r] * x[t, r]
    return y


def textbook(m: SS2DMamba2, x: Tensor) -> Tensor:
    """[B, H, W, D] of SS2DMamba2 on x [B, H, W, D], direction by direction in scan order."""
    o, R, N, inner = m.options, m.dt_rank, m.d_state, m.d_inner
    B, H, W, _ = x.shape
    x = x @ m.in_proj.weight.T
    z = None
    if o.gate:
        x, z = x[..., :inner], x[..., inner:]
        z = m.act(z) if o.gate_act else z
    image = x.permute(0, 3, 1, 2)
    if m.conv2d is not None:
        image = F.conv2d(image, m.conv2d[1].weight, m.conv2d[1].bias, padding=1, groups=inner)
    image = m.act(image).permute(LAST).flatten(1, 2)  # [B, L, I]
    y = torch.zeros_like(image)
    for b, (k, row) in itertools.product(range(B), enumerate(scan_order(o.scan_order, H, W))):
        u = image[b, row]
        projected = u @ m.x_proj_weight[k].T
        if hasattr(m, "x_proj_bias"):
            projected = projected + m.x_proj_bias[k]
        dt = F.softplus(projected[:, :R] + m.dt_projs_bias[k])
        heads = u.unflatten(1, (R, inner // R))
        scanned = scan_one(heads, dt, -torch.exp(m.A_logs[k]), projected[:, R : R + N], projected[:, R + N :], m.Ds[k])
        y[b, row] += scanned.flatten(1)
    y = y.unflatten(1, (H, W))
    if o.out_norm in ("ln", "cnorm"):
        norm = m.out_norm if o.out_norm == "ln" else m.out_norm[0]
        y = F.layer_norm(y, (inner,), norm.weight, norm.bias)
    if o.out_norm in ("dwconv3", "cnorm"):
        weight = next(p for p in m.out_norm.parameters() if p.dim() == 4)
        y = F.conv2d(y.permute(0, 3, 1, 2), weight, padding=1, groups=inner).permute(LAST)
    if o.out_norm == "softmax":
        y = y.flatten(1, 2).softmax(1).view(y.shape)
    if o.out_norm == "sigmoid":
        y = y.sigmoid()
    y = F.gelu(y) if o.out_act else y
    y = y if z is None else y * z
    return y @ m.out_proj.weight.T


def mixer(forward_type: str | ForwardType, **kwargs) -> SS2DMamba2:
    torch.manual_seed(0)
    kwargs = {"d_state": 3, "dt_rank": 2, "dtype": torch.float64, **kwargs}
    return SS2DMamba2(12, forward_type=forward_type, **kwargs)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_equals_the_definition_and_is_the_same_in_both_layouts(suffix: str) -> None:
    last = mixer(f"m0{suffix}")
    first = mixer(f"m0{suffix}", channel_first=True)
    first.load_state_dict(last.state_dict())
    for H, W in [(4, 5), (1, 7)]:
        x = torch.randn(2, H, W, 12, dtype=torch.float64)
        with torch.no_grad():
            expected = textbook(last, x)
            assert torch.allclose(last(x), expected, rtol=1e-9, atol=1e-10)
            assert torch.allclose(first(x.permute(0, 3, 1, 2)).permute(LAST), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(d_conv=1),
        dict(conv_bias=False, initialize="v1"),
        dict(dt_rank="auto", ssm_ratio=2.0),
        dict(dt_rank=12, d_state=17),
        dict(forward_type=ForwardType(ssd=True, scan_order="unidi")),
        dict(forward_type=ForwardType(ssd=True, scan_order="rows_both", gate=False)),
        dict(act_layer=nn.GELU),
    ],
    ids=str,
)
def test_equals_the_definition_with_other_options(kwargs: dict) -> None:
    m = mixer(**{"forward_type": "m0", **kwargs})
    x = torch.randn(1, 3, 4, 12, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(m(x), textbook(m, x), rtol=1e-9, atol=1e-10)


def test_a_projection_bias_set_from_outside_is_honoured() -> None:
    m = mixer("m0_noz")
    m.x_proj_bias = nn.Parameter(torch.randn(4, 2 + 6, dtype=torch.float64))
    x = torch.randn(2, 3, 4, 12, dtype=torch.float64)
    assert torch.allclose(m(x), textbook(m, x), rtol=1e-9, atol=1e-10)


def test_equals_the_selective_mixer_with_A_and_steps_shared_over_a_head() -> None:
    m = mixer("m0", dtype=torch.float32)
    groups, heads, width = m.Ds.shape
    other = SS2D(12, d_state=3, ssm_ratio=1.0, dt_rank=heads, forward_type="v05")
    state = dict(m.state_dict())
    state["conv2d.weight"], state["conv2d.bias"] = state.pop("conv2d.1.weight"), state.pop("conv2d.1.bias")
    state["Ds"] = m.Ds.flatten()
    state["A_logs"] = m.A_logs[..., None, None].expand(groups, heads, width, 3).reshape(-1, 3)
    state["dt_projs_bias"] = m.dt_projs_bias.repeat_interleave(width, 1)
    state["dt_projs_weight"] = torch.eye(heads).repeat_interleave(width, 0).expand(groups, -1, -1)
    other.load_state_dict(state)
    x = torch.randn(2, 9, 10, 12)
    with torch.no_grad():
        assert torch.allclose(m(x), other(x), atol=1e-5)


@pytest.mark.parametrize("initialize", ["v1", "v2"])
def test_initialisation(initialize: str) -> None:
    m = SS2DMamba2(256, initialize=initialize)
    assert m.Ds.shape == (4, 16, 16) and m.A_logs.shape == m.dt_projs_bias.shape == (4, 16)
    assert m.x_proj_weight.shape == (4, 16 + 128, 256) and (m.Ds == 1).all()
    assert 0.06 < m.x_proj_weight.abs().max() <= 256**-0.5
    assert m.A_logs._no_weight_decay and m.Ds._no_weight_decay
    if initialize == "v1":
        assert 0.6 < m.A_logs.std() < 1.4 and 0.05 < m.dt_projs_bias.std() < 0.15 and m.dt_projs_bias.min() < 0
    else:
        assert not m.A_logs.any() and 0 <= m.dt_projs_bias.min() and 0.05 < m.dt_projs_bias.max() <= 0.1
    before = m.A_logs.clone(), m.dt_projs_bias.clone()
    m.reset_parameters()
    assert (m.dt_projs_bias != before[1]).any() and ((m.A_logs != before[0]).any() or initialize == "v2")


def test_no_state_is_carried_from_call_to_call() -> None:
    m = mixer("m0").eval()
    x = torch.randn(1, 3, 4, 12, dtype=torch.float64)
    assert torch.equal(m(x), m(x)) and not list(m.buffers())


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: SS2DMamba2(12, dt_rank=5), ["dt_rank", "5 heads", "12"]),
        (lambda: SS2DMamba2(12, initialize="v0"), ["ssm_init", "v1, v2"]),
        (lambda: VSSM(depths=(1,), dims=16, forward_type="m0_noz"), ["ssm_init", "'v0'", "v1, v2"]),
        (lambda: SS2DMamba2(12, forward_type="v05"), ["forward_type", "SS2DMamba2 takes 'm0'"]),
        (lambda: SS2D(12, forward_type="m0"), ["forward_type", "SS2DMamba2 takes 'm0'"]),
    ],
)
def test_bad_arguments_name_the_way_out(make, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        make()
    assert "\n" not in str(error.value) and all(word in str(error.value) for word in words), error.value
