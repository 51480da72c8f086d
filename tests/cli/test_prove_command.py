"""--prove, and a finished run that is trained further from the command line."""

import json
import subprocess
import sys

import pytest

from core.record.run_folder import list_runs
from core.record.workspace import PROJECT

SMALL = "--dataset.resolution 64 --network.rank 2 --network.conv_rank null --samples.sample_prompts [] --logging.log_with none".split()


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


def train(outputs, *more, preset=True):
    start = [sys.executable, "webui.py", "train", *(["presets/starter_lora.json", *SMALL] if preset else [])]
    words = [*start, "--outputs", str(outputs), "--device", "cpu", *more]
    return subprocess.run(words, cwd=PROJECT, capture_output=True, text=True, timeout=300)


def test_the_proof_shows_both_hashes_and_leaves_no_run(outputs):
    done = train(outputs, "--prove", "4")
    assert done.returncode == 0, done.stderr
    first, second, verdict = done.stdout.strip().splitlines()[-3:]
    assert first.split()[-1] == second.split()[-1] and len(first.split()[-1]) == 64 and verdict == "equal to the bit"
    assert not list_runs(outputs / "runs")
    for wrong in ("1", "many"):
        done = train(outputs, "--prove", wrong)
        assert done.returncode == 2 and "no number of steps" in done.stderr


def test_a_finished_run_is_trained_further_and_nothing_that_is_learnt_changes(outputs):
    assert train(outputs, "--schedule.max_train_steps", "2").returncode == 0
    folder = list_runs(outputs / "runs")[0]
    refused = train(outputs, "--continue", folder.name, "--network.rank", "8", preset=False)
    assert refused.returncode == 2 and "cannot change while a run goes on" in refused.stderr
    done = train(outputs, "--continue", folder.name, "--schedule.max_train_steps", "4", preset=False)
    assert done.returncode == 0, done.stderr
    assert "Continuing from step 2" in done.stderr
    assert json.loads((folder.path / "job-1.json").read_text())["schedule"]["max_train_steps"] == 2
    names = {path.name for path in folder.checkpoints.iterdir()}
    assert {"glyph_style.safetensors", "glyph_style-step00000002.safetensors"} <= names, (
        "the file of its first end stays"
    )
