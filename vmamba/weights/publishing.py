"""A checkpoint made ready for others: safetensors with its digest in the name, a manifest entry and a model card."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

from vmamba.errors import UserError, closest
from vmamba.weights.converting import about, plain_weights
from vmamba.weights.files import adopt_checkpoint, drop_checkpoint, save_checkpoint, write_text
from vmamba.weights.guessing import empty_model, models_that_fit
from vmamba.weights.loading import fit_weights
from vmamba.weights.manifest import CheckpointError, sha256_of
from vmamba.weights.reading import load_checkpoint

_DIGITS = 8
_CLASSIFICATION = "image-classification"
_HEADS = {("roi_head.", "bbox_head."): "object-detection", ("decode_head.",): "image-segmentation"}
_ACCURACIES = {"max_accuracy": "top-1", "max_accuracy_ema": "top-1 of the averaged weights"}


def publish(
    source: str | Path,
    folder: str | Path,
    *,
    name: str | None = None,
    entry: str | None = None,
    prefer_ema: bool = False,
    license: str = "",
) -> tuple[Path, Path]:
    """Write the weights of `source` for publication into `folder` and return (weights file, model card).

    The file is ``NAME-<first 8 digits of its sha256>.safetensors``, which readers verify; ``manifest.json`` beside it
    has the whole digest, and ``NAME-<...>.md`` is the card. `name` is the model's, one of `vmamba.list_models`, or any
    other for a model of one's own; without it the one model that fits gives it.
    """
    source, folder = Path(source), Path(folder)
    payload = load_checkpoint(source)
    state = plain_weights(payload, entry=entry, prefer_ema=prefer_ema, name=str(source))
    fitting = models_that_fit(state)
    name = _checked_name(name, fitting, state, source)
    facts = about(payload, layout="present", model_name=name)
    draft = folder / f".{name}.tmp-{os.getpid()}.safetensors"
    try:
        save_checkpoint(draft, state, about=facts)
        digest = sha256_of(draft)
        path = folder / f"{name}-{_short(digest)}.safetensors"
        os.replace(draft, path)
    except OSError as error:
        raise CheckpointError(f"cannot write into {folder}: {error.strerror or error}") from None
    finally:
        drop_checkpoint(draft)
    adopt_checkpoint(path)
    card = path.with_suffix(".md")
    count = sum(value.numel() for value in state.values())
    known = name in fitting
    write_text(card, _card(name, path, digest, count, len(state), facts, known, source, license, _task(state)))
    return path, card


def _task(state: dict[str, Any]) -> str:
    """Return the Hugging Face word for what the weights do, by the heads among them."""
    for heads, task in _HEADS.items():
        if any(key.startswith(heads) for key in state):
            return task
    return _CLASSIFICATION


def _short(digest: str) -> str:
    """Return the digest's first digits, a letter among them: decimal ones alone look like a date."""
    return next(digest[:n] for n in range(_DIGITS, len(digest) + 1) if n == len(digest) or not digest[:n].isdigit())


def _checked_name(name: str | None, fitting: list[str], state: dict[str, Any], source: Path) -> str:
    from vmamba import list_models

    if name is None:
        if len(fitting) == 1:
            return fitting[0]
        many = f"{' and '.join(fitting)} fit" if fitting else "no model of vmamba.list_models() fits"
        raise UserError(f"{source}: {many}, so --name must say what it is")
    if not name.replace("-", "_").replace(".", "_").isidentifier():
        raise UserError(f"--name '{name}': letters, digits, '_', '-' and '.' make a file name")
    if name in list_models() and name not in fitting:
        report, _ = fit_weights(empty_model(name), state)
        hint = closest(name, fitting) if fitting else ""
        raise UserError(f"{source} is no '{name}': {report.summary()}.{hint}")
    return name


def _card(
    name: str,
    path: Path,
    digest: str,
    parameters: int,
    tensors: int,
    facts: dict[str, Any],
    known: bool,
    source: Path,
    license: str,
    task: str,
) -> str:
    head = ["---", "library_name: vmamba", f"pipeline_tag: {task}"]
    head += [f"license: {license}"] if license else []
    head += ["---", "", f"# {name}", ""]
    rows = [
        ("file", f"`{path.name}`"),
        ("sha256", f"`{digest}`"),
        ("parameters", f"{parameters:,} in {tensors} tensors"),
        ("made from", f"`{source.name}`"),
        ("epoch", facts.get("epoch", facts.get("meta", {}).get("epoch"))),
        *((label, facts.get(key)) for key, label in _ACCURACIES.items()),
        ("classes", _classes(facts)),
        ("license", license or "not stated"),
    ]
    table = ["| | |", "|---|---|", *(f"| {label} | {value} |" for label, value in rows if value not in (None, ""))]
    quoted = shlex.quote(path.name)
    use = ["", "Verify, then load; every key must fit:", "", "```bash"]
    use += [f"sha256sum {quoted}", f"python -m vmamba.weights inspect {quoted}", "```", ""]
    use += _use(name, path.name, known, _class_count(facts)) if task == _CLASSIFICATION else _test(path.name)
    return "\n".join([*head, *table, *use]) + "\n"


def _use(name: str, file: str, known: bool, classes: int | None) -> list[str]:
    if not known:
        return ["The metadata of the file holds the configuration that builds the model, where there was one.", ""]
    more = f", num_classes={classes}" if classes and classes != 1000 else ""
    code = ["import vmamba", "from vmamba.weights import load_weights", ""]
    code += [f'model = vmamba.create_model("{name}"{more})', f'load_weights(model, "{file}")']
    return ["```python", *code, "```", ""]


def _test(file: str) -> list[str]:
    return ["```bash", f"python -m vmamba.openmmlab.test CONFIG {shlex.quote(file)}", "```", ""]


def _class_count(facts: dict[str, Any]) -> int | None:
    config = facts.get("config")
    model = config.get("MODEL") if isinstance(config, dict) else None
    count = model.get("NUM_CLASSES") if isinstance(model, dict) else None
    names = facts.get("class_names")
    return count if isinstance(count, int) else len(names) if isinstance(names, list) and names else None


def _classes(facts: dict[str, Any]) -> str | None:
    meta = facts.get("meta", {}).get("dataset_meta") or {}
    names, count = facts.get("class_names") or list(meta.get("classes") or ()), _class_count(facts)
    if not isinstance(names, list) or not names:
        return str(count) if count else None
    shown = ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")
    return f"{len(names)}: {shown}"
