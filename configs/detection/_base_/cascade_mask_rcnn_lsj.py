# Cascade Mask R-CNN on the one map of a plain backbone, COCO: 100 epochs of 64 images of 1024 x 1024, much resized.
_base_ = ["mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py", "mmdet::common/lsj-100e_coco-instance.py"]
custom_imports = dict(imports=["vmamba.openmmlab"], allow_failed_imports=False)

image_size = (1024, 1024)
norm_cfg = dict(type="LN2d")
convolutional = dict(type="Shared4Conv1FCBBoxHead", conv_out_channels=256, norm_cfg=norm_cfg, reg_class_agnostic=False)
model = dict(
    # Images to test are padded here and not in their pipeline, after which boxes might lie in the padding: outside the
    # image, where a CPU cannot paste masks. They are filled with 0 after normalizing, the mean colour; images to train
    # on with 114 before it, a fifth of a standard deviation from that at most.
    data_preprocessor=dict(pad_size_divisor=image_size[0]),
    backbone=dict(_delete_=True, img_size=1024),
    neck=dict(_delete_=True, type="SimpleFPN", out_channels=256, num_outs=5, norm_cfg=norm_cfg),
    rpn_head=dict(num_convs=2),
    roi_head=dict(
        bbox_head=[{**head, **convolutional} for head in _base_.model.roi_head.bbox_head],
        mask_head=dict(norm_cfg=norm_cfg),
    ),
)

pad = dict(type="Pad", size=image_size, pad_val=dict(img=(114, 114, 114)))
train_pipeline = [*_base_.train_pipeline[:-1], pad, _base_.train_pipeline[-1]]
test_pipeline = [
    _base_.test_pipeline[0],
    dict(type="Resize", scale=image_size, keep_ratio=True),
    *_base_.test_pipeline[2:],
]
train_dataloader = dict(
    sampler=dict(type="InfiniteSampler"),
    dataset={**_base_.train_dataloader.dataset.dataset, "_delete_": True, "pipeline": train_pipeline},
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

# 184,375 x 64 images are 100 epochs; the loop also evaluates at the end.
train_cfg = dict(_delete_=True, type="IterBasedTrainLoop", max_iters=184375, val_interval=5000)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=250),
    dict(type="MultiStepLR", gamma=0.1, by_epoch=False, begin=0, end=184375, milestones=[163889, 177546]),
]
optim_wrapper = dict(
    _delete_=True,
    type="OptimWrapper",
    constructor="LayerDecayOptimWrapperConstructor",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999)),
)
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=5000))
log_processor = dict(by_epoch=False)
