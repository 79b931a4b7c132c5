"""The report of an evaluation, against torchmetrics and against the numbers of the run itself."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess

import pytest
import torch
import yaml
from PIL import Image
from torchmetrics.functional import classification as oracle

from classification.environment import git_state
from classification.findings import WORST, Findings
from classification.model_card import main as card_main
from classification.model_card import write_model_card
from classification.world import World
from tests.classification.runs import write_images
from vmamba.errors import UserError

CLASSES, IMAGES = 7, 90


def collected(generator: torch.Generator, batches: list[int]) -> tuple[Findings, torch.Tensor, torch.Tensor]:
    """Findings of random predictions in batches of those sizes; class 6 has no images."""
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4]
    findings = Findings([f"c{n}" for n in range(CLASSES)], mean, std, lambda place: f"image {place}")
    logits, labels = [], []
    for size in batches:
        labels.append(torch.randint(0, CLASSES - 1, (size,), generator=generator))
        logits.append(torch.randn(size, CLASSES, generator=generator))
        images = torch.randn(size, 3, 4, 5, generator=generator)
        findings.observe(images, logits[-1], labels[-1])
    return findings, torch.cat(logits), torch.cat(labels)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_figures_per_class_agree_with_torchmetrics(generator):
    findings, logits, labels = collected(generator, [40, 30, 20])
    assert torch.equal(findings.confusion, oracle.multiclass_confusion_matrix(logits, labels, CLASSES))
    rows = list(findings.per_class())
    settings = {"num_classes": CLASSES, "average": "none"}
    expected = {
        "acc1": oracle.multiclass_accuracy(logits, labels, **settings),
        "acc5": oracle.multiclass_accuracy(logits, labels, top_k=5, **settings),
        "precision": oracle.multiclass_precision(logits, labels, **settings),
        "f1": oracle.multiclass_f1_score(logits, labels, **settings),
    }
    for name, values in expected.items():
        found = torch.tensor([getattr(row, name) for row in rows[:-1]])
        torch.testing.assert_close(found, 100 * values[:-1], msg=name)
    assert rows[-1].images == 0 and rows[-1].acc1 != rows[-1].acc1
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    assert rows[2].loss == pytest.approx(losses[labels == 2].mean().item(), rel=1e-5)
    off = findings.confusion.clone().fill_diagonal_(0)
    assert [row.taken_for_images for row in rows] == off.max(dim=1).values.tolist()


def test_the_worst_predictions_are_those_of_highest_loss_with_their_images(generator):
    state = generator.get_state()
    findings, logits, labels = collected(generator, [40, 30, 20])
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    order = losses.argsort(descending=True)[:WORST]
    assert [found.position for found in findings.worst] == order.tolist()
    assert [found.label for found in findings.worst] == labels[order].tolist()
    best = logits[order].softmax(1).max(1)
    assert [found.predicted for found in findings.worst] == best.indices.tolist()
    assert [found.probability for found in findings.worst] == pytest.approx(best.values.tolist(), rel=1e-5)
    generator.set_state(state)
    torch.randint(0, CLASSES - 1, (40,), generator=generator)
    torch.randn(40, CLASSES, generator=generator)
    first = torch.randn(40, 3, 4, 5, generator=generator)
    found = next(item for item in findings.worst if item.position < 40)
    pixels = first[found.position] * torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    pixels = (pixels + torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)).clamp(0, 1) * 255
    assert found.image.dtype == torch.uint8 and torch.equal(found.image, pixels.round().byte())
    findings.gather(World())
    assert [found.name for found in findings.worst] == [f"image {place}" for place in order.tolist()]


def test_the_findings_of_processes_add_up_to_those_of_one(generator):
    """Two parts, gathered by a stand-in for the collectives, and the same batches in one."""
    state = generator.get_state()
    whole, _, _ = collected(generator, [45, 45])
    generator.set_state(state)
    parts = [collected(generator, [45])[0] for _ in range(2)]

    class Both(World):
        def __init__(self, mine: Findings, other: Findings) -> None:
            super().__init__()
            object.__setattr__(self, "theirs", (mine, other))

        def sum(self, tensor):
            mine, other = self.theirs
            pair = other._sums if tensor.dtype == torch.float64 else other.confusion
            return tensor + pair

        def gather(self, value):
            other = self.theirs[1].worst
            return [value, [found.loss for found in other] if value and isinstance(value[0], float) else other]

    parts[0].gather(Both(*parts))
    assert torch.equal(parts[0].confusion, whole.confusion)
    for one, two in zip(parts[0].per_class(), whole.per_class()):
        assert str(one) == str(two) or one.loss == pytest.approx(two.loss, rel=1e-12)
    assert [found.loss for found in parts[0].worst] == [found.loss for found in whole.worst]


@pytest.fixture
def reported(finished_copy):
    """A finished run with its report: (configuration file, run folder, standard output)."""
    return finished_copy(2)


def read_table(path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_finished_run_has_a_report_of_its_best_weights(reported):
    _, folder, output = reported
    evaluation = folder / "evaluation"
    assert {path.name for path in evaluation.iterdir()} == {
        "confusion.csv", "confusion.png", "per_class.csv", "scores.json", "worst.csv", "worst.png",
    }  # fmt: skip
    scores = json.loads((evaluation / "scores.json").read_text())
    best = max(float(value) for value in re.findall(r"Max accuracy(?: ema)?: ([\d.]+)%", output))
    assert scores["top1"] == pytest.approx(best, abs=0.006) and scores["weights"] == "best.pth"
    matrix = read_table(evaluation / "confusion.csv")
    counts = torch.tensor([[int(line[str(n)]) for n in range(10)] for line in matrix])
    assert counts.sum() == scores["images"] == 360
    assert 100 * counts.trace() / 360 == pytest.approx(scores["top1"], abs=1e-3)
    classes = read_table(evaluation / "per_class.csv")
    assert [float(line["acc1"]) for line in classes] == sorted(float(line["acc1"]) for line in classes)
    right = sum(float(line["acc1"]) * int(line["images"]) for line in classes)
    assert right / 360 == pytest.approx(scores["top1"], abs=1e-3)
    worst = read_table(evaluation / "worst.csv")
    assert len(worst) == WORST and worst[0]["image"].endswith("of digits")
    assert worst[0]["label"] != worst[0]["predicted"]
    for name in ("confusion.png", "worst.png"):
        with Image.open(evaluation / name) as picture:
            assert min(picture.size) > 300
    assert f"evaluation {evaluation}" in output and f"model card {folder / 'README.md'}" in output


def test_the_model_card_tells_the_figures_of_the_folder(reported, monkeypatch, capsys):
    _, folder, _ = reported
    text = (folder / "README.md").read_text()
    scores = json.loads((folder / "evaluation" / "scores.json").read_text())
    head = yaml.safe_load(text.split("---\n")[1])
    (result,) = head["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == pytest.approx(scores["top1"], abs=1e-3)
    assert head["license"] == "unknown" and head["datasets"] == ["digits"] and head["metrics"] == ["accuracy"]
    assert f"| top-1 accuracy | {scores['top1']:.2f}% |" in text and "| held-out images | 360 |" in text
    assert "| training images | 1,437 |" in text and "not stated (`CARD.LICENSE`)" in text and "CC BY 4.0" in text
    assert "DATA.DATASET imagenet -> digits" in text and "TRAIN.EPOCHS 300 -> 2" in text
    for file in re.findall(r"!\[[^]]*\]\(([^)]*)\)", text):
        assert (folder / file).is_file()
    assert text.count("](") == 3
    config = json.loads((folder / "config.json").read_text())
    config["CARD"] = {"LICENSE": "MIT", "DATA_LICENSE": "CC0 | my own"}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("sys.argv", ["model_card", str(folder)])
    assert card_main() == 0 and str(folder / "README.md") in capsys.readouterr().out
    text = (folder / "README.md").read_text()
    assert "license: MIT" in text and "| weights | MIT |" in text and r"| data | CC0 \| my own |" in text


def test_a_card_of_an_unfinished_run_names_what_is_missing(reported):
    _, folder, _ = reported
    shutil.rmtree(folder / "evaluation")
    with pytest.raises(UserError, match="scores.json; a run writes it"):
        write_model_card(folder)


def test_environment_and_starts(reported, run_main):
    config, folder, _ = reported
    found = json.loads((folder / "environment.json").read_text())
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0] or found["versions"]["torch"]
    assert {"selective_scan", "cross_scan"} <= found["backends"].keys()
    assert all(entry["backend"] for entry in found["backends"].values())
    assert found["data"] == {"classes": 10, "training_images": 1437, "held_out_images": 360}
    assert found["parameters"] > 1000 and found["cpu"]["cores"] >= 1 and "cpu" in found["devices"]
    assert found["git"].get("commit") or found["git"]["why"]
    assert run_main("--cfg", config, "--epochs", 3)[0] == 0
    starts = [json.loads(line) for line in (folder / "starts.jsonl").read_text().splitlines()]
    assert [start["epoch"] for start in starts] == [0, 2] and starts[0]["processes"] == 1
    assert json.loads((folder / "environment.json").read_text())["start"] == starts[1]


def test_eval_of_a_file_has_a_folder_of_its_own(reported, run_main):
    config, folder, _ = reported
    before = (folder / "evaluation" / "scores.json").read_bytes()
    code, output, _ = run_main(
        "--cfg", config, "--eval", "--pretrained", folder / "last.pth", "--opts", "REPORT", "True"
    )
    assert code == 0 and f"evaluation {folder / 'evaluation_last'}" in output
    scores = json.loads((folder / "evaluation_last" / "scores.json").read_text())
    found = [float(value) for value in re.findall(r" \* Acc@1 (\S+)", output)]
    assert scores["top1"] == pytest.approx(max(found), abs=1e-3) and scores["weights"] == str(folder / "last.pth")
    assert (folder / "evaluation" / "scores.json").read_bytes() == before
    assert not (folder / "evaluation_last" / "README.md").exists()


def test_names_of_classes_and_files_need_no_care(tiny_config, run_main, tmp_path):
    """Dollar signs are no formulas, long names are cut, and the paths of images stand in the table."""
    splits = {"train": {"a$b_$": 4, "x" * 60: 4}, "val": {"a$b_$": 3, "x" * 60: 2}}
    root = write_images(tmp_path / "images", splits)
    config = tiny_config(DATA__DATASET="imagenet", DATA__DATA_PATH=str(root), DATA__BATCH_SIZE=4, TRAIN__EPOCHS=1)
    code, output, errors = run_main("--cfg", config, "--opts", "REPORT", "True")
    assert code == 0 and "is not complete" not in output, output + errors
    evaluation = tmp_path / "out" / "tiny" / "default" / "evaluation"
    worst = read_table(evaluation / "worst.csv")
    assert {line["image"] for line in worst} == {str(path) for path in (root / "val").rglob("*.png")}
    assert all(line["image"].split("/")[-2] == line["label"] for line in worst)


def test_a_report_that_cannot_be_written_costs_a_warning(finished_copy, run_main):
    config, folder, _ = finished_copy(2)
    shutil.rmtree(folder / "evaluation")
    (folder / "evaluation").write_text("a file is in the way")
    code, output, _ = run_main("--cfg", config, "--opts", "REPORT", "True")
    assert code == 0 and "the report of the evaluation is not complete" in output and "no model card" in output


def git(folder, *arguments) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_the_state_of_a_checkout(tmp_path, monkeypatch):
    assert git_state(tmp_path)["commit"] is None and "is no checkout" in git_state(tmp_path)["why"]
    git(tmp_path, "init", "-q")
    assert git_state(tmp_path)["commit"] is None
    (tmp_path / "file").write_text("one\n")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-qm", "first")
    clean = git_state(tmp_path)
    assert re.fullmatch(r"[0-9a-f]{40}", clean["commit"]) and not clean["dirty"] and clean["diff_stat"] == []
    (tmp_path / "file").write_text("two\n")
    dirty = git_state(tmp_path)
    assert dirty["dirty"] and dirty["status"] == [" M file"] and "1 file changed" in dirty["diff_stat"][-1]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path)["commit"] is None and git_state(tmp_path)["why"]
