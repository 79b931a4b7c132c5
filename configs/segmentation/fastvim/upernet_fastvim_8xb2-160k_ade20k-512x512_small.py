# FastVim-S, crops of 512: published mIoU 44.9
_base_ = "../_base_/upernet_fastvim.py"
model = dict(
    backbone=dict(pretrained="fastvim_small", embed_dim=384),
    decode_head=dict(in_channels=[384] * 4),
    auxiliary_head=dict(in_channels=384),
)
