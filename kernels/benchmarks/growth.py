"""How the cost of the scans grows with the length and with the batch: ``python kernels/benchmarks/growth.py``.

Length: the first stage of VMamba-T (K 4, D 96, d_state 1) over images of growing side, one image on a CPU and 8 on a
GPU. Batch: the third stage at 224 (D 384, 14 x 14). The figure is nanoseconds for each of the B*K*D*L elements; a cost
in proportion to the size is a level line in `--plot`.
"""

from __future__ import annotations

import selective_scan
import ss2d
from operator_runs import Case, arguments, exit_if_failed, run, settle
from plots import lines
from shapes import Scan

BENCHMARKS = {"selective_scan": selective_scan.BENCHMARK, "ss2d": ss2d.BENCHMARK}


def cases(operator: str, mode: str, dtype: str, gpu: bool) -> list[Case]:
    sides, batches = ((8, 16, 32, 64, 128), (1, 2, 4, 8, 16, 32))
    if gpu:
        sides, batches = (*sides, 256, 512), (*batches, 64, 128, 256)
    by_length = [
        Case(operator, "length", 4 * side, Scan(1, side, side, 96, 6, 1, 4), 8 if gpu else 1, dtype, mode)
        for side in sides
    ]
    return by_length + [Case(operator, "batch", 224, Scan(3, 14, 14, 384, 24, 1, 4), n, dtype, mode) for n in batches]


def main() -> None:
    parser = arguments(__doc__, ["vmamba_tiny"], ["vmamba_tiny"])
    parser.add_argument("--operators", nargs="+", default=list(BENCHMARKS), choices=BENCHMARKS)
    options = parser.parse_args()
    settle(options)
    found = [
        (BENCHMARKS[operator], case)
        for mode in options.modes
        for operator in options.operators
        for case in cases(operator, mode, options.dtypes[0], options.device == "cuda")
    ]
    report = run("growth", found, options)
    if options.plot:
        lines(report.rows, options.plot, ("length", "batch"))
    exit_if_failed(report)


if __name__ == "__main__":
    main()
