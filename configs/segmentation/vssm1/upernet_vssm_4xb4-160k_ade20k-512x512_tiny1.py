# VMamba-T[s2l5], crops of 512: published mIoU 48.3, multi-scale 48.6
_base_ = ["../_base_/upernet_512x512.py", "../../backbones/vmamba_tiny_s2l5.py"]
model = dict(backbone=dict(_delete_=True, drop_path_rate=0.2, **_base_.backbone))
