"""The configuration: defaults, BASE files, the yaml, --opts, flags, in this order; faults are one-line `UserError`s."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from classification.defaults import ALSO_TAKES, FREE_NODES, defaults, known_keys
from vmamba.errors import UserError, closest


def load_config(
    file: str | Path = "", opts: Iterable[str] = (), flags: Mapping[str, Any] | None = None
) -> tuple[CfgNode, set[str]]:
    """Return the merged configuration and the set of keys that somebody stated.

    `file` is a yaml whose ``BASE`` files, relative to it, are merged first; `opts` are alternating keys and values;
    `flags` are {key: value} from the command line and win. Raises `UserError` with the key path and the nearest name.
    """
    config = defaults()
    stated: set[str] = set()
    if file:
        _merge_file(config, Path(file), stated, chain=())
    opts = list(opts)
    if len(opts) % 2:
        raise UserError(f"--opts takes pairs of KEY VALUE; '{opts[-1]}' has no value")
    for key, value in zip(opts[::2], opts[1::2]):
        _set(config, key, value, "--opts", stated)
    for key, value in (flags or {}).items():
        _set(config, key, value, "the command line", stated)
    return config, stated


def value_of(node: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted key; KeyError where there is none."""
    for part in key.split("."):
        node = node[part]
    return node


def as_plain(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration as nested plain dicts and lists, fit for JSON, YAML and safe unpickling."""
    return {
        key: as_plain(value) if isinstance(value, Mapping) else list(value) if isinstance(value, tuple) else value
        for key, value in node.items()
    }


def as_yaml(node: Mapping[str, Any]) -> str:
    """Return a configuration as yaml text that ``--cfg`` reads back."""
    return yaml.safe_dump(as_plain(node), sort_keys=False)


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return "KEY old -> new" for each key whose value differs between two plain configurations."""
    rows = []
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            rows += changed_keys(before, value, f"{prefix}{key}.")
        elif key in old and before != value:
            rows.append(f"{prefix}{key} {before} -> {value}")
    return rows


def _merge_file(config: CfgNode, path: Path, stated: set[str], chain: tuple[Path, ...]) -> None:
    resolved = path.resolve()
    if resolved in chain:
        cycle = " -> ".join(p.name for p in (*chain, resolved))
        raise UserError(f"{chain[-1]}: BASE goes round in a circle: {cycle}")
    values = _read_yaml(path, chain)
    bases = values.get("BASE", [])
    if not isinstance(bases, str | list):
        raise UserError(f"{path}: BASE must be a list of file names, not {bases!r}")
    for base in [bases] if isinstance(bases, str) else bases:
        if not isinstance(base, str):
            raise UserError(f"{path}: BASE must be a list of file names, not {base!r}")
        if base:
            if Path(base).is_absolute() or base.startswith("~"):
                raise UserError(f"{path}: BASE '{base}' is an absolute path; write it relative to this file")
            _merge_file(config, path.parent / base, stated, (*chain, resolved))
    _merge_values(config, values, str(path), stated)


def _read_yaml(path: Path, chain: tuple[Path, ...]) -> dict:
    source = f" (named by BASE in {chain[-1]})" if chain else ""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"there is no configuration file {path}{source}.{closest(path.name, siblings)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the configuration file {path}{source}: {error}") from None
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where}: {getattr(error, 'problem', None) or error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: a configuration is a mapping of keys, not {type(values).__name__}")
    return values


def _merge_values(config: CfgNode, values: Mapping[str, Any], where: str, stated: set[str], prefix: str = "") -> None:
    for key, value in values.items():
        full = f"{prefix}{key}"
        node = _find(config, full)
        if isinstance(node, CfgNode) and full not in FREE_NODES:
            if not isinstance(value, Mapping):
                raise UserError(f"{where}: {full} holds further keys ({', '.join(node)}), not the value {value!r}")
            _merge_values(config, value, where, stated, f"{full}.")
        else:
            _set(config, full, value, where, stated)


def _set(config: CfgNode, full: str, value: Any, where: str, stated: set[str]) -> None:
    parent, _, name = full.rpartition(".")
    if parent in FREE_NODES:
        _find(config, parent)[name] = _literal(value)
    elif full in FREE_NODES:
        if not isinstance(value, Mapping):
            raise UserError(f"{where}: {full} is a mapping of arguments, not {value!r}")
        _find(config, full).update({key: _literal(item) for key, item in value.items()})
    else:
        node = _find(config, full)
        if node is _MISSING:
            raise UserError(f"{where}: there is no key {full}.{_nearest(full)}")
        if isinstance(node, CfgNode):
            raise UserError(f"{where}: {full} holds further keys ({', '.join(node)}); name one of them")
        holder = _find(config, parent) if parent else config
        holder[name] = _coerce(value, _find(defaults(), full), full, where)
    stated.add(full)


class _Missing:
    """The answer for a key that does not exist."""


_MISSING = _Missing()


def _find(config: CfgNode, full: str) -> Any:
    node: Any = config
    for part in full.split("."):
        if not isinstance(node, CfgNode) or part not in node:
            return _MISSING
        node = node[part]
    return node


def _nearest(full: str) -> str:
    names = known_keys()
    same_ending = {name.rpartition(".")[2]: name for name in names}
    leaf = difflib.get_close_matches(full.rpartition(".")[2].upper(), same_ending, n=1, cutoff=0.7)
    return closest(full, names) or (f" Did you mean '{same_ending[leaf[0]]}'?" if leaf else "")


def _literal(value: Any) -> Any:
    """Return the Python value that a string spells, as yacs does; anything else as it is."""
    if not isinstance(value, str):
        return value
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def _coerce(value: Any, default: Any, full: str, where: str) -> Any:
    """Return `value` in the type that the key takes; `UserError` when it has none of its types."""
    allowed = (type(default), *ALSO_TAKES.get(full, ()))
    if str in allowed and isinstance(value, str):
        literal = _literal(value)
        return literal if len(allowed) > 1 and type(literal) in allowed else value
    value = _literal(value)
    if isinstance(value, tuple) and tuple not in allowed:
        value = list(value)
    elif isinstance(value, list) and list not in allowed:
        value = tuple(value)
    if type(value) in allowed:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and float in allowed:
        return float(value)
    if str in allowed and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    expected = " or ".join(t.__name__.replace("NoneType", "None").replace("tuple", "list") for t in allowed)
    raise UserError(f"{where}: {full} must be {expected}, not {value!r}")
