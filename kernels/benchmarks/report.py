"""What every benchmark says of itself, prints and keeps: the machine and its clocks, the method, rows, JSON."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

from vmamba_kernels import native
from vmamba_kernels.processor import processor_name

PEERS = ("triton", "timm", "mambapy", "mamba-ssm", "flash-linear-attention")
Row = dict[str, Any]


def _answer(command: list[str]) -> str:
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else ""


def clocks(device: str) -> str:
    """What is known of the clocks: nothing here sets them."""
    if device == "cuda":
        names = ["clocks.sm", "clocks.max.sm", "clocks.mem", "power.draw", "power.limit", "persistence_mode"]
        said = _answer(["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader"])
        now = ", ".join(f"{n} {v.strip()}" for n, v in zip(names, said.split(","))) if said else "nvidia-smi is silent"
        return f"as they are, not locked ({now})"
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return f"as they are ({governor.read_text().strip() if governor.is_file() else 'governor not visible'})"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def setting(device: str) -> dict[str, str]:
    """What the figures of a run on a device depend on."""
    backends = ", ".join(f"{row.operator} {row.backend}" for row in native.explain() if row.device == device)
    found = {
        "device": torch.cuda.get_device_name() if device == "cuda" else f"{processor_name()} x {os.cpu_count()}",
        "clocks": clocks(device),
        "threads": str(torch.get_num_threads()),
        "load average": f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "CUDA": str(torch.version.cuda) if device == "cuda" else "not used",
        "backends": backends,
    }
    if native.load("cpu").loaded:
        found["CPU kernels"] = native.cpu_isa()
    return found | {name: _version(name) for name in PEERS}


class Report:
    """The rows of one run of one benchmark, printed as they come."""

    def __init__(self, benchmark: str, device: str, method: str) -> None:
        self.benchmark, self.device, self.method = benchmark, device, method
        self.setting = setting(device)
        self.rows: list[Row] = []
        print(f"{benchmark}: " + "; ".join(f"{name} {value}" for name, value in self.setting.items()))
        print(f"method: {method}", flush=True)

    def add(self, **row: Any) -> None:
        self.rows.append(row)

    def figure(self, **wanted: Any) -> Row | None:
        """The row that has these values and a time."""
        found = (r for r in self.rows if r.get("ms") is not None and all(r.get(k) == v for k, v in wanted.items()))
        return next(found, None)

    def close(self, path: Path | None) -> None:
        """Say the clocks after the run and write everything as JSON, if there is a path."""
        self.setting["clocks after"] = clocks(self.device)
        print(f"clocks after the run: {self.setting['clocks after']}")
        if path is None:
            return
        kept = {"benchmark": self.benchmark, "setting": self.setting, "method": self.method, "rows": self.rows}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(kept, indent=1) + "\n")
