# Vanilla-VMamba-B, crops of 512: published mIoU 50.0, multi-scale 51.3
_base_ = ["../_base_/upernet_512x512.py", "../../backbones/vanilla_vmamba_base.py"]
model = dict(
    backbone=dict(_delete_=True, drop_path_rate=0.3, **_base_.backbone),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
