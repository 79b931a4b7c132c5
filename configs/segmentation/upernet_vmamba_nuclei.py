# UPerNet with a small VMamba from scratch, 8 minutes on the nuclei of vmamba.openmmlab.nuclei.
_base_ = ["mmseg::_base_/models/upernet_swin.py", "mmseg::_base_/default_runtime.py"]
custom_imports = dict(imports=["vmamba.openmmlab"], allow_failed_imports=False)

crop_size = (256, 256)
norm_cfg = dict(type="BN", requires_grad=True)
loss = dict(type="CrossEntropyLoss", class_weight=[0.4, 1.5, 1.0, 1.0])
model = dict(
    data_preprocessor=dict(size=crop_size),
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
    decode_head=dict(in_channels=[32, 64, 128, 256], channels=32, num_classes=4, norm_cfg=norm_cfg, loss_decode=loss),
    auxiliary_head=dict(
        in_channels=128, channels=32, num_classes=4, norm_cfg=norm_cfg, loss_decode=dict(loss, loss_weight=0.4)
    ),
)

nuclei = dict(
    type="BaseSegDataset",
    data_root="data/nuclei/mmseg",
    img_suffix=".png",
    metainfo=dict(
        classes=("background", "neoplastic", "inflammatory", "connective"),
        palette=[[40, 40, 40], [230, 60, 60], [60, 160, 255], [80, 220, 100]],
    ),
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=(512, 512), ratio_range=(0.75, 1.25), keep_ratio=True),
    dict(type="RandomCrop", crop_size=crop_size),
    dict(type="RandomFlip", prob=[0.25, 0.25, 0.25], direction=["horizontal", "vertical", "diagonal"]),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(512, 512), keep_ratio=True),
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]
tta_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(
        type="TestTimeAug",
        transforms=[
            [dict(type="Resize", scale=(size, size), keep_ratio=True) for size in (384, 512, 640)],
            [dict(type="RandomFlip", prob=prob, direction="horizontal") for prob in (0.0, 1.0)],
            [dict(type="LoadAnnotations")],
            [dict(type="PackSegInputs")],
        ],
    ),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        **nuclei,
        data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        **nuclei,
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator

# TimeBudget ends the training long before its last iteration.
train_cfg = dict(type="IterBasedTrainLoop", max_iters=100_000, val_interval=100_000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1.5e-3, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0),
    clip_grad=dict(max_norm=5.0),
)
custom_hooks = [dict(type="TimeBudget", minutes=8)]
default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=20, log_metric_by_epoch=False),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=200, max_keep_ckpts=1),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    visualization=dict(type="SegVisualizationHook"),
)
randomness = dict(seed=0)
