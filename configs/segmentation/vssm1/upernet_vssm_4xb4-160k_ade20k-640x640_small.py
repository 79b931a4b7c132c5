# VMamba-S[s2l15], crops of 640: published mIoU 50.7, multi-scale 51.2
_base_ = ["../_base_/upernet_640x640.py", "../../backbones/vmamba_small_s2l15.py"]
model = dict(backbone=dict(_delete_=True, drop_path_rate=0.3, **_base_.backbone))
