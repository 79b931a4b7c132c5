"""Draw the pictures of ``docs/analysis.md``: ``python -m analyze.gallery --trained RUN/best.pth``.

Effective receptive fields of five designs with random weights, and of the digits' model before and after training;
attention maps on three photographs; throughput and scaling of this machine. Each picture is below 200 kB.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import nn

from analyze import attention, erf, scaling, throughput
from analyze.command import tracked
from analyze.output import Analysis, Output
from analyze.pictures import pictures
from analyze.rates import Protocol
from analyze.subject import Subject, open_subject, open_subjects
from vmamba.command_line import Parser
from vmamba.errors import exit_on_user_error
from vmamba.host_memory import keep_freed_memory
from vmamba.photographs import photographs
from vmamba.weights import write_bytes

DESIGNS = ("vmamba_tiny_s1l8", "vim_tiny", "fastvim_tiny", "swin_tiny_patch4_window7_224", "resnet50")
TIMED = ("vmamba_tiny_s1l8", "vim_tiny", "fastvim_tiny", "resnet50")
SIZES = ((224, 224), (320, 320), (448, 448), (640, 640))
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee")
MOST_BYTES = 200_000
# Pixels first, then colours: what is tried until a picture is small enough.
SHRUNK = [(scale, colours) for colours in (256, 128, 64, 32) for scale in (1.0, 0.85, 0.75, 0.65, 0.5)]


def shrink(path: Path, most: int = MOST_BYTES) -> int:
    """Make a PNG file smaller until it has at most `most` bytes, by fewer pixels, then colours; return its size."""
    image = Image.open(path).convert("RGB")
    for scale, colours in SHRUNK:
        size = (round(image.width * scale), round(image.height * scale))
        data = io.BytesIO()
        image.resize(size, Image.Resampling.LANCZOS).quantize(colours).save(data, "PNG", optimize=True)
        if data.tell() <= most:
            write_bytes(path, data.getvalue())
            return data.tell()
    raise ValueError(f"{path}: it cannot be made smaller than {most} bytes; draw fewer panels")


def with_open_branches(subject: Subject) -> None:
    """Set batch norms that a design starts at zero to one, and say so in its name.

    timm's ResNet starts with residual branches that give nothing, and would see by its shortcuts alone.
    """
    closed = [m for m in subject.network.modules() if isinstance(m, nn.BatchNorm2d) and not m.weight.any()]
    for norm in closed:
        nn.init.ones_(norm.weight)
    if closed:
        subject.name += ", branches open"


def fields(folder: Path, trained: Path | None) -> list[Analysis]:
    """Draw the effective receptive fields of the designs, and of trained weights beside untrained ones."""
    subjects = open_subjects(DESIGNS[0], None, DESIGNS[1:], None, "auto")
    for subject in subjects:
        with_open_branches(subject)
    found = [
        erf.measure(
            {"random weights": subjects},
            photographs(),
            Output(folder, "erf", "Effective receptive field, random weights"),
        )
    ]
    if trained is not None:
        subject = open_subject(None, trained)
        grid = erf.grid_of([subject], True, 0)
        images = pictures(None, subject.opened.mode)
        found.append(
            erf.measure(
                grid,
                images,
                Output(folder, "erf_trained", "Effective receptive field, before and after training on digits"),
            )
        )
    return found


def maps(folder: Path) -> list[Analysis]:
    """Draw attention maps of VMamba and Vim, of random weights, on three photographs."""
    images = {name: picture for name, picture in photographs().items() if name in PHOTOGRAPHS}
    queries = {name: [attention.Query((0.4, 0.5))] for name in images}
    found = []
    for name in ("vmamba_tiny_s1l8", "vim_tiny"):
        subject = open_subject(name)
        output = Output(folder, f"attention_{name.partition('_')[0]}", f"Attention maps of {name}")
        found.append(attention.measure(subject, images, queries, output))
    return found


def rates(folder: Path, designs: Sequence[str] = TIMED, turns: int = 3) -> list[Analysis]:
    """Draw throughput and scaling of this machine."""
    kept = keep_freed_memory()
    subjects: list[Subject] = open_subjects(designs[0], None, designs[1:])
    protocols = [Protocol(mode, batch, turns=turns) for mode in ("inference", "training") for batch in (1, 8)]
    speed = throughput.run(subjects, protocols, Output(folder, "throughput", "Throughput"), kept)
    output = Output(folder, "scaling", "Over the size of the image")
    over = scaling.run(subjects, SIZES, output, turns=turns, memory_kept=kept)
    return [speed, over]


@exit_on_user_error
def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m analyze.gallery", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/images"), metavar="DIR", help="default docs/images")
    parser.add_argument("--trained", type=Path, metavar="FILE", help="a checkpoint of the trainer, such as best.pth")
    parser.add_argument("--only", nargs="+", choices=("erf", "attention", "rates"), help="draw these alone")
    arguments = parser.parse(argv)
    parts = {
        "erf": lambda: fields(arguments.out, arguments.trained),
        "attention": lambda: maps(arguments.out),
        "rates": lambda: rates(arguments.out),
    }
    wanted = arguments.only or list(parts)
    analyses = [analysis for name in tracked(wanted, "gallery") for analysis in parts[name]()]
    for analysis in analyses:
        for path in analysis.pictures.values():
            print(f"{path}: {shrink(path):,} bytes")
            path.with_suffix(".svg").unlink(missing_ok=True)
        (arguments.out / f"{analysis.name}.npz").unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
