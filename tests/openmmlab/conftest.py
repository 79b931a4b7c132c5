"""Shared by the OpenMMLab tests: the records' weights, and a small tree of images in COCO's real layout."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from ..models.conftest import golden  # noqa: F401
from .coco_tree import make_coco

if find_spec("mmdet") is None:
    pytest.skip("mmdet is not installed", allow_module_level=True)


@pytest.fixture(scope="session", autouse=True)
def plain_configs() -> Iterator[None]:
    """Let runners write their configuration without laying it out, which takes longer than a small run.

    And let mmengine read a library's lists of models once, not for each configuration that inherits one of its own.
    """
    from mmengine.fileio import load

    with pytest.MonkeyPatch.context() as patch:
        # onedl-mmengine lays nothing out
        patch.setattr("mmengine.config.config.FormatCode", lambda text, **style: (text, True), raising=False)
        patch.setattr("mmengine.config.utils.load", cache(load))
        yield


@pytest.fixture(scope="session")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with annotations/, train2017/ and val2017/."""
    return make_coco(tmp_path_factory.mktemp("coco"))
