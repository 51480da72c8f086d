"""Files of an imported job that this machine does not have: which they are, and where they are searched for."""

import os

import pytest

from core.imports.projects import importers
from core.imports.projects.importers import adapted_to_machine, import_project
from core.imports.projects.missing import SOURCES, missing_files, missing_paths, nearby, nearby_folders
from core.record.workspace import Workspace
from core.settings.check import build
from core.settings.job import TrainJob
from core.training.checks.named_files import named_file_problems

COMMAND = (
    "python train_network.py --network_module=networks.lora --train_data_dir={} --pretrained_model_name_or_path={}"
)


def test_paths_of_every_system_are_missing_and_names_of_hugging_face_are_not(tmp_path):
    def missing(folder, model):
        return dict(missing_paths(import_project(COMMAND.format(f"'{folder}'", f"'{model}'")).job))

    assert missing(tmp_path, "runwayml/stable-diffusion-v1-5") == {}
    models = ["C:\\a\\b.ckpt", "D:/a/b", "/gone/b", "./b", "~/b", "models/gone.safetensors", "\\\\nas\\b"]
    for number, model in enumerate(models):
        folder = ["img", "E:/img", "/gone/img"][number % 3]
        assert missing(folder, model) == {"model.base_model": model, "dataset.folder": folder}
    folders = [{"folder": "F:\\a"}, {"folder": str(tmp_path)}, {"folder": "F:\\off", "enabled": False}]
    job = build(TrainJob, {"dataset": {"sources": folders}})
    assert list(missing_paths(job)) == [(SOURCES, "F:\\a")]


@pytest.mark.skipif(os.name == "nt", reason="the path is one of this machine")
def test_a_windows_folder_to_write_to_is_missing_and_refused_on_other_systems():
    settings = ("logging.logging_dir", "logging.console_log_file", "saving.copy_to")
    job = build(
        TrainJob,
        {
            "logging": {"logging_dir": "D:\\train\\log", "console_log_file": "\\\\nas\\log.txt"},
            "saving": {"copy_to": "smb://nas/loras"},
        },
    )
    assert [setting for setting, _ in missing_paths(job) if setting != "dataset.folder"] == list(settings)
    refused_at = {each.where for each in named_file_problems(job, Workspace()) if each.code == "folder.windows-path"}
    assert refused_at == set(settings)
    here = build(TrainJob, {"logging": {"logging_dir": "log"}, "saving": {"copy_to": "//nas/loras"}})
    assert [setting for setting, _ in missing_paths(here) if setting != "dataset.folder"] == []


def test_xformers_becomes_auto_only_where_it_is_not_installed(monkeypatch):
    found = import_project(COMMAND.format("/a", "b") + " --xformers")
    monkeypatch.setattr(importers, "find_spec", lambda name: name)
    assert adapted_to_machine(found) is found and found.job.memory.attention == "xformers"
    monkeypatch.setattr(importers, "find_spec", lambda name: None)
    changed = adapted_to_machine(found)
    assert changed.job.memory.attention == "auto"
    assert [each.key for each in changed.entries("changed")] == ["xformers"]


def test_the_same_name_is_searched_for_with_the_same_parents_first(tmp_path):
    for folder in ("one/img", "fox/img", ".hidden/img", "a/b/c/d/img"):
        (tmp_path / folder).mkdir(parents=True)
    fox, owl, none = ((SOURCES, text) for text in ("C:\\train\\FOX\\img", "/gone/owl", ""))
    found = nearby([fox, owl, none], [tmp_path, tmp_path / "gone"])
    assert found == {fox: [tmp_path / "fox/img", tmp_path / "one/img"], owl: [], none: []}


def test_a_folder_is_offered_for_a_folder_and_the_case_of_the_name_counts_next(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/LOG").touch()
    (tmp_path / "b/LOG").mkdir(parents=True)
    (tmp_path / "c/log").mkdir(parents=True)
    folder, file = ("logging.logging_dir", "C:/x/log"), ("logging.console_log_file", "C:/x/log")
    found = nearby([folder, file], [tmp_path])
    assert found == {folder: [tmp_path / "c/log", tmp_path / "b/LOG"], file: [tmp_path / "a/LOG"]}


@pytest.mark.skipif(os.name == "nt", reason="the path is one of this machine")
def test_what_is_missing_is_searched_for_around_the_folders_of_the_job_that_are_here(tmp_path):
    project = tmp_path / "project"
    for folder in ("project/img/10_fox", "project/log", "elsewhere/log"):
        (tmp_path / folder).mkdir(parents=True)
    job = build(TrainJob, {"dataset": {"folder": str(project / "img")}, "logging": {"logging_dir": "C:/x/log"}})
    assert nearby_folders(job)[0] == project
    (problem,) = missing_files(job, [tmp_path / "elsewhere"])
    assert str(project / "log") in problem.fix


def test_a_file_that_a_text_names_is_read_next_to_it_and_from_the_folder_of_its_program(tmp_path):
    (tmp_path / "presets").mkdir()
    (tmp_path / "concepts").mkdir()
    (tmp_path / "concepts/c.json").write_text('[{"path": "/a"}, {"path": "/b"}]')
    preset = tmp_path / "presets/p.json"
    preset.write_text('{"training_method": "LORA", "concept_file_name": "concepts/c.json", "__version": 10}')
    assert [each.folder for each in import_project(preset).job.dataset.sources] == ["/a", "/b"]
    (tmp_path / "presets/options.toml").write_text("network_dim = 12")
    script = tmp_path / "presets/run.bat"
    script.write_text('python train_network.py --network_module networks.lora --config_file "C:\\a\\options.toml"')
    assert import_project(script).job.network.rank == 12
    assert import_project(script, reads=False).job.network.rank == 4
