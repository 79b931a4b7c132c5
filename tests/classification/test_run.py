"""Whole runs on a tiny model: what is printed, what is written, what can be done with it afterwards."""

from __future__ import annotations

import json
import os
import re
import shutil

import pytest
import torch
import yaml

from classification.config import as_plain, load_config
from classification.records import read_metrics
from tests.classification.runs import write_images
from vmamba.models.from_config import model_from_config
from vmamba.preprocess import evaluation_transform
from vmamba.weights import load_checkpoint, load_weights, save_checkpoint

PARTS = r"\[2\d{3}-\d\d-\d\d \d\d:\d\d:\d\d tiny\] \(\w+\.py \d+\): INFO "
NUMBER = r"-?\d+\.?\d*"
METER = rf"{NUMBER} \({NUMBER}\)"
LINES = {
    "train": rf"Train: \[\d+/2\]\[\d+/5\]\teta \d+:\d\d:\d\d lr {NUMBER}\t wd {NUMBER}\ttime {METER}\t"
    rf"data time {METER}\tmodel time {METER}\tloss {METER}\tgrad_norm {METER}\tloss_scale {METER}\tmem \d+MB$",
    "epoch": r"EPOCH \d training takes \d+:\d\d:\d\d$",
    "accuracy": rf" \* Acc@1 {NUMBER} Acc@5 {NUMBER}$",
    "network": rf"Accuracy of the network on the 360 test images: {NUMBER}%$",
    "network ema": rf"Accuracy of the network ema on the 360 test images: {NUMBER}%$",
    "max": rf"Max accuracy: {NUMBER}%$",
    "max ema": rf"Max accuracy ema: {NUMBER}%$",
}


@pytest.fixture
def trained(finished_copy):
    """A finished run: (configuration file, run folder, standard output)."""
    return finished_copy(2)


def test_a_run_prints_published_lines_and_where_everything_is(trained):
    _, folder, output = trained
    for name, pattern in LINES.items():
        found = re.findall(PARTS + pattern, output, re.MULTILINE)
        assert len(found) >= 2, name
    assert (folder / "log_rank0.txt").read_text().count("Max accuracy ema") == 2
    tail = "\n".join(output.splitlines()[-5:])
    for file in ("best.pth", "curves.png", "log_rank0.txt"):
        assert str(folder / file) in tail and (folder / file).stat().st_size > 0
    assert {p.name for p in folder.iterdir()} == {
        ".lock", "best.pth", "last.pth", "ckpt_epoch_0.pth", "ckpt_epoch_1.pth", "config.json", "config.yaml",
        "curves.png", "log_rank0.txt", "manifest.json", "metrics.csv", "metrics.jsonl", "environment.json",
        "starts.jsonl", "evaluation", "README.md",
    }  # fmt: skip
    stored = json.loads((folder / "config.json").read_text())
    assert stored == yaml.safe_load((folder / "config.yaml").read_text())
    assert stored == as_plain(load_config(folder / "config.json")[0])
    assert stored["MODEL"]["NUM_CLASSES"] == 10
    rows = read_metrics(folder / "metrics.csv")
    assert [row["epoch"] for row in rows] == [0, 1] and all(value is not None for value in rows[0].values())


def test_checkpoints_hold_the_published_keys_as_plain_data(trained):
    _, folder, output = trained
    payload = torch.load(folder / "last.pth", weights_only=True)
    assert {"model", "optimizer", "lr_scheduler", "max_accuracy", "scaler", "epoch", "config", "model_ema",
            "max_accuracy_ema", "class_names", "rng"} <= payload.keys()  # fmt: skip
    assert payload["epoch"] == 1 and payload["class_names"] == list("0123456789")
    best = float(re.findall(r"Max accuracy: ([\d.]+)%", output)[-1])
    assert payload["max_accuracy"] == pytest.approx(best, abs=0.006)


def test_best_is_all_that_prediction_needs(trained):
    _, folder, output = trained
    payload = load_checkpoint(folder / "best.pth")
    network = model_from_config(payload["config"])
    assert load_weights(network, payload).clean
    transform = evaluation_transform(payload["config"])
    from classification.arrays import open_digits

    source = open_digits(train=False)
    images = torch.stack([transform(source.load(index)) for index in range(360)])
    right = (network.eval()(images).argmax(1) == torch.tensor(source.labels)).float().mean()
    highest = max(float(v) for v in re.findall(r"Max accuracy(?: ema)?: ([\d.]+)%", output))
    assert 100 * right == pytest.approx(highest, abs=0.006)


def test_eval_takes_the_run_folder_or_a_file_and_stops(trained, run_main, tmp_path):
    config, folder, output = trained
    last = re.findall(r" \* Acc@1 \S+ Acc@5 \S+", output)[-2:]
    before = (folder / "config.json").stat().st_mtime_ns
    for flag in ("--pretrained", "--resume"):
        code, found, _ = run_main("--cfg", config, "--eval", flag, folder / "last.pth", "--tag", "other")
        assert code == 0 and re.findall(r" \* Acc@1 \S+ Acc@5 \S+", found) == last
        assert "Train:" not in found
    code, found, _ = run_main("--cfg", config, "--eval")
    assert code == 0 and len(set(re.findall(r" \* Acc@1 (\S+)", found))) == 1
    assert (folder / "config.json").stat().st_mtime_ns == before
    assert not (folder.parent / "other" / "config.json").exists()


def test_a_finished_run_says_so_and_evaluates(trained, run_main):
    config, folder, output = trained
    code, found, _ = run_main("--cfg", config)
    assert code == 0 and "all 2 epochs are done" in found and "Train:" not in found
    assert re.findall(r" \* Acc@1 \S+", found) == re.findall(r" \* Acc@1 \S+", output)[-2:]
    assert len(read_metrics(folder / "metrics.csv")) == 2


def test_more_epochs_train_on(trained, run_main):
    config, folder, _ = trained
    code, found, _ = run_main("--cfg", config, "--epochs", 3)
    assert code == 0 and "resumed" in found and "Train: [2/3][0/5]" in found and "Train: [1/3]" not in found
    assert "TRAIN.EPOCHS 2 -> 3" in found
    assert [row["epoch"] for row in read_metrics(folder / "metrics.csv")] == [0, 1, 2]


def test_pretrained_of_another_class_count(trained, run_main, tiny_config, tmp_path):
    _, folder, _ = trained
    root = write_images(tmp_path / "images", {"train": {"a": 4, "b": 4}, "val": {"a": 2, "b": 1}})
    config = tiny_config(DATA__DATASET="imagenet", DATA__DATA_PATH=str(root), DATA__BATCH_SIZE=4)
    arguments = ["--cfg", config, "--tag", "two", "--pretrained", folder / "best.pth", "--epochs", 1]
    code, output, errors = run_main(*arguments)
    assert code == 2 and errors.count("\n") == 1
    assert "best.pth does not fit VSSM" in errors and "only the head differs: --allow-head-mismatch" in errors
    assert "mismatched  classifier.head.weight [10, 16] in the file, [2, 16] in the model" in output
    code, output, errors = run_main(*arguments, "--allow-head-mismatch")
    assert code == 0, errors
    assert "2 head dropped" in output and "Accuracy of the network on the 3 test images" in output


def test_pretrained_entry(trained, run_main, tmp_path):
    config, folder, _ = trained
    payload = load_checkpoint(folder / "last.pth")
    payload["model"] = {key: torch.zeros_like(value) for key, value in payload["model"].items()}
    save_checkpoint(tmp_path / "zeros.pth", payload)
    scores = {}
    for entry in ("auto", "model", "model_ema"):
        code, output, _ = run_main(
            "--cfg", config, "--eval", "--pretrained", tmp_path / "zeros.pth", "--pretrained-entry", entry
        )
        assert code == 0
        scores[entry] = re.findall(r" \* Acc@1 (\S+)", output)
    assert [len(set(scores[entry])) for entry in ("model", "model_ema")] == [1, 1]
    assert scores["model"] != scores["model_ema"] and scores["auto"] == [scores["model"][0], scores["model_ema"][0]]


def test_wrong_weights_stop_before_training(tiny_config, run_main, tmp_path):
    save_checkpoint(tmp_path / "other.pth", {"model": {"something.weight": torch.zeros(3)}})
    code, output, errors = run_main("--cfg", tiny_config(), "--pretrained", tmp_path / "other.pth")
    assert code == 2 and "Train:" not in output
    assert errors.startswith("error: ") and errors.count("\n") == 1 and "unexpected (something.weight)" in errors


class Evil:
    """Writes a file when it is unpickled by whoever lets it."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


@pytest.mark.parametrize("flag", ["--pretrained", "--resume", "--finetune"])
def test_a_malicious_file_is_refused_by_name_and_runs_nothing(tiny_config, run_main, tmp_path, flag):
    canary = tmp_path / "canary"
    torch.save({"model": {"weight": torch.zeros(3)}, "epoch": 0, "x": Evil(canary)}, tmp_path / "evil.pth")
    code, output, errors = run_main("--cfg", tiny_config(), flag, tmp_path / "evil.pth")
    assert code == 2 and "Train:" not in output and not canary.exists()
    assert errors.startswith("error: ") and errors.count("\n") == 1 and "mkdir'" in errors and "evil.pth" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--opts", "DATA.DATASET", "digitz"], "Did you mean 'digits'?"),
        (["--opts", "MODEL.TYPE", "timm", "MODEL.NAME", "resnet5"], "Did you mean 'resnet50'?"),
        (["--opts", "MODEL.TYPE", "timm", "MODEL.NAME", "vmamba_tiny_s1l9"], "Did you mean 'vmamba_tiny_s1l8'?"),
        (["--opts", "MODEL.TYPE", "timm", "MODEL.NAME", "test_resnet", "MODEL.TIMM.in_chan", "1"], "in_chan"),
        (["--opts", "MODEL.VSSM.SSM_FORWARDTYPE", "v99"], "v99"),
        (["--eval"], "--eval needs weights"),
        (["--tagg", "x"], "unknown flag '--tagg'. Did you mean '--tag'?"),
        (["--pretrained", "/nowhere/x.pth"], "there is no checkpoint /nowhere/x.pth"),
        (["--resume", "/nowhere/x.pth"], "there is no checkpoint /nowhere/x.pth"),
        (["--batch-size", "5000"], "too few for a batch of 5000"),
        (["--device", "cuda"], "sees no GPU"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tiny_config, run_main, arguments, message):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    opts = ["--opts", "MODEL.DROP_PATH_RATE", "0.0", "MODEL.TIMM.in_chans", "1"]
    code, _, errors = run_main(
        "--cfg", tiny_config(), *(opts + arguments[1:] if arguments[0] == "--opts" else arguments)
    )
    assert code == 2 and message in errors and errors.count("\n") == 1 and errors.startswith("error: ")
    assert "Traceback" not in errors


def test_throughput_needs_no_data(tiny_config, run_main):
    code, output, errors = run_main("--cfg", tiny_config(DATA__DATASET="imagenet"), "--throughput", "--batch-size", 2)
    assert code == 0, errors
    assert re.search(r"batch_size 2 throughput \d+", output)


def test_keep_newest_and_save_freq(tiny_config, run_main, tmp_path):
    config = tiny_config(TRAIN__EPOCHS=5, KEEP_CHECKPOINTS=2, SAVE_FREQ=2)
    assert run_main("--cfg", config)[0] == 0
    folder = tmp_path / "out" / "tiny" / "default"
    assert sorted(p.name for p in folder.glob("ckpt*")) == ["ckpt_epoch_2.pth", "ckpt_epoch_4.pth"]
    assert load_checkpoint(folder / "last.pth")["epoch"] == 4
    assert set(json.loads((folder / "manifest.json").read_text())["files"]) == {
        "best.pth",
        "last.pth",
        "ckpt_epoch_2.pth",
        "ckpt_epoch_4.pth",
    }


def test_a_folder_that_cannot_be_written_is_one_line(tiny_config, run_main, tmp_path):
    (tmp_path / "out").write_text("a file is in the way")
    code, _, errors = run_main("--cfg", tiny_config())
    assert code == 2 and "cannot write to" in errors


def test_a_run_that_is_never_finite_stops_with_exit_code_1(tiny_config, run_main):
    code, output, _ = run_main("--cfg", tiny_config(TRAIN__BASE_LR=float("inf"), TRAIN__MAX_NONFINITE=3))
    assert code == 1 and "not finite 3 times in a row" in output and "Traceback" not in output


def test_fewer_than_five_classes_and_gradient_checkpointing(tiny_config, run_main, tmp_path):
    root = write_images(tmp_path / "images", {"train": {"a": 4, "b": 4}, "val": {"a": 2, "b": 1}})
    config = tiny_config(
        DATA__DATASET="imagenet", DATA__DATA_PATH=str(root), DATA__BATCH_SIZE=3, TRAIN__ACCUMULATION_STEPS=2
    )
    code, output, errors = run_main("--cfg", config, "--use-checkpoint", "--model_ema", "false")
    assert code == 0, errors
    assert "Acc@5 100.000" in output and "ema" not in output


def test_tensorboard_records_where_it_is_there_and_is_missed_quietly(tiny_config, run_main, tmp_path, monkeypatch):
    config = tiny_config(TENSORBOARD=True, TRAIN__EPOCHS=1)
    assert run_main("--cfg", config)[0] == 0
    folder = tmp_path / "out" / "tiny" / "default"
    assert list((folder / "tensorboard").glob("events*"))
    shutil.rmtree(folder)
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    code, output, _ = run_main("--cfg", config)
    assert code == 0 and "TensorBoard is off" in output
