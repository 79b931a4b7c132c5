"""The tables of the model zoo, from the registered models and the list of released checkpoints."""

from __future__ import annotations

import timm
import torch

from docs.generate.markdown import code, table
from docs.generate.meta_models import meta_model, parameters, published_names
from vmamba.models import VARIANTS, model_names
from vmamba.weights.released import (
    CLASSIFICATION,
    DETECTION,
    FURTHER,
    PRE_TRAINING,
    RELEASED,
    SEGMENTATION,
    Released,
    released_classifier,
)

# Multiply-adds at 224 x 224 in 10^9: assets/performance.md of github.com/MzeroMiko/VMamba for the first nine, its first
# README for the other three. The mamba2 models were published without figures.
PUBLISHED_GMACS = {
    "vanilla_vmamba_tiny": "5.6",
    "vanilla_vmamba_small": "11.2",
    "vanilla_vmamba_base": "18.0",
    "vmamba_tiny_s2l5": "4.9",
    "vmamba_small_s2l15": "8.7",
    "vmamba_base_s2l15": "15.4",
    "vmamba_tiny_s1l8": "4.9",
    "vmamba_small_s1l20": "8.6",
    "vmamba_base_s1l20": "15.2",
    "vmamba_tiny_0220": "5",
    "vmamba_tiny_0229": "4.5",
    "vmamba_tiny_0229flex": "4.5",
}
# Of these two the first README states an accuracy and no weights were released.
UNRELEASED_TOP1 = {"vmamba_tiny_0229": 82.4, "vmamba_tiny_0229flex": 82.3}


def classifiers() -> str:
    """Return the table of every registered model: size, published cost and accuracy, and its file."""
    rows = []
    for name, paper in published_names().items():
        entry = released_classifier(name)
        top1 = entry.score if entry else UNRELEASED_TOP1.get(name, "")
        rows.append(
            [
                code(name),
                paper,
                f"{parameters(meta_model(name)):,}",
                PUBLISHED_GMACS.get(name, ""),
                top1,
                (entry.second or "") if entry else "",
                code(entry.tag) if entry else "no weights",
            ]
        )
    return table(["name", "published as", "parameters", "GMACs", "top-1", "top-5", "release"], rows)


def vims() -> str:
    """Return the table of the models of the Vim family: size, published accuracy, and its file."""
    rows = []
    for name in model_names():
        if name in VARIANTS:
            continue
        with torch.device("meta"):
            count = parameters(timm.create_model(name))
        paper = str(timm.model_entrypoint(name).__doc__).partition(",")[0]
        entry = released_classifier(name)
        scores = (
            [entry.score, entry.second or "", entry.recipe, code(entry.file)] if entry else ["", "", "", "no weights"]
        )
        rows.append([code(name), paper, f"{count:,}", *scores])
    return table(["name", "published as", "parameters", "top-1", "top-5", "data", "file"], rows)


def files() -> str:
    """Return the table of the released checkpoints of classifiers and autoencoders."""
    entries = [entry for entry in RELEASED if entry.task in (CLASSIFICATION, PRE_TRAINING, FURTHER)]
    rows = ([code(e.model), _link(e), e.tensors, "the average" if e.averaged else "the model"] for e in entries)
    return table(["model", "file", "tensors", "weights of"], rows)


def designs() -> str:
    """Return the table of what tells the registered models apart."""
    rows = []
    for name in published_names():
        model = meta_model(name)
        block = model.layers[0].blocks[0]
        mixer = block.op
        rows.append(
            [
                code(name),
                model.dims[0],
                code(", ".join(map(str, model.depths))),
                mixer.d_state,
                f"{mixer.d_inner / model.dims[0]:g}",
                "yes" if mixer.options.gate else "no",
                f"{block.mlp.fc1.out_features / model.dims[0]:g}" if block.mlp_branch else "none",
                model.versions[0],
                model.versions[1],
                "CHW" if model.channel_first else "HWC",
            ]
        )
    header = ["name", "width", "blocks", "d_state", "ratio", "gate", "MLP", "stem", "down", "layout"]
    return table(header, rows)


def detectors() -> str:
    """Return the table of the released Mask R-CNN checkpoints."""
    return _dense(DETECTION, ["backbone", "recipe", "parameters", "box AP", "mask AP", "release", "file"])


def segmentors() -> str:
    """Return the table of the released UPerNet checkpoints."""
    return _dense(SEGMENTATION, ["backbone", "recipe", "parameters", "mIoU", "multi-scale", "release", "file"])


def _dense(task: str, header: list[str]) -> str:
    entries = [entry for entry in RELEASED if entry.task == task]
    return table(
        header,
        (
            [code(e.model), e.recipe, f"{e.parameters / 1e6:.0f} M", e.score, e.second or "", code(e.tag), _link(e)]
            for e in entries
        ),
    )


def _link(entry: Released) -> str:
    return f"[{code(entry.file)}]({entry.url})"


if __name__ == "__main__":
    print(classifiers(), files(), designs(), detectors(), segmentors(), sep="\n")
