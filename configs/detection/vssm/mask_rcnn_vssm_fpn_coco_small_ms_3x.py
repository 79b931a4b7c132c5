# Vanilla-VMamba-S, 36 epochs, multi-scale: published box AP 49.7, mask AP 44.0
_base_ = ["../_base_/mask_rcnn_ms_3x.py", "../../backbones/vanilla_vmamba_small.py"]
model = dict(backbone=dict(_delete_=True, drop_path_rate=0.2, **_base_.backbone))
