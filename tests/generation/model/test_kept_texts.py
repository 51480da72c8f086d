"""Text states between jobs: what was read once is not read again, and nothing that differs is taken for the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from core.diffusion.text_states import TextStates
from core.families import family
from core.generation.class_images import make_class_images
from core.generation.model.store import ModelStore, TextStateCache
from core.generation.run import run_generate
from core.networks.adapter_file import save_lora
from core.record.workspace import PROJECT, Workspace
from core.settings.check import build
from core.settings.generation.generate import LoraUse
from core.settings.job import ClassImagesJob, GenerateJob

STARTER = PROJECT / "models" / "starter"


@pytest.fixture
def workspace(tmp_path):
    return Workspace(outputs=tmp_path / "outputs", models=PROJECT / "models")


@pytest.fixture
def read(monkeypatch):
    """The texts that are encoded from now on; a part that is loaded is noted as a tuple of its name."""
    kind, noted = family("sd1"), []
    load, encode = kind.load, kind.encode_captions
    monkeypatch.setattr(kind, "load", lambda path, **how: noted.append(how["parts"]) or load(path, **how))
    monkeypatch.setattr(
        kind, "encode_captions", lambda given, texts, **how: noted.extend(texts) or encode(given, texts, **how)
    )
    return noted


def job_of(memory=(), model=(), **asked):
    asked = {"prompt": "a fox", "negative_prompt": "red", "seed": 1, "steps": 1, "width": 64, "height": 64} | asked
    model = {"base_model": str(STARTER)} | dict(model)
    return build(GenerateJob, {"generate": asked, "model": model, "memory": dict(memory)})


def image(path):
    with Image.open(path) as opened:
        return np.asarray(opened).copy()


def lora(path):
    """On the text encoder and the U-Net."""
    components = family("sd1").load(STARTER, parts=("denoiser", "text_encoders"))
    tensors = {}
    for part, end in ((components.text_encoders[0], "q_proj"), (components.denoiser, "proj_out")):
        for target in family("sd1").lora_targets(part):
            if target.name.endswith(end):
                shape = target.module.weight.shape
                tensors[f"{target.name}.lora_down.weight"] = torch.randn(2, *shape[1:]) / shape[1] ** 0.5
                tensors[f"{target.name}.lora_up.weight"] = torch.randn(shape[0], 2, *shape[2:])
    return str(save_lora(path, tensors, {"ss_base_model_version": "sd_v1"}))


def test_a_second_job_with_the_same_texts_neither_runs_nor_loads_the_encoders(workspace, read):
    store, files = ModelStore(), []
    files += run_generate(job_of(), workspace, store=store)
    assert store.release()
    files += run_generate(job_of(), workspace, store=store)
    parts = [("denoiser", "tokenizers"), ("vae",)]
    assert read == [*parts, ("text_encoders",), "a fox", "red", *parts]
    np.testing.assert_array_equal(*map(image, files))
    run_generate(job_of(prompt="a cup"), workspace, store=store)
    assert read[-2:] == [("text_encoders",), "a cup"], "of a new prompt only what is new is read"


@pytest.mark.slow
def test_regularization_images_find_what_generate_has_read(workspace, read, tmp_path):
    (tmp_path / "set").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "set" / "one.png")
    store, asked = ModelStore(), {"class_word": "fox", "prompt": "a {class}", "number": 1, "steps": 1}
    sizes = {"resolution": 64, "bucket_reso_steps": 32}
    values = {
        "model": {"base_model": str(STARTER)},
        "dataset": {"folder": str(tmp_path / "set"), **sizes},
        "captions": {"weighted_captions": True},
        "class_images": {**asked, "folder": str(tmp_path / "regularization")},
    }
    run_generate(job_of(prompt="a fox", negative_prompt=""), workspace, store=store)
    read.clear()
    assert len(make_class_images(build(ClassImagesJob, values), workspace, store=store)) == 1
    assert read == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"model": {"clip_skip": 2}},
        {"memory": {"mixed_precision": "bf16"}},
        {"memory": {"fp8_base": True}},
        {"prompt_weights": False},
        {"long_prompts": "trained"},
        {"negative_prompt": " ".join(["red"] * 90)},
    ],
    ids=str,
)
def test_what_is_read_otherwise_is_read_again(workspace, read, change):
    store = ModelStore()
    run_generate(job_of(), workspace, store=store)
    read.clear()
    run_generate(job_of(**change), workspace, store=store)
    assert "a fox" in read


@pytest.mark.slow
def test_of_a_lora_the_strength_on_the_encoders_counts_and_no_other(workspace, read, tmp_path):
    store, file = ModelStore(), lora(tmp_path / "one.safetensors")

    def texts(**strengths):
        read.clear()
        run_generate(job_of(loras=[LoraUse(file=file, **strengths).model_dump()]), workspace, store=store)
        return [each for each in read if isinstance(each, str)]

    assert texts() == ["a fox", "red"]
    assert texts(strength=0.5, text_encoder_strength=1.0) == []
    assert texts(strength=0.5) == ["a fox", "red"]
    assert texts(strength=0.5, text_encoder_strength=0.0) == ["a fox", "red"]
    assert texts(strength=0.7, text_encoder_strength=0.0) == []
    read.clear()
    run_generate(job_of(), workspace, store=store)
    assert read == [], "without an effect on the encoders a LoRA changes no text"


def test_the_least_recently_used_leave_when_there_is_no_room():
    kept, made = TextStateCache(max_bytes=2 * 40), []

    def take(key):
        return kept.get(key, lambda: made.append(key) or TextStates(torch.zeros(1, 2, 5)))

    for key in "abac":
        take(key)
    assert made == ["a", "b", "c"] and kept.bytes == 80
    take("a")
    take("b")
    assert made == ["a", "b", "c", "b"]
