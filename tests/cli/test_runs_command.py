"""webui.py runs and --queue: what the queue holds, why it waits, and what the runs have."""

import io
import json
import os
import sys

import pytest

from core.cli import jobs
from core.cli.jobs import run_job
from core.cli.main import main
from core.cli.options import Options
from core.engine.engine import Engine
from core.engine.owner import Ownership, inbox
from core.engine.queue import Queue
from core.record.events import Saved, StateChanged, Validated
from core.record.journal import Journal
from core.record.workspace import Workspace
from core.settings.presets.files import to_values
from tests.engine.test_engine import job, killed_run


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path / "outputs", tmp_path / "models", tmp_path / "presets")


@pytest.fixture
def listed(workspace, capsys):
    def listed(*more):
        capsys.readouterr()
        assert main(["runs", "--outputs", str(workspace.outputs), *more]) == 0
        return capsys.readouterr().out

    return listed


def files_of(folder):
    return {path: os.stat(path).st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != "lock"}


def test_the_queue_and_the_runs_are_listed_while_a_page_is_open_and_nothing_is_written(workspace, listed):
    run = killed_run(workspace)
    run.checkpoints.mkdir()
    for step in (3, 5):
        (run.checkpoints / f"a-{step}.safetensors").write_bytes(b"x")
    with Journal(run.path) as journal:
        for step, loss in ((3, 0.2), (5, 0.1)):
            journal.put(Saved(step, f"checkpoints/a-{step}.safetensors", 1))
            journal.put(Validated(step, loss, 0.1, 0.0, {"200": loss}, 2))
        journal.put(StateChanged("done"))
    engine = Engine(workspace, "cpu")
    waits = engine.submit("train", job("owl"))
    engine.pause_queue()
    before = files_of(workspace.outputs)
    text, facts = listed(), json.loads(listed("--json"))
    assert files_of(workspace.outputs) == before
    engine.close()
    assert "The queue is paused. Waiting jobs start after Resume queue" in text and "No page" not in text
    assert f"{waits}  waiting  train 'owl'  waiting in the paused queue" in text
    assert [(each["id"], each["state"]) for each in facts["queue"]] == [(waits, "waiting")]
    (row,) = facts["runs"]
    assert (row["name"], row["state"], row["step"], row["total"]) == (run.name, "done", 5, 10)
    assert row["folder"] == str(run.path) and len(row["files"]) == 2
    assert row["best"]["file"].endswith("a-5.safetensors") and row["best"]["step"] == 5 and row["why"]
    assert f"best: {row['best']['file']}. {row['why']}" in text


def test_after_a_crash_it_says_why_jobs_wait_and_jobs_that_no_page_has_taken_in_are_listed(workspace, listed):
    assert "The queue is empty." in listed()
    queue = Queue(workspace.private / "queue.json")
    for name in ("fox", "owl"):
        queue.add("train", name, to_values(job(name)))
    queue.take()
    run_job("train", job("cat"), "cat", options(workspace))
    text = listed()
    assert "paused: the program ended unexpectedly while 'fox' trained" in text and "No page is open" in text
    assert [line.split("'")[1] for line in text.splitlines() if "  waiting  " in line] == ["owl", "cat"]
    (workspace.private / "queue.json").write_text("{half")
    assert "'cat'" in listed()


def options(workspace, **values):
    return Options(values={"outputs": str(workspace.outputs), "queue": True, **values})


def test_a_run_that_is_queued_already_or_that_the_page_refuses_is_an_error(workspace, tmp_path, capsys):
    run = killed_run(workspace)
    words = ["train", "--outputs", str(workspace.outputs), "--queue", "--continue"]
    assert main([*words, run.name]) == 0
    before = files_of(workspace.outputs)
    assert main([*words, run.name, "--schedule.max_train_steps", "77"]) == 2
    assert "already in the queue" in capsys.readouterr().err and files_of(workspace.outputs) == before
    engine = Engine(workspace, "cpu")
    engine.pause_queue()
    engine.start()
    elsewhere = killed_run(Workspace(tmp_path / "elsewhere", tmp_path / "models"))
    elsewhere.path.rename(other := elsewhere.path.with_name("other"))
    assert main([*words, str(other)]) == 2
    said = capsys.readouterr()
    assert "no such run" in said.err and "is in the queue" not in said.out
    assert main([*words, run.name]) == 2, "taken in meanwhile"
    engine.close()


def test_a_job_on_the_command_line_is_no_page(workspace, listed):
    owner = Ownership(workspace, "a training on the command line")
    assert not json.loads(listed("--json"))["page"]
    owner.release()


def test_a_queued_job_prints_its_id_and_that_the_queue_is_paused(workspace, capsys, monkeypatch):
    monkeypatch.setattr(jobs, "ANSWER_SECONDS", 0)
    engine = Engine(workspace, "cpu")
    engine.submit("train", job("owl"))
    assert run_job("train", job(), "fox", options(workspace)) == 0
    assert "paused" not in capsys.readouterr().out
    engine.pause_queue()
    run = killed_run(workspace)
    assert run_job("train", job(), "fox", options(workspace), resume=run) == 0
    said = capsys.readouterr().out
    handed = [json.loads(path.read_text()) for path in sorted(inbox(workspace).glob("*.json"))]
    assert handed[-1]["id"] in said and "The queue is paused" in said and "Resume queue" in said
    assert run_job("train", job(), "fox", options(workspace, json=True)) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["title"], facts["paused"], facts["page"]) == ("fox", True, True) and len(facts["id"]) == 12
    engine.close()


def test_a_pipe_gets_utf_8_whatever_the_code_page(workspace, monkeypatch):
    killed_run(workspace)
    outputs = workspace.outputs.rename(workspace.outputs.with_name("キツネ"))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="cp1252"))
    assert main(["runs", "--json", "--outputs", str(outputs)]) == 0
    assert json.loads(sys.stdout.buffer.getvalue().decode("utf-8"))["outputs"] == str(outputs)
