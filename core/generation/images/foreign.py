"""Reads other programs' metadata as settings by A1111's names, within limits: a table for each program."""

import html
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from core.generation.images.comfyui import is_graph, settings_of
from core.generation.images.foreign_weights import INVOKEAI_FUNCTIONS, from_invokeai, from_novelai
from core.generation.images.record import ForeignSettings
from core.record.bounded_json import parse_json
from core.record.problems import ProblemsError

LONGEST = 2_000_000  # characters of JSON
MOST = 100_000  # values in it
LONGEST_LINE = 10_000  # characters of a command line
XMP = "XML:com.adobe.xmp"  # keyword of XMP among a PNG's texts
NOTHING: tuple[Any, ...] = (None, "", "None", False, "False", "none", 0, [], {})  # values without effect
# InvokeAI's command line, before it had JSON: "a hat [blur]" -s 50 -S 1
_DREAM = {
    "-s": "steps", "-S": "seed", "-W": "width", "-H": "height", "-C": "cfg_scale", "-A": "sampler", "-f": "strength",
    "-G": "gfpgan strength", "-U": "upscale", "-I": "initial image",
}  # fmt: skip


# -- programs

PROMPT, NEGATIVE, SAMPLER, SCHEDULE, WIDTH, HEIGHT = "prompt", "negative", "sampler", "schedule", "width", "height"


@dataclass(frozen=True)
class Program:
    """How a program's metadata is read. Its keys are in lower case, with _ for blanks.

    paths    {key: A1111's name, Atelier's name, or a constant above}; of two keys with the same name, the first present is read
    silent   keys that do not affect an image, or are read elsewhere
    marks    keys that identify the program; of several programs that match, the first in BY_MARKS is chosen
    values   {A1111's or Atelier's name: function that converts the value to A1111's, or to None to leave it out}
    weights  function (prompt) -> the prompt with weights in A1111's notation
    functions  pattern of function calls in its prompts that cannot be read
    """

    name: str
    paths: Mapping[str, str]
    silent: frozenset[str] = frozenset()
    marks: frozenset[str] = frozenset()
    values: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    weights: Callable[[str], str] = str
    functions: str = "(?!)"

    def reads(self, name: str) -> bool:
        """Return whether a key is read or known to be irrelevant."""
        return name in self.paths or name in self.silent or bool(LORA.fullmatch(name))


def as_key(name: str) -> str:
    """Return a metadata name in lower case with _ for blanks."""
    return name.strip().lower().replace(" ", "_")


LORA = re.compile(r"lora(_combined)?_\d{1,2}")  # of Fooocus: "name.safetensors : 0.5"
_LORA_NAMES = ("loras", "loraweights", "lora", "lora_model", "use_lora_model", "lora_alpha", "lora_strength")


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
    values={"Clip skip": lambda skipped: skipped + 1 if isinstance(skipped, int) and skipped > 0 else None},  # from 0
    weights=from_invokeai,
    functions=INVOKEAI_FUNCTIONS,
)  # fmt: skip
INVOKEAI_2 = Program(
    "InvokeAI",
    {
        "prompt": PROMPT, "steps": "Steps", "cfg_scale": "CFG scale", "seed": "Seed", "width": WIDTH, "height": HEIGHT,
        "sampler": SAMPLER, "strength": "Denoising strength", "model": "Model",
    },
    frozenset({"type", "rand_device"}),
    weights=from_invokeai,
    functions=INVOKEAI_FUNCTIONS,
)  # fmt: skip
NOVELAI = Program(
    "NovelAI",
    {
        "prompt": PROMPT, "uc": NEGATIVE, "steps": "Steps", "scale": "CFG scale", "seed": "Seed", "width": WIDTH,
        "height": HEIGHT, "sampler": SAMPLER, "noise_schedule": SCHEDULE, "strength": "Denoising strength",
        "cfg_rescale": "guidance_rescale",
    },
    frozenset({
        "request_type", "signed_hash", "n_samples", "version", "extra_noise_seed",
        "controlnet_strength", "dynamic_thresholding_percentile", "dynamic_thresholding_mimic_scale",  # of what is off
    }),
    frozenset({"uc"}),
    weights=from_novelai,
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
    values={"Clip skip": lambda layer: -layer if isinstance(layer, int) and layer < 0 else None},  # from the end
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


# -- reading


def read_foreign(texts: Mapping[str, str], comment: str, size: tuple[int, int]) -> ForeignSettings | None:
    """Return the settings written by one of these programs, or None.

    texts     {name: text} of a PNG's text chunks; texts of other formats under the same names
    comment   EXIF's UserComment
    size      (width, height) of the image
    """
    blocks = [
        texts.get("parameters") or comment,
        texts.get("Comment", ""),
        next((item for item in xmp_items(texts.get(XMP, "")) if item[:1] == "{"), ""),
    ]
    readers: list[tuple[str, Callable[[dict[str, Any]], ForeignSettings | None]]] = [
        (texts.get("invokeai_metadata", ""), lambda content: _read(INVOKEAI, content)),
        (texts.get("sd-metadata", ""), _invokeai_2),
        *((block, lambda content: _read_shared_field(content, texts, size)) for block in blocks),
        (texts.get("prompt", ""), lambda content: settings_of(content, size=size)),
        (texts.get("workflow", ""), lambda content: settings_of({}, content)),
    ]
    for text, reader in readers:
        content = _json_object(text) if text.lstrip()[:1] == "{" else None
        if content is not None and (settings := reader(content)) is not None:
            return settings
    if dream := _dream_content(texts.get("Dream", "")):
        return _invokeai_2({"image": dream})
    names = {as_key(name) for name in texts}
    if "prompt" in names and names & {"negative_prompt", "guidance_scale", "num_inference_steps"}:
        return _read(EASY_DIFFUSION, texts)
    if texts.get("prompt") and texts.keys() & {"seed", "steps", "scale", "sampler"}:
        return _read(SD_SCRIPTS, {name: texts[name] for name in SD_SCRIPTS.paths if name in texts}, size)
    return None


def _read_shared_field(
    content: dict[str, Any], texts: Mapping[str, Any], size: tuple[int, int]
) -> ForeignSettings | None:
    """Return the settings in the JSON of a text field that several programs write; None for unknown programs.

    content   the parsed JSON
    texts     the image's other texts
    size      (width, height) of the image
    """
    if isinstance(parameters := content.get("sui_image_params"), dict):
        return _read(SWARMUI, parameters)
    if is_graph(content):  # of websites that run ComfyUI
        return settings_of(content, size=size)
    if isinstance(inner := content.get("Comment"), str):  # NovelAI's, in formats other than PNG
        content, texts = _json_object(inner) or {}, content
    of_novelai = "NovelAI" in (texts.get("Software"), str(texts.get("Source"))[:7])
    names = {as_key(name) for name in content}
    program = NOVELAI if of_novelai else next((each for each in BY_MARKS if each.marks & names), None)
    if program is None:
        return None
    return _read(program, {"prompt": texts.get("Description")} | content if program is NOVELAI else content)


def xmp_items(packet: str) -> list[str]:
    """Return the texts in the lists of an XMP packet, such as the description, and the JSON of Draw Things."""
    items = re.findall(r"<rdf:li[^<>]{0,200}>([^<]*)</", packet[:LONGEST])
    return [html.unescape(item).strip() for item in items]


def _dream_content(line: str) -> dict[str, Any]:
    """Convert InvokeAI's command line to the JSON of its later versions: {"prompt", and its names of the options}; {} if it is not
    valid."""
    try:
        arguments = shlex.split(line) if 0 < len(line) <= LONGEST_LINE else []
    except ValueError:  # an unpaired quotation mark
        return {}
    content: dict[str, Any] = {"prompt": arguments[0]} if arguments else {}
    options = re.findall(r"(?<!\S)(-[A-Za-z])\s*([^\s-]\S*)", line[line.rfind('"') + 1 :])
    return content | {_DREAM[name]: value for name, value in options if name in _DREAM}


def _json_object(text: str) -> dict[str, Any] | None:
    """Parse a JSON object; None for other texts and for one that is too large."""
    if not text or len(text) > LONGEST:
        return None
    try:
        content = parse_json(text, "the image's settings", max_values=MOST, finite=False)  # ComfyUI writes NaN
    except ProblemsError:
        return None
    return content if isinstance(content, dict) else None


def _read(program: Program, content: Mapping[str, Any], size: tuple[int, int] | None = None) -> ForeignSettings:
    """Read the settings in `content` by the program's table.
    size: (width, height) of the image, used before width and height in `content` but not before a "Size"; None: those of `content`"""
    values = {as_key(key): value for key, value in content.items()}
    pairs: dict[str, Any] = {}
    for path, name in program.paths.items():
        value = _name_or_value(values.get(path))
        value = program.values[name](value) if name in program.values else value
        if pairs.get(name) in (None, ""):
            pairs[name] = value
    sampler_and_schedule = pairs.pop(SCHEDULE + SAMPLER, None)
    sampler, schedule, width, height = (pairs.pop(key, None) for key in (SAMPLER, SCHEDULE, WIDTH, HEIGHT))
    prompts = [str(pairs.pop(key, None) or "") for key in (PROMPT, NEGATIVE)]
    prompt, negative = map(program.weights, prompts)
    settings = ForeignSettings(program.name, prompt, negative)
    settings.put(pairs)
    if "Size" in settings.pairs:
        settings.pairs["Size"] = "x".join(re.findall(r"\d+", settings.pairs["Size"]))
    elif (width and height) or size:
        settings.put({"Size": "{}x{}".format(*(size or (width, height)))})
    settings.sampled(sampler or sampler_and_schedule, schedule)
    _add_loras(settings, values)
    settings.unread = [key for key, value in content.items() if not program.reads(as_key(key)) and value not in NOTHING]
    settings.unread += dict.fromkeys(re.findall(program.functions, " ".join(prompts)))
    return settings


def _add_loras(settings: ForeignSettings, values: Mapping[str, Any]) -> None:
    """Add the LoRAs, in any of these forms: objects, pairs, a list of names and one of weights, or texts "name : 0.5"."""
    listed = _list(values.get("loras")) or _list(values.get("lora"))
    weights = _list(values.get("loraweights"))
    for number, each in enumerate(listed):
        if isinstance(each, list) and len(each) > 1:
            settings.add_lora(each[0], each[1])
        elif isinstance(each, dict):
            model = each.get("model") or each.get("lora")
            settings.add_lora(_name_or_value(model), each.get("weight"))
        elif number < len(weights):
            settings.add_lora(each, _number(weights[number]))
    if listed:
        return
    for name, value in values.items():
        if LORA.fullmatch(name) and isinstance(value, str):
            file, _, weight = value.rpartition(" : ")
            settings.add_lora(file, _number(weight))
    names = _texts(values.get("use_lora_model") or values.get("lora_model"))
    for file, weight in zip(names, _texts(values.get("lora_alpha") or values.get("lora_strength")), strict=False):
        settings.add_lora(file, _number(weight))


def _texts(value: Any) -> list[str]:
    """Split Easy Diffusion's value into texts: "a", ["a", "b"] or "['a', 'b']"."""
    if isinstance(value, list):
        return [str(each) for each in value[:100]]
    return [each.strip(" '\"") for each in str(value or "").strip("[]").split(",")]


def _invokeai_2(content: dict[str, Any]) -> ForeignSettings | None:
    """Return the settings of InvokeAI before version 3, or None.

    Its prompts are a text or a list with weights; text in [] is the negative prompt.
    """
    image = content.get("image")
    if not isinstance(image, dict):
        return None
    prompts = image.get("prompt")
    texts = [prompts] if isinstance(prompts, str) else [_name_or_value(each) for each in _list(prompts)]
    joined = ", ".join(text for text in texts if isinstance(text, str))
    replaced = {"prompt": re.sub(r"\s*\[[^\[\]]*\]", "", joined).strip(), "model": content.get("model_weights")}
    settings = _read(INVOKEAI_2, image | replaced)
    settings.negative = from_invokeai(", ".join(re.findall(r"\[([^\[\]]*)\]", joined)))
    return settings


def _list(value: Any) -> list[Any]:
    """Return the first 100 items of a list; [] for other values."""
    return value[:100] if isinstance(value, list) else []


def _name_or_value(value: Any) -> Any:
    """Return the name in an object such as a model; other values unchanged."""
    if not isinstance(value, dict):
        return value
    return next((value[key] for key in ("name", "model_name", "prompt") if isinstance(value.get(key), str)), None)


def _number(value: Any) -> float | None:
    """Return a value as float; None if it is not a number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
