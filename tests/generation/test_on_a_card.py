"""What a generation takes of a GPU, counted on one that computes nothing (tests/card), compared with what the forecast says."""

import json
import os
import subprocess
import sys

import pytest

from core.record.workspace import PROJECT
from tests.card.library import COMPILER

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMPILER is None or sys.platform != "linux", reason="no C++ compiler, or not Linux"),
]
# case: (what is moved to RAM, GB that it may take at most)
LIMITS = {
    "sd15 auto, 8 GB": ("off", 3.0),
    "sd15 by layers": ("layers", 1.2),
    "sdxl fp8, auto, 6 GB": ("off", 6.0),
    "sdxl auto, 8 GB": ("parts", 6.0),
    "sdxl 32 strips": ("layers", 0.7),
}


@pytest.mark.parametrize("case", LIMITS)
def test_a_generation_at_the_real_size_fits_and_takes_what_was_foretold(tmp_path, case):
    command = [sys.executable, "-m", "tests.card.generations", str(tmp_path), case]
    env = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, cwd=PROJECT, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    offload, limit = LIMITS[case]
    peak = max(found["loading"], found["steps"], found["decoding"])
    assert found["offload"] == offload and peak <= limit
    assert found["forecast"] == pytest.approx(peak, rel=0.03)
    if offload == "off":
        assert found["steps"] <= 1.1 * (found["held"] + found["evaluation"]), "weights and one evaluation"
    assert (found["held"] < 0.1) == (offload == "layers"), "what is moved leaves nothing behind"
