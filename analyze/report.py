"""Every analysis of one checkpoint on one page: ``python -m analyze.report --weights best.pth --out DIR``."""

from __future__ import annotations

import copy
import datetime
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from analyze import activation, attention, curves, erf, flops, probe, scaling, throughput
from analyze.attention_maps import ROLLOUT
from analyze.command import folder_of, memory_told, new_parser, one_line, subject_of, tracked
from analyze.labelled import labelled
from analyze.output import Analysis, Output
from analyze.page import page
from analyze.pictures import pictures
from analyze.rates import Protocol
from analyze.recording import record
from analyze.subject import Subject
from vmamba.counting import count_model
from vmamba.doctor import devices, versions
from vmamba.errors import UserError
from vmamba.run_table import METRICS
from vmamba.weights import write_text

PAGE = "report.html"
Task = Callable[[Output], Analysis]
# Exponentials of a roll-out in one block, above which it is left out: tokens squared, times channels and states.
MOST_EXPONENTIALS = 100_000_000


@dataclass(frozen=True)
class Extent:
    """How far a report goes: turns of each figure, images of each split that are probed, and of those to score."""

    turns: int = 5
    probed: int = 200
    scored: int = 200


QUICK = Extent(turns=3, probed=60, scored=40)


def tasks(
    subject: Subject, images: Mapping[str, Image.Image], run: Path | None, data: Path | None, extent: Extent
) -> dict[str, Task]:
    """Return the analyses by their names.

    `run` is the folder of a training run and `data` one of labelled images, where there is one; without `data` the
    probe takes the bundled digits, and accuracy over the size is left out.
    """
    few = dict(list(images.items())[:3])
    turns = extent.turns
    side = subject.size

    def fields(output: Output) -> Analysis:
        return erf.measure(erf.grid_of([subject], subject.trained, 0), images, output)

    def maps(output: Output) -> Analysis:
        scans = record(subject.network, subject.read(next(iter(few.values()))))
        chosen = scans[attention.choose_layer(scans, None)]
        names = attention.default_maps(chosen)
        if chosen.length**2 * chosen.A.numel() <= MOST_EXPONENTIALS:
            names.append(ROLLOUT)
        queries = {name: [attention.Query((0.5, 0.5))] for name in few}
        return attention.measure(subject, few, queries, output, names)

    def rates(output: Output) -> Analysis:
        modes = ("inference", "training")
        protocols = [Protocol(mode, batch, (side,), turns=turns) for mode in modes for batch in (1, 8)]
        return throughput.run([subject], protocols, output)

    def counts(output: Output) -> Analysis:
        return flops.run_network(subject.name, copy.deepcopy(subject.network), scaling.sizes_from(side, 4), output)

    def over_sizes(output: Output) -> Analysis:
        scored = None if data is None else labelled(data, "val", subject.opened.class_names, extent.scored)
        return scaling.run([subject], scaling.sizes_from(side, 3), output, turns=turns, data=scored)

    def probed(output: Output) -> Analysis:
        # Features are made anew: a folder of another report's would be refused.
        with TemporaryDirectory() as folder:
            training = probe.Training(data, extent.probed, seed=subject.seed)
            return probe.run(subject, [side], training, output, Path(folder))

    found: dict[str, Task] = {
        "erf": fields,
        "attention": maps,
        "activation": lambda output: activation.measure(subject, few, output),
        "flops": counts,
        "throughput": rates,
        "scaling": over_sizes,
        "probe": probed,
    }
    if run is not None:
        found["curves"] = lambda output: curves.run([run], output)
    return found


TITLES = {
    "erf": "Effective receptive field",
    "attention": "Attention maps of the scans",
    "activation": "Activations and Grad-CAM",
    "flops": "FLOPs and parameters",
    "throughput": "Throughput, latency and memory",
    "scaling": "Over the size of the image",
    "probe": "Linear probe",
    "curves": "Curves of the training run",
}


def write_report(
    subject: Subject,
    images: Mapping[str, Image.Image],
    folder: Path,
    run: Path | None = None,
    data: Path | None = None,
    extent: Extent = Extent(),
) -> Path:
    """Write ``report.html`` and the files of every analysis into `folder`, and return the page's path.

    What a model does not have, attention maps say, or memory does not hold, is left out by name, with the reason.
    """
    start = time.perf_counter()
    analyses, left_out = [], {}
    for name, task in tracked(list(tasks(subject, images, run, data, extent).items()), "report"):
        output = Output(folder, name, TITLES[name])
        try:
            with memory_told():
                analyses.append(task(output))
        except UserError as error:
            left_out[TITLES[name]] = " ".join(str(error).split())
    count = count_model(subject.network, subject.size)
    about: dict[str, Any] = {
        "model": f"{subject.name}, {type(subject.network).__name__}",
        "weights": subject.weights,
        "images": f"{subject.size[0]}x{subject.size[1]}, {', '.join(images)}",
        "parameters": f"{count.parameters:,}",
        "GFLOPs": f"{count.gflops:.6f}",
        "made": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        "in": f"{time.perf_counter() - start:.0f} s",
    }
    environment = {**dict(versions()), **dict(devices())}
    path = folder / PAGE
    write_text(path, page(f"Analysis of {subject.name}", about, analyses, left_out, environment))
    return path


@one_line
def main(argv: list[str] | None = None) -> int:
    parser = new_parser("report", __doc__)
    parser.add_argument("--run", type=Path, metavar="DIR", help="the run's folder (default: that of the weights)")
    parser.add_argument(
        "--data", type=Path, metavar="DIR",
        help="DIR/{train,val}/CLASS/* to probe and to score on, or 'digits' (default: the bundled digits, to probe)",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="fewer turns of each figure, fewer images")
    arguments = parser.parse(argv)
    subject = subject_of(arguments)
    images = pictures(arguments.images, subject.opened.mode, arguments.count)
    if arguments.data is not None:
        for split in ("train", "val"):
            labelled(arguments.data, split)  # what is wrong with it is told before anything is computed
    run = arguments.run
    if run is None and arguments.weights is not None and (arguments.weights.parent / METRICS).is_file():
        run = arguments.weights.parent
    extent = QUICK if arguments.quick else Extent()
    print(f"wrote {write_report(subject, images, folder_of(arguments), run, arguments.data, extent)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
