"""The tables of the page on scaling: the models' sizes, published rates, assumed networks and what was measured."""

from __future__ import annotations

from dataclasses import dataclass

from docs.generate.markdown import code, table
from docs.generate.meta_models import meta_model, parameters

# Training images a second of one A100 at 128 images a step, mixed precision: the published table of VMamba.
PUBLISHED_RATES = {"vmamba_tiny_s1l8": 571, "vmamba_small_s2l15": 314, "vmamba_base_s2l15": 247}
GPUS = (8, 64, 512)
PER_MACHINE, PER_GPU = 8, 128
# Bytes a second that a machine of eight GPUs sends to the others; assumptions, one a column.
NETWORKS = {"10 Gb/s": 1.25e9, "100 Gb/s": 12.5e9, "8 x 400 Gb/s": 400e9}
WITHIN_MACHINE = 200e9  # between the GPUs of one machine, NVLink
BACKWARD = 2 / 3  # of a step's computation; the exchange of gradients runs beside it
IMAGENET, FILE_BYTES = 1_281_167, 110_000
# Images a second that one core prepares, median and range: python -m classification.loader_rate --images 24 --turns 2
MEASURED = "2026-11-21, commit d2ddcbf"
LOADER_RATES = {
    "read and decode": (654, 626, 682),
    "and crop and flip": (270, 252, 289),
    "and RandAugment": (166, 165, 168),
    "and erasing: the ImageNet recipe": (153, 135, 172),
}
ONE_CORE = LOADER_RATES["and erasing: the ImageNet recipe"][0]


@dataclass(frozen=True)
class Exchange:
    """One sum of gradients over all processes: what each GPU sends, and for how long the slowest link is busy."""

    gradient_bytes: int
    gpus: int

    @property
    def sent(self) -> float:
        """Bytes that each GPU sends in a ring."""
        return 2 * (self.gpus - 1) / self.gpus * self.gradient_bytes

    def seconds(self, between_machines: float) -> float:
        """Seconds at that rate between machines; a ring over all GPUs crosses each machine's border once."""
        if self.gpus <= PER_MACHINE:
            return self.sent / WITHIN_MACHINE
        return max(self.sent / WITHIN_MACHINE, self.sent / between_machines)


def gradient_bytes(name: str) -> int:
    """Return the bytes of all gradients, float32 whatever the precision of the forward."""
    return 4 * parameters(meta_model(name))


def bytes_per_step() -> str:
    """Return the table of what one step sends."""
    rows = []
    for name in PUBLISHED_RATES:
        size = gradient_bytes(name)
        sent = [f"{Exchange(size, gpus).sent / 1e6:.0f} MB" for gpus in GPUS]
        rows.append([code(name), f"{size / 4e6:.1f} M", f"{size / 1e6:.0f} MB", *sent])
    header = ["model", "parameters", "gradients", *(f"each GPU sends, {gpus}" for gpus in GPUS)]
    return table(header, rows)


def same_batch_per_gpu() -> str:
    """Return the table of the exchange beside the backward pass at 128 images a GPU."""
    rows = []
    for name, rate in PUBLISHED_RATES.items():
        backward = BACKWARD * PER_GPU / rate
        for gpus in GPUS[1:]:
            rows.append([code(name), str(gpus), f"{1e3 * backward:.0f} ms", *_exchanges(name, gpus, backward)])
    return table(["model", "GPUs", "backward", *NETWORKS], rows)


def same_batch(images: int = 4096) -> str:
    """Return the table of the exchange beside the backward pass when `images` an update are shared out."""
    rows = []
    for name, rate in PUBLISHED_RATES.items():
        for gpus in GPUS[1:]:
            backward = BACKWARD * images / gpus / rate
            share = f"{images // gpus}"
            rows.append([code(name), str(gpus), share, f"{1e3 * backward:.0f} ms", *_exchanges(name, gpus, backward)])
    return table(["model", "GPUs", "images a GPU", "backward", *NETWORKS], rows)


def _exchanges(name: str, gpus: int, backward: float) -> list[str]:
    cells = []
    for rate in NETWORKS.values():
        seconds = Exchange(gradient_bytes(name), gpus).seconds(rate)
        cells.append(f"{1e3 * seconds:.0f} ms{' (waits)' if seconds > backward else ''}")
    return cells


def loader_rates() -> str:
    """Return the table of what one core prepares."""
    rows = [
        [step, f"{rate} ({low} to {high})", f"{1e3 / rate:.1f} ms"] for step, (rate, low, high) in LOADER_RATES.items()
    ]
    return table(["work on an image", f"images/s on one core ({MEASURED})", "one image"], rows)


def cores() -> str:
    """Return the table of the cores and the bytes that keep the GPUs fed."""
    rows = []
    for name, rate in PUBLISHED_RATES.items():
        machine = rate * PER_MACHINE
        totals = [f"{rate * gpus * FILE_BYTES / 1e9:.2g} GB/s" for gpus in GPUS]
        rows.append([code(name), str(rate), f"{rate / ONE_CORE:.1f}", f"{machine / ONE_CORE:.0f}", *totals])
    header = ["model", "images/s a GPU", "cores a GPU", "cores a machine of 8"]
    return table([*header, *(f"files, {gpus} GPUs" for gpus in GPUS)], rows)


def epochs() -> str:
    """Return the table of an epoch of ImageNet: how long it trains, and how long a checkpoint takes beside it."""
    rows = []
    for name, rate in PUBLISHED_RATES.items():
        # model, average, and two moments of AdamW, float32
        checkpoint = 4 * gradient_bytes(name)
        times = [f"{IMAGENET / rate / gpus:.0f} s" for gpus in GPUS]
        rows.append([code(name), *times, f"{checkpoint / 1e6:.0f} MB", f"{checkpoint / 1e9:.2f} s"])
    return table(["model", *(f"epoch, {gpus} GPUs" for gpus in GPUS), "checkpoint", "at 1 GB/s"], rows)


if __name__ == "__main__":
    print(bytes_per_step(), same_batch_per_gpu(), same_batch(), cores(), epochs(), sep="\n")
