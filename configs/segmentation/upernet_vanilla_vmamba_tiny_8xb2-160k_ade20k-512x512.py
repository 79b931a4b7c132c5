# Vanilla-VMamba-T: 54.5 M parameters, 964 GFLOPs at 512 x 2048, published mIoU 47.3 (multi-scale 48.3).
_base_ = "_base_/upernet_512x512.py"

model = dict(
    backbone=dict(
        pretrained="vanilla_vmamba_tiny",
        depths=(2, 2, 9, 2),
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
