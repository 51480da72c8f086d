"""--prove, and a finished run that is trained further from the command line."""

import json

import pytest

from core.cli.main import main
from core.record.run_folder import list_runs
from core.record.workspace import PROJECT

SMALL = "--dataset.resolution 64 --network.rank 2 --network.conv_rank null --samples.sample_prompts [] --logging.log_with none".split()


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


def train(outputs, *more, preset=True):
    start = [str(PROJECT / "presets" / "starter_lora.json"), *SMALL] if preset else []
    return main(["train", *start, "--outputs", str(outputs), "--device", "cpu", *more])


@pytest.mark.slow
def test_the_proof_shows_both_hashes_and_leaves_no_run(outputs, capsys):
    assert train(outputs, "--prove", "4") == 0
    first, second, verdict = capsys.readouterr().out.strip().splitlines()[-3:]
    assert first.split()[-1] == second.split()[-1] and len(first.split()[-1]) == 64 and verdict == "equal to the bit"
    assert not list_runs(outputs / "runs")
    for wrong in ("1", "many"):
        assert train(outputs, "--prove", wrong) == 2 and "not a number of steps" in capsys.readouterr().err


@pytest.mark.slow
def test_a_finished_run_is_trained_further_and_nothing_that_is_trained_changes(outputs, capsys):
    assert train(outputs, "--schedule.max_train_steps", "2") == 0
    folder = list_runs(outputs / "runs")[0]
    capsys.readouterr()
    assert train(outputs, "--continue", folder.name, "--network.rank", "8", preset=False) == 2
    assert "cannot change when a run is resumed" in capsys.readouterr().err
    assert train(outputs, "--continue", folder.name, "--schedule.max_train_steps", "4", preset=False) == 0
    assert "Resuming from step 2" in capsys.readouterr().err
    assert json.loads((folder.path / "job-1.json").read_text())["schedule"]["max_train_steps"] == 2
    names = {path.name for path in folder.checkpoints.iterdir()}
    assert {"glyph_style.safetensors", "glyph_style-step00000002.safetensors"} <= names, (
        "the file of its first end stays"
    )
