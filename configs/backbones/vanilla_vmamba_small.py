# Vanilla-VMamba-S without its classifier, as its classification recipe builds it, from the released weights.
backbone = dict(
    type="MM_VSSM",
    pretrained="vanilla_vmamba_small",
    out_indices=(0, 1, 2, 3),
    dims=96,
    depths=(2, 2, 27, 2),
    ssm_d_state=16,
    ssm_dt_rank="auto",
    ssm_ratio=2.0,
    ssm_conv=3,
    ssm_conv_bias=True,
    forward_type="v0",
    mlp_ratio=0.0,
    norm_layer="ln",
    downsample_version="v1",
    patchembed_version="v1",
)
