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


@pytest.fixture(scope="module")
def found(request, tmp_path_factory):
    """{case: what was counted} for each case that a test of this run asks for; libraries are loaded once for all."""
    here = [item for item in request.session.items if item.path == request.path]
    cases = list(dict.fromkeys(item.callspec.params["case"] for item in here))
    command = [sys.executable, "-m", "tests.card.generations", str(tmp_path_factory.mktemp("card")), *cases]
    env = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, cwd=PROJECT, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line["name"]: line for line in lines}


@pytest.mark.parametrize("case", LIMITS)
def test_a_generation_at_the_real_size_fits_and_takes_what_was_foretold(found, case):
    told = found[case]
    offload, limit = LIMITS[case]
    peak = max(told["loading"], told["steps"], told["decoding"])
    assert told["offload"] == offload and peak <= limit
    assert told["forecast"] == pytest.approx(peak, rel=0.03)
    if offload == "off":
        assert told["steps"] <= 1.1 * (told["held"] + told["evaluation"]), "weights and one evaluation"
    assert (told["held"] < 0.1) == (offload == "layers"), "what is moved leaves nothing behind"
