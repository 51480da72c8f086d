"""A tool that no file of the product knows: form, preset, command line, queue, process, journal, pause, cancel, result."""

import json
import subprocess
import sys

import pytest

from core import tasks
from core.cli.main import main
from core.engine.engine import Engine
from core.engine.owner import hand_in
from core.record.journal import read_lines
from core.record.workspace import PROJECT, Workspace
from core.settings.check import build
from core.settings.job import JOBS
from core.settings.presets.files import PresetStore, dump, to_values
from tests.tabs.work_parts import event, make_page, wait_until
from workshop import docs


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "files"
    place.mkdir()
    for number in range(5):
        (place / f"{number}.txt").write_text("x")
    (place / "other.md").write_text("x")
    return place


@pytest.fixture
def engine(tmp_path):
    engine = Engine(Workspace(tmp_path / "outputs", tmp_path / "models", tmp_path / "presets"), "cpu", "a test")
    engine.start()
    yield engine
    engine.close()


def job_of(folder, **asked):
    return build(JOBS["count"], {"count": {"folder": str(folder), **asked}})


def test_the_command_line_knows_it(folder, tmp_path, capsys):
    words = ["count", "--count.folder", str(folder), "--outputs", str(tmp_path / "out")]
    assert main(["--help"]) == 0 and "count the files of a folder" in capsys.readouterr().out
    for asked in (["count", "--help"], ["tool", "count", "--help"]):
        assert main(asked) == 0 and "--count.suffix" in capsys.readouterr().out
    assert main([*words, "--count.suffix", ".txt"]) == 0 and capsys.readouterr().out == "5 files\n"
    assert main([*words, "--check"]) == 0 and main([*words, "--count.sufix", "x"]) == 2
    assert main(["count", "--count.folder", str(folder / "nowhere"), *words[3:]]) == 1
    assert "fix:" in capsys.readouterr().err
    assert "count.suffix" in docs.render()


def test_it_is_a_preset_and_a_job_file(folder, tmp_path, capsys):
    job = job_of(folder, suffix=".md")
    store = PresetStore(tmp_path / "presets")
    name = store.save("mine", job, task="count")
    assert store.load(name).task == "count" and json.loads(json.dumps(to_values(job)))["count"]["suffix"] == ".md"
    assert main(["count", str(store.path(name)), "--outputs", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == "1 files\n"
    assert dump(job, task="count")["task"] == "count"


def test_it_only_reads_so_it_runs_while_a_page_holds_the_folder(engine, folder, monkeypatch):
    monkeypatch.setattr("core.record.lock.LOOK_SECONDS", 0.1)
    assert main(["count", "--count.folder", str(folder), "--outputs", str(engine.workspace.outputs)]) == 0
    assert main(["number", "--number.folder", str(folder), "--outputs", str(engine.workspace.outputs)]) == 2


@pytest.mark.slow
def test_it_goes_through_the_queue_in_a_process_of_its_own_and_leaves_a_journal(engine, folder):
    hand_in(engine.workspace, "count", "", to_values(job_of(folder)))  # as from another terminal
    wait_until(lambda: [entry.state for entry in engine.queue()] == ["done"], 120)
    (entry,) = engine.queue()
    found = engine.progress(entry.id)
    assert (found["lines"], found["facts"]) == (["6 files"], {"files": 6})
    assert entry.task == "count" and str(folder.name) in entry.title
    kinds = [line["kind"] for line in read_lines(engine._runs.folder(entry.run).journal_file)]
    assert kinds[0] == "state" and "stage" in kinds and kinds[-2:] == ["result", "state"]
    assert (engine._runs.folder(entry.run).logs / "processes.txt").is_file()


@pytest.mark.slow
def test_it_stops_when_the_program_that_started_it_is_gone(tmp_path, folder):
    code = f"""
import os, time
from core import extensions
extensions.EXTENSIONS += ("tests.seams.toys.count",)
from core.engine.engine import Engine
from core.record.workspace import Workspace
from pathlib import Path
from core.settings.check import build
from core.settings.job import JOBS
engine = Engine(Workspace(Path({str(tmp_path / "out")!r})), "cpu", "a test")
job = engine.submit("count", build(JOBS["count"], {{"count": {{"folder": {str(folder)!r}, "seconds": 2}}}}))
while not engine.progress(job)["done"]:
    time.sleep(0.1)
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True, timeout=120)
    (journal,) = (tmp_path / "out" / ".atelier" / "jobs").glob("*/events.jsonl")
    wait_until(lambda: [line["state"] for line in read_lines(journal) if line["kind"] == "state"][-1] == "stopped", 60)


@pytest.mark.slow
def test_the_page_shows_its_form_and_its_work_that_pauses_resumes_and_stops_at_its_checks(tmp_path, engine, folder):
    from tabs.tools.forms import ToolForm, cards

    page = make_page(tmp_path, engine)
    tools = page.works
    (card,) = (card for card in cards("Tools") if card.name == "count")
    form = ToolForm(page, card)
    assert all(words in form.html() for words in ("Count files", "Counts the files of a folder.", 'data-arg="suffix"'))
    form.act(event("field", "suffix", ".txt"))
    form.act(event("field", "seconds", "10"))  # for each: it is cancelled long before the last
    form.act(event("go", "", str(folder)))

    def work():
        (found,) = tools.parts("Tools", {})["works"]
        return found

    wait_until(lambda: work()["share"], 120)
    for command, state in (("pause", "paused"), ("resume", "running")):
        tools.pause({"work": work()["id"], "command": command}, None)
        wait_until(lambda state=state: work()["state"] == state)
    tools.cancel({"work": work()["id"]}, None)
    wait_until(lambda: work()["state"] == "cancelled", 120)
    assert (work()["card"], work()["problems"]) == ("count", [])
    assert engine.queue()[0].job["count"]["suffix"] == ".txt"


def test_it_can_be_taken_back():
    task = tasks.named("count")
    del tasks.TASKS["count"]
    try:
        assert "count" not in JOBS and main(["count"]) == 2
    finally:
        tasks.register(task)


@pytest.mark.slow
def test_registering_it_loads_no_torch():
    code = "from core import extensions as e; e.EXTENSIONS += ('tests.seams.toys.count', 'tests.seams.toys.spell')\n"
    code += "import core.settings.job, sys; assert 'count' in core.settings.job.JOBS and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT, check=True)
