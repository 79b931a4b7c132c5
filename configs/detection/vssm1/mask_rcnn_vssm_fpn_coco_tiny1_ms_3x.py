# VMamba-T[s2l5], 36 epochs, multi-scale: published box AP 48.9, mask AP 43.7
_base_ = ["../_base_/mask_rcnn_ms_3x.py", "../../backbones/vmamba_tiny_s2l5.py"]
model = dict(backbone=dict(_delete_=True, drop_path_rate=0.2, **_base_.backbone))
