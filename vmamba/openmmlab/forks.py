"""The maintained onedl-* forks, which import by the names of what they go on with but are installed under others."""

from __future__ import annotations

from importlib.util import find_spec

from mmengine.config.utils import MODULE2PACKAGE
from mmengine.utils import is_installed


def find_forks() -> None:
    """Let ``mmseg::...`` in a configuration find the files of an mmseg that is not installed as mmsegmentation."""
    if not is_installed(MODULE2PACKAGE["mmseg"]) and find_spec("mmseg") is not None:
        MODULE2PACKAGE["mmseg"] = "mmseg"
