"""The settings of a generated image, written into its PNG and read back.

Two text chunks: `parameters`, the block that A1111, Forge and image sites read, and `atelier`, the whole job as JSON.
Names of models and LoRAs are relative to the project or the models folder, so no path of the machine is revealed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from core.diffusion.samplers import schedule_problem
from core.families.word_weights import runs_of, wrong_weight
from core.generation.foreign_metadata import Told, told_by
from core.generation.initial import blur_of
from core.generation.prompt.loras import tag_of, use_of
from core.generation.prompt.tags import LoraTag, without_tags
from core.generation.upscalers import upscaler_of
from core.record.bounded_json import parse_json
from core.record.problems import Problem, ProblemsError
from core.record.workspace import PROJECT, Workspace, real_path
from core.settings.base import Settings, declared, value_of
from core.settings.generation.generate import GenerateSettings
from core.settings.generation.refiner import RefinerSettings
from core.settings.job import GenerateJob
from core.settings.samples import SAMPLER_LABELS

if TYPE_CHECKING:
    from PIL.PngImagePlugin import PngInfo

CHUNK = "atelier"
FORMAT = 3  # 1: before prompt weights and zero terminal SNR; 2: before variants and options in prompts
EXIF_USER_COMMENT = 0x9286
EXIF_FOLDER = 0x8769
EXIF_DESCRIPTION = 0x010E
MOST_EXIF = 65_000  # bytes
ZERO_SNR = "Zero Terminal SNR"  # in A1111's block
LONGEST_TEXT = 200_000  # characters of A1111's whole block
LONGEST_LINE = 20_000  # characters of A1111's last line; a longer one is not a list of settings

# One `Name: value` of A1111's last line; a value with commas or colons is in double quotes, escaped as in JSON.
PARAMETER = re.compile(r'\s*(\w[\w \-/]*):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')


@dataclass(frozen=True)
class Hashes:
    """SHA-256 as hex text; for LoRAs, by their names in the settings, the one A1111 shows (tensors only); for
    embeddings, by their tokens, and for refiners, by their names in the settings, of the whole file."""

    model: str = ""
    loras: dict[str, str] = field(default_factory=dict)
    embeddings: dict[str, str] = field(default_factory=dict)
    refiners: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ImageRecord:
    """The settings found in an image.

    job       settings that generate it again; None if there are none that can be used
    source    "atelier", "a1111", "comfyui" ...; "" if there is no job
    reason    why there is no job, in one sentence
    notes     what could not be used as it is
    """

    job: GenerateJob | None = None
    source: str = ""
    reason: str = ""
    notes: list[Problem] = field(default_factory=list)
    hashes: Hashes = field(default_factory=Hashes)


def portable_name(path: str | Path, workspace: Workspace) -> str:
    """A name without the machine's folders: `models/...` or `outputs/...` for files in those folders, relative for
    other files in the project, else the bare file name. `library.find_lora` and `formats.hub.resolve` find it
    on any machine that has the file."""
    resolved = real_path(Path(path).expanduser())
    for root, prefix in ((workspace.models, "models/"), (workspace.outputs, "outputs/"), (PROJECT, "")):
        if resolved.is_relative_to(root.resolve()) and resolved != root.resolve():
            return prefix + resolved.relative_to(root.resolve()).as_posix()
    return resolved.name


# -- writing


def png_info(job: GenerateJob, hashes: Hashes) -> PngInfo:
    """The text chunks for one image. `job` has the settings of this very image: its seed, its size, count 1."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("parameters", a1111_text(job, hashes))
    info.add_text(CHUNK, _content(job, hashes))
    return info


def exif_of(job: GenerateJob, hashes: Hashes) -> bytes:
    """The same for JPEG and WebP: A1111's block as UserComment, as A1111 writes it, and our JSON as ImageDescription.

    EXIF has 64 KB. Where both are longer the JSON is left out, where the block is, too.
    """
    from PIL.Image import Exif

    comment = b"UNICODE\0" + a1111_text(job, hashes).encode("utf-16-be", "surrogatepass")
    for text in (_content(job, hashes), ""):
        exif = Exif()
        exif.get_ifd(EXIF_FOLDER)[EXIF_USER_COMMENT] = comment
        if text:
            exif[EXIF_DESCRIPTION] = text
        if len(found := exif.tobytes()) <= MOST_EXIF:
            return found
    return b""


def _content(job: GenerateJob, hashes: Hashes) -> str:
    """The job as JSON in ASCII. How its files were written is no setting of an image, and may name folders of the machine."""
    content = {
        "format": FORMAT,
        "job": job.model_dump(mode="json", exclude={"output"}),
        "hashes": asdict(hashes),
    }
    return json.dumps(content)


def a1111_text(job: GenerateJob, hashes: Hashes, version: str = "Atelier") -> str:
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
        "Version": version,
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
    """A1111's names for the refiner, which it shows with its hash."""
    name = job.refiner.refiner_checkpoint
    if not name:
        return {}
    digest = hashes.refiners.get(name, "")[:10]
    shown = Path(name).name.removesuffix(".safetensors") + (f" [{digest}]" if digest else "")
    return {"Refiner": shown, "Refiner switch at": f"{job.refiner.refiner_switch_at:g}"}


def _schedule_label(schedule: str) -> str | None:
    names = {own: name for name, own in SCHEDULE_TYPES.items() if own != "own"}
    return names[schedule].title().replace("Sgm", "SGM") if schedule in names else None


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ',\n:"') else text


# -- reading


def read_image_metadata(path: str | Path) -> ImageRecord:
    """The settings an image was generated with: Atelier's own chunk, else what another program wrote (PNG text or EXIF)."""
    from core.dataset.images.opening import BrokenImage, open_image

    try:
        with open_image(path) as image:
            texts = _texts(image)
            comment, ours = _exif_texts(image)
            size = image.size
    except BrokenImage as error:
        return ImageRecord(reason=f"The image {error}.")
    if CHUNK in texts or ours:
        return _from_chunk(texts.get(CHUNK) or ours)
    if (told := told_by(texts, comment, size)) is not None:
        return from_told(told)
    block = texts.get("parameters") or comment
    if block:
        return from_a1111_text(block)
    return ImageRecord(reason="This image contains no settings; a website or program may have removed them.")


def _texts(image: Any) -> dict[str, str]:
    """The text chunks. They are usually before the pixels; if ours is not, the rest of the file is read."""
    from core.dataset.images.opening import LARGE_PIXELS

    small = image.width * image.height <= LARGE_PIXELS
    if image.format == "PNG" and small and not {CHUNK, "parameters"} & image.info.keys():
        with suppress(Exception):  # truncated or damaged pixels raise a dozen kinds of errors
            image.load()
    return {key: value for key, value in image.info.items() if isinstance(key, str) and isinstance(value, str)}


def _exif_texts(image: Any) -> tuple[str, str]:
    """(UserComment, where A1111 keeps its block in JPEG and WebP; our JSON)"""
    try:
        exif = image.getexif()
        described = exif.get(EXIF_DESCRIPTION, "")
        ours = described if isinstance(described, str) and described.startswith('{"format"') else ""
        return user_comment(exif), ours
    except Exception:  # damaged EXIF raises a dozen kinds of errors
        return "", ""


def user_comment(exif: Any) -> str:
    """The text of UserComment in Pillow's EXIF; "" for none."""
    raw = exif.get_ifd(EXIF_FOLDER).get(EXIF_USER_COMMENT, b"")
    if not isinstance(raw, bytes) or len(raw) <= 8:
        return ""
    name, body = raw[:8], raw[8:]
    if not name.startswith(b"UNICODE"):
        return body.decode("iso2022_jp" if name.startswith(b"JIS") else "utf-8", errors="replace").rstrip("\0")
    if body[:2] in (b"\xfe\xff", b"\xff\xfe"):
        return body.decode("utf-16", errors="replace").rstrip("\0")
    # The zero bytes of Latin letters and spaces show the byte order: A1111 writes big-endian whatever the file's is.
    first, second = body[::2].count(0), body[1::2].count(0)
    big = first > second or (first == second and exif.endian == ">")
    return body.decode("utf-16-be" if big else "utf-16-le", errors="replace").rstrip("\0")


def _from_chunk(text: str) -> ImageRecord:
    try:
        content = parse_json(text, "the image's settings")
        if content["format"] > FORMAT:
            return ImageRecord(
                reason="This image was generated by a newer version of Atelier; update to read its settings."
            )
        if content["format"] == 1:
            content["job"]["generate"] |= {"prompt_weights": False, "zero_terminal_snr": "off"}
        if content["format"] < FORMAT:
            content["job"]["prompts"] = {"dynamic_prompts": False}
        job = GenerateJob.model_validate(content["job"])
        stored = content.get("hashes", {})
        others = (
            {str(name): str(digest) for name, digest in stored.get(kind, {}).items()}
            for kind in ("loras", "embeddings", "refiners")
        )
        hashes = Hashes(str(stored.get("model", "")), *others)
    except (ProblemsError, ValueError, KeyError, TypeError, AttributeError, ValidationError):
        return ImageRecord(reason="The settings in this image are damaged or were edited.")
    return ImageRecord(job=job, source="atelier", hashes=hashes)


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


def from_told(told: Told) -> ImageRecord:
    """The same of what another program wrote."""
    if len(told.prompt) + len(told.negative) > LONGEST_TEXT:
        return ImageRecord(reason="This image contains a text that is too long for settings.")
    notes = [_advice(f"{told.source} weighs and samples in ways of its own, so the image will differ", "other-program")]
    if "Denoising strength" in told.pairs:
        notes.append(_advice("It was made from another image, which is not in the file", "no-initial-image"))
    tags = [LoraTag(name, unet, text) for name, unet, text in told.loras]
    return _from_pairs(told.prompt, told.negative, told.pairs, notes, tags, told.source.lower())


def _from_pairs(
    prompt: str,
    negative: str,
    pairs: dict[str, str],
    notes: list[Problem],
    tags: Sequence[LoraTag] = (),
    source: str = "a1111",
) -> ImageRecord:
    steps = int(pairs["Steps"]) if pairs.get("Steps", "")[:6].isdecimal() else 0
    loras = [use_of(tag, steps or GenerateSettings().steps) for tag in tags]
    wanted: dict[str, Any] = {"prompt": prompt, "negative_prompt": negative, "loras": loras}
    wanted["embeddings"] = list(_listed(pairs, "TI hashes"))
    for name, setting_name, convert in (
        ("Steps", "steps", int),
        ("CFG scale", "guidance_scale", float),
        ("Seed", "seed", int),
    ):
        _take(wanted, notes, pairs, name, setting_name, convert)
    _take_size(wanted, notes, pairs)
    _take_sampler(wanted, notes, pairs)
    wanted["prompt_weights"] = pairs.get("Emphasis") != "None"
    if wanted["prompt_weights"] and pairs.get("Emphasis") != "No norm" and _weighs(prompt, negative):
        notes.append(
            _advice(
                "Prompt weights were scaled to the original mean, so the image will differ slightly", "prompt-weights"
            )
        )
    wanted["zero_terminal_snr"] = "on" if pairs.get("Noise schedule") == ZERO_SNR else "auto"
    kept = _valid(wanted, notes)
    clip_skip = int(pairs["Clip skip"]) if pairs.get("Clip skip", "").isdecimal() else None
    model: dict[str, Any] = {"clip_skip": clip_skip} if clip_skip and 1 <= clip_skip <= 12 else {}
    if pairs.get("Model"):
        notes.append(
            _advice(
                f"It was generated with the model {pairs['Model']}; the selected model is kept",
                "other-model",
                "choose that model to generate it again",
            )
        )
    groups = {"generate": kept, "model": model, "refiner": _taken_refiner(notes, pairs)}
    job = GenerateJob.model_validate(groups | {"prompts": {"dynamic_prompts": False}})
    hashes = Hashes(pairs.get("Model hash", ""), _listed(pairs, "Lora hashes"), _listed(pairs, "TI hashes"))
    return ImageRecord(job=job, source=source, notes=notes, hashes=hashes)


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


def _take_size(wanted: dict[str, Any], notes: list[Problem], pairs: dict[str, str]) -> None:
    size = re.fullmatch(r"(\d{1,5})x(\d{1,5})", pairs.get("Size", ""))
    if size:
        wanted["width"], wanted["height"] = int(size[1]), int(size[2])
    elif "Size" in pairs:
        notes.append(_advice(f"Size '{pairs['Size']}' is not valid and was ignored", "unreadable-value"))


def _taken_refiner(notes: list[Problem], pairs: dict[str, str]) -> dict[str, Any]:
    """The refiner by its name without the hash."""
    name = re.sub(r"\s*\[[0-9a-fA-F]+\]$", "", pairs.get("Refiner", ""))
    if not name:
        return {}
    wanted: dict[str, Any] = {"refiner_checkpoint": name}
    _take(wanted, notes, pairs, "Refiner switch at", "refiner_switch_at", float)
    return _valid(wanted, notes, RefinerSettings)


SCHEDULE_TYPES = {  # A1111's names, at the end of a sampler's in files before its 1.9
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
    """The settings that are within range; the others are noted and keep their defaults."""
    try:
        group.model_validate(wanted)
    except ValidationError as error:
        for name in dict.fromkeys(str(item["loc"][0]) for item in error.errors()):
            notes.append(
                _advice(f"{group.title_of(name)} '{wanted[name]}' is out of range and is ignored", "out-of-range")
            )
            del wanted[name]
    return wanted


def one_image(
    job: GenerateJob,
    *,
    seed: int,
    width: int,
    height: int,
    workspace: Workspace,
    model_path: Path,
    vae_path: Path | None,
    lora_paths: Mapping[str, Path],
    embeddings: Sequence[str] = (),
    zero_terminal_snr: bool = False,
    refiner_path: Path | None = None,
) -> GenerateJob:
    """The job that generates one image of `job` again: its seed and size, count 1, and portable names for its files.

    embeddings  as named in the settings, already portable
    zero_terminal_snr   whether it was in effect, whatever the files say later
    """
    loras = [
        use.model_copy(update={"file": portable_name(lora_paths[use.file], workspace)}) for use in job.generate.loras
    ]
    generate = job.generate.model_copy(
        update={
            "seed": seed,
            "width": width,
            "height": height,
            "count": 1,
            "loras": loras,
            "embeddings": list(embeddings),
            "zero_terminal_snr": "on" if zero_terminal_snr else "off",
        }
    )
    groups: dict[str, Any] = {}
    for entry in declared(GenerateJob):  # files of packages' settings too
        path = value_of(job, entry.path)
        if entry.names.startswith("path") and path and entry.group not in ("model", "generate", "memory"):
            group = groups.get(entry.group, getattr(job, entry.group))
            groups[entry.group] = group.model_copy(update={entry.name: portable_name(path, workspace)})
    if refiner_path is not None:
        own = {"refiner_checkpoint": portable_name(refiner_path, workspace)}
        groups["refiner"] = job.refiner.model_copy(update=own)
    vae = portable_name(vae_path, workspace) if vae_path is not None else None
    model = {"base_model": portable_name(model_path, workspace), "vae": vae}
    return job.model_copy(update=groups | {"generate": generate, "model": job.model.model_copy(update=model)})
