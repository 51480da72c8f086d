"""Options that decide what a command does: each pair goes together or is refused, and none is ignored."""

import json
from itertools import combinations

import pytest

from core.cli import train
from core.cli.main import BAD_INPUT, DONE, main
from core.cli.options import COMMON, DATASET, JOB, MODES, commands, job_from, split_options
from core.engine.owner import Ownership
from core.record.run_folder import RunFolder
from core.record.workspace import PROJECT, Workspace
from core.settings.presets.files import dump
from tests.refusals import refused

PLAIN = {*COMMON, *DATASET, "prompt", "from-file", "lora", "embedding"}  # which say what with, not what to do
TOGETHER = [
    *["check debug-dataset", "check continue", "probe continue", "probe queue", "probe json", "continue queue"],
    *["continue json", "queue json"],
    *[f"{each} device" for each in ("check", "debug-dataset", "probe", "prove", "interactive", "continue")],
]
STARTER = [
    str(PROJECT / "presets" / "starter_lora.json"),
    "--dataset.resolution",
    "64",
    "--samples.sample_prompts",
    "[]",
]


@pytest.mark.parametrize("command", [name for name, options in commands().items() if "queue" in options])
def test_each_pair_of_modes_goes_together_or_is_refused(command):
    known = commands()[command]
    assert known.keys() <= {*PLAIN, *MODES}, "a new option decides what is done, or it does not"
    modes = [name for name in MODES if name in known]
    assert {"check", "queue", "json"} <= JOB.keys() & set(modes)
    for pair in combinations(modes, 2):
        words = [part for name in pair for part in ([f"--{name}", "2"] if known[name][0] else [f"--{name}"])]
        apart = [each for each in split_options(words, known, task=command).problems if each.code == "cli.apart"]
        assert bool(apart) == (" ".join(pair) not in TOGETHER), pair
    alone = split_options(["--json"], known, task=command).problems
    assert [each.code for each in alone] == ["cli.json-alone"]


@pytest.fixture
def run(tmp_path):
    job = job_from("train", split_options(STARTER, commands()["train"], task="train"))
    return RunFolder.create(tmp_path / "runs", "fox", dump(job))


def test_a_checked_or_probed_continue_trains_nothing_and_leaves_the_run_as_it_is(run, tmp_path, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(train, "run_job", lambda task, job, *_, **more: ran.append((task, job, more)) or DONE)
    words = ["train", "--continue", run.name, "--outputs", str(tmp_path), "--device", "cpu"]
    longer = ["--schedule.max_train_steps", "12", "--schedule.max_train_epochs", "null"]
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    assert main([*words, *longer, "--check"]) == DONE and not ran
    assert "12 steps" in capsys.readouterr().out
    assert main([*words, "--network.rank", "3", "--check"]) == BAD_INPUT
    assert main([*words, *longer, "--probe"]) == DONE
    ((task, job, more),) = ran
    assert (task, job.schedule.max_train_steps, more) == ("probe", 12, {})
    for more in (["--prove", "2"], ["--queue", "--check"], ["--check=1"]):
        assert main([*words, *longer, *more]) == BAD_INPUT and len(ran) == 1
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
    assert main([*words, *longer]) == DONE and ran[-1][0] == "train"
    assert json.loads(run.job_file.read_text())["schedule"]["max_train_steps"] == 12


def test_a_run_keeps_its_settings_if_a_page_holds_the_outputs_folder(run, tmp_path, monkeypatch):
    monkeypatch.setattr("core.record.lock.LOOK_SECONDS", 0.1)
    page, before = Ownership(Workspace(tmp_path, tmp_path, tmp_path), "a page", page=True), run.job_file.read_bytes()
    words = ["--continue", run.name, "--outputs", str(tmp_path), "--schedule.max_train_steps", "12"]
    with refused("outputs.held"):
        train.run([*words, "--schedule.max_train_epochs", "null"])
    page.release()
    assert run.job_file.read_bytes() == before


def test_a_process_that_follows_checks_and_queues_nothing(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(train, "run_job", None)
    assert [main(["train", *STARTER, option]) for option in ("--check", "--queue", "--probe")] == [DONE] * 3
