# Vanilla-VMamba-T, crops of 512: published mIoU 47.3, multi-scale 48.3
_base_ = ["../_base_/upernet_512x512.py", "../../backbones/vanilla_vmamba_tiny.py"]
model = dict(backbone=dict(_delete_=True, drop_path_rate=0.3, **_base_.backbone))
