"""The image-classification trainer: ``python -m classification --cfg FILE``, or the same through torchrun."""
