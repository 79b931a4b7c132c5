"""The examples on the nuclei train until their time is up, and are evaluated; the clock of `TimeBudget`."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config

from tests.openmmlab.nuclei_wheel import write_wheel
from vmamba.openmmlab import nuclei, time_budget
from vmamba.openmmlab import train as training

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
EXAMPLES = {
    "segmentation/upernet_vmamba_nuclei": "mIoU",
    "segmentation/upernet_resnet18_nuclei": "mIoU",
    "detection/mask_rcnn_vmamba_nuclei": "coco/bbox_mAP_50",
    "detection/mask_rcnn_resnet18_nuclei": "coco/bbox_mAP_50",
}
QUICK = "segmentation/upernet_vmamba_nuclei"


@pytest.mark.parametrize(
    "example", [pytest.param(name, marks=[pytest.mark.slow] * (name != QUICK)) for name in EXAMPLES]
)
def test_an_example_without_time_makes_one_step_of_no_length_and_is_evaluated(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nuclei.make_trees(Path("data/nuclei"), write_wheel(tmp_path / "w.whl"))
    config = str(CONFIGS / f"{example}.py")
    options = ["custom_hooks.0.minutes=0", "train_dataloader.batch_size=2", "default_hooks.logger.interval=1"]
    assert training.main([config, "--work-dir", "work", "--cfg-options", *options]) == 0
    assert Path("work/last_checkpoint").read_text().endswith("iter_1.pth")
    lines = [json.loads(line) for path in Path("work").glob("*/vis_data/scalars.json") for line in path.open()]
    assert lines[0]["lr"] == 0 and torch.isfinite(torch.tensor(lines[0]["loss"])) and EXAMPLES[example] in lines[-1]


def test_the_examples_compare_like_with_like():
    for task, model in (("segmentation", "upernet"), ("detection", "mask_rcnn")):
        ours, theirs = (
            Config.fromfile(CONFIGS / task / f"{model}_{name}_nuclei.py") for name in ("vmamba", "resnet18")
        )
        assert ours.custom_hooks == theirs.custom_hooks == [dict(type="TimeBudget", minutes=8)]
        for key in ("train_dataloader", "val_dataloader", "optim_wrapper", "train_cfg", "randomness"):
            assert ours[key] == theirs[key], key
        classes = ours.val_dataloader.dataset.metainfo.classes
        assert tuple(classes)[-3:] == nuclei.CLASSES
        assert theirs.model.backbone.type.endswith("TIMMBackbone") and not theirs.model.backbone.pretrained


class Clock:
    """A runner that makes a step a second, and knows what a resumed run knows."""

    def __init__(self, hub: dict, monkeypatch) -> None:
        self.iter, self.hub = 0, hub
        self.seconds = 0.0
        monkeypatch.setattr(time_budget.time, "monotonic", lambda: self.seconds)
        self.train_loop = SimpleNamespace(_max_iters=1000)
        self.optim_wrapper = SimpleNamespace(param_groups=[dict(lr=0.1), dict(lr=1.0)])
        self.message_hub = SimpleNamespace(
            get_info=lambda key, default: hub.get(key, default), update_info=lambda key, value: hub.update({key: value})
        )

    def train(self, hook, stop_at: int = 1000) -> list[float]:
        hook.before_train(self)
        rates = []
        while self.iter < min(self.train_loop._max_iters, stop_at):
            hook.before_train_iter(self, self.iter)
            rates.append(self.optim_wrapper.param_groups[1]["lr"])
            assert self.optim_wrapper.param_groups[0]["lr"] == pytest.approx(rates[-1] / 10)
            self.seconds += 1
            hook.after_train_iter(self, self.iter)
            self.iter += 1
        return rates


def test_the_rate_follows_the_clock_and_a_resumed_run_has_what_was_left(monkeypatch):
    whole = Clock({}, monkeypatch).train(time_budget.TimeBudget(minutes=1, warmup=0.1))
    assert len(whole) == 60 and whole[0] == 0 and whole[6] == 1 == max(whole) and 0 < whole[-1] < 0.01
    hub: dict = {}
    first = Clock(hub, monkeypatch).train(time_budget.TimeBudget(minutes=1, warmup=0.1), stop_at=20)
    second = Clock(hub, monkeypatch).train(time_budget.TimeBudget(minutes=1, warmup=0.1))
    assert first + second == pytest.approx(whole)
    with pytest.raises(ValueError, match="minutes, warmup: expected at least 0"):
        time_budget.TimeBudget(minutes=-1)
