# Vim-S, crops of 512: no published figures
_base_ = "../_base_/upernet_vim.py"
model = dict(
    backbone=dict(
        pretrained="vim_small",
        embed_dim=384,
        if_rope=True,
        if_rope_residual=True,
        use_residual_as_feature=True,
        last_layer_process="add",
    ),
    decode_head=dict(in_channels=[384] * 4, channels=384),
    auxiliary_head=dict(in_channels=384),
)
optim_wrapper = dict(paramwise_cfg=dict(layer_decay_rate=0.95))
