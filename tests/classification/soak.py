"""Faults by the dozen against one small run of two processes: ``python -m tests.classification.soak --faults 50``.

Two runs of the same configuration: one is left alone, the other is ended by one fault after the other, at random
updates or at random moments between them, and started again each time. At the end both must hold the same state, bit
for bit: weights, average, optimizer, random states, scores, and the figures of every epoch.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.classification.conftest import write_config
from tests.classification.runs import Ranks
from tests.classification.same_end import differences

_UPDATES_PER_EPOCH = 6
_PATIENCE = 8  # the most updates before a fault
_KINDS = ("SIGKILL", "SIGTERM", "full disk", "flipped byte", "truncated file")
_SETTINGS = {
    "TRAIN__ACCUMULATION_STEPS": 2,
    "TRAIN__WARMUP_EPOCHS": 1,
    "DATA__BATCH_SIZE": 64,
    "DATA__NUM_WORKERS": 1,
    "AUG__AUTO_AUGMENT": "rand-m9-mstd0.5-inc1",
    "EMA__WARMUP": True,
    "SAVE_STEPS": 2,
    "KEEP_CHECKPOINTS": 3,
}


@dataclass
class Blow:
    """What one fault did."""

    kind: str
    where: str
    codes: list[int]
    resumed: str
    seconds: float
    output: str


class Soak:
    """A folder with both runs; `strike` starts the second one with a fault in it."""

    def __init__(self, folder: Path, faults: int, seed: int) -> None:
        self.folder, self.source = folder, random.Random(seed)
        epochs = max(-(-faults * _PATIENCE // _UPDATES_PER_EPOCH), 2)
        self.config = write_config(folder, TRAIN__EPOCHS=epochs, **_SETTINGS)
        kinds = [_KINDS[number % len(_KINDS)] for number in range(faults)]
        self.source.shuffle(kinds)
        self.kinds = kinds

    def run_folder(self, name: str) -> Path:
        return self.folder / name / "tiny" / "default"

    def run(self, name: str, *faults: dict) -> tuple[list[int], str]:
        """Run to the end, or to a fault; answer (exit codes, what the processes have printed, one after the other)."""
        ranks = Ranks(self.folder, ["--cfg", self.config, "--output", self.folder / name], 2, *faults)
        return ranks.wait(), ranks.output(0) + ranks.output(1)

    def strike(self, kind: str) -> Blow:
        """Start the broken run, end it by a fault, and damage its newest checkpoint where the kind asks for it."""
        began, source = time.monotonic(), self.source
        at, rank = source.randrange(_PATIENCE), source.randrange(2)
        name = "SIGTERM" if kind in ("SIGTERM", "full disk") else "SIGKILL"
        ending = {"do": "signal", "rank": rank, "at": at, "signals": [name]}
        if source.random() < 0.5:
            ending["after"] = round(source.uniform(0, 0.2), 3)
        faults = [ending]
        if kind == "full disk":
            faults.append({"do": "full disk", "rank": 0, "saves": 10**6})
        codes, output = self.run("broken", *faults)
        where = f"update {at + 1}" + (f" + {ending['after']} s" if "after" in ending else "") + f", process {rank}"
        if kind in ("flipped byte", "truncated file"):
            where += f"; {self._damage(kind)}"
        found = re.search(r"resumed .*/(ckpt\S+)", output)
        return Blow(kind, where, codes, found[1] if found else "(from the start)", time.monotonic() - began, output)

    def _damage(self, kind: str) -> str:
        """Damage the newest checkpoint, unless it is the only one; return what was done."""
        folder = self.run_folder("broken")
        last, all_of_them = folder / "last.pth", sorted(folder.glob("ckpt*.pth"))
        newest = [path for path in all_of_them if last.exists() and path.samefile(last)]
        if not newest or len(all_of_them) < 2:
            return "nothing to damage yet"
        data = newest[0].read_bytes()
        place = self.source.randrange(len(data))
        changed = data[:place] + bytes([data[place] ^ 1 << self.source.randrange(8)]) + data[place + 1 :]
        newest[0].write_bytes(changed if kind == "flipped byte" else data[:place])
        return f"byte {place} of {newest[0].name}"


def main(argv: Sequence[str] | None = None) -> int:
    """Print a row for each fault; return 0 when the broken run ends like the whole one."""
    parser = argparse.ArgumentParser(prog="python -m tests.classification.soak", description=__doc__)
    parser.add_argument("--faults", type=int, default=50, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    options = parser.parse_args(argv)
    console = Console(width=None if sys.stdout.isatty() else 140)
    with tempfile.TemporaryDirectory() as folder:
        return soak(Soak(Path(folder), options.faults, options.seed), console)


def soak(runs: Soak, console: Console) -> int:
    """Do it all; return the exit code."""
    began = time.monotonic()
    table = Table("", "fault", "where", "exit codes", "had gone on from", "seconds")
    for number, kind in enumerate(runs.kinds, 1):
        blow = runs.strike(kind)
        table.add_row(str(number), blow.kind, blow.where, str(blow.codes), blow.resumed, f"{blow.seconds:.1f}")
        unexpected = [code for code in blow.codes if code not in (1, 143, -9)]
        if unexpected:
            console.print(table)
            console.print(f"exit codes {blow.codes} are none of this fault's:\n{blow.output}", markup=False)
            return 1
    ends = {name: runs.run(name) for name in ("broken", "whole")}
    different = [f"{name} ends with {codes}:\n{output}" for name, (codes, output) in ends.items() if any(codes)]
    different = different or differences(runs.run_folder("whole"), runs.run_folder("broken"))
    console.print(table)
    verdict = f"different: {', '.join(different)}" if different else "the same end as without them, bit for bit"
    console.print(f"{len(runs.kinds)} faults in {time.monotonic() - began:.0f} s: {verdict}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
