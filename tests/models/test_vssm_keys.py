"""Every name that published checkpoints have used loads into the present models, alone and inside a detector."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vmamba.errors import UserError
from vmamba.models import VSSM, Backbone, rename_published_keys, resize_pos_embed
from vmamba.models.vssm_variants import checkpoint_filter_fn

VANILLA = dict(depths=(1, 2), dims=16, num_classes=5, forward_type="v0", mlp_ratio=0.0, ssm_d_state=4)
VANILLA |= dict(downsample_version="v1", patchembed_version="v1")
CONVOLUTIONAL = dict(VANILLA, downsample_version="v3", patchembed_version="v2", mlp_ratio=2.0)


def first_release(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names of the first release."""
    pairs = (
        ("patch_embed.0.", "patch_embed.proj."),
        ("patch_embed.2.", "patch_embed.norm."),
        ("classifier.", ""),
        (".blocks.0.norm.", ".blocks.0.ln_1."),
        (".blocks.1.norm.", ".blocks.1.ln_1."),
        (".op.", ".self_attention."),
    )
    for new, old in pairs:
        state = {key.replace(new, old): value for key, value in state.items()}
    return state


def single_file(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names and shapes of the single-file version: projections as layers, patch merging as a sequence."""
    result = {}
    for key, value in state.items():
        if key.endswith((".x_proj_weight", ".dt_projs_weight")):
            key, value = key.replace("_weight", ".weight"), value.flatten(0, 1)
        key = key.replace("downsample.norm.", "downsample.1.").replace("downsample.reduction.", "downsample.2.")
        result[key] = value
    return result


def as_convolutions(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Linear weights as 1x1 convolutions."""
    linear = ("in_proj.weight", "out_proj.weight", "fc1.weight", "fc2.weight", "head.weight")
    return {k: v[:, :, None, None] if k.endswith(linear) else v for k, v in state.items()}


SPELLINGS = {
    "first_release": first_release,
    "single_file": single_file,
    "convolutions": as_convolutions,
    "all_at_once": lambda state: as_convolutions(first_release(single_file(state))),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("kwargs", [VANILLA, CONVOLUTIONAL], ids=["vanilla", "convolutional"])
@pytest.mark.parametrize("norm", ["ln", "ln2d"])
def test_every_spelling_loads_strictly(spelling: str, kwargs: dict, norm: str) -> None:
    if kwargs is CONVOLUTIONAL and "release" in spelling:
        pytest.skip("the first release had one stem")
    source, target = VSSM(**kwargs, norm_layer=norm), VSSM(**kwargs, norm_layer=norm)
    wanted = source.state_dict()
    old = SPELLINGS[spelling](wanted)
    if kwargs is CONVOLUTIONAL and spelling == "all_at_once":
        old = as_convolutions(single_file(wanted))
    before = {k: v.shape for k, v in old.items()}
    renamed, changed = rename_published_keys(old)
    assert renamed.keys() == wanted.keys() and all(torch.equal(renamed[k], wanted[k]) for k in wanted)
    assert set(changed) == {k for k in old if k not in wanted or old[k].shape != wanted[k].shape}
    assert all(renamed[new].numel() == old[key].numel() for key, new in changed.items())
    target.load_state_dict(old)
    assert all(torch.equal(v, wanted[k]) for k, v in target.state_dict().items())
    assert {k: v.shape for k, v in old.items()} == before


def test_present_names_pass_unchanged() -> None:
    for kwargs in (VANILLA, CONVOLUTIONAL):
        state = VSSM(**kwargs).state_dict()
        renamed, changed = rename_published_keys(state)
        assert not changed and all(renamed[k] is state[k] for k in state)


def test_inside_a_detector_only_its_own_prefix_is_renamed() -> None:
    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = Backbone((0, 1), **{k: v for k, v in VANILLA.items() if k != "num_classes"})
            self.head = nn.Linear(3, 2)
            self.norm = nn.LayerNorm(3)

    source, target = Detector(), Detector()
    wanted = source.state_dict()
    backbone = {k.removeprefix("backbone."): v for k, v in wanted.items() if k.startswith("backbone.")}
    old = {f"backbone.{k}": v for k, v in first_release(single_file(backbone)).items()}
    old |= {k: v for k, v in wanted.items() if not k.startswith("backbone.")}
    target.load_state_dict(old)
    assert all(torch.equal(v, wanted[k]) for k, v in target.state_dict().items())
    renamed, changed = rename_published_keys(old, "backbone.")
    assert renamed.keys() == wanted.keys() and not {"head.weight", "norm.weight"} & changed.keys()


def test_two_keys_for_one_weight_are_refused() -> None:
    state = VSSM(**VANILLA).state_dict()
    state["norm.weight"] = state["classifier.norm.weight"]
    with pytest.raises(UserError, match=r"'norm.weight' .* 'classifier.norm.weight'"):
        rename_published_keys(state)


def test_missing_and_unexpected_keys_are_still_errors() -> None:
    model = VSSM(**VANILLA)
    state = first_release(model.state_dict())
    state.pop("layers.1.blocks.1.self_attention.Ds")
    state["layers.0.blocks.0.self_attention.Dz"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match=r"Missing key.*layers.1.blocks.1.op.Ds[\s\S]*Unexpected key.*op.Dz"):
        model.load_state_dict(state)
    other = VSSM(**dict(VANILLA, posembed=True))
    with pytest.raises(RuntimeError, match="Unexpected key.*pos_embed"):
        model.load_state_dict(other.state_dict())
    result = model.load_state_dict(other.state_dict(), strict=False)
    assert result.unexpected_keys == ["pos_embed"] and not result.missing_keys


def test_position_embeddings_are_resized_when_loaded() -> None:
    small, large = VSSM(**VANILLA, posembed=True, imgsize=32), VSSM(**VANILLA, posembed=True, imgsize=(64, 48))
    wanted = F.interpolate(small.pos_embed.detach(), size=(16, 12), mode="bicubic", align_corners=False)
    large.load_state_dict(small.state_dict())
    assert torch.equal(large.pos_embed, wanted)
    assert torch.equal(checkpoint_filter_fn({"model": small.state_dict()}, large)["pos_embed"], wanted)
    assert resize_pos_embed(small.pos_embed.bfloat16(), (5, 7)).dtype == torch.bfloat16
    with pytest.raises(UserError, match=r"\[1, C, h, w\], got \(3, 4\)"):
        resize_pos_embed(torch.zeros(3, 4), (2, 2))


def test_timm_loads_a_file_with_old_names(tmp_path: Path) -> None:
    import timm

    arguments = dict(depths=(1, 1), dims=16, num_classes=1000)
    source = timm.create_model("vanilla_vmamba_tiny", **arguments)
    path = tmp_path / "old.pth"
    torch.save({"model": first_release(source.state_dict())}, path)
    overlay = dict(file=str(path))
    model = timm.create_model("vanilla_vmamba_tiny", pretrained=True, pretrained_cfg_overlay=overlay, **arguments)
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in model.state_dict().items())
    maps = timm.create_model(
        "vanilla_vmamba_tiny", pretrained=True, pretrained_cfg_overlay=overlay, features_only=True, **arguments
    )
    x = torch.randn(1, 3, 32, 32)
    source.eval()
    maps.eval()
    expected = source.forward_intermediates(x, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(maps(x), expected))


BACKBONE = {k: v for k, v in VANILLA.items() if k != "num_classes"}


def test_backbone_takes_a_classifier_checkpoint(tmp_path: Path) -> None:
    source = VSSM(**VANILLA)
    path = tmp_path / "classifier.pth"
    torch.save({"model": first_release(source.state_dict())}, path)
    backbone = Backbone((0, 1), pretrained=str(path), **BACKBONE)
    kept = {k: v for k, v in source.state_dict().items() if not k.startswith("classifier.")}
    assert all(torch.equal(backbone.state_dict()[k], v) for k, v in kept.items())
    assert (backbone.outnorm1.weight == 1).all() and not backbone.outnorm1.bias.any()


@pytest.mark.parametrize("damage", ["missing", "unexpected", "shape"])
def test_backbone_refuses_weights_that_do_not_fit(damage: str, tmp_path: Path) -> None:
    state = VSSM(**VANILLA).state_dict()
    key = "layers.0.blocks.0.op.Ds"
    if damage == "missing":
        state.pop(key)
    elif damage == "shape":
        state[key] = state[key][:-1]
    else:
        key = "layers.0.blocks.0.op.Dz"
        state[key] = torch.zeros(1)
    path = tmp_path / "damaged.pth"
    torch.save({"model": state}, path)
    with pytest.raises(ValueError, match=key):
        Backbone((0, 1), pretrained=str(path), **BACKBONE)


def test_backbone_does_not_go_on_without_its_file(tmp_path: Path) -> None:
    for path in (str(tmp_path / "absent.pth"), ""):
        with pytest.raises((ValueError, FileNotFoundError)):
            Backbone((0, 1), pretrained=path, **BACKBONE)
