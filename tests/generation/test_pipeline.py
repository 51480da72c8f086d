"""The pipeline draws what diffusers' own pipeline draws, and an image does not depend on its batch."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
)

from core.diffusion.text_states import TextStates
from core.families import family
from core.families.vae import decode_latents
from core.generation.prompt.states import PromptStates, Reading
from core.generation.sample.canvas import CPU_LATENT_PIXELS, decode, decode_pixels, images_at_once
from core.generation.sample.loop import Denoiser
from core.record.cancel import Cancelled, CancelToken
from core.record.workspace import PROJECT
from tests.prompts import encode_prompts
from tests.refusals import refused
from tests.sampling import images, sampled

STARTER = PROJECT / "models" / "starter"
# Every number is given: none comes from a model's scheduler config.
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
SCHEDULERS = {
    "ddim": lambda: DDIMScheduler(**SCHEDULE, clip_sample=False, set_alpha_to_one=True),
    "euler": lambda: EulerDiscreteScheduler(**SCHEDULE),
    "euler_a": lambda: EulerAncestralDiscreteScheduler(**SCHEDULE),
}


@pytest.fixture(scope="module")
def theirs():
    pipeline = StableDiffusionPipeline.from_pretrained(
        STARTER, dtype=torch.float32, safety_checker=None, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def our_pixels(components, prompt, negative="", *, seeds, width=128, height=128, clip_skip=None, **how):
    """float32 [B, H, W, 3] in [0, 1], before rounding to bytes."""
    states = encode_prompts(components, prompt, negative, Reading(clip_skip=clip_skip))
    latents = sampled(components, states, seeds=seeds, width=width, height=height, **how)
    return torch.cat([decode_pixels(components.vae, one) for one in latents.split(1)]).permute(0, 2, 3, 1).numpy()


def their_pixels(pipeline, sampler, prompt, negative="", *, seed, steps, guidance, **how):
    pipeline.scheduler = SCHEDULERS[sampler]()
    made = pipeline(
        prompt,
        negative_prompt=negative,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type="np",
        **how,
    )
    return made.images[0]


@pytest.mark.slow(but=("ddim",))
@pytest.mark.parametrize("sampler", ["ddim", "euler", "euler_a"])
def test_a_seed_gives_diffusers_image(starter, theirs, sampler):
    ours = our_pixels(starter, "a fox, flat icon", "red", seeds=[42], sampler=sampler, steps=4, guidance_scale=4)[0]
    other = their_pixels(theirs, sampler, "a fox, flat icon", "red", seed=42, steps=4, guidance=4)
    assert np.abs(ours - other).max() < 1e-4
    assert ours.std() > 0.1  # an image, not one color


def test_without_guidance_and_in_another_size_too(starter, theirs):
    ours = our_pixels(
        starter, "a house", "red", seeds=[3], sampler="ddim", steps=2, guidance_scale=1.0, width=192, height=128
    )
    other = their_pixels(theirs, "ddim", "a house", seed=3, steps=2, guidance=1.0, width=192, height=128)
    assert ours[0].shape == (128, 192, 3)
    assert np.abs(ours[0] - other).max() < 1e-4


def test_clip_skip_2_is_the_text_encoder_without_its_last_layer(starter, theirs):
    shorter = copy.deepcopy(theirs.text_encoder)
    shorter.encoder.layers = shorter.encoder.layers[:-1]
    ids = theirs.tokenizer(["a rose", "red"], padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = shorter(ids).last_hidden_state
    ours = encode_prompts(starter, "a rose", "red", Reading(clip_skip=2))
    assert torch.allclose(torch.cat([ours.positive.context, ours.negative.context]), expected, atol=1e-5)
    assert not torch.allclose(
        encode_prompts(starter, "a rose", "red").positive.context, ours.positive.context, atol=1e-2
    )


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["ddim", "euler_a"])
def test_an_image_does_not_depend_on_its_batch_or_place(starter, sampler):
    how = {"sampler": sampler, "steps": 5, "guidance_scale": 4}
    together = our_pixels(starter, "a cup of coffee", seeds=[9, 1, 5], **how)
    for place, seed in enumerate([9, 1, 5]):
        alone = our_pixels(starter, "a cup of coffee", seeds=[seed], **how)[0]
        assert np.abs(alone - together[place]).max() < 1 / 255  # only the order of float32 sums differs
    assert np.abs(together[0] - together[1]).max() > 0.1


def test_torchs_global_random_generator_is_neither_read_nor_moved(starter):
    states = encode_prompts(starter, "a bee")
    how = {"seeds": [1, 2], "width": 64, "height": 64, "sampler": "euler_a", "steps": 2}
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = images(starter, states, **how)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    assert [image.tobytes() for image in images(starter, states, **how)] == [image.tobytes() for image in first]


def test_long_prompts_take_windows_of_75_tokens_and_both_sides_the_same_number(starter):
    word, long = "fox", "fox " * 80
    short = encode_prompts(starter, word, "")
    both = encode_prompts(starter, long, word)
    assert short.positive.context.shape == short.negative.context.shape == (1, 77, 64)
    assert both.positive.context.shape == both.negative.context.shape == (1, 154, 64)
    kind = family("sd1")
    first = kind.encode_captions(starter, ["fox " * 75]).context
    second = kind.encode_captions(starter, ["fox " * 5]).context
    assert torch.allclose(both.positive.context, torch.cat([first, second], dim=1), atol=1e-5)
    # Texts of exactly 75 tokens need one window, of 76 two.
    assert encode_prompts(starter, "fox " * 75).positive.context.shape[1] == 77
    assert encode_prompts(starter, "", "fox " * 76).positive.context.shape[1] == 154


def test_a_long_prompts_end_counts(starter):
    how = {"seeds": [4], "width": 64, "height": 64, "sampler": "ddim", "steps": 3, "guidance_scale": 4}
    filler = "an image, " * 30
    red = our_pixels(starter, filler + "a fox on red background", **how)
    blue = our_pixels(starter, filler + "a boat on blue background", **how)
    assert np.abs(red - blue).max() > 0.02


def test_the_negative_prompt_is_not_read_without_guidance(starter):
    how = {"seeds": [4], "width": 64, "height": 64, "sampler": "ddim", "steps": 2}
    one, other = (our_pixels(starter, "a fox", text, guidance_scale=1.0, **how) for text in ("", "a fox"))
    assert np.array_equal(one, other)
    guided, steered = (our_pixels(starter, "a fox", text, guidance_scale=3.0, **how) for text in ("", "a fox"))
    assert not np.array_equal(guided, steered)


def test_guidance_is_the_papers_sum():
    def predict(noisy, timesteps, given):  # what it predicts is the text state itself
        return given.texts.context.mean(dim=(1, 2)).view(-1, 1, 1, 1).expand_as(noisy)

    positive, negative = (TextStates(torch.full((1, 77, 8), value)) for value in (0.3, 0.1))
    how = {"seeds": [0], "width": 64, "height": 64, "sampler": "ddim", "steps": 1}
    model = Denoiser(family("sd1"), predict)
    guided = sampled(model, PromptStates(positive, negative), guidance_scale=5.0, **how)
    summed = TextStates(torch.full((1, 77, 8), 0.1 + 5.0 * (0.3 - 0.1)))
    told = sampled(model, PromptStates(summed, negative), guidance_scale=1.0, **how)
    assert torch.allclose(guided, told, atol=1e-5)


def test_steps_are_reported_and_a_cancelled_drawing_ends_at_the_next(starter):
    states, token, seen = encode_prompts(starter, "a fox"), CancelToken(), []

    def on_step(done, total):
        seen.append((done, total))
        if done == 2:
            token.cancel()

    how = {"seeds": [1], "width": 64, "height": 64, "steps": 5}
    with pytest.raises(Cancelled):
        sampled(starter, states, on_step=on_step, cancel=token, **how)
    assert seen == [(1, 5), (2, 5)]


def test_numbers_that_are_none_are_an_error_and_no_black_image(starter):
    with refused("image.nan"):
        decode(starter.vae, torch.zeros(1, 4, 8, 8), lambda vae, latents: latents * float("nan"))


def test_images_drawn_at_once_follow_their_size(starter):
    assert images_at_once(starter, 128, 128) == 4 and images_at_once(starter, 128, 128, 16) == 16
    assert images_at_once(starter, 512, 512) == CPU_LATENT_PIXELS // (64 * 64) == 1
    assert images_at_once(starter, 2048, 2048) == 1


def test_an_image_of_nan_from_a_vae_in_16_bits_is_decoded_again_in_fp32_and_told(starter, monkeypatch):
    vae, told, asked = copy.deepcopy(starter.vae).to(torch.bfloat16), [], []

    def overflowing(vae, latents):
        asked.append(dtype := next(vae.parameters()).dtype)
        return decode_latents(vae, latents) * (float("nan") if dtype != torch.float32 else 1)

    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    images = decode(vae, latents, overflowing, warn=told.append)
    assert [problem.code for problem in told] == ["image.decoded-again"]
    assert asked == [torch.bfloat16, torch.float32] and vae.dtype == torch.bfloat16
    for image, other in zip(images, decode(vae.float(), latents), strict=True):
        np.testing.assert_array_equal(np.asarray(image), np.asarray(other))


def test_nan_in_latents_is_told_before_the_vae_is_asked(starter):
    with refused("latents.nan"):
        decode(starter.vae, torch.full((1, 4, 8, 8), float("inf")), lambda vae, latents: pytest.fail("asked"))
