# Mask R-CNN with FPN on COCO, 12 epochs at 1333x800: as mmdetection has it for Swin, whose backbone is replaced.
_base_ = "mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py"
custom_imports = dict(imports=["vmamba.openmmlab"], allow_failed_imports=False)
pretrained = None
