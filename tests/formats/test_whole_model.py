"""Whole models written and read back: by this program, by diffusers and transformers, bit for bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from core.families.token_count import VOCABULARY
from core.formats.models.checkpoint import open_checkpoint, read_part
from core.formats.models.whole_model import ModelFacts, form_of
from tests.refusals import refused
from tests.whole_models import FAMILIES, left_in

# ---- round trips ----


@pytest.mark.slow(but=("safetensors-sd1", "ckpt-sd1"))
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("form", ["safetensors", "ckpt", "diffusers", "diffusers_safetensors"])
def test_what_is_written_is_read_back_bit_for_bit(models, written, name, form):
    target = written(name, form)
    models[name].assert_equal(target)
    assert form_of(target) == form
    assert left_in(target.parent) == [target.name]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_parts_that_did_not_train_are_copied_from_the_source_into_the_other_form(tmp_path, models, name, kind):
    model = models[name]
    source = getattr(model, kind)
    trained = {"unet": model.trained["unet"]}
    before = model.load(source)
    expected = {"unet": model.trained["unet"], "vae": before.vae.state_dict()}
    expected |= {
        part: encoder.state_dict()
        for part, encoder in zip(model.layout.text_encoders, before.text_encoders, strict=True)
    }
    form, target = (
        ("diffusers_safetensors", tmp_path / "m") if kind == "file" else ("safetensors", tmp_path / "m.safetensors")
    )
    model.write(target, trained, form, source=source)
    model.assert_equal(target, expected)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dtype"), [("sd1", torch.bfloat16), ("sd2", torch.float16), ("sdxl", torch.float16)])
def test_the_saved_type_holds_for_every_weight(tmp_path, models, name, dtype):
    model = models[name]
    model.write(tmp_path / "m.safetensors", dtype=dtype)
    assert {value.dtype for value in load_file(tmp_path / "m.safetensors").values()} == {dtype}
    model.assert_equal(tmp_path / "m.safetensors", dtype=dtype)
    model.write(tmp_path / "m", form="diffusers_safetensors", dtype=dtype)
    for file in (tmp_path / "m").rglob("*.safetensors"):
        assert {value.dtype for value in load_file(file).values()} == {dtype}
    config = json.loads((tmp_path / "m" / "text_encoder" / "config.json").read_text())
    assert config["dtype"] == str(dtype).removeprefix("torch.")


def test_without_a_saved_type_each_part_keeps_its_own(tmp_path, sd1):
    half = {"unet": {key: value.bfloat16() for key, value in sd1.trained["unet"].items()}}
    sd1.write(tmp_path / "m.safetensors", half)
    types: dict[str, set[torch.dtype]] = {}
    for key, value in load_file(tmp_path / "m.safetensors").items():
        types.setdefault(key.partition(".")[0], set()).add(value.dtype)
    assert types == {
        "model": {torch.bfloat16},
        "first_stage_model": {torch.float32},
        "cond_stage_model": {torch.float32},
    }


def test_metadata_stands_in_files_and_folders(tmp_path, sd1):
    facts = ModelFacts(metadata={"modelspec.title": "Füchse", "modelspec.architecture": "stable-diffusion-v1"})
    sd1.write(tmp_path / "m.safetensors", facts=facts)
    sd1.write(tmp_path / "m", form="diffusers_safetensors", facts=facts)
    for file in (tmp_path / "m.safetensors", tmp_path / "m" / "unet" / "diffusion_pytorch_model.safetensors"):
        with safe_open(file, "pt") as opened:
            assert opened.metadata() == {"format": "pt", **facts.metadata}


# ---- accidents ----


@pytest.mark.slow(but=("safetensors",))
@pytest.mark.parametrize("form", ["safetensors", "ckpt", "diffusers_safetensors"])
def test_weights_too_large_for_fp16_are_named_and_the_file_is_fp32(tmp_path, sd1, form):
    unet = {key: value.clone() for key, value in sd1.trained["unet"].items()}
    unet["conv_in.weight"][0, 0, 0, 0] = 70_000.0
    target = tmp_path / ("m" if form.startswith("d") else f"m.{form}")
    (advice,) = sd1.write(target, {**sd1.trained, "unet": unet}, form, dtype=torch.float16)
    assert (advice.level, advice.code) == ("advice", "weights.overflow")
    assert "fp16" in advice.what and "unet.conv_in.weight" in advice.what
    part = open_checkpoint(target).parts["unet"]
    assert {location.entry.dtype for location in part.locations.values()} == {"F32"}
    assert read_part(part)["conv_in.weight"][0, 0, 0, 0] == 70_000.0
    assert sd1.write(tmp_path / "b.safetensors", {**sd1.trained, "unet": unet}, dtype=torch.bfloat16) == []


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused_before_anything_is_written(tmp_path, sd1, bad):
    unet = {key: value.clone() for key, value in sd1.trained["unet"].items()}
    unet["conv_out.bias"][1] = bad
    with refused("weights.not-finite", "unet.conv_out.bias"):
        sd1.write(tmp_path / "m.safetensors", {"unet": unet})
    assert left_in(tmp_path) == []


@pytest.mark.slow(but=("ckpt-False",))
@pytest.mark.parametrize(
    ("form", "there"),
    [("safetensors", True), ("ckpt", True), ("ckpt", False), ("diffusers_safetensors", True), ("diffusers", False)],
)
def test_a_disk_that_fills_up_leaves_what_was_there(tmp_path, monkeypatch, sd1, form, there):
    target = tmp_path / ("m" if form.startswith("d") else f"m.{form}")
    if there:
        sd1.write(target, {}, form)
    before = left_in(tmp_path)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            sd1.write(target, form=form)
    assert left_in(tmp_path) == before
    if there:
        sd1.assert_equal(target, {part: read_part(found) for part, found in open_checkpoint(sd1.folder).parts.items()})


def test_a_disk_that_is_too_full_is_told_before_anything_is_written(tmp_path, monkeypatch, sd1):
    monkeypatch.setattr("core.record.machine.free_disk", lambda folder: 70_000_000)
    with refused("disk.space"):
        sd1.write(tmp_path / "m.safetensors")
    assert left_in(tmp_path) == []


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is not of Windows")
@pytest.mark.parametrize("form", ["safetensors", "diffusers_safetensors"])
def test_a_process_killed_while_it_writes_leaves_the_old_model_whole(tmp_path, sd1, form):
    target = tmp_path / ("m" if form.startswith("d") else "m.safetensors")
    sd1.write(target, {}, form)
    code = f"""
import time
from core.formats.tensors.chunks import ChunkedFile
from core.formats.models import whole_model
from core.formats.models.diffusers_folder import Published
from pathlib import Path
count = [0]
plain = ChunkedFile.put
def slow(*arguments):
    count[0] += 1
    if count[0] == 300:
        print("half", flush=True)
        time.sleep(600)
    return plain(*arguments)
ChunkedFile.put = slow
whole_model.write_model({str(target)!r}, {{}}, family="sd1", form={form!r}, source={str(sd1.file)!r},
    published=Published(Path({str(sd1.published.configs)!r}), Path({str(VOCABULARY)!r})))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2])
    assert process.stdout is not None and process.stdout.readline() == b"half\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert any(name.startswith(".tmp-") for name in left_in(tmp_path)), "it was in the middle"
    sd1.assert_equal(target, {part: read_part(found) for part, found in open_checkpoint(sd1.folder).parts.items()})


def test_it_is_never_written_over_the_model_it_comes_from_nor_over_a_folder_of_other_things(tmp_path, sd1):
    file = Path(shutil.copy(sd1.file, tmp_path / "base.safetensors"))
    with refused("saving.over-base-model"):
        sd1.write(file, source=file)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with refused("saving.foreign-folder"):
        sd1.write(tmp_path / "photos", form="diffusers_safetensors")
    with refused("saving.name-taken", "folder"):
        sd1.write(tmp_path / "photos")
    assert left_in(tmp_path / "photos") == ["a.jpg"]


def test_a_model_without_a_part_is_refused_with_its_name(tmp_path, sd1):
    parts = {name: state for name, state in sd1.trained.items() if name != "vae"}
    with refused("saving.missing-parts", "VAE"):
        sd1.write(tmp_path / "m.safetensors", parts, source=None)
