# Cascade Mask R-CNN as Vim has it: boxes alike for all classes, mixed precision.
_base_ = "cascade_mask_rcnn_lsj.py"

model = dict(
    backbone=dict(type="VisionMambaDet", if_rope=True, if_rope_residual=True, drop_path_rate=0.1),
    roi_head=dict(bbox_head=[{**head, "reg_class_agnostic": True} for head in _base_.model.roi_head.bbox_head]),
)
# Both settings of norms are needed: RMSNorm is none of the norms that `norm_decay_mult` knows by their class, and the
# neck's fpn1.1, a LayerNorm, has no "norm" in its name.
optim_wrapper = dict(
    type="AmpOptimWrapper",
    optimizer=dict(weight_decay=0.1),
    paramwise_cfg=dict(
        layer_decay_rate=0.7,
        norm_decay_mult=0.0,
        custom_keys=dict(pos_embed=dict(decay_mult=0.0), norm=dict(decay_mult=0.0)),
    ),
)
