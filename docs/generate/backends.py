"""The table of the operators' backends, from their registry; what a machine has of them, the doctor tells."""

from __future__ import annotations

from docs.generate.markdown import code, table
from vmamba_kernels import backends


def registered() -> str:
    """Return the table of every backend of every operator, the preferred first, with the devices it serves."""
    rows = []
    for operator in backends.operators():
        for backend in backends.registered(operator):
            devices = ", ".join(backend.devices) or "every one"
            rows.append([code(operator), code(backend.name), devices, ", ".join(backend.on_request)])
    return table(["operator", "backend", "devices", "also, when named"], rows)


if __name__ == "__main__":
    print(registered())
