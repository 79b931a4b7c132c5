# UPerNet on ADE20K as FastVim has it: 160k iterations on 8 x 2 crops of 512, overlapping windows of 512 to test.
_base_ = "upernet_512x512.py"

crop_size = (512, 512)
undecayed = ("pos_embed", "cls_token", "norm", "A_log", "D", "A_b_log", "D_b")
model = dict(
    backbone=dict(
        _delete_=True,
        type="MM_FastVim",
        img_size=512,
        out_indices=(5, 11, 17, 23),
        rms_norm=False,
        fused_add_norm=False,
        drop_path_rate=0.1,
        load_ema=True,
    ),
    test_cfg=dict(mode="slide", crop_size=crop_size, stride=(341, 341)),
)
optim_wrapper = dict(
    paramwise_cfg=dict(_delete_=True, custom_keys={name: dict(decay_mult=0.0) for name in undecayed}),
)
