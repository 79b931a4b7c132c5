# FastVim-B, crops of 512: published mIoU 47.8
_base_ = "../_base_/upernet_fastvim.py"
model = dict(
    backbone=dict(pretrained="fastvim_base", embed_dim=768, drop_path_rate=0.4),
    decode_head=dict(in_channels=[768] * 4),
    auxiliary_head=dict(in_channels=768),
)
