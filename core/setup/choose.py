"""Choose the builds of torch, xformers and onnxruntime for a machine. Pure functions of the machine's facts.

Facts behind the choice (torch 2.13). Wheels for CUDA 12.6 contain kernels for compute capability 5.0 to 9.0, those for CUDA 13.0
for 7.5 to 12.0 (PyTorch's release compatibility matrix). A CUDA 13 build needs driver 580 or newer; a CUDA 12 build runs, by minor
version compatibility, from 525.60 on Linux and 528.33 on Windows (NVIDIA's CUDA compatibility guide). ROCm wheels exist for Linux
x86_64 only. macOS wheels need Apple silicon and macOS 14; Intel Macs have had none since torch 2.3. The default index has the CUDA
13.0 build for Linux, a CPU build for Windows and the Apple build for macOS; its xformers wheel is built for CUDA 12 and does not
load with a CUDA 13 torch.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

TORCH_INDEX = "https://download.pytorch.org/whl/"
CUDA_13_DRIVER = (580,)
CUDA_12_DRIVER = {"Linux": (525, 60), "Windows": (528, 33)}
CUDA_13_CARDS = (7, 5)  # lowest compute capability with kernels
CUDA_12_CARDS = (5, 0)
CUDA_12_NEWEST_CARDS = (9, 0)
XFORMERS_CARDS = (7, 5)
ONNXRUNTIME_CUDA_12 = "1.23.2"  # the last onnxruntime-gpu built for CUDA 12.2; newer ones need CUDA 13 libraries
ADAPTED = ("torch", "xformers", "onnxruntime", "onnxruntime-gpu")  # packages whose version depends on the machine
# Installed without its dependencies: torchvision, of the build of torch, is needed by none of its upscalers
ALONE = ("spandrel",)
X86_64 = ("x86_64", "AMD64")
TITLES = {"cu130": "CUDA 13.0", "cu126": "CUDA 12.6", "rocm7.2": "ROCm 7.2", "cpu": "CPU"}


@dataclass(frozen=True)
class MachineFacts:
    """Facts about a machine that the choice of builds depends on.

    system        platform.system(): Linux, Windows or Darwin
    machine       the interpreter's CPU: x86_64, AMD64, aarch64, arm64, ARM64
    driver        NVIDIA driver version as nvidia-smi prints it ("580.65.06"), None if there is none
    compute       compute capability of each NVIDIA GPU, ("8.6", "6.1"); empty if the driver is too old to report it
    nvidia_card   whether an NVIDIA GPU is on the bus, with or without a working driver
    amd_card      whether an AMD GPU was found: by /dev/kfd (its compute driver), or by hipInfo on Windows
    macos         macOS version, "14.5"; empty elsewhere
    glibc         glibc version on Linux, "2.36"; empty with another C library (Alpine's musl) and on other systems
    translated    whether an Intel Python runs on Apple silicon through Rosetta
    """

    system: str
    machine: str
    driver: str | None = None
    compute: tuple[str, ...] = ()
    nvidia_card: bool = False
    amd_card: bool = False
    macos: str = ""
    glibc: str = ""
    translated: bool = False


@dataclass(frozen=True)
class Pins:
    """Pinned versions in requirements.txt, such as "2.13.0"."""

    torch: str
    xformers: str
    onnxruntime: str
    onnxruntime_gpu: str


@dataclass(frozen=True)
class Build:
    """The packages to install for a machine, as pip requirements.

    name          cu130, cu126, rocm7.2, cpu or apple; `none` if there is a problem
    title         display name for messages
    index_url     PyTorch's wheel index for torch and xformers; None: pip's default index
    torch         requirement, "torch==2.13.0"
    xformers      requirement; None without kernels for this machine
    onnxruntime   requirement of onnxruntime or onnxruntime-gpu
    notes         sentences to print
    problem       why nothing can be installed on this machine, in one sentence; else None
    """

    name: str
    title: str
    index_url: str | None
    torch: str
    xformers: str | None
    onnxruntime: str
    notes: tuple[str, ...] = ()
    problem: str | None = None


def choose_build(facts: MachineFacts, pins: Pins, requested: str | None = None, index: str = TORCH_INDEX) -> Build:
    """Return a machine's build. `requested` (a key of TITLES) overrides detection; `index` is the URL of PyTorch's index or a mirror."""
    problem = unsupported_reason(facts)
    if problem:
        return Build("none", "nothing", None, "", None, "", problem=problem)
    if facts.system == "Darwin":
        return Build("apple", "Apple silicon", None, f"torch=={pins.torch}", None, f"onnxruntime=={pins.onnxruntime}")
    name, notes = (requested, ()) if requested else build_for_gpu(facts)
    xformers, notes = xformers_for(name, facts, pins, notes)
    # The default index's wheel for Windows is the CPU build; for Linux it is the CUDA one.
    index_url = None if (name, facts.system) == ("cpu", "Windows") else index + name
    onnxruntime = onnxruntime_for(name, facts, pins)
    return Build(name, TITLES[name], index_url, f"torch=={pins.torch}", xformers, onnxruntime, notes)


def unsupported_reason(facts: MachineFacts) -> str | None:
    """Return why torch has no wheel for this machine, with the fix if there is one; None if it has."""
    if facts.system == "Darwin" and facts.machine != "arm64":
        if facts.translated:
            return (
                "This Mac has Apple silicon, but this Python was built for Intel, for which PyTorch has no wheel: "
                "install Python 3.11 for Apple silicon (brew install python@3.11) and start again."
            )
        return "Macs with an Intel CPU are not supported: PyTorch has published no wheel for them since version 2.3."
    if facts.system == "Darwin" and facts.macos and version_numbers(facts.macos) < (14,):
        return f"macOS {facts.macos} is not supported: PyTorch needs macOS 14 or newer."
    if facts.system == "Windows" and facts.machine not in X86_64:
        return (
            "This Python was built for ARM, but this PyTorch version has no wheel for Windows on ARM: "
            "install the 64-bit x86 (AMD64) Python 3.11, which Windows runs by emulation, and start again."
        )
    if facts.system == "Linux" and facts.machine not in (*X86_64, "aarch64"):
        return f"CPUs of type {facts.machine} are not supported: PyTorch has no wheel for them."
    if facts.system == "Linux" and (not facts.glibc or version_numbers(facts.glibc) < (2, 28)):
        library = f"glibc {facts.glibc}" if facts.glibc else "another C library"
        return f"This Linux has {library}, but PyTorch needs glibc 2.28 or newer (Debian 10, Ubuntu 20.04, RHEL 8 or later)."
    if facts.system not in ("Linux", "Windows", "Darwin"):
        return f"{facts.system} is not supported: PyTorch has wheels for Linux, Windows and macOS."
    return None


def build_for_gpu(facts: MachineFacts) -> tuple[str, tuple[str, ...]]:
    """Return (build name, notes) for Linux and Windows, by driver and GPUs."""
    if facts.driver:
        return nvidia_build(facts)
    if facts.amd_card and facts.system == "Linux" and facts.machine in X86_64:
        return "rocm7.2", ()
    if facts.nvidia_card:
        return "cpu", (
            "An NVIDIA GPU was found, but its driver does not respond: install driver 580 or newer, then run the update. "
            "Until then Atelier uses the CPU.",
        )
    if facts.amd_card:
        return "cpu", ("PyTorch has wheels for AMD GPUs on Linux x86_64 only: Atelier uses the CPU here.",)
    return "cpu", ()


def nvidia_build(facts: MachineFacts) -> tuple[str, tuple[str, ...]]:
    """Return (build name, notes) for a machine with an NVIDIA driver, by its version and the GPUs' compute capabilities."""
    driver = version_numbers(facts.driver or "")
    cards = sorted(version_numbers(card) for card in facts.compute)
    # A driver that cannot report the capability (before 510) is too old in any case: assume an ordinary GPU.
    newest = cards[-1] if cards else CUDA_13_CARDS
    if newest < CUDA_12_CARDS:
        return "cpu", (
            f"NVIDIA GPUs of compute capability {max(facts.compute)} are too old for PyTorch: Atelier uses the CPU.",
        )
    if driver < CUDA_12_DRIVER[facts.system]:
        return "cpu", (
            f"NVIDIA driver {facts.driver} is too old for PyTorch: install 580 or newer, then run the update. "
            "Until then Atelier uses the CPU.",
        )
    if driver < CUDA_13_DRIVER:
        if newest > CUDA_12_NEWEST_CARDS:
            return "cu130", (
                f"This NVIDIA GPU needs driver 580 or newer, but {facts.driver} is installed: "
                "update the driver. Until then Atelier uses the CPU.",
            )
        return "cu126", ()
    if newest < CUDA_13_CARDS:
        return "cu126", ()
    if cards and cards[0] < CUDA_13_CARDS:
        return "cu130", ("One of the NVIDIA GPUs is too old for CUDA 13 and is not used.",)
    return "cu130", ()


def xformers_for(
    name: str, facts: MachineFacts, pins: Pins, notes: tuple[str, ...]
) -> tuple[str | None, tuple[str, ...]]:
    """Return (xformers requirement or None, `notes` with a note if the GPU is too old) for the build `name`.

    xformers has kernels for CUDA on x86_64 and compute capability 7.5 and up.
    """
    if not name.startswith("cu") or facts.machine not in X86_64:
        return None, notes
    if facts.compute and max(version_numbers(card) for card in facts.compute) < XFORMERS_CARDS:
        return None, (*notes, "xformers has no kernels for this GPU: PyTorch's attention is used.")
    return f"xformers=={pins.xformers}", notes


def onnxruntime_for(name: str, facts: MachineFacts, pins: Pins) -> str:
    """Return the onnxruntime requirement for the build `name`: the GPU package for CUDA builds on x86_64, otherwise the CPU package."""
    if name == "cu130" and facts.machine in X86_64:
        return f"onnxruntime-gpu=={pins.onnxruntime_gpu}"
    if name == "cu126" and facts.machine in X86_64:
        return f"onnxruntime-gpu=={ONNXRUNTIME_CUDA_12}"
    return f"onnxruntime=={pins.onnxruntime}"


def on_default_index(build: Build, facts: MachineFacts, pins: Pins) -> Build:
    """Return the build to use while PyTorch's wheel index is unreachable, with a note on its drawbacks."""
    if build.index_url is None:
        return build
    onnxruntime, note = build.onnxruntime, ""
    if facts.system == "Linux" and build.name == "cu130":
        if build.xformers:
            note = "xformers is left out: the default index has it for CUDA 12 only. The next update tries again."
    elif build.name == "cpu":
        note = "The default index's PyTorch for Linux may include CUDA libraries: a larger download, but harmless."
    else:
        onnxruntime = f"onnxruntime=={pins.onnxruntime}"
        note = (
            f"The default index has no PyTorch for {build.title} on {facts.system}: "
            "Atelier uses the CPU until an update reaches PyTorch's own index."
        )
    notes = (*build.notes, note) if note else build.notes
    return dataclasses.replace(build, index_url=None, xformers=None, onnxruntime=onnxruntime, notes=notes)


def pins_from(requirements: str) -> Pins:
    """Read the pinned versions of the packages ADAPTED from the text of requirements.txt. Raises KeyError for a missing one."""
    versions = pinned_versions(requirements)
    return Pins(*(versions[name] for name in ADAPTED))


def pinned_versions(requirements: str) -> dict[str, str]:
    """Return {package: version} of the lines `name==version` in the text of requirements.txt."""
    return dict(re.findall(r"^([\w-]+)==([^\s;]+)", requirements, flags=re.MULTILINE))


def adapted_requirements(requirements: str, build: Build) -> str:
    """Return the text of requirements.txt with the lines of torch, xformers and onnxruntime replaced by the build's, without ALONE."""
    other_lines = [line for line in requirements.splitlines() if package_of(line) not in (*ADAPTED, *ALONE)]
    chosen = [line for line in (build.torch, build.xformers, build.onnxruntime) if line]
    return "\n".join([*chosen, *other_lines]) + "\n"


def packages_alone(requirements: str) -> list[str]:
    """Return the lines of requirements.txt to install without dependencies, after the others."""
    return [line for line in requirements.splitlines() if package_of(line) in ALONE]


def package_of(line: str) -> str:
    """Return the name of the package in a line of requirements.txt."""
    return re.split(r"[=<>~! ;\[]", line, maxsplit=1)[0]


def version_numbers(version: str) -> tuple[int, ...]:
    """Return a version as a comparable tuple: "580.65.06" -> (580, 65, 6)."""
    return tuple(int(part) for part in re.findall(r"\d+", version))
