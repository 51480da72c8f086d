"""The items for a GPU build and take their steps on a card that computes nothing (tests/card)."""

import json
import os
import subprocess
import sys

import pytest

from core.record.workspace import PROJECT
from tests.card.library import COMPILER

pytestmark = [
    pytest.mark.skipif(COMPILER is None or sys.platform != "linux", reason="no C++ compiler, or not Linux"),
    pytest.mark.slow,  # minutes
]


def test_no_item_for_a_gpu_breaks_by_itself(tmp_path):
    command = [sys.executable, "-m", "tests.machine_check.on_a_card", str(tmp_path)]
    done = subprocess.run(
        command, cwd=PROJECT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    lines = {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 0, done.stderr[-3000:]
    assert {"no_waits", "real_plain", "real_checkpointing", "real_adamw8bit", "train_tf32"} <= set(lines)
    assert not {name: line["error"] for name, line in lines.items() if "error" in line}
    assert lines["no_waits"]["state"] == "ok"
    saved = lines["real_checkpointing"]["facts"]["reserved_bytes"]
    assert saved < lines["real_plain"]["facts"]["reserved_bytes"]
