# VMamba-T[s1l8], 12 epochs: published box AP 47.3, mask AP 42.7
_base_ = ["../_base_/mask_rcnn_1x.py", "../../backbones/vmamba_tiny_s1l8.py"]
model = dict(backbone=dict(_delete_=True, drop_path_rate=0.2, **_base_.backbone))
