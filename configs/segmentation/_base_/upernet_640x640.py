# The recipe of upernet_512x512.py with crops of 640, from images resized to about 2560 x 640.
_base_ = "upernet_512x512.py"

crop_size = (640, 640)
scale = (2560, 640)
train_pipeline = _base_.train_pipeline
train_pipeline[2].scale = scale  # RandomResize
train_pipeline[3].crop_size = crop_size  # RandomCrop
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = scale  # Resize

model = dict(data_preprocessor=dict(size=crop_size))
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
