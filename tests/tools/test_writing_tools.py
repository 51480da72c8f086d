"""Every tool that writes a model file: cancelled in the middle, on a full disk and onto its own input it leaves all as it was."""

from __future__ import annotations

import errno
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from core import tasks
from core.families import family
from core.families.loading import load
from core.formats.tensors.header import read_header
from core.record import atomic
from core.record.cancel import Cancelled, CancelToken
from core.record.problems import ProblemsError
from core.record.workspace import Workspace
from core.settings.check import build
from tabs.form.task_settings import form_settings
from tests.models import tiny_folder, tiny_lora
from tests.selection import slow_unless
from tests.tasks import surroundings
from tests.tools.models.test_convert_model import convert

VECTORS = Path(__file__).parent.parent / "vectors"
FIRST, SECOND = str(VECTORS / "mr_a.safetensors"), str(VECTORS / "mr_b.safetensors")
TOOLS = {  # what each is given; {model}, {tuned} and {lora} are files of a tiny model
    "resize_lora": {"file": FIRST, "new_rank": 2},
    "merge_loras": {"models": [FIRST, SECOND], "method": "svd"},
    "extract_lora": {"model_org": "{model}", "model_tuned": "{tuned}", "conv_dim": 4},
    "split_dylora": {"model": FIRST, "unit": 2},
    "convert_lora": {"file": FIRST, "names": "diffusers"},
    "merge_lora_to_model": {"file": "{model}", "models": ["{lora}"]},
    "merge_models": {"models": ["{model}", "{tuned}"]},
    "convert_model": {"file": "{model}", "save_precision": "fp16"},
    "bake_vae": {"file": "{model}", "vae": "{tuned}"},
    "extract_vae": {"file": "{model}"},
    "strip_metadata": {"file": FIRST},
    "edit_metadata": {"file": FIRST, "metadata_title": "x"},
}


class After(CancelToken):
    """Cancels at the check after so many."""

    def __init__(self, checks: int):
        super().__init__()
        self.left = checks

    def check(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Cancelled


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("writing")
    model = convert(tiny_folder("sd1", folder / "sd1"), folder / "model.safetensors")
    draws, tensors = torch.Generator().manual_seed(0), load_file(model)
    changed = {
        name: value + 0.05 * torch.randn(value.shape, generator=draws) if value.is_floating_point() else value
        for name, value in tensors.items()
    }
    save_file(changed, folder / "tuned.safetensors", read_header(model)[1])
    parts = load(family("sd1").layout, folder / "sd1", parts=("text_encoders", "denoiser"))
    tiny_lora(parts, folder / "lora.safetensors")
    return folder


def job_of(name, place, output):
    def filled(value):
        if isinstance(value, list):
            return [filled(each) for each in value]
        return str(place / f"{value[1:-1]}.safetensors") if str(value).startswith("{") else value

    given = {key: filled(value) for key, value in TOOLS[name].items()}
    inputs = [path for value in given.values() for path in (value if isinstance(value, list) else [value])]
    first = next(path for path in inputs if str(path).endswith(".safetensors"))
    return build(tasks.named(name).job, {name: given | {"output": str(output or first)}}), Path(first)


def codes(name, job, place):
    with pytest.raises(ProblemsError) as refused:
        tasks.named(name).check_job(job, Workspace(place / "outputs", place / "models"))
    return refused.value.codes


def test_every_tool_that_writes_a_model_file_stands_here():
    listed = {name: task for name, task in tasks.tasks().items() if task.card and task.card.name in ("loras", "models")}
    assert {name for name, task in listed.items() if "output" in form_settings(task)} == {*TOOLS, "card"}  # a page


@pytest.mark.parametrize("name", slow_unless({"resize_lora", "convert_model"}.__contains__, TOOLS))
def test_a_tool_that_is_cancelled_in_the_middle_leaves_nothing(name, place, tmp_path):
    job, first = job_of(name, place, tmp_path / "whole" / "out.safetensors")
    before, space = first.read_bytes(), Workspace(place / "outputs", place / "models")
    counted = After(10**9)
    tasks.named(name).start(job, surroundings(space, counted))
    checks = 10**9 - counted.left
    assert checks, "a tool that never looks cannot be cancelled"
    job, _ = job_of(name, place, tmp_path / "cut" / "out.safetensors")
    for after in sorted({0, checks // 2}):
        with pytest.raises(Cancelled):
            tasks.named(name).start(job, surroundings(space, After(after)))
        left = [path for path in (tmp_path / "cut").rglob("*") if path.is_file()]
        assert left == [] and first.read_bytes() == before, after


def everything(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def split(folder, name="fox.safetensors", **asked):
    """What cutting the DyLoRA of this name in a folder is given; its rank is 8."""
    given = {"model": str(folder / name), "unit": 2, **asked}
    return build(tasks.named("split_dylora").job, {"split_dylora": given})


def test_a_dylora_is_cut_next_to_itself_and_neither_it_nor_any_other_file_is_written_over(place, tmp_path):
    """The files are named after it, -0002 and so on, so that the whole's folder is a usual output."""
    task, space = tasks.named("split_dylora"), Workspace(place / "outputs", place / "models")
    shutil.copy(FIRST, tmp_path / "fox.safetensors")
    whole = {"fox.safetensors": Path(FIRST).read_bytes()}
    for after in range(4):  # it looks before each of its three files
        if after < 3:
            with pytest.raises(Cancelled):
                task.start(split(tmp_path), surroundings(space, After(after)))
            assert everything(tmp_path) == whole, after
    task.start(split(tmp_path, output=str(tmp_path)), surroundings(space, CancelToken()))
    made = everything(tmp_path)
    assert made.keys() == whole.keys() | {f"fox-000{rank}.safetensors" for rank in (2, 4, 6)}
    assert made["fox.safetensors"] == whole["fox.safetensors"]
    again = [None, str(tmp_path), str(tmp_path / "fox.safetensors")]
    for output in again:
        assert codes("split_dylora", split(tmp_path, output=output), place) == ["tools.output-exists"] * 3
    (tmp_path / "fox-0002.safetensors").unlink()
    with pytest.raises(ProblemsError):  # some of them exist: none is written
        task.start(split(tmp_path), surroundings(space, CancelToken()))
    assert everything(tmp_path) == {name: data for name, data in made.items() if name != "fox-0002.safetensors"}


def test_a_dylora_that_is_named_like_one_of_its_parts_is_not_written_over(place, tmp_path, monkeypatch):
    name = "fox-0004.safetensors"
    shutil.copy(FIRST, tmp_path / name)
    (tmp_path / "link").symlink_to(tmp_path)
    for folder in (tmp_path, tmp_path / "link"):
        job = split(tmp_path, name, output=str(folder / "fox.safetensors"))
        assert codes("split_dylora", job, place) == ["tools.output-is-input"]
    job = split(tmp_path, name, output=str(tmp_path / "new"))
    monkeypatch.setattr("core.tools.output.free_disk", lambda folder: 1000)
    assert codes("split_dylora", job, place) == ["tools.no-room"]


def test_a_write_that_fails_leaves_no_part_of_a_dylora(place, tmp_path, monkeypatch):
    from core.networks import adapter_file

    shutil.copy(FIRST, tmp_path / "fox.safetensors")
    written, save = [], adapter_file.write_safetensors

    def full(path, *given, **named):
        written.append(path)
        if len(written) == 3:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(path, *given, **named)

    monkeypatch.setattr(adapter_file, "write_safetensors", full)
    with pytest.raises((OSError, ProblemsError)):
        tasks.named("split_dylora").start(split(tmp_path), surroundings(Workspace(place / "outputs", place / "models")))
    assert len(written) == 3 and [path.name for path in tmp_path.iterdir()] == ["fox.safetensors"]


@pytest.mark.parametrize("name", [name for name in TOOLS if name != "split_dylora"])  # as above
def test_a_full_disk_and_the_own_input_as_the_output_are_refused_before_the_start(name, place, tmp_path, monkeypatch):
    own, _ = job_of(name, place, None)
    assert codes(name, own, place) == ["tools.output-is-input"]
    job, _ = job_of(name, place, tmp_path / "out.safetensors")
    monkeypatch.setattr("core.tools.output.free_disk", lambda folder: 1000)
    assert codes(name, job, place) == ["tools.no-room"]


@pytest.mark.parametrize("name", ["convert_model"])
def test_what_a_killed_tool_left_half_written_is_removed_by_the_next(name, place, tmp_path):
    left, fresh = tmp_path / ".tmp-abcdefgh.safetensors", tmp_path / ".tmp-ijklmnop.safetensors"
    for path in (left, fresh):
        path.write_bytes(b"half")
    long_ago = time.time() - 2 * atomic.LEFTOVER_SECONDS
    os.utime(left, (long_ago, long_ago))
    job, _ = job_of(name, place, tmp_path / "out.safetensors")
    tasks.named(name).start(job, surroundings(Workspace(place / "outputs", place / "models")))
    assert sorted(path.name for path in tmp_path.iterdir()) == [fresh.name, "out.safetensors"]


@pytest.mark.parametrize("odd", ["/dev/null/x.safetensors", "{file}/x.safetensors", "n" * 256, "a\0b.safetensors"])
@pytest.mark.parametrize("name", TOOLS)
def test_an_output_that_no_disk_can_hold_is_refused_before_the_work(name, odd, place, tmp_path):
    output = odd.replace("{file}", FIRST)
    job, _ = job_of(name, place, output if output.startswith("/") else tmp_path / output)
    refusals = {"file.not-a-folder", "file.path-too-long", "file.invalid-name", "convert.output-format"}
    assert set(codes(name, job, place)) <= refusals
