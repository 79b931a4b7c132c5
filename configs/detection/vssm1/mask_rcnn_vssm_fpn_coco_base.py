# VMamba-B[s2l15], 12 epochs: published box AP 49.2, mask AP 44.1
_base_ = ["../_base_/mask_rcnn_1x.py", "../../backbones/vmamba_base_s2l15.py"]
model = dict(
    backbone=dict(_delete_=True, drop_path_rate=0.6, **_base_.backbone),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
