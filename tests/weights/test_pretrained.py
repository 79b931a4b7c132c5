"""The released checkpoints: the list, fetching, verification, and timm's pretrained=True through the one loader."""

from __future__ import annotations

import io
import json
import shutil
import urllib.error
import urllib.request
from email.message import Message

import pytest
import timm
import torch

import vmamba
from vmamba.models.vssm_layouts import in_layout
from vmamba.weights import RELEASED, CheckpointError, WeightsDoNotFit, fetch_pretrained, weights_folder
from vmamba.weights.guessing import empty_model
from vmamba.weights.released import released_classifier

NAME = "vmamba_tiny_s1l8"
FILE = "vssm1_tiny_0230s_ckpt_epoch_264.pth"
URL = f"https://github.com/MzeroMiko/VMamba/releases/download/%23v2cls/{FILE}"


@pytest.mark.parametrize("entry", [e for e in RELEASED if e.tensors], ids=lambda entry: entry.file)
def test_a_classifier_has_the_released_size(entry):
    state = empty_model(entry.model).state_dict()
    assert sum(value.numel() for value in state.values()) == entry.parameters and len(state) == entry.tensors
    assert (timm.get_pretrained_cfg(entry.model).url == entry.url) == (entry.task != "further")


def test_the_list_is_whole_and_unambiguous():
    assert len({entry.url for entry in RELEASED}) == len(RELEASED) == 49
    assert {entry.model for entry in RELEASED} <= set(vmamba.list_models())
    assert released_classifier(NAME).url == URL and released_classifier("vmamba_tiny_0229") is None
    tasks = ("classification", "detection", "segmentation", "pre-training", "further")
    assert [sum(e.task == task for e in RELEASED) for task in tasks] == [23, 13, 7, 2, 4]
    hugging_face = "https://huggingface.co/hustvl/Vim-tiny-midclstok/resolve/main/vim_t_midclstok_76p1acc.pth"
    assert released_classifier("vim_tiny").url == hugging_face
    release = "https://github.com/insitro/FastVim/releases/download/v0/FastVim_tiny.ckpt"
    assert released_classifier("fastvim_tiny").url == release and released_classifier("fastvim_large") is None


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A file of the released layout and size, and its weights."""
    torch.manual_seed(0)
    state = vmamba.create_model(NAME).state_dict()
    path = tmp_path_factory.mktemp("released") / FILE
    torch.save({"model": in_layout(state, "single_file")}, path)
    return path, state


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The folder of fetched weights, and no network."""
    monkeypatch.setenv("VMAMBA_WEIGHTS", str(tmp_path / "kept"))
    monkeypatch.setattr(urllib.request, "urlopen", offline)
    return tmp_path / "kept"


def offline(url, timeout):
    raise urllib.error.URLError("Name or service not known")


def serve(monkeypatch, data: bytes, length: int | None = None) -> list[str]:
    """Answer every request with `data`; return the list of what was asked for."""
    asked: list[str] = []

    class Answer(io.BytesIO):
        headers = Message()

    def answer(url, timeout):
        asked.append(url)
        Answer.headers = Message()
        Answer.headers["Content-Length"] = str(len(data) if length is None else length)
        return Answer(data)

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    return asked


def test_offline_says_what_to_fetch_and_where_to_put_it(folder):
    for create in (vmamba.create_model, timm.create_model):
        with pytest.raises(CheckpointError) as error:
            create(NAME, pretrained=True)
        said = f"cannot download {URL} (Name or service not known); fetch it by hand and put it at {folder / FILE}"
        assert str(error.value) == said
    assert not list(folder.glob("*"))


def test_a_model_without_released_weights_says_so(folder):
    with pytest.raises(CheckpointError, match=r"no weights of 'vmamba_tiny_0229' were released.*load_weights"):
        vmamba.create_model("vmamba_tiny_0229", pretrained=True)


def test_a_file_put_there_by_hand_is_verified_and_used(folder, released, equal, capsys):
    path, state = released
    folder.mkdir()
    shutil.copy(path, folder)
    model = vmamba.create_model(NAME, pretrained=True)
    assert equal(model, state)
    assert f"{folder / FILE} into VSSM (entry 'model')" in capsys.readouterr().err
    entry = json.loads((folder / "manifest.json").read_text())["files"][FILE]
    assert len(entry["sha256"]) == 64 and entry["size"] == path.stat().st_size

    data = bytearray((folder / FILE).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / FILE).write_bytes(data)
    with pytest.raises(CheckpointError, match=r"is damaged: its sha256 is .* as manifest.json says"):
        vmamba.create_model(NAME, pretrained=True)


def test_it_is_fetched_once_and_adapted_as_timm_does(folder, released, monkeypatch, capsys):
    path, state = released
    asked = serve(monkeypatch, path.read_bytes())
    model = vmamba.create_model(NAME, pretrained=True, num_classes=7, in_chans=1)
    assert asked == [URL] and model.pretrained_cfg["file"] == str(folder / FILE)
    ours = model.state_dict()
    assert ours["classifier.head.weight"].shape == (7, 768) and not ours["classifier.head.bias"].any()
    assert torch.allclose(ours["patch_embed.0.weight"], state["patch_embed.0.weight"].sum(1, keepdim=True))
    body = [key for key in state if not key.startswith(("classifier.head", "patch_embed.0.weight"))]
    assert all(torch.equal(ours[key], state[key]) for key in body)
    said = capsys.readouterr().err
    assert (
        "fresh head       2 keys" in said and "resized     patch_embed.0.weight [48, 3, 3, 3] -> [48, 1, 3, 3]" in said
    )

    maps = timm.create_model(NAME, pretrained=True, features_only=True, out_indices=(1, 3))
    assert asked == [URL] and len(maps(torch.randn(1, 3, 64, 32))) == 2
    assert torch.equal(dict(maps.named_parameters())["model.layers.3.blocks.1.op.Ds"], state["layers.3.blocks.1.op.Ds"])


def test_a_download_that_breaks_off_leaves_nothing(folder, released, monkeypatch):
    serve(monkeypatch, b"abc", length=9)
    with pytest.raises(CheckpointError, match=rf"it broke off after 3 of 9 bytes\); fetch it by hand.*{FILE}"):
        vmamba.create_model(NAME, pretrained=True)
    assert not list(folder.glob("*")) and not list(folder.glob(".*"))


@pytest.mark.parametrize("what", ["page", "other model", "missing key"])
def test_a_wrong_download_is_told_at_the_first_use(what, folder, released, monkeypatch, tmp_path):
    path, state = released
    if what == "page":
        data, said = b"<html>rate limit</html>", "is a web page"
    else:
        wrong = {key: value for key, value in state.items() if key != "layers.2.blocks.0.op.Ds"}
        if what == "other model":
            wrong = vmamba.create_model(NAME, depths=(1, 1, 1, 1)).state_dict()
        torch.save({"model": wrong}, tmp_path / "wrong.pth")
        data, said = (tmp_path / "wrong.pth").read_bytes(), f"is not the released {NAME}: .*delete it to fetch it again"
    serve(monkeypatch, data)
    with pytest.raises(CheckpointError, match=said):
        vmamba.create_model(NAME, pretrained=True, num_classes=3)
    assert not (folder / "manifest.json").exists()


def test_the_usual_folder_is_torchs(monkeypatch, tmp_path):
    monkeypatch.delenv("VMAMBA_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    assert weights_folder() == tmp_path / "hub" / "vmamba"
    with pytest.raises(CheckpointError, match="no weights of 'x' were released"):
        fetch_pretrained("x")


SMALL = dict(depths=(1, 1), dims=16)


@pytest.mark.parametrize("way", ["file", "state_dict"])
def test_timm_with_a_file_of_ones_own_is_strict_too(way, tmp_path, equal):
    """timm passes over missing keys where the number of classes differs; the loader does not."""
    source = timm.create_model("vanilla_vmamba_tiny", **SMALL)
    state = source.state_dict()

    def create(weights, **more):
        torch.save({"model": weights}, tmp_path / "own.pth")
        overlay = {"file": str(tmp_path / "own.pth")} if way == "file" else {"state_dict": {"model": weights}}
        return timm.create_model(
            "vanilla_vmamba_tiny", pretrained=True, pretrained_cfg_overlay=overlay, **SMALL, **more
        )

    assert equal(create(in_layout(state, "first_release")), state)
    ten = create(in_layout(state, "first_release"), num_classes=10, in_chans=1).state_dict()
    assert ten["classifier.head.weight"].shape == (10, 32) and ten["patch_embed.0.weight"].shape == (16, 1, 4, 4)
    assert torch.equal(ten["layers.1.blocks.0.op.Ds"], state["layers.1.blocks.0.op.Ds"])
    without = {key: value for key, value in state.items() if key != "layers.1.blocks.0.op.Ds"}
    for classes in (1000, 10):
        with pytest.raises(WeightsDoNotFit, match=r"1 missing \(layers.1.blocks.0.op.Ds\)"):
            create(without, num_classes=classes)
    other_head = {**state, "classifier.head.weight": torch.ones(7, 32), "classifier.head.bias": torch.ones(7)}
    if way == "file":
        with pytest.raises(WeightsDoNotFit, match="2 mismatched"):
            create(other_head)
