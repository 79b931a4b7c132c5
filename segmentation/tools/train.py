"""Train a segmentor: ``python segmentation/tools/train.py CONFIG``; `vmamba.openmmlab.train` does it."""

from vmamba.openmmlab.train import main

if __name__ == "__main__":
    raise SystemExit(main(prog="segmentation/tools/train.py"))
