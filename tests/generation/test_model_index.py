"""The index of model files: what is kept, when a file is read anew, and that nothing damaged breaks a list."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from core.formats import detect
from core.generation import model_index
from core.generation.library import list_loras, list_models, list_vaes
from core.record.workspace import Workspace

UP, DOWN = (
    "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight",
    "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight",
)


@pytest.fixture
def space(tmp_path):
    space = Workspace(tmp_path / "outputs", tmp_path / "models")
    for folder in (space.outputs, space.models / "loras"):
        folder.mkdir(parents=True)
    return space


@pytest.fixture
def read(monkeypatch):
    """The files whose headers were read."""
    files, own = [], detect.identify

    def noted(path):
        files.append(path.name)
        return own(path)

    monkeypatch.setattr(detect, "identify", noted)
    return files


def lora(path):
    save_file({UP: torch.zeros(8, 4), DOWN: torch.zeros(4, 8)}, path)


def restart():
    for kept in (model_index._known, model_index._loaded, model_index._unsaved):
        kept.clear()


def test_a_header_is_read_once_also_after_a_restart_and_again_when_the_file_has_changed(space, read):
    path = space.models / "loras" / "a.safetensors"
    lora(path)
    assert [label for label, _ in list_loras(space)] == ["loras/a"] and read == ["a.safetensors"]
    restart()
    assert list_loras(space) and list_models(space) == list_vaes(space) == [] and read == ["a.safetensors"]
    os.utime(path, ns=(1, 1))
    assert list_loras(space) and read == ["a.safetensors"] * 2
    path.unlink()
    assert list_loras(space) == [] and model_index.facts_of_file(path).problem


def test_a_damaged_file_is_listed_with_its_fault_and_read_anew_after_a_restart(space, read):
    path = space.models / "loras" / "torn.safetensors"
    path.write_bytes(b"no")
    lora(space.models / "loras" / "whole.safetensors")
    labels = [label for label, _ in list_loras(space)]
    assert labels[0] == "loras/whole" and labels[1].startswith("loras/torn (unreadable: ")
    restart()
    assert len(list_loras(space)) == 2 and read.count("torn.safetensors") == 2 and read.count("whole.safetensors") == 1


@pytest.mark.parametrize(
    "kept", ["[", "[]", '{"files": 3}', '{"files": {"a": 1, "b": {"state": [1, 2], "facts": {"kind": []}}}}']
)
def test_a_damaged_index_is_found_anew(space, read, kept):
    lora(space.models / "loras" / "a.safetensors")
    list_loras(space)
    file = space.private / model_index.FILE
    whole = json.loads(file.read_text())
    file.write_text(kept.replace('{"files"', f'{{"detection": {json.dumps(whole["detection"])}, "files"'))
    restart()
    assert len(list_loras(space)) == 1 and len(read) == 2 and json.loads(file.read_text()) == whole


def test_what_an_older_program_found_is_found_anew(space, read):
    lora(space.models / "loras" / "a.safetensors")
    list_loras(space)
    file = space.private / model_index.FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | {"detection": [0, 0, []]}))
    restart()
    assert list_loras(space) and len(read) == 2
