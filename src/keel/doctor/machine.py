"""The machine beneath: Python, libraries, cores, memory, disk and file system. No torch."""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import BinaryIO

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from keel.doctor.finding import Finding, bad, good, note
from keel.runs.files import read_json, write_json

_PACKAGE = "keel-rlhf"
_OPTIONAL = {"tensorboard": "metrics in TensorBoard", "wandb": "metrics in W&B"}
_LEAST_DISK = 1.0  # GiB: a run of a small model with its checkpoints
_GIB = 2**30
_MEMINFO = Path("/proc/meminfo")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def check_machine(runs: Path) -> list[Finding]:
    """Everything that needs no torch; `runs` is where runs will lie, whether it is there or not."""
    folder = nearest_folder(runs)
    return [
        check_python(platform.python_version()),
        *check_libraries(metadata.requires(_PACKAGE) or []),
        *check_optional(),
        check_cores_and_memory(),
        check_threads(os.environ),
        check_compiler(),
        check_disk(folder, shutil.disk_usage(folder).free / _GIB),
        check_file_system(folder),
    ]


def check_python(version: str) -> Finding:
    wanted = metadata.metadata(_PACKAGE)["Requires-Python"]
    if SpecifierSet(wanted).contains(version, prereleases=True):
        return good("python", version)
    return bad("python", f"{version} is not {wanted}", f"make the environment with a Python {wanted}")


def check_libraries(requirements: list[str]) -> list[Finding]:
    """The requirements of the package (those of its extras apart) against what is installed."""
    wanted = [requirement for text in requirements if (requirement := Requirement(text)).marker is None]
    versions = {requirement.name: _version(requirement.name) for requirement in wanted}
    faults = [
        bad(
            requirement.name,
            f"{version or 'missing'}, where {requirement} is needed",
            f'pip install --upgrade "{requirement}"',
        )
        for requirement in wanted
        if (version := versions[requirement.name]) is None
        or not requirement.specifier.contains(version, prereleases=True)
    ]
    if faults:
        return faults
    return [good("libraries", ", ".join(f"{name} {version}" for name, version in versions.items()))]


def check_optional() -> list[Finding]:
    return [
        good(name, version) if (version := _version(name)) else note(name, f"not installed; only for {purpose}")
        for name, purpose in _OPTIONAL.items()
    ]


def check_cores_and_memory() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") / _GIB
    if _MEMINFO.exists():  # what can be had, caches given up
        known = dict(line.split(":") for line in _MEMINFO.read_text().splitlines())
        free = int(known["MemAvailable"].split()[0]) / 2**20
    return note("cores", f"{cores}, and {memory:.1f} GiB of memory, {free:.1f} of them free")


def check_threads(variables: Mapping[str, str]) -> Finding:
    """What limits the threads of a product; with none each core has one."""
    cores = os.cpu_count() or 1
    given = {name: variables[name] for name in _THREADS if variables.get(name)}
    if not given:
        return good("threads", f"as many as cores ({cores})")
    said = ", ".join(f"{name}={value}" for name, value in given.items())
    most = max((int(value) for value in given.values() if value.isdecimal()), default=cores)
    if most > cores:
        return bad(
            "threads", f"{said}, and there are {cores} cores", f"unset {' '.join(given)}, or give at most {cores}"
        )
    return note("threads", f"{said}, of {cores} cores")


def check_compiler() -> Finding:
    """Keel needs none; extensions that others bring may."""
    name = next((name for name in ("g++", "clang++", "c++") if shutil.which(name)), None)
    if name is None:
        return note("compiler", "none for C++; Keel needs none, only packages that are built from source do")
    line = subprocess.run([name, "--version"], capture_output=True, text=True, check=False).stdout.splitlines()
    return note("compiler", line[0] if line else name)


def check_disk(folder: Path, free: float) -> Finding:
    """`free` in GiB."""
    if free < _LEAST_DISK:
        return bad("disk", f"{free:.1f} GiB free at {folder}", "make room, or give another --out")
    return good("disk", f"{free:,.0f} GiB free at {folder}")


def check_file_system(folder: Path) -> Finding:
    """Writing, syncing, renaming and locking, in the way that runs do."""
    try:
        with tempfile.TemporaryDirectory(prefix=".keel-doctor-", dir=folder) as name:
            file = Path(name, "file.json")
            write_json(file, {"written": 1})
            write_json(file, {"written": 2})
            if read_json(file) != {"written": 2}:
                raise OSError("what was written does not read back")
            with file.open("rb") as one, file.open("rb") as two:
                fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _locks(two):
                    raise OSError("a lock does not keep a second one out")
    except OSError as error:
        return bad("file system", f"{folder}: {error}", "give --out a directory on a local disk that you may write to")
    return good("file system", f"{folder} takes writes, renames and locks")


def nearest_folder(path: Path) -> Path:
    """The directory itself, or the nearest one above it that is there."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _locks(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
