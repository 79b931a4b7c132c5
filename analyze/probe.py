"""A linear classifier on frozen features, size by size: ``python -m analyze.probe --data DIR --sizes 224 384``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from analyze.command import folder_of, new_parser, one_line, subject_of, tracked
from analyze.labelled import labelled
from analyze.linear import BATCH, EPOCHS, Probe, learning_rate, train_probe
from analyze.output import Analysis, Output
from analyze.shards import read_shards, write_shards
from analyze.subject import Size, Subject
from vmamba.command_line import parse_size
from vmamba.errors import UserError
from vmamba.figures import new_figure
from vmamba.weights import write_bytes, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHOD = (
    "Pooled features of {model}, kept in shards; a linear layer on them from {start}, SGD, momentum 0.9, {epochs} "
    "epochs over a cosine schedule, batch {batch}, learning rate by the size of the image as published for VMamba; "
    "{train} training and {held_out} held-out images of {data}."
)


@dataclass(frozen=True)
class Training:
    """What a probe is trained on and how: `data` None is the bundled digits, `lr` None the published rate of the size.

    At most `count` images of each split; features are made `batch` images at once and kept `shard` to a file.
    """

    data: Path | None = None
    count: int | None = None
    batch: int = 32
    shard: int = 512
    epochs: int = EPOCHS
    lr: float | None = None
    reinit: bool = False
    seed: int = 0


def fingerprint(subject: Subject) -> str:
    """Return what tells one network and image size from another: a hash over all weights."""
    told = hashlib.sha256(f"{type(subject.network).__name__} {subject.size}".encode())
    for name, value in sorted(subject.network.state_dict().items()):
        told.update(name.encode())
        told.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return told.hexdigest()[:16]


def probe(subject: Subject, training: Training, folder: Path) -> tuple[dict[str, Any], Probe]:
    """Return the row of one size and its probe: features made where they are missing, trained where it is not."""
    size = f"{subject.size[0]}x{subject.size[1]}"
    place = folder / f"features_{size}"
    sets = {s: labelled(training.data, s, subject.opened.class_names, training.count) for s in ("train", "val")}
    own = fingerprint(subject)
    notes = []
    for split, data in sets.items():
        _, said = write_shards(place, subject, data, split, own, training.batch, training.shard)
        notes += [said] if said else []
    rate = training.lr or learning_rate(subject.size[0])
    told = {"lr": rate, "epochs": training.epochs, "reinit": training.reinit, "seed": training.seed}
    done = place / "probe.json"
    kept = json.loads(done.read_text(encoding="utf-8")) if done.is_file() else {}
    if kept.get("with") == told and "scores" in kept:
        return kept["row"], Probe(kept["row"]["top-1 before"], kept["scores"])
    classes = max(max(data.labels) for data in sets.values()) + 1
    classifier = getattr(subject.network, "get_classifier", lambda: None)()
    head = classifier if isinstance(classifier, torch.nn.Linear) and not training.reinit else None
    if head is not None:
        classes = max(classes, head.out_features)
    train, held_out = (read_shards(place, split, subject.device) for split in sets)
    found, linear = train_probe(train, held_out, classes, rate, head, training.epochs, seed=training.seed)
    row = {"model": subject.name, "size": size, "lr": rate, "training images": len(sets["train"].images)}
    row |= {"held-out images": len(sets["val"].images), "top-1 before": found.before, "top-1": found.last}
    row |= {"best top-1": found.best, "at epoch": found.scores.index(found.best), "note": "; ".join(notes)}
    from safetensors.torch import save

    write_bytes(place / "classifier.safetensors", save({k: v.cpu() for k, v in linear.state_dict().items()}))
    write_text(done, json.dumps({"with": told, "row": row, "scores": found.scores}, indent=1) + "\n")
    return row, found


def draw(probes: Mapping[str, Probe]) -> Figure:
    """Return a figure: the accuracy over the epochs, a line for each size, dashed where it was before the training."""
    figure = new_figure(5.6, 3.8)
    axes = figure.subplots()
    for number, (size, found) in enumerate(probes.items()):
        axes.plot(range(len(found.scores)), found.scores, color=f"C{number}", label=size)
        if found.before is not None:
            axes.axhline(found.before, color=f"C{number}", ls="--", lw=1, label=f"{size}, the model's own head")
    axes.set(xlabel="epoch of the classifier", ylabel="top-1 accuracy, held-out images, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def run(subject: Subject, sizes: Sequence[Size], training: Training, output: Output, folder: Path) -> Analysis:
    """Probe a subject at every size, features kept in `folder`, and write table and plot."""
    rows, probes = [], {}
    for size in tracked(list(sizes), "probe"):
        row, found = probe(subject if size == subject.size else subject.at(size), training, folder)
        rows.append(row)
        probes[row["size"]] = found
    output.picture("Top-1 accuracy of a linear classifier", draw(probes), vector=True)
    output.table("Linear probe", rows)
    for size, found in probes.items():
        epochs = [{"epoch": epoch, "top-1": score} for epoch, score in enumerate(found.scores)]
        output.table(f"Epochs at {size}", epochs, printed=False)
    return output.close(
        METHOD.format(
            model=f"{subject.name} ({subject.weights})",
            start="zeros" if training.reinit else "its own head where it fits",
            epochs=training.epochs, batch=BATCH, data=training.data or "the bundled digits",
            train=rows[0]["training images"], held_out=rows[0]["held-out images"],
        )
    )  # fmt: skip


@one_line
def main(argv: list[str] | None = None) -> int:
    parser = new_parser("probe", __doc__, images=False)
    parser.add_argument("--data", type=Path, metavar="DIR", help="DIR/{train,val}/CLASS/* (default: bundled digits)")
    parser.add_argument("--sizes", nargs="+", metavar="HxW", help="sizes of the images (default: that of --size)")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="images at once (default 32)")
    parser.add_argument("--shard", type=int, default=512, metavar="N", help="images in a shard (default 512)")
    parser.add_argument("--count", type=int, metavar="N", help="at most so many images of each split (default: all)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, metavar="N", help=f"of the classifier (default {EPOCHS})")
    parser.add_argument("--lr", type=float, metavar="RATE", help="learning rate (default: by the size, as published)")
    parser.add_argument("--reinit", action="store_true", help="start from zeros, not from the model's own head")
    arguments = parser.parse(argv)
    for flag in ("batch", "shard", "epochs"):
        if getattr(arguments, flag) < 1:
            raise UserError(f"--{flag}: give at least 1")
    if arguments.lr is not None and not arguments.lr > 0:
        raise UserError("--lr: give a rate above 0")
    training = Training(**{name: getattr(arguments, name) for name in Training.__dataclass_fields__})
    sizes = [parse_size(text) for text in arguments.sizes or []]
    if sizes and not arguments.size:
        arguments.size = arguments.sizes[0]
    subject = subject_of(arguments)
    folder = folder_of(arguments)
    run(subject, sizes or [subject.size], training, Output(folder, "probe", "Linear probe"), folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
