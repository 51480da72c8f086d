"""Samples while training: prompts with options of their own, long ones, and nothing trained changes by them."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load, load_file

from core.generation.sample import loop
from core.record.events import CONTROL_IMAGE, WITHOUT_CONTROL
from core.training.loop.samples import Samples, prompts_of

LONG = "a fox, glyph style, " + ", ".join(f"detail {number}" for number in range(25))


# With text that does not train: test_samples_as_in_sd_scripts_are_512_wide_weigh_with_the_mean_kept_and_change_no_weight.
@pytest.mark.slow
def test_each_prompt_has_its_own_size_seed_and_sampler_and_long_ones_are_read_whole(train):
    samples = {
        "sample_prompts": ["a fox --w 64 --h 96 --d 9 --s 2 --l 1", f"{LONG} --ss heun --s 2", f"{LONG}, red --s 2"],
        "sample_steps": 3,
    }
    groups = {"schedule": {"max_train_steps": 2, "seed": 7}, "network": {"train_text_encoder": True}}
    quiet, training = train(**groups), train(**groups, samples=samples)
    assert quiet.start() == training.start() == "done"
    drawn = training.lines("sample")
    assert not [line for line in training.lines("log") if line["level"] == "warning"], "every prompt was drawn"
    assert [(line["step"], line["index"], line["seed"]) for line in drawn] == [
        (step, index, seed) for step in (0, 2) for index, seed in ((0, 9), (1, 2), (2, 3))
    ]
    assert drawn[0]["prompt"] == "a fox"
    with Image.open(training.folder.path / drawn[0]["file"]) as image:
        assert image.size == (64, 96)
    a, b = load_file(quiet.file()), load_file(training.file())
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_samples_are_the_same_whether_the_latents_were_cached_before(train):
    """The VAE that caching loads has the type that was asked for; so has the one that is loaded for samples alone."""
    given = {"samples": {"sample_prompts": ["a fox --s 2 --d 1"]}, "memory": {"vae_precision": "bf16"}}
    images = []
    for _ in range(2):
        training = train(schedule={"max_train_steps": 5, "seed": 7}, dataset={"resolution": 80}, **given)
        assert training.start() == "done"
        stages = [line["text"] for line in training.lines("stage")]
        images.append(
            (
                (training.folder.path / training.lines("sample")[0]["file"]).read_bytes(),
                any("encoding images" in each for each in stages),
            )
        )
    assert [encoded for _, encoded in images] == [True, False]
    assert images[0][0] == images[1][0]


@pytest.mark.slow
def test_epochs_decide_alone_when_both_are_set(train):
    training = train(
        schedule={"max_train_epochs": 2, "max_train_steps": None, "seed": 7},
        samples={
            "sample_prompts": ["a fox"],
            "sample_steps": 1,
            "sample_every_n_steps": 1,
            "sample_every_n_epochs": 1,
            "sample_at_first": False,
        },
    )
    training.start()
    per_epoch = training.lines("planned")[0]["steps_per_epoch"]
    assert per_epoch > 1 and [line["step"] for line in training.lines("sample")] == [per_epoch, 2 * per_epoch]


@pytest.mark.slow
def test_a_prompt_file_is_drawn_after_the_typed_ones(train, tmp_path):
    (tmp_path / "p.txt").write_text("a bear --s 1\n")
    samples = {"sample_prompts": ["a fox --s 1"], "sample_prompts_file": str(tmp_path / "p.txt")}
    training = train(schedule={"max_train_steps": 1, "seed": 7}, samples=samples)
    training.start()
    assert [line["prompt"] for line in training.lines("sample")][:2] == ["a fox", "a bear"]


def test_samples_have_the_size_that_is_set_and_otherwise_that_of_the_first_folder_that_trains(make_job):
    def size(own, **samples):
        folders = [{"folder": "a", "role": "validation"}, {"folder": "b", **own}, {"folder": "c"}]
        job = make_job(samples={"sample_prompts": ["a fox"], **samples}, dataset={"folder": None, "sources": folders})
        (prompt,) = prompts_of(job)
        return prompt.width, prompt.height

    assert size({}) == (64, 64) and size({"resolution": (128, 96)}) == (128, 96)
    assert size({"resolution": 128}, width=256) == (256, 128) and size({}, height=192) == (64, 192)


@pytest.mark.slow
def test_samples_as_in_sd_scripts_are_512_wide_weigh_with_the_mean_kept_and_change_no_weight(train, monkeypatch):
    drawn = []

    def watched(model, states, stage, noises, sampling, **how):
        drawn.append((*stage.size, sampling.program, float(states.positive.context.mean())))
        small = replace(stage, size=(64, 64))
        return denoise(model, states, small, loop.noises_of(model, small, [7], sampling), sampling, **how)

    denoise = loop.denoise
    monkeypatch.setattr("core.training.loop.samples.denoise", watched)
    files = []
    for prompt, which in (("a (fox:1.5)", "none"), ("a (fox:1.5)", "sd-scripts-0.10"), ("a fox", "sd-scripts-0.10")):
        samples = {"sample_prompts": [f"{prompt} --s 1"], "sample_at_first": False}
        training = train(schedule={"max_train_steps": 1, "seed": 7}, samples=samples, model={"compatibility": which})
        assert training.start() == "done"
        files.append(training.file().read_bytes())
    assert [each[:3] for each in drawn] == [(64, 64, ""), (512, 512, "trainer"), (512, 512, "trainer")]
    heavy, kept, plain = (each[3] for each in drawn)
    assert kept == pytest.approx(plain, rel=1e-5) and heavy != pytest.approx(plain, rel=1e-3)
    first, second = load(files[0]), load(files[1])
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("control_images", [True, False])
def test_the_images_without_the_control_model_are_made_once_and_only_of_such_a_method(monkeypatch, control_images):
    """Control image and image without it stand before the first samples; with the model untrained, and never again."""
    image, kept, control = Image.new("RGB", (8, 8)), [], torch.zeros(3, 8, 8).numpy()
    method = SimpleNamespace(
        traits=SimpleNamespace(control_images=control_images), set_strength=lambda strength: None,
        sampling=nullcontext, untrained=lambda: nullcontext(kept.append("untrained")),
    )  # fmt: skip
    passes = SimpleNamespace(
        job=SimpleNamespace(method=method), method=method, without_dropout=nullcontext,
        precision=SimpleNamespace(compute=torch.float32, trainable=torch.float32), components=None,
    )  # fmt: skip
    monkeypatch.setattr(Samples, "_generate", lambda samples, prompt, given: image)
    monkeypatch.setattr(Samples, "_control_of", lambda samples, prompt: control if control_images else None)
    monkeypatch.setattr(Samples, "_save", lambda samples, image, name, step, index, prompt: kept.append((step, index)))
    samples = Samples(
        [SimpleNamespace(prompt=text) for text in "ab"],
        SimpleNamespace(encode=lambda: None),
        passes,
        SimpleNamespace(stage=lambda text: None),
        SimpleNamespace(image=lambda *given: None),
        None,
        compiled=True,
    )
    samples.generate(0)
    samples.generate(3)
    pairs = [entry for index in range(2) for entry in ((CONTROL_IMAGE, index), "untrained", (WITHOUT_CONTROL, index))]
    assert kept == (pairs if control_images else []) + [(0, 0), (0, 1), (3, 0), (3, 1)]
