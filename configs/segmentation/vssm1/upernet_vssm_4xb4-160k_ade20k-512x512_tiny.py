# VMamba-T[s1l8], crops of 512: published mIoU 47.9, multi-scale 48.8
_base_ = ["../_base_/upernet_512x512.py", "../../backbones/vmamba_tiny_s1l8.py"]
model = dict(backbone=dict(_delete_=True, drop_path_rate=0.2, **_base_.backbone))
