"""Train a detector: ``python detection/tools/train.py CONFIG``; `vmamba.openmmlab.train` does it."""

from vmamba.openmmlab.train import main

if __name__ == "__main__":
    raise SystemExit(main(prog="detection/tools/train.py"))
