"""Starting from other weights: another resolution or class count, a probe, frozen parts, weights by address."""

from __future__ import annotations

import http.server
import logging
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from torch import nn

from classification.build import build_network, load_pretrained
from classification.config import load_config
from classification.finetuning import DoNotFit, fetch_weights, fill
from classification.freezing import freeze, rest_frozen
from classification.optim import build_optimizer
from classification.world import World
from tests.classification.runs import write_images
from vmamba.errors import UserError
from vmamba.models.from_config import model_from_config
from vmamba.models.head_norm import NormedLinear, norm_head
from vmamba.models.vssm import VSSM
from vmamba.weights import load_checkpoint, save_checkpoint


def config_of(*opts):
    return load_config(opts=[str(o) for o in opts])[0]


def small(size: int = 16, classes: int = 3) -> VSSM:
    return VSSM(
        dims=[8, 16], depths=[2, 1], num_classes=classes, posembed=True, imgsize=size, ssm_d_state=1, drop_path_rate=0.0
    )


def test_another_resolution_and_class_count():
    source, target = small(16, 3), small(32, 5)
    before = target.classifier.head.weight.clone()
    with pytest.raises(DoNotFit, match="x.pth does not fit VSSM: .*only the head differs: --allow-head-mismatch") as no:
        fill(target, {"model": source.state_dict()}, "x.pth")
    assert "classifier.head.weight [3, 16] in the file, [5, 16] in the model" in no.value.table
    with pytest.raises(UserError, match="^x.pth has no entry 'model_ema'; it has model"):
        fill(target, {"model": source.state_dict()}, "x.pth", entry="model_ema")
    report = fill(target, {"model": source.state_dict()}, "x.pth", allow_head_mismatch=True)
    assert report.resized == (("pos_embed", (1, 8, 4, 4), (1, 8, 8, 8)),)
    assert report.head_dropped == ("classifier.head.bias", "classifier.head.weight")
    assert torch.equal(target.classifier.head.weight, before)
    assert torch.equal(target.patch_embed[0].weight, source.patch_embed[0].weight)
    resized = nn.functional.interpolate(source.pos_embed, size=(8, 8), mode="bicubic", align_corners=False)
    torch.testing.assert_close(target.pos_embed, resized)


def test_a_head_that_has_learnt_nothing_is_not_evaluated(tmp_path):
    save_checkpoint(tmp_path / "x.pth", {"model": small(16, 3).state_dict()})
    words = ["MODEL.PRETRAINED", tmp_path / "x.pth", "MODEL.ALLOW_HEAD_MISMATCH", True, "EVAL_MODE", True]
    trainer: Any = SimpleNamespace(network=small(16, 5), average=None, logger=logging.getLogger("heads"))
    with pytest.raises(UserError, match="x.pth has no head that fits, and --eval would judge one that has learnt"):
        load_pretrained(config_of(*words), trainer)
    trainer.network = small(16, 3)
    load_pretrained(config_of(*words), trainer)


@pytest.mark.parametrize("name", ["test_vit", "vit_tiny_patch16_224"])
def test_a_timm_transformer_at_another_resolution(name):
    source = timm.create_model(name, num_classes=3, img_size=64, depth=1)
    target = timm.create_model(name, num_classes=5, img_size=96, depth=1)
    fill(target, {"model": source.state_dict()}, "x.pth", allow_head_mismatch=True)
    assert target.pos_embed.shape[1] > source.pos_embed.shape[1]
    assert torch.equal(target.pos_embed[:, 0], source.pos_embed[:, 0]), "the class token's"
    assert torch.equal(target.blocks[0].mlp.fc1.weight, source.blocks[0].mlp.fc1.weight)
    with pytest.raises(DoNotFit, match="mismatched"):
        fill(
            timm.create_model(name, num_classes=3, img_size=64, depth=1, embed_dim=48),
            {"model": source.state_dict()},
            "x",
        )


# parts that do not learn


def trained(network: nn.Module) -> set[str]:
    return {name for name, parameter in network.named_parameters() if parameter.requires_grad}


def test_frozen_parts_by_name_module_and_pattern():
    network = small()
    freeze(config_of("TRAIN.FREEZE", "['patch_embed', 'layers.0.blocks.*', 'pos_embed']"), network)
    expected = {n for n, _ in network.named_parameters() if not n.startswith(("patch_embed.", "layers.0.b", "pos_"))}
    assert trained(network) == expected and "layers.0.downsample.1.weight" in expected
    with pytest.raises(UserError, match="TRAIN.FREEZE 'patch_embd' is no parameter .*Did you mean 'patch_embed'"):
        freeze(config_of("TRAIN.FREEZE", "['patch_embd']"), network)


@pytest.mark.parametrize(
    "words", [("TRAIN.FREEZE", "['*']"), ("TRAIN.FREEZE", "['classifier']", "TRAIN.LINEAR_PROBE", True)]
)
def test_all_frozen_is_refused(words):
    config, network = config_of(*words), small()
    freeze(config, network)
    with pytest.raises(UserError, match="TRAIN.FREEZE leaves no parameter to train"):
        build_optimizer(config, network, World())


def test_a_number_of_classes_that_is_not_the_datas_is_refused():
    words = ("MODEL.TYPE", "timm", "MODEL.NAME", "test_resnet", "MODEL.NUM_CLASSES", 3, "MODEL.TIMM.num_classes", 7)
    with pytest.raises(UserError, match="MODEL.TIMM.num_classes 7: there are 3 classes .* leave it out"):
        build_network(config_of(*words), World(), logging.getLogger("heads"))
    network: Any = build_network(config_of(*words[:-1], 3), World(), logging.getLogger("heads"))
    assert network.num_classes == 3


def test_a_linear_probe_moves_the_head_alone_and_frozen_statistics_rest():
    config = config_of("TRAIN.LINEAR_PROBE", True, "MODEL.TYPE", "timm", "MODEL.NAME", "test_resnet",
                       "MODEL.NUM_CLASSES", 3, "MODEL.HEAD_NORM", True)  # fmt: skip
    network = model_from_config(config)
    freeze(config, network)
    assert trained(network) == {"fc.weight", "fc.bias"}
    before = {key: value.clone() for key, value in network.state_dict().items()}
    optimizer = build_optimizer(config, network, World())
    network.train()
    rest_frozen(network)
    network(torch.randn(4, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    moved = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    norm = {"fc.norm.running_mean", "fc.norm.running_var", "fc.norm.num_batches_tracked"}
    assert moved == {"fc.weight", "fc.bias"} | norm


def test_only_wholly_frozen_parts_rest():
    network = small()
    freeze(config_of("TRAIN.FREEZE", "['layers.0', 'classifier.norm']"), network)
    network.train()
    rest_frozen(network)
    assert not any(module.training for module in network.layers[0].modules())
    assert network.layers[1].blocks[0].drop_path.training and network.classifier.head.training and network.training


def test_the_normed_head_is_batch_norm_and_linear():
    network = small()
    x = torch.randn(6, 3, 16, 16)
    features = network.forward_head(network.forward_features(x), pre_logits=True)
    head = network.classifier.head
    assert norm_head(network) is network and isinstance(network.get_classifier(), NormedLinear)
    centred = (features - features.mean(0)) / (features.var(0, unbiased=False) + 1e-6).sqrt()
    torch.testing.assert_close(network(x), nn.functional.linear(centred, head.weight, head.bias))
    assert {"classifier.head.weight", "classifier.head.norm.running_mean"} <= network.state_dict().keys()
    plain = small()
    kept = fill(network, {"model": plain.state_dict()}, "x.pth").kept
    assert len(kept) == 3 and all(key.startswith("classifier.head.norm.") for key in kept)
    assert torch.equal(network.classifier.head.weight, plain.classifier.head.weight)
    with pytest.raises(UserError, match="MODEL.HEAD_NORM: Linear has no linear classifier head"):
        norm_head(nn.Linear(2, 2))


def test_a_probe_run_trains_from_a_checkpoint_and_its_best_can_be_used(finished_copy, run_main, tmp_path):
    _, folder, _ = finished_copy(2)
    root = write_images(tmp_path / "images", {"train": {"a": 6, "b": 6}, "val": {"a": 2, "b": 2}})
    data = ["--data-path", root, "--batch-size", 4, "--epochs", 1, "--tag", "probe"]
    weights = ["--finetune", folder / "best.pth", "--linear-probe", "--head-norm"]
    opts = ["--opts", "DATA.DATASET", "imagenet", "DATA.IMG_SIZE", "12"]
    code, output, errors = run_main("--cfg", tmp_path / "tiny.yaml", *data, *weights, *opts)
    assert code == 0, errors
    assert "number of params: 34\n" in output and "2 head dropped" in output
    stored = load_checkpoint(folder.parent / "probe" / "best.pth")
    source = load_checkpoint(folder / "best.pth")["model"]
    assert all(torch.equal(v, source[k]) for k, v in stored["model"].items() if not k.startswith("classifier.head"))
    network = model_from_config(stored["config"])
    assert fill(network, stored, "best.pth").clean and network.eval()(torch.zeros(1, 1, 12, 12)).shape == (1, 2)


# weights by address


@pytest.fixture
def address(tmp_path):
    """The address of a server of `tmp_path`/served on this machine."""
    (tmp_path / "served").mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "served")))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


class Machines(World):
    """One of two machines of two processes each, which all have the same answers."""

    def from_first(self, decide):
        return decide() if self.first else None

    def gather(self, value):
        return [value] * self.size


def test_each_machine_fetches_once_and_a_failure_is_that_of_all(monkeypatch):
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)
    fetched = []
    for rank in range(4):
        Machines(rank, 4, local_rank=rank % 2).once_per_machine(partial(fetched.append, rank))
    assert fetched == [0, 2]

    def refuse():
        raise UserError("no network")

    with pytest.raises(UserError, match="no network"):
        Machines(2, 4, local_rank=0).once_per_machine(refuse)
    with pytest.raises(UserError, match="no network"):
        World().once_per_machine(refuse)


def test_weights_by_address_are_fetched_once(address, tmp_path, monkeypatch):
    monkeypatch.setenv("VMAMBA_WEIGHTS", str(tmp_path / "kept"))
    save_checkpoint(tmp_path / "served" / "w.pth", {"model": small().state_dict()})
    for key in ("MODEL.PRETRAINED", "MODEL.RESUME", "DISTILL.TEACHER_PATH"):
        config = config_of(key, f"{address}/w.pth")
        fetch_weights(config, World())
        node, _, name = key.partition(".")
        path = Path(config[node][name])
        assert path.is_relative_to(tmp_path / "kept") and load_checkpoint(path)["model"]
    (tmp_path / "served" / "w.pth").unlink()
    again = config_of("MODEL.PRETRAINED", f"{address}/w.pth")
    fetch_weights(again, World())
    assert Path(again.MODEL.PRETRAINED) == path
    with pytest.raises(UserError, match="cannot download .*/absent.pth .*fetch it by hand and put it at"):
        fetch_weights(config_of("MODEL.PRETRAINED", f"{address}/absent.pth"), World())
    with pytest.raises(UserError, match="names no file"):
        fetch_weights(config_of("MODEL.PRETRAINED", f"{address}/"), World())
