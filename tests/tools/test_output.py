"""Where a tool writes: never over an input or an existing file, and not where there is no room."""

import os

import pytest

from core.tools.output import MOST_NAMES, output_file, output_problems


def codes(*asked):
    return [problem.code for problem in output_problems(*asked)]


def test_the_output_is_named_after_the_first_input_unless_given(tmp_path):
    fox = tmp_path / "fox.v2.safetensors"
    assert output_file(None, fox, "_r8") == tmp_path / "fox.v2_r8.safetensors"
    assert output_file(str(tmp_path / "out.safetensors"), fox, "_r8") == tmp_path / "out.safetensors"
    assert output_file(str(tmp_path / "new.folder"), fox, "_r8") == tmp_path / "new.folder" / "fox.v2_r8.safetensors"
    assert output_file(None, fox, "_diffusers", ()) == tmp_path / "fox.v2_diffusers"
    assert output_file(str(tmp_path / "new.folder"), fox, "_diffusers", ()) == tmp_path / "new.folder"


@pytest.mark.parametrize("there", [1, 2, MOST_NAMES - 1, MOST_NAMES])
def test_a_name_that_exists_gets_the_first_free_number(tmp_path, there):
    fox = tmp_path / "fox.safetensors"
    names = ["fox_r8.safetensors", *(f"fox_r8_{number}.safetensors" for number in range(2, MOST_NAMES))]
    for name in names[:there]:
        (tmp_path / name).touch()
    free = names[there] if there < len(names) else names[0]  # the first, which is then refused
    assert output_file(None, fox, "_r8").name == output_file(str(tmp_path), fox, "_r8").name == free
    assert output_file(str(tmp_path / names[0]), fox, "_r8").name == names[0], "a name that was given is kept"
    assert output_file(None, fox, "").name == "fox.safetensors"


def test_an_input_under_any_name_is_never_the_output(tmp_path):
    fox, link, hard = tmp_path / "fox.bin", tmp_path / "link.bin", tmp_path / "hard.bin"
    fox.write_bytes(b"fox")
    link.symlink_to(fox)
    os.link(fox, hard)
    for target in (fox, link, hard, tmp_path / "." / "fox.bin"):
        assert codes(target, [fox], 1, "x.output") == ["tools.output-is-input"]


def test_an_existing_file_and_a_full_disk_are_said(tmp_path, monkeypatch):
    fox, other = tmp_path / "fox.bin", tmp_path / "other.bin"
    other.write_bytes(b"kept")
    assert codes(other, [fox], 1, "x.output") == ["tools.output-exists"]
    monkeypatch.setattr("core.tools.output.free_disk", lambda folder: 999)
    assert codes(tmp_path / "new" / "out.bin", [fox], 999, "x.output") == []
    assert codes(tmp_path / "out.bin", [fox], 1000, "x.output") == ["tools.no-room"]


def test_nothing_is_written_into_a_folder_that_is_an_input(tmp_path):
    model = tmp_path / "model"
    (model / "unet").mkdir(parents=True)
    part = model / "unet" / "weights.safetensors"
    part.write_bytes(b"weights")
    for target in (model / "model_merged.safetensors", model / "unet" / "new.safetensors"):
        assert codes(target, [model], 1, "x.output") == ["tools.output-in-input"]
    assert codes(part.with_name("weights_edited.safetensors"), [part], 1, "x.output") == []
    assert codes(tmp_path / "model_merged.safetensors", [model], 1, "x.output") == []


@pytest.mark.skipif(os.name == "nt", reason="such paths are usual there")
@pytest.mark.parametrize(
    "text",
    [r"C:\models\fox.safetensors", "C:/models/fox.safetensors", r"models\fox.safetensors", "smb://nas/fox.safetensors"],
)
def test_a_windows_path_is_refused_where_it_would_be_a_file_name(tmp_path, text):
    assert codes(output_file(text, tmp_path / "fox.bin", "_r8"), [], 1, "x.output") == ["tools.windows-path"]
