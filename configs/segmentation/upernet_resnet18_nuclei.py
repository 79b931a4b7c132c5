# The same with timm's ResNet-18 from scratch, to compare.
_base_ = "upernet_vmamba_nuclei.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="TIMMBackbone",
        model_name="resnet18",
        features_only=True,
        pretrained=False,
        out_indices=(1, 2, 3, 4),
    ),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
