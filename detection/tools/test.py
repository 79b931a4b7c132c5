"""Evaluate a detector: ``python detection/tools/test.py CONFIG CHECKPOINT``; `vmamba.openmmlab.test` does it."""

from vmamba.openmmlab.test import main

if __name__ == "__main__":
    raise SystemExit(main(prog="detection/tools/test.py"))
