"""Several processes on a CPU: torchrun gives the same evaluation and the same training as one process."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.classification.runs import finish, left_behind, processes_with, start_process, write_images
from vmamba.weights import load_checkpoint


@pytest.fixture
def uneven(tiny_config, tmp_path):
    """17 held-out images in batches of 4: three batches on one rank, two and a remainder on the other."""
    splits = {"train": {"a": 9, "b": 9, "c": 9}, "val": {"a": 6, "b": 6, "c": 5}}
    root = write_images(tmp_path / "images", splits)
    return tiny_config(DATA__DATASET="imagenet", DATA__DATA_PATH=str(root), DATA__BATCH_SIZE=4, TRAIN__EPOCHS=1)


def scores(output: str) -> list[str]:
    return re.findall(r" \* Acc@1 \S+ Acc@5 \S+|Accuracy of the network.*|Loss \S+", output)


def test_two_processes_evaluate_like_one(uneven, tmp_path):
    code, output = finish(start_process(["--cfg", uneven, "--output", tmp_path / "out"], processes=2))
    assert code == 0, output
    folder = tmp_path / "out" / "tiny" / "default"
    assert {p.name for p in folder.glob("log*")} == {"log_rank0.txt", "log_rank1.txt"}
    assert output.count("Max accuracy ema") == 1 and "2 process(es) on cpu" in output
    payload = load_checkpoint(folder / "last.pth")
    assert len(payload["rng"]) == 2 and payload["world_size"] == 2
    weights = ["--cfg", uneven, "--eval", "--pretrained", folder / "last.pth", "--output", tmp_path / "eval"]
    found = [finish(start_process(weights, processes)) for processes in (1, 2)]
    assert [code for code, _ in found] == [0, 0]
    one, two = ([line for line in scores(text) if "Loss" not in line] for _, text in found)
    assert one == two and len(one) == 4 and "on the 17 test images" in one[1]
    assert [line for line in scores(output) if "Loss" not in line] == one


def test_world_size_may_change_on_resume(uneven, tmp_path):
    assert finish(start_process(["--cfg", uneven, "--output", tmp_path / "out"], processes=2))[0] == 0
    code, output = finish(start_process(["--cfg", uneven, "--output", tmp_path / "out", "--epochs", 2]))
    assert code == 0 and "was written by 2 processes, there are 1 now" in output, output
    assert "Train: [1/2][0/6]" in output and "Train: [0/2]" not in output


def test_a_decision_of_the_first_process_fails_on_all_and_leaves_none_behind(uneven, tmp_path):
    arguments = ["--cfg", uneven, "--output", tmp_path / "out", "--resume", tmp_path / "absent.pth"]
    code, output = finish(start_process(arguments, processes=2), timeout=120)
    # torchrun ends the others as soon as one has failed, perhaps before they have printed: one line or two.
    lines = [line for line in output.splitlines() if "error: there is no checkpoint" in line]
    assert code != 0 and len(lines) in (1, 2), output
    assert not left_behind(str(tmp_path / "absent.pth"))


def test_the_search_for_processes_finds_one(tmp_path):
    code = "import sys; print('started', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as one:
        assert one.stdout.readline() == b"started\n"  # it has its command line from here on
        assert len(processes_with(str(tmp_path))) == 1
    assert not processes_with(str(tmp_path))
