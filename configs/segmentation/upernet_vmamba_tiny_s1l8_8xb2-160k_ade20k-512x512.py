# VMamba-T[s1l8]: 61.9 M parameters, 949 GFLOPs at 512 x 2048, published mIoU 47.9 (multi-scale 48.8).
_base_ = "_base_/upernet_512x512.py"
