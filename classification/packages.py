"""Packages that only some data sets need: what to install, in one line."""

from __future__ import annotations

import importlib.util

from vmamba.errors import UserError

# package -> what pip takes; the versions are those that the readers were tried with
_INSTALL = {
    "datasets": "datasets==5.2.0",
    "webdataset": "webdataset==1.0.2 braceexpand==0.1.7",
    "tensorflow_datasets": "tensorflow tensorflow-datasets",
    "pyarrow": "pyarrow==26.0.1",
}


def require_package(package: str, what: str) -> None:
    """Raise `UserError` when `what` needs a package that is not installed."""
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{what} needs the package '{package}'; install it with: pip install {_INSTALL[package]}")
