"""The index of Tools names every tool; results and files of tools reach the page."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from work_parts import event, wait_until

from core import tasks
from core.formats.tensors.header import read_header
from core.networks.adapter_file import save_lora
from core.record.problems import ProblemsError
from core.settings.check import build
from core.settings.job import TrainJob
from tabs.form.task_settings import job_of, main_setting
from tabs.generate import replaced
from tabs.tools import index, works
from tabs.tools.forms import ToolForm, cards


def test_every_tool_with_a_card_is_in_the_index_once():
    shown = index.html()
    for task in tasks.tasks().values():
        if task.card is not None:
            assert shown.count(f'data-tool="{task.name}"') == 1, task.name
    titles = list(index.groups())
    assert titles[:3] == ["LoRAs", "Models and files", "Images"] and {"On the Captions tab", index.MACHINE} <= set(
        titles
    )
    assert [card.name for card in index.ordered("Tools")][: len(index.FIRST)] == list(index.FIRST)
    assert set(index.ordered("Tools")) == set(cards("Tools"))


def test_an_empty_folder_says_what_is_used_and_a_needed_one_promises_nothing(page):
    for task in tasks.tasks().values():
        if task.card is None or task.card.tab != "Tools":
            continue
        form = ToolForm(page, task.card).form(task)
        assert "automatic" not in form.fields([name for name, entry in form.known.items() if entry.names == "path"])
        output = form.known.get("output")
        assert output is None or output.hint, task.name


def test_an_extracted_lora_is_titled_by_the_tuned_model(page):
    settings = {"model_org": "models/starter", "model_tuned": "models/fox.safetensors"}
    task = tasks.named("extract_lora")
    job = job_of(task, settings, page.project.job)
    assert task.title_of(job) == "Extract a LoRA: fox.safetensors" and main_setting(task) == task.takes


def test_undo_and_the_output_are_for_one_use_or_one_tool(page):
    form = ToolForm(page, tasks.named("edit_metadata").card)
    path = layer_file(page.workspace.outputs / "fox.safetensors")
    form.act(event("field", "action", "edit_metadata"))
    assert 'data-arg="in_place"' in form.html(), "what is written is seen without More settings"
    for name, value in {
        "action": "edit_metadata",
        "file": str(path),
        "in_place": "true",
        "metadata_title": "Fox",
    }.items():
        form.act(event("field", name, value))
    form.act(event("field", "output", "outputs/x"))
    form.act(event("go"))
    wait_until(lambda: read_header(path)[1].get("modelspec.title") == "Fox")
    wait_until(lambda: page.works.parts("Tools", {})["works"][0]["state"] == "done")
    form.act(event("field", "undo", "true"))
    form.act(event("go"))
    wait_until(lambda: "modelspec.title" not in read_header(path)[1])
    assert not form.values()["undo"]
    form.act(event("field", "action", "strip_metadata"))
    assert form.values()["file"] == str(path) and not form.values().get("output")


def layer_file(path):
    layer = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {f"{layer}.lora_down.weight": torch.ones(2, 8), f"{layer}.lora_up.weight": torch.ones(8, 2)}
    return save_lora(path, tensors, {"ss_base_model_version": "sd_v1"})


def test_what_a_tool_shows_and_wrote_is_sent(page):
    path = layer_file(page.workspace.outputs / "fox.safetensors")
    browser = page.browsers.of("tools")
    for tool in ("hashes", "strip_metadata"):
        page.works.use({"tool": tool, "about": str(path)}, browser)
        wait_until(lambda: page.works.parts("Tools", {})["works"][0]["state"] == "done")
        work = page.works.parts("Tools", {})["works"][0]
        if tool == "hashes":
            assert work["shown"][0]["kind"] == "table" and work["file"] is None
            assert len(work["lines"]) == 1, "the table has the rest"
        else:
            assert work["file"]["name"] == "fox_shared.safetensors" and "atelier/file?" in work["file"]["url"]
            assert work["file"]["uses"]


def test_a_lora_that_a_tool_wrote_is_used_in_generate_and_can_be_taken_back(page):
    path, browser = layer_file(page.workspace.outputs / "fox.safetensors"), page.browsers.of("tools")
    page.works.use({"tool": "strip_metadata", "about": str(path)}, browser)
    wait_until(lambda: page.works.parts("Tools", {})["works"][0]["state"] == "done")
    work = {"work": page.works.works()[0].id}

    def used():
        return [use["file"] for use in page.project.tab_state("Generate").get("values", {}).get("loras", [])]

    replaced.use_result(page, work, browser)
    assert used() == ["outputs/fox_shared.safetensors"]
    assert (browser.message["go"], browser.message["undo_by"]) == ("Generate", replaced.TAKE_BACK)
    replaced.take_back(page, {}, browser)
    assert used() == []
    (page.workspace.outputs / "fox_shared.safetensors").unlink()
    for gone in (work, {"work": "none"}):
        with pytest.raises(ProblemsError) as refused:
            replaced.use_result(page, gone, browser)
        assert refused.value.codes == ["file.gone"]


def test_a_file_is_shown_by_its_title_and_told_from_others_by_its_path(page, monkeypatch):
    run, outputs = page.workspace.runs / "20260131-120000_fox", page.workspace.outputs
    (run / "checkpoints").mkdir(parents=True)
    saved = {"seq": 1, "t": 1.0, "kind": "saved", "step": 250, "file": "checkpoints/fox.safetensors"}
    (run / "events.jsonl").write_text(json.dumps(saved) + "\n")
    paths = [layer_file(each / "fox.safetensors") for each in (run / "checkpoints", outputs / "a", outputs / "b")]
    monkeypatch.setattr(works, "ACTIVE", (*works.ACTIVE, "done"))  # none of them ends while the next is started
    for path in paths:
        page.works.use({"tool": "hashes", "about": str(path)}, None)
    title = tasks.named("hashes").title
    shown = [work["about"] for work in page.works.parts("Tools", {})["works"]]
    assert shown == [f"{title}: fox", f"{title}: fox", f"{title}: fox, step 250"]
    assert [entry.title for entry in page.engine.queue()] == shown[::-1]
    with pytest.raises(ProblemsError) as refused:
        page.works.use({"tool": "hashes", "about": str(paths[1])}, None)
    assert refused.value.codes == ["tools.running-already"]


def test_an_empty_choice_of_a_tool_says_what_it_means(page):
    task = tasks.named("resize_lora")
    shown = ToolForm(page, task.card).form(task).fields(["dynamic_method", "save_precision"])
    assert '<option value="" selected>off: one rank' in shown and '<option value="" selected>unchanged' in shown
    assert "as for all" not in shown


def test_a_tool_that_has_not_said_anything_yet_is_starting():
    nothing = {
        "text": "",
        "stopping": False,
        "lane": "light",
        "done": 0,
        "total": 0,
        "lines": [],
        "facts": {},
        "problems": [],
    }
    engine = SimpleNamespace(progress=lambda id: nothing | {"state": id}, waits=dict)
    said = [
        works.Work(state, tasks.named("hashes"), "").facts(engine)["text"] for state in ("running", "waiting", "done")
    ]
    assert said == ["starting ...", "", ""]


def test_captioners_know_the_token_of_a_textual_inversion_as_the_trigger_word(page):
    for token, trigger, expected in (("<cat>", None, "<cat>"), ("<cat>, <dog>", None, None), ("<cat>", "mira", "mira")):
        values = {
            "method": {"kind": "embedding"},
            "embedding": {"token_string": token},
            "captions": {"trigger_word": trigger},
        }
        job = job_of(tasks.named("vlm"), {}, build(TrainJob, values))
        assert job.captions.trigger_word == expected
