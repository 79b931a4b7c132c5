# VMamba-T[s2l5]: 62.4 M parameters, 948 GFLOPs at 512 x 2048, published mIoU 48.3 (multi-scale 48.6).
_base_ = "_base_/upernet_512x512.py"

model = dict(
    backbone=dict(
        pretrained="vmamba_tiny_s2l5",
        depths=(2, 2, 5, 2),
        ssm_ratio=2.0,
    ),
)
