"""The same job without the page: exit codes, Ctrl-C, kill -9."""

import json
import shutil
import signal
import subprocess
import sys
import time

import pytest

from core.cli.main import main
from core.engine.owner import Ownership
from core.record.journal import read_lines
from core.record.run_folder import list_runs, newest_state, state_step
from core.record.workspace import PROJECT, Workspace

IMAGES = PROJECT / "models" / "starter" / "images"
SMALL = "--dataset.resolution 64 --network.rank 2 --network.conv_rank null --samples.sample_prompts [] --logging.log_with none".split()


def words(outputs, *more):
    preset = str(PROJECT / "presets" / "starter_lora.json")
    return ["train", preset, *SMALL, "--outputs", str(outputs), "--device", "cpu", *more]


def started(*words):
    """A process of its own."""
    return subprocess.Popen([sys.executable, "webui.py", *words], cwd=PROJECT, stderr=subprocess.PIPE, text=True)


def run(outputs, *more):
    """In a process of its own: what loads torch in it takes seconds."""
    command = [sys.executable, "webui.py", *words(outputs, *more)]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=600)


def journal(outputs):
    return list(read_lines(list_runs(outputs / "runs")[0].journal_file))


def wait_for_steps(outputs, process, count, runs_before):
    """Wait until the newest run, which is none of those before, has made this many steps."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        assert process.poll() is None, process.communicate()[1]
        runs = list_runs(outputs / "runs")
        if len(runs) > runs_before and any(
            line["kind"] == "steps" and line["steps"][-1] >= count for line in read_lines(runs[0].journal_file)
        ):
            return
        time.sleep(0.1)
    raise AssertionError("no steps came")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """One output folder for the module, so that images are encoded once."""
    return tmp_path_factory.mktemp("outputs")


def test_a_preset_with_flags_trains_and_exits_with_0(outputs, capfd):
    more = "--schedule.max_train_steps 4 --optimizer.learning_rate 2e-4 --saving.output_name"
    assert main(words(outputs, *more.split(), "a v1.5")) == 0
    said = capfd.readouterr().err
    assert "4/4" in said and "epoch 1" in said, "a progress bar is shown"
    folder = list_runs(outputs / "runs")[0]
    assert folder.job()["optimizer"]["learning_rate"] == 2e-4 and folder.job()["network"]["conv_rank"] is None
    assert (folder.checkpoints / "a v1.5.safetensors").is_file(), "a dot in the name stays"


@pytest.mark.slow
def test_bad_input_exits_with_2_and_lists_everything(outputs, tmp_path):
    before = len(list_runs(outputs / "runs"))
    done = run(
        outputs, "--dataset.folder", str(tmp_path / "nowhere"), "--optimizer.learning_rate", "nan", "--network.rnk", "3"
    )
    assert done.returncode == 2
    assert "optimizer.learning_rate" in done.stderr and "did you mean --network.rank" in done.stderr
    assert main(words(outputs, "--dataset.folder", str(tmp_path / "nowhere"))) == 2
    assert len(list_runs(outputs / "runs")) == before, "nothing was begun"


def test_a_missing_preset_and_a_newer_one_exit_with_2(tmp_path, capsys):
    newer = tmp_path / "newer.json"
    newer.write_text(json.dumps({"kind": "job", "schema_version": 99}))
    for preset, said in ((tmp_path / "none.json", "does not exist"), (newer, "update Atelier")):
        assert main(["train", str(preset)]) == 2 and said in capsys.readouterr().err


def test_an_output_folder_that_cannot_be_made_exits_with_2(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(words(tmp_path / "file" / "outputs")) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_model_of_another_family_exits_with_2_and_is_named(outputs, tmp_path, capsys):
    import torch
    from safetensors.torch import save_file

    path = tmp_path / "three.safetensors"
    names = {
        "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": (4608, 1536),
        "model.diffusion_model.x_embedder.proj.weight": (1536, 16, 2, 2),
    }
    save_file({name: torch.zeros(shape, dtype=torch.float16) for name, shape in names.items()}, path)
    assert main(words(outputs, "--model.base_model", str(path))) == 2
    assert "Stable Diffusion 3" in capsys.readouterr().err


def test_check_says_what_would_be_trained_and_begins_nothing(tmp_path, capsys):
    assert main(words(tmp_path, "--check")) == 0
    assert "24 images" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_ctrl_c_saves_exits_with_130_and_the_run_goes_on_later(outputs, capsys):
    before = len(list_runs(outputs / "runs"))
    process = started(*words(outputs, "--schedule.max_train_steps", "4000"))
    wait_for_steps(outputs, process, 3, before)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 130, errors
    folder = list_runs(outputs / "runs")[0]
    assert f"--continue {folder.name}" in errors
    assert len(list(folder.checkpoints.iterdir())) == 1
    stopped = max(line["steps"][-1] for line in journal(outputs) if line["kind"] == "steps")
    text = json.loads(folder.job_file.read_text())
    text["schedule"]["max_train_steps"] = stopped + 3
    folder.job_file.write_text(json.dumps(text))
    assert main(["train", "--continue", folder.name, "--outputs", str(outputs)]) == 0
    assert f"Resuming from step {stopped}" in capsys.readouterr().err


@pytest.mark.slow
def test_a_kill_at_a_random_moment_leaves_everything_readable_and_the_run_continues(outputs):
    from random import Random

    from safetensors.torch import load_file

    random = Random(time.time_ns())
    more = ["--schedule.max_train_steps", "100000", "--saving.save_every_n_steps", "3", "--saving.save_last_n", "2"]
    before = len(list_runs(outputs / "runs"))
    process = started(*words(outputs, *more))
    wait_for_steps(outputs, process, 4, before)
    folder = list_runs(outputs / "runs")[0]
    for _ in range(2):
        time.sleep(random.uniform(0, 0.7))
        process.kill()
        process.communicate()
        assert not folder.held
        half = list(folder.path.glob("*/.tmp-*"))
        for path in folder.checkpoints.glob("[!.]*.safetensors"):
            load_file(path)
        state, told = newest_state(folder.states), len(journal(outputs))
        reached = max(line["steps"][-1] for line in journal(outputs) if line["kind"] == "steps")
        process = started("train", "--continue", folder.name, "--outputs", str(outputs))
        wait_for_steps(outputs, process, reached + 2, before)
        lived = journal(outputs)[told:]
        begun = next(line["steps"][0] for line in lived if line["kind"] == "steps")
        assert begun == (state_step(state) if state else 0) + 1, "it goes on from the newest whole state"
        assert not [line for line in lived if line["kind"] == "log" and "damaged" in line["text"]]
        assert not any(path.exists() and path.parent == folder.checkpoints for path in half), (
            "a kill's halves are removed"
        )
    process.kill()
    process.communicate()


def test_help_lists_every_setting(capsys):
    from core.settings.base import declared
    from core.settings.job import TrainJob

    assert main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"--{entry.path} " in shown for entry in declared(TrainJob))


def test_captions_are_reported_and_missing_ones_written(tmp_path, capsys):
    folder = tmp_path / "red fox"
    folder.mkdir()
    for name in ("fox", "bear"):
        shutil.copy(IMAGES / f"{name}.png", folder)
    (folder / "bear.txt").write_text("a bear")
    base = ["caption", "--dataset.folder", str(folder), "--outputs", str(tmp_path / "out")]
    assert main(base) == 0 and "2 images, 1 with a caption" in capsys.readouterr().out
    assert main([*base, "--caption.write_missing", "a photo of {words}"]) == 0
    assert (folder / "fox.txt").read_text().strip() == "a photo of red fox"
    assert (folder / "bear.txt").read_text() == "a bear"


@pytest.mark.slow
def test_what_only_reads_runs_while_a_page_holds_the_folder(tmp_path, capsys):
    outputs = ["--outputs", str(tmp_path / "out")]
    owner = Ownership(Workspace(tmp_path / "out"), "a page", page=True)
    try:
        caption = ["caption", "--dataset.folder", str(IMAGES), *outputs]
        assert main(["tool", "--tool.name", "inspect", "--tool.file", "models/starter", *outputs]) == 0
        assert "SD 1.x checkpoint" in capsys.readouterr().out
        assert main(caption) == 0
        assert main([*caption, "--caption.write_missing", "x"]) == 2 and "a page" in capsys.readouterr().err
    finally:
        owner.release()


def test_a_job_for_the_queue_says_when_no_page_is_there_to_take_it(tmp_path, capsys):
    assert main([each for each in words(tmp_path, "--queue") if each not in ("--device", "cpu")]) == 0
    assert "no page" in capsys.readouterr().out
    assert len(list((tmp_path / ".atelier" / "inbox").glob("*.json"))) == 1
