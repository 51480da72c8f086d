"""A captioner that no file of the product knows: form, preset, command line, queue, journal, preview, resume, result."""

import pytest
from PIL import Image

from core.cli.main import main
from core.dataset.captions.history import History
from core.engine.engine import Engine
from core.record.journal import read_lines
from core.record.workspace import Workspace
from core.settings.check import build
from core.settings.job import JOBS
from core.settings.presets.files import dump
from tests.tabs.work_parts import event, make_page, wait_until
from tests.tasks import surroundings


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "set"
    place.mkdir()
    for name in ("bear", "cat", "fox"):
        Image.new("RGB", (64, 64)).save(place / f"{name}.png")
    (place / "cat.txt").write_text("mine")
    return place


def captions(folder):
    return {path.stem: path.read_text().strip() for path in sorted(folder.glob("*.txt"))}


def values(folder, **groups):
    return {"dataset": {"folder": str(folder)}, "spell": {"between": " "}, **groups}


def start(folder, tmp_path, **groups):
    from core import tasks

    task = tasks.named("spell")
    context = surroundings(Workspace(tmp_path / "outputs"))
    return task.start(build(task.job, values(folder, **groups)), context), context.journal.events


def test_it_captions_what_has_none_and_keeps_the_rest(folder, tmp_path):
    outcome, events = start(folder, tmp_path)
    assert captions(folder) == {"bear": "b e a r", "cat": "mine", "fox": "f o x"}
    assert outcome.facts == {"images": 2, "written": 2}
    assert [(each.text, each.done, each.total) for each in events if each.kind == "stage"][-1] == ("captioning", 2, 2)


def test_a_preview_shows_captions_and_writes_none(folder, tmp_path):
    outcome, _ = start(folder, tmp_path, captioning={"preview": 2, "existing": "replace"})
    assert captions(folder) == {"cat": "mine"} and (outcome.facts["images"], outcome.facts["written"]) == (2, 0)
    assert [each["caption"] for each in outcome.facts["previews"]] == ["b e a r", "c a t"]
    assert "b e a r" in outcome.lines[0] and "c a t" in outcome.lines[1]


def test_one_that_was_cut_off_resumes_with_what_is_left(folder, tmp_path, monkeypatch):
    asked = {"captioning": {"existing": "replace"}, "spell": {"between": "", "fails_at": "fox"}}
    with pytest.raises(RuntimeError, match="the toy broke"):
        start(folder, tmp_path, **asked)
    assert captions(folder) == {"bear": "bear", "cat": "cat"}
    (folder / "bear.txt").write_text("edited since")
    Image.new("RGB", (64, 64)).save(folder / "owl.png")
    (folder / "fox.png").unlink()
    outcome, _ = start(folder, tmp_path, **asked)
    assert captions(folder) == {"bear": "edited since", "cat": "cat", "owl": "owl"} and outcome.facts["written"] == 1
    history = History(tmp_path / "outputs" / ".atelier" / "captions")
    (run,) = history.entries()
    assert start(folder, tmp_path, **asked)[0].facts["images"] == 3, "a job that ended begins anew"
    history.undo(run.id)
    assert captions(folder) == {"cat": "mine"}, "one undo for the whole run"


def test_the_command_line_lists_its_settings_and_those_that_all_share(folder, tmp_path, capsys):
    words = ["spell", "--dataset.folder", str(folder), "--outputs", str(tmp_path / "out")]
    assert main(["spell", "--help"]) == 0
    shown = capsys.readouterr().out
    assert (
        "--spell.between" in shown and "--captioning.preview" in shown and "--captions.caption_extension" not in shown
    )
    assert main(["spell", "--help", "all"]) == 0 and "--captions.caption_extension" in capsys.readouterr().out
    assert main([*words, "--check"]) == 0 and "2 images" in capsys.readouterr().out
    assert main([*words, "--spell.between", "+"]) == 0 and captions(folder)["fox"] == "f+o+x"
    assert main(["spell", "--outputs", str(tmp_path / "out")]) == 2


def test_a_job_file_the_queue_and_the_page_run_it(folder, tmp_path):
    from core.record import atomic
    from tabs.tools.forms import ToolForm, cards

    job = build(JOBS["spell"], values(folder))
    atomic.write_json(tmp_path / "job.json", dump(job, task="spell"))
    assert main(["spell", str(tmp_path / "job.json"), "--check", "--outputs", str(tmp_path / "o")]) == 0
    engine = Engine(Workspace(tmp_path / "outputs", tmp_path / "models", tmp_path / "presets"), "cpu", "a test")
    try:
        page = make_page(tmp_path, engine)
        page.project.edit("dataset.folder", str(folder))
        (card,) = (card for card in cards("Captions") if card.name == "captioners")
        form = ToolForm(page, card)
        shown = form.act(event("field", "action", "spell"))
        assert (
            'data-arg="between"' in shown
            and 'data-act="preview"' in shown
            and 'data-arg="caption_extension"' not in shown
        )
        form.act(event("field", "between", "/"))
        form.act(event("go"))
        wait_until(lambda: page.works.parts("Captions", {})["works"][0]["state"] == "done")
        assert captions(folder)["bear"] == "b/e/a/r" and captions(folder)["cat"] == "mine"
        (entry,) = engine.queue()
        assert (entry.task, entry.job["dataset"]["folder"]) == ("spell", str(folder))
        assert "result" in [line["kind"] for line in read_lines(engine._runs.folder(entry.run).journal_file)]
    finally:
        engine.close()
