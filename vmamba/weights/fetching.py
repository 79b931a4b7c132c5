"""The released checkpoints, fetched once, verified, and kept under torch's hub folder."""

from __future__ import annotations

import os
import shutil
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

import torch

from vmamba.errors import closest
from vmamba.weights.files import adopt_checkpoint
from vmamba.weights.loading import fit_weights
from vmamba.weights.manifest import CheckpointError, read_manifest, sha256_of
from vmamba.weights.reading import load_checkpoint
from vmamba.weights.released import RELEASED, Released, released_classifier

FOLDER_VARIABLE = "VMAMBA_WEIGHTS"
_TIMEOUT = 30.0


def weights_folder() -> Path:
    """Return where fetched weights are kept: $VMAMBA_WEIGHTS, else a folder of its own in torch's hub folder."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    return Path(chosen) if chosen else Path(torch.hub.get_dir()) / "vmamba"


def fetch_pretrained(model: str, folder: str | Path | None = None) -> Path:
    """Return the file of a model's released ImageNet weights, downloaded at the first call.

    The releases state no digests. So the first use checks the number of parameters and every key and shape against the
    model, and records the file's sha256 in the manifest beside it; every later use must find the same bytes.
    Raises `CheckpointError`: no such release, no network (naming the file to fetch by hand and its place), or a file
    that is not what was released.
    """
    entry = released_classifier(model)
    if entry is None:
        known = sorted({e.model for e in RELEASED})
        raise CheckpointError(
            f"pretrained: no weights of '{model}' were released.{closest(model, known)} They were for "
            f"{', '.join(known)}; for a file of your own, vmamba.weights.load_weights(model, 'PATH')"
        )
    path = Path(weights_folder() if folder is None else folder) / entry.file
    if not path.exists():
        download(entry.url, path)
    if path.name not in read_manifest(path.parent):
        _check_first_use(entry, path)
        adopt_checkpoint(path)
    return path


def download(url: str, path: Path) -> None:
    """Write what `url` gives to `path`, whole or not at all; `CheckpointError` says what to fetch by hand otherwise."""
    part = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer, open(part, "wb") as file:
            shutil.copyfileobj(answer, file, 1 << 20)
            expected = answer.headers.get("Content-Length")
        if expected is not None and part.stat().st_size != int(expected):
            raise HTTPException(f"it broke off after {part.stat().st_size} of {expected} bytes")
        os.replace(part, path)
    except (OSError, HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise CheckpointError(f"cannot download {url} ({reason}); fetch it by hand and put it at {path}") from None
    finally:
        part.unlink(missing_ok=True)


def _check_first_use(entry: Released, path: Path) -> None:
    """Raise `CheckpointError` unless the file holds what the release states and the model needs."""
    from vmamba import create_model

    advice = f"delete it to fetch it again from {entry.url}"
    if entry.sha256 and (found := sha256_of(path)) != entry.sha256:
        raise CheckpointError(f"{path} is not the released file: its sha256 is {found}, not {entry.sha256}; {advice}")
    with torch.device("meta"):
        model = create_model(entry.model)
    report, state = fit_weights(model, load_checkpoint(path), entry=entry.entry or None, name=str(path))
    count = sum(value.numel() for value in state.values())
    if not report.clean:
        raise CheckpointError(f"{path} is not the released {entry.model}: {report.summary()}; {advice}")
    if count != entry.parameters:
        raise CheckpointError(f"{path} has {count:,} parameters, the release {entry.parameters:,}; {advice}")
