# UPerNet on ADE20K with crops of 512: the published recipe, with the backbone VMamba-T[s1l8].
# AdamW at 6e-5 for 160k iterations of 8 x 2 images, UPerHead of 512 channels, an auxiliary head on the third level.
_base_ = "mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py"
custom_imports = dict(imports=["vmamba.openmmlab"])

checkpoint_file = None  # Swin's weights
model = dict(
    backbone=dict(
        _delete_=True,
        type="MM_VSSM",
        out_indices=(0, 1, 2, 3),
        pretrained="vmamba_tiny_s1l8",  # its released weights; a file or None is as good
        dims=96,
        depths=(2, 2, 8, 2),
        ssm_d_state=1,
        ssm_dt_rank="auto",
        ssm_ratio=1.0,
        ssm_conv=3,
        ssm_conv_bias=False,
        forward_type="v05_noz",
        mlp_ratio=4.0,
        norm_layer="ln2d",
        downsample_version="v3",
        patchembed_version="v2",
        drop_path_rate=0.2,
    )
)
