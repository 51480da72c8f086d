"""Reads the metadata of ComfyUI, Fooocus, NovelAI, InvokeAI, SwarmUI and sd-scripts as settings by A1111's names, within limits."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from core.generation.images.comfyui import settings_of
from core.generation.images.record import ForeignSettings
from core.record.bounded_json import parse_json
from core.record.problems import ProblemsError

LONGEST = 2_000_000  # characters of JSON
MOST = 100_000  # values in it
PROMPT, NEGATIVE, SAMPLER, SCHEDULE, WIDTH, HEIGHT = "prompt", "negative", "sampler", "schedule", "width", "height"
NOTHING: tuple[Any, ...] = (None, "", "None", False, 0, [], {})  # values that change nothing


@dataclass(frozen=True)
class Program:
    """A program's metadata as a table.

    paths    {path in its content: A1111's name, ours, or one of the constants above}
    silent   names in its content that do not change an image, or are read otherwise
    """

    name: str
    paths: Mapping[str, str]
    silent: frozenset[str] = frozenset()


FOOOCUS = Program(
    "Fooocus",
    {
        "prompt": PROMPT, "negative_prompt": NEGATIVE, "steps": "Steps", "guidance_scale": "CFG scale", "seed": "Seed",
        "resolution": "Size", "base_model": "Model", "clip_skip": "Clip skip", "sampler": SAMPLER, "vae": "VAE",
        "scheduler": SCHEDULE, "refiner_model": "Refiner", "refiner_switch": "Refiner switch at",
    },
    frozenset({"loras", "version", "metadata_scheme", "created_by", "base_model_hash", "full_prompt", "full_negative_prompt"}),
)  # fmt: skip
INVOKEAI = Program(
    "InvokeAI",
    {
        "positive_prompt": PROMPT, "negative_prompt": NEGATIVE, "steps": "Steps", "cfg_scale": "CFG scale",
        "seed": "Seed", "width": WIDTH, "height": HEIGHT, "scheduler": SCHEDULE + SAMPLER, "strength": "Denoising strength",
        "model": "Model", "vae": "VAE", "cfg_rescale_multiplier": "guidance_rescale", "rand_device": "RNG",
    },
    frozenset({"loras", "app_version", "generation_mode"}),
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
)  # fmt: skip
SWARMUI = Program(
    "SwarmUI",
    {
        "prompt": PROMPT, "negativeprompt": NEGATIVE, "steps": "Steps", "cfgscale": "CFG scale", "seed": "Seed",
        "width": WIDTH, "height": HEIGHT, "sampler": SAMPLER, "scheduler": SCHEDULE, "model": "Model", "vae": "VAE",
    },
    frozenset({"loras", "loraweights", "images", "aspectratio", "sidelength", "automaticvae", "swarm_version"}),
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


def read_foreign(texts: Mapping[str, str], comment: str, size: tuple[int, int]) -> ForeignSettings | None:
    """The settings written by one of these programs; None if there are none. texts: of a PNG; comment: EXIF's UserComment"""
    block = texts.get("parameters") or comment
    of_novelai = "NovelAI" in (texts.get("Software", ""), texts.get("Source", "")[:7])
    readers: list[tuple[str, Callable[[dict[str, Any]], ForeignSettings | None]]] = [
        (block, _swarmui),
        (block, lambda content: _read(FOOOCUS, content) if "guidance_scale" in content else None),
        (texts.get("invokeai_metadata", ""), lambda content: _read(INVOKEAI, content)),
        (texts.get("sd-metadata", ""), _invokeai_2),
        (texts.get("Comment", "") if of_novelai else "", lambda content: _read(NOVELAI, content)),
        (texts.get("prompt", ""), settings_of),
        (texts.get("workflow", ""), lambda content: settings_of({}, content)),
    ]
    for text, reader in readers:
        content = _object(text) if text.lstrip()[:1] == "{" else None
        if content is not None and (found := reader(content)) is not None:
            return found
    if texts.get("prompt") and texts.keys() & {"seed", "steps", "scale", "sampler"}:
        return _read(SD_SCRIPTS, {name: texts[name] for name in SD_SCRIPTS.paths if name in texts}, size)
    return None


def _object(text: str) -> dict[str, Any] | None:
    """The JSON object of a text; None if it is not one or too large."""
    if not text or len(text) > LONGEST:
        return None
    try:
        found = parse_json(text, "the image's settings", max_values=MOST, finite=False)  # ComfyUI writes NaN
    except ProblemsError:
        return None
    return found if isinstance(found, dict) else None


def _read(program: Program, content: Mapping[str, Any], size: tuple[int, int] | None = None) -> ForeignSettings:
    """By the program's table. size: of the image, where it is not in the content"""
    given = {ours: _name(content.get(path)) for path, ours in program.paths.items()}
    both = given.pop(SCHEDULE + SAMPLER, None)
    sampler, schedule, width, height = (given.pop(name, None) for name in (SAMPLER, SCHEDULE, WIDTH, HEIGHT))
    prompt, negative = (str(given.pop(name, None) or "") for name in (PROMPT, NEGATIVE))
    settings = ForeignSettings(program.name, prompt, negative)
    settings.put(given)
    if "Size" in settings.pairs:
        settings.pairs["Size"] = settings.pairs["Size"].strip("()").replace(", ", "x")
    elif width or size:
        settings.put({"Size": "{}x{}".format(*(size or (width, height)))})
    settings.sampled(sampler or both, schedule)
    weights = _list(content.get("loraweights"))
    for number, each in enumerate(_list(content.get("loras"))):
        if isinstance(each, list) and len(each) > 1:
            settings.add_lora(each[0], each[1])
        elif isinstance(each, dict):
            settings.add_lora(_name(each.get("model") or each.get("lora")), each.get("weight"))
        elif number < len(weights):
            settings.add_lora(each, _number(weights[number]))
    known = program.paths.keys() | program.silent
    settings.left = [name for name, value in content.items() if name not in known and value not in NOTHING]
    return settings


def _swarmui(content: dict[str, Any]) -> ForeignSettings | None:
    own = content.get("sui_image_params")
    return _read(SWARMUI, own) if isinstance(own, dict) else None


def _invokeai_2(content: dict[str, Any]) -> ForeignSettings | None:
    """InvokeAI before 3: prompts are a text or a list with weights, and what is in [] is the negative one."""
    image = content.get("image")
    if not isinstance(image, dict):
        return None
    prompts = image.get("prompt")
    texts = [prompts] if isinstance(prompts, str) else [_name(each) for each in _list(prompts)]
    words = ", ".join(text for text in texts if isinstance(text, str))
    plain = {"prompt": re.sub(r"\s*\[[^\[\]]*\]", "", words).strip(), "model": content.get("model_weights")}
    settings = _read(INVOKEAI_2, image | plain)
    settings.negative = ", ".join(re.findall(r"\[([^\[\]]*)\]", words))
    return settings


def _list(value: Any) -> list[Any]:
    return value[:100] if isinstance(value, list) else []


def _name(value: Any) -> Any:
    """The name of what is described by an object, such as a model; other values as they are."""
    if not isinstance(value, dict):
        return value
    return next((value[key] for key in ("name", "model_name", "prompt") if isinstance(value.get(key), str)), None)


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
