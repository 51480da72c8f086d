"""Grids on the page without a browser: fields to a queued grid, the table, the grid of a run, the checkpoint that is kept."""

from __future__ import annotations

import html
import json
import os
import re
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from generate_parts import Engine, embedding
from made_runs import make_run
from PIL import Image
from safetensors.torch import save_file
from work_parts import HOSTILE, event, make_page, said

from core.engine.queue import QueueEntry
from core.engine.view import RunView
from core.generation.grids.axes import joined, setting_named
from core.generation.grids.choices import pairs_of
from core.generation.grids.folder import list_grids
from core.generation.prompt.styles import Style, write_styles
from core.record import atomic
from core.record.cancel import CancelToken
from core.record.kept import read_kept
from core.record.run_folder import RunFolder
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.presets.files import parse
from tabs.form.model_lists import ModelLists, model_lists
from tabs.generate import form, grids
from tabs.generate.tab import Fields
from tests.generation.test_run import small_lora
from tests.refusals import refused


class Queue(Engine):
    """With the jobs' settings in its queue, and runs that lie there."""

    def submit(self, task, job, title=""):
        entry = QueueEntry(f"e{len(self.entries)}", task, title, job.model_dump(mode="json"))
        self.jobs.append(job)
        self.entries.append(entry)
        return entry.id

    def editable_run(self, run):
        return RunFolder(self.runs / run)

    def snapshot(self, run):
        return RunView.read(RunFolder(self.runs / run)).snapshot(False)

    def run_job(self, run):
        return build(TrainJob, parse(RunFolder(self.runs / run).job(), run).values)

    def light(self, work, *given, **about):
        token = CancelToken()
        result = work(*given, task=SimpleNamespace(stage=lambda *told: None, token=token))
        return SimpleNamespace(done=True, error=None, result=result, token=token)


@pytest.fixture
def desk(tmp_path):
    page = make_page(tmp_path, Queue(tmp_path / "outputs" / "images"))
    page.engine.runs = page.workspace.runs
    page.project.keep("Generate", {"values": form.start_values() | {"seed": 3, "width": 64, "height": 64}})
    return grids.Grids(page, Fields(page), ModelLists(page.workspace))


def give(desk, **fields):
    for name, value in fields.items():
        desk.act(event("field", name, value))


RUN = "20260102-030405_fox"
WAITING = 'class="grid-cell waits"'


def trained(desk, name=RUN, **more):
    """A finished run with two small LoRAs and a loss for each."""
    runs = desk.page.workspace.runs
    folder = make_run(
        runs, name, saved=(20, 40), validated=[(20, 0.2), (40, 0.1)],
        settings={"samples": {"sample_prompts": ["a fox --d 4", "an owl"], "width": 64, "height": 64}} | more,
    )  # fmt: skip
    for file in (folder / "checkpoints").iterdir():
        small_lora(file)
    return folder


def test_the_panel_says_what_the_axes_come_to_or_what_is_wrong(desk):
    assert 'data-card="grid"' in desk.show()["panel"] and desk.show()["table"] == ""
    give(desk, x_axis="steps", x_values="10, 20, 30", y_axis="sampler", y_values="ddim, Euler a")
    assert "6 images, 120 steps, 1 model load" in desk.panel()
    two = {"highres_fix_scale": 2.0, "highres_fix_steps": 12, "image_path": "fox.png", "strength": 0.5}
    desk.fields.put(desk.fields.load() | two)
    assert "6 images, 162 steps, 1 model load" in desk.panel()  # 7 of 12, then 10, 20, 30, for each of two samplers
    give(desk, x_values="0")
    assert "1 to 1000" in desk.panel()
    desk.act(event("make"))
    assert "settings.bad-value" in said(desk) and not desk.page.engine.jobs
    assert (
        'data-arg="x_values" data-live placeholder="such as 20-40 (+10)" spellcheck="false" aria-invalid="true"'
        in desk.panel()
    )
    give(desk, x_values=HOSTILE)
    assert HOSTILE not in desk.panel()


def test_an_axis_says_which_setting_it_means_and_that_it_has_no_effect(desk):
    give(desk, x_axis="Seed", x_values="1, 2", y_axis="strength", y_values="0.6, 1")
    shown = desk.panel()
    assert shown.count("hint replaces") == 1 and ">Denoising strength</span>" in shown
    assert "Denoising strength has no effect" in shown
    give(desk, x_axis="hires.highres_fix_scale", x_values="1.5, 2")
    assert "has no effect" not in desk.panel() and "4 images" in desk.panel()


def test_all_known_values_are_filled_in(desk):
    trained(desk)
    trained(desk, "20260102-040000_owl")
    give(desk, x_axis="sampler", y_axis="lora", z_axis="steps")
    assert 'data-act="clear"' not in desk.panel()
    desk.act(event("fill", "x"))
    desk.act(event("fill", "y"))
    assert "ddim" in desk._axes()["x_values"] and "tcd" in desk._axes()["x_values"]
    assert re.findall(r"none|\w+-step\d+", desk._axes()["y_values"]) == ["none", "fox-step00000040", "owl-step00000040"]
    with pytest.raises(Exception, match="no list of values"):
        desk.act(event("fill", "z"))
    write_styles(desk.page.workspace, [Style("ink", "b/w"), Style("big", "huge")])
    give(desk, z_axis="styles")
    desk.act(event("fill", "z"))
    assert desk._axes()["z_values"] == "none, ink, big" and "Styles" in desk.panel()
    desk.act(event("clear", "y"))
    assert desk._axes()["y_values"] == "" and desk._axes()["x_values"] and desk.panel().count('data-act="clear"') == 2


def card_names(panel):
    """[(name, step)] of the cards of an axis, in order."""
    cards = panel.partition('axis-cards">')[2].partition("</ul></div>")[0].split("<li data-listed")[1:]
    return [(re.search('<b title="([^"]*)"', card)[1], *re.findall('now (step [^"]*)', card)) for card in cards]


def with_models(desk, tmp_path, *names):
    """Small LoRAs in a models folder of its own."""
    desk.page.workspace = replace(desk.page.workspace, models=tmp_path / "models")
    for name in names:
        (tmp_path / "models" / name).parent.mkdir(parents=True, exist_ok=True)
        small_lora(tmp_path / "models" / name)


def test_loras_are_chosen_for_an_axis_as_cards_that_show_no_path(desk, tmp_path):
    folder = trained(desk)
    (folder / "about.json").write_text('{"title": "Foxes, red"}')
    with_models(desk, tmp_path, "loras/a, b.safetensors")
    give(desk, x_axis="LoRA", y_axis="lora strength", y_values="0.5, 1")
    model_lists(desk.page.workspace).read()
    rows = desk.page.picker.answer({"form": "axes", "field": "x_values"})["rows"]
    values = [html.unescape(value) for value in re.findall('data-value="([^"]*)"', rows)]
    for file in ("fox-step00000040.safetensors", "a, b.safetensors"):
        desk.act(event("file_add", "x", next(value for value in values if value.endswith(file))))
    desk.act(event("file_none", "x"))
    assert card_names(desk.panel()) == [("No LoRA",), ("Foxes, red", "step 40"), ("a, b",)]
    desk.act(event("file_step", "1:fox-step00000020.safetensors"))
    assert card_names(desk.panel())[1] == ("Foxes, red", "step 20")
    desk.act(event("file_steps", "1"))
    desk.act(event("file_off", "0"))
    assert card_names(desk.panel()) == [("Foxes, red", "step 20"), ("Foxes, red", "step 40"), ("a, b",)]
    desk.act(event("make"))
    (grid,) = list_grids(desk.page.workspace)
    content = grid.content()
    assert content.axis("x").texts == ("Foxes, red, step 20", "Foxes, red, step 40", "a, b")
    assert content.title == "LoRA by LoRA strength"
    shown = re.sub(r"<textarea.*?</textarea>", "", desk.panel())
    assert ".safetensors" not in re.sub('data-[a-z]+="[^"]*"', "", shown + desk._table())


def test_embeddings_of_a_run_keep_its_word_on_an_axis(desk):
    words = {"method": {"kind": "embedding"}, "embedding": {"token_string": "zunkel"}}
    folder = make_run(desk.page.workspace.runs, RUN, saved=(20, 40), settings=words)
    for file in (folder / "checkpoints").iterdir():
        embedding(file)
    files = [f"outputs/runs/{RUN}/checkpoints/fox-step{step:08d}.safetensors" for step in (20, 40)]
    give(desk, x_axis="embeddings")
    desk.act(event("file_add", "x", files[1]))
    assert desk._axes()["x_values"] == f"zunkel={files[1]}"
    assert card_names(desk.panel()) == [("fox", "step 40")]
    desk.act(event("file_steps", "0"))
    assert desk._axes()["x_values"] == joined([f"zunkel={file}" for file in files])
    desk.act(event("file_step", "0:fox-step00000040.safetensors"))
    assert desk._axes()["x_values"] == f"zunkel={files[1]}"
    give(desk, x_values=f"a={files[0]}; b={files[1]}")
    assert card_names(desk.panel()) == [("fox, step 20, fox, step 40",)]


def test_a_lora_is_dropped_on_an_axis_that_is_empty_or_of_loras(desk):
    trained(desk)
    files = [f"outputs/runs/{RUN}/checkpoints/fox-step{step:08d}.safetensors" for step in (20, 40)]
    give(desk, y_axis="steps", z_values="1, 2")
    before = desk._axes()
    for letter in ("x", "y", "z", "w"):
        desk.act(event("file_add", letter, files[0]))
    assert desk._axes() == before | {"x_axis": "lora", "x_values": files[0]}
    desk.act(event("file_add", "x", files[1]))
    assert desk._axes()["x_values"] == joined(files)


@pytest.mark.parametrize(
    ("axis", "values", "cards"),
    [
        ("Checkpoint", "starter, someone/a-model, models/gone.safetensors", ["starter", "a-model", "gone!"]),
        ("VAE", "none, models/starter/vae", ["Model's VAE", "vae"]),
        ("ControlNet", "none, outputs/gone.safetensors", ["No ControlNet", "gone!"]),
        ("embeddings", "none, bad-hands, hand=models/gone.pt", ["No embedding", "bad-hands", "gone!"]),
        ("sampler", "ddim", []),
    ],
)
def test_every_axis_of_model_files_has_cards(desk, axis, values, cards):
    give(desk, x_axis=axis, x_values=values)
    shown = desk.panel().partition('class="loras lora-cards axis-cards">')[2].partition("</ul></div>")[0]
    each = shown.split("<li data-listed")[1:]
    names = [html.unescape(re.search('<b title="([^"]*)"', card)[1]) for card in each]
    assert [name + "!" * ("field-error" in card) for name, card in zip(names, each, strict=True)] == cards
    desk.act(event("file_none", "x"))
    assert desk._axes()["x_values"] == values, "none is there already, or means nothing"
    desk.act(event("file_off", "0"))
    assert desk._axes()["x_values"] == (values.partition(", ")[2] if cards else values)


def test_the_list_of_an_axis_is_that_of_its_setting(desk, tmp_path):
    with_models(desk, tmp_path, "loras/a.safetensors")
    model_lists(desk.page.workspace).read()
    for axis, count in (("LoRA", 1), ("ControlNet", 0), ("steps", 0), ("", 0)):
        give(desk, x_axis=axis)
        found = desk.page.picker.answer({"form": "axes", "field": "x_values"})
        assert found["rows"].count("data-value") == count, axis
    give(desk, x_axis="Checkpoint")
    assert "starter" in desk.page.picker.answer({"form": "axes", "field": "x_values"})["rows"]


def test_an_axis_of_a_loras_strength_shows_its_title(desk):
    trained(desk)
    file = f"outputs/runs/{RUN}/checkpoints/fox-step00000020.safetensors"
    desk.fields.put(desk.fields.load() | {"loras": [{"file": file, "strength": 1.0}]})
    assert "pick-face" not in desk.panel()
    give(desk, x_axis="lora_strength:fox-step00000020", y_axis="lora_strength:gone")
    (face,) = re.findall('class="pick-face">(.*?)</label>', desk.panel())
    assert re.sub("<.*?>", "", face) == "fox, step 20"
    assert re.findall("<span>(Strength|Values)</span>", desk.panel()) == ["Strength", "Values", "Values"]
    (listed,) = re.findall('<datalist id="grid-settings">(.*?)</datalist>', desk.panel())
    names = re.findall('value="(.*?)"', listed)
    assert "LoRA strength: fox-step00000020" in names, "no name of a setting, which only files have"
    assert not [name for name in names if re.search(r"[a-z]_|[a-z]\.[a-z]", name)]
    give(desk, x_axis="LoRA strength: fox-step00000020")
    assert "pick-face" in desk.panel()


def test_an_axis_of_loras_says_which_lora_of_the_form_it_replaces(desk):
    trained(desk)
    files = [f"outputs/runs/{RUN}/checkpoints/fox-step{step:08d}.safetensors" for step in (20, 40)]
    give(desk, x_axis="LoRA")
    assert "replaces" not in desk.panel()
    said = []
    for used in (files[:1], files):
        desk.fields.put(desk.fields.load() | {"loras": [{"file": file, "strength": 1.0} for file in used]})
        said += re.findall('class="hint replaces">(.*?)</span>', desk.panel())
    assert len(said) == 2 and all("fox, step 20" in each for each in said) and len(said[1]) > len(said[0])


def test_cells_of_files_with_one_name_have_different_heads(desk, tmp_path):
    trained(desk)
    trained(desk, "20260203-030405_fox")
    with_models(desk, tmp_path, "one/fox.safetensors", "other/fox.safetensors")
    steps = [f"outputs/runs/{run}/checkpoints/fox-step00000020.safetensors" for run in (RUN, "20260203-030405_fox")]
    give(desk, x_axis="lora", x_values=joined([*steps, "models/one/fox.safetensors", "models/other/fox.safetensors"]))
    desk.act(event("make"))
    (grid,) = list_grids(desk.page.workspace)
    heads = (f"fox, step 20 ({RUN})", "fox, step 20 (20260203-030405_fox)", "fox (one)", "fox (other)")
    assert grid.content().axis("x").texts == heads
    assert {name for name, *_ in card_names(desk.panel())} == {head.replace(", step 20", "") for head in heads}


@pytest.mark.parametrize("mends", [event("field", "x_values", "1, 2"), event("card_remove")])
def test_the_message_of_a_refused_grid_leaves_with_its_marks_once_the_form_has_changed(desk, mends):
    browser = desk.page.browser
    give(desk, x_axis="steps", x_values="one")
    desk.act(event("make"))
    assert browser.message["kind"] == "error" and browser.message["problems"]
    desk.act(mends)
    assert browser.message["kind"] == "over" and "aria-invalid" not in desk.panel()


def test_what_a_refused_grid_has_marked_leaves_once_the_prompt_has_changed(desk):
    give(desk, x_axis="steps", x_values="one")
    desk.act(event("make"))
    before = desk.stamp()
    assert "aria-invalid" in desk.panel() and desk.stamp() == before
    state = desk.page.project.tab_state("Generate")
    desk.page.project.keep("Generate", state | {"values": state["values"] | {"prompt": "another"}})
    assert desk.stamp() != before and "aria-invalid" not in desk.panel()


@pytest.mark.parametrize("person", ["", "anna"])
def test_a_grid_is_queued_with_its_folder_shown_cancelled_and_resumed(desk, person):
    desk.page.workspace = replace(desk.page.workspace, person=person)
    give(desk, x_axis="steps", x_values="1, 2", y_axis="prompt_sr", y_values="fox, <b>dog</b>")
    shown = desk.act(event("make"))
    (folder,) = list_grids(desk.page.workspace)
    (job,) = desk.page.engine.jobs
    assert job.grid.folder == folder.name and job.generate.seed == 3
    assert "0 of 4" in shown["panel"] and "<b>dog" not in shown["table"] and shown["table"].count(WAITING) == 4
    folder.cells.mkdir()
    before = desk.stamp()
    Image.new("RGB", (64, 64)).save(folder.cell((0, 0, 0)))
    folder.change(failed={(1, 0, 0): "The device ran out of <memory>"})
    assert desk.stamp() != before
    table = desk._table()
    assert table.count("<img") == 1 and "ran out of &lt;memory&gt;" in table and table.count(WAITING) == 2
    assert table.count('scope="col"') == 2 and table.count('scope="row"') == 2
    desk.page.engine.cancel("e0")
    assert not desk.page.engine.entries and "Resume" in desk._table()
    closed = desk.act(event("close"))["table"]
    assert 'class="strip grid-recent"' in closed and f'data-arg="{folder.name}"' in closed, "it can be opened again"
    os.utime(folder.path, (desk._begun - 1, desk._begun - 1))
    assert desk._table() == "", "of an earlier session"
    desk.act(event("resume", folder.name))
    assert len(desk.page.engine.jobs) == 2 and desk.page.engine.jobs[1].grid.folder == folder.name
    with pytest.raises(Exception, match="being made"):
        desk.act(event("delete", folder.name))
    desk.page.engine.entries = []
    desk.act(event("delete", folder.name))
    assert not list_grids(desk.page.workspace) and "<table" not in desk._table()
    assert [path.name.startswith(folder.name) for path in desk.page.workspace.trash.iterdir()] == [True]
    desk.act(event("put_back"))
    assert "<table" in desk._table() and "put_back" not in desk._table() and not [*desk.page.workspace.trash.iterdir()]
    desk.act(event("delete", folder.name))
    atomic.remove_folder(next(desk.page.workspace.trash.iterdir()))
    with refused("grid.not-in-trash"):
        desk.act(event("put_back"))
    assert desk._table() == ""


def test_a_removed_grid_card_comes_back_with_its_axes(desk):
    give(desk, x_axis="steps", x_values="1, 2")
    axes = desk._axes()
    desk.act(event("card_remove", "grid"))
    assert not any(desk._axes().values()) and "put_back" in desk._table()
    desk.act(event("put_back"))
    assert desk._axes() == axes and desk._table() == ""


def test_a_run_gives_a_grid_with_its_losses_and_a_checkpoint_is_kept_copied_and_let_go(desk, tmp_path):
    run = trained(desk)
    grids.queue_run(desk.page, RUN)
    (folder,) = list_grids(desk.page.workspace)
    content = folder.content()
    assert content.size == (3, 3, 2) and content.run == RUN and desk.page.engine.jobs[0].grid.folder == folder.name
    table = desk._table()
    assert "validation loss 0.1000, lowest loss" in table and table.count("Keep this one") == 2 * 2, "in both tables"
    desk.act(event("keep", "x2", ""))
    file = "checkpoints/fox-step00000040.safetensors"
    assert "Choose" not in said(desk) and "fox, step 40" in said(desk)
    assert read_kept(run) == {file: "fox-step00000040"}
    desk.act(event("keep", "x2", "best fox"))
    assert read_kept(run) == {file: "best fox"} and "best fox" in desk._table()
    desk.act(event("unkeep", "x2"))
    assert read_kept(run) == {}
    other = tmp_path / "other program"
    other.mkdir()
    desk.page.project.keep("Runs", {"copy_to": str(other)})
    desk.act(event("keep", "x1", ""))
    assert [path.name for path in other.iterdir()] == ["fox-step00000020.safetensors"]
    assert "Copied" in desk._table()
    desk.act(event("copied", "fox-step00000020.safetensors"))
    assert "Copied" not in desk._table()
    for place in ("x0", "x9", "q1", "x", "x1e5", ""):
        with pytest.raises(Exception, match="no longer exists"):
            desk.act(event("keep", place, ""))


def test_a_damaged_grid_does_not_hide_the_others(desk):
    give(desk, x_axis="steps", x_values="1, 2")
    desk.act(event("make"))
    (folder,) = list_grids(desk.page.workspace)
    (folder.path / "grid.json").write_text("{")
    assert "damaged" in desk.panel() and "run-message error" in desk._table()


def test_a_shared_page_names_no_file_outside_in_an_axis(tmp_path):
    page = make_page(tmp_path, Queue(tmp_path / "outputs" / "images"), shared=True)
    desk = grids.Grids(page, Fields(page), ModelLists(page.workspace))
    save_file({}, tmp_path / "secret.safetensors")
    give(desk, x_axis="lora", x_values=f"none, {tmp_path / 'secret.safetensors'}")
    desk.act(event("make"))
    assert not page.engine.jobs and not list_grids(page.workspace)


@pytest.mark.slow
def test_a_thousand_cells_are_checked_in_seconds(desk):
    give(desk, x_axis="seed", x_values="1-100", y_axis="steps", y_values="1-10")
    began = time.thread_time()
    desk.act(event("make"))
    assert len(desk.page.engine.jobs) == 1 and time.thread_time() - began < 20
    began = time.thread_time()
    desk.stamp()
    assert time.thread_time() - began < 0.5


# -- blind choices


def made(desk, size, missing=()):
    """A grid of these many columns (steps) and rows (seeds) whose images are there, without `missing`."""
    columns, rows = size
    give(
        desk,
        x_axis="steps",
        x_values=f"1-{columns}",
        y_axis="seed" if rows > 1 else "",
        y_values=f"5-{4 + rows}" if rows > 1 else "",
    )
    desk.act(event("make"))
    folder = list_grids(desk.page.workspace)[0]
    folder.cells.mkdir()
    for place in {(x, y, 0) for x in range(columns) for y in range(rows)} - set(missing):
        Image.new("RGB", (8, 8)).save(folder.cell(place))
    return folder


def choose(desk, folder, axis="", **choice):
    return desk.choose({"grid": folder.name, "axis": axis, "choice": choice or None})


def test_the_values_of_a_grid_are_chosen_blind_on_all_rows_until_one_is_preferred(desk):
    folder = made(desk, (3, 2))
    assert f'data-choose="{folder.name}"' in desk._table() and "blind choices" not in desk._table()
    found, seen = choose(desk, folder), set()
    assert (found["axis"], found["axes"]) == ("x", [["x", "Sampling steps"], ["y", "Seed"]]) and found["result"] is None
    for number in range(1, 13):
        pair = found["pair"]
        assert pair["number"] == number and pair["left"] != pair["right"]
        assert pair["about"] == f"Seed {4 + int(pair['prompt'][4])}"  # x1_y2_z1: the second row
        row = pair["prompt"][2:]
        assert [
            row in image and side in image
            for image, side in zip(pair["images"], (pair["left"], pair["right"]), strict=True)
        ] == [True] * 2
        seen.add((frozenset((pair["left"], pair["right"])), pair["prompt"]))
        assert number > 6 or len(seen) == number, "each pair once before any again"
        better = max(pair["left"], pair["right"])  # x3 always wins
        outcome = "left" if better == pair["left"] else "right"
        found = choose(
            desk, folder, "x", left=pair["left"], right=pair["right"], prompt=pair["prompt"], outcome=outcome
        )
    result = found["result"]
    assert (result["choices"], result["file"]) == (12, "x3") and [row["label"] for row in result["rows"]] == [
        "3",
        "2",
        "1",
    ]
    assert "12 blind choices prefer Sampling steps 3." in desk._table()
    assert choose(desk, folder, "y")["result"] is None, "another axis has its own"
    choose(desk, folder, "y", left="y1", right="y2", prompt="x1_y1_z1", outcome="left")
    undone = choose(desk, folder, "x", left="x1", right="x2", prompt="", outcome="undo")
    assert undone["result"]["choices"] == 11, "of this axis, though that of the other one came later"
    assert choose(desk, folder, "y")["result"]["choices"] == 1


def test_what_cannot_be_chosen_is_refused_and_nothing_is_saved(desk):
    folder = made(desk, (2, 2), missing=[(0, 0, 0)])
    found = choose(desk, folder)
    assert found["pair"] is None, "one pair would be shown again and again"
    assert found["missing"] == 1, "so the page asks again"
    for choice in (
        {"left": "x1", "right": "x9"},
        {"left": "x1", "right": "x1"},
        {"left": "x1", "right": "x2", "outcome": "best"},
    ):
        with refused("choice.invalid"):
            choose(desk, folder, "x", **{"outcome": "left", "prompt": ""} | choice)
    with refused("grid.no-choice"):
        choose(desk, folder, "z")
    assert not (folder.path / "choices.jsonl").exists()


def test_a_question_about_a_prompt_is_that_prompt(desk):
    give(desk, x_axis="steps", x_values="1-3", y_axis="prompt", y_values="a fox, an owl")
    desk.act(event("make"))
    (folder,) = list_grids(desk.page.workspace)
    folder.cells.mkdir()
    for x in range(3):
        Image.new("RGB", (8, 8)).save(folder.cell((x, 1, 0)))
    found = choose(desk, folder)
    assert found["pair"]["about"] == "an owl" and found["missing"] == 3


def test_one_value_is_no_choice(desk):
    folder = made(desk, (1, 1))
    assert "data-choose" not in desk._table()
    with refused("grid.no-choice"):
        choose(desk, folder)


def test_equal_cells_are_not_compared(desk):
    folder = made(desk, (3, 3))
    raw = json.loads((folder.path / "grid.json").read_text())
    raw["same"] = {f"x2_y{y}_z1": f"x1_y{y}_z1" for y in (1, 2, 3)}
    (folder.path / "grid.json").write_text(json.dumps(raw))
    pairs = pairs_of(folder, folder.content(), "x")
    assert {pair[:2] for pair in pairs} == {("x1", "x3"), ("x2", "x3")} and len(pairs) == 6


# -- several runs


OTHER = "20260103-030405_owl"


def test_runs_are_compared_by_the_best_checkpoint_of_each_on_the_prompts_of_all(desk):
    trained(desk)
    trained(desk, OTHER)
    grids.queue_runs(desk.page, [RUN, OTHER])
    (folder,) = list_grids(desk.page.workspace)
    content = folder.content()
    assert content.run == "" and content.size == (3, 2, 1) and "data-choose" in desk._table()
    assert content.axis("x").texts == ("none", "fox, step 40", "owl, step 40")
    assert content.axis("x").notes[1] == "validation loss 0.1000, lowest loss"
    assert content.axis("y").texts == ("a fox", "an owl")


def test_runs_of_several_kinds_are_refused_together(desk):
    trained(desk)
    trained(desk, OTHER, method={"kind": "embedding"}, embedding={"token_string": "zunkel"})
    with refused("run-grid.kinds"):
        grids.queue_runs(desk.page, [RUN, OTHER])
    assert not list_grids(desk.page.workspace)


def test_an_axis_offers_titles_that_it_understands(desk):
    offered = re.findall(
        '<option value="(.*?)">', desk.panel().partition('id="grid-settings"')[2].partition("</datalist>")[0]
    )
    names = [html.unescape(each) for each in offered]
    assert names[:4] == ["Prompt S/R", "Size", "LoRA", "LoRA strength"] and "Sampling steps" in names
    assert all(setting_named(name) for name in names) and len(set(map(setting_named, names))) == len(names)
    coded = [name for name in names if "." in name and " " not in name]
    assert len(coded) < 5, coded
