"""The image-classification trainer: ``python -m classification --cfg FILE``, or the same through torchrun."""

import os

# OpenMP reads this when torch loads. By default an idle thread spins at the end of every operation; beside loader
# processes or another program on the same cores that made a small network's step 20 times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
