# VMamba-S[s2l15]: 1607 GFLOPs at 640 x 2560, published mIoU 50.7 (multi-scale 51.2).
_base_ = "_base_/upernet_640x640.py"

model = dict(
    backbone=dict(
        pretrained="vmamba_small_s2l15",
        depths=(2, 2, 15, 2),
        ssm_ratio=2.0,
        drop_path_rate=0.3,
    ),
)
