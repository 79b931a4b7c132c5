"""Every code block of the README runs, as written but for the sizes and paths named in SHRINK."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits

import vmamba.models

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
RUNNABLE = [(language, text) for language, text in BLOCKS if language != "text"]
TINY = "TRAIN.EPOCHS 1 TRAIN.WARMUP_EPOCHS 0 MODEL.VSSM.DEPTHS [1,1] MODEL.VSSM.EMBED_DIM 8 DATA.NUM_WORKERS 0"
SMALL = "DATA.IMG_SIZE 64"
LINKED = "configs classification requirements.txt setup.py pyproject.toml vmamba kernels LICENSE"
# The README's figures for a real machine, and what stands in for them here.
SHRINK = {
    "--nproc_per_node 8": "--nproc_per_node 2",
    "--batch-size 128 --data-path /data/imagenet": f"--batch-size 2 --data-path imagenet --opts {TINY} {SMALL}",
    "/vmamba_fashion_mnist.yaml": f"/vmamba_digits.yaml --tag other --opts {TINY}",
}


def write_imagenet(folder: Path, splits: dict[str, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    for split, count in splits.items():
        for name in ("n01440764", "n01443537"):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = torch.randint(256, (80, 72, 3), dtype=torch.uint8, generator=generator).numpy()
                Image.fromarray(pixels).save(folder / split / name / f"{index}.jpeg")


def write_shims(folder: Path) -> None:
    """`make` and `pip` say what they would do: the suite itself runs under the one, and the other did the install."""
    folder.mkdir()
    shims = {
        "make": f'exec {shutil.which("make")} -C {ROOT} -n "$@"',
        "pip": f'exec {sys.executable} -m pip "$@" --dry-run --no-deps --no-index --quiet',
    }
    for name, line in shims.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)


@pytest.fixture(scope="module")
def visitor(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """A folder that looks like the checkout to the commands, with data and a digit, and its environment."""
    folder = tmp_path_factory.mktemp("readme")
    for name in LINKED.split():
        (folder / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "README.md", folder)
    write_imagenet(folder / "imagenet", {"train": 4, "val": 3})
    Image.fromarray((load_digits().images[3] * 15).astype("uint8")).save(folder / "digit.png")
    write_shims(folder / "shims")
    path = os.pathsep.join([str(folder / "shims"), str(Path(sys.executable).parent), os.environ["PATH"]])
    packages = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": packages, "OMP_NUM_THREADS": "1"}
    environment.pop("VMAMBA_BUILD", None)
    train = (
        f"python -m classification --cfg configs/classification/vmamba_digits.yaml --opts {TINY} DATA.BATCH_SIZE 512"
    )
    run(train, folder, environment)
    return folder, environment


def run(command: str, folder: Path, environment: dict[str, str]) -> str:
    shell = ["bash", "-euo", "pipefail", "-c", command]
    answer = subprocess.run(shell, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)
    assert answer.returncode == 0, f"{command}\n{answer.stdout[-2000:]}\n{answer.stderr[-4000:]}"
    return answer.stdout


@pytest.mark.parametrize(("language", "text"), RUNNABLE, ids=[text.split("\n")[0][:40] for _, text in RUNNABLE])
def test_block_runs(language, text, visitor):
    folder, environment = visitor
    if language == "python":
        script = folder / "block.py"
        script.write_text(text)
        run("python block.py", folder, environment)
        return
    assert language == "bash", f"a code block of language {language} that no test runs"
    for written, here in SHRINK.items():
        text = text.replace(written, here)
    output = run(text, folder, environment)
    if "classification" in text and "torchrun" in text:
        assert "* Acc@1" in output
    if "vmamba.predict" in text:
        assert output.splitlines()[0] == "digit.png" and len(output.splitlines()) == 6


def test_the_table_of_models_is_right():
    rows = re.findall(r"^\| `(\w+)` \|[^|]*\| ([\d.]+) M \|", README, re.MULTILINE)
    assert set(vmamba.list_models("*vmamba*")) <= {name for name, _ in rows} <= set(vmamba.list_models())
    for name, millions in rows:
        with torch.device("meta"):
            model = timm.create_model(name)
        count = sum(p.numel() for p in model.parameters())
        assert f"{count / 1e6:.1f}" == millions, name


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_no_figure_is_left_open():
    assert "FIGURES" not in README
