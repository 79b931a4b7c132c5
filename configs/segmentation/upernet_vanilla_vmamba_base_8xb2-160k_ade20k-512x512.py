# Vanilla-VMamba-B: 109.8 M parameters, 1226 GFLOPs at 512 x 2048, published mIoU 50.0 (multi-scale 51.3).
_base_ = "_base_/upernet_512x512.py"

model = dict(
    backbone=dict(
        pretrained="vanilla_vmamba_base",
        dims=128,
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
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
