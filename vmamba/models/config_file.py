"""A configuration file of the trainer, read as far as a model needs it, without the trainer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vmamba.errors import UserError

# What the trainer takes for keys that a file leaves out and that differ from the constructor's own defaults.
DEFAULTS: dict[str, Any] = {
    "DATA": {"IMG_SIZE": 224},
    "MODEL": {
        "TYPE": "vssm",
        "NUM_CLASSES": 1000,
        "DROP_PATH_RATE": 0.1,
        "VSSM": {"IN_CHANS": 3, "SSM_FORWARDTYPE": "v2", "PATCHEMBED": "v2"},
    },
}


def read_model_config(path: str | Path) -> dict[str, Any]:
    """Return the nested mapping of a yaml file, over its ``BASE`` files and the trainer's defaults for a model.

    Unknown keys are left to the trainer. Raises `UserError` for a file that is absent, no mapping, or its own base.
    """
    return _over(DEFAULTS, _read(Path(path), ()))


def _read(path: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in chain:
        raise UserError(f"{path}: its BASE leads back to it; break the circle")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a yaml file of configs/") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not yaml ({str(error).splitlines()[0]}); give a file of configs/") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: a configuration is a mapping of keys, not {type(values).__name__}")
    base: dict[str, Any] = {}
    bases = values.pop("BASE", None) or []
    for name in [bases] if isinstance(bases, str) else bases:
        if name:
            base = _over(base, _read(path.parent / str(name), (*chain, path.resolve())))
    return _over(base, values)


def _over(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `values` laid over it, mapping by mapping."""
    merged = dict(base)
    for key, value in values.items():
        below = merged.get(key)
        merged[key] = _over(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged
