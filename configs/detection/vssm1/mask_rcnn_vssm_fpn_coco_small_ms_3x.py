# VMamba-S[s2l15], 36 epochs, multi-scale: published box AP 49.9, mask AP 44.2
_base_ = ["../_base_/mask_rcnn_ms_3x.py", "../../backbones/vmamba_small_s2l15.py"]
model = dict(backbone=dict(_delete_=True, drop_path_rate=0.3, **_base_.backbone))
