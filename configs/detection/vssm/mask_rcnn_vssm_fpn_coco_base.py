# Vanilla-VMamba-B, 12 epochs: published box AP 48.6, mask AP 43.3
_base_ = ["../_base_/mask_rcnn_1x.py", "../../backbones/vanilla_vmamba_base.py"]
model = dict(
    backbone=dict(_delete_=True, drop_path_rate=0.2, **_base_.backbone),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
train_dataloader = dict(batch_size=1)  # on 16 GPUs
