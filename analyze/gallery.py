"""Draw the pictures of ``docs/analysis.md``: ``python -m analyze.gallery --only erf attention``.

Parts: erf, the effective receptive fields of five designs with random weights; trained, those of a checkpoint before
and after its training; attention, maps on three photographs; throughput, scaling and growth, figures of this machine,
which must do nothing else. Each picture is below 300 kB.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from analyze import attention, erf, scaling, throughput
from analyze.command import one_line, tracked
from analyze.output import Analysis, Output
from analyze.pictures import pictures
from analyze.rates import Protocol
from analyze.settings import machine
from analyze.subject import Subject, open_subject, open_subjects
from vmamba.command_line import Parser
from vmamba.errors import UserError
from vmamba.host_memory import keep_freed_memory
from vmamba.photographs import photographs
from vmamba.weights import write_bytes, write_text

DESIGNS = ("vmamba_tiny_s1l8", "vim_tiny", "fastvim_tiny", "swin_tiny_patch4_window7_224", "resnet50")
SCANNED = ("vmamba_tiny_s1l8", "vim_tiny", "fastvim_tiny")
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee")
BATCHES = (1, 8)
SIZES = (224, 288, 384, 512, 768, 1024)
GROWING = ("fastvim_tiny", "vim_tiny", "deit_tiny_patch16_224")
GROWN = (224, 512, 1024)
TURNS = 3
TRAINED = Path("output/vmamba_digits/default/best.pth")
MOST_BYTES = 300_000
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


def fields(folder: Path, trained: Path) -> list[Analysis]:
    """Draw the effective receptive fields of the designs."""
    subjects = open_subjects(DESIGNS[0], None, DESIGNS[1:], None, "cpu")
    for subject in subjects:
        with_open_branches(subject)
    output = Output(folder, "erf", "Effective receptive field, random weights")
    return [erf.measure(erf.grid_of(subjects, False, 0), photographs(), output)]


def trained_fields(folder: Path, trained: Path) -> list[Analysis]:
    """Draw the effective receptive field of a checkpoint, under that of random weights."""
    subject = open_subject(None, trained, None, "cpu")
    subject.name = "digits"
    output = Output(folder, "erf_trained", "Effective receptive field, before and after training on digits")
    return [erf.measure(erf.grid_of([subject], True, 0), pictures(None, subject.opened.mode), output)]


def maps(folder: Path, trained: Path) -> list[Analysis]:
    """Draw attention maps of random weights on three photographs."""
    images = {name: picture for name, picture in photographs().items() if name in PHOTOGRAPHS}
    queries = {name: [attention.Query((0.4, 0.5))] for name in images}
    found = []
    for name in SCANNED:
        output = Output(folder, f"attention_{Path(name).stem.partition('_')[0]}", f"Attention maps of {name}")
        found.append(attention.measure(open_subject(name, None, None, "cpu"), images, queries, output))
    return found


def speed(folder: Path, trained: Path) -> list[Analysis]:
    """Draw throughput, latency and memory of the designs on this machine."""
    subjects = open_subjects(DESIGNS[0], None, DESIGNS[1:])
    modes = ("inference", "training")
    protocols = [Protocol(mode, batch, (subjects[0].size,), turns=TURNS) for mode in modes for batch in BATCHES]
    return [throughput.run(subjects, protocols, Output(folder, "throughput", "Throughput"), keep_freed_memory())]


def sizes(folder: Path, trained: Path) -> list[Analysis]:
    """Draw throughput, memory and FLOPs of the designs over the size of the image, on this machine."""
    return [_over_sizes(DESIGNS, SIZES, Output(folder, "scaling", "Over the size of the image"))]


def growth(folder: Path, trained: Path) -> list[Analysis]:
    """Draw the same of FastVim, Vim and a transformer of one width, and where one becomes faster than another."""
    return [_over_sizes(GROWING, GROWN, Output(folder, "growth", "FastVim, Vim and DeiT over the size of the image"))]


def _over_sizes(designs: Sequence[str], sides: Sequence[int], output: Output) -> Analysis:
    kept = keep_freed_memory()
    subjects = open_subjects(designs[0], None, designs[1:])
    return scaling.run(subjects, [(side, side) for side in sides], output, turns=TURNS, memory_kept=kept)


Part = Callable[[Path, Path], list[Analysis]]
PARTS: dict[str, Part] = {
    "erf": fields,
    "trained": trained_fields,
    "attention": maps,
    "throughput": speed,
    "scaling": sizes,
    "growth": growth,
}
TIMED = ("throughput", "scaling", "growth")


def published(analysis: Analysis, folder: Path, command: str, timed: bool) -> None:
    """Make an analysis fit for the page: its picture small, its arrays gone, its command and machine in its JSON."""
    for path in analysis.pictures.values():
        print(f"{path}: {shrink(path):,} bytes")
        path.with_suffix(".svg").unlink(missing_ok=True)
    (folder / f"{analysis.name}.npz").unlink(missing_ok=True)
    path = folder / f"{analysis.name}.json"
    about = json.loads(path.read_text(encoding="utf-8"))
    device = torch.device("cuda" if timed and torch.cuda.is_available() else "cpu")
    about |= {"command": command, "machine": machine(device)}
    write_text(path, json.dumps(about, indent=1) + "\n")


@one_line
def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m analyze.gallery", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/images"), metavar="DIR", help="default docs/images")
    parser.add_argument("--trained", type=Path, default=TRAINED, metavar="FILE", help=f"default {TRAINED}")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="draw these alone")
    arguments = parser.parse(argv)
    if "trained" in arguments.only and not arguments.trained.is_file():
        raise UserError(
            f"--trained {arguments.trained}: there is no such file; run `make train`, or name the parts with --only"
        )
    for part in tracked(arguments.only, "gallery"):
        command = f"python -m analyze.gallery --only {part}"
        if part == "trained" and arguments.trained != TRAINED:
            command += f" --trained {arguments.trained}"
        for analysis in PARTS[part](arguments.out, arguments.trained):
            published(analysis, arguments.out, command, part in TIMED)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
