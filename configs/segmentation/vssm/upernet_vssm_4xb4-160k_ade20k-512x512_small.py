# Vanilla-VMamba-S, crops of 512: published mIoU 49.5, multi-scale 50.5
_base_ = ["../_base_/upernet_512x512.py", "../../backbones/vanilla_vmamba_small.py"]
model = dict(backbone=dict(_delete_=True, drop_path_rate=0.3, **_base_.backbone))
