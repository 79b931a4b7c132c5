# FastVim-B, 100 epochs: published box AP 50.0
_base_ = "../_base_/cascade_mask_rcnn_fastvim.py"
model = dict(
    backbone=dict(pretrained="fastvim_base", embed_dim=768, drop_path_rate=0.4),
    neck=dict(backbone_channel=768, in_channels=[192, 384, 768, 768]),
)
