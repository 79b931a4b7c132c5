"""Weights into a model: strict by default, with a report of every key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vmamba.weights.manifest import CheckpointError
from vmamba.weights.reading import load_checkpoint

_WRAPPERS = ("module.", "_orig_mod.")
_HEAD_NAMES = ("classifier.head", "head.fc", "head", "fc", "classifier")


@dataclass(frozen=True)
class LoadReport:
    """What became of each key; `mismatched` and `resized` hold (key, shape in the file, shape in the model)."""

    matched: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    resized: tuple[tuple[str, tuple, tuple], ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[tuple[str, tuple, tuple], ...] = ()
    head_dropped: tuple[str, ...] = field(default=())

    @property
    def clean(self) -> bool:
        """True when every key of the file found its place and every key of the model got a value."""
        return not (self.missing or self.unexpected or self.mismatched)

    def summary(self) -> str:
        """Return the counts in one line, with the first names of what does not fit."""
        parts = [f"{len(self.matched)} keys matched"]
        for label, names in (("renamed", self.renamed), ("resized", self.resized), ("head dropped", self.head_dropped)):
            if names:
                parts.append(f"{len(names)} {label}")
        for label, rows in self._problems():
            if rows:
                more = ", ..." if len(rows) > 2 else ""
                parts.append(f"{len(rows)} {label} ({', '.join(rows[:2])}{more})")
        return ", ".join(parts)

    def table(self, limit: int = 8) -> str:
        """Return a short table of the keys that do not fit, `limit` rows of each kind."""
        lines = []
        for label, rows in self._problems():
            lines += [f"{label:<11} {row}" for row in rows[:limit]]
            if len(rows) > limit:
                lines.append(f"{label:<11} ... and {len(rows) - limit} more")
        return "\n".join(lines)

    def _problems(self) -> list[tuple[str, list[str]]]:
        shapes = [f"{key} {list(a)} in the file, {list(b)} in the model" for key, a, b in self.mismatched]
        return [("missing", list(self.missing)), ("unexpected", list(self.unexpected)), ("mismatched", shapes)]


class WeightsDoNotFit(CheckpointError):
    """Weights of another model; `report` tells every key."""

    def __init__(self, message: str, report: LoadReport) -> None:
        super().__init__(message)
        self.report = report


def load_weights(
    model: nn.Module,
    source: str | Path | Mapping[str, Any],
    *,
    allow_head_mismatch: bool = False,
    prefer_ema: bool = False,
    entry: str | None = None,
    allow_missing: Iterable[str] = (),
    allow_unexpected: Iterable[str] = (),
) -> LoadReport:
    """Load weights from a file or a dict into `model` and return a `LoadReport`.

    Published and earlier key names are renamed first. Anything missing, unexpected or of another shape raises
    `WeightsDoNotFit` before the model is touched, except: the classifier's last layer with `allow_head_mismatch` (it
    keeps its fresh values), and keys that match a pattern of `allow_missing` or `allow_unexpected`.
    `prefer_ema` takes the averaged weights of a training checkpoint where it has them; `entry` names one entry.
    """
    name = str(source) if isinstance(source, str | Path) else "the given dict"
    payload = load_checkpoint(source) if isinstance(source, str | Path) else source
    found = find_state_dict(payload, prefer_ema=prefer_ema, entry=entry, name=name)
    target = model.state_dict()
    state, renamed, resized = _fit_names(found, model)

    head = _head_keys(model, target)
    missing = [key for key in target if key not in state]
    unexpected = [key for key in state if key not in target]
    mismatched = [
        (key, tuple(value.shape), tuple(target[key].shape))
        for key, value in state.items()
        if key in target and value.shape != target[key].shape
    ]
    dropped: list[str] = []
    if allow_head_mismatch:
        wrong = {key for key, _, _ in mismatched} | set(missing)
        if wrong & head:
            dropped = sorted(head)
            mismatched = [row for row in mismatched if row[0] not in head]
            missing = [key for key in missing if key not in head]
    report = LoadReport(
        matched=tuple(key for key in state if key in target and key not in dropped and key not in _keys(mismatched)),
        renamed=tuple(renamed),
        resized=tuple(resized),
        missing=tuple(key for key in missing if not _any_match(key, allow_missing)),
        unexpected=tuple(key for key in unexpected if not _any_match(key, allow_unexpected)),
        mismatched=tuple(mismatched),
        head_dropped=tuple(dropped),
    )
    if not report.clean:
        hint = ""
        if not report.missing and not report.unexpected and set(_keys(mismatched)) <= head:
            hint = "; only the head differs: --allow-head-mismatch starts it fresh"
        raise WeightsDoNotFit(f"{name} does not fit {type(model).__name__}: {report.summary()}{hint}", report)
    model.load_state_dict({key: state[key] for key in report.matched}, strict=False)
    return report


def find_state_dict(
    payload: Mapping[str, Any], *, prefer_ema: bool = False, entry: str | None = None, name: str = "the given dict"
) -> dict[str, Tensor]:
    """Return the {key: tensor} part of a checkpoint: `entry`, else one of the usual names, else `payload` itself."""
    if entry is not None:
        if not isinstance(payload.get(entry), Mapping):
            raise CheckpointError(f"{name} has no entry '{entry}'; it has {', '.join(map(str, payload))}")
        return _tensors(payload[entry])
    usual = ("model_ema", "state_dict_ema") if prefer_ema else ()
    for key in (*usual, "model", "state_dict", "module"):
        if isinstance(payload.get(key), Mapping):
            return _tensors(payload[key])
    state = _tensors(payload)
    if not state:
        raise CheckpointError(f"{name} holds no weights; its entries are {', '.join(map(str, payload)) or 'none'}")
    return state


def _tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}


def _fit_names(state: dict[str, Tensor], model: nn.Module):
    """Return the state under the model's names, the renamed keys (old, new) and the resized (key, old, new shape)."""
    for wrapper in _WRAPPERS:
        if state and all(key.startswith(wrapper) for key in state):
            state = {key.removeprefix(wrapper): value for key, value in state.items()}
    return _rename_published(state, model)


def _rename_published(state: dict[str, Tensor], model: nn.Module):
    from vmamba.models.vssm import VSSM
    from vmamba.models.vssm_keys import rename_published_keys, resize_pos_embed

    if not isinstance(model, VSSM):
        return state, [], []
    state, changed = rename_published_keys(state)
    resized = []
    stored = state.get("pos_embed")
    if stored is not None and model.pos_embed is not None and stored.shape[2:] != model.pos_embed.shape[2:]:
        grid = model.pos_embed.shape[2:]
        state["pos_embed"] = resize_pos_embed(stored, (int(grid[0]), int(grid[1])))
        resized.append(("pos_embed", tuple(stored.shape), tuple(model.pos_embed.shape)))
    return state, list(changed.items()), resized


def _head_keys(model: nn.Module, target: Mapping[str, Tensor]) -> set[str]:
    """Return the state_dict keys of the last classifier layer."""
    get_classifier = getattr(model, "get_classifier", None)
    layer = get_classifier() if callable(get_classifier) else None
    names = [name for name, module in model.named_modules() if module is layer] if isinstance(layer, nn.Module) else []
    for name in names or _HEAD_NAMES:
        keys = {key for key in target if key.rpartition(".")[0] == name}
        if keys:
            return keys
    return set()


def _keys(rows: Iterable[tuple]) -> list[str]:
    return [row[0] for row in rows]


def _any_match(key: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)
