# Vanilla-VMamba-T, 12 epochs: published box AP 46.5, mask AP 42.1
_base_ = ["../_base_/mask_rcnn_1x.py", "../../backbones/vanilla_vmamba_tiny.py"]
model = dict(backbone=dict(_delete_=True, drop_path_rate=0.2, **_base_.backbone))
