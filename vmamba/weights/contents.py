"""Where the weights are inside a checkpoint: under which entry, and behind which prefix of the keys."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from vmamba.weights.manifest import CheckpointError

ENTRIES = ("model", "state_dict", "model_state_dict", "module", "net", "network", "weights", "params")
AVERAGED_ENTRIES = ("model_ema", "state_dict_ema", "ema_state_dict", "ema")
# What trainers, wrappers and detectors put before the keys of a network, alone or one after another.
_WRAPPER = re.compile(
    r"(?:(?:module|_orig_mod|model|net|network|backbone|encoder|student|teacher|ema|ema_model|model_ema)\.)+"
)
_AVERAGED_WRAPPER = re.compile(r"(^|\.)(ema|ema_model|model_ema|teacher)\.")


def choose_entry(
    payload: Mapping[str, Any], *, prefer_ema: bool = False, entry: str | None = None, name: str = "the given dict"
) -> tuple[str, dict[str, Tensor]]:
    """Return the name and the tensors of the part of a checkpoint that holds the weights.

    That is `entry` if given, with `prefer_ema` an averaged one, else one of the usual names, else `payload` itself,
    whose name is "". Raises `CheckpointError` where there are no weights.
    """
    if entry is not None:
        tensors = tensors_of(payload.get(entry))
        if not tensors:
            absent = f"has no entry '{entry}'" if entry not in payload else f"holds no weights under '{entry}'"
            raise CheckpointError(f"{name} {absent}; it has {', '.join(map(str, payload))}")
        return entry, tensors
    for key in (*(AVERAGED_ENTRIES if prefer_ema else ()), *ENTRIES):
        if tensors := tensors_of(payload.get(key)):
            return key, tensors
    if tensors := tensors_of(payload):
        return "", tensors
    raise CheckpointError(f"{name} holds no weights; its entries are {', '.join(map(str, payload)) or 'none'}")


def find_state_dict(
    payload: Mapping[str, Any], *, prefer_ema: bool = False, entry: str | None = None, name: str = "the given dict"
) -> dict[str, Tensor]:
    """Return the {key: tensor} part of a checkpoint that `choose_entry` chooses, prefixes and all."""
    return choose_entry(payload, prefer_ema=prefer_ema, entry=entry, name=name)[1]


def weight_entries(payload: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """Return every entry of a checkpoint that holds tensors by name; the checkpoint itself, if bare, as ""."""
    known = (*ENTRIES, *AVERAGED_ENTRIES)
    found = {key: tensors for key in payload if key in known and (tensors := tensors_of(payload[key]))}
    bare = tensors_of(payload)
    return found if found or not bare else {"": bare}


def tensors_of(state: Any) -> dict[str, Tensor]:
    """Return the tensors of a mapping by name; of anything else, none."""
    if not isinstance(state, Mapping):
        return {}
    return {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, Tensor)}


def wrapper_prefixes(keys: Iterable[str]) -> list[str]:
    """Return "" and the wrappers that `keys` begin with, and the beginnings of these, shortest first."""
    chains = {match[0] for key in keys if (match := _WRAPPER.match(key))}
    prefixes = {""}
    for chain in chains:
        words = chain.split(".")[:-1]
        prefixes |= {".".join(words[: n + 1]) + "." for n in range(len(words))}
    return sorted(prefixes, key=lambda prefix: (prefix.count("."), prefix))


def choose_prefix(
    state: Mapping[str, Tensor], matches: Callable[[dict[str, Tensor]], int], prefer_ema: bool = False
) -> str:
    """Return the wrapper prefix behind which most keys match; among equals the plain (or averaged) one, the shortest.

    `matches` counts the keys of a state_dict that the model knows.
    """

    def rank(prefix: str) -> tuple[int, bool]:
        averaged = _AVERAGED_WRAPPER.search(prefix) is not None
        return matches(behind(state, prefix)), averaged == prefer_ema

    return max(wrapper_prefixes(state), key=rank)


def behind(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the part of `state` whose keys begin with `prefix`, without it."""
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
