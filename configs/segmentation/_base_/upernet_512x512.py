# UPerNet on ADE20K with crops of 512: mmsegmentation's own for Swin, whose backbone every configuration replaces.
# AdamW at 6e-5 for 160k iterations on 8 x 2 images, UPerHead of 512 channels, an auxiliary head on the third level.
_base_ = "mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py"
custom_imports = dict(imports=["vmamba.openmmlab"], allow_failed_imports=False)
checkpoint_file = None
