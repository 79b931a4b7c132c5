"""SS2D against the text of its definition, written out with loops, for every option; initialisation; scan orders."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmamba.errors import UserError
from vmamba.models import SS2D, VSSM, ForwardType
from vmamba_kernels import list_scan_orders, register_scan_order, scan_order
from vmamba_kernels.depthwise_silu import fuses

FORWARD_TYPES = [
    *("v0", "v05", "v05_noz", "v05_nozact", "v05_oact", "v051d_noz", "v052d", "v052d3_noz", "v03_noz"),
    *("v05_onnone_noz", "v05_ondwconv3", "v05_oncnorm_noz", "v05_onsoftmax_noz", "v05_onsigmoid_nozact_oact"),
]


def scan_one(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """[I, L] from u, delta [I, L], A [I, N], B, C [N, L], D [I], step by step."""
    h = torch.zeros_like(A)
    y = torch.empty_like(u)
    for place in range(u.shape[1]):
        dt = delta[:, place, None]
        h = torch.exp(dt * A) * h + dt * B[:, place] * u[:, place, None]
        y[:, place] = (h * C[:, place]).sum(1) + D * u[:, place]
    return y


def textbook(m: SS2D, x: Tensor) -> Tensor:
    """[B, H, W, D] of SS2D on x [B, H, W, D], direction by direction in scan order."""
    o, R, N, inner = m.options, m.dt_rank, m.d_state, m.d_inner
    B, H, W, _ = x.shape
    x = x @ m.in_proj.weight.T
    z = None
    if o.gate:
        x, z = x[..., :inner], x[..., inner:]
        z = F.silu(z) if o.gate_act else z
    image = x.permute(0, 3, 1, 2)
    if m.conv2d is not None:
        image = F.conv2d(image, m.conv2d.weight, m.conv2d.bias, padding=m.conv2d.padding, groups=inner)
    image = F.silu(image)
    A = -torch.exp(m.A_logs).view(-1, inner, N)
    D = m.Ds.view(-1, inner)
    y = torch.zeros(B, inner, H * W, dtype=x.dtype)
    for b, (k, row) in itertools.product(range(B), enumerate(scan_order(o.scan_order, H, W))):
        u = image[b].flatten(1)[:, row]
        projected = m.x_proj_weight[k] @ u
        if hasattr(m, "x_proj_bias"):
            projected = projected + m.x_proj_bias[k][:, None]
        delta = F.softplus(m.dt_projs_weight[k] @ projected[:R] + m.dt_projs_bias[k][:, None])
        y[b, :, row] += scan_one(u, delta, A[k], projected[R : R + N], projected[R + N :], D[k])
    y = y.unflatten(2, (H, W))
    last = (0, 2, 3, 1)
    if o.out_norm in ("ln", "cnorm"):
        norm = m.out_norm if o.out_norm == "ln" else m.out_norm[0]
        y = F.layer_norm(y.permute(last), (inner,), norm.weight, norm.bias).permute(0, 3, 1, 2)
    if o.out_norm in ("dwconv3", "cnorm"):
        weight = next(p for p in m.out_norm.parameters() if p.dim() == 4)
        y = F.conv2d(y, weight, padding=1, groups=inner)
    if o.out_norm == "softmax":
        y = y.flatten(2).softmax(-1).view(y.shape)
    if o.out_norm == "sigmoid":
        y = y.sigmoid()
    y = F.gelu(y) if o.out_act else y
    y = y.permute(last)
    y = y if z is None else y * z
    return y @ m.out_proj.weight.T


def mixer(forward_type: str | ForwardType, seed: int = 0, **kwargs) -> SS2D:
    torch.manual_seed(seed)
    return SS2D(12, forward_type=forward_type, **{"d_state": 3, "dtype": torch.float64, **kwargs})


@pytest.mark.parametrize("forward_type", FORWARD_TYPES)
def test_equals_the_definition_and_is_the_same_in_both_layouts(forward_type: str) -> None:
    last = mixer(forward_type)
    first = mixer(forward_type, channel_first=True)
    first.load_state_dict(last.state_dict())
    for H, W in [(4, 5), (1, 7), (3, 1)]:
        x = torch.randn(2, H, W, 12, dtype=torch.float64)
        with torch.no_grad():
            expected = textbook(last, x)
            assert torch.allclose(last(x), expected, rtol=1e-9, atol=1e-10)
            assert torch.allclose(first(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "kwargs",
    [
        dict(d_conv=1),
        dict(d_conv=5),
        dict(conv_bias=False),
        dict(d_state=1, ssm_ratio=1.0),
        dict(d_state=17, dt_rank=5, ssm_ratio=0.5),
        dict(initialize="v1"),
        dict(initialize="v2"),
        dict(dt_init="constant", dt_scale=0.5),
    ],
)
def test_equals_the_definition_with_other_sizes(kwargs: dict) -> None:
    m = mixer("v05", **kwargs)
    x = torch.randn(1, 3, 4, 12, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(m(x), textbook(m, x), rtol=1e-9, atol=1e-10)


def test_a_projection_bias_set_from_outside_is_honoured() -> None:
    m = mixer("v05_noz")
    x = torch.randn(2, 3, 4, 12, dtype=torch.float64)
    before = m(x)
    m.x_proj_bias = nn.Parameter(torch.randn(4, m.dt_rank + 2 * m.d_state, dtype=torch.float64))
    assert not torch.allclose(m(x), before)
    assert torch.allclose(m(x), textbook(m, x), rtol=1e-9, atol=1e-10)
    m(x).sum().backward()
    assert m.x_proj_bias.grad.abs().sum() > 0
    cascade = mixer("v052dc")
    before = cascade(x)
    cascade.x_proj_bias = nn.Parameter(torch.randn(4, m.dt_rank + 2 * m.d_state, dtype=torch.float64))
    assert not torch.allclose(cascade(x), before)


@pytest.mark.parametrize("channel_first", [True, False])
@pytest.mark.parametrize("flip_back", [True, False])
def test_cascade_scans_rows_then_columns(flip_back: bool, channel_first: bool) -> None:
    m = mixer(ForwardType(scan_order="cascade2d", gate=False, out_norm="none", flip_back=flip_back))
    first = mixer(m.options, channel_first=True)
    A, D = -torch.exp(m.A_logs).view(4, m.d_inner, 3), m.Ds.view(4, m.d_inner)

    def lines(x: Tensor, groups: tuple[int, int]) -> Tensor:
        """Both scans of each line of x [B, M, L, I]."""
        x = F.layer_norm(x, (m.d_inner,))
        y = torch.zeros_like(x)
        for b, i, (turn, k) in itertools.product(range(x.shape[0]), range(x.shape[1]), enumerate(groups)):
            u = x[b, i].T.flip(1) if turn else x[b, i].T
            p = m.x_proj_weight[k] @ u
            delta = F.softplus(m.dt_projs_weight[k] @ p[: m.dt_rank] + m.dt_projs_bias[k][:, None])
            scanned = scan_one(u, delta, A[k], p[m.dt_rank : m.dt_rank + 3], p[m.dt_rank + 3 :], D[k])
            y[b, i] += (scanned.flip(1) if turn and flip_back else scanned).T
        return y

    x = torch.randn(2, 3, 4, 12, dtype=torch.float64)
    with torch.no_grad():
        image = (x @ m.in_proj.weight.T).permute(0, 3, 1, 2)
        image = F.silu(m.conv2d(image)).permute(0, 2, 3, 1)
        y = lines(lines(image, (0, 1)).transpose(1, 2), (2, 3)).transpose(1, 2)
        expected = y @ m.out_proj.weight.T
        got = first(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) if channel_first else m(x)
    assert torch.allclose(got, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("forward_type", ["v05", "v052dc_noz", "v05_oncnorm", "v05_onsoftmax_noz"])
def test_gradients_by_finite_differences(forward_type: str) -> None:
    m = SS2D(4, d_state=2, ssm_ratio=1.0, dt_rank=1, forward_type=forward_type, dtype=torch.float64)
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    inputs = (x, *m.parameters())
    assert torch.autograd.gradcheck(lambda t, *_: m(t), inputs, fast_mode=True)


def test_v0_initialisation() -> None:
    torch.manual_seed(0)
    m = SS2D(192, d_state=16, ssm_ratio=2.0)
    dt = F.softplus(m.dt_projs_bias)
    assert dt.min() >= 0.999e-3 and dt.max() <= 0.1001
    middle = math.log(0.01)  # the steps are log-uniform
    assert abs(dt.log().mean() - middle) < 0.15 and abs(dt.log().std() - math.log(100) / math.sqrt(12)) < 0.1
    assert torch.allclose(m.A_logs.exp(), torch.arange(1.0, 17).expand(4 * 384, 16), rtol=1e-6)
    assert torch.equal(m.Ds, torch.ones(4 * 384))
    for weight, bound in ((m.dt_projs_weight, 12**-0.5), (m.x_proj_weight, 384**-0.5)):
        assert weight.abs().max() <= bound and abs(weight.std() / bound - 1 / math.sqrt(3)) < 0.02
    assert m.A_logs._no_weight_decay and m.Ds._no_weight_decay


@pytest.mark.parametrize("version, mean, std, a_std", [("v1", 0.0, 0.1, 1.0), ("v2", 0.05, 0.1 / math.sqrt(12), 0.0)])
def test_v1_and_v2_initialisation(version: str, mean: float, std: float, a_std: float) -> None:
    torch.manual_seed(0)
    m = SS2D(192, d_state=16, ssm_ratio=2.0, initialize=version)
    for parameter in (m.dt_projs_weight, m.dt_projs_bias):
        assert abs(parameter.mean() - mean) < 0.01 and abs(parameter.std() - std) < 0.01
    assert abs(m.A_logs.std() - a_std) < 0.02 and torch.equal(m.Ds, torch.ones_like(m.Ds))


def test_constant_step_sizes() -> None:
    m = SS2D(64, dt_init="constant", dt_scale=0.5)
    assert torch.allclose(m.dt_projs_weight, torch.full_like(m.dt_projs_weight, 0.5 * 4**-0.5))


@pytest.mark.parametrize("K, order", [(3, "test_ss2d_snake"), (1, "rows"), (2, "columns_both")])
def test_any_registered_order_runs_and_learns(K: int, order: str) -> None:
    def snake(H: int, W: int) -> Tensor:
        image = torch.arange(H * W).view(H, W)
        image[1::2] = image[1::2].flip(1)
        return torch.stack([image.flatten(), image.flatten().flip(0), image.flatten()])

    if order not in list_scan_orders():
        register_scan_order(order, snake)
    m = mixer(ForwardType(scan_order=order))
    assert m.x_proj_weight.shape[0] == m.k_group == K and m.A_logs.shape[0] == K * m.d_inner
    x = torch.randn(1, 4, 3, 12, dtype=torch.float64)
    assert torch.allclose(m(x), textbook(m, x), rtol=1e-9, atol=1e-10)
    model = VSSM(depths=(1, 1), dims=8, num_classes=3, forward_type=ForwardType(scan_order=order, gate=False))
    model(torch.randn(2, 3, 21, 34)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    "kwargs, words",
    [
        (dict(forward_type=ForwardType(scan_order="snail")), "order: 'snail'"),
        (dict(initialize="v9"), "ssm_init: 'v9' is not one of v0, v1, v2"),
        (dict(dt_init="randm"), "Did you mean 'random'"),
        (dict(d_state=0), "d_state: must be at least 1, got 0"),
        (dict(ssm_ratio=0.01), "ssm_ratio"),
    ],
)
def test_bad_arguments(kwargs: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        SS2D(12, **kwargs)
    assert "\n" not in str(error.value)
    assert isinstance(error.value, UserError) or "order" in words


@pytest.mark.parametrize("conv_bias", [True, False])
def test_the_convolution_and_its_activation_are_the_plain_layers_whatever_runs_them(conv_bias: bool) -> None:
    torch.manual_seed(0)
    m, x = SS2D(12, d_state=1, conv_bias=conv_bias), torch.randn(2, 5, 7, 24)
    convolved = m.act(m._convolved(x))
    assert m._fuses_convolution(x) == fuses(torch.float32, 3, "cpu")
    torch.testing.assert_close(m._activated(x), convolved)
    grads = [torch.autograd.grad(y.square().sum(), list(m.conv2d.parameters())) for y in (m._activated(x), convolved)]
    torch.testing.assert_close(*grads)
    m.act.forward = lambda given: given  # as tools that wrap layers do
    assert not m._fuses_convolution(x) and torch.equal(m._activated(x), m._convolved(x))
    del m.act.forward
    seen: list[str] = []
    with nn.modules.module.register_module_forward_hook(lambda *_: seen.append("global")):
        assert not m._fuses_convolution(x)
    m.conv2d.register_forward_hook(lambda *_: seen.append("conv2d"))
    assert torch.equal(m._activated(x), convolved) and seen == ["conv2d"]
    assert not m._fuses_convolution(x)
    strided = SS2D(12, d_state=1, d_conv=4)
    torch.testing.assert_close(strided._activated(x), strided.act(strided._convolved(x)))
