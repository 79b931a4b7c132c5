# The same with timm's ResNet-18 from scratch, to compare.
_base_ = "mask_rcnn_vmamba_nuclei.py"

model = dict(
    backbone=dict(
        _delete_=True,
        type="mmseg.TIMMBackbone",
        model_name="resnet18",
        features_only=True,
        pretrained=False,
        out_indices=(1, 2, 3, 4),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
