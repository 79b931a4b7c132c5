# Vanilla-VMamba-S: 76.1 M parameters, 1081 GFLOPs at 512 x 2048, published mIoU 49.5 (multi-scale 50.5).
_base_ = "_base_/upernet_512x512.py"

model = dict(
    backbone=dict(
        pretrained="vanilla_vmamba_small",
        depths=(2, 2, 27, 2),
        ssm_d_state=16,
        ssm_ratio=2.0,
        ssm_conv_bias=True,
        forward_type="v0",
        mlp_ratio=0.0,
        norm_layer="ln",
        downsample_version="v1",
        patchembed_version="v1",
        drop_path_rate=0.3,
    ),
)
