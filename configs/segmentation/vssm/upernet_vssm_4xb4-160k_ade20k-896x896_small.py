# Vanilla-VMamba-S, crops of 896: without published figures
_base_ = ["../_base_/upernet_896x896.py", "../../backbones/vanilla_vmamba_small.py"]
model = dict(backbone=dict(_delete_=True, drop_path_rate=0.3, **_base_.backbone))
