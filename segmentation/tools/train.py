"""Train a segmentor: ``python segmentation/tools/train.py CONFIG``; every word is vmamba.openmmlab.train's."""

from vmamba.openmmlab.train import main

if __name__ == "__main__":
    raise SystemExit(main(prog="segmentation/tools/train.py"))
