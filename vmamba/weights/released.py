"""The checkpoints that the authors of VMamba, Vim and FastVim released: file, release, size and score of each.

Source: assets/performance.md and the first README of github.com/MzeroMiko/VMamba; the READMEs of github.com/hustvl/Vim
and github.com/insitro/FastVim. Parameters of classifiers are exact and checked by a test; those of detectors and
segmentors are the table's, in millions. The releases state no digest.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

CLASSIFICATION, DETECTION, SEGMENTATION = "classification", "detection", "segmentation"
PRE_TRAINING = "pre-training"
# Further files of models that have one of their own: other pooling, or weights that came from a masked autoencoder.
FURTHER = "further"
_DOWNLOADS = "https://github.com/MzeroMiko/VMamba/releases/download"


@dataclass(frozen=True)
class Released:
    """A released checkpoint.

    `model` is its network here, for detectors and segmentors the backbone's; `score` is top-1 on ImageNet-1K, box AP on
    COCO or single-scale mIoU on ADE20K, `second` top-5, mask AP or multi-scale mIoU, all in percent; top-1 is on the
    data of `recipe`, for a masked autoencoder after fine-tuning. `parameters` is
    exact where `tensors`, the length of the state_dict, is given. `averaged` tells that the weights are averaged ones;
    `entry` is where they are in the file, "" for the usual place. `source` is the address above the tag's.
    """

    model: str
    tag: str
    file: str
    parameters: int
    score: float
    second: float | None = None
    tensors: int | None = None
    task: str = CLASSIFICATION
    recipe: str = "ImageNet-1K"
    averaged: bool = True
    sha256: str = ""
    entry: str = ""
    source: str = _DOWNLOADS

    @property
    def url(self) -> str:
        """Where the file is: the tag is the release's, with its '#'."""
        return f"{self.source}/{quote(self.tag)}/{self.file}"


def _cls(model: str, tag: str, file: str, parameters: int, tensors: int, top1: float, top5: float | None, **more):
    return Released(model, tag, f"{file}.pth", parameters, top1, top5, tensors, **more)


def _det(model: str, tag: str, file: str, millions: int, box: float, mask: float, recipe: str = "1x") -> Released:
    recipe = f"Mask R-CNN {recipe}"
    return Released(model, tag, f"{file}.pth", millions * 10**6, box, mask, None, DETECTION, recipe, False)


def _seg(model: str, file: str, millions: int, single: float, multi: float, tag: str = "#v2seg") -> Released:
    recipe = "UPerNet 160k, 512x512"
    return Released(model, tag, f"{file}.pth", millions * 10**6, single, multi, None, SEGMENTATION, recipe, False)


def _vim(model: str, size: str, file: str, parameters: int, tensors: int, top1: float, top5: float) -> Released:
    source = f"https://huggingface.co/hustvl/Vim-{size}-midclstok/resolve"
    return Released(model, "main", f"{file}.pth", parameters, top1, top5, tensors, averaged=False, source=source)


def _fast(model: str, file: str, parameters: int, tensors: int, top1: float, **more) -> Released:
    source = "https://github.com/insitro/FastVim/releases/download"
    return Released(model, "v0", f"{file}.ckpt", parameters, top1, None, tensors, source=source, **more)


_EMA: dict = dict(entry="state_dict_ema")
_PRE: dict = dict(task=PRE_TRAINING, recipe="masked autoencoder, then ImageNet-1K", averaged=False)
_FINE: dict = dict(_PRE, task=FURTHER)
_CELLS: dict = dict(recipe="JUMP-CP", averaged=False)
_CELLS_MAX: dict = dict(task=FURTHER, recipe="JUMP-CP, collapse_method max", averaged=False)
_V0T, _V0S, _V0B = "vanilla_vmamba_tiny", "vanilla_vmamba_small", "vanilla_vmamba_base"
_T2, _S2, _B2 = "vmamba_tiny_s2l5", "vmamba_small_s2l15", "vmamba_base_s2l15"
_T1, _S1, _B1 = "vmamba_tiny_s1l8", "vmamba_small_s1l20", "vmamba_base_s1l20"
_COCO, _ADE = "mask_rcnn_vssm_fpn_coco", "upernet_vssm_4xb4-160k_ade20k-512x512"
_V0ADE = "upernet_4xb4-160k_ade20k-512x512_iter"

RELEASED = (
    _cls(_V0T, "#v0cls", "vssmtiny_dp01_ckpt_epoch_292", 22893448, 212, 82.171, 96.032, averaged=False),
    _cls(_V0S, "#v0cls", "vssmsmall_dp03_ckpt_epoch_238", 44417416, 446, 83.461, 96.470),
    _cls(_V0B, "#v0cls", "vssmbase_dp06_ckpt_epoch_241", 76254056, 446, 83.729, 96.624),
    _cls(_T2, "#v2cls", "vssm_tiny_0230_ckpt_epoch_262", 30705832, 222, 82.489, 95.996),
    _cls(_S2, "#v2cls", "vssm_small_0229_ckpt_epoch_222", 50147752, 402, 83.649, 96.594),
    _cls(_B2, "#v2cls", "vssm_base_0229_ckpt_epoch_237", 88557800, 402, 83.879, 96.712),
    _cls(_T1, "#v2cls", "vssm1_tiny_0230s_ckpt_epoch_264", 30249064, 276, 82.6, None),
    _cls(_S1, "#v2cls", "vssm1_small_0229s_ckpt_epoch_240", 49012840, 492, 83.339, 96.426),
    _cls(_B1, "#v2cls", "vssm1_base_0229s_ckpt_epoch_225", 86614504, 492, 83.791, 96.614),
    _cls("vmamba_tiny_0220", "#20240220", "vssmtiny_dp02_ckpt_epoch_258", 32484904, 204, 82.5, None),
    _det(_V0T, "#v0det", "vssmtiny_mask_rcnn_swin_fpn_coco_epoch_12", 42, 46.5, 42.1),
    _det(_V0S, "#v0det", "vssmsmall_mask_rcnn_swin_fpn_coco_epoch_12", 64, 48.2, 43.0),
    _det(_V0B, "#v0det", "vssmbase_mask_rcnn_swin_fpn_coco_epoch_12", 96, 48.6, 43.3),
    _det(_T2, "#v2det", f"{_COCO}_tiny_epoch_12", 50, 47.4, 42.7),
    _det(_S2, "#v2det", f"{_COCO}_small_epoch_11", 70, 48.7, 43.7),
    _det(_B2, "#v2det", f"{_COCO}_base_epoch_11", 108, 49.2, 44.1),
    _det(_B2, "#v2det", f"{_COCO}_base_epoch_12_bs8", 108, 49.2, 43.9, "1x, batch 8"),
    _det(_T1, "#v2det", f"{_COCO}_tiny_s_epoch_12", 50, 47.3, 42.7),
    _det(_V0T, "#v0det", "vssmtiny_mask_rcnn_swin_fpn_coco_ms_3x_epoch_34", 42, 48.5, 43.2, "3x"),
    _det(_V0S, "#v0det", "vssmsmall_mask_rcnn_swin_fpn_coco_ms_3x_epoch_34", 64, 49.7, 44.0, "3x"),
    _det(_T2, "#v2det", f"{_COCO}_tiny_ms_3x_epoch_36", 50, 48.9, 43.7, "3x"),
    _det(_S2, "#v2det", f"{_COCO}_small_ms_3x_epoch_32", 70, 49.9, 44.2, "3x"),
    _det(_T1, "#v2det", f"{_COCO}_tiny_ms_3x_s_epoch_31", 50, 48.8, 43.7, "3x"),
    _seg(_V0T, f"vssmtiny_{_V0ADE}_160000", 55, 47.3, 48.3, "#v0seg"),
    _seg(_V0S, f"vssmsmall_{_V0ADE}_160000", 76, 49.5, 50.5, "#v0seg"),
    _seg(_V0B, f"vssmbase_{_V0ADE}_128000", 110, 50.0, 51.3, "#v0seg"),
    _seg(_T2, f"{_ADE}_tiny_iter_160000", 62, 48.3, 48.6),
    _seg(_S2, f"{_ADE}_small_iter_144000", 82, 50.6, 51.2),
    _seg(_B2, f"{_ADE}_base_iter_160000", 122, 51.0, 51.6),
    _seg(_T1, f"{_ADE}_tiny_s_iter_160000", 62, 47.9, 48.8),
    _vim("vim_tiny", "tiny", "vim_t_midclstok_76p1acc", 7148008, 415, 76.1, 93.0),
    _vim("vim_tiny_stride8", "tiny", "vim_t_midclstok_ft_78p3acc", 7250344, 415, 78.3, 94.2),
    _vim("vim_small", "small", "vim_s_midclstok_80p5acc", 25796584, 415, 80.5, 95.1),
    _vim("vim_small_stride8", "small", "vim_s_midclstok_ft_81p6acc", 26001256, 415, 81.6, 95.4),
    _vim("vim_base", "base", "vim_b_midclstok_81p9acc", 97598440, 415, 81.9, 95.8),
    _fast("fastvim_tiny", "FastVim_tiny", 7166056, 462, 75.4, **_EMA),
    _fast("fastvim_small", "FastVim_small", 25832680, 462, 81.1, **_EMA),
    _fast("fastvim_base", "FastVim_base", 97670632, 462, 82.6, **_EMA),
    _fast("vim_ln_base", "Vim_base_withlayernorm", 97672168, 463, 82.6, **_EMA),
    _fast("fastvim_base", "finetune_FastVim_base", 97670632, 462, 83.0, **_FINE),
    _fast("vim_ln_base", "finetune_Vim_base", 97672168, 463, 83.3, **_FINE),
    _fast("fastmaskvim_base", "FastMaskVim_base", 101428992, 505, 83.0, **_PRE),
    _fast("vim_mae_base", "pretrain_Vim_base", 101431040, 506, 83.3, **_PRE),
    _fast("fastchannelvim_small_16", "FastChannelVim_small", 25316129, 463, 73.6, **_CELLS),
    _fast("fastchannelvim_small_8", "FastChannelVim_small_ps8", 25468193, 463, 83.1, **_CELLS),
    _fast("fastchannelvim_small_16", "FastChannelVim_small_maxpool", 25316129, 463, 72.9, **_CELLS_MAX),
    _fast("fastchannelvim_small_8", "FastChannelVim_small_maxpool_ps8", 25468193, 463, 85.0, **_CELLS_MAX),
    _fast("channelvim_small_16", "ChannelVim_small", 25316513, 464, 73.5, **_CELLS),
    _fast("channelvim_small_8", "ChannelVim_small_ps8", 25468577, 464, 83.0, **_CELLS),
)


def released_classifier(model: str) -> Released | None:
    """Return the checkpoint that was released for a model of this package by itself, None where there is none."""
    tasks = (CLASSIFICATION, PRE_TRAINING)
    return next((entry for entry in RELEASED if entry.model == model and entry.task in tasks), None)


def released_file(name: str) -> Released | None:
    """Return the release of a file name, None where it is none."""
    return next((entry for entry in RELEASED if entry.file == name), None)
