"""A1111's `parameters` block: the text of an image's settings that Forge, image sites and this program write and read."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from core import extensions
from core.diffusion.samplers import schedule_problem
from core.families.word_weights import runs_of, wrong_weight
from core.generation.a1111_controls import hashes_in, units_of, uses_in
from core.generation.foreign_metadata import ForeignSettings
from core.generation.guidances import GUIDANCES, own_settings
from core.generation.image_record import Hashes, ImageRecord
from core.generation.initial import blur_of
from core.generation.prompt.loras import tag_of, use_of
from core.generation.prompt.tags import LoraTag, without_tags
from core.generation.upscalers import upscaler_of
from core.record.problems import Problem
from core.settings.base import Settings
from core.settings.generation.controls import ControlUse
from core.settings.generation.generate import GenerateSettings
from core.settings.generation.refiner import RefinerSettings
from core.settings.job import GenerateJob
from core.settings.samples import SAMPLER_LABELS

PROGRAM = "Atelier"  # as the block's version
ZERO_SNR = "Zero Terminal SNR"  # value of A1111's "Noise schedule"
GUIDANCE = "Guidance"  # not in A1111
NOISE = {"cpu": "CPU", "device": "GPU"}  # A1111's names of where noise is generated
LONGEST_TEXT = 200_000  # characters of A1111's whole block
LONGEST_LINE = 20_000  # characters of A1111's last line; a longer one is not a list of settings

# One `Name: value` of A1111's last line; a value with commas or colons is in double quotes, escaped as in JSON.
PARAMETER = re.compile(r'\s*(\w[\w \-/]*):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')


# -- writing


def a1111_text(job: GenerateJob, hashes: Hashes) -> str:
    """A1111's `parameters` block: prompt with LoRA tags, negative prompt, one line of `Name: value` pairs."""
    asked = job.generate
    tags = "".join(f" {tag_of(use, asked.steps)}" for use in asked.loras)
    lines = [asked.prompt + tags]
    if asked.negative_prompt:
        lines.append(f"Negative prompt: {asked.negative_prompt}")
    brackets = any(set("()[]") & set(text) for text in (asked.prompt, asked.negative_prompt))
    pairs = {
        "Steps": asked.steps,
        "Sampler": SAMPLER_LABELS[asked.sampler],
        "Schedule type": _schedule_label(asked.schedule_type),
        "CFG scale": "" if asked.guidance_scale is None else f"{asked.guidance_scale:g}",
        "Seed": asked.seed,
        "Size": f"{asked.width}x{asked.height}",
        "Model hash": hashes.model[:10],
        "Model": Path(job.model.base_model).name.removesuffix(".safetensors"),
        "VAE": Path(job.model.vae).name if job.model.vae else None,
        "Clip skip": job.model.clip_skip,
        "Lora hashes": ", ".join(f"{Path(name).stem}: {digest[:12]}" for name, digest in hashes.loras.items()),
        "TI hashes": ", ".join(f"{word}: {digest[:12]}" for word, digest in hashes.embeddings.items()),
        # A1111's names for weights without restoring the original mean, and for brackets taken literally.
        "Emphasis": ("No norm" if asked.prompt_weights else "None") if brackets else None,
        **_stages(job),
        **_refiner(job, hashes),
        "Noise schedule": ZERO_SNR if asked.zero_terminal_snr == "on" else None,
        **_guidance(job),
        **units_of(job, hashes),
        "RNG": NOISE[job.start_noise.noise_source],
        "Version": PROGRAM,
    }
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in pairs.items() if value not in (None, "")))
    return "\n".join(lines)


def _stages(job: GenerateJob) -> dict[str, Any]:
    """A1111's names for image to image and hires fix."""
    given, hires, scale = job.image_to_image, job.hires, job.hires.highres_fix_scale
    found: dict[str, Any] = {}
    if given.image_path or scale is not None:
        found["Denoising strength"] = f"{given.strength:g}"
    if given.image_path and given.mask_path:
        found |= {"Mask blur": blur_of(job), "Mask mode": "Inpaint not masked" if given.mask_invert else None}
        found["Masked content"] = given.masked_content.replace("_", " ") if given.masked_content != "original" else None
        if given.inpaint_area == "masked":
            found |= {"Inpaint area": "Only masked", "Masked area padding": given.mask_padding}
    if scale is not None and scale > 1:
        found |= {"Hires upscale": f"{scale:g}", "Hires steps": job.generate.steps}
        file = hires.highres_fix_upscaler_file
        found["Hires upscaler"] = Path(file).stem if file else upscaler_of(job).title
    return found


def _refiner(job: GenerateJob, hashes: Hashes) -> dict[str, Any]:
    """A1111's names for the refiner, with its hash."""
    name = job.refiner.refiner_checkpoint
    if not name:
        return {}
    digest = hashes.refiners.get(name, "")[:10]
    shown = Path(name).name.removesuffix(".safetensors") + (f" [{digest}]" if digest else "")
    return {"Refiner": shown, "Refiner switch at": f"{job.refiner.refiner_switch_at:g}"}


def _guidance(job: GenerateJob) -> dict[str, Any]:
    """The kind of guidance unless it is classic, and its settings that differ from their defaults, by our names."""
    own, kind = own_settings(job), job.generate.guidance
    changed = own.model_dump(exclude_defaults=True) if own is not None else {}
    return {} if kind == "classic" else {GUIDANCE: kind} | changed


def _schedule_label(schedule: str) -> str | None:
    names = {own: name for name, own in SCHEDULE_TYPES.items() if own != "own"}
    return names[schedule].title().replace("Sgm", "SGM") if schedule in names else None


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ',\n:"') else text


# -- reading


def a1111_parts(text: str) -> tuple[str, str, dict[str, str]]:
    """(prompt, negative prompt, settings) of A1111's block; without a line of settings there are none."""
    lines = text.strip().replace("\r\n", "\n").split("\n")
    pairs: dict[str, str] = {}
    if len(lines[-1]) <= LONGEST_LINE and PARAMETER.match(lines[-1]):
        found = {name.strip(): _unquoted(value) for name, value in PARAMETER.findall(lines[-1])}
        if "Steps" in found or len(found) >= 3:  # a shorter last line is part of the prompt
            pairs = found
            lines = lines[:-1]
    start = next((number for number, line in enumerate(lines) if line.startswith("Negative prompt:")), len(lines))
    prompt = "\n".join(lines[:start]).strip()
    return prompt, "\n".join(lines[start:]).removeprefix("Negative prompt:").strip(), pairs


def from_a1111_text(text: str) -> ImageRecord:
    """A1111's block as settings. Differences to this program are noted, never dropped silently."""
    if len(text) > LONGEST_TEXT:
        return ImageRecord(reason=f"This image contains a text of {len(text):,} characters, too long for settings.")
    prompt, negative, pairs = a1111_parts(text)
    if not pairs:
        return ImageRecord(reason="This image contains a text, but no generation settings.")
    try:
        text, tags = without_tags(prompt)
    except ValueError as error:
        return _from_pairs(prompt, negative, pairs, [_advice(f"The prompt was not changed: {error}", "bad-lora")])
    return _from_pairs(text, negative, pairs, [], tags)


def from_foreign(settings: ForeignSettings) -> ImageRecord:
    """The settings of another program as a job, with notes on what differs."""
    if len(settings.prompt) + len(settings.negative) > LONGEST_TEXT:
        return ImageRecord(reason="This image contains a text that is too long for settings.")
    notes = [
        _advice(f"{settings.source} weights prompts and samples differently, so the image will differ", "other-program")
    ]
    if "Denoising strength" in settings.pairs:
        notes.append(_advice("It was made from another image, which is not in the file", "no-initial-image"))
    tags = [LoraTag(name, unet, text) for name, unet, text in settings.loras]
    return _from_pairs(settings.prompt, settings.negative, settings.pairs, notes, tags, settings.source.lower())


def _from_pairs(
    prompt: str,
    negative: str,
    pairs: dict[str, str],
    notes: list[Problem],
    tags: Sequence[LoraTag] = (),
    source: str = "a1111",
) -> ImageRecord:
    steps = _whole(pairs.get("Steps", ""))
    loras = [use_of(tag, steps or GenerateSettings().steps) for tag in tags]
    wanted: dict[str, Any] = {"prompt": prompt, "negative_prompt": negative, "loras": loras}
    wanted["embeddings"] = list(_listed(pairs, "TI hashes"))
    _take(wanted, notes, pairs, "Steps", "steps", int)
    _take(wanted, notes, pairs, "CFG scale", "guidance_scale", float)
    _take(wanted, notes, pairs, "Seed", "seed", int)
    _take_size(wanted, notes, pairs)
    _take_sampler(wanted, notes, pairs)
    wanted["prompt_weights"] = pairs.get("Emphasis") != "None"
    if wanted["prompt_weights"] and pairs.get("Emphasis") != "No norm" and _weighs(prompt, negative):
        what = "Prompt weights were scaled to the original mean, so the image will differ slightly"
        notes.append(_advice(what, "prompt-weights"))
    wanted["zero_terminal_snr"] = "on" if pairs.get("Noise schedule") == ZERO_SNR else "auto"
    kept = _valid(wanted, notes)
    clip_skip = _whole(pairs.get("Clip skip", ""))
    model: dict[str, Any] = {"clip_skip": clip_skip} if clip_skip and 1 <= clip_skip <= 12 else {}
    if pairs.get("Model"):
        what = f"It was generated with the model {pairs['Model']}; the selected model is kept"
        notes.append(_advice(what, "other-model", "choose that model to generate it again"))
    groups = _guided(kept, notes, pairs) | {"start_noise": {"noise_source": _noise_source(pairs, source)}}
    groups |= {"generate": kept, "model": model, "refiner": _taken_refiner(notes, pairs)}
    nets = uses_in(pairs, lambda what, slug, fix: notes.append(_advice(what, slug, fix)))
    groups |= {
        "prompts": {"dynamic_prompts": False},
        "controls": {"nets": [_valid(net, notes, ControlUse) for net in nets]},
    }
    job = GenerateJob.model_validate(groups)
    by_lora, by_word = _listed(pairs, "Lora hashes"), _listed(pairs, "TI hashes")
    hashes = Hashes(pairs.get("Model hash", ""), by_lora, by_word, controls=hashes_in(pairs))
    return ImageRecord(job=job, source=source, notes=notes, hashes=hashes)


def _noise_source(pairs: dict[str, str], source: str) -> str:
    """A1111 leaves RNG out for the GPU; NV emulates an NVIDIA GPU. Other programs do not store it: the CPU is assumed."""
    theirs = source == "a1111" and re.match(r"[vf]?\d|$", pairs.get("Version", ""))
    return "cpu" if pairs.get("RNG", "GPU" if theirs else "CPU").upper() == "CPU" else "device"


def _guided(wanted: dict[str, Any], notes: list[Problem], pairs: dict[str, str]) -> dict[str, Any]:
    """Set the kind of guidance in `wanted`; returns {its group: its own settings}."""
    name = pairs.get(GUIDANCE, "classic")
    extensions.load()
    kind = GUIDANCES.get(name)
    if kind is None:
        notes.append(
            _advice(f"The guidance {name[:40]} is not available; using classifier-free guidance", "no-guidance")
        )
        return {}
    wanted["guidance"] = name
    own = {key: pairs[key] for key in kind.settings.model_fields if key in pairs} if kind.settings else {}
    return {name: _valid(own, notes, kind.settings)} if kind.settings else {}


def _weighs(*texts: str) -> bool:
    return any(not wrong_weight(text) and any(weight != 1 for _, weight in runs_of(text)) for text in texts)


def _listed(pairs: dict[str, str], name: str) -> dict[str, str]:
    """The `name: hash` pairs within one value."""
    return dict(re.findall(r"\s*([^:,]+):\s*([0-9a-fA-F]+)", pairs.get(name, "")))


def _advice(what: str, slug: str, fix: str = "") -> Problem:
    return Problem(what, "the image's settings", fix, level="advice", code=f"image-settings.{slug}")


def _unquoted(value: str) -> str:
    if len(value) >= 2 and value.startswith('"') and value.endswith('"'):
        try:
            return str(json.loads(value))
        except ValueError:
            return value[1:-1]
    return value.strip()


def _take(
    wanted: dict[str, Any], notes: list[Problem], pairs: dict[str, str], name: str, setting_name: str, convert: Any
) -> None:
    if name in pairs:
        try:
            wanted[setting_name] = convert(pairs[name])
        except ValueError:
            notes.append(_advice(f"{name} '{pairs[name]}' is not valid and was ignored", "unreadable-value"))


def _whole(text: str) -> int:
    """A whole number of a few digits; 0 for all else, which is said where the setting is taken."""
    return int(text) if re.fullmatch(r"\d{1,6}", text) else 0


def _take_size(wanted: dict[str, Any], notes: list[Problem], pairs: dict[str, str]) -> None:
    size = re.fullmatch(r"(\d{1,5})x(\d{1,5})", pairs.get("Size", ""))
    if size:
        wanted["width"], wanted["height"] = int(size[1]), int(size[2])
    elif "Size" in pairs:
        notes.append(_advice(f"Size '{pairs['Size']}' is not valid and was ignored", "unreadable-value"))


def _taken_refiner(notes: list[Problem], pairs: dict[str, str]) -> dict[str, Any]:
    """The refiner's settings, its name without the hash."""
    name = re.sub(r"\s*\[[0-9a-fA-F]+\]$", "", pairs.get("Refiner", ""))
    if not name:
        return {}
    wanted: dict[str, Any] = {"refiner_checkpoint": name}
    _take(wanted, notes, pairs, "Refiner switch at", "refiner_switch_at", float)
    return _valid(wanted, notes, RefinerSettings)


SCHEDULE_TYPES = {  # A1111's names; before its version 1.9 they ended the sampler's name
    "uniform": "uniform",
    "karras": "karras",
    "exponential": "exponential",
    "sgm uniform": "sgm",
    "beta": "beta",
    "automatic": "own",
}
_SCHEDULED = re.compile(rf"\s+({'|'.join(SCHEDULE_TYPES)})$", re.IGNORECASE)


def _take_sampler(wanted: dict[str, Any], notes: list[Problem], pairs: dict[str, str]) -> None:
    """The sampler by its label, and the schedule type, which may be part of the label."""
    label = pairs.get("Sampler")
    if label is None:
        return
    found = _SCHEDULED.search(label)
    plain = label[: found.start()] if found else label
    by_label = {text.lower(): name for name, text in SAMPLER_LABELS.items()} | {name: name for name in SAMPLER_LABELS}
    if plain.lower() not in by_label:
        notes.append(_advice(f"The sampler {label} is not available; using {SAMPLER_LABELS['ddim']}", "no-sampler"))
        return
    wanted["sampler"] = by_label[plain.lower()]
    schedule = found[1] if found else pairs.get("Schedule type", "Automatic")
    known = SCHEDULE_TYPES.get(schedule.lower())
    if known is not None and schedule_problem(wanted["sampler"], known, "") is None:
        wanted["schedule_type"] = known
        return
    what = f"It was generated with another noise schedule ({schedule}), so the image will differ slightly"
    notes.append(_advice(what, "noise-schedule"))


def _valid(wanted: dict[str, Any], notes: list[Problem], group: type[Settings] = GenerateSettings) -> dict[str, Any]:
    """The settings that are within range; others get a note and keep their defaults."""
    try:
        group.model_validate(wanted)
    except ValidationError as error:
        for name in dict.fromkeys(str(item["loc"][0]) for item in error.errors()):
            what = f"{group.title_of(name)} '{wanted[name]}' is out of range and is ignored"
            notes.append(_advice(what, "out-of-range"))
            del wanted[name]
    return wanted
