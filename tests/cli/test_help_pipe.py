"""Help that is piped into a program which stops reading."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(os.name == "nt", reason="a pipe of POSIX")
def test_help_into_a_closed_pipe_ends_quietly():
    reads, writes = os.pipe()
    os.close(reads)
    command = [sys.executable, "webui.py", "train", "--help"]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, stdout=writes, stderr=subprocess.PIPE, cwd=root, text=True, timeout=120)
    os.close(writes)
    assert (done.returncode, done.stderr) == (0, "")
