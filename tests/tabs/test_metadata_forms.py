"""The card of the metadata tools: captions to JSON, cleaned, and back, as a person does it on the Captions tab."""

from __future__ import annotations

import json

import pytest
from work_parts import event, image, wait_until

from core import tasks
from core.record.problems import ProblemsError
from core.settings.named import named_in
from tabs.form.task_settings import main_setting
from tabs.tools.forms import ToolForm

CARD = tasks.named("merge_captions").card


@pytest.fixture
def both(page):
    return page.works, ToolForm(page, CARD)


def run(tools, form, action, start="go", **fields):
    """Choose a tool, fill the fields, start it or its preview; its facts at the end."""
    for name, text in {"action": action, **fields}.items():
        form.act(event("field", name, text))
    form.act(event(start))
    work, engine = tools.works()[0], form.page.engine
    wait_until(lambda: work.facts(engine)["state"] not in ("waiting", "running", "paused"))
    return work.facts(engine)


def test_the_four_tools_share_a_card():
    names = [name for name, task in tasks.tasks().items() if task.card == CARD]
    assert names == ["merge_captions", "merge_tags", "clean_metadata", "metadata_to_captions"]
    # The field of one line that Enter starts: a list of folders needs Enter for itself.
    assert [main_setting(tasks.named(name)) for name in names] == ["out_json"] * 3 + ["in_json"]


@pytest.mark.slow
def test_from_captions_to_metadata_and_back(both, tmp_path):
    tools, form = both
    path = image(tmp_path / "set" / "a.png", (64, 64), caption="a young_fox")
    out = tmp_path / "meta.json"
    facts = run(tools, form, "merge_captions", out_json=str(out), folders=str(path.parent), caption_extension=".txt")
    assert facts["state"] == "done" and "1 of 1 image merged" in facts["lines"][-1]
    facts = run(tools, form, "clean_metadata", "preview", replacements='young_fox -> owl\n"a " -> ""')
    assert "nothing was written" in facts["lines"][-1] and "  after:  owl" in facts["lines"]
    assert run(tools, form, "clean_metadata")["state"] == "done"
    assert json.loads(out.read_text()) == {"a": {"caption": "owl"}}
    facts = run(
        tools, form, "metadata_to_captions", in_json=str(out), captions_to=".txt", tags_to="", existing="replace"
    )
    assert facts["state"] == "done" and path.with_suffix(".txt").read_text() == "owl\n"


def test_what_is_missing_is_told_before_the_start(both):
    tools, form = both
    form.act(event("field", "recursive", "true"))
    with pytest.raises(ProblemsError) as refused:
        form.act(event("go"))
    codes = ["metadata.no-file-given", "metadata.recursive-needs-full-path"]
    assert refused.value.codes == codes and not tools.works()
    assert "the metadata file, if it exists" in form.html()  # what an empty field means
    with pytest.raises(ProblemsError):
        form.act(event("field", "caption_extension", "txt"))


def test_a_shared_page_checks_each_folder_and_file():
    task = tasks.named("merge_captions")
    job = task.job.model_validate({task.name: {"out_json": "a", "in_json": "b", "folders": ["c", "d"]}})
    assert [named.value for named in named_in(job)] == ["a", "b", "c", "d"]
