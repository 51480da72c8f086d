"""Items about the machine that need no torch: Python, packages, RAM, driver, disk, locks."""

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from core.machine_check.item import ABSENT, FAILED, OK, SLOWER, CheckContext, Finding
from core.record import atomic, machine
from core.record.lock import HeldElsewhere, Lock
from core.record.space import RESERVE
from core.record.units import memory_text, size_text
from core.record.workspace import PROJECT
from core.setup.choose import pinned_versions
from core.setup.facts import machine_facts
from core.setup.probe import fitness

REINSTALL = "run ./launch.sh update (Windows: launch.bat update), which installs missing packages"
PACKAGES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "numpy", "pillow", "gradio", "pydantic")
LITTLE_RAM = 6 << 30  # below this, SD 1.5 in fp32 with its optimizer does not fit next to the system and a browser
LITTLE_DISK = 10_000_000_000
DISK_BYTES = 64 << 20
SLOW_DISK = 50e6  # bytes per second: a checkpoint of 2 GB takes 40 s


def python(context: CheckContext) -> Finding:
    """Report the versions of Python and the operating system; failed if Atelier does not support this Python."""
    facts = {"python": platform.python_version(), "system": platform.platform(), "machine": platform.machine()}
    finding = Finding(OK, f"Python {platform.python_version()}, {platform.platform()}", facts=facts)
    if (fit := fitness()) not in ("ok", "novenv"):
        return finding.failed(f"this Python is not supported ({fit})", "install Python 3.11, 3.12 or 3.13")
    return finding


def packages(context: CheckContext) -> Finding:
    """Compare the versions of Atelier's main dependencies with the pinned ones."""
    pinned = pinned_versions((PROJECT / "requirements.txt").read_text("utf-8"))
    versions = {name: number for name in PACKAGES if (number := installed(name))}
    untested = [
        f"{name} {number} (tested: {pinned[name]})"
        for name, number in versions.items()
        if name in pinned and number.partition("+")[0] != pinned[name]
    ]
    facts = {"packages": versions}
    if missing := [name for name in PACKAGES if name not in versions]:
        return Finding(FAILED, "", f"not installed: {', '.join(missing)}", REINSTALL, facts)
    if untested:
        fix = "if something fails, run ./launch.sh update (Windows: launch.bat update)"
        return Finding(SLOWER, "", f"untested versions: {', '.join(untested)}", fix, facts)
    return Finding(OK, ", ".join(f"{name} {number}" for name, number in versions.items()), facts=facts)


def installed(package: str) -> str | None:
    """Return the version of an installed package; None if it is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def memory(context: CheckContext) -> Finding:
    """Report RAM and CPU cores; limited below LITTLE_RAM bytes of available RAM."""
    ram = psutil.virtual_memory()
    facts = {"total": ram.total, "available": ram.available, "cores": machine.cores(), "threads": machine.threads()}
    summary = f"{memory_text(ram.total)} RAM, {memory_text(ram.available)} free; {machine.cores()} CPU cores"
    finding = Finding(OK, summary, facts=facts)
    if ram.available < LITTLE_RAM:
        fix = "close other programs, or train the starter or SD 1.5 LoRAs"
        return finding.limited("RAM is low: large models may not load", fix)
    return finding


def driver(context: CheckContext) -> Finding:
    """Report the GPU driver that the system has, whether or not torch can use it."""
    facts = machine_facts()
    known = {"driver": facts.driver, "compute_capability": list(facts.compute), "nvidia": facts.nvidia_card}
    known |= {"amd": facts.amd_card, "macos": facts.macos}
    if facts.driver:
        capability = f", compute capability {', '.join(facts.compute)}" if facts.compute else ""
        return Finding(OK, f"NVIDIA driver {facts.driver}{capability}", facts=known)
    if facts.nvidia_card:
        reason = "there is an NVIDIA GPU, but nvidia-smi does not respond: its driver is not installed or not loaded"
        return Finding(FAILED, "", reason, "install NVIDIA's driver, restart, then ./launch.sh update", known)
    if facts.amd_card:
        return Finding(OK, "AMD GPU with ROCm's driver", facts=known)
    if facts.macos:
        return Finding(OK, f"macOS {facts.macos}: the GPU driver is included", facts=known)
    return Finding(ABSENT, "", "no GPU with a driver was found", "nothing to do: training runs on the CPU", known)


def disk(context: CheckContext) -> Finding:
    """Report the free space for outputs and models, and the write speed of the outputs folder."""
    outputs, models = context.workspace.outputs, context.workspace.models
    free = {"outputs": machine.free_disk(outputs), "models": machine.free_disk(models)}
    try:
        speed = write_speed(context.folder / "disk.bin")
    except OSError as error:
        reason = f"the outputs folder is not writable: {error.strerror or error}"
        return Finding(FAILED, "", reason, "check its permissions, or start with --outputs DIR", {"free": free})
    summary = f"{size_text(free['outputs'])} free for outputs, writes {speed / 1e6:.0f} MB/s"
    finding = Finding(OK, summary, facts={"free": free, "bytes_per_second": speed})
    if free["outputs"] < RESERVE * 4:
        return finding.failed("the disk is nearly full, so no model can be saved", "free some space")
    if min(free.values()) < LITTLE_DISK:
        reason = f"only {size_text(min(free.values()))} are free, enough for a few full models only"
        return finding.limited(reason, "free some space, or start with --outputs DIR on another disk")
    if speed < SLOW_DISK:
        fix = "start with --outputs DIR on a local disk"
        return finding.limited("this disk is slow, so saving a model delays training", fix)
    return finding


def write_speed(path: Path) -> float:
    """Return the bytes per second of writing a file and syncing it to the disk; the file is removed. Raises OSError."""
    block = os.urandom(1 << 20)
    begun = time.perf_counter()
    try:
        with open(path, "wb") as file:
            for _ in range(DISK_BYTES >> 20):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        return DISK_BYTES / (time.perf_counter() - begun)
    finally:
        atomic.remove(path)


def locks(context: CheckContext) -> Finding:
    """Check that the drive of the outputs has file locks, which keep two programs from working on one run."""
    context.folder.mkdir(parents=True, exist_ok=True)
    lock = Lock(context.folder / "try.lock")
    fix = "start with --outputs DIR on another drive"
    try:
        warnings = lock.acquire()
    except HeldElsewhere:
        return Finding(FAILED, "", "a new lock appears to be held already", fix)
    except OSError as error:
        return Finding(FAILED, "", f"no lock can be created: {error.strerror or error}", fix)
    lock.release()
    if warnings:
        return Finding(SLOWER, "", warnings[0], "nothing to do, or start with --outputs DIR on a local disk")
    return Finding(OK, "the drive has file locks")
