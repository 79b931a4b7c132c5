"""Write a model as a file that runs without its Python code: ``python -m vmamba.export NAME --format onnx --out FILE``.

The file is read back and run at three sizes, one of them odd and not square, and the largest difference from the model
is printed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vmamba.command_line import Parser, parse_size
from vmamba.devices import choose_device
from vmamba.errors import UserError, exit_on_user_error

FORMATS = ("onnx", "export", "aoti")


def check_sizes(size: tuple[int, int], least: int, dynamic: bool) -> list[tuple[int, int]]:
    """The sizes to compare at: the one asked for and, if they are free, an odd one, not square, and a small one."""
    if not dynamic:
        return [size]
    return [size, (max(size[0] // 2, least) | 1, (max(size[1] // 3, least) | 1) + 2), (least, least)]


def read_back(kind: str, path: Path) -> Callable[[Tensor], Tensor]:
    """The function that a written file computes."""
    from vmamba import export

    if kind == "onnx":
        session = export.onnx_session(path)
        return lambda x: torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
    return export.load_program(path) if kind == "export" else export.load_package(path)


def largest_error(
    model: nn.Module, function: Callable[[Tensor], Any], sizes: list[tuple[int, int]], batch: int
) -> float:
    """The largest absolute difference of a function from the model over images of the sizes; a line for each."""
    channels = int(getattr(model, "in_chans", 3))
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for height, width in sizes:
        x = torch.randn(batch, channels, height, width, generator=generator).to(device)
        with torch.no_grad():
            expected, found = model(x), function(x)
        error = float((found - expected).abs().max())
        worst = max(worst, error)
        scale = float(expected.abs().max())
        print(f"  {height}x{width}: maximum error {error:.2e}, largest output {scale:.2e}")
    return worst


def _write(kind: str, program: Any, path: Path) -> None:
    from vmamba import export

    {"onnx": export.write_onnx, "export": export.write_program, "aoti": export.write_package}[kind](program, path)


@exit_on_user_error
def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m vmamba.export", description=__doc__)
    parser.add_argument("name", metavar="NAME", help="a model of vmamba.list_models()")
    parser.add_argument(
        "--format", required=True, choices=FORMATS, help="ONNX, a torch.export program or an AOTInductor package"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="the file to write")
    parser.add_argument("--size", default="224x224", metavar="HxW", help="image size to check at (default 224x224)")
    parser.add_argument("--fixed", action="store_true", help="a file for that size and one image alone")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="a checkpoint to load first")
    parser.add_argument("--pretrained", action="store_true", help="load the released weights first")
    parser.add_argument("--num-classes", type=int, metavar="N", help="classes of the head (default: the model's own)")
    parser.add_argument("--device", default="cpu", help="where a program is to run: cpu (default), cuda or cuda:1")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="largest error allowed (default 1e-3)")
    arguments = parser.parse(argv)
    size = parse_size(arguments.size)
    if not arguments.out.parent.is_dir():
        raise UserError(f"--out {arguments.out}: there is no folder {arguments.out.parent}; create it")
    if arguments.format == "aoti" and arguments.out.suffix != ".pt2":
        raise UserError(f"--out {arguments.out}: an AOTInductor package is named NAME.pt2")
    if arguments.format == "onnx" and arguments.device != "cpu":
        raise UserError(f"--device {arguments.device}: an ONNX file is of no device; leave the flag out")
    if arguments.pretrained and arguments.weights is not None:
        raise UserError("--pretrained, --weights: give one of them")
    device = choose_device(arguments.device)

    import vmamba
    from vmamba.export import export_program, least_dynamic_side

    torch.manual_seed(0)
    head = {} if arguments.num_classes is None else {"num_classes": arguments.num_classes}
    model: Any = vmamba.create_model(arguments.name, pretrained=arguments.pretrained, **head)
    if arguments.weights is not None:
        from vmamba.weights import load_weights

        load_weights(model, arguments.weights, prefer_ema=True)
    elif not arguments.pretrained:
        print("random weights, for a trial: --pretrained takes the released ones, --weights FILE those of a file")
    model = model.eval().to(device)
    dynamic = not arguments.fixed
    least = least_dynamic_side(model) if dynamic else getattr(model, "least_size", 1)
    if min(size) < least:
        raise UserError(f"--size {arguments.size}: {arguments.name} needs at least {least}x{least} here")
    program = export_program(model, torch.zeros(1, model.in_chans, *size, device=device), dynamic)
    _write(arguments.format, program, arguments.out)
    print(f"{arguments.out}: {arguments.name}, {arguments.out.stat().st_size / 2**20:.1f} MiB")
    sizes = check_sizes(size, least, dynamic)
    worst = largest_error(model, read_back(arguments.format, arguments.out), sizes, 2 if dynamic else 1)
    print(f"maximum error against eager: {worst:.2e}")
    if not worst <= arguments.tolerance:
        raise UserError(
            f"{arguments.out}: error {worst:.2e} is above --tolerance {arguments.tolerance:g}; do not use it"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
