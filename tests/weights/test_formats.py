"""Every published layout loads, and a round trip through each is bit-equal."""

from __future__ import annotations

import argparse
import pathlib
import sys
import types

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from vmamba.models.vssm import Backbone
from vmamba.models.vssm_keys import rename_published_keys
from vmamba.models.vssm_layouts import LAYOUTS, in_layout, layout_of
from vmamba.weights import load_checkpoint, load_weights, save_checkpoint
from vmamba.weights.__main__ import main
from vmamba.weights.converting import convert
from vmamba.weights.safetensors_file import write_safetensors

CONFIG = {
    "BASE": [""],
    "DATA": {"IMG_SIZE": 224, "MEAN": (0.5, 0.25)},
    "MODEL": {"TYPE": "vssm", "NAME": "x", "VSSM": {"DEPTHS": [1, 2], "SSM_RATIO": 1.0, "POSEMBED": True}},
    "TAG": None,
}


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def other(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value + 1 for key, value in state.items()}


def frozen_config() -> CfgNode:
    config = CfgNode(CONFIG)
    config.freeze()
    return config


def mm_objects() -> dict:
    """What mmengine writes beside the weights."""
    from mmengine.config import ConfigDict
    from mmengine.logging import HistoryBuffer

    history = HistoryBuffer([1.0, 2.0], [1, 1])
    return {"meta": {"epoch": 12, "cfg": "model = 1", "dataset_meta": ConfigDict(CLASSES=("a", "b"))}, "loss": history}


# Each: the payload of a file that holds the weights `state`.
PAYLOADS = {
    "release": lambda state: {"model": state},
    "training": lambda state: {"model": state, "model_ema": other(state), "config": frozen_config(), "epoch": 3},
    "namespace": lambda state: {"model": state, "args": argparse.Namespace(lr=0.1, config=frozen_config())},
    "bare": lambda state: state,
    "timm": lambda state: {"state_dict": state, "state_dict_ema": other(state), "arch": "x"},
    "ddp": lambda state: {"model": prefixed(state, "module.")},
    "compiled": lambda state: {"model": prefixed(state, "_orig_mod.")},
    "ddp of compiled": lambda state: {"model": prefixed(state, "module._orig_mod.")},
    "lightning model": lambda state: {"state_dict": prefixed(state, "model."), "pytorch-lightning_version": "2.0"},
    "lightning net": lambda state: {"state_dict": prefixed(state, "net."), "hyper_parameters": {"lr": 0.1}},
    "lightning with an average": lambda state: {
        "state_dict": {**prefixed(other(state), "ema.module."), **prefixed(state, "backbone.")}
    },
    "averaged model": lambda state: {"model": {"n_averaged": torch.tensor(7), **prefixed(state, "module.")}},
    "mmpretrain": lambda state: {"state_dict": prefixed(state, "backbone."), "message_hub": mm_objects()},
    "first release": lambda state: {"model": in_layout(state, "first_release")},
    "single file": lambda state: {"model": in_layout(state, "single_file")},
    "convolutions": lambda state: {"model": in_layout(state, "convolutions")},
    "single file in a detector": lambda state: {"state_dict": prefixed(in_layout(state, "single_file"), "backbone.")},
}
WRITERS = {
    "zip": lambda payload, path: torch.save(payload, path),
    "old pickle": lambda payload, path: torch.save(payload, path, _use_new_zipfile_serialization=False),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("layout", PAYLOADS)
def test_a_round_trip_through_every_layout_is_bit_equal(layout, writer, make, equal, tmp_path, capsys):
    source, target = make(), make()
    path = tmp_path / "c.pth"
    WRITERS[writer](PAYLOADS[layout](source.state_dict()), path)
    report = load_weights(target, path)
    assert report.clean and len(report.matched) == len(source.state_dict()) and equal(source, target)
    assert f"matched     {len(report.matched):>6} keys" in capsys.readouterr().err

    convert(path, tmp_path / "c.safetensors")
    convert(tmp_path / "c.safetensors", tmp_path / "back.pth")
    for name in ("c.safetensors", "back.pth"):
        again = make()
        assert load_weights(again, tmp_path / name, quiet=True).renamed == ()
        assert equal(source, again)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_types_other_than_float32_stay_bit_equal(dtype, suffix, make, equal, tmp_path):
    state = make().to(dtype).state_dict()
    torch.save({"model": state}, tmp_path / "c.pt")
    convert(tmp_path / "c.pt", tmp_path / f"out{suffix}")
    assert equal(load_checkpoint(tmp_path / f"out{suffix}")["model"], state)


@pytest.mark.parametrize("layout", sorted({"training", "timm", "lightning with an average"}))
def test_the_averaged_weights_are_read_on_request(layout, make, equal, tmp_path):
    state, target = make().state_dict(), make()
    torch.save(PAYLOADS[layout](state), tmp_path / "c.pth")
    load_weights(target, tmp_path / "c.pth", prefer_ema=True, quiet=True)
    assert equal(target.state_dict(), other(state))
    convert(tmp_path / "c.pth", tmp_path / "c.safetensors", prefer_ema=True)
    assert equal(load_checkpoint(tmp_path / "c.safetensors")["model"], other(state))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_key_layout_goes_both_ways(layout, make, equal, tmp_path):
    state = make().state_dict()
    old = in_layout(state, layout)
    assert layout_of(old) == layout
    assert (set(old) == set(state)) == (layout in ("present", "convolutions"))
    assert equal(rename_published_keys(old)[0], state)
    torch.save({"model": state}, tmp_path / "c.pth")
    convert(tmp_path / "c.pth", tmp_path / "old.pth", layout=layout)
    assert equal(load_checkpoint(tmp_path / "old.pth")["model"], old)
    convert(tmp_path / "old.pth", tmp_path / "new.pth")
    assert equal(load_checkpoint(tmp_path / "new.pth")["model"], state)


def test_the_published_spellings(make):
    state = make().state_dict()
    assert "layers.0.blocks.0.op.x_proj.weight" in in_layout(state, "single_file")
    assert in_layout(state, "single_file")["layers.0.blocks.0.op.x_proj.weight"].shape == (4 * 5, 8)
    assert in_layout(state, "single_file")["layers.0.downsample.2.weight"].shape == (16, 32)
    first = in_layout(state, "first_release")
    assert {"patch_embed.proj.weight", "patch_embed.norm.weight", "head.weight", "norm.bias"} <= first.keys()
    assert {"layers.1.blocks.1.ln_1.weight", "layers.1.blocks.1.self_attention.x_proj_weight"} <= first.keys()
    assert in_layout(state, "convolutions")["layers.0.blocks.0.mlp.fc1.weight"].shape == (8, 8, 1, 1)


def test_a_config_is_read_with_equal_values_and_without_yacs(make, tmp_path, monkeypatch):
    torch.save(PAYLOADS["namespace"](make().state_dict()) | {"config": frozen_config()}, tmp_path / "c.pth")
    monkeypatch.setitem(sys.modules, "yacs", None)
    monkeypatch.setitem(sys.modules, "yacs.config", None)
    payload = load_checkpoint(tmp_path / "c.pth")
    assert payload["config"] == CONFIG and payload["args"] == {"lr": 0.1, "config": CONFIG}
    nodes = [payload["config"], payload["config"]["MODEL"], payload["config"]["MODEL"]["VSSM"], payload["args"]]
    assert all(type(node) is dict for node in nodes)
    assert type(payload["config"]["DATA"]["MEAN"]) is tuple


def test_other_settings_become_plain_values(tmp_path):
    arrays = {
        "float": np.arange(6.0).reshape(2, 3),
        "column": np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
        "big": np.array([1, 2], dtype=">i4"),
        "empty": np.zeros((0, 2), np.float32),
    }
    payload = {
        **mm_objects(),
        "arrays": arrays,
        "number": np.float64(0.5),
        "count": np.int64(7),
        "objects": np.array(["a", 1], dtype=object),
        "path": pathlib.PurePosixPath("/a/b.pth"),
        "bag": types.SimpleNamespace(x=1),
        "weights": {"w": torch.ones(2)},
    }
    torch.save(payload, tmp_path / "c.pth")
    loaded = load_checkpoint(tmp_path / "c.pth")
    assert loaded["meta"] == {"epoch": 12, "cfg": "model = 1", "dataset_meta": {"CLASSES": ("a", "b")}}
    assert np.array_equal(loaded["loss"]["_log_history"], [1.0, 2.0])
    for name, array in arrays.items():
        assert loaded["arrays"][name].dtype == array.dtype and np.array_equal(loaded["arrays"][name], array), name
    assert loaded["number"] == 0.5 and type(loaded["number"]) is float and loaded["count"] == 7
    assert loaded["objects"] == ["a", 1] and loaded["path"] == "/a/b.pth" and loaded["bag"] == {"x": 1}


def test_an_omegaconf_tree_is_read(tmp_path, monkeypatch):
    """Built by hand, as omegaconf's classes pickle: nodes with a state that holds their content and their parent."""
    names = {"omegaconf.dictconfig": "DictConfig", "omegaconf.nodes": "AnyNode", "omegaconf.base": "ContainerMetadata"}
    classes = {}
    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    for module, name in names.items():
        made = types.ModuleType(module)
        classes[name] = type(name, (), {"__module__": module})
        setattr(made, name, classes[name])
        monkeypatch.setitem(sys.modules, module, made)
    tree, leaf, metadata = (classes[name]() for name in ("DictConfig", "AnyNode", "ContainerMetadata"))
    metadata.__dict__.update(ref_type=dict, object_type=dict, key=None)
    leaf.__dict__.update(_metadata=metadata, _parent=tree, _val=0.1)
    tree.__dict__.update(_metadata=metadata, _parent=None, _content={"lr": leaf})
    torch.save({"state_dict": {"w": torch.ones(1)}, "hyper_parameters": tree}, tmp_path / "c.ckpt")
    for module in ("omegaconf", *names):
        monkeypatch.delitem(sys.modules, module)
    assert load_checkpoint(tmp_path / "c.ckpt")["hyper_parameters"] == {"lr": 0.1}


def test_a_state_dict_stays_what_it_was(make, tmp_path):
    """The metadata of versions that torch keeps on a state_dict survives the reading."""
    torch.save({"model": make().state_dict()}, tmp_path / "c.pth")
    state = load_checkpoint(tmp_path / "c.pth")["model"]
    assert state._metadata[""] == {"version": 1}


def detector_file(backbone: Backbone, path) -> dict[str, Tensor]:
    rest = {"neck.fpn.weight": torch.ones(3), "rpn_head.a": torch.ones(2), "rpn_head.b": torch.ones(2)}
    state = {**prefixed(in_layout(backbone.state_dict(), "single_file"), "backbone."), **rest}
    torch.save({"meta": {"epoch": 12}, "state_dict": state}, path)
    return state


BACKBONE = {"dims": [8, 16], "depths": [1, 2], "ssm_d_state": 2, "mlp_ratio": 1.0, "downsample_version": "v1"}


def test_a_backbone_comes_out_of_a_detector(tmp_path, equal):
    source, target = (Backbone((0, 1), **BACKBONE) for _ in range(2))
    detector_file(source, tmp_path / "det.pth")
    report = load_weights(target, tmp_path / "det.pth")
    assert equal(source, target) and report.outside == ("neck.fpn.weight", "rpn_head.a", "rpn_head.b")
    table = report.full_table()
    assert "(entry 'state_dict', keys under 'backbone.')" in table
    assert "outside     neck.*" not in table and "outside     rpn_head.* (2 keys)" in table


def test_a_detector_stays_whole_in_a_conversion(tmp_path, equal):
    backbone = Backbone((0, 1), **BACKBONE)
    state = detector_file(backbone, tmp_path / "det.pth")
    convert(tmp_path / "det.pth", tmp_path / "det.safetensors")
    convert(tmp_path / "det.safetensors", tmp_path / "again.pth")
    wanted = prefixed(backbone.state_dict(), "backbone.") | {k: v for k, v in state.items() if "backbone" not in k}
    assert equal(load_checkpoint(tmp_path / "det.safetensors")["model"], wanted)
    assert equal(load_checkpoint(tmp_path / "again.pth")["state_dict"], wanted)


def test_a_network_that_holds_a_backbone_takes_old_names(tmp_path, equal):
    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = Backbone((0, 1), **BACKBONE)
            self.neck = nn.Linear(2, 2)

    source, target = Detector(), Detector()
    old = prefixed(in_layout(source.backbone.state_dict(), "single_file"), "backbone.")
    report = load_weights(target, {"state_dict": {**old, **prefixed(source.neck.state_dict(), "neck.")}})
    assert equal(source, target) and report.outside == ()
    assert ("backbone.layers.0.blocks.0.op.x_proj.weight", "backbone.layers.0.blocks.0.op.x_proj_weight") in (
        report.renamed
    )


def test_safetensors_keep_the_settings(make, tmp_path):
    torch.save(PAYLOADS["training"](make().state_dict()) | {"class_names": ["a", "b"]}, tmp_path / "c.pth")
    convert(tmp_path / "c.pth", tmp_path / "c.safetensors", layout="single_file")
    loaded = load_checkpoint(tmp_path / "c.safetensors")
    as_json = CONFIG | {"DATA": {"IMG_SIZE": 224, "MEAN": [0.5, 0.25]}}
    assert loaded["config"] == as_json and loaded["epoch"] == 3 and loaded["layout"] == "single_file"
    assert loaded["class_names"] == ["a", "b"]


def test_tensors_that_share_memory_are_written_each_on_its_own(tmp_path):
    whole = torch.arange(6.0)
    write_safetensors(tmp_path / "w.safetensors", {"a": whole, "b": whole, "half": whole[:3], "bits": whole > 2})
    loaded = load_checkpoint(tmp_path / "w.safetensors")["model"]
    assert (
        torch.equal(loaded["a"], whole) and torch.equal(loaded["b"], whole) and torch.equal(loaded["half"], whole[:3])
    )
    assert loaded["bits"].dtype == torch.bool


def test_safetensors_of_other_writers_are_read(tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.ones(2)}, tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").rename(tmp_path / "named.pth")
    assert torch.equal(load_checkpoint(tmp_path / "named.pth")["model"]["w"], torch.ones(2))


def test_the_convert_command(make, equal, tmp_path, capsys):
    source = make()
    save_checkpoint(tmp_path / "c.pth", {"model": source.state_dict()})
    assert main(["convert", str(tmp_path / "c.pth"), str(tmp_path / "c.safetensors")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "c.safetensors")
    assert equal(load_checkpoint(tmp_path / "c.safetensors")["model"], source.state_dict())
    for arguments, said in (
        (["c.safetensors", "c.pth"], "c.pth exists; delete it or choose another name"),
        (["c.pth", "c.bin"], "ends in '.bin'; it must be one of .safetensors, .pth, .pt"),
        (["c.pth", "d.pth", "--layout", "first"], "'first' is not one of present, first_release"),
        (["c.pth", "d.pth", "--entry", "swa"], "has no entry 'swa'; it has model"),
    ):
        words = [str(tmp_path / word) if "." in word else word for word in arguments]
        assert main(["convert", *words]) == 2
        errors = capsys.readouterr().err
        assert said in errors and len(errors.splitlines()) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.pth", "c.safetensors", "manifest.json"]
