"""The mixing matrices make the scan's own output, for every mixer, scan order and grid; selections; roll-out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from analyze import attention, scans
from analyze.attention_maps import normalised, parse_map, rolled_out, selected
from analyze.recording import record
from analyze.scans import MODES, mixed, mixing_rows, rows_over_tokens
from vmamba.models import SS2D, FastVim, ForwardType, SS2DMamba2, Vim
from vmamba.models.vim_mixer import VimMixer
from vmamba.models.vssm import VSSM
from vmamba_kernels import list_scan_orders, register_scan_order
from vmamba_kernels.cross_scan import orders as order_registry

GRID = (3, 5)


@pytest.fixture
def snake(monkeypatch) -> str:
    """A scan order of the user's: rows, every other one backwards; and the same from the end."""

    def walk(height: int, width: int) -> torch.Tensor:
        rows = torch.arange(height * width).view(height, width)
        rows[1::2] = rows[1::2].flip(-1)
        return torch.stack([rows.flatten(), rows.flatten().flip(0)])

    monkeypatch.setattr(order_registry, "_orders", dict(order_registry._orders))
    register_scan_order("snake", walk)
    return "snake"


def mixer(order: str, **options) -> SS2D:
    """A mixer whose output is the scan's own: no gate, no norm, an output projection that changes nothing."""
    torch.manual_seed(0)
    kind = SS2DMamba2 if options.get("ssd") else SS2D
    forward_type = ForwardType(scan_order=order, gate=False, out_norm="none", **options)
    found = kind(8, 3, 1.0, dt_rank=2, initialize="v1", forward_type=forward_type).eval()
    nn.init.eye_(found.out_proj.weight)
    nn.init.normal_(found.Ds)
    return found


def scanned(found: SS2D) -> tuple[dict, torch.Tensor]:
    x = torch.randn(1, *GRID, 8)
    with torch.no_grad():
        return record(found, x), found(x)[0].flatten(0, 1).T.double()


def assert_equal(matrix: torch.Tensor, output: torch.Tensor) -> None:
    assert matrix.shape == output.shape and float(output.abs().max()) > 0.05
    assert float((matrix - output).abs().max()) < 1e-5 * max(1.0, float(output.abs().max()))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("order", [*sorted(set(list_scan_orders()) - {"cascade2d"}), "snake"])
def test_the_matrix_makes_the_output_of_every_scan_order(order, fused, snake):
    """All but the cascade, which is two scans in turn."""
    found, output = scanned(mixer(order, fused=fused))
    (scan,) = found.values()
    assert scan.grid == GRID and scan.layer == ""
    assert_equal(mixed(scan), output)


@pytest.mark.parametrize("flip_back", [True, False])
def test_the_two_halves_of_a_cascade(flip_back):
    """The second half's output is the mixer's; the first half's, normed, is the second half's input."""
    found, output = scanned(mixer("cascade2d", flip_back=flip_back))
    rows, columns = found[".rows"], found[".columns"]
    assert_equal(mixed(columns), output)
    normed = nn.functional.layer_norm(mixed(rows).T, (8,)).T  # [I, T]
    read = columns.reads[:, 0, :, 0]  # [lines, steps]
    assert torch.allclose(columns.u[:, 0, :, 0], normed[:, read].permute(1, 0, 2), atol=1e-4)


@pytest.mark.parametrize("order", ["cross2d", "rot90", "snake"])
def test_mamba2(order, snake):
    found, output = scanned(mixer(order, ssd=True))
    assert_equal(mixed(next(iter(found.values()))), output)


TOKENS = dict(img_size=(24, 40), patch_size=8, depth=2, embed_dim=16, d_state=4, num_classes=3, rms_norm=False)
VIMS = {
    "middle": (Vim, {}),
    "head": (Vim, dict(use_middle_cls_token=False)),
    "double": (Vim, dict(use_double_cls_token=True)),
    "v1": (Vim, dict(bimamba_type="v1")),
    "one direction": (Vim, dict(bimamba_type="none", if_cls_token=False, final_pool_type="mean")),
    "fast": (FastVim, {}),
    "fast, columns": (FastVim, dict(scanpath_type="colwise")),
    "fast, max": (FastVim, dict(collapse_method="max", scaling_factor=0.7)),
}


@pytest.mark.parametrize("kind", VIMS)
def test_vim_and_fastvim(kind):
    """The input of the norm before the gate is the scan; its places are those of the mixer's own sequence."""
    torch.manual_seed(0)
    design, options = VIMS[kind]
    model = design(**TOKENS, **options).eval()
    outputs = {}
    for name, module in model.named_modules():
        if isinstance(module, VimMixer):
            nn.init.normal_(module.D)
            module.layernorm.register_forward_hook(lambda m, a, y, n=name: outputs.__setitem__(n, a[0]))
    found = record(model, torch.randn(1, 3, 24, 40))
    assert list(found) == list(outputs) == ["layers.0.mixer", "layers.1.mixer"]
    for number, (name, scan) in enumerate(found.items()):
        assert scan.grid == GRID and scan.length == 15 + scan.classes
        y = outputs[name][0].double()  # [L, E], in the order of the mixer's tokens
        turned = design is FastVim and (number == 1) != ("columns" in kind)
        numbers = torch.arange(15).view(GRID)
        numbers = (numbers.T if turned else numbers).flatten()
        places = {"middle": (7,), "v1": (7,), "head": (0,), "double": (0, 16)}.get(kind, ())
        for extra, place in enumerate(places):
            numbers = torch.cat([numbers[:place], torch.tensor([15 + extra]), numbers[place:]])
        assert scan.exact == ("max" not in kind)
        assert_equal(mixed(scan)[:, numbers], y.T)


@pytest.mark.parametrize("kind", ["v2", "none"])
def test_the_fused_mixer_has_the_scan_of_its_plain_operators(kind):
    torch.manual_seed(0)
    model = Vim(**TOKENS, bimamba_type=kind).eval()
    x = torch.randn(1, 3, 24, 40)
    fused = record(model, x)["layers.1.mixer"]
    for layer in model.layers:
        layer.mixer.layernorm.register_forward_hook(lambda *_: None)  # nothing stands for a layer with a hook
    plain = record(model, x)["layers.1.mixer"]
    for name in ("u", "delta", "A", "B", "C", "D", "reads", "writes"):
        assert torch.allclose(getattr(fused, name), getattr(plain, name), atol=1e-4), name
    assert fused.scale == plain.scale


def test_pairs_of_blocks_see_the_tokens_from_both_ends():
    torch.manual_seed(0)
    model = Vim(**TOKENS, if_bidirectional=True, bimamba_type="none").eval()
    first, second = record(model, torch.randn(1, 3, 24, 40)).values()
    assert torch.equal(first.reads[0, 0, :, 0].flip(0), second.reads[0, 0, :, 0])


@pytest.fixture(scope="module")
def scan():
    torch.manual_seed(0)
    return scanned(mixer("cross2d"))[0][""]


def test_the_modes(scan, monkeypatch):
    """Each against a loop over its formula, and with any part of the channels in memory at once."""
    every = torch.arange(15)
    delta, A = scan.delta[0, 1], scan.A[1]
    B, C, s = scan.B[0, 1], scan.C[0, 1], delta.cumsum(-1)
    for mode in MODES:
        wanted = torch.zeros(15, 15, dtype=torch.float64)
        for i in range(15):
            for j in range(i + 1):
                decay = torch.exp(A * (s[:, i] - s[:, j])[:, None]) if "w" in mode else torch.ones_like(A)
                product = C[:, i] * B[:, j] if mode != "ww" else torch.ones(3, dtype=torch.float64)
                value = (decay * product).sum(1) * (delta[:, j] if "dt" in mode else 1.0)
                wanted[i, j] = value.mean()
        found = mixing_rows(scan, 0, 1, every, mode)
        assert torch.allclose(found, wanted, atol=1e-12), mode
        monkeypatch.setattr(scans, "BUDGET", 1)
        assert torch.allclose(mixing_rows(scan, 0, 1, every[4:7], mode), wanted[4:7], atol=1e-12)
        monkeypatch.undo()
    with pytest.raises(ValueError, match="CwBdtw"):
        mixing_rows(scan, 0, 0, every, "wB")


def test_far_from_the_diagonal_nothing_is_lost(scan):
    """Where exp(A s_i) and exp(A s_j) are both 0, their ratio is not."""
    import dataclasses

    far = dataclasses.replace(scan, A=torch.full_like(scan.A, -1e4))
    row = mixing_rows(far, 0, 0, torch.tensor([14]))
    assert float(row[0, 14].abs()) > 0 and bool(row.isfinite().all())


def test_the_selections(scan):
    token = torch.tensor([7])
    rows = [rows_over_tokens(scan, k, token) for k in range(4)]
    assert torch.allclose(selected(scan, token, parse_map("all_CwBdtw")), sum(rows))
    assert torch.equal(selected(scan, token, parse_map("a2_CwBdtw")), rows[2])
    mean = torch.stack([normalised(row, "absnorm") for row in rows]).mean(0)
    assert torch.allclose(selected(scan, token, parse_map("nall_absnorm_CwBdtw")), mean)
    # Columns: token 7 is (1, 2), step 2 * 3 + 1 of that sequence; its row over steps, by the order, is a1.
    assert bool((rows[1] != 0).any()) and not bool(rows[1][0, [3, 4, 8, 9, 13, 14, 12]].any())
    own = selected(scan, torch.tensor([7]), parse_map("ao1_CwBdtw"))
    order = scan.reads[0, 1, :, 0]
    assert int(order[7]) == 7 and torch.allclose(rows[1][:, order], own)
    low = normalised(torch.tensor([[-2.0, 0.0, 6.0]]), "norm")
    assert low.tolist() == [[0.0, 0.25, 1.0]]
    assert normalised(torch.tensor([[-2.0, 0.0, 1.0]]), "absnorm").tolist() == [[1.0, 0.0, 0.5]]


def test_a_roll_out_is_a_product_of_rows_that_sum_to_one(monkeypatch):
    torch.manual_seed(0)
    model = VSSM(depths=(3,), dims=8, num_classes=0, ssm_init="v1").eval()
    found = list(record(model, torch.randn(1, 3, 12, 20)).values())
    every = torch.arange(15)
    rolled = rolled_out(found, every)
    assert torch.allclose(rolled.sum(1), torch.ones(15, dtype=torch.float64))
    wanted = torch.eye(15, dtype=torch.float64)
    for one in found:
        matrix = 0.5 * (sum(rows_over_tokens(one, k, every) for k in range(4)).abs() + torch.eye(15))
        wanted = (matrix / matrix.sum(1, keepdim=True)) @ wanted
    assert torch.allclose(rolled, wanted)
    monkeypatch.setattr("analyze.attention_maps.BUDGET", 1)
    assert torch.allclose(rolled_out(found, every[3:5]), wanted[3:5])


VIM = "MODEL: {TYPE: timm, NAME: vim_tiny, NUM_CLASSES: 3, TIMM: {depth: 2, embed_dim: 16, d_state: 4}}"


def test_the_command(tmp_path, capsys, small_config):
    clicks = tmp_path / "clicks.json"
    clicks.write_text('[[0, 0.5, 0.25], ["coffee", 0, 1]]')
    argv = ["--model", str(small_config), "--size", "32x48", "--clicks", str(clicks), "--out", str(tmp_path)]
    argv += ["--maps", "a0_absnorm_CwBdtw", "ao3_CB", "nall_norm_CwBw", "rollout"]
    assert attention.main(argv) == 0
    about = json.loads((tmp_path / "attention.json").read_text())
    assert "layers.0.blocks.0.op" in about["method"] and about["method"] in capsys.readouterr().out
    arrays = np.load(tmp_path / "attention.npz")
    assert len(arrays) == 8 and {arrays[name].shape for name in arrays} == {(8, 12)}
    assert {name.split("/")[0] for name in arrays} == {"astronaut", "coffee"}
    assert arrays["astronaut/0.5,0.25/a0_absnorm_CwBdtw"][4:, 4:].max() == 0  # what comes after the query
    assert np.isclose(arrays["coffee/0,1/rollout"].sum(), 1)
    assert (tmp_path / "attention.png").stat().st_size > 5000


def test_the_class_token_and_the_list_of_layers(tmp_path, capsys):
    (tmp_path / "vim.yaml").write_text(VIM)
    argv = ["--model", str(tmp_path / "vim.yaml"), "--size", "32x48", "--count", "1", "--out", str(tmp_path)]
    assert attention.main([*argv, "--list-layers"]) == 0
    assert "layers.1.mixer  2x3 tokens, 2 sequences" in capsys.readouterr().out
    assert attention.main([*argv, "--query", "class", "--maps", "all_CwBdtw"]) == 0
    arrays = np.load(tmp_path / "attention.npz")
    assert arrays["astronaut/class/all_CwBdtw"].shape == (2, 3)


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--maps", "a0_CwBdt"], "Did you mean"),
        (["--query", "2,0"], "--query 2,0: give Y,X"),
        (["--query", "class"], "this model has no class token"),
        (["--maps", "a7_CB"], "this scan has the sequences 0 to 3"),
        (["--layer", "layers.0.blocks.0.pp"], "Did you mean 'layers.0.blocks.0.op'"),
        (["--clicks", "none.json"], "--clicks none.json cannot be read"),
        (["--clicks", "clicks.json"], "there is no image 'cofee'. Did you mean 'coffee'?"),
        (["--images", "."], "no image file lies in this folder"),
    ],
)
def test_bad_words(tmp_path, monkeypatch, capsys, small_config, argv, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clicks.json").write_text('[["cofee", 0, 1]]')
    assert attention.main(["--model", str(small_config), *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and words in error


def test_a_model_without_scans(tmp_path, capsys):
    assert attention.main(["--model", "test_resnet", "--count", "1", "--out", str(tmp_path)]) == 2
    assert "has no scan whose matrix could be drawn" in capsys.readouterr().err
