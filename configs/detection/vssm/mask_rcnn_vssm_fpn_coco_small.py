# Vanilla-VMamba-S, 12 epochs: published box AP 48.2, mask AP 43.0
_base_ = ["../_base_/mask_rcnn_1x.py", "../../backbones/vanilla_vmamba_small.py"]
model = dict(backbone=dict(_delete_=True, drop_path_rate=0.2, **_base_.backbone))
