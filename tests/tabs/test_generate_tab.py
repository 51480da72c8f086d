"""The Generate tab without a browser: fields to jobs, images to fields, comparisons, and what is said while waiting."""

from __future__ import annotations

import os
import re
import shutil
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from generate_parts import Engine, draw, embedding, lora, made, make_desk, press, said_codes
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from work_parts import HOSTILE, event, make_page, said

from core.engine.explain import explain
from core.engine.queue import GUEST, QueueEntry
from core.formats.hashes import HashMemo
from core.generation.images.gallery import facts_of, nets_text, pair_key
from core.generation.images.metadata import png_info
from core.generation.images.record import ImageRecord
from core.generation.model.library import portable_name
from core.generation.model.sources import Hashes, model_hash
from core.generation.model.store import LoadedModel
from core.generation.plan.requests import requests_of
from core.generation.prompt.wildcards import no_files
from core.record.problems import Problem, ProblemsError
from core.record.workspace import PROJECT
from core.settings.check import build
from core.settings.generation.controls import ControlSettings, ControlUse
from core.settings.generation.image_to_image import ImageToImageSettings
from core.settings.generation.prompts import PromptSettings
from core.settings.generation.regions import RegionSettings
from core.settings.job import GenerateJob, TrainJob
from core.settings.presets.files import to_values
from core.training.checks.demo_setup import demo
from tabs.generate import form, image_values, loras
from tabs.generate.gallery import about_job
from tabs.generate.grids import STATE
from tabs.generate.stage import Stage, status
from tabs.generate.tab import GenerateHandlers
from tests.models import tiny_file
from tests.refusals import refused


@pytest.fixture
def desk(tmp_path):
    return make_desk(tmp_path)


# -- models in memory


def test_what_is_in_memory_is_said_and_a_click_unloads_it(desk):
    assert "Unload" not in desk.memory.html()
    parts = [("base", "sd15.safetensors", 1 << 30), ("VAE", "sd15.safetensors", 1 << 29)]
    desk.page.engine.models.held = [LoadedModel(slot, name, name, None, size) for slot, name, size in parts]
    assert "Unload 1.5 GB" in desk.memory.html() and "loaded models: sd15 1.5 GB" in desk.memory.html()
    desk.page.engine.models.held += [LoadedModel("base", "other", "<other>", None, 1 << 30)]
    shown = desk.memory.html()
    assert "Unload 2.5 GB" in shown and "&lt;other&gt; 1.0 GB" in shown
    desk.page.engine.now = {"task": "generate"}
    assert "disabled" in desk.memory.html()
    assert "Unload" not in desk.memory.act(event("unload"))


@pytest.mark.slow
def test_what_the_images_will_take_follows_the_fields(desk, monkeypatch):
    desk.page.engine.light = lambda work, *given, title: work(*given, task=None)

    def said(**fields):
        desk.presets.put(form.start_values() | fields)
        return re.search(r"About ([\d.]+ [MG]B) of [\d.]+ GB RAM", desk.memory.html() + desk.memory.html())

    small, large = said(width=64, height=64), said(width=1024, height=1024)
    assert small and large and small[1] != large[1]
    assert said(width=1024, height=1024, prompt="another")[1] == large[1]
    assert said(base_model="nowhere") is None, "what cannot be made is not foretold"
    # Not taken out of sys.modules: a thread that imports it just then makes a second one, which spoils both.
    monkeypatch.setattr("tabs.generate.memory.sys", SimpleNamespace(modules={}))
    assert "Memory needed" in (desk.presets.put(form.start_values() | {"width": 128}) or desk.memory.html())


def test_what_ran_out_of_memory_is_tried_again_with_one_click_and_other_failures_are_not(desk):
    engine, job = desk.page.engine, to_values(build(GenerateJob, {"generate": {"prompt": "a fox", "count": 4}}))
    engine.entries = [QueueEntry("e", "generate", "a fox", job, state="failed", run="r", message="out")]
    assert "VAE slices" not in desk.stage.status()
    engine.snapshot = lambda run: {"fix": "", "code": explain(MemoryError()).code}
    assert all(way in desk.stage.status() for way in ("slices", "single", "layers"))
    for way, changed in (("slices", "vae_slices"), ("single", "batch_size"), ("layers", "offload")):
        desk.stage.act(event(way, "e"))
        newest = to_values(engine.jobs[-1])
        asked = newest["generate"] | newest["generation_memory"]
        before = job["generate"] | job["generation_memory"]
        assert [name for name in asked if asked[name] != before.get(name)] == [changed] and asked["count"] == 4
    assert len(engine.jobs) == 3
    desk.stage.act(event("slices", "no such"))
    assert len(engine.jobs) == 3


# -- fields to a job


def test_the_fields_as_they_come_are_the_default_job():
    job = form.job_of(form.start_values(), TrainJob())
    assert job.generate == build(GenerateJob, {}).generate


def test_the_model_is_the_one_of_train_until_another_is_chosen():
    project = build(
        TrainJob, {"model": {"base_model": "models/mine.safetensors", "clip_skip": 2, "vae": "models/v.pt"}}
    )
    assert form.job_of(form.start_values(), project).model == project.model
    other = form.job_of(form.start_values() | {"base_model": "models/starter"}, project).model
    assert (other.base_model, other.vae, other.clip_skip) == ("models/starter", None, None)


def test_everything_that_cannot_be_used_is_listed_at_once():
    bad = {"steps": "many", "width": "63", "seed": "-4", "guidance_scale": "99", "count": ""}
    with pytest.raises(ProblemsError) as error:
        form.job_of(form.start_values() | bad, TrainJob())
    places = {problem.where for problem in error.value.problems}
    assert places == {f"generate.{name}" for name in bad}


def test_a_comparison_draws_the_same_seed_without_loras_first():
    values = form.start_values() | {"loras": [{"file": "x", "strength": 0.5}], "compare": True}
    plain, full = form.jobs_to_generate(form.job_of(values, TrainJob()), True, TrainJob())
    assert plain.generate.loras == [] and len(full.generate.loras) == 1
    assert plain.generate.seed == full.generate.seed is not None
    assert pair_key(plain) == pair_key(full)
    with pytest.raises(ProblemsError, match="nothing to compare"):
        form.jobs_to_generate(form.job_of(form.start_values(), TrainJob()), True, TrainJob())


def _in_prompt(desk, values):
    desk.presets.put(desk._values() | {"prompt": values["prompt"]})
    return desk.loras.rows()


def test_a_lora_of_the_prompt_is_one_of_the_job_and_an_unknown_one_is_refused_before_it_is_queued(desk):
    values = form.start_values() | {"prompt": "a fox <lora:ink:0.5:0.8>", "seed": "-1"}
    plain, full = form.jobs_to_generate(form.job_of(values, TrainJob()), True, TrainJob())
    assert (plain.generate.prompt, plain.generate.loras) == ("a fox", []) and plain.generate.seed is not None
    (use,) = full.generate.loras
    assert (use.file, use.strength, use.text_encoder_strength) == ("ink", 0.8, 0.5)
    assert "ink at 0.8 / 0.5" in nets_text(full) and "ink 0.8 / 0.5" in _in_prompt(desk, values)
    cards = values | {"loras": [{"file": "ink", "strength": 0.7}]}
    _, twice = form.jobs_to_generate(form.job_of(cards, TrainJob()), True, TrainJob())
    assert nets_text(twice) == "ink at 0.7 + 0.8 / 0.5"
    others = [
        {"file": "models/loras/ink.safetensors", "strength": 0.7},
        {"file": "outputs/ink.safetensors", "strength": 0.3},
    ]
    _, two = form.jobs_to_generate(
        form.job_of(values | {"prompt": "a fox", "loras": others}, TrainJob()), True, TrainJob()
    )
    assert nets_text(two) == "ink at 0.7, ink at 0.3"
    _, three = form.jobs_to_generate(form.job_of(values | {"loras": others[:1]}, TrainJob()), True, TrainJob())
    assert nets_text(three) == "ink at 0.7 + 0.8 / 0.5"
    press(desk, prompt="a fox <lora:ink:0.8>")
    assert "lora.not-found" in said(desk)
    assert not desk.page.engine.jobs


def test_new_words_and_trained_models_are_compared_too():
    values = form.start_values() | {"embeddings": ["zkw=outputs/zkw.safetensors"], "base_model": "other"}
    plain, full = form.jobs_to_generate(form.job_of(values, TrainJob()), True, TrainJob())
    assert plain.generate.embeddings == [] and plain.model.base_model == full.model.base_model == "other"
    assert plain.generate.seed == full.generate.seed is not None and pair_key(plain) == pair_key(full)
    trained = "outputs/runs/x/checkpoints/dog.safetensors"
    values = form.start_values() | {"base_model": trained}
    plain, full = form.jobs_to_generate(form.job_of(values, TrainJob()), True, TrainJob())
    assert plain.model == TrainJob().model and full.model.base_model == trained
    assert plain.generate == full.generate and plain.generate.seed is not None
    assert [nets_text(each) for each in (plain, full)] == ["", "dog"]


def test_a_controlnet_is_compared_with_the_model_alone():
    net = {"controls": {"nets": [ControlUse(file="canny", image="edges.png")], "control_image": "edges.png"}}
    job = form.job_of(form.start_values(), TrainJob()).with_settings(generate={"seed": 3}, **net)
    plain, full = form.jobs_to_generate(job, True, TrainJob())
    assert plain.controls.nets == [] and full == job
    assert facts_of(full).bare == facts_of(plain).pair != facts_of(full).pair and facts_of(plain).bare == ""
    off = job.with_settings(controls={"nets": [ControlUse(file="canny", enabled=False)]})
    with pytest.raises(ProblemsError, match="nothing to compare"):
        form.jobs_to_generate(off, True, TrainJob())


def test_a_lora_of_strength_0_is_left_out_of_the_job():
    values = form.start_values() | {"loras": [{"file": "x", "strength": 0.0}, {"file": "y", "strength": -0.5}]}
    assert [use.file for use in form.job_of(values, TrainJob()).generate.loras] == ["y"]


def test_strengths_are_changed_moved_removed_and_checked(tmp_path):
    values = form.start_values() | {"loras": [{"file": "x", "strength": 1.0}, {"file": "y", "strength": 1.0}]}
    page = make_page(tmp_path)

    def change(act, arg, value=""):
        return loras.changed(values, act, arg, value, page)["loras"]

    assert change("strength", "1", "-0.25")[1] == {"file": "y", "strength": -0.25}
    assert change("remove", "0") == [{"file": "y", "strength": 1.0}]
    assert change("up", "1") == change("down", "0") == values["loras"][::-1]
    assert change("strength", "7", "1") == change("up", "0") == change("down", "1") == values["loras"]
    assert change("on", "0", "false")[0]["enabled"] is False
    assert change("part", "0:block_weights", "OUTALL")[0]["block_weights"] == "OUTALL"
    assert change("part", "0:end_at", "0.5")[0]["end_at"] == 0.5
    assert change("part", "0:file", "/etc/passwd") == values["loras"]
    for bad in ("x", "", "nan", "11", "inf"):
        with pytest.raises(ProblemsError):
            change("strength", "0", bad)


def test_the_guidance_starts_as_that_of_the_samples():
    project = TrainJob.model_validate({"samples": {"guidance_scale": 4}})
    assert form.stored_values({}, project)["guidance_scale"] == 4
    assert form.stored_values({"values": {"guidance_scale": "9"}}, project)["guidance_scale"] == 9  # kept as text once


def test_a_damaged_project_file_gives_the_start_values():
    assert form.stored_values({"values": {"prompt": 3, "loras": [{"x": 1}, "y"], "new": 1}}) == form.start_values()
    assert form.stored_values({"values": {"embeddings": ["a", 3]}})["embeddings"] == []
    assert form.stored_values({"values": {"prompt": "a cat"}})["prompt"] == "a cat"


# -- images to fields


def test_a_dropped_image_fills_the_fields(desk, tmp_path):
    file = draw(tmp_path / "in.png", prompt="a blue cat", seed=77, steps=5, sampler="euler", width=128, height=64)
    desk.read(str(file))
    values = desk._values()
    assert (values["prompt"], values["seed"], values["steps"], values["sampler"]) == ("a blue cat", 77, 5, "euler")
    assert (values["width"], values["height"], values["count"]) == (128, 64, 1)
    assert not file.exists()  # the server's copy of the upload


def test_the_settings_of_an_image_leave_the_format_and_names_of_files(desk, tmp_path):
    desk.presets.put(form.start_values() | {"image_format": "webp", "file_pattern": "[seed]"})
    desk.read(str(draw(tmp_path / "in.png", prompt="a blue cat")))
    values = desk._values()
    assert (values["prompt"], values["image_format"], values["file_pattern"]) == ("a blue cat", "webp", "[seed]")


def test_an_image_without_settings_changes_nothing_and_says_why(desk, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    before = desk._values()
    desk.read(str(tmp_path / "plain.png"))
    assert "image.no-settings" in said(desk) and desk._values() == before


@pytest.mark.parametrize("name", ["notes.txt", "notes.png"])
def test_a_dropped_file_that_is_no_image_is_named(desk, tmp_path, name):
    (tmp_path / name).write_text("a fox")
    before = desk._values()
    assert desk.read(str(tmp_path / name))["drop"] is None
    (problem,) = desk.page.browsers.of(None).message["problems"]
    assert (problem["code"], problem["what"].partition(" ")[0]) == ("image.unreadable", name)
    assert desk._values() == before and not (tmp_path / name).exists()


A1111_TEXT = """a hat
Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 512x512, VAE: {0}.safetensors, Clip skip: 2, ENSD: 31337, """
A1111_TEXT += "Denoising strength: 0.4, Hires upscale: 2, Hires upscaler: {0}"


@pytest.mark.parametrize("name", ["here", "gone"])
def test_files_that_an_image_of_a1111_names_are_found_by_name_or_said(desk, tmp_path, name):
    models = tmp_path / "models"
    desk.page.workspace = replace(desk.page.workspace, models=models)
    for folder in ("upscalers", "vae"):
        (models / folder).mkdir(parents=True)
    vae = PROJECT / "models" / "starter" / "vae" / "diffusion_pytorch_model.safetensors"
    shutil.copy(vae, models / "vae" / "here.safetensors")
    (models / "upscalers" / "here.pth").write_bytes(b"")
    info = PngInfo()
    info.add_text("parameters", A1111_TEXT.format(name))
    Image.new("RGB", (8, 8)).save(tmp_path / "in.png", pnginfo=info)
    desk.read(str(tmp_path / "in.png"))
    values, there = desk._values(), name == "here"
    assert values["vae"] == ("models/vae/here.safetensors" if there else None) and values["clip_skip"] == 2
    assert values["highres_fix_upscaler_file"] == ("here" if there else None) and values["highres_fix_scale"] == 2
    missing = [] if there else ["upscaler.not-found", image_values.NO_FILE]
    assert set(said_codes(desk)) == {"image-settings.not-read", *missing}


def test_strengths_of_missing_loras_and_control_nets_are_named(desk):
    job = made(
        loras=[{"file": "inkwash", "strength": 0.6, "text_encoder_strength": 0.4}, {"file": "wash", "strength": 0.7}]
    )
    nets = ControlSettings(nets=[ControlUse(file="edges", image="a.png", weight=0.3)])
    job = job.model_copy(update={"controls": nets})
    _, notes = image_values.values_of(
        job, form.start_values(), desk.page.workspace, desk.page.project.job.model, Hashes()
    )
    messages = [note.what for note in notes]
    assert "No LoRA 'inkwash' (strength 0.6 / 0.4)" in messages and "No LoRA 'wash' (strength 0.7)" in messages
    assert any("edges" in each and each.endswith("(weight 0.3)") for each in messages)


def test_an_image_made_as_sd_scripts_makes_it_is_repeated_from_the_fields(desk, tmp_path):
    job = made(prompt="a {red} fox", seed=7)
    job = job.with_settings(model={"compatibility": "sd-scripts-0.10"})
    job = job.model_copy(update={"prompts": PromptSettings(dynamic_prompts=False)})
    Image.new("RGB", (64, 64)).save(tmp_path / "in.png", pnginfo=png_info(job, Hashes()))
    desk.read(str(tmp_path / "in.png"))
    press(desk, **desk._values())
    (request,), _ = requests_of(desk.page.engine.jobs[0], no_files)
    assert (request.seed, request.job.generate.prompt) == (7, "a {red} fox")
    assert request.job.generate.compatibility == "kohya"


@pytest.mark.parametrize(("negative", "dynamic"), [("{{bad}}", True), ("__bad__", False)])
def test_braces_in_the_prompts_of_an_image_stay_text(desk, tmp_path, negative, dynamic):
    job = made(prompt="a {red} fox", negative_prompt=negative)
    job = job.model_copy(update={"prompts": PromptSettings(dynamic_prompts=False)})
    Image.new("RGB", (64, 64)).save(tmp_path / "in.png", pnginfo=png_info(job, Hashes()))
    desk.read(str(tmp_path / "in.png"))
    assert desk._values()["dynamic_prompts"] == dynamic
    press(desk, **desk._values())
    (request,), _ = requests_of(desk.page.engine.jobs[0], no_files)
    assert (request.job.generate.prompt, request.job.generate.negative_prompt) == ("a {red} fox", negative)


def test_what_an_image_used_and_is_not_here_is_said(desk, tmp_path):
    file = draw(tmp_path / "in.png", loras=[{"file": f"models/{HOSTILE}", "strength": 1}])
    desk.read(str(file))
    assert "lora.not-found" in said(desk)
    assert desk._values()["loras"] == []


@pytest.mark.parametrize(("digest", "there"), [("", True), ("its own", True), ("00" * 32, False)])
def test_a_model_outside_of_the_models_folder_is_the_chosen_one_of_its_name_and_hash(desk, tmp_path, digest, there):
    model = tmp_path / "elsewhere" / "mine"
    model.parent.mkdir()
    shutil.copytree(PROJECT / "models" / "starter", model)
    digest = model_hash(model, "sd1", HashMemo(), None) if digest == "its own" else digest
    job = made().with_settings(model={"base_model": "mine"})
    Image.new("RGB", (64, 64)).save(tmp_path / "in.png", pnginfo=png_info(job, Hashes(model=digest)))
    desk.presets.put(form.start_values() | {"base_model": str(model), "steps": 3})
    desk.read(str(tmp_path / "in.png"))
    assert desk._values()["base_model"] == str(model)
    message = desk.page.browsers.of(None).message["problems"]
    assert [each["what"] for each in message] == (
        [] if there else ["The model 'mine' was not found in the models folder; the chosen one is kept"]
    )


def test_files_of_an_image_are_found_in_the_outputs_folder_of_this_server(desk, tmp_path):
    space = desk.page.workspace
    image, mask = space.images / "d" / "1.png", space.inputs / "m.png"
    for path in (image, mask):
        draw(path)
    given = {"image_path": portable_name(image, space), "mask_path": portable_name(mask, space)}
    assert given == {"image_path": "outputs/images/d/1.png", "mask_path": "outputs/inputs/m.png"}
    job = made().model_copy(update={"image_to_image": ImageToImageSettings(**given)})
    job = job.model_copy(update={"regions": RegionSettings(region_map="outputs/inputs/gone.png")})
    Image.new("RGB", (64, 64)).save(tmp_path / "in.png", pnginfo=png_info(job, Hashes()))
    desk.read(str(tmp_path / "in.png"))
    values = desk._values()
    assert (values["image_path"], values["mask_path"]) == (str(image), str(mask))
    assert said_codes(desk) == [image_values.NO_FILE]
    press(desk, **values | {"region_map": None})
    assert desk.page.engine.jobs[0].image_to_image.image_path == str(image)


# -- drawing


def test_generate_queues_what_the_fields_hold_now(desk):
    status = press(desk, prompt="a cat", seed=5)
    assert [job.generate.prompt for job in desk.page.engine.jobs] == ["a cat"]
    assert "About to start" in status and "a cat" in status
    assert desk._values()["seed"] == 5  # kept for the next visit


def test_a_missing_lora_or_model_is_said_before_anything_is_queued(desk):
    desk.presets.keep(form.start_values() | {"loras": [{"file": "gone.safetensors", "strength": 1.0}]})
    press(desk, base_model="models/nowhere", loras=desk._values()["loras"])
    assert "gone" in said(desk)
    assert desk.page.engine.jobs == []


def test_embeddings_are_chosen_from_the_list_kept_and_drawn_with(desk):
    embedding(desk.page.workspace.runs / "r" / "checkpoints" / "zunkel.safetensors")
    name = "outputs/runs/r/checkpoints/zunkel.safetensors"
    assert desk.lora_act(event("refresh"))["embeddings"].choices == [("r / zunkel (embedding)", name)]
    before = desk.loras.embeddings().info
    answer = desk.choose_embeddings([name])["embeddings"]
    assert answer.value == [name] and "zunkel" in answer.info and "zunkel" not in before
    press(desk, embeddings=[name, f"brabol={name}"])
    assert desk.page.engine.jobs[0].generate.embeddings == [name, f"brabol={name}"]
    press(desk, embeddings=["gone"])
    assert "embedding.not-found" in said(desk)
    assert len(desk.page.engine.jobs) == 1


def test_an_image_brings_its_embeddings_and_says_which_are_not_here(desk, tmp_path):
    embedding(desk.page.workspace.runs / "r" / "checkpoints" / "zunkel.safetensors")
    file = draw(tmp_path / "in.png", embeddings=["outputs/runs/r/checkpoints/zunkel.safetensors", f"a={HOSTILE}"])
    desk.read(str(file))
    assert desk._values()["embeddings"] == ["outputs/runs/r/checkpoints/zunkel.safetensors"]
    assert "embedding.not-found" in said(desk)


def test_a_shared_page_draws_only_with_files_of_the_project(tmp_path):
    desk = GenerateHandlers(make_page(tmp_path, Engine(tmp_path), shared=True))
    outside = tmp_path / "elsewhere"
    shutil.copytree(PROJECT / "models" / "starter", outside, ignore=shutil.ignore_patterns("images"))
    for wanted in ({"base_model": str(outside)}, {"embeddings": [str(embedding(outside / "zunkel.safetensors"))]}):
        press(desk, **wanted)
        assert "shared.path-closed" in said(desk)
    press(desk)
    assert len(desk.page.engine.jobs) == 1


def test_waiting_for_training_says_so_with_its_place_and_can_be_cancelled(desk):
    engine = desk.page.engine
    engine.entries.append(QueueEntry("t", "train", "fox", {}, state="running"))
    engine.now = {"task": "train", "title": "fox", "entry": "t", "step": 120, "total": 270, "eta_seconds": 65}
    press(desk, prompt=HOSTILE)
    status = press(desk, prompt="second")
    waited = [wait.message[1:] for wait in engine.waits().values()]
    assert all(words in status for words in waited) and "<img src=x" not in status
    assert [(wait.on, wait.left, wait.ahead) for wait in engine.waits().values()] == [("fox", 65, 0), ("fox", 65, 1)]
    status = desk.stage.act(event("cancel", "e1"))
    assert "second" in status and waited[1] not in status and waited[0] in status
    desk.stage.act(event("cancel", "t"))  # a training is not this tab's to stop
    assert "t" in [entry.id for entry in engine.entries]


def test_progress_failure_and_a_paused_queue_are_shown(desk):
    engine = desk.page.engine
    engine.entries.append(QueueEntry("d", "generate", "fox", {}, state="running"))
    engine.now = {"task": "generate", "entry": "d", "stage": "generating image 2 of 4 30/80"}
    engine.now |= {"counted": (30, 80), "of_image": (10, 20), "eta_seconds": 14.2}
    assert (
        "Image 2 of 4, step 10 of 20, 0:14 left (3.5 it/s)" in desk.stage.status()
        and "width:37.5%" in desk.stage.status()
    )
    engine.entries = [QueueEntry("d", "generate", "fox", {}, state="failed", run="r", message="out of memory")]
    assert "out of memory" in desk.stage.status() and "lower the size" in desk.stage.status()
    assert "out of memory" not in desk.stage.act(event("close", "d"))
    engine.now, engine.queue_paused = None, True
    press(desk)
    assert engine.waits()["e1"].message[1:] in desk.stage.status() and 'data-act="resume"' in desk.stage.status()


def test_a_failure_is_shown_until_the_next_press_and_the_warnings_of_the_last_job_after_it(desk):
    engine = desk.page.engine
    engine.entries = [QueueEntry("d", "generate", "fox", {}, state="failed", run="r", message="out of memory")]
    assert "out of memory" in desk.stage.status()
    assert "out of memory" not in press(desk)
    engine.snapshot = lambda run: {
        "log": [{"level": "warning", "text": "'wide' is read as text"}, {"level": "info", "text": "x"}]
    }
    ended(desk, engine.entries[-1].id)
    assert "&#x27;wide&#x27; is read as text.</span>" in desk.stage.status()


def ended(desk, identity, state="done"):
    """The job has ended, as the engine tells."""
    entry = next(each for each in desk.page.engine.entries if each.id == identity)
    desk.page.engine.entries = [
        replace(each, state=state) if each is entry else each for each in desk.page.engine.entries
    ]
    for told in desk.page.engine.end_listeners:
        told(replace(entry, state=state))


def seeds_asked(desk):
    return [job.generate.seed for job in desk.page.engine.jobs]


def test_forever_queues_the_fields_of_now_with_a_random_seed_until_it_is_switched_off(desk):
    engine = desk.page.engine
    desk.presets.put(form.start_values() | {"seed": 5, "prompt": "first"})
    assert 'aria-pressed="true"' in desk.stage.act(event("forever", ""))
    desk.presets.put(desk._values() | {"prompt": "second"})
    assert [job.generate.prompt for job in engine.jobs] == ["first"]  # what was asked for stays
    ended(desk, "e1")
    assert [job.generate.prompt for job in engine.jobs] == ["first", "second"] and seeds_asked(desk) == [5, None]
    ended(desk, "e2", "stopped")  # one that is cancelled is skipped
    assert len(engine.jobs) == 3
    assert 'aria-pressed="false"' in desk.stage.act(event("forever", ""))
    ended(desk, "e3")
    assert len(engine.jobs) == 3


def test_the_image_of_a_press_takes_the_place_of_a_grid_that_ran_meanwhile_when_it_ends(desk):
    page = desk.page
    page.project.keep(STATE, {"open": "a grid"})
    page.engine.entries = [QueueEntry("g", "grid", "Grid: fox", {}, state="running")]
    press(desk)
    mine = page.engine.entries[-1].id
    assert page.project.tab_state(STATE)["open"] == "a grid"
    page.engine.entries = page.engine.entries[1:]
    ended(desk, mine, "failed")
    assert page.project.tab_state(STATE)["open"] == "a grid"
    ended(desk, mine)
    assert page.project.tab_state(STATE)["open"] == ""


def test_of_a_comparison_whose_second_job_is_refused_none_is_queued(desk, monkeypatch):
    submit, jobs = desk.page.engine.submit, []

    def refuse_second(*arguments, **more):
        jobs.append(arguments)
        if len(jobs) > 1:
            raise ProblemsError.one("full", "queue", "wait", "queue.full")
        return submit(*arguments, **more)

    monkeypatch.setattr(desk.page.engine, "submit", refuse_second)
    with refused("queue.full"):
        desk.stage.submit([GenerateJob()] * 2)
    assert len(jobs) == 2 and desk.page.engine.queue() == []


def test_forever_queues_for_the_guest_whose_job_ended(desk, monkeypatch):
    desk.stage.act(event("forever", ""))
    desk.page.engine.entries = [replace(each, guest="one") for each in desk.page.engine.entries]
    submit, seen = desk.stage.submit, []
    monkeypatch.setattr(desk.stage, "submit", lambda jobs: seen.append(GUEST.get()) or submit(jobs))
    ended(desk, "e1")
    assert seen == ["one"] and GUEST.get() == "" and len(desk.page.engine.jobs) == 2


def test_forever_follows_what_is_made_already_and_ends_with_a_failure_or_fields_that_cannot_be_used(desk):
    press(desk, prompt="asked for")
    press(desk, prompt="asked for too")
    desk.stage.act(event("forever", ""))
    assert len(desk.page.engine.jobs) == 2
    ended(desk, "e1")
    assert len(desk.page.engine.jobs) == 2  # the second is not done yet
    ended(desk, "e2", "failed")
    assert len(desk.page.engine.jobs) == 2 and not desk.stage.endless
    desk.stage.act(event("forever", ""))
    desk.presets.put(desk._values() | {"base_model": "models/nowhere"})
    ended(desk, "e3")
    assert len(desk.page.engine.jobs) == 3 and not desk.stage.endless
    assert "nowhere" in desk.stage.status()
    assert "nowhere" not in desk.stage.act(event("close", "refused"))


def test_a_comparison_that_goes_on_forever_has_one_seed_for_both(desk):
    desk.presets.put(form.start_values() | {"embeddings": [str(embedding(desk.page.workspace.runs / "z.safetensors"))]})
    desk.presets.put(desk._values() | {"compare": True, "seed": 5})
    desk.stage.act(event("forever", ""))
    ended(desk, "e2")
    first, second = seeds_asked(desk)[2:]
    assert first == second not in (5, None)


def test_the_base_image_of_a_comparison_alone_is_folded_into_the_other(desk, monkeypatch):
    folder, use = desk.page.workspace.images, [{"file": "runs/x/z.safetensors", "strength": 1}]
    desk.gallery_handlers.gallery.matching()  # from here on comparisons are recorded
    desk.presets.put(form.start_values() | {"embeddings": [str(embedding(desk.page.workspace.runs / "z.safetensors"))]})
    desk.presets.put(desk._values() | {"compare": True, "seed": 5})
    desk.draw()
    files = {f"e{number}": [str(folder / f"{number}.png")] for number in (1, 2)}
    monkeypatch.setattr(desk.page.engine, "progress", lambda identity: {"images": files[identity]}, raising=False)
    for number, used in ((1, []), (2, use)):
        draw(folder / f"{number}.png", loras=used)
        os.utime(folder / f"{number}.png", (time.time() + number,) * 2)
        ended(desk, f"e{number}")
    draw(folder / "alone.png")
    os.utime(folder / "alone.png", (time.time() + 3,) * 2)
    desk.gallery_handlers.refresh()
    assert [shot.name for shot in desk.gallery_handlers.gallery.matching()] == ["alone.png", "2.png"]


def test_the_preview_of_what_is_made_stands_in_the_frame_of_the_newest_image(desk):
    draw(desk.page.workspace.images / "d" / "1.png")
    folder = desk.page.workspace.private / "jobs" / "r"
    folder.mkdir(parents=True)
    desk.page.engine.now = {"task": "generate", "entry": "d", "run": "r", "title": HOSTILE}
    before, finished = desk.stamp(), desk.stage.newest()
    assert "data:image/jpeg" not in finished and 'download="1.png"' in finished
    (folder / "preview.jpg").write_bytes(b"jpeg")
    live = desk.stage.newest()
    assert "data:image/jpeg;base64,anBlZw==" in live and "<img src=x" not in live and desk.stamp() != before
    (folder / "preview.jpg").unlink()
    assert desk.stage.newest() == finished and desk.stamp() == before


def test_a_line_that_a_click_has_drawn_is_drawn_again_where_the_next_tick_has_what_was_there_before(desk):
    desk.loras.model_lists.read()
    shown = desk.show()
    drawn = desk.draw()
    assert drawn["status"] != shown["status"]
    ended(desk, "e1")  # before any tick
    assert desk.tick(drawn["client"])["status"] == shown["status"]
    unloaded = desk.memory_act(event("unload"))
    assert "memory" not in desk.tick(unloaded["client"]) and "status" in desk.tick(unloaded["client"])
    cancelled = desk.stage_act(event("forever"))
    desk.stage_act(event("forever"))
    assert "status" in desk.tick(cancelled["client"])


def test_jobs_behind_the_first_are_one_number_that_unfolds(desk):
    for prompt in ("one", "two", "three"):
        status = press(desk, prompt=prompt)
    assert "2 more jobs</summary>" in status and status.count('data-act="cancel"') == 3
    assert "1 more job</summary>" in desk.stage.act(event("cancel", "e2"))


def test_a_job_of_this_tab_is_shown_before_a_grid_that_runs(desk):
    press(desk, prompt="mine")
    ours = desk.page.engine.queue()[0]
    desk.page.engine.entries.insert(0, replace(ours, id="e0", task="grid", title="Grid: fox", state="running"))
    status = desk.stage.status()
    assert "1 more job</summary>" in status and status.index(f'data-arg="{ours.id}"') < status.index('data-arg="e0"')


def test_without_loras_the_list_says_where_they_come_from(desk):
    assert "Train one" in desk.loras.picker() and desk._form()["loras"] == ""


def test_only_loras_of_the_list_are_added(desk):
    name = "outputs/runs/r/checkpoints/glyphs.safetensors"
    lora(desk.page.workspace.runs / "r" / "checkpoints" / "glyphs.safetensors")
    desk.lora_act(event("refresh"))
    for _ in range(2):
        desk.lora_act(event("add", name))
    assert [use["file"] for use in desk._values()["loras"]] == [name]
    with pytest.raises(ProblemsError):
        desk.lora_act(event("add", "/etc/passwd"))
    assert "glyphs" in desk.lora_act(event("strength", "0", "0.4"))["loras"]
    assert desk._values()["loras"][0]["strength"] == 0.4
    assert desk.lora_act(event("remove", "0"))["loras"] == ""


def test_names_of_loras_never_become_markup(desk):
    desk.presets.put(desk._values() | {"loras": [{"file": f"{HOSTILE}.safetensors", "strength": 1.0}]})
    assert "<img src=x" not in desk.loras.rows()
    record = ImageRecord(reason=HOSTILE)
    assert "<img src=x" not in about_job(None, record)
    failed = status([], {}, None, [("x", Problem(HOSTILE, HOSTILE, HOSTILE))])
    assert "<img src=x" not in failed


def test_a_generation_that_was_cancelled_says_so_until_it_has_stopped():
    running = QueueEntry("e1", "generate", "a fox", {}, state="running")
    now = {"entry": "e1", "task": "generate", "stage": "drawing 3/8", "stopping": False}
    said = [status([running], {}, now | {"stopping": stops}, []) for stops in (False, True)]
    assert "Stopping" not in said[0] and "Drawing" in said[0] and "disabled" not in said[0]
    assert "Stopping" in said[1] and "Drawing" not in said[1] and "disabled" in said[1]


def test_a_cancelled_batch_says_how_many_images_there_are_until_the_next_one_begins(desk):
    engine = desk.page.engine
    engine.snapshot = lambda run: {"message": "Cancelled after 3 of 8 images"}
    engine.entries = [QueueEntry("a", "generate", "fox", {}, state="stopped", run="r")]
    assert "Cancelled after 3 of 8 images." in desk.stage.status()
    engine.entries.append(QueueEntry("b", "generate", "owl", {}, state="cancelled"))  # one that waited
    assert "Cancelled after 3 of 8 images." in desk.stage.status()
    engine.entries.append(QueueEntry("c", "generate", "cat", {}))
    assert "Cancelled" not in desk.stage.status()
    engine.entries[-1] = replace(engine.entries[-1], state="done", run="s")
    assert "Nothing is being generated." in desk.stage.status()
    engine.entries.append(QueueEntry("d", "generate", "dog", {}, state="cancelled"))
    assert "Cancelled before it began." in desk.stage.status()


@pytest.mark.parametrize(("width", "scale"), [(280, None), (288, 0.67)])  # of 128 x 128, at 128 x width
def test_hires_fix_is_offered_from_2_25_times_the_trained_pixels_and_begins_at_these(desk, width, scale):
    desk.presets.put(desk._values() | {"width": width, "height": 128})
    assert ('data-act="hires"' in desk._form()["settings"]) == (scale is not None)
    desk.act(event("hires"))
    assert desk._values()["highres_fix_scale"] == scale
    assert 'data-act="hires"' not in desk._form()["settings"]


def test_empty_fields_show_the_models_own_size_and_guidance(tmp_path):
    space = make_page(tmp_path).workspace
    values = form.stored_values({}, demo())
    assert {name: text.split(" ")[0] for name, text in form.default_texts(values, demo(), space).items()} == {
        "width": "128",
        "height": "128",
        "guidance_scale": "4",
    }
    assert values["guidance_scale"] is None is values["width"]
    real = tiny_file("sd1", tmp_path / "real.safetensors")
    other = form.default_texts(values | {"base_model": str(real)}, demo(), space)
    assert other["guidance_scale"].startswith("7.5") and other["width"].startswith("512")
    assert "4" not in form.default_texts(values | {"base_model": "nowhere"}, demo(), space)["guidance_scale"]


def test_a_grid_that_was_asked_for_after_an_image_stays_open_when_that_ends(desk):
    page = desk.page
    press(desk)
    image = replace(page.engine.entries[-1], added=10.0)
    for added, opened in ((11.0, "a grid"), (9.0, "")):
        page.project.keep(STATE, {"open": "a grid"})
        grid = QueueEntry("g", "grid", "Grid: fox", {"grid": {"folder": "a grid"}}, state="waiting", added=added)
        page.engine.entries = [image, grid]
        ended(desk, image.id)
        assert page.project.tab_state(STATE)["open"] == opened


def test_images_in_a_folder_that_the_gallery_does_not_show_are_named(tmp_path):
    page = make_page(tmp_path)
    stage = Stage(page, lambda: None, lambda new: [])
    for outdir, named in ((str(tmp_path / "mine"), True), ("", False), (str(page.workspace.images / "today"), False)):
        job = {"output": {"outdir": outdir}}
        page.engine.queue = lambda job=job: [QueueEntry("a", "generate", "a fox", job, "done", "r")]
        page.engine.snapshot = lambda run: {"log": []}
        assert (f"Saved in {tmp_path / 'mine'}" in stage.status()) == named, outdir
