"""The metadata of other programs: a table for each, from its names to A1111's or ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

PROMPT, NEGATIVE, SAMPLER, SCHEDULE, WIDTH, HEIGHT = "prompt", "negative", "sampler", "schedule", "width", "height"


@dataclass(frozen=True)
class Program:
    """A program's metadata as a table. Names are in lower case, with _ for blanks.

    marks    names that identify it: its content has one, and no program before it in `BY_MARKS` does
    paths    {name in its content: A1111's name, ours, or one of the constants above}; of two for one, the first present
    silent   names in its content that do not change an image, or are read elsewhere
    values   {A1111's name or ours: (value) -> the value in A1111's terms; None for no value}
    """

    name: str
    paths: Mapping[str, str]
    silent: frozenset[str] = frozenset()
    marks: frozenset[str] = frozenset()
    values: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)

    def reads(self, name: str) -> bool:
        return name in self.paths or name in self.silent or bool(LORA.fullmatch(name))


def plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_")


LORA = re.compile(r"lora(_combined)?_\d{1,2}")  # of Fooocus: "name.safetensors : 0.5"
_LORA_NAMES = ("loras", "loraweights", "lora", "lora_model", "use_lora_model", "lora_alpha", "lora_strength")


def _below(layer: Any) -> Any:
    """The number of skipped layers, counted from 0, as A1111's clip skip."""
    return layer + 1 if isinstance(layer, int) and layer > 0 else None


def _negative(layer: Any) -> Any:
    return -layer if isinstance(layer, int) and layer < 0 else None


FOOOCUS = Program(
    "Fooocus",
    {
        "prompt": PROMPT, "negative_prompt": NEGATIVE, "steps": "Steps", "guidance_scale": "CFG scale", "seed": "Seed",
        "resolution": "Size", "base_model": "Model", "clip_skip": "Clip skip", "sampler": SAMPLER, "vae": "VAE",
        "scheduler": SCHEDULE, "refiner_model": "Refiner", "refiner_switch": "Refiner switch at",
    },
    frozenset({"loras", "version", "metadata_scheme", "created_by", "base_model_hash", "full_prompt", "full_negative_prompt"}),
    frozenset({"guidance_scale"}),
)  # fmt: skip
EASY_DIFFUSION = Program(
    "Easy Diffusion",
    {
        "prompt": PROMPT, "negative_prompt": NEGATIVE, "num_inference_steps": "Steps", "steps": "Steps",
        "guidance_scale": "CFG scale", "seed": "Seed", "width": WIDTH, "height": HEIGHT, "sampler_name": SAMPLER,
        "sampler": SAMPLER, "scheduler_name": SCHEDULE, "scheduler": SCHEDULE, "use_stable_diffusion_model": "Model",
        "stable_diffusion_model": "Model", "use_vae_model": "VAE", "vae_model": "VAE", "clip_skip": "Clip skip",
        "prompt_strength": "Denoising strength",
    },
    frozenset({
        *_LORA_NAMES, "used_random_seed", "num_outputs", "vram_usage_level", "block_nsfw", "output_format", "output_quality",
        "stream_image_progress", "show_only_filtered_image", "metadata_output_format", "session_id", "software", "dpi",
    }),
    frozenset({"num_inference_steps", "use_stable_diffusion_model", "stable_diffusion_model"}),
    {"Clip skip": lambda value: 2 if value in (True, "True") else None},
)  # fmt: skip
DRAW_THINGS = Program(
    "Draw Things",
    {
        "c": PROMPT, "uc": NEGATIVE, "steps": "Steps", "scale": "CFG scale", "seed": "Seed", "size": "Size",
        "sampler": SAMPLER, "model": "Model", "strength": "Denoising strength",
    },
    frozenset({"v2", "lora", "profile"}),
    frozenset({"c"}),
    {"Denoising strength": lambda value: None if value == 1 else value},
)  # fmt: skip
INVOKEAI = Program(
    "InvokeAI",
    {
        "positive_prompt": PROMPT, "negative_prompt": NEGATIVE, "steps": "Steps", "cfg_scale": "CFG scale",
        "seed": "Seed", "width": WIDTH, "height": HEIGHT, "scheduler": SCHEDULE + SAMPLER, "strength": "Denoising strength",
        "model": "Model", "vae": "VAE", "cfg_rescale_multiplier": "guidance_rescale", "rand_device": "RNG",
        "clip_skip": "Clip skip",
    },
    frozenset({"loras", "app_version", "generation_mode", "canvas_v2_metadata"}),
    values={"Clip skip": _below},
)  # fmt: skip
INVOKEAI_2 = Program(
    "InvokeAI",
    {
        "prompt": PROMPT, "steps": "Steps", "cfg_scale": "CFG scale", "seed": "Seed", "width": WIDTH, "height": HEIGHT,
        "sampler": SAMPLER, "strength": "Denoising strength", "model": "Model",
    },
    frozenset({"type", "rand_device"}),
)  # fmt: skip
NOVELAI = Program(
    "NovelAI",
    {
        "prompt": PROMPT, "uc": NEGATIVE, "steps": "Steps", "scale": "CFG scale", "seed": "Seed", "width": WIDTH,
        "height": HEIGHT, "sampler": SAMPLER, "noise_schedule": SCHEDULE, "strength": "Denoising strength",
        "cfg_rescale": "guidance_rescale",
    },
    frozenset({"request_type", "signed_hash", "n_samples", "version", "extra_noise_seed"}),
    frozenset({"uc"}),
)  # fmt: skip
SWARMUI = Program(
    "SwarmUI",
    {
        "prompt": PROMPT, "negativeprompt": NEGATIVE, "steps": "Steps", "cfgscale": "CFG scale", "seed": "Seed",
        "width": WIDTH, "height": HEIGHT, "sampler": SAMPLER, "scheduler": SCHEDULE, "model": "Model", "vae": "VAE",
        "clipstopatlayer": "Clip skip", "variationseed": "Variation seed", "variationseedstrength": "Variation seed strength",
        "initimagecreativity": "Denoising strength",
    },
    frozenset({
        "loras", "loraweights", "images", "aspectratio", "sidelength", "automaticvae", "swarm_version", "date", "generation_time",
        "prep_time",
    }),
    values={"Clip skip": _negative},
)  # fmt: skip
SD_SCRIPTS = Program(
    "sd-scripts",
    {
        "prompt": PROMPT, "negative-prompt": NEGATIVE, "steps": "Steps", "scale": "CFG scale", "seed": "Seed",
        "sampler": SAMPLER, "negative-scale": "negative_scale", "clip-prompt": "clip_prompt",
        "original-width": "original_width", "original-height": "original_height", "crop-left": "crop_left",
        "crop-top": "crop_top", "original-width-negative": "original_width_negative",
        "original-height-negative": "original_height_negative",
    },
)  # fmt: skip

# Common names, for unknown programs.
ANOTHER = Program(
    "Another program",
    {
        "prompt": PROMPT, "positive_prompt": PROMPT, "negative_prompt": NEGATIVE, "negativeprompt": NEGATIVE,
        "steps": "Steps", "num_steps": "Steps", "cfg_scale": "CFG scale", "cfgscale": "CFG scale", "cfg": "CFG scale",
        "scale": "CFG scale", "seed": "Seed", "width": WIDTH, "height": HEIGHT, "sampler": SAMPLER, "sampler_name": SAMPLER,
        "scheduler": SCHEDULE, "model": "Model", "clip_skip": "Clip skip", "clipskip": "Clip skip",
    },
    frozenset({"loras", "version"}),
    frozenset({"prompt", "positive_prompt"}),
)  # fmt: skip

# The programs recognized by the content of a text, since several of them write into the same places.
BY_MARKS = (EASY_DIFFUSION, FOOOCUS, DRAW_THINGS, NOVELAI, ANOTHER)
