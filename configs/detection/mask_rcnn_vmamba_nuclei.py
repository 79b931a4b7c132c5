# Mask R-CNN with a small VMamba from scratch, 8 minutes on the nuclei of vmamba.openmmlab.nuclei.
_base_ = ["mmdet::_base_/models/mask-rcnn_r50_fpn.py", "mmdet::_base_/default_runtime.py"]
custom_imports = dict(imports=["vmamba.openmmlab"], allow_failed_imports=False)

width = 64
region = dict(out_channels=width)
model = dict(
    backbone=dict(
        _delete_=True,
        type="MM_VSSM",
        dims=32,
        depths=(1, 1, 2, 1),
        ssm_d_state=1,
        ssm_ratio=1.0,
        ssm_conv_bias=False,
        forward_type="v05_noz",
        mlp_ratio=2.0,
        norm_layer="ln2d",
        downsample_version="v3",
        patchembed_version="v2",
        drop_path_rate=0.1,
    ),
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=width),
    # A nucleus is 6 to 33 pixels wide in a tile, and half as much again in the resized one.
    rpn_head=dict(in_channels=width, feat_channels=width, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=region,
        bbox_head=dict(in_channels=width, fc_out_channels=256, num_classes=3),
        mask_roi_extractor=region,
        mask_head=dict(num_convs=2, in_channels=width, conv_out_channels=width, num_classes=3),
    ),
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=300),
        rcnn=dict(sampler=dict(num=128)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=300)),
)

nuclei = dict(
    type="CocoDataset",
    data_root="data/nuclei/coco",
    metainfo=dict(
        classes=("neoplastic", "inflammatory", "connective"),
        palette=[(230, 60, 60), (60, 160, 255), (80, 220, 100)],
    ),
)
scale = (384, 384)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="Resize", scale=scale, keep_ratio=True),
    dict(type="RandomFlip", prob=[0.25, 0.25, 0.25], direction=["horizontal", "vertical", "diagonal"]),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=scale, keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        **nuclei,
        ann_file="annotations/instances_train.json",
        data_prefix=dict(img="train/"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        **nuclei,
        ann_file="annotations/instances_val.json",
        data_prefix=dict(img="val/"),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(
    type="CocoMetric", ann_file="data/nuclei/coco/annotations/instances_val.json", metric=["bbox", "segm"]
)
test_evaluator = val_evaluator

# TimeBudget ends the training long before its last iteration.
train_cfg = dict(type="IterBasedTrainLoop", max_iters=100_000, val_interval=100_000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0),
    clip_grad=dict(max_norm=5.0),
)
custom_hooks = [dict(type="TimeBudget", minutes=8)]
default_hooks = dict(
    logger=dict(interval=20),
    checkpoint=dict(by_epoch=False, interval=200, max_keep_ckpts=1),
)
log_processor = dict(by_epoch=False)
randomness = dict(seed=0)
