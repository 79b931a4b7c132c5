"""Vision state-space models. Light to import: torch and timm load at the first use of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__version__ = "0.1.0"
__all__ = ["__version__", "create_model", "list_models"]


def list_models(pattern: str = "") -> list[str]:
    """Return the sorted names of this package's models, those matching the glob `pattern` if one is given."""
    from vmamba.models import model_names

    return model_names(pattern)


def create_model(name: str, **kwargs: Any) -> nn.Module:
    """Return a model by name: timm's ``create_model`` over the models of this package.

    `kwargs` are timm's (``pretrained``, ``num_classes``, ``in_chans``, ``features_only``, ``out_indices``, ...)
    and the constructor's. Raises `vmamba.errors.UserError` for a name that is not in `list_models`.
    """
    import timm

    from vmamba.errors import UserError, closest

    known = list_models()
    if name not in known:
        raise UserError(f"unknown model '{name}'.{closest(name, known)} See vmamba.list_models().")
    return timm.create_model(name, **kwargs)
