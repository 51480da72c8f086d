"""Trainings of SD 2.x (v) and SDXL on tiny models: files that diffusers draws with, exact resumes, SDXL's sizes."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from core.families import family
from core.families.saving import save_model
from core.families.sdxl import FAMILY as sdxl
from core.generation.model.loras import loras_attached
from core.generation.sample.canvas import decode_pixels
from core.networks.adapter_file import save_lora
from core.settings.generation.generate import LoraUse
from tests.models import tiny_folder
from tests.prompts import encode_prompts
from tests.sampling import sampled

SIZES = {"resolution": 64, "bucket_reso_steps": 32, "train_batch_size": 2}
ONE_STEP = {"schedule": {"max_train_steps": 1, "seed": 7}}
BOTH = {"rank": 4, "alpha": 4.0, "train_text_encoder": True}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    return {name: tiny_folder(name, tmp_path_factory.mktemp("models") / name) for name in ("sd2", "sdxl")}


@pytest.fixture
def run(train, folders, images):
    """A training of the family, not yet started."""

    def make(name, **groups):
        groups = {
            "model": {"base_model": str(folders[name]), **groups.pop("model", {})},
            "dataset": {"folder": str(images), **SIZES, **groups.pop("dataset", {})},
            "optimizer": {"learning_rate": 1e-2},
            "schedule": {"max_train_steps": 3, "seed": 7},
            **groups,
        }
        return train(**groups)

    return make


def image(components, path=None):
    uses = [] if path is None else [LoraUse(file=str(path))]
    with loras_attached(components, uses, lambda name: path):
        states = encode_prompts(components, "a fox")
        latents = sampled(
            components,
            states,
            seeds=[3],
            width=64,
            height=64,
            steps=3,
            guidance_scale=3.0,
        )
    return decode_pixels(components.vae, latents)[0].permute(1, 2, 0).numpy()


def diffusers_image(name, folder, path):
    kind = StableDiffusionXLPipeline if name == "sdxl" else StableDiffusionPipeline
    pipeline = kind.from_pretrained(folder, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        prediction_type="epsilon" if name == "sdxl" else "v_prediction",
    )
    pipeline.load_lora_weights(path.parent, weight_name=path.name, local_files_only=True)
    how = {"negative_prompt": "", "num_inference_steps": 3, "guidance_scale": 3.0, "width": 64, "height": 64}
    return pipeline("a fox", **how, generator=torch.Generator("cpu").manual_seed(3), output_type="np").images[0]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "version"), [("sd2", "sd_v2_v"), ("sdxl", "sdxl_base_v1-0")])
def test_a_trained_file_draws_the_same_image_here_and_in_diffusers(run, folders, name, version):
    training = run(
        name, network=BOTH, samples={"sample_prompts": ["a fox"], "sample_steps": 2, "sample_every_n_steps": 3}
    )
    assert training.start() == "done"
    components = family(name).load(folders[name])
    ours = image(components, training.file())
    assert np.abs(ours - image(components)).max() > 0.01, "it trained something that is seen"
    assert np.abs(ours - diffusers_image(name, folders[name], training.file())).max() < 2e-4
    with safe_open(training.file(), "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_base_model_version"] == version and metadata["ss_v2"] == str(name == "sd2")
    before, after = (Image.open(path) for path in sorted(training.folder.samples.glob("*.png")))
    assert before.size == after.size == (64, 64), "samples have the training's size"
    assert before.tobytes() != after.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "prefixes"),
    [
        ({}, {"lora_unet"}),
        ({"train_unet": False, "train_text_encoder": True}, {"lora_te1", "lora_te2"}),
    ],
    ids=["unet only", "text encoders only"],
)
def test_sdxls_parts_are_trained_as_asked(run, network, prefixes):
    training = run("sdxl", network={"rank": 2, "alpha": 2.0, **network}, **ONE_STEP)
    assert training.start() == "done"
    tensors = load_file(training.file())
    assert {"_".join(key.split("_")[:2]) for key in tensors} == prefixes
    for prefix in prefixes:  # each part trained: the zeros of its ups moved
        assert any(
            key.startswith(prefix) and key.endswith("up.weight") and value.any() for key, value in tensors.items()
        )


@pytest.mark.slow
def test_a_resumed_sdxl_run_equals_an_unbroken_one_bit_for_bit(run):
    groups = {
        "network": {"rank": 2, "train_text_encoder": True},
        "dataset": {"flip_aug": True, "random_crop": True},
        "memory": {"gradient_checkpointing": True},
    }
    whole, broken = run("sdxl", **groups), run("sdxl", **groups)
    assert whole.start() == "done"

    def stop_after_two(line):
        if line["kind"] == "steps" and line["steps"][-1] >= 2:
            broken.token.cancel()

    broken.on_line = stop_after_two
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("core.training.loop.loss_readback.EVENT_SECONDS", 0.0)
        assert broken.start() == "stopped"
    assert max(broken.losses()) < 3, "it was stopped on the way"
    rest = broken.again()
    assert rest.start() == "done"
    assert rest.losses() == whole.losses()
    one, other = load_file(whole.file()), load_file(rest.file())
    assert set(one) == set(other) and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.slow
def test_sdxl_is_told_the_sizes_of_every_image_as_it_is_shown(run, monkeypatch):
    told = []

    def predict(components, noisy, timesteps, given):
        told.extend((tuple(noisy.shape[-2:]), row) for row in given.sizes.tolist())
        return plain(components, noisy, timesteps, given)

    plain = sdxl.predict
    monkeypatch.setattr(sdxl, "predict", predict)
    training = run("sdxl", dataset={"random_crop": True, "bucket_no_upscale": False})
    training.start()
    assert len(told) >= 4
    for (height, width), row in told:
        original_h, original_w, top, left, target_h, target_w = row
        assert (target_h, target_w) == (8 * height, 8 * width), "what is shown is the bucket"
        assert original_h > target_h and original_w > target_w, "the starter's images are larger"
        assert 0 <= top < original_h and 0 <= left < original_w
    again = len(told)
    run("sdxl", dataset={"random_crop": True, "bucket_no_upscale": False}).start()
    assert told[again:] == told[:again], "and the same in another run of the same seed"


@pytest.mark.slow
def test_projections_of_an_sd2_lora_are_saved_as_the_choice_says_and_are_the_same_lora(run, folders, tmp_path):
    trained = run("sd2", saving={"sd2_projections": "convolutions", "save_precision": "fp32"})
    assert trained.start() == "done"
    written = load_file(trained.file())
    projections = {key for key in written if "_proj_in.lora_" in key or "_proj_out.lora_" in key}
    assert projections and all(written[key].shape[2:] == (1, 1) for key in projections)
    others = [value for key, value in written.items() if key not in projections]
    assert all(value.ndim in (0, 2) for value in others)
    flat = {key: value.flatten(1) if key in projections else value for key, value in written.items()}
    matrices = save_lora(tmp_path / "matrices.safetensors", flat)
    components = family("sd2").load(folders["sd2"])
    ours = [image(components, path) for path in (trained.file(), matrices)]
    assert np.array_equal(*ours) and not np.array_equal(ours[0], image(components))


@pytest.mark.slow
def test_the_prediction_is_the_models_own_unless_it_is_set(run):
    detected, v, epsilon = (
        run("sd2", **ONE_STEP),
        run("sd2", model={"prediction": "v"}, **ONE_STEP),
        run("sd2", model={"prediction": "epsilon"}, **ONE_STEP),
    )
    for training in (detected, v, epsilon):
        training.start()
    assert detected.losses() == v.losses() and detected.losses() != epsilon.losses()


@pytest.mark.slow
def test_captions_of_both_encoders_are_cached_for_the_next_run(run, monkeypatch):
    run("sdxl", **ONE_STEP).start()
    loaded = []
    monkeypatch.setattr(sdxl, "encode_captions", lambda *_, **__: loaded.append(1))
    again = run("sdxl", **ONE_STEP)
    assert again.start() == "done" and not loaded
    assert json.loads((again.folder.path / "job.json").read_text("utf-8"))["model"]["family"] == "auto"


@pytest.mark.slow
def test_the_kohya_choice_reads_a_file_of_sdxl_as_sd_scripts_does(run, folders, tmp_path):
    """Only a single file is concerned, and only the summary of the caption: the first loss differs, no text is cached twice."""
    file = tmp_path / "sdxl.safetensors"
    components = sdxl.load(folders["sdxl"])
    save_model(components, file, ["unet"], form="safetensors")
    plain = run("sdxl", model={"base_model": str(file)}, **ONE_STEP)
    kohya = run("sdxl", model={"base_model": str(file), "compatibility": "sd-scripts-0.10"}, **ONE_STEP)
    folder = run("sdxl", model={"compatibility": "sd-scripts-0.10"}, **ONE_STEP)
    for training in (plain, kohya, folder):
        assert training.start() == "done"
    assert plain.losses()[1] != kohya.losses()[1]
    assert folder.losses()[1] == pytest.approx(plain.losses()[1], rel=1e-5)
