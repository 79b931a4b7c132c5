"""Weights into a model: strict by default, with a report of every key."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vmamba.weights.contents import behind, choose_entry, choose_prefix, find_state_dict
from vmamba.weights.reading import load_checkpoint
from vmamba.weights.report import LoadReport, Shape, WeightsDoNotFit

__all__ = ["LoadReport", "WeightsDoNotFit", "find_state_dict", "find_weights", "fit_weights", "load_weights"]

_HEAD_NAMES = ("classifier.head", "head.fc", "head", "fc", "classifier")


def load_weights(
    model: nn.Module,
    source: str | Path | Mapping[str, Any],
    *,
    allow_head_mismatch: bool = False,
    prefer_ema: bool = False,
    entry: str | None = None,
    allow_missing: Iterable[str] = (),
    allow_unexpected: Iterable[str] = (),
    quiet: bool = False,
    source_name: str = "",
) -> LoadReport:
    """Load weights from a file or a dict into `model`; print and return a `LoadReport`.

    Reads every layout that `load_checkpoint` and `contents` know. Published and earlier key names are renamed, position
    embeddings resized. Anything missing, unexpected or of another shape raises `WeightsDoNotFit` before the model is
    touched, except: the classifier's last layer with `allow_head_mismatch` (it keeps its fresh values), keys that match
    a pattern of `allow_missing` or `allow_unexpected`, and those that a part of the model calls `optional_keys`.
    `prefer_ema` takes the averaged weights of a training checkpoint where it has them; `entry` names one entry.
    The report goes to standard error, from the first process only; `quiet` leaves that to the caller. `source_name` is
    what messages call a dict, such as the file that it was read from.
    """
    name = str(source) if isinstance(source, str | Path) else source_name or "the given dict"
    payload = load_checkpoint(source) if isinstance(source, str | Path) else source
    report, state = fit_weights(
        model,
        payload,
        allow_head_mismatch=allow_head_mismatch,
        prefer_ema=prefer_ema,
        entry=entry,
        allow_missing=allow_missing,
        allow_unexpected=allow_unexpected,
        name=name,
    )
    if not quiet and os.environ.get("RANK", "0") == "0":
        print(report.full_table(), file=sys.stderr)
    if not report.clean:
        raise WeightsDoNotFit(f"{name} does not fit {type(model).__name__}: {report.summary()}{_hint(report)}", report)
    model.load_state_dict(state, strict=False)
    return report


@dataclass(frozen=True)
class FoundWeights:
    """The weights of a payload under a model's names, and how they came to it; see `LoadReport` for the words."""

    state: dict[str, Tensor]
    renamed: dict[str, str]
    resized: dict[str, tuple[Shape, Shape]]
    outside: tuple[str, ...]
    place: str


def find_weights(
    model: nn.Module,
    payload: Mapping[str, Any],
    *,
    prefer_ema: bool = False,
    entry: str | None = None,
    name: str = "the given dict",
) -> FoundWeights:
    """Return the weights of a checkpoint under the model's names, without touching the model, fitting or not."""
    key, found = choose_entry(payload, prefer_ema=prefer_ema, entry=entry, name=name)
    known = model.state_dict().keys()
    prefix = choose_prefix(found, lambda state: len(_read_names(state, model)[0].keys() & known), prefer_ema)
    state, renamed, resized = _read_names(behind(found, prefix), model)
    places = [f"entry '{key}'"] * bool(key) + [f"keys under '{prefix}'"] * bool(prefix)
    outside = tuple(key for key in found if not key.startswith(prefix))
    return FoundWeights(state, renamed, resized, outside, f" ({', '.join(places)})" if places else "")


def fit_weights(
    model: nn.Module,
    payload: Mapping[str, Any],
    *,
    allow_head_mismatch: bool = False,
    prefer_ema: bool = False,
    entry: str | None = None,
    allow_missing: Iterable[str] = (),
    allow_unexpected: Iterable[str] = (),
    first_conv: str = "",
    name: str = "the given dict",
) -> tuple[LoadReport, dict[str, Tensor]]:
    """Return the report and the weights that fit, without touching the model, which may be on "meta".

    The arguments are those of `load_weights`; `first_conv` names the convolution whose input channels may be adapted,
    by timm's rule, and `name` is what messages call the payload.
    """
    found = find_weights(model, payload, prefer_ema=prefer_ema, entry=entry, name=name)
    state, target = found.state, model.state_dict()
    _adapt_channels(state, target, f"{first_conv}.weight", found.resized)

    head = _head_keys(model, target)
    absent = [key for key in target if key not in state]
    optional = _optional_keys(model).intersection(absent)
    head -= optional
    missing = [key for key in absent if key not in optional]
    unexpected = [key for key in state if key not in target]
    mismatched = {
        key: (key, tuple(value.shape), tuple(target[key].shape))
        for key, value in state.items()
        if key in target and value.shape != target[key].shape
    }
    dropped: list[str] = []
    if allow_head_mismatch and head & (mismatched.keys() | set(missing)):
        dropped = sorted(head)
        mismatched = {key: row for key, row in mismatched.items() if key not in head}
        missing = [key for key in missing if key not in head]
    matched = [key for key in state if key in target and key not in dropped and key not in mismatched]
    report = LoadReport(
        matched=tuple(matched),
        renamed=tuple(found.renamed.items()),
        resized=tuple((key, old, new) for key, (old, new) in found.resized.items()),
        missing=tuple(key for key in missing if not _any_match(key, allow_missing)),
        unexpected=tuple(key for key in unexpected if not _any_match(key, allow_unexpected)),
        mismatched=tuple(mismatched.values()),
        head_dropped=tuple(dropped),
        kept=tuple(key for key in absent if key in optional or (key in missing and _any_match(key, allow_missing))),
        left_out=tuple(key for key in unexpected if _any_match(key, allow_unexpected)),
        outside=found.outside,
        source=f"{name} into {type(model).__name__}{found.place}",
    )
    return report, {key: state[key] for key in matched}


def _read_names(state: dict[str, Tensor], model: nn.Module):
    """Return the state under the model's names, {old: new} of the renamed and {key: (old, new shape)} of the resized.

    Each part of the model that has had other names reads its own, see `VSSM.read_published_keys`.
    """
    renamed: dict[str, str] = {}
    resized: dict[str, tuple] = {}
    for name, module in model.named_modules():
        read = getattr(module, "read_published_keys", None)
        if callable(read):
            state, more_renamed, more_resized = read(state, f"{name}." if name else "")
            renamed.update(more_renamed)
            resized.update(more_resized)
    return state, renamed, resized


def _adapt_channels(
    state: dict[str, Tensor], target: Mapping[str, Tensor], key: str, resized: dict[str, tuple]
) -> None:
    """Fit the weight `key` to the model's input channels in place, where these are all that differs."""
    if key not in state or key not in target:
        return
    from timm.models import adapt_input_conv

    old, new = tuple(state[key].shape), tuple(target[key].shape)
    if old != new and len(old) == 4 and old[:1] + old[2:] == new[:1] + new[2:]:
        try:
            state[key] = adapt_input_conv(new[1], state[key])
        except NotImplementedError:  # the rule knows colour images only; the shapes stay reported as mismatched
            return
        resized[key] = (old, new)


def _head_keys(model: nn.Module, target: Mapping[str, Tensor]) -> set[str]:
    """Return the state_dict keys of the last classifier layer, those of its parts included."""
    get_classifier = getattr(model, "get_classifier", None)
    layer = get_classifier() if callable(get_classifier) else None
    names = [name for name, module in model.named_modules() if module is layer] if isinstance(layer, nn.Module) else []
    if names:
        return {key for key in target if key.startswith(f"{names[0]}.")}
    for name in _HEAD_NAMES:
        keys = {key for key in target if key.rpartition(".")[0] == name}
        if keys:
            return keys
    return set()


def _optional_keys(model: nn.Module) -> set[str]:
    """Return the keys that weights need not have, because the part of the model that they are of says so."""
    found: set[str] = set()
    for name, module in model.named_modules():
        if patterns := getattr(module, "optional_keys", ()):
            prefix = f"{name}." if name else ""
            found |= {f"{prefix}{key}" for key in module.state_dict() if _any_match(key, patterns)}
    return found


def _hint(report: LoadReport) -> str:
    """Return what to do where only the head differs."""
    heads = ("head", "fc", "classifier")
    differing = [row[0] for row in report.mismatched]
    only_head = differing and all(key.rpartition(".")[0].rpartition(".")[2] in heads for key in differing)
    if only_head and not report.missing and not report.unexpected:
        return "; only the head differs: --allow-head-mismatch starts it fresh"
    return ""


def _any_match(key: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)
