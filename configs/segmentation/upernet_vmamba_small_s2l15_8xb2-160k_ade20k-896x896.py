# VMamba-S[s2l15], crops of 896; no figures were published.
_base_ = "_base_/upernet_896x896.py"

model = dict(
    backbone=dict(
        pretrained="vmamba_small_s2l15",
        depths=(2, 2, 15, 2),
        ssm_ratio=2.0,
        drop_path_rate=0.3,
    ),
)
