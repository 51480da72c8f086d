"""The lists of model files next to fields, without a browser: what they say of each file, and which are refused."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from generate_parts import Engine, embedding, lora
from made_runs import make_run
from safetensors.torch import save_file
from work_parts import HOSTILE, make_page

from core import tasks
from core.generation.model import library
from core.generation.model.index import FileFacts, preview_of
from core.record.workspace import PROJECT, Workspace
from core.settings.base import declared
from core.settings.job import GenerateJob, TrainJob
from core.settings.tools.fields import ANY_MODEL
from tabs.form import model_lists as model_lists_module
from tabs.form.model_lists import Listed, ModelLists
from tabs.form.picker import matching
from tabs.form.project import with_value
from tabs.generate.tab import GenerateHandlers
from tabs.tools.forms import ToolForm

DENSE = {"conv_first.weight": torch.zeros(4, 3, 3, 3), "body.0.rdb1.conv5.weight": torch.zeros(4, 4, 3, 3)}
LATENT = {f"{name}.weight": torch.zeros(1) for name in ("conv1", "resblock20.conv2", "conv_final")}
UNET = "model.diffusion_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"


@pytest.fixture
def page(tmp_path):
    page = make_page(tmp_path, Engine(tmp_path / "outputs" / "images"))
    models = tmp_path / "models"
    page.workspace = replace(page.workspace, models=models)
    shutil.copytree(PROJECT / "models" / "starter", models / "starter", ignore=shutil.ignore_patterns("images"))
    lora(models / "loras" / "fox.safetensors")
    lora(models / "loras" / f"large {HOSTILE[:20].replace('/', '')}.safetensors", width=2048)
    (models / "loras" / "torn.safetensors").write_bytes(b"no")
    embedding(models / "embeddings" / "word.safetensors")
    save_file(
        {"clip_l": torch.zeros(1, 768), "clip_g": torch.zeros(1, 1280)}, models / "embeddings" / "words.safetensors"
    )
    (models / "upscalers").mkdir()
    save_file(DENSE, models / "upscalers" / "big.safetensors")
    for name, width in (("sd2", 1024), ("sd1", 768)):
        save_file({UNET: torch.zeros(2, width)}, models / f"{name}.safetensors")
    save_file({f"{UNET[:21]}.double_blocks.0.img_attn.qkv.weight": torch.zeros(2, 2)}, models / "flux.safetensors")
    return page


def listed(page, form, field, query=""):
    """{file's name: whether it is dimmed} in the order of the list."""
    for _ in range(100):  # files are read meanwhile, a second at a time
        found = page.picker.answer({"form": form, "field": field, "query": query})
        if not found["reading"]:
            break
    assert "<img src=x" not in found["rows"]
    rows = re.findall(r'<li( class="misfit")?>(?:(?!<li).)*?class="choose" data-value="([^"]*)"', found["rows"])
    return {value.rpartition("/")[2].partition(".")[0].split(" ")[0]: bool(dim) for dim, value in rows}


def refused(page, form, field, file):
    path = next(page.workspace.models.rglob(f"{file}*"))
    return [
        each["code"] for each in page.picker.answer({"form": form, "field": field, "chosen": str(path)})["problems"]
    ]


def test_files_of_another_family_come_last_dimmed_and_are_refused_by_the_code_of_the_check_before_a_start(page):
    for field in ("network.network_weights", "network.base_weights"):
        assert listed(page, "train", field) == {"fox": False, "large": True, "torn": True}
        assert refused(page, "train", field, "fox") == []
        assert refused(page, "train", field, "large") == ["lora.other-family"]
        assert refused(page, "train", field, "word.") == ["lora.not-a-lora"]
        assert refused(page, "train", field, "torn") == ["model.unknown-file"]
    assert listed(page, "train", "embedding.embedding_weights") == {"word": False, "words": True}
    assert refused(page, "train", "embedding.embedding_weights", "words") == ["embedding.other-family"]


def test_initial_nets_that_follow_control_images_are_listed_by_their_kind(page):
    models = page.workspace.models
    (models / "controlnet").mkdir()
    reader = "input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
    for name, width in (("canny", 768), ("other", 1024)):
        hint = {
            "control_model.input_hint_block.0.weight": torch.zeros(1),
            f"control_model.{reader}": torch.zeros(1, width),
        }
        save_file(hint, models / "controlnet" / f"{name}.safetensors")
    lite = {"lllite_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.down.0.weight": torch.zeros(1, 1)}
    save_file(lite, models / "controlnet" / "lite.safetensors")
    net, small = "controlnet.controlnet_model_name_or_path", "lllite.weights"
    assert listed(page, "train", net) == {"canny": False, "other": True} and listed(page, "train", small) == {
        "lite": False
    }
    assert refused(page, "train", net, "other") == ["control.other-family"]
    assert refused(page, "train", net, "lite") == ["control.not-a-controlnet"]
    assert refused(page, "train", small, "canny") == ["lllite.not-an-lllite"]


def test_base_models_are_dimmed_where_no_family_here_is_theirs_or_another_one_is_set(page):
    dims = listed(page, "train", "model.base_model")
    assert dims == {"starter": False, "sd1": False, "sd2": False, "flux": True} and next(iter(dims)) == "starter"
    assert refused(page, "train", "model.base_model", "flux") == ["model.other-family"]
    page.project.replace(with_value(page.project.job, "model.family", "sd2"), did="test")
    assert listed(page, "train", "model.base_model")["sd1"] is True
    assert refused(page, "train", "model.base_model", "sd1") == ["model.other-family"]
    assert listed(page, "train", "network.network_weights") == {"fox": True, "large": True, "torn": True}


def test_generate_s_lists_follow_its_own_base_model(page):
    desk = GenerateHandlers(page)
    assert listed(page, "gen", "base_model") == {"starter": False, "sd1": False, "sd2": False, "flux": True}
    assert (
        listed(page, "gen", "highres_fix_upscaler_file") == {"big": False}
        and listed(page, "gen", "refiner_checkpoint") == {}
    )
    save_file(LATENT, page.workspace.models / "upscalers" / "latent.safetensors")
    desk.loras.model_lists.read()
    monkeyed = {"highres_fix_upscaler_file": "sdxl"}
    desk.presets.family_for = lambda name: monkeyed.get(name, "sd1")
    assert listed(page, "gen", "highres_fix_upscaler_file") == {"big": False, "latent": True}
    assert refused(page, "gen", "highres_fix_upscaler_file", "latent") == ["upscaler.other-family"]
    offered = {words: why for _, words, _, why in desk.sending._files("")}
    assert offered["upscalers/big"] == "" and offered["upscalers/latent"]


def test_an_embedding_of_another_family_is_not_taken(page):
    desk = GenerateHandlers(page)
    desk.loras.model_lists.read()
    files = [f"models/embeddings/{name}.safetensors" for name in ("word", "words")]
    assert [value for _, value in desk.loras.embeddings().choices] == files
    answer = desk.choose_embeddings([*files, "no file"])
    assert desk._values()["embeddings"] == [files[0], "no file"] == answer["embeddings"].value
    said = page.browsers.of(None).message
    assert [each["code"] for each in said["problems"]] == ["embedding.other-family"]


def test_a_tool_s_list_follows_the_family_of_the_file_that_is_filled_in(page):
    form = ToolForm(page, tasks.named("merge_lora_to_model").card).form(tasks.named("merge_lora_to_model"))
    assert (
        set(listed(page, form.id, "models").values()) == {False, True} and not listed(page, form.id, "models")["large"]
    )
    form.change("file", str(page.workspace.models / "sd1.safetensors"))
    assert listed(page, form.id, "models") == {"fox": False, "large": True, "torn": True}
    assert refused(page, form.id, "models", "large") == ["lora.other-family"]


def test_every_setting_that_names_a_model_file_says_of_which_kind(page):
    kinds = {"lora", "checkpoint", "vae", "embedding", "upscaler", "refiner", "controlnet", "controlnet_lllite"}
    jobs = [TrainJob, GenerateJob, *(task.job for task in tasks.tasks().values())]
    entries = [entry for job in jobs for entry in declared(job)]
    assert all(set(entry.holds) <= kinds for entry in entries)
    captioners = {f"{name}.model" for name in ("blip", "git_caption", "florence", "vlm")}
    apart = captioners | {
        "tag.model_dir",
        "retag.model_dir",
        "hints_by_model.hint_model",
        "make_pairs.hint_model",
        "detailer.ad_model_file",
    }  # ONNX files and folders
    apart |= {"lllite.weights", "controlnet.controlnet_model_name_or_path"}  # of kinds that no list has
    apart |= {"perceptual.clip_model", "perceptual.vgg16_model"}
    assert {entry.path for entry in entries if entry.names == "path or name" and not entry.holds} <= apart


def test_questions_about_no_field_of_a_model_and_about_files_that_are_not_open_are_answered_with_nothing(page):
    for asked in (
        {},
        {"form": "train", "field": "model.family"},
        {"form": [], "field": {}},
        {"form": "gen", "field": "x"},
    ):
        assert page.picker.answer(asked)["rows"] == ""
    asked = {"form": "train", "field": "network.network_weights"}
    for chosen in ("", "nowhere", "\0", {}):
        assert page.picker.answer(asked | {"chosen": chosen})["problems"] == []


def test_every_list_of_every_tool_opens(page):
    tools = [task for task in tasks.tasks().values() if task.card is not None]
    opened = 0
    for task in tools:
        form = ToolForm(page, task.card).form(task)
        for name, entry in form.known.items():
            if entry.holds:
                found = page.picker.answer({"form": form.id, "field": name, "query": ""})
                assert found.keys() == {"rows", "count", "reading", "where"}
                assert ("models/loras" in found["where"]) == (entry.holds[0] == "lora"), name
                opened += 1
    assert opened >= 18


@pytest.fixture
def fox(page):
    """A run of two checkpoints, the first the best, the second kept, whose captions are sentences; with a sample of the first."""
    tags = {"ss_tag_frequency": json.dumps({"a": {f"a painting of a large house, {n}": 1 for n in range(4)}})}
    run = made_run(page.workspace.runs, "20260131-120000_fox", (20, 250), tags)
    for field, content in (
        ("best", {"file": "checkpoints/fox-step00000020.safetensors", "label": "best"}),
        ("kept", KEPT),
    ):
        (run / f"{field}.json").write_text(json.dumps(content))
    (run / "samples").mkdir()
    (run / "samples" / "00000020_00.png").touch()
    snapshot = {"files": [{"name": path.name, "step": step} for path, step in zip(saved(run), (20, 250), strict=True)]}
    page.engine.snapshot = lambda name: snapshot | {"measured": [{"step": 20, "loss": 0.1}], "best": None}
    return run


KEPT = {"checkpoints/fox-step00000250.safetensors": "fox-step00000250"}


def made_run(runs, name, steps, metadata):
    (runs / name).mkdir(parents=True)
    for step in steps:
        lora(runs / name / "checkpoints" / f"fox-step{step:08d}.safetensors", metadata | {"ss_steps": str(step)})
    return runs / name


def saved(run):
    return sorted((run / "checkpoints").iterdir())


def answer(page, **asked):
    return page.picker.answer({"form": "train", "field": "network.network_weights"} | asked)


@pytest.mark.parametrize("form", ["train", "tool-merge_lora_to_model", "tool-resize_lora", "tool-edit_metadata"])
def test_a_run_is_one_card_under_its_name_with_the_kept_step_and_no_captions(page, fox, form):
    field = "network.network_weights"
    if form != "train":
        task = tasks.named(form.removeprefix("tool-"))
        known = ToolForm(page, task.card).form(task).known
        field = next(name for name, entry in known.items() if "lora" in entry.holds)
    listed(page, form, field)
    rows = answer(page, form=form, field=field)["rows"]
    (card,) = [each.partition(">")[2] for each in rows.split("<li") if "fox-step" in each]
    shown = re.sub("<[^>]*>", " ", card)
    assert shown.split() == ["fox", "SD", "1.x", "LoRA", "rank", "4", "kept", "2", "checkpoints", "step", "250"]
    assert "fox-step00000250" in re.search(r'class="choose" data-value="([^"]*)"', card)[1]
    assert len(re.findall("<img", card)) == 1
    found = answer(page, form=form, field=field, query="step 250")["rows"]
    assert re.findall(r">step (\d+)</span></summary>", found) == ["250"]
    (fox / "kept.json").write_text(json.dumps({next(iter(KEPT)): "my fox"}))
    assert "kept as my fox" in answer(page, form=form, field=field)["rows"]
    (fox / "kept.json").unlink()
    assert ">step 20</span></summary>" in answer(page, form=form, field=field)["rows"], "the best one"


def test_the_steps_of_a_card_are_chosen_by_value_or_act_and_the_path_is_behind_its_button(page, fox):
    first, last = saved(fox)
    steps = answer(page, steps=str(first))["steps"]
    assert re.findall(r'data-value="([^"]*)" title="([^"]*)" aria-pressed="(\w+)"', steps) == [
        (str(first), "step 20, loss 0.1", "true"),
        (str(last), "step 250, kept", "false"),
    ]
    assert re.findall(r'data-copy="([^"]*)"', steps) == [str(first)]
    acts = r'data-act="(\w+)" data-arg="([^"]*)"'
    name = f"outputs/runs/{fox.name}/checkpoints/{last.name}"
    assert ("add", name) in re.findall(acts, answer(page, form="gen-loras", field="", steps=str(first))["steps"])
    run = answer(page, form="runs", field="", steps=str(first))["steps"]
    assert re.findall(acts, run) == [("draw", f"{fox.name}/{path.name}") for path in (first, last)]


def test_a_field_shows_the_name_and_step_of_its_file_and_of_a_path_that_is_none_nothing(page, fox, tmp_path):
    foreign, last = page.workspace.models / "loras" / "fox.safetensors", saved(fox)[1]
    faces = answer(page, faces=[str(last), str(foreign), "nowhere", "\0"])["faces"]
    words = {text: re.sub("<[^>]*>", " ", html).split() for text, html in faces.items()}
    assert words == {str(last): ["fox", "step", "250,", "kept"], str(foreign): ["fox"], "nowhere": [], "\0": []}


def test_a_checkpoint_shows_the_sample_of_its_own_step_else_of_the_nearest(tmp_path):
    workspace = Workspace(tmp_path / "outputs", tmp_path / "models")
    run = workspace.runs / "fox"
    for name in ("00000000_00.png", "00000010_00.png", "00000010_01.png", "00000020_00.png"):
        (run / "samples").mkdir(parents=True, exist_ok=True)
        (run / "samples" / name).touch()
    ends = ("-step00000004", "-step00000010", "-step00000014", "-step00000016", "", "-average-10-to-20")
    shown = [preview_of(run / "checkpoints" / f"fox{end}.safetensors", workspace) for end in ends]
    assert [each and each.name for each in shown] == [*(f"000000{step}_00.png" for step in (10, 10, 10, 20, 20)), None]


def test_a_reading_walks_each_folder_once_for_all_kinds(page, monkeypatch):
    make_run(page.workspace.runs, "20260102-030405_fox", saved=(20, 40))
    walked, walk = [], library.walk_folders
    monkeypatch.setattr(library, "walk_folders", lambda root: walked.append(root) or walk(root))
    lists = ModelLists(page.workspace)
    lists.read()
    assert walked == [page.workspace.models, page.workspace.runs / "20260102-030405_fox" / "checkpoints"]
    assert {kind for kind, files in lists._files.items() if files} >= {"checkpoint", "lora", "embedding", "upscaler"}


def test_a_link_that_leads_to_another_file_has_its_name_at_the_next_reading(page):
    loras = page.workspace.models / "loras"
    lora(loras / "owl.safetensors")
    newest, lists = loras / "newest.safetensors", ModelLists(page.workspace)
    for target in ("fox", "owl"):
        newest.unlink(missing_ok=True)
        newest.symlink_to(loras / f"{target}.safetensors")
        lists.read()
        (link,) = (each for each in lists.of(["lora"]) if each.path == newest)
        assert link.name == f"models/loras/{target}.safetensors"


@pytest.mark.parametrize(
    ("after", "passed", "reads"), [(3.0, 2.9, 1), (3.0, 3.1, 2), (3.0, 17.9, 1), (3.0, 18.1, 2), (0.0, 0.0, 2)]
)
def test_lists_that_are_asked_for_all_the_time_rest_nine_times_as_long_as_a_reading_took(
    page, monkeypatch, after, passed, reads
):
    now, took, done = [100.0], 2.0 if passed > 10 else 0.1, []
    monkeypatch.setattr(model_lists_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    lists = ModelLists(page.workspace)

    def read():
        now[0] += took
        done.append(now[0])

    monkeypatch.setattr(lists, "_read", read)
    lists.refresh(60.0)
    now[0] += passed
    lists.refresh(60.0, after)
    assert len(done) == reads


def test_a_search_lists_names_before_trigger_words(tmp_path):
    def one(label, *words):
        return Listed(label, label, label, tmp_path / label, FileFacts("lora", "sd1", words=words))

    files = [one("sticker", "glyph style"), one("icons"), one("my glyph"), one("style of glyphs", "fox")]
    assert [each.label for each in matching(files, "Glyph")] == ["my glyph", "style of glyphs", "sticker"]
    assert [each.label for each in matching(files, "glyph style")] == ["style of glyphs", "sticker"]
    assert matching(files, "") == files
    assert matching([one("cre\u0300me")], "Cr\u00e8me"), "macOS writes an accent as a character of its own"


def test_tools_for_any_file_offer_every_kind_that_is_listed():
    assert set(ANY_MODEL.split(", ")) == set(model_lists_module.LISTS)
