"""What is inside a checkpoint file, told without running anything of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from vmamba.models.vssm_layouts import layout_of
from vmamba.weights.contents import behind, choose_entry, weight_entries
from vmamba.weights.converting import network_prefixes
from vmamba.weights.guessing import models_that_fit
from vmamba.weights.kinds import kind_of
from vmamba.weights.manifest import read_manifest, sha256_of
from vmamba.weights.reading import load_checkpoint
from vmamba.weights.released import released_file


@dataclass(frozen=True)
class WeightsEntry:
    """One set of weights of a file: how many tensors and numbers, of which types, in which layout."""

    name: str
    tensors: int
    parameters: int
    dtypes: dict[str, int]
    prefixes: tuple[str, ...]
    layout: str


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint file holds. `models` are the names of this package's models that the weights fit."""

    path: str
    kind: str
    size: int
    sha256: str
    digest: str
    weights: tuple[WeightsEntry, ...]
    models: tuple[str, ...]
    released: str
    facts: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """Return the readable page that ``python -m vmamba.weights inspect`` prints."""
        rows = [
            ("file", self.path),
            ("format", f"{self.kind}, {self.size:,} bytes"),
            ("sha256", f"{self.sha256} ({self.digest})"),
            ("release", self.released or "not by this name"),
            ("model", " or ".join(self.models) or "none of vmamba.list_models() has these keys and shapes"),
        ]
        for entry in self.weights:
            types = ", ".join(f"{n} {name}" for name, n in entry.dtypes.items())
            behind_words = f", keys behind {', '.join(entry.prefixes)}" if entry.prefixes else ""
            said = f"{entry.tensors} tensors ({types}), {entry.parameters:,} numbers, layout {entry.layout}"
            rows.append(("weights", f"{entry.name or 'the file itself'}: {said}{behind_words}"))
        rows += [("also", f"{name}: {value}") for name, value in self.facts.items()]
        lines = [f"{label:<8} {value}" for label, value in rows]
        if self.config:
            lines += ["config", *(f"  {row}" for row in _leaves(self.config))]
        return "\n".join(lines)

    def json(self) -> str:
        """Return the same as JSON."""
        return json.dumps(asdict(self), indent=1, default=str)


def inspect_file(path: str | Path) -> Inspection:
    """Return what a checkpoint file holds; `CheckpointError` where `load_checkpoint` would refuse it."""
    path = Path(path)
    payload = load_checkpoint(path)
    entries = weight_entries(payload)
    release = released_file(path.name)
    said = f"{release.model}, {release.task}, {release.tag}, score {release.score:g} %" if release else ""
    trees = [payload[key] for key in ("config", "args", "hyper_parameters") if _is_tree(payload.get(key))]
    config: dict[str, Any] = trees[0] if trees else {}
    listed = path.name in read_manifest(path.parent)
    return Inspection(
        path=str(path),
        kind=kind_of(path),
        size=path.stat().st_size,
        sha256=sha256_of(path),
        digest="as the manifest says" if listed else "no manifest lists it",
        weights=tuple(_describe(name, state) for name, state in entries.items()),
        models=tuple(models_that_fit(payload)) if entries else (),
        released=said,
        facts=_facts(payload, entries),
        config=config,
    )


def keys_table(path: str | Path, entry: str | None = None) -> str:
    """Return every key of a file's weights with type and shape, one a line."""
    _, state = choose_entry(load_checkpoint(path), entry=entry, name=str(path))
    return "\n".join(f"{key}  {str(v.dtype).removeprefix('torch.')}  {list(v.shape)}" for key, v in state.items())


def _describe(name: str, state: dict[str, Tensor]) -> WeightsEntry:
    networks = network_prefixes(state)
    return WeightsEntry(
        name=name,
        tensors=len(state),
        parameters=sum(value.numel() for value in state.values()),
        dtypes=dict(Counter(str(value.dtype).removeprefix("torch.") for value in state.values())),
        prefixes=tuple(prefix for prefix in networks if prefix),
        layout=layout_of(behind(state, networks[0])) if networks else "other",
    )


def _facts(payload: Mapping[str, Any], entries: Mapping[str, Any]) -> dict[str, Any]:
    """Return what stands beside the weights: short values as they are, longer ones by their size."""
    facts = {}
    for name, value in payload.items():
        if name in entries or isinstance(value, Tensor) or "" in entries:
            continue
        if isinstance(value, str | int | float | bool | None):
            facts[str(name)] = value if len(str(value)) <= 80 else f"{len(str(value))} characters"
        elif isinstance(value, dict | list | tuple):
            facts[str(name)] = f"{type(value).__name__} of {len(value)}"
    return facts


def _is_tree(value: Any) -> bool:
    return isinstance(value, dict) and bool(value)


def _leaves(tree: Mapping[str, Any], path: str = "") -> list[str]:
    rows = []
    for key, value in tree.items():
        if _is_tree(value):
            rows += _leaves(value, f"{path}{key}.")
        else:
            rows.append(f"{path}{key}: {value}")
    return rows
