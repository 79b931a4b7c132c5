"""The native libraries, built behind PyTorch's stable ABI; everything else is in pyproject.toml.

    VMAMBA_BUILD=auto   build what can be built; what cannot is named, with the remedy, and the install goes on
    VMAMBA_BUILD=cpu    build the CPU library, or fail
    VMAMBA_BUILD=cuda   build the CUDA library, and the CPU library, or fail
    VMAMBA_BUILD=off    build nothing, and remove what an earlier build left

`python setup.py build_ext --inplace` builds without pip. CXX and CXXFLAGS are honoured; for CUDA, CUDA_HOME and
TORCH_CUDA_ARCH_LIST. Without the latter, "cuda" builds for every architecture it knows, and "auto" for the GPUs of this
machine, so that a machine without one spends no time on it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from setuptools import Command, setup
from setuptools.command.build_py import build_py

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools before 70.1 builds the libraries in place, but no wheel
    bdist_wheel = Command

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "kernels" / "csrc"
PACKAGE = ROOT / "kernels" / "vmamba_kernels"
OBJECTS = ROOT / "build" / "native"
MODES = ("auto", "cpu", "cuda", "off")

STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DTORCH_STABLE_ONLY"]
X86 = platform.machine().lower() in ("x86_64", "amd64")
CUDA_ARCHITECTURES = ["8.0", "9.0", "10.0", "12.0+PTX"]
# A source named *_<set>.cpp is compiled for that instruction set; the library chooses one when it is loaded.
INSTRUCTION_SETS = {
    "portable": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx2", "-mfma", "-mf16c", "-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw"],
}


class CannotBuild(Exception):
    """Why a library cannot be built here: one line with the remedy."""


@dataclass(frozen=True)
class Library:
    """A native library: the folder of csrc it is made of, and the function that makes it and returns its commands."""

    name: str
    sources: Callable[[], list[Path]]
    build: Callable[[Path], None]
    variant: Callable[[], str] = lambda: ""  # what else the build depends on

    @property
    def path(self) -> Path:
        return PACKAGE / f"libvmamba_{self.name}.so"

    @property
    def stamp(self) -> Path:
        return self.path.with_suffix(".hash")


def torch_folder() -> Path:
    found = importlib.util.find_spec("torch")
    if found is None or not found.submodule_search_locations:
        raise CannotBuild("torch is not installed; pip install torch, then install again with --no-build-isolation")
    return Path(next(iter(found.submodule_search_locations)))


def cpp_compiler() -> list[str]:
    for name in [os.environ.get("CXX", ""), "c++", "g++", "clang++"]:
        words = shlex.split(name)
        if words and shutil.which(words[0]):
            return words
    raise CannotBuild("there is no C++ compiler (c++, g++, clang++ or $CXX); on Debian: apt-get install g++")


def run(command: list[str]) -> None:
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        print(answer.stderr, file=sys.stderr)
        errors = re.findall(r".*\b(?:error|fatal)\b.*", answer.stderr) or ["no message"]
        raise CannotBuild(f"{Path(command[0]).name} failed: {errors[0].strip()}")


def cpu_sources() -> list[Path]:
    return sorted(path for folder in ("cpu", "common") for path in (CSRC / folder).rglob("*") if path.is_file())


def build_cpu(library: Path) -> None:
    compiler, torch = cpp_compiler(), torch_folder()
    flags = ["-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", *shlex.split(os.environ.get("CXXFLAGS", ""))]
    flags += [*STABLE_ABI, f"-I{torch / 'include'}", *(["-DVMAMBA_X86"] if X86 else [])]
    OBJECTS.mkdir(parents=True, exist_ok=True)
    commands, objects = [], []
    for source in sorted((CSRC / "cpu").glob("*.cpp")):
        special = source.stem.rpartition("_")[2]
        if special in ("avx2", "avx512") and not X86:
            continue
        objects.append(str(OBJECTS / f"{source.stem}.o"))
        commands.append([*compiler, *flags, *INSTRUCTION_SETS.get(special, []), "-c", str(source), "-o", objects[-1]])
    with ThreadPoolExecutor(max(1, int(os.environ.get("MAX_JOBS", os.cpu_count() or 1)))) as pool:
        list(pool.map(run, commands))
    libraries = [f"-L{torch / 'lib'}", "-ltorch_cpu", "-ltorch", "-lc10"]
    run([*compiler, "-shared", "-o", str(library), *objects, *libraries])


def cuda_sources() -> list[Path]:
    return sorted(path for folder in ("cuda", "common") for path in (CSRC / folder).rglob("*") if path.is_file())


def cuda_compiler() -> str:
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    found = shutil.which("nvcc", path=str(Path(home) / "bin")) if home else shutil.which("nvcc")
    found = found or shutil.which("/usr/local/cuda/bin/nvcc")
    if found is None:
        where = f" in {home}, where CUDA_HOME points" if home else ""
        raise CannotBuild(f"there is no nvcc{where}; install the CUDA toolkit and set CUDA_HOME to its folder")
    return found


def present_architectures() -> list[str]:
    """Compute capabilities of the GPUs in this machine, as "9.0"."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return sorted({line.strip() for line in answer.stdout.splitlines() if re.fullmatch(r"\d+\.\d", line.strip())})


def cuda_architectures() -> list[str]:
    """What to compile for, in the words of TORCH_CUDA_ARCH_LIST: "8.0", "9.0a", "12.0+PTX"."""
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    if listed:
        for word in listed:
            if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", word):
                raise CannotBuild(f'TORCH_CUDA_ARCH_LIST: {word!r} is no architecture; write it as "8.0 9.0 12.0+PTX"')
        return listed
    if os.environ.get("VMAMBA_BUILD") == "cuda":
        return CUDA_ARCHITECTURES
    present = present_architectures()
    if not present:
        raise CannotBuild("there is no GPU in this machine; VMAMBA_BUILD=cuda builds it all the same")
    return present


def cuda_variant() -> str:
    return " ".join([cuda_compiler(), *cuda_architectures()])


def code_flags(architectures: list[str]) -> list[str]:
    flags = []
    for word in architectures:
        number = word.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if word.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def cuda_link_folders(torch: Path) -> list[str]:
    """Folders with libtorch_cuda.so: torch's, or for a torch without CUDA one with a stand-in of that name.

    The library must name libtorch_cuda.so as its need, or it would not find the current stream where it is used.
    """
    if (torch / "lib" / "libtorch_cuda.so").exists():
        return [f"-L{torch / 'lib'}"]
    source = OBJECTS / "libtorch_cuda_stand_in.cpp"
    source.write_text('extern "C" int aoti_torch_get_current_cuda_stream(int, void**) { return 1; }\n')
    stand_in = OBJECTS / "stand_in"
    stand_in.mkdir(exist_ok=True)
    shared = ["-shared", "-fPIC", "-Wl,-soname,libtorch_cuda.so", "-o", str(stand_in / "libtorch_cuda.so")]
    run([*cpp_compiler(), *shared, str(source)])
    return [f"-L{torch / 'lib'}", f"-L{stand_in}"]


def library_command(architectures: list[str], wanted: list[str]) -> list[str]:
    """The command that compiles what the CUDA library knows of itself, its architectures among it."""
    flags = ["-O2", "-std=c++17", "-fPIC", "-fvisibility=hidden"]
    known = f'-DVMAMBA_CUDA_ARCHITECTURES="{" ".join(architectures)}"'
    return [*cpp_compiler(), *flags, known, str(CSRC / "cuda" / "library.cpp"), *wanted]


def build_cuda(library: Path) -> None:
    nvcc, torch, architectures = cuda_compiler(), torch_folder(), cuda_architectures()
    OBJECTS.mkdir(parents=True, exist_ok=True)
    flags = ["-O3", "-std=c++17", "-Xcompiler=-fPIC,-fvisibility=hidden"]
    flags += [*code_flags(architectures), *STABLE_ABI, "-DUSE_CUDA", f"-I{torch / 'include'}"]
    sources = sorted((CSRC / "cuda").glob("*.cu"))
    objects = [str(OBJECTS / f"{source.stem}.cu.o") for source in sources]
    jobs = max(1, int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1))
    # What is left over when every source has its process compiles the architectures of a source side by side.
    threads = min(len(architectures) + 1, max(1, jobs // len(sources)))
    commands = [
        [nvcc, *flags, f"--threads={threads}", "-c", str(source), "-o", built]
        for source, built in zip(sources, objects, strict=True)
    ]
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(run, commands))
    objects.append(str(OBJECTS / "cuda_library.o"))
    run(library_command(architectures, ["-c", "-o", objects[-1]]))
    libraries = [*cuda_link_folders(torch), "-ltorch_cpu", "-ltorch_cuda", "-ltorch", "-lc10"]
    run([nvcc, "-shared", "-cudart=static", *code_flags(architectures), *objects, *libraries, "-o", str(library)])


LIBRARIES = {
    "cpu": Library("cpu", cpu_sources, build_cpu),
    "cuda": Library("cuda", cuda_sources, build_cuda, cuda_variant),
}


def fingerprint(library: Library) -> str:
    """A digest of all that the library depends on: its sources, this file, the compiler and its flags."""
    digest = hashlib.sha256()
    for path in [*library.sources(), Path(__file__)]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    for name in ("CXX", "CXXFLAGS"):
        digest.update(os.environ.get(name, "").encode() + b"\0")
    digest.update(str(torch_folder()).encode() + platform.machine().encode() + library.variant().encode())
    return digest.hexdigest()


def make(library: Library) -> bool:
    """Return whether the library was built: not if it is up to date. An old one never outlives a failure."""
    try:
        digest = fingerprint(library)
        if library.path.exists() and library.stamp.exists() and library.stamp.read_text() == digest:
            return False
        remove(library)
        temporary = library.path.with_suffix(f".{os.getpid()}.tmp")
        try:
            library.build(temporary)
            os.replace(temporary, library.path)
        finally:
            temporary.unlink(missing_ok=True)
        library.stamp.write_text(digest)
        return True
    except CannotBuild:
        remove(library)
        raise


def remove(library: Library) -> bool:
    existed = library.path.exists()
    library.path.unlink(missing_ok=True)
    library.stamp.unlink(missing_ok=True)
    return existed


def build_native() -> None:
    """Build what VMAMBA_BUILD asks for."""
    mode = os.environ.get("VMAMBA_BUILD") or "auto"
    if mode not in MODES:
        raise SystemExit(f"error: VMAMBA_BUILD={mode} is unknown; it is one of {', '.join(MODES)}")
    if mode == "cuda" and "cuda" not in LIBRARIES:
        raise SystemExit("error: VMAMBA_BUILD=cuda: this version has no CUDA sources; use VMAMBA_BUILD=cpu or auto")
    wanted = {"auto": list(LIBRARIES), "cpu": ["cpu"], "cuda": ["cpu", "cuda"], "off": []}[mode]
    for name, library in LIBRARIES.items():
        if name not in wanted:
            if remove(library):
                print(f"vmamba: removed the {name} library of an earlier build (VMAMBA_BUILD={mode})")
            continue
        try:
            if make(library):
                print(f"vmamba: built {library.path.name}")
        except CannotBuild as reason:
            if mode != "auto":
                raise SystemExit(f"error: VMAMBA_BUILD={mode}: the {name} library cannot be built: {reason}") from None
            print(f"vmamba: no {name} library, the slower reference is used: {reason}", file=sys.stderr)


class BuildPython(build_py):
    """Copies the packages, native libraries among them, once these are built."""

    def run(self) -> None:
        build_native()
        super().run()


class BuildNative(Command):
    """`build_ext`: builds the native libraries inside the package's own folder."""

    user_options = [("inplace", "i", "always so: the libraries lie beside the Python files")]
    boolean_options = ["inplace"]

    def initialize_options(self) -> None:
        self.inplace = True

    def finalize_options(self) -> None:
        pass

    def run(self) -> None:
        build_native()


class PlatformWheel(bdist_wheel):
    """One wheel for every Python on this platform: the libraries use no Python symbol."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = False

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


if __name__ == "__main__":
    setup(cmdclass={"build_py": BuildPython, "build_ext": BuildNative, "bdist_wheel": PlatformWheel})
