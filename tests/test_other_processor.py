"""The tests of precision on a processor without AVX-512 and bf16, which torch and oneDNN can be told to be on.

A default that is right on one processor and wrong on the next shows on that next one only.
"""

import os
import platform
import subprocess
import sys

import pytest

from core.record.workspace import PROJECT
from tests.selection import slow_unless

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="only x86 can pretend to be older"
)

OLDER = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
FILES = (
    "tests/optimization/test_rounding.py",
    "tests/optimization/test_undo.py",
    "tests/networks/test_frozen.py",
    "tests/networks/test_lora.py",
    "tests/networks/test_dropout.py",
    "tests/methods/test_ema.py",
    "tests/machine_check/test_items.py",
    "tests/dataset/test_latent_cache.py",
    "tests/generation/test_run.py",
    "tests/training/test_step.py",
    "tests/training/test_full_precision.py",
    "tests/training/test_memory_switches.py",
    "tests/training/test_training.py",
)


def run(*words: str) -> subprocess.CompletedProcess:
    alone = {name: text for name, text in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(
        [sys.executable, *words], cwd=PROJECT, env=alone | OLDER, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_the_older_processor_has_no_bf16():
    asked = "import torch; print(torch.backends.cpu.get_cpu_capability(), torch.ops.mkldnn._is_mkldnn_bf16_supported())"
    assert run("-c", asked).stdout.split() == ["AVX2", "False"]


@pytest.mark.slow(only=("tests/optimization/test_rounding.py",))
@pytest.mark.parametrize("file", slow_unless(lambda file: file == FILES[0], FILES))
def test_precision_holds_there(file):
    ran = run("-m", "pytest", "-q", "-p", "no:cacheprovider", file)
    assert ran.returncode == 0, ran.stdout[-4000:]
