"""The part `lists` of the benchmark: that it measures, not how much."""

import json

import pytest

from core.engine.engine import Engine
from core.record.workspace import Workspace
from workshop.bench import lists
from workshop.bench.datasets import make_many
from workshop.bench.run import known_part, table


def test_a_made_run_is_one_that_the_list_shows_with_its_models(tmp_path):
    engine = Engine(Workspace.of(tmp_path), "cpu")
    folders = [lists.make_run(Workspace.of(tmp_path).runs, number, 20) for number in range(2)]
    found = engine.runs()
    engine.close()
    assert [run.folder for run in found] == folders[::-1]
    assert all((run.state, run.step, len(run.files), run.best[0]) == ("done", 20, lists.SAVES, 0.2) for run in found)
    assert sum('"steps"' in line for line in (folders[0] / "events.jsonl").read_text().splitlines()) == 20


def test_numbers_of_the_lists_make_a_table():
    opened = {"first_seconds": 0.1, "seconds": 0.25, "again_seconds": 0.02, "bytes": 7e6}
    found = {"runs": 5, "steps": 20, "images": 30, "first": opened, "again": opened, "first_seconds": 0.4}
    found |= {"seconds": 6.0, "busy_find_seconds": 0.2, "find_seconds": 0.05, "longest_find_seconds": 0.1}
    facts = {"device": "CPU", "threads": 2, "bf16_in_hardware": False, "torch": "2"}
    shown = table({"machine": facts, "lists": found})
    assert known_part("lists") and "| first rows 0.10 s, all 0.25 s, again 20 ms; 7 MB |" in shown
    assert "| searching 30 images on Captions | 50 ms, at most 100 |" in shown


@pytest.mark.slow
def test_lists_of_a_page_are_opened_and_searched(tmp_path, capsys):
    lists.make_run(Workspace.of(tmp_path / "outputs").runs, 1, 20)
    make_many(tmp_path / "images", 20)
    for words in (["runs", str(tmp_path / "outputs")], ["images", str(tmp_path / "outputs"), str(tmp_path / "images")]):
        lists.main(words)
        assert all(value > 0 for name, value in json.loads(capsys.readouterr().out).items() if name != "bytes")
