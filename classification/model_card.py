"""The model card of a run, from the run folder alone. ``python -m classification.model_card FOLDER`` writes it anew."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from yacs.config import CfgNode

from classification.config import as_plain, changed_keys
from classification.curves import CURVES
from classification.defaults import defaults
from vmamba.counting import count_model
from vmamba.errors import UserError, exit_on_user_error
from vmamba.models.from_config import model_from_config
from vmamba.preprocess import image_size
from vmamba.run_table import METRICS, read_metrics
from vmamba.weights import write_text

CARD = "README.md"
_UNSTATED = "not stated"
# As their publishers state them; other data sets have theirs in CARD.DATA_LICENSE.
_DATA_LICENSES = {
    "digits": "CC BY 4.0 (UCI, Optical Recognition of Handwritten Digits)",
    "fashion_mnist": "MIT (Zalando)",
}
# Keys that say where a run is, not what it does.
_PLACES = ("OUTPUT", "TAG", "MODEL.NAME", "DATA.DATA_PATH", "CARD.", "PRINT_FREQ", "REPORT", "TENSORBOARD", "DEVICE")
_PICTURES = ((CURVES, "curves"), ("evaluation/confusion.png", "confusion matrix"), ("evaluation/worst.png", "worst"))


def write_model_card(folder: Path) -> Path:
    """Write ``README.md`` of a finished run and return its path.

    Every figure comes from a file of the folder: the score from ``evaluation/scores.json``, the rest from
    ``metrics.csv``, ``config.json`` and ``environment.json``. Raises `UserError` where one is missing.
    """
    scores, config, ran = (
        _read(folder / name) for name in ("evaluation/scores.json", "config.json", "environment.json")
    )
    rows = read_metrics(folder / METRICS) if (folder / METRICS).exists() else []
    parts = [
        f"---\n{yaml.safe_dump(_metadata(config, scores), sort_keys=False)}---\n",
        f"# {config['MODEL']['NAME']}/{config['TAG']}\n",
        _table(_results(config, scores, ran, rows)),
        _use(),
        "## How it was trained\n",
        f"```text\n{ran['start']['command']}\n```\n",
        _table(_circumstances(ran)),
        "Settings that differ from the trainer's defaults (`config.yaml` has all of them):\n",
        f"```text\n{_changed(config)}\n```\n",
        "## What it gets wrong\n",
        _hardest(folder / "evaluation" / "per_class.csv"),
        *(f"![{name}]({file})\n" for file, name in _PICTURES if (folder / file).exists()),
        "## Licences\n",
        _table([("weights", _license(config)), ("data", _data_license(config))]),
    ]
    write_text(folder / CARD, "\n".join(part for part in parts if part))
    return folder / CARD


def _metadata(config: dict[str, Any], scores: dict[str, Any]) -> dict[str, Any]:
    """The head of the page, which model hubs read."""
    data = config["DATA"]["DATASET"]
    accuracy = [
        {"type": "accuracy", "name": "top-1 accuracy, %", "value": round(scores["top1"], 3)},
        {"type": "accuracy", "name": "top-5 accuracy, %", "value": round(scores["top5"], 3)},
    ]
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"name": data, "type": data, "split": "held out"},
        "metrics": accuracy,
    }
    return {
        "library_name": "pytorch",
        "pipeline_tag": "image-classification",
        "license": config["CARD"]["LICENSE"] or "unknown",
        "datasets": [data],
        "metrics": ["accuracy"],
        "tags": ["image-classification", "vmamba"] if config["MODEL"]["TYPE"] == "vssm" else ["image-classification"],
        "model-index": [{"name": config["MODEL"]["NAME"], "results": [result]}],
    }


def _results(config: dict[str, Any], scores: dict[str, Any], ran: dict[str, Any], rows: list[dict[str, Any]]) -> list:
    height, width = image_size(config)
    table = [
        ("weights", f"`{scores['weights']}`"),
        ("top-1 accuracy", f"{scores['top1']:.2f}%"),
        ("top-5 accuracy", f"{scores['top5']:.2f}%"),
        ("loss", f"{scores['loss']:.4f}"),
        ("held-out images", f"{scores['images']:,}"),
        ("classes", f"{scores['classes']:,}"),
        ("parameters", f"{ran['parameters']:,}"),
        ("multiply-accumulates", _cost(config)),
        ("input", f"{height} x {width}"),
    ]
    if rows:
        hours, rate = sum(row["seconds"] for row in rows) / 3600, median(row["images_per_second"] for row in rows)
        table.append(("epochs", str(rows[-1]["epoch"] + 1)))
        table.append(("training time", f"{hours:.3g} h"))
        table.append(("training images a second", f"{rate:,.0f}"))
    return table


def _cost(config: dict[str, Any]) -> str:
    try:
        return f"{count_model(model_from_config(CfgNode(config)), image_size(config)).gflops:.4g} G"
    except UserError as error:
        return f"unknown ({error})"


def _use() -> str:
    command = "python -m vmamba.predict --weights best.pth IMAGE"
    return f"Name what an image shows:\n\n```text\n{command}\n```\n"


def _circumstances(ran: dict[str, Any]) -> list:
    start, git, versions = ran["start"], ran["git"], ran["versions"]
    commit = git.get("commit") or f"unknown ({git.get('why', _UNSTATED)})"
    device = ran["devices"].get(ran["used_device"], ran["used_device"])
    images = ran["data"]["training_images"]
    return [
        ("commit", f"{commit}{', with changes' if git.get('dirty') else ''}"),
        ("processes", f"{start['processes']} on {start['machines']} machine(s)"),
        ("device", f"{ran['used_device']}: {device}"),
        ("cpu", f"{ran['cpu']['name']}, {ran['cpu']['cores']} cores"),
        ("python, torch, timm", f"{versions['python'].split(' ')[0]}, {versions['torch']}, {versions['timm']}"),
        ("training images", f"{images:,}" if images is not None else _UNSTATED),
        ("started", start["date"]),
    ]


def _changed(config: dict[str, Any]) -> str:
    rows = changed_keys(as_plain(defaults()), config)
    kept = [row for row in rows if not row.startswith(_PLACES)]
    return "\n".join(kept) or "none"


def _hardest(table: Path, rows: int = 5) -> str:
    if not table.exists():
        return ""
    with open(table, encoding="utf-8", newline="") as file:
        found = [row for row in csv.DictReader(file) if row["acc1"]][:rows]
    lines = [(row["class"], row["images"], row["acc1"], row["f1"], row["taken_for"] or "none") for row in found]
    return _table(lines, ("class", "images", "top-1, %", "F1, %", "most often taken for"))


def _license(config: dict[str, Any]) -> str:
    return config["CARD"]["LICENSE"] or f"{_UNSTATED} (`CARD.LICENSE`)"


def _data_license(config: dict[str, Any]) -> str:
    known = _DATA_LICENSES.get(config["DATA"]["DATASET"], f"{_UNSTATED} (`CARD.DATA_LICENSE`)")
    return config["CARD"]["DATA_LICENSE"] or known


def _table(rows: list, header: tuple[str, ...] = ("", "")) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no {path}; a run writes it when REPORT is on and its last epoch is done") from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}") from None


def main() -> int:
    """Write the card of the run folder named on the command line."""
    if len(sys.argv) != 2:
        raise UserError("usage: python -m classification.model_card RUN_FOLDER")
    print(write_model_card(Path(sys.argv[1])))
    return 0


if __name__ == "__main__":
    sys.exit(exit_on_user_error(main)())
