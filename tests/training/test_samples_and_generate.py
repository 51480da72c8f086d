"""A sample of a training and the image that Generate makes with the same settings are one image, to the bit."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from core.generation.model.store import make_store
from core.generation.prompt.sample_prompts import SamplePrompt
from core.generation.run import run_generate
from core.settings.check import build
from core.settings.job import GenerateJob
from core.training.loop.samples import prompts_of

LONG = ", ".join(f"detail {number}" for number in range(90))  # more than 225 tokens
PROMPTS = [
    "a (fox:1.3), [glyph] style --d 4 --s 2",
    "a (fox:1.3), glyph style --n (red:0.5), blurry --d 4 --s 2 --ss euler_a",
    "a fox \\(animal\\), {a|b} BREAK style --d 5 --s 2 --ss dpmsolver++ --l 3",
    f"a fox, ({LONG}:1.1) --d 6 --s 2 --ss heun",
    "a [fox|(bee:1.2)], [glyph:style:0.5] --n [red::1] --d 8 --s 2",
    "a fox --l 1 --w 64 --h 96 --d 7 --s 2 --ss pndm",
]


@pytest.fixture(scope="module")
def store():
    return make_store()


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def requests_and_notes(sample: SamplePrompt) -> dict:
    """The settings of Generate that stand for a sample."""
    return {
        "prompt": sample.prompt,
        "negative_prompt": sample.negative,
        "width": sample.width,
        "height": sample.height,
        "seed": sample.seed,
        "steps": sample.steps,
        "guidance_scale": sample.guidance,
        "sampler": sample.sampler,
    }


def same_images(training, store, model=None, **used):
    """Train, then generate every sample after the last step again, and compare."""
    assert training.start() == "done"
    last = max(line["step"] for line in training.lines("sample"))
    samples = [line for line in training.lines("sample") if line["step"] == last]
    job = training.job
    for line, sample in zip(samples, prompts_of(job, Path(job.model.base_model)), strict=True):
        values = {
            "generate": requests_and_notes(sample) | {"prompt_weights": job.samples.prompt_weights} | used,
            "model": job.model.model_dump() | (model or {}),
            "prompts": {"dynamic_prompts": False},
            "memory": job.memory.model_dump(),
        }
        (file,) = run_generate(build(GenerateJob, values), training.workspace, store=store)
        np.testing.assert_array_equal(pixels(file), pixels(training.folder.path / line["file"]), err_msg=sample.prompt)


def begin(train, *prompts, **groups):
    samples = {"sample_prompts": list(prompts), "sample_at_first": False} | groups.pop("samples", {})
    return train(schedule={"max_train_steps": 1, "seed": 7}, samples=samples, **groups)


@pytest.mark.slow
def test_a_lora_makes_the_samples_of_its_training_again(train, store):
    network = {"train_text_encoder": True}  # with text that does not train: the next two
    training = begin(train, *PROMPTS, network=network, optimizer={"learning_rate": 0.1})
    same_images(training, store, loras=[{"file": str(training.file())}])


@pytest.mark.slow
def test_weights_are_read_or_not_as_the_setting_says(train, store):
    prompt = "a (fox:1.3.) \\( (tree) --s 2"  # no number, which matters only where weights are read
    training = begin(train, prompt, samples={"prompt_weights": False})
    same_images(training, store, loras=[{"file": str(training.file())}])


@pytest.mark.slow
def test_zero_terminal_snr_v_prediction_clip_skip_and_the_vaes_type_are_taken_over(train, store):
    training = begin(
        train,
        *(f"a (fox:1.3) --d 3 --s 3 --w 64 --h 64 --ss {sampler}" for sampler in ("ddim", "dpmsolver")),
        noise={"zero_terminal_snr": True},
        model={"prediction": "v", "clip_skip": 2},
        memory={"vae_precision": "bf16"},
    )
    same_images(training, store, loras=[{"file": str(training.file())}])


@pytest.mark.slow
def test_a_trained_model_makes_its_samples_again(train, store):
    training = begin(
        train,
        "a (fox:1.3) --d 3 --s 3",
        method={"kind": "fine_tune"},
        optimizer={"learning_rate": 1e-4},
        noise={"zero_terminal_snr": True},
        model={"prediction": "v"},
        saving={"save_model_as": "safetensors"},
    )
    same_images(training, store, model={"base_model": str(training.file())})


@pytest.mark.slow
@pytest.mark.parametrize("extended", [False, True])
def test_a_new_word_makes_its_samples_again_also_where_its_vectors_need_another_window(train, store, extended):
    training = begin(
        train,
        f"a (zkw:1.3), {'fox ' * 71}--d 3 --s 2",
        method={"kind": "embedding"},
        embedding={"token_string": "zkw", "init_word": "fox", "num_vectors_per_token": 3, "extended": extended},
        noise={"zero_terminal_snr": True},
        optimizer={"learning_rate": 0.1},
        captions={"caption_prefix": "zkw "},
        model={"prediction": "v"},
    )
    same_images(training, store, embeddings=[f"zkw={training.file()}"])
