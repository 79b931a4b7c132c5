# VMamba-B[s2l15], crops of 512: published mIoU 51.0, multi-scale 51.6
_base_ = ["../_base_/upernet_512x512.py", "../../backbones/vmamba_base_s2l15.py"]
model = dict(
    backbone=dict(_delete_=True, drop_path_rate=0.6, **_base_.backbone),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
