# VMamba-S[s2l15], 12 epochs: published box AP 48.7, mask AP 43.7
_base_ = ["../_base_/mask_rcnn_1x.py", "../../backbones/vmamba_small_s2l15.py"]
model = dict(backbone=dict(_delete_=True, drop_path_rate=0.3, **_base_.backbone))
