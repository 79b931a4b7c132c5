"""A tiny run of the trainer in this process."""

from __future__ import annotations

import contextlib
import functools
import io
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from classification.main import main
from vmamba.errors import exit_on_user_error

TINY = {
    "DATA": {"DATASET": "digits", "IMG_SIZE": 8, "BATCH_SIZE": 256, "NUM_WORKERS": 0, "MEAN": [0.3], "STD": [0.4]},
    "MODEL": {
        "NAME": "tiny",
        "DROP_PATH_RATE": 0.1,
        "VSSM": {
            "IN_CHANS": 1,
            "PATCH_SIZE": 2,
            "PATCHEMBED": "v1",
            "EMBED_DIM": [8, 16],
            "DEPTHS": [1, 1],
            "SSM_D_STATE": 1,
            "SSM_RATIO": 1.0,
            "MLP_RATIO": 1.0,
            "SSM_FORWARDTYPE": "v05_noz",
            "SSM_CONV_BIAS": False,
        },
    },
    "TRAIN": {"EPOCHS": 2, "WARMUP_EPOCHS": 1, "BASE_LR": 1e-2},
    "AUG": {"AUTO_AUGMENT": "none", "COLOR_JITTER": 0.0, "REPROB": 0.25, "CROP_PADDING": 1},
    "TENSORBOARD": False,
    "REPORT": False,
}


def write_config(folder: Path, **changes) -> Path:
    """Write the yaml of a tiny digits run, with changes given as KEY=value (dots as double underscores)."""
    tree = yaml.safe_load(yaml.safe_dump(TINY))
    for key, value in changes.items():
        *nodes, name = key.split("__")
        node = tree
        for part in nodes:
            node = node.setdefault(part, {})
        node[name] = value
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture
def tiny_config(tmp_path: Path) -> Callable[..., Path]:
    """Writes the configuration of a tiny run; see `write_config`."""
    return functools.partial(write_config, tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Callable[[int], tuple[Path, str]]:
    """Trains the tiny run for so many epochs, once, with a report; answers (its folder, standard output)."""

    @functools.cache
    def train(epochs: int) -> tuple[Path, str]:
        folder = tmp_path_factory.mktemp(f"finished{epochs}")
        config = write_config(folder, TRAIN__EPOCHS=epochs)
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            assert main(["--cfg", str(config), "--output", str(folder / "out"), "--opts", "REPORT", "True"]) == 0
        return folder, output.getvalue()

    return train


@pytest.fixture
def finished_copy(finished, tmp_path) -> Callable[[int], tuple[Path, Path, str]]:
    """Copies a finished run here; answers (configuration file, run folder, standard output as if it had run here)."""

    def copy(epochs: int) -> tuple[Path, Path, str]:
        folder, output = finished(epochs)
        shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
        return tmp_path / "tiny.yaml", tmp_path / "out" / "tiny" / "default", output.replace(str(folder), str(tmp_path))

    return copy


@pytest.fixture
def run_main(capsys, tmp_path) -> Callable[..., tuple[int, str, str]]:
    """Runs the trainer in this process; answers (exit code, standard output, standard error)."""

    def run(*arguments) -> tuple[int, str, str]:
        code = exit_on_user_error(main)([str(a) for a in (*arguments, "--output", tmp_path / "out")])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
