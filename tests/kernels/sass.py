"""Machine code of NVIDIA GPUs as `cuobjdump --dump-sass` prints it, read into lists of instructions."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

_FUNCTION = re.compile(r"^\s*Function : (\S+)", re.MULTILINE)
_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P[0-9T]+)\s+)?([A-Z][\w.]*)\s*([^;]*?)\s*;")
_WIDTH = re.compile(r"\.[US]?(8|16|32|64|128|256)(?=\.|$)")


@dataclass(frozen=True)
class Instruction:
    """One instruction: its address, its predicate ("@P0" or ""), "LDG.E.128.CONSTANT" and what follows that."""

    address: int
    predicate: str
    opcode: str
    operands: str

    @property
    def name(self) -> str:
        """The opcode without its modifiers."""
        return self.opcode.split(".")[0]

    @property
    def bits(self) -> int:
        """What one thread moves if the instruction reads or writes memory."""
        width = _WIDTH.findall(self.opcode)
        return int(width[-1]) if width else 32

    @property
    def target(self) -> int | None:
        """The address a branch goes to."""
        found = re.search(r"0x([0-9a-f]+)", self.operands) if self.name == "BRA" else None
        return int(found[1], 16) if found else None


@dataclass(frozen=True)
class Function:
    """One kernel: its mangled name and its instructions without the padding at its end."""

    name: str
    instructions: tuple[Instruction, ...]

    def widest(self, *names: str) -> int:
        """The bits of the widest of the instructions of these names, 0 if there is none."""
        return max((i.bits for i in self.instructions if i.name in names), default=0)

    @cached_property
    def load_bits(self) -> int:
        """The widest read of global memory, straight or by asynchronous copy; a bulk copy counts as 128."""
        bulk = 128 if any(i.name in ("UBLKCP", "UTMALDG") for i in self.instructions) else 0
        return max(bulk, self.widest("LDG", "LDGSTS", "LD"))

    @cached_property
    def store_bits(self) -> int:
        """The widest write to global memory."""
        bulk = 128 if any(i.name == "UTMASTG" for i in self.instructions) else 0
        return max(bulk, self.widest("STG", "ST"))

    def count(self, *names: str) -> int:
        """How many instructions have these names."""
        return sum(i.name in names for i in self.instructions)

    @cached_property
    def local_memory(self) -> int:
        """How many instructions read or write local memory, where spilled registers lie."""
        return self.count("LDL", "STL")

    def loops(self, opcode: str = "") -> list[tuple[int, int]]:
        """Index ranges [first, last] of the loops that hold the opcode, by address, outer before inner.

        A loop reaches from the target of a branch backwards to the last branch that goes there.
        """
        index = {instruction.address: n for n, instruction in enumerate(self.instructions)}
        ends = {
            index[i.target]: n for n, i in enumerate(self.instructions) if i.target in index and i.target < i.address
        }
        holds = [n for n, instruction in enumerate(self.instructions) if instruction.opcode.startswith(opcode)]
        return [(a, b) for a, b in sorted(ends.items()) if any(a <= n <= b for n in holds)]

    def instructions_per_position(self, positions: Sequence[float] | float) -> float:
        """Static instructions of one thread per position, over the loops that hold an exponential (MUFU.EX2).

        `positions`: for each of those loops, by address, what one thread finishes in a turn of it. What belongs to a
        loop and to none of them inside it is divided by its positions, and the quotients are summed: whatever is laid
        out beside the usual path (other layouts and types, tails) counts as though it ran. Without such a loop it is
        the whole kernel, divided by the one number given; and so it is where a number stands alone, for a kernel whose
        loops the compiler has laid out across one another.

        Raises:
            ValueError: not one number for each loop.
        """
        if not isinstance(positions, Sequence):
            return len(self.instructions) / positions
        loops = self.loops("MUFU.EX2") or [(0, len(self.instructions) - 1)]
        if len(loops) != len(positions):
            found = ", ".join(f"{b - a + 1} instructions from {self.instructions[a].address:#x}" for a, b in loops)
            raise ValueError(f"positions: {len(positions)} numbers for {len(loops)} loops with an exponential: {found}")
        total = 0.0
        for (first, last), count in zip(loops, positions, strict=True):
            inner = [(a, b) for a, b in loops if (a, b) != (first, last) and first <= a and b <= last]
            own = sum(not any(a <= n <= b for a, b in inner) for n in range(first, last + 1))
            total += own / count
        return total


def parse(text: str) -> dict[str, Function]:
    """The functions of a listing by their mangled names."""
    parts = _FUNCTION.split(text)[1:]
    return {name: Function(name, _without_padding(body)) for name, body in zip(parts[::2], parts[1::2], strict=True)}


def _without_padding(body: str) -> tuple[Instruction, ...]:
    """The instructions but NOPs and the branch to itself that closes a kernel."""
    found = (Instruction(int(a, 16), p, op, operands) for a, p, op, operands in _INSTRUCTION.findall(body))
    return tuple(i for i in found if i.name != "NOP" and i.target != i.address)


def find_tool(name: str = "cuobjdump") -> str | None:
    """The path of a tool that reads cubins: Triton's own, else one on the PATH; None if there is neither."""
    triton = find_spec("triton")
    bundled = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / name if triton and triton.origin else None
    return str(bundled) if bundled and bundled.exists() else shutil.which(name)


def dump(cubin: Path) -> str:
    """The listing of a cubin."""
    return _run("--dump-sass", cubin)


def resources(cubin: Path) -> dict[str, dict[str, int]]:
    """Registers (REG), bytes of stack (STACK, LOCAL) and of static shared memory (SHARED) by mangled name."""
    listing = re.findall(r"Function (\S+?):\s*\n?\s*(REG:.*)", _run("--dump-resource-usage", cubin))
    return {name: {k: int(v) for k, v in re.findall(r"([A-Z]+):(\d+)", line)} for name, line in listing}


def _run(option: str, cubin: Path) -> str:
    tool = find_tool()
    assert tool is not None, "no cuobjdump; pip install triton brings one"
    done = subprocess.run([tool, option, str(cubin)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout
