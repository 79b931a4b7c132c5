# VMamba-S[s2l15]: 81.8 M parameters, 1028 GFLOPs at 512 x 2048, published mIoU 50.6 (multi-scale 51.2).
_base_ = "_base_/upernet_512x512.py"

model = dict(
    backbone=dict(
        pretrained="vmamba_small_s2l15",
        depths=(2, 2, 15, 2),
        ssm_ratio=2.0,
        drop_path_rate=0.3,
    ),
)
