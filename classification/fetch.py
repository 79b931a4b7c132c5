"""Data sets from Debian's archive, without root: ``python -m classification.fetch fashion_mnist``."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from classification.arrays import read_idx
from vmamba.errors import UserError, closest, exit_on_user_error

# data set -> (Debian package, folder inside it)
_PACKAGES = {"fashion_mnist": ("dataset-fashion-mnist", "usr/share/datasets/fashion-mnist")}


def fetch(name: str, out: Path) -> Path:
    """Download and unpack a data set into `out`/`name` and return that folder; a complete one is left as it is."""
    if name not in _PACKAGES:
        raise UserError(f"unknown data set '{name}'; it is one of {', '.join(_PACKAGES)}.{closest(name, _PACKAGES)}")
    package, inside = _PACKAGES[name]
    target = out / name
    if target.is_dir():
        _check(target)
        return target
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise UserError(f"there is no '{tool}'; put {inside}/*.gz of Debian's package {package} into {target}")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=f".{name}-") as scratch:
        _run(["apt-get", "download", package], scratch)
        archive = next(Path(scratch).glob("*.deb"))
        _run(["dpkg-deb", "-x", archive.name, "unpacked"], scratch)
        unpacked = Path(scratch, "unpacked", inside)
        _check(unpacked)
        unpacked.rename(target)
    return target


def _check(folder: Path) -> None:
    """Read every file, so that a broken download is noticed now."""
    for split in ("train", "t10k"):
        images = read_idx(folder / f"{split}-images-idx3-ubyte.gz")
        labels = read_idx(folder / f"{split}-labels-idx1-ubyte.gz")
        if len(images) != len(labels):
            counts = f"{len(images)} images and {len(labels)} labels"
            raise UserError(f"{folder} has {counts} in {split}; delete it and fetch again")


def _run(command: list[str], folder: str) -> None:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if result.returncode:
        lines = (result.stderr or result.stdout).strip().splitlines()
        raise UserError(f"{' '.join(command)} failed: {lines[-1] if lines else result.returncode}")


def main() -> int:
    """Fetch the data set named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help=", ".join(_PACKAGES))
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder that gets a folder of that name")
    options = parser.parse_args()
    print(fetch(options.name, options.out))
    return 0


if __name__ == "__main__":
    sys.exit(exit_on_user_error(main)())
