"""Models as files: torch.export programs, AOTInductor packages and ONNX, each against the model itself."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vmamba.command_line import parse_size
from vmamba.errors import UserError
from vmamba.export import (
    export_program,
    least_dynamic_side,
    load_package,
    load_program,
    onnx_session,
    write_onnx,
    write_package,
    write_program,
)
from vmamba.export.__main__ import check_sizes, main
from vmamba.models import VSSM, Backbone, FastVim, ForwardType, Vim
from vmamba_kernels import register_scan_order, ssd
from vmamba_kernels.ssd.arguments import limits

NANO: dict[str, Any] = dict(depths=(1, 1), dims=16, num_classes=10, ssm_d_state=1, norm_layer="ln2d")
NANO |= dict(ssm_conv_bias=False, downsample_version="v3", patchembed_version="v2", drop_path_rate=0.0)
DESIGNS: dict[str, dict[str, Any]] = {
    "fused": {},
    "unfused": dict(forward_type=ForwardType(gate=False, fused=False)),
    "vanilla": dict(forward_type="v0", mlp_ratio=0.0, norm_layer="ln", ssm_d_state=4, downsample_version="v1")
    | dict(patchembed_version="v1"),
    "cascade": dict(forward_type="v052dc_noz"),
    "mamba2": dict(forward_type="m0", ssm_d_state=4, ssm_init="v2", norm_layer="ln"),
    "posembed": dict(posembed=True, imgsize=(48, 32)),
}
TOKENS: dict[str, type[Vim]] = {"vim": Vim, "fastvim": FastVim}
SIZES = ((2, 3, 64, 64), (1, 3, 75, 50), (3, 3, 33, 40))


def build(name: str = "fused", **kwargs: Any) -> VSSM | Vim:
    """A small network with weights large enough that an error anywhere shows in the output."""
    torch.manual_seed(0)
    model: VSSM | Vim
    if name in TOKENS:
        model = TOKENS[name](img_size=64, patch_size=8, depth=2, embed_dim=16, d_state=4, num_classes=10).eval()
    else:
        model = VSSM(**{**NANO, **DESIGNS[name], **kwargs}).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith(("in_proj.weight", "out_proj.weight", "fc1.weight", "fc2.weight", "head.weight")):
                parameter.mul_(8)
            elif key.endswith(("A_logs", "Ds", "A_log", "A_b_log", ".D", ".D_b")):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def assert_same(model: nn.Module, function: Any, sizes: Any = SIZES) -> None:
    for size in sizes:
        x = torch.randn(size)
        with torch.no_grad():
            expected = model(x)
            found = function(x)
        assert expected.std() > 0.05, "the output must depend on the weights"
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def through_onnx(program: Any, path: Path) -> Any:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    write_onnx(program, path)
    session = onnx_session(path)
    return lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


@pytest.mark.parametrize(
    "name", ["fused", *(pytest.param(name, marks=pytest.mark.slow) for name in DESIGNS if name != "fused")]
)
def test_onnx_gives_the_numbers_of_the_model_at_any_size(name: str, tmp_path: Path) -> None:
    model = build(name)
    program = export_program(model, torch.zeros(1, 3, 64, 64))
    assert_same(model, through_onnx(program, tmp_path / "model.onnx"))


def test_onnx_file_holds_plain_operators_of_the_stated_opset(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = build(depths=(1,))
    function = through_onnx(export_program(model, torch.zeros(1, 3, 40, 40), dynamic=False), tmp_path / "model.onnx")
    assert_same(model, function, [(1, 3, 40, 40)])
    file = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(file, full_check=True)
    assert {entry.domain: entry.version for entry in file.opset_import}[""] == 20
    kinds = {node.op_type for node in file.graph.node}
    assert "Scan" in kinds and {node.domain for node in file.graph.node} == {""} and not file.functions


def test_a_dual_scan_whose_steps_are_bounded_has_no_onnx_form() -> None:
    pytest.importorskip("onnxscript")
    from vmamba.export.onnx_scan import refuse_limits

    unbounded = inspect.signature(ssd).parameters["dt_limit"].default
    refuse_limits(None, True, *limits(unbounded))
    for start, softplus, bounds in (
        (torch.zeros(1), True, unbounded),
        (None, True, (0.1, math.inf)),
        (None, True, (0.0, 1.0)),
        (None, False, unbounded),
    ):
        with pytest.raises(UserError, match="limits of the step size have no ONNX form"):
            refuse_limits(start, softplus, *limits(bounds))


def test_a_program_is_written_and_read_back_whatever_the_mode_and_the_gradients(tmp_path: Path) -> None:
    model = build().train()
    program = export_program(model, torch.zeros(1, 3, 64, 64))
    assert model.training
    write_program(program, tmp_path / "model.pt2")
    assert_same(model.eval(), load_program(tmp_path / "model.pt2"), [*SIZES, (1, 3, 9, 9)])
    assert least_dynamic_side(model) == 9


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fused", "unfused", "mamba2", *TOKENS])
def test_aoti_package_gives_the_numbers_of_the_model_at_any_size(name: str, tmp_path: Path) -> None:
    model = build(name)
    write_package(export_program(model, torch.zeros(1, 3, 64, 64)), tmp_path / "model.pt2")
    assert_same(model, load_package(tmp_path / "model.pt2"))


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["export", "aoti"])
def test_programs_run_on_the_gpu_that_they_were_made_for(kind: str, gpu: torch.device, tmp_path: Path) -> None:
    model = build().to(gpu)
    program = export_program(model, torch.zeros(1, 3, 64, 64, device=gpu))
    {"export": write_program, "aoti": write_package}[kind](program, tmp_path / "model.pt2")
    loaded = {"export": load_program, "aoti": load_package}[kind](tmp_path / "model.pt2")
    x = torch.randn(2, 3, 75, 50, device=gpu)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), model(x), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_backbone_exports_its_maps(tmp_path: Path) -> None:
    options = {key: value for key, value in NANO.items() if key != "num_classes"}
    model = Backbone((0, 1), **options).eval()
    program = export_program(model, torch.zeros(1, 3, 64, 64)).module()
    x = torch.randn(1, 3, 75, 50)
    with torch.no_grad():
        torch.testing.assert_close(program(x), model(x), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_exported_is_refused_with_the_reason(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    with pytest.raises(UserError, match=r"example: expected images \[B, C, H, W\], got \(3, 8, 8\)"):
        export_program(build(), torch.zeros(3, 8, 8))
    register_scan_order("export_snake", lambda H, W: torch.arange(H * W).flip(0)[None].repeat(4, 1), replace=True)
    model = build(depths=(1,), forward_type=ForwardType(scan_order="export_snake", gate=False))
    program = export_program(model, torch.zeros(1, 3, 40, 40), dynamic=False)
    with pytest.raises(UserError, match="'export_snake': a registered permutation"):
        write_onnx(program, tmp_path / "model.onnx")
    with pytest.raises(UserError, match=r"named NAME.pt2, not model.so"):
        write_package(program, tmp_path / "model.so")


@pytest.mark.parametrize("text", ["", "0", "8x", "8x8x8", "axb"])
def test_a_wrong_size_is_named(text: str) -> None:
    with pytest.raises(UserError, match="or HEIGHTxWIDTH such as 224x320"):
        parse_size(text)


def test_the_sizes_compared_include_an_odd_one_that_is_not_square() -> None:
    assert parse_size("224x320") == (224, 320) and parse_size("96") == (96, 96)
    sizes = check_sizes((224, 224), 33, dynamic=True)
    assert len(sizes) == 3 and any(h % 2 and w % 2 and h != w for h, w in sizes) and min(map(min, sizes)) >= 33
    assert check_sizes((64, 64), 33, dynamic=False) == [(64, 64)]


def test_the_command_refuses_what_it_cannot_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "model.pt2")
    assert main(["vmamba_tiny_s1l9", "--format", "export", "--out", out]) == 2
    assert "vmamba_tiny_s1l8" in capsys.readouterr().err
    assert main(["vmamba_tiny_s1l8", "--format", "export", "--out", out, "--size", "32"]) == 2
    assert "needs at least 33x33" in capsys.readouterr().err
    assert main(["vmamba_tiny_s1l8", "--format", "export", "--out", str(tmp_path / "no" / "model.pt2")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert main(["vmamba_tiny_s1l8", "--format", "aoti", "--out", str(tmp_path / "model.so")]) == 2
    assert "is named NAME.pt2" in capsys.readouterr().err
    assert main(["vmamba_tiny_s1l8", "--format", "onnx", "--out", out, "--device", "cuda"]) == 2
    assert "an ONNX file is of no device" in capsys.readouterr().err
    assert main(["vmamba_tiny_s1l8", "--format", "export", "--out", out, "--pretrained", "--weights", "w.pth"]) == 2
    assert "--pretrained, --weights: give one of them" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["export", "onnx", "aoti"])
def test_the_command_writes_checks_and_prints_the_error(kind: str, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / ("model.onnx" if kind == "onnx" else "model.pt2")
    assert main(["vmamba_tiny_0229", "--format", kind, "--out", str(out), "--size", "64x80"]) == 0
    printed = capsys.readouterr().out
    assert out.is_file() and printed.count("maximum error") == 4 and "maximum error against eager" in printed
    assert printed.startswith("random weights, for a trial")
