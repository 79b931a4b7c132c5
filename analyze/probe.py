"""A linear classifier on frozen features, size by size: ``python -m analyze.probe --data DIR --sizes 224 384``."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from analyze.command import folder_of, new_parser, one_line, tracked
from analyze.labelled import labelled
from analyze.linear import BATCH, EPOCHS, learning_rate, train_probe
from analyze.output import Output
from analyze.shards import read_shards, write_shards
from analyze.subject import Subject, open_subject
from vmamba.command_line import parse_size
from vmamba.errors import UserError
from vmamba.weights import write_bytes, write_text

METHOD = (
    "Pooled features of {model}, kept in shards; a linear layer on them from {start}, SGD, momentum 0.9, {epochs} "
    "epochs over a cosine schedule, batch {batch}, learning rate by the size of the image as published for VMamba; "
    "{train} training and {held_out} held-out images of {data}."
)


def fingerprint(subject: Subject) -> str:
    """Return what tells one network and image size from another: a hash over all weights."""
    told = hashlib.sha256(f"{type(subject.network).__name__} {subject.size}".encode())
    for name, value in sorted(subject.network.state_dict().items()):
        told.update(name.encode())
        told.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return told.hexdigest()[:16]


def probe(subject: Subject, arguments: Any, folder: Path) -> dict[str, Any]:
    """Return the row of one size: features made where they are missing, the classifier trained where it is."""
    size = f"{subject.size[0]}x{subject.size[1]}"
    place = folder / f"features_{size}"
    sets = {s: labelled(arguments.data, s, subject.opened.class_names, arguments.count) for s in ("train", "val")}
    own = fingerprint(subject)
    notes = []
    for split, data in sets.items():
        _, said = write_shards(place, subject, data, split, own, arguments.batch, arguments.shard)
        notes += [said] if said else []
    rate = arguments.lr or learning_rate(subject.size[0])
    told = {"lr": rate, "epochs": arguments.epochs, "reinit": arguments.reinit, "seed": arguments.seed}
    done = place / "probe.json"
    kept = json.loads(done.read_text(encoding="utf-8")) if done.is_file() else {}
    if kept.get("with") == told:
        return kept["row"]
    classes = max(max(data.labels) for data in sets.values()) + 1
    classifier = getattr(subject.network, "get_classifier", lambda: None)()
    head = classifier if isinstance(classifier, torch.nn.Linear) and not arguments.reinit else None
    if head is not None:
        classes = max(classes, head.out_features)
    train, held_out = (read_shards(place, split, subject.device) for split in sets)
    found, linear = train_probe(train, held_out, classes, rate, head, arguments.epochs, seed=arguments.seed)
    row = {"size": size, "lr": rate, "training images": len(sets["train"].images)}
    row |= {"held-out images": len(sets["val"].images), "top-1 before": found.before, "top-1": found.last}
    row |= {"best top-1": found.best, "at epoch": found.at, "note": "; ".join(notes)}
    from safetensors.torch import save

    write_bytes(place / "classifier.safetensors", save({k: v.cpu() for k, v in linear.state_dict().items()}))
    write_text(done, json.dumps({"with": told, "row": row}, indent=1) + "\n")
    return row


@one_line
def main(argv: list[str] | None = None) -> int:
    parser = new_parser("probe", __doc__, images=False)
    parser.add_argument("--data", type=Path, metavar="DIR", help="DIR/{train,val}/CLASS/* (default: bundled digits)")
    parser.add_argument("--sizes", nargs="+", metavar="HxW", help="sizes of the images (default: that of --size)")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="images at once (default 32)")
    parser.add_argument("--shard", type=int, default=512, metavar="N", help="images in a shard (default 512)")
    parser.add_argument("--count", type=int, metavar="N", help="at most so many images of each split")
    parser.add_argument("--epochs", type=int, default=EPOCHS, metavar="N", help=f"of the classifier (default {EPOCHS})")
    parser.add_argument("--lr", type=float, metavar="RATE", help="learning rate (default: by the size, as published)")
    parser.add_argument("--reinit", action="store_true", help="start from zeros, not from the model's own head")
    arguments = parser.parse(argv)
    for flag in ("batch", "shard", "epochs"):
        if getattr(arguments, flag) < 1:
            raise UserError(f"--{flag}: give at least 1")
    folder = folder_of(arguments)
    output = Output(folder, "probe", "Linear probe")
    rows = []
    for text in tracked(arguments.sizes or [arguments.size], "probe"):
        size = parse_size(text) if text else None
        subject = open_subject(arguments.model, arguments.weights, size, arguments.device, arguments.seed)
        rows.append({"model": subject.name, **probe(subject, arguments, folder)})
    output.table("Linear probe", rows)
    output.close(
        METHOD.format(
            model=subject.described(), start="zeros" if arguments.reinit else "its own head where it fits",
            epochs=arguments.epochs, batch=BATCH, data=arguments.data or "the bundled digits",
            train=rows[0]["training images"], held_out=rows[0]["held-out images"],
        )
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
