# VMamba-B[s2l15] without its classifier, as its classification recipe builds it, from the released weights.
backbone = dict(
    type="MM_VSSM",
    pretrained="vmamba_base_s2l15",
    out_indices=(0, 1, 2, 3),
    dims=128,
    depths=(2, 2, 15, 2),
    ssm_d_state=1,
    ssm_dt_rank="auto",
    ssm_ratio=2.0,
    ssm_conv=3,
    ssm_conv_bias=False,
    forward_type="v05_noz",
    mlp_ratio=4.0,
    norm_layer="ln2d",
    downsample_version="v3",
    patchembed_version="v2",
)
