"""The choice of builds over a table of machines, most of which no test machine is."""

from pathlib import Path

import pytest

from core.setup.choose import (
    ADAPTED,
    ALONE,
    TORCH_INDEX,
    Build,
    MachineFacts,
    Pins,
    adapted_requirements,
    choose_build,
    on_default_index,
    package_of,
    packages_alone,
    pins_from,
    version_numbers,
)

PINS = Pins(torch="2.13.0", xformers="0.0.35", onnxruntime="1.31.1", onnxruntime_gpu="1.31.1")
ROOT = Path(__file__).parents[2]

LINUX = {"system": "Linux", "machine": "x86_64", "glibc": "2.36"}
ARM_LINUX = {"system": "Linux", "machine": "aarch64", "glibc": "2.39"}
WINDOWS = {"system": "Windows", "machine": "AMD64"}

# machine, facts, build, xformers?, onnxruntime flavour, a word of the note ("" = no note)
MACHINES = [
    ("Linux, RTX 3060, driver 580", {**LINUX, "driver": "580.65.06", "compute": ("8.6",)}, "cu130", True, "gpu", ""),
    ("Linux, RTX 5090, driver 590", {**LINUX, "driver": "590.44.01", "compute": ("12.0",)}, "cu130", True, "gpu", ""),
    (
        "Linux, RTX 5090, driver 570",
        {**LINUX, "driver": "570.133", "compute": ("12.0",)},
        "cu130",
        True,
        "gpu",
        "update",
    ),
    ("Linux, RTX 4090, driver 550", {**LINUX, "driver": "550.54.15", "compute": ("8.9",)}, "cu126", True, "gpu12", ""),
    ("Linux, A100, driver 525", {**LINUX, "driver": "525.60.13", "compute": ("8.0",)}, "cu126", True, "gpu12", ""),
    (
        "Linux, A100, driver 525 too early",
        {**LINUX, "driver": "525.53", "compute": ("8.0",)},
        "cpu",
        False,
        "cpu",
        "too old",
    ),
    (
        "Linux, GTX 1080, driver 580",
        {**LINUX, "driver": "580.65", "compute": ("6.1",)},
        "cu126",
        False,
        "gpu12",
        "xformers",
    ),
    (
        "Linux, Tesla V100, driver 535",
        {**LINUX, "driver": "535.1", "compute": ("7.0",)},
        "cu126",
        False,
        "gpu12",
        "xformers",
    ),
    ("Linux, Tesla T4, driver 580", {**LINUX, "driver": "580.82", "compute": ("7.5",)}, "cu130", True, "gpu", ""),
    (
        "Linux, GTX 1080 and RTX 3090",
        {**LINUX, "driver": "580.82", "compute": ("6.1", "8.6")},
        "cu130",
        True,
        "gpu",
        "One of",
    ),
    ("Linux, Kepler K80", {**LINUX, "driver": "470.256", "compute": ("3.7",)}, "cpu", False, "cpu", "3.7"),
    ("Linux, driver of 2020 that cannot tell", {**LINUX, "driver": "450.80"}, "cpu", False, "cpu", "450.80"),
    ("Linux, NVIDIA card, no driver", {**LINUX, "nvidia_card": True}, "cpu", False, "cpu", "does not respond"),
    ("Linux on ARM, GH200", {**ARM_LINUX, "driver": "580.65", "compute": ("9.0",)}, "cu130", False, "cpu", ""),
    ("Linux on ARM, no card", ARM_LINUX, "cpu", False, "cpu", ""),
    ("Linux, RX 7900", {**LINUX, "amd_card": True}, "rocm7.2", False, "cpu", ""),
    (
        "Linux, AMD and NVIDIA",
        {**LINUX, "amd_card": True, "driver": "580.1", "compute": ("8.6",)},
        "cu130",
        True,
        "gpu",
        "",
    ),
    ("Linux on ARM, AMD card", {**ARM_LINUX, "amd_card": True}, "cpu", False, "cpu", "AMD"),
    ("Linux, CPU only", LINUX, "cpu", False, "cpu", ""),
    ("Windows, RTX 3060, driver 581", {**WINDOWS, "driver": "581.29", "compute": ("8.6",)}, "cu130", True, "gpu", ""),
    ("Windows, RTX 2060, driver 537", {**WINDOWS, "driver": "537.13", "compute": ("7.5",)}, "cu126", True, "gpu12", ""),
    ("Windows, driver 528.02", {**WINDOWS, "driver": "528.02", "compute": ("8.6",)}, "cpu", False, "cpu", "too old"),
    (
        "Windows, GTX 970, driver 566",
        {**WINDOWS, "driver": "566.3", "compute": ("5.2",)},
        "cu126",
        False,
        "gpu12",
        "xformers",
    ),
    ("Windows, AMD card", {**WINDOWS, "amd_card": True}, "cpu", False, "cpu", "AMD"),
    ("Windows, CPU only", WINDOWS, "cpu", False, "cpu", ""),
    ("Mac, M1", {"system": "Darwin", "machine": "arm64", "macos": "14.5"}, "apple", False, "cpu", ""),
]
ONNXRUNTIME = {"gpu": "onnxruntime-gpu==1.31.1", "gpu12": "onnxruntime-gpu==1.23.2", "cpu": "onnxruntime==1.31.1"}


@pytest.mark.parametrize(
    ("facts", "name", "xformers", "flavour", "note"), [m[1:] for m in MACHINES], ids=[m[0] for m in MACHINES]
)
def test_each_machine_gets_its_build(facts, name, xformers, flavour, note):
    build = choose_build(MachineFacts(**facts), PINS)
    assert (build.name, build.torch, build.problem) == (name, "torch==2.13.0", None)
    assert build.xformers == ("xformers==0.0.35" if xformers else None)
    assert build.onnxruntime == ONNXRUNTIME[flavour]
    assert (note in " ".join(build.notes)) if note else build.notes == ()
    default = name == "apple" or (name == "cpu" and facts["system"] == "Windows")
    assert build.index_url == (None if default else TORCH_INDEX + name)


UNSUPPORTED = [
    ({"system": "Darwin", "machine": "x86_64", "macos": "15.1"}, "Intel"),
    ({"system": "Darwin", "machine": "x86_64", "macos": "15.1", "translated": True}, "brew install python@3.11"),
    ({"system": "Darwin", "machine": "arm64", "macos": "13.6"}, "macOS 14"),
    ({"system": "Windows", "machine": "ARM64"}, "AMD64"),
    ({"system": "Windows", "machine": "x86"}, "AMD64"),
    ({"system": "Linux", "machine": "x86_64", "glibc": "2.17"}, "glibc 2.28"),
    ({"system": "Linux", "machine": "x86_64", "glibc": ""}, "another C library"),
    ({"system": "Linux", "machine": "riscv64", "glibc": "2.39"}, "riscv64"),
    ({"system": "FreeBSD", "machine": "amd64"}, "FreeBSD"),
]


@pytest.mark.parametrize(("facts", "word"), UNSUPPORTED)
def test_a_machine_without_wheels_is_told_so_in_one_sentence(facts, word):
    build = choose_build(MachineFacts(**facts), PINS)
    assert word in build.problem
    assert build.problem.count(". ") == 0 and build.problem.endswith(".")
    assert (build.torch, build.index_url) == ("", None)


@pytest.mark.parametrize(("facts", "name", "word"), [
    ({**LINUX, "driver": "580.65", "compute": ("8.6",)}, "cu130", "xformers is left out"),
    ({**LINUX, "driver": "550.54", "compute": ("8.6",)}, "cu126", "uses the CPU until"),
    ({**LINUX, "amd_card": True}, "rocm7.2", "uses the CPU until"),
    ({**WINDOWS, "driver": "581.29", "compute": ("8.6",)}, "cu130", "uses the CPU until"),
    (LINUX, "cpu", "CUDA libraries"),
])  # fmt: skip
def test_a_silent_index_is_given_up_for_the_default_one_and_its_cost_is_said(facts, name, word):
    machine = MachineFacts(**facts)
    build = on_default_index(choose_build(machine, PINS), machine, PINS)
    assert (build.name, build.index_url, build.torch) == (name, None, "torch==2.13.0")
    assert build.xformers is None, "the default index's xformers is built for CUDA 12, its torch for CUDA 13 or the CPU"
    assert word in " ".join(build.notes)
    keeps_gpu = machine.system == "Linux" and name == "cu130"
    assert build.onnxruntime.startswith("onnxruntime-gpu") == keeps_gpu


def test_a_build_from_the_default_index_does_not_change_when_no_index_answers():
    machine = MachineFacts("Darwin", "arm64", macos="15.0")
    build = choose_build(machine, PINS)
    assert on_default_index(build, machine, PINS) == build


def test_the_user_may_choose_the_build_and_the_mirror():
    machine = MachineFacts(**LINUX, driver="580.65", compute=("8.6",))
    build = choose_build(machine, PINS, requested="cpu", index="https://mirror.example/whl/")
    assert (build.name, build.index_url, build.xformers) == ("cpu", "https://mirror.example/whl/cpu", None)


def test_versions_compare_by_value_not_by_spelling():
    assert version_numbers("580.65.06") == (580, 65, 6)
    assert version_numbers("10.0") > version_numbers("9.0") > version_numbers("8.6")


def test_the_shipped_requirements_are_adapted_to_the_build():
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    pins = pins_from(text)
    build = choose_build(MachineFacts(**LINUX), pins)
    lines = adapted_requirements(text, build).splitlines()
    assert lines[0] == f"torch=={pins.torch}"
    assert not any(line.startswith(("xformers", "onnxruntime-gpu")) for line in lines)
    assert sum(line.startswith("onnxruntime==") for line in lines) == 1
    untouched = [line for line in text.splitlines() if package_of(line) not in (*ADAPTED, *ALONE)]
    assert lines[2:] == untouched
    assert packages_alone(text) == [line for line in text.splitlines() if line.startswith("spandrel==")]


def test_torch_and_xformers_come_as_a_pair_from_one_index():
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    build = choose_build(MachineFacts(**LINUX, driver="580.65", compute=("8.6",)), pins_from(text))
    assert adapted_requirements(text, build).splitlines()[:2] == [build.torch, build.xformers]
    assert isinstance(build, Build) and build.index_url.endswith("/cu130")


@pytest.mark.parametrize(
    ("system", "driver", "compute", "build", "xformers"),
    [
        ("Linux", "525.59", "8.6", "cpu", False),
        ("Linux", "525.60", "8.6", "cu126", True),
        ("Windows", "528.32", "8.6", "cpu", False),
        ("Windows", "528.33", "8.6", "cu126", True),
        ("Linux", "579.99", "8.6", "cu126", True),
        ("Linux", "580", "8.6", "cu130", True),
        ("Linux", "550.1", "4.9", "cpu", False),
        ("Linux", "550.1", "5.0", "cu126", False),
        ("Linux", "550.1", "9.0", "cu126", True),
        ("Linux", "550.1", "9.1", "cu130", True),
        ("Linux", "580.1", "7.4", "cu126", False),
        ("Linux", "580.1", "7.5", "cu130", True),
    ],
)
def test_builds_at_the_edges_of_drivers_and_gpus(system, driver, compute, build, xformers):
    facts = {"Linux": LINUX, "Windows": WINDOWS}[system] | {"driver": driver, "compute": (compute,)}
    found = choose_build(MachineFacts(**facts), PINS)
    assert (found.name, found.xformers is not None) == (build, xformers)
