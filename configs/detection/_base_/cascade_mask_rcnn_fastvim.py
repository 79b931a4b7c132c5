# Cascade Mask R-CNN as FastVim has it: boxes of each class, full precision.
_base_ = "cascade_mask_rcnn_lsj.py"

model = dict(
    backbone=dict(
        type="MM_FastVim",
        out_indices=(23,),
        rms_norm=False,
        fused_add_norm=False,
        drop_path_rate=0.1,
        load_ema=True,
    ),
)
# As published, blocks did not decay, for want of their name: legacy=True repeats that, of a network of 12.
optim_wrapper = dict(
    optimizer=dict(weight_decay=0.05),
    paramwise_cfg=dict(
        layer_decay_rate=0.7,
        legacy=False,
        num_layers=12,
        flat_decay_mult=0.0,
        custom_keys=dict(pos_embed=dict(decay_mult=0.0)),
    ),
    clip_grad=dict(max_norm=35, norm_type=2),
)
