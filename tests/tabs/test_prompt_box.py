"""The prompt box without a browser: what its script is answered, styles and history."""

from __future__ import annotations

import time

import pytest
import torch
from generate_parts import lora
from safetensors.torch import save_file
from work_parts import HOSTILE, answered, make_page

from core.formats.embedding_file import TOKEN
from core.generation.images.gallery import Gallery
from core.generation.model import library
from core.generation.plan.requests import in_styles
from core.generation.prompt.styles import Style, read_styles, style_file
from core.record.bounded_json import read_json_object
from core.record.workspace import Workspace
from core.settings.check import build
from core.settings.job import GenerateJob
from tabs.form import model_lists
from tabs.form.model_lists import ModelLists
from tabs.generate import form
from tabs.generate.prompt_box import MAX_HISTORY, PromptBox
from tabs.generate.tab import Fields


class Engine:
    people: frozenset = frozenset()
    known_device = "cpu"


@pytest.fixture
def box(tmp_path):
    page = make_page(tmp_path, Engine())
    page.workspace = Workspace(tmp_path / "outputs", tmp_path / "models")
    folder = page.workspace.models
    for name in ("wildcards", "embeddings", "tag_lists", "loras"):
        (folder / name).mkdir(parents=True)
    (folder / "wildcards" / "colors.txt").write_text("red\n", "utf-8")
    (folder / "wildcards" / "self.txt").write_text("__self__\n", "utf-8")
    (folder / "tag_lists" / "tags.csv").write_text("fox_(animal),0,900\nforest,0,50\n", "utf-8")
    save_file({"emb_params": torch.zeros(3, 64)}, folder / "embeddings" / "zunkel.safetensors")
    page.complete_tags = None
    return PromptBox(page, Fields(page), Gallery(page.workspace), ModelLists(page.workspace))


def look(box, text, name="prompt"):
    begun = time.thread_time()
    found = box.answer({"act": "look", "name": name, "text": text})
    assert time.thread_time() - begun < 5
    return found["meter"], [(each["start"], each["end"], each["code"]) for each in found["marks"]]


def test_places_are_those_of_the_browser(box):
    assert look(box, "a (fox") == ("2/75", [(2, 3, "prompt.open-bracket")])
    assert look(box, "\U0001f98a fox)")[1] == [(6, 7, "prompt.extra-bracket")]  # the face counts as two there
    assert look(box, "half \ud83d)")[1] == [(6, 7, "prompt.extra-bracket")]
    assert look(box, "a zunkel")[0] == "4/75"  # three vectors
    assert look(box, "{red|blue} AND cat")[0] == "about 1/75 AND 1/75"
    assert look(box, "fox " * 400)[0] == "6 windows, 25/75 in the last"
    assert look(box, "a {b <lora:x:1>", "negative_prompt")[1] == [
        (2, 3, "prompt.open-brace"),
        (5, 15, "prompt.lora-in-negative"),
    ]


def test_hostile_questions_are_answered_in_words(box):
    assert look(box, "a" * 1_000_000) == ("", [(0, 1_000_000, "prompt.too-long")])
    for name in ("prompt", "negative_prompt"):
        assert look(box, "x __self__ --w 9", name)[1][0] == (2, 10, "prompt.bad-wildcard")
    for asked in ({}, {"act": "look"}, {"act": 3}, {"act": "complete", "kind": [], "value": {}}, {"act": "import"}):
        assert isinstance(answered(box.answer, asked), dict)


def test_half_a_letter_pair_is_kept_and_generated_as_a_replacement(box):
    fields, page = box._form, box.page
    fields.put(fields.initial() | {"prompt": "half \ud83d x"})
    assert Fields(page).load()["prompt"] == "half \ufffd x"
    values = fields.load() | {"prompt": "half \ud83d x"}
    assert fields.job(values).generate.prompt == "half \ufffd x"
    fields.put(fields.load() | {"prompt": "whole \U0001f98a"})
    assert read_json_object(page.project.file)["tabs"]["Generate"]["values"]["prompt"] == "whole \U0001f98a"


def test_wildcards_of_all_folders_and_names_without_end_are_answered(box):
    (box.page.workspace.models / "wildcards" / "x").mkdir()
    (box.page.workspace.models / "wildcards" / "x" / "a.txt").write_text("fox\n", "utf-8")
    assert look(box, "a __x/**__") == ("about 2/75", [])
    for name in ("**/" * 5000 + "a", "a*" * 5000, "a" * 5000, "**"):
        look(box, f"a __{name}__")


def offered(box, kind, value):
    answer = box.answer({"act": "complete", "kind": kind, "value": value})
    return [each["text"] for each in answer["options"]], answer.get("length")


def test_completion_offers_what_is_on_this_machine(box):
    box._model_lists.read()
    assert offered(box, "wildcard", "co") == (["__colors__"], 2)
    assert offered(box, "word", "zun") == (["zunkel"], 3)
    assert offered(box, "word", "a photo of a fox") == (["fox \\(animal\\)"], 3)  # the last word alone
    assert offered(box, "word", "fo")[0] == ["fox \\(animal\\)", "forest"]  # the most frequent first
    assert offered(box, "word", "x") == ([], None)


def test_the_embedding_of_a_run_is_offered_by_its_token_and_read_once_it_is_chosen(box):
    file = box.page.workspace.runs / "r" / "checkpoints" / "cup-step00000010.safetensors"
    file.parent.mkdir(parents=True)
    save_file({"emb_params": torch.zeros(9, 64)}, file, {TOKEN: "brabol"})
    box._model_lists.read()
    [option] = box.answer({"act": "complete", "kind": "word", "value": "a brab"})["options"]
    name = "outputs/runs/r/checkpoints/cup-step00000010.safetensors"
    assert (option["text"], option["choose"]) == ("brabol", name)
    assert look(box, "a brabol")[1] == [(2, 8, "prompt.unchosen-embedding")]
    box.answer({"act": "choose", "name": "outputs/other.safetensors"})
    box.answer({"act": "choose", "name": option["choose"]})
    assert box._form.load()["embeddings"] == [name]
    assert look(box, "a brabol") == ("10/75", [])


def test_loras_are_those_of_the_shelf_and_the_folders_are_read_only_for_names_that_it_lacks(box, monkeypatch):
    lora(box.page.workspace.models / "loras" / "ink.safetensors")
    assert offered(box, "lora", "in") == ([], 2)  # not read yet
    assert look(box, "a fox <lora:ink:1>")[1] == []
    assert offered(box, "lora", "in") == (["<lora:ink:1>"], 2)
    monkeypatch.setitem(model_lists.LISTS, "lora", lambda space: pytest.fail("read again"))
    monkeypatch.setattr(library.Scan, "newest_first", lambda scan, kind: pytest.fail("read again"))
    assert look(box, "a fox <lora:ink:1>")[1] == []
    assert offered(box, "word", "ink")[0] == []  # a name alone may be a trigger word


def test_styles_are_saved_replaced_deleted_and_undone(box):
    form_of = box._form
    form_of.put(form.start_values() | {"prompt": "ink of {prompt}", "negative_prompt": "color"})
    box.act("style_save", "", HOSTILE)
    box.act("style", HOSTILE, "true")
    assert read_styles(box.page.workspace) == {HOSTILE: Style(HOSTILE, "ink of {prompt}", "color")}
    assert form_of.load()["styles"] == [HOSTILE]
    assert "<script" not in box.html(lambda name: "", form_of.load())
    job = form.job_of(form_of.load() | {"prompt": "a fox", "negative_prompt": ""}, box.page.project.job)
    asked = in_styles(job, [*read_styles(box.page.workspace).values()])[0]
    assert (asked.generate.prompt, asked.generate.negative_prompt) == ("ink of a fox", "color")
    form_of.put(form_of.load() | {"prompt": "other"})
    box.act("style_save", "", HOSTILE)
    assert read_styles(box.page.workspace)[HOSTILE].prompt == "other"
    box.act("style_delete", HOSTILE, "")
    assert read_styles(box.page.workspace) == {} and form_of.load()["styles"] == []
    box.act("style_undo", "", "")
    box.act("style_undo", "", "")
    assert read_styles(box.page.workspace)[HOSTILE].prompt == "ink of {prompt}"
    answer = box.answer({"act": "import", "text": "name,prompt,negative_prompt\nWet,rain,\n"})
    assert answer["said"] and set(read_styles(box.page.workspace)) == {HOSTILE, "Wet"}
    assert answered(box.answer, {"act": "import", "text": "nothing"})["problems"][0]["code"] == "styles.bad-csv"
    style_file(box.page.workspace).write_text("{", "utf-8")
    assert "styles.json" in box.html(lambda name: "", form_of.load())


def test_the_history_has_the_newest_first_each_once_and_at_most_200(box):
    for number in range(MAX_HISTORY + 5):
        box.history.add(build(GenerateJob, {"generate": {"prompt": f"p{number}", "negative_prompt": "n"}}))
    box.history.add(build(GenerateJob, {"generate": {"prompt": "p9", "negative_prompt": "n"}}))
    entries = box.answer({"act": "history"})["entries"]
    assert len(entries) == MAX_HISTORY and entries[0] == ("p9", "n") and entries[1] == (f"p{MAX_HISTORY + 4}", "n")
    assert len(set(entries)) == len(entries)
    (box.page.workspace.private / "prompts.json").write_text("[1]", "utf-8")
    assert box.answer({"act": "history"})["entries"] == []
