# VMamba-T[s1l8], 36 epochs, multi-scale: published box AP 48.8, mask AP 43.7
_base_ = ["../_base_/mask_rcnn_ms_3x.py", "../../backbones/vmamba_tiny_s1l8.py"]
model = dict(backbone=dict(_delete_=True, drop_path_rate=0.2, **_base_.backbone))
