"""Pre-training of a masked autoencoder: ``python -m classification.mae``, or ``torchrun -m classification.mae``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from classification.main import main as run_main
from classification.reconstruction import RECONSTRUCTION
from vmamba.errors import exit_on_user_error


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for and return the exit code, as `classification.main.main` does."""
    return run_main(argv, RECONSTRUCTION)


if __name__ == "__main__":
    sys.exit(exit_on_user_error(main)())
