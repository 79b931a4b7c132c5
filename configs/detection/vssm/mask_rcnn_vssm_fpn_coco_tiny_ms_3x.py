# Vanilla-VMamba-T, 36 epochs, multi-scale: published box AP 48.5, mask AP 43.2
_base_ = ["../_base_/mask_rcnn_ms_3x.py", "../../backbones/vanilla_vmamba_tiny.py"]
model = dict(backbone=dict(_delete_=True, drop_path_rate=0.2, **_base_.backbone))
