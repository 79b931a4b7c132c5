# VMamba-B[s2l15]: 122.1 M parameters, 1170 GFLOPs at 512 x 2048, published mIoU 51.0 (multi-scale 51.6).
_base_ = "_base_/upernet_512x512.py"

model = dict(
    backbone=dict(
        pretrained="vmamba_base_s2l15",
        dims=128,
        depths=(2, 2, 15, 2),
        ssm_ratio=2.0,
        drop_path_rate=0.6,
    ),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
