"""A model that a command line names: one of ours or timm's, or a yaml file of the trainer, for any size of image."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from torch import nn

from vmamba.errors import UserError, closest


def names_a_config(target: str) -> bool:
    """Return whether `target` means a yaml file and not a model's name."""
    return target.endswith((".yaml", ".yml")) or Path(target).is_file()


def build(
    target: str, size: tuple[int, int] | None = None, num_classes: int | None = None
) -> tuple[nn.Module, tuple[int, int]]:
    """Return the model that `target` names, of random weights, and the size of images that it is built for.

    `size` None is the model's own. A timm model of fixed size is built for `size` where it takes one. `num_classes`
    None is the model's own. Raises `UserError` for an unknown name, a bad file, or a size that the model refuses.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not names_a_config(target):
            return _by_name(target, size, num_classes)
        from vmamba.models.config_file import read_model_config
        from vmamba.models.from_config import model_from_config
        from vmamba.preprocess import image_size

        config = read_model_config(target)
        overrides = {} if num_classes is None else {"num_classes": num_classes}
        return model_from_config(config, **overrides), size or image_size(config)


def _by_name(name: str, size: tuple[int, int] | None, num_classes: int | None) -> tuple[nn.Module, tuple[int, int]]:
    import timm

    from vmamba.models import model_names

    if not timm.is_model(name):
        hint = closest(name, [*model_names(), *timm.list_models()])
        raise UserError(f"unknown model '{name}'.{hint} Name one of vmamba.list_models(), of timm, or a yaml file.")
    own = timm.models.get_pretrained_cfg(name)
    _, height, width = own.input_size if own is not None and own.input_size else (3, 224, 224)
    built = (height, width)
    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if size and size != built and own is not None and own.fixed_input_size:
        options["img_size"] = size
    try:
        return timm.create_model(name, **options), size or built
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise UserError(f"{name} cannot be built here: {error}") from error
