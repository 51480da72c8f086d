"""Optimizer steps on the card that computes nothing (tests/card): one operation for all weights, not some for each."""

import json
import subprocess
import sys

import pytest

from core.record.workspace import PROJECT
from tests.card.library import COMPILER

pytestmark = pytest.mark.skipif(COMPILER is None or sys.platform != "linux", reason="no C++ compiler, or not Linux")
TOGETHER = ("AdamW", "Adam", "SGD", "SGDNesterov", "NAdam", "RAdam", "RMSprop", "AdamWScheduleFree")


@pytest.mark.slow
def test_more_weights_take_no_more_operations():
    command = [sys.executable, "-m", "tests.card.optimizers", *TOGETHER]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [each["name"] for each in found] == list(TOGETHER), done.stderr[-3000:]
    assert not [each for each in found if len(set(each.get("operations", (1, 2)))) > 1]
