"""Entry point of ``python -m classification`` and ``torchrun -m classification``."""

import sys

from classification.main import main
from vmamba.errors import exit_on_user_error

if __name__ == "__main__":
    sys.exit(exit_on_user_error(main)())
