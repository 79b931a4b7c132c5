# Vim-T, crops of 512: no published figures
_base_ = "../_base_/upernet_vim.py"
model = dict(
    backbone=dict(pretrained="vim_tiny", embed_dim=192, residual_in_fp32=False),
    decode_head=dict(in_channels=[192] * 4, channels=192),
    auxiliary_head=dict(in_channels=192),
)
optim_wrapper = dict(optimizer=dict(lr=2e-4, weight_decay=0.1))
