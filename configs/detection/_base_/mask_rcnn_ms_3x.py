# Mask R-CNN with FPN on COCO, 36 epochs at many sizes: as mmdetection has it for Swin, whose backbone is replaced.
_base_ = "mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_ms-crop-3x_coco.py"
custom_imports = dict(imports=["vmamba.openmmlab"], allow_failed_imports=False)
pretrained = None
