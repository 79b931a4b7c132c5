# FastVim-T, crops of 512: published mIoU 41.8
_base_ = "../_base_/upernet_fastvim.py"
model = dict(
    backbone=dict(pretrained="fastvim_tiny", embed_dim=192),
    decode_head=dict(in_channels=[192] * 4),
    auxiliary_head=dict(in_channels=192),
)
