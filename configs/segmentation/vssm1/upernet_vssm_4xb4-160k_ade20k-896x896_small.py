# VMamba-S[s2l15], crops of 896: without published figures
_base_ = ["../_base_/upernet_896x896.py", "../../backbones/vmamba_small_s2l15.py"]
model = dict(backbone=dict(_delete_=True, drop_path_rate=0.3, **_base_.backbone))
