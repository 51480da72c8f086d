"""What a command takes without a flag: a folder, a file or a prompt, told from a preset by what it is."""

import json
import os
import re
from pathlib import Path

import pytest

from core import tasks
from core.cli.main import BAD_INPUT, DONE, main
from core.cli.options import argument_of, commands, job_from, split_options
from core.generation.plan.idle import idle_settings
from core.record.problems import ProblemsError
from core.record.workspace import PROJECT
from core.settings.base import declared
from core.settings.elsewhere import ELSEWHERE
from core.settings.job import TrainJob
from core.settings.needs import no_effect
from core.settings.presets.files import dump
from tests.noise import noise_images


def job_of(task, *words):
    return job_from(task, split_options(list(words), commands()[task], task=task))


def codes(task, *words):
    with pytest.raises(ProblemsError) as error:
        job_of(task, *words)
    return [problem.code for problem in error.value.problems]


def test_the_version_is_that_of_the_newest_release(capsys):
    assert main(["--version"]) == DONE
    newest = re.search(r"^## (\S+) \(\d{4}-\d\d-\d\d\)$", (PROJECT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert newest and capsys.readouterr().out == f"Atelier {newest[1]}\n"


def test_what_each_task_takes_is_one_of_its_settings():
    taking = {name: task for name, task in tasks.tasks().items() if task.takes}
    assert {"train", "prepare", "tag", "resize", "inspect", "generate", "download", "merge_tags"} <= set(taking)
    assert all(task.argument in {entry.path for entry in declared(task.job)} for task in taking.values())


@pytest.mark.parametrize("task", ["train", "prepare", "caption", "tag", "blip", "edit_captions"])
def test_a_folder_is_the_dataset(task, tmp_path):
    job = job_of(task, f"{tmp_path}{os.sep}")
    assert Path(job.dataset.folder) == tmp_path


def test_tools_take_their_folder_file_or_name(tmp_path):
    assert job_of("resize", str(tmp_path)).resize.folder == str(tmp_path)
    assert job_of("merge_tags", str(tmp_path)).merge_tags.folders == [str(tmp_path)]
    assert job_of("inspect", "fox").inspect.file == "fox", "the name of a LoRA is none of a file here"
    assert job_of("download", "sdxl").download.hub_id == "sdxl"
    assert job_of("generate", "a fox, <lora:x:1>, 2,000 stars").generate.prompt == "a fox, <lora:x:1>, 2,000 stars"
    model = tmp_path / "fox.safetensors"
    model.write_bytes(b"weights")
    assert job_of("inspect", str(model)).inspect.file == str(model)
    metadata = tmp_path / "meta.json"
    metadata.write_text(json.dumps({"a.png": {"tags": "fox"}}))
    assert job_of("clean_metadata", str(metadata)).clean_metadata.in_json == str(metadata)


def test_a_preset_is_told_from_it_and_both_go_together_in_any_order(tmp_path):
    for words in (["starter_lora", str(tmp_path)], [str(tmp_path), "presets/starter_lora.json"]):
        job = job_of("train", *words)
        assert job.dataset.folder == str(tmp_path) and job.saving.output_name == "glyph_style"
    assert job_of("train", "starter_lora").dataset.folder == "models/starter/images"


def test_the_folder_replaces_those_of_the_preset(tmp_path):
    (tmp_path / "other").mkdir()
    raw = dump(TrainJob())
    raw["dataset"] |= {"sources": [{"folder": "theirs"}], "reg_data_dir": "class"}
    (tmp_path / "mine.json").write_text(json.dumps(raw))
    job = job_of("tag", str(tmp_path / "mine.json"), str(tmp_path / "other"))
    assert [source.folder for source in job.dataset.all_sources()] == [str(tmp_path / "other")]


def test_a_relative_path_counts_from_where_it_is_typed(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    assert job_of("tag", "photos/").dataset.folder == str(tmp_path / "photos")
    for words in (
        ["\u202aphotos"],
        ["--dataset.folder", f"file://{tmp_path}/photos"],
        ["--dataset.folder", '"photos"'],
    ):
        assert job_of("tag", *words).dataset.folder == str(tmp_path / "photos")
    assert job_of("tag", "models/starter/images").dataset.folder == "models/starter/images", "as a setting counts it"
    (tmp_path / "a b.png").touch()
    for words, more in (
        ("a fox --cn a b.png --d 1", " --d 1"),
        ("a fox --cn a b.png", ""),
        ("a fox --CN a b.png --w 64", " --w 64"),
    ):
        sign = "CN" if "CN" in words else "cn"
        meant = f"a fox --{sign} {tmp_path / 'a b.png'}{more}"
        assert job_of("train", "--samples.sample_prompts", words).samples.sample_prompts == [meant]
        assert job_of("generate", words).generate.prompt == meant
    assert job_of("generate", "a fox --cn other.png").generate.prompt == "a fox --cn other.png", "of the project"
    monkeypatch.chdir(PROJECT)
    assert job_of("tag", "models/starter/images").dataset.folder == "models/starter/images"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["tag", "photos/"], ["cli.no-such-argument"]),
        (["train", "starter_lroa"], ["cli.no-such-argument"]),
        (["train", "nowhere.json"], ["preset.unknown"]),
        (["resize", "models", "presets"], ["cli.unknown-word"]),
        (["resize", "models", "--resize.folder", "presets"], ["cli.given-twice"]),
        (["generate", "a fox", "--prompt", "a bear"], ["cli.given-twice"]),
        (["caption_history", "last"], ["preset.unknown"]),
    ],
)
def test_what_is_neither_or_too_much_is_said(words, found):
    assert codes(*words) == found


@pytest.mark.parametrize(
    "words",
    [
        ["--outputs", "out", "train"],
        ["--check", "generate", "a fox"],
        ["--dataset.folder", "photos", "prepare"],
        ["--no-browser", "resize", "photos"],
    ],
)
def test_options_before_the_command_are_told_that_it_comes_first(words, capsys):
    assert main(words) == BAD_INPUT
    said = capsys.readouterr().err
    assert said.startswith("1 problem:") and f"webui.py {next(word for word in words if word in commands())}" in said


@pytest.mark.parametrize(
    ("word", "name"), [("trian", "train"), ("Train", "train"), ("gen", "generate"), ("train.py", "train")]
)
def test_a_command_that_is_not_there_is_answered_with_the_nearest(word, name, capsys):
    assert main([word, "photos", "--check"]) == BAD_INPUT
    said = capsys.readouterr().err
    assert said.startswith("1 problem:") and f"did you mean {name}?" in said


@pytest.mark.parametrize(("word", "name"), [("--use_8bit_adam", "AdamW8bit"), ("--use_lion_optimizer", "Lion")])
def test_old_switches_of_sd_scripts_choose_the_optimizer(word, name):
    assert job_of("train", word).optimizer.optimizer_type == name
    assert job_of("train", f"{word}=true", "--optimizer.learning_rate", "1e-5").optimizer.optimizer_type == name
    assert codes("train", word, "--optimizer.optimizer_type", "AdamW") == ["cli.given-twice"]


def test_both_old_switches_at_once_are_refused():
    assert codes("train", "--use_8bit_adam", "--use_lion_optimizer") == ["cli.given-twice"]


@pytest.mark.parametrize("name", ["clip_vision_strength", "highres_fix_upscaler_args", "lowvram"])
def test_options_of_sd_scripts_and_a1111_that_are_not_there_say_why(name):
    with pytest.raises(ProblemsError) as error:
        job_of("generate", f"--{name}", "1")
    (problem,) = error.value.problems
    assert problem.fix == ELSEWHERE[name]


@pytest.mark.parametrize(("word", "command"), [("--probe", "train"), ("--lora=x", "generate"), ("--choose", "import")])
def test_an_option_of_another_command_names_the_command(word, command):
    with pytest.raises(ProblemsError) as error:
        job_of("prepare", word)
    (problem,) = error.value.problems
    assert problem.code == "settings.unknown-name" and f"webui.py {command}" in problem.fix


def test_a_misspelt_preset_is_told_its_name():
    with pytest.raises(ProblemsError) as error:
        job_of("train", "starter_lroa")
    assert "starter_lora" in error.value.problems[0].fix


def test_a_typed_folder_is_captioned_and_resized(tmp_path, capsys, monkeypatch):
    folder = noise_images(tmp_path / "photos", 2)
    monkeypatch.chdir(tmp_path)
    assert main(["caption", "photos/", "--outputs", str(tmp_path / "out")]) == DONE
    assert "2 images" in capsys.readouterr().out
    assert main(["resize", "photos", "--check", "--outputs", str(tmp_path / "out")]) == DONE
    assert str(folder) in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name, task in tasks.tasks().items() if name in commands()])
def test_help_begins_with_what_it_takes_and_its_own_settings(name, capsys):
    task, entry = tasks.named(name), argument_of(name)
    assert main([name, "--help"]) == DONE
    lines = capsys.readouterr().out.splitlines()
    assert entry is None or f"[{entry.name.upper()}]" in lines[0]
    first = next(line for line in lines if line.startswith("  --") and "." in line.split()[0])
    shared = name in ("train",) or first.split()[0].partition(".")[0][2:] not in TrainJob.model_fields
    assert shared, f"{first} is no setting of its own"
    assert main([name, "--help", "all"]) == DONE
    every = capsys.readouterr().out
    assert [entry.path for entry in declared(task.job) if f"--{entry.path} " not in every] == []


def test_a_file_where_objects_are_listed_is_answered_with_how_to_write_it(tmp_path):
    with pytest.raises(ProblemsError) as error:
        job_of("generate", "--generate.loras", "fox.safetensors", "--generate.prompt", "a fox")
    (problem,) = error.value.problems
    assert (
        problem.code == "flags.no-objects"
        and "--lora " in problem.fix
        and '[{"file": "fox.safetensors"}]' in problem.fix
    )
    job = job_of("generate", "--generate.loras", '[{"file": "fox.safetensors"}]', "--generate.prompt", "a fox")
    assert job.generate.loras[0].file == "fox.safetensors"


def test_a_second_value_after_a_list_is_answered_with_commas():
    with pytest.raises(ProblemsError) as error:
        job_of(
            "merge_lora_to_model",
            "base.safetensors",
            "--merge_lora_to_model.models",
            "fox.safetensors",
            "ink.safetensors",
        )
    (problem,) = error.value.problems
    assert problem.code == "cli.unknown-word" and "--merge_lora_to_model.models" in problem.fix
    job = job_of(
        "merge_lora_to_model", "base.safetensors", "--merge_lora_to_model.models", "fox.safetensors,ink.safetensors"
    )
    assert job.merge_lora_to_model.models == ["fox.safetensors", "ink.safetensors"]


def test_a_folder_of_models_is_no_second_value_of_what_a_tool_takes(tmp_path):
    for task in ("merge_models", "merge_loras"):
        job = job_of(task, "a.safetensors", "b.safetensors", "--models", str(tmp_path))
        assert getattr(job, task).models == ["a.safetensors", "b.safetensors"]


@pytest.mark.parametrize("words", [["a", "b"], ['["a","b"]'], ["a,b"], ["a, b"]])
def test_a_list_without_its_name_is_words_json_or_words_with_commas(words):
    assert job_of("merge_loras", *words).merge_loras.models == ["a", "b"]


def test_a_file_with_a_comma_in_its_name_is_one_item(tmp_path, monkeypatch):
    (tmp_path / "a,b.safetensors").write_bytes(b"weights")
    monkeypatch.chdir(tmp_path)
    assert job_of("merge_loras", "a,b.safetensors").merge_loras.models == [str(tmp_path / "a,b.safetensors")]


def test_relative_paths_of_settings_count_from_where_they_are_typed(tmp_path, monkeypatch):
    for name in ("fox.safetensors", "vae.safetensors"):
        (tmp_path / name).write_bytes(b"weights")
    words = ["fox.safetensors", "--convert_model.vae", "vae.safetensors", "--convert_model.output", "new.safetensors"]
    monkeypatch.chdir(tmp_path)
    asked = job_of("convert_model", *words).convert_model
    assert [asked.file, asked.vae, asked.output] == [
        str(tmp_path / name) for name in ("fox.safetensors", "vae.safetensors", "new.safetensors")
    ]
    merged = job_of("merge_loras", "--merge_loras.models", "fox.safetensors,bear").merge_loras.models
    assert merged == [str(tmp_path / "fox.safetensors"), "bear"], "the name of a LoRA stays one"
    there = job_of("tag", "--dataset.folder", "models/starter/images").dataset.folder
    assert there == "models/starter/images", "what is in the project folder alone is found there"
    monkeypatch.chdir(PROJECT)
    assert job_of("convert_model", *words).convert_model.output == "new.safetensors"


def test_relative_paths_in_lists_and_behind_a_word_count_from_where_they_are_typed(tmp_path, monkeypatch):
    for name in ("fox.safetensors", "zfx.safetensors", "state-000100"):
        (tmp_path / name).write_bytes(b"weights")
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path)
    loras = '--generate.loras=[{"file": "fox.safetensors", "strength": 0.8}, {"file": "bear"}]'
    embeddings = '--generate.embeddings=["zfx.safetensors", "word=zfx.safetensors"]'
    generate = job_of("generate", "a fox", loras, embeddings).generate
    fox, zfx = (str(tmp_path / f"{name}.safetensors") for name in ("fox", "zfx"))
    assert [each.file for each in generate.loras] == [fox, "bear"], "the name of a LoRA stays one"
    assert generate.embeddings == [zfx, f"word={zfx}"]
    train = job_of("train", '--dataset.sources=[{"folder": "images"}]', "--resume.resume", "state-000100")
    assert train.dataset.sources[0].folder == str(tmp_path / "images")
    assert train.resume.resume == str(tmp_path / "state-000100")


@pytest.mark.skipif(os.name == "nt", reason="Windows deletes no folder that is in use")
def test_a_working_directory_that_was_deleted_is_none(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert (
        job_of("convert_model", "fox", "--convert_model.output", "new.safetensors").convert_model.output
        == "new.safetensors"
    )


def test_settings_of_a_generation_that_are_ignored_are_told():
    def told_of(settings):
        job = job_of("generate", *(f"--{name}={value}" for name, value in settings.items()))
        return no_effect(job, idle_settings(job))

    ignored = {"image_to_image.strength": "0.3", "hires.hires_steps": "3", "generate.variation_seed": "4"}
    ignored |= {"refiner.refiner_switch_at": "0.5", "image_to_image.mask_blur": "5"}
    assert {each.where for each in told_of(ignored)} == set(ignored)
    used = {"image_to_image.strength": "0.3", "hires.highres_fix_scale": "2", "hires.hires_steps": "3"}
    assert not told_of(used)
