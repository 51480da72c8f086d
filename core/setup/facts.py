"""Collect MachineFacts of this machine for the choice of builds (choose.py)."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sysconfig
from pathlib import Path

from core.setup.choose import MachineFacts

NVIDIA_SMI_PATHS = (
    "/usr/lib/wsl/lib/nvidia-smi",  # Windows Subsystem for Linux, often not on PATH
    r"C:\Windows\System32\nvidia-smi.exe",
    r"C:\Program Files\NVIDIA Corporation\NVSMI\nvidia-smi.exe",
)


def machine_facts() -> MachineFacts:
    """Collect the facts about this machine, by nvidia-smi, /sys and the platform module."""
    system = platform.system()
    driver, compute = query_nvidia_smi(find_nvidia_smi())
    return MachineFacts(
        system=system,
        machine=interpreter_machine(system),
        driver=driver,
        compute=compute,
        nvidia_card=has_pci_display("0x10de"),
        amd_card=Path("/dev/kfd").exists() or (system == "Windows" and shutil.which("hipInfo") is not None),
        macos=platform.mac_ver()[0] if system == "Darwin" else "",
        glibc=platform.libc_ver()[1] if system == "Linux" and platform.libc_ver()[0] == "glibc" else "",
        translated=system == "Darwin" and output_of(["sysctl", "-n", "sysctl.proc_translated"]).strip() == "1",
    )


def interpreter_machine(system: str) -> str:
    """Return the CPU that this Python was built for. An x86 Python on Windows on ARM reports ARM64 but takes x86 wheels."""
    if system == "Windows":
        return {"win-amd64": "AMD64", "win-arm64": "ARM64", "win32": "x86"}.get(
            sysconfig.get_platform(), platform.machine()
        )
    return platform.machine()


def find_nvidia_smi() -> str | None:
    """Return the path of nvidia-smi; None if it is missing."""
    return shutil.which("nvidia-smi") or next((path for path in NVIDIA_SMI_PATHS if Path(path).exists()), None)


def query_nvidia_smi(program: str | None) -> tuple[str | None, tuple[str, ...]]:
    """Return (driver version or None, compute capability of each GPU), as nvidia-smi prints them.

    Capabilities are empty for drivers before 510, which do not report them. `program`: path of nvidia-smi, None if it is missing
    """
    if program is None:
        return None, ()
    for fields in ("driver_version,compute_cap", "driver_version"):
        driver, compute = parse_nvidia_smi(output_of([program, f"--query-gpu={fields}", "--format=csv,noheader"]))
        if driver:
            return driver, compute
    return None, ()


def parse_nvidia_smi(text: str) -> tuple[str | None, tuple[str, ...]]:
    """Return (driver version or None, compute capabilities) of lines "580.65.06, 8.6", one per GPU.

    Other lines, such as error messages, are ignored.
    """
    driver, compute = None, []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if not fields[0].replace(".", "").isdigit():
            continue
        driver = fields[0]
        if len(fields) > 1 and fields[1].replace(".", "").isdigit():
            compute.append(fields[1])
    return driver, tuple(compute)


def has_pci_display(vendor: str) -> bool:
    """Return whether Linux lists a display controller (PCI class 03) of `vendor`, such as "0x10de"; False if /sys does not exist."""
    for device in Path("/sys/bus/pci/devices").glob("*"):
        try:
            if (device / "vendor").read_text().strip() == vendor and (device / "class").read_text().startswith("0x03"):
                return True
        except OSError:
            continue
    return False


def output_of(command: list[str]) -> str:
    """Return the stdout of a command; empty if the program is missing, fails or takes over 20 seconds (a hung driver)."""
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
