"""A1111's `parameters` block: the text of an image's settings that Forge, image sites and this program write and read."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from core.diffusion.samplers import schedule_problem
from core.generation.images.a1111_controls import UNIT, hashes_in, units_of, uses_in
from core.generation.images.a1111_rows import ROWS, by_own_names, read_own, written_own, written_rows
from core.generation.images.record import ForeignSettings, ImageRecord
from core.generation.model.sources import Hashes
from core.generation.plan.stages import hires_sizes, stages_of
from core.generation.plan.upscalers import UPSCALERS, upscaler_of
from core.generation.prompt.loras import LoraTag, tag_of, use_of, without_tags
from core.record.problems import Problem
from core.settings.base import Settings, about_of
from core.settings.generation.controls import ControlUse
from core.settings.generation.generate import GenerateSettings
from core.settings.job import GenerateJob
from core.settings.samples import SAMPLER_LABELS, sampler_name

PROGRAM = "Atelier"  # as the block's version
LONGEST_TEXT = 200_000  # characters of A1111's whole block
MOST_NAMED = 100  # settings in one note

# One `Name: value` of A1111's settings; a value with commas or colons is in double quotes, escaped as in JSON.
PAIR = re.compile(r"""(\w[\w \-/().+&']{0,80}+):[ \t]*("(?:\\[\s\S]|[^\\"])*+"(?=[ \t]*(?:,|\n|\Z))|[^,\n]*)""")
JSON = re.compile(r'\s*(\[\s*)?\{\s*"')  # of programs that are not known; no prompt begins so
SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")
LABELS = SAMPLER_LABELS | {"pndm": "PLMS"}  # A1111's
# What "Automatic" is with A1111's samplers, where it is not our own schedule, which is "Uniform" there.
AUTOMATIC = {
    "dpmsolver++": "karras",
    "dpmsolver++_sde": "karras",
    "dpmsolver++_2s_a": "karras",
    "dpmsolver++_2m_sde": "exponential",
    "dpmsolver++_3m_sde": "exponential",
    "dpm_2": "karras",
    "dpm_2_a": "karras",
}
UNSCHEDULED = ("ddim", "pndm", "unipc")  # in A1111 their steps do not follow the schedule type
# A1111's names for how prompt weights are applied: (whether they are, how the text states are scaled)
EMPHASES = {"Original": (True, "original"), "No norm": (True, "none"), "None": (False, "none"), "abs": (True, "abs")}
UPSCALER_TITLES = {"None": "lanczos"}  # A1111's others are ours
# Values that leave things as they are, and what does not change an image or is read from its hashes.
NOTHING = frozenset({"", "None", "False"})
SILENT = frozenset({
    "Version", "Model", "Model hash", "VAE hash", "Hashes", "Lora hashes", "TI hashes", "TI", "Batch size", "Batch pos",
    "User", "Created Date", "Civitai metadata", "Wildcard prompt", "Wildcard negative prompt", "Template",
    "Negative Template", "Time taken", "Hires prompt template", "Hires negative prompt template", "Refiner hash",
})  # fmt: skip


HIRES = ("Hires upscale", "Hires resize")  # either turns hires fix on


# -- writing


def a1111_text(job: GenerateJob, hashes: Hashes) -> str:
    """A1111's `parameters` block: prompt with LoRA tags, negative prompt, one line of `Name: value` pairs. What A1111 has no
    name for has our own."""
    asked = job.generate
    tags = "".join(f" {tag_of(use, asked.steps)}" for use in asked.loras)
    lines = [asked.prompt + tags]
    if asked.negative_prompt:
        lines.append(f"Negative prompt: {asked.negative_prompt}")
    weights = (asked.prompt_weights, asked.emb_normalize_mode if asked.prompt_weights else "none")
    emphasis = next(name for name, known in EMPHASES.items() if known == weights)
    rows = written_rows(job, hashes)
    pairs = {
        "Steps": rows["Steps"],
        "Sampler": LABELS[asked.sampler],
        "Schedule type": _schedule_label(asked.sampler, asked.schedule_type),
        "CFG scale": rows["CFG scale"],
        "Seed": rows["Seed"],
        "Size": f"{asked.width}x{asked.height}",
        "Model hash": hashes.model[:10],
        "Model": Path(job.model.base_model).name.removesuffix(".safetensors"),
        **rows,
        "Lora hashes": ", ".join(f"{Path(name).stem}: {digest[:12]}" for name, digest in hashes.loras.items()),
        "TI hashes": ", ".join(f"{word}: {digest[:12]}" for word, digest in hashes.embeddings.items()),
        "Emphasis": emphasis if emphasis != "Original" and _brackets(asked.prompt, asked.negative_prompt) else None,
        **written_own(job),
        **_hires(job),
        **units_of(job, hashes),
        "Version": PROGRAM,
    }
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in pairs.items() if value not in (None, "")))
    return "\n".join(lines)


def _hires(job: GenerateJob) -> dict[str, Any]:
    """A1111's names for hires fix. Its size and steps are those of the first stage."""
    hires, asked = job.hires, job.generate
    if hires.highres_fix_scale is None:
        return {}
    first, second = stages_of(job)[:2]
    found: dict[str, Any] = {"Steps": first.steps, "Hires steps": asked.steps, "highres_fix_steps": None}
    if hires.highres_fix_scale > 1:
        found |= {"Hires upscale": f"{hires.highres_fix_scale:g}", "highres_fix_scale": None}
    elif asked.width and asked.height:
        found |= {"Size": "{}x{}".format(*first.size), "Hires resize": "{}x{}".format(*second.size)}
    file = hires.highres_fix_upscaler_file
    names = dict.fromkeys(("highres_fix_upscaler", "highres_fix_upscaler_file", "highres_fix_latents_upscaling"))
    return found | {"Hires upscaler": Path(file).stem if file else upscaler_of(job).title} | names


def _schedule_label(sampler: str, schedule: str) -> str | None:
    if schedule == "own":
        return "Uniform" if sampler in AUTOMATIC else None
    return next(name for name, ours in _schedule_types().items() if ours == schedule)


def _schedule_types() -> dict[str, str]:
    """{A1111's name: ours}; before its version 1.9 they ended the sampler's name."""
    labels: dict[str, str] = about_of(GenerateSettings.model_fields["schedule_type"])["labels"]
    return {label.replace("uniform", "Uniform"): name for name, label in labels.items()}


def _brackets(*texts: str) -> bool:
    return any(set("()[]") & set(text) for text in texts)


def _quoted(value: Any) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ',\n:"') else text


# -- reading


def a1111_parts(text: str) -> tuple[str, str, dict[str, str]]:
    """(prompt, negative prompt, settings) of A1111's block; without a line of settings there are none."""
    lines = text.strip().replace("\r\n", "\n").split("\n")
    at = next((number for number in reversed(range(len(lines))) if _begins(lines, number)), len(lines))
    start = next((number for number, line in enumerate(lines[:at]) if line.startswith("Negative prompt:")), at)
    prompt = "\n".join(lines[:start]).strip()
    negative = "\n".join(lines[start:at]).removeprefix("Negative prompt:").strip()
    return prompt, negative, _pairs("\n".join(lines[at:]))


def _begins(lines: Sequence[str], number: int) -> bool:
    """Whether the settings begin with this line: others follow it where a value has line breaks."""
    if not PAIR.match(lines[number].lstrip()):
        return False
    found, last = _pairs(lines[number]), number == len(lines) - 1
    if len(found) >= 3:
        return last or "Steps" in found
    return last and ("Steps" in found or (len(found) == 2 and found.keys() <= {row.key for row in ROWS} | {"Size"}))


def _pairs(line: str) -> dict[str, str]:
    """Of several with one name the first, since what comes later may be a part of another's value."""
    line, _, resources = line.partition("Civitai resources:")  # JSON, the last but one
    found: dict[str, str] = {}
    for name, value in PAIR.findall(line):
        found.setdefault(name.strip(), _unquoted(value))
    others = set(re.findall(r'"type":\s*"(\w+)"', resources)) - {"checkpoint"}
    return found | ({"Civitai resources": ", ".join(sorted(others))} if others else {})


def _unquoted(value: str) -> str:
    if len(value) >= 2 and value.startswith('"') and value.endswith('"'):
        try:
            return str(json.loads(value, strict=False))
        except ValueError:
            return value[1:-1]
    return value.strip()


def from_a1111_text(text: str) -> ImageRecord:
    """A1111's block as settings. What is not read is noted, never dropped silently."""
    if len(text) > LONGEST_TEXT:
        return ImageRecord(reason=f"This image contains a text of {len(text):,} characters, too long for settings.")
    prompt, negative, pairs = a1111_parts(text.removeprefix("\ufeff"))
    if not pairs and (not re.search(r"\w", prompt + negative) or JSON.match(prompt)):
        return ImageRecord(reason="This image contains a text, but no generation settings that are known here.")
    tags: list[LoraTag] = []
    reading = _Reading(pairs, "a1111")
    try:
        prompt, tags = without_tags(prompt)
    except ValueError as error:
        reading.note(f"The prompt was not changed: {error}", "bad-lora")
    return reading.record(prompt, negative, tags)


def from_foreign(settings: ForeignSettings) -> ImageRecord:
    """The settings of another program as a job, with notes on what differs."""
    if len(settings.prompt) + len(settings.negative) > LONGEST_TEXT:
        return ImageRecord(reason="This image contains a text that is too long for settings.")
    reading = _Reading(settings.pairs, settings.source.lower(), settings.left)
    what = f"{settings.source} weights prompts and samples differently, so the image will differ"
    reading.note(what, "other-program")
    if not settings.prompt:
        reading.note("No prompt was found in it", "no-prompt", "write it")
    tags = [LoraTag(name, unet, text) for name, unet, text in settings.loras]
    return reading.record(settings.prompt, settings.negative, tags)


class _Reading:
    """The settings of one image by A1111's names, on their way into ours.

    left   those that nothing has read yet; more: names of others that cannot be read
    """

    def __init__(self, pairs: dict[str, str], source: str, more: Sequence[str] = ()):
        self.pairs, self.left, self.source, self.more = pairs, dict(pairs), source, more
        self.notes: list[Problem] = []
        self.groups: dict[str, dict[str, Any]] = defaultdict(dict)
        # A1111 and Forge; others write its text too, with their own ways of making images
        self.of_a1111 = source == "a1111" and bool(re.match(r"[vf]?\d|neo|$", pairs.get("Version", "")))

    def note(self, what: str, slug: str, fix: str = "") -> None:
        self.notes.append(Problem(what, "the image's settings", fix, level="advice", code=f"image-settings.{slug}"))

    def take(self, name: str, usual: str = "") -> str:
        return self.left.pop(name, usual)

    def put(self, path: str, value: Any) -> None:
        group, _, name = path.partition(".")
        self.groups[group][name] = value

    def record(self, prompt: str, negative: str, tags: Sequence[LoraTag]) -> ImageRecord:
        """What was read, and notes on the rest."""
        if not self.pairs:
            self.note("It contains a prompt alone; all other settings are the defaults", "prompt-alone")
        self.groups["prompts"]["dynamic_prompts"] = False
        self.groups["generate"] |= {"prompt": prompt, "negative_prompt": negative}
        self.groups["generate"]["embeddings"] = list(_listed(self.pairs, "TI hashes"))
        self._former_names()
        self._sampler()
        self._emphasis(_brackets(prompt, negative))
        self.put("start_noise.noise_source", "device" if self.of_a1111 else "cpu")  # A1111 leaves RNG out for the GPU
        self._rows()
        self._size()
        self._hires()
        self._model()
        nets = uses_in(self.pairs, self.note)
        self.groups["controls"]["nets"] = [self._valid(net, ControlUse) for net in nets]
        self._rest()
        groups: dict[str, Any] = {
            name: self._valid(values, _group(name)) if name != "controls" else values
            for name, values in self.groups.items()
        }
        steps = GenerateSettings.model_validate(groups["generate"]).steps
        groups["generate"]["loras"] = [use_of(tag, steps) for tag in tags]
        job = GenerateJob.model_validate(groups)
        by_lora, by_word = _listed(self.pairs, "Lora hashes"), _listed(self.pairs, "TI hashes")
        hashes = Hashes(self.pairs.get("Model hash", ""), by_lora, by_word, controls=hashes_in(self.pairs))
        return ImageRecord(job=job, source=self.source, notes=self.notes, hashes=hashes)

    def _former_names(self) -> None:
        """Names of A1111's older versions and of Forge."""
        if (first := self.take("First pass size")) and SIZE.fullmatch(first):
            self.left |= {"Hires resize": self.left.get("Size", ""), "Size": first} if first != "0x0" else {}
        if "VAE" not in self.left and "Module 2" not in self.left and "Module 1" in self.left:
            self.left["VAE"] = self.take("Module 1")
        if self.left.get("Hires CFG Scale") == self.left.get("CFG scale"):
            self.take("Hires CFG Scale")

    def _rows(self) -> None:
        own = by_own_names()
        for row in ROWS:
            if row.key in self.left:
                self._read(row.key, row.path, row.from_text)
        for name in [name for name in self.left if name in own]:
            entry = own[name]
            self._read(name, entry.path, lambda text, entry=entry: read_own(entry, text))
        if "Denoising strength" in self.pairs and "image_path" not in self.pairs and not self.left.keys() & {*HIRES}:
            self.note("It was made from another image, which is not in the file", "no-initial-image", "choose it")

    def _read(self, name: str, path: str, convert: Any) -> None:
        text = self.take(name)
        try:
            self.put(path, convert(text))
        except ValueError:
            slug = "no-guidance" if name == "Guidance" else "unreadable-value"
            self.note(f"{name} '{text[:60]}' is not available and was ignored", slug)

    def _size(self) -> None:
        text = self.take("Size")
        if size := SIZE.fullmatch(text):
            self.groups["generate"] |= {"width": int(size[1]), "height": int(size[2])}
        elif text:
            self.note(f"Size '{text[:60]}' is not valid and was ignored", "unreadable-value")

    def _hires(self) -> None:
        """A1111's steps are those of the first stage, its size too; 0 steps are as many as there."""
        if not self.left.keys() & {*HIRES}:
            return
        generate, hires = self.groups["generate"], self.groups["hires"]
        scale, resize, steps = (self.take(name) for name in ("Hires upscale", "Hires resize", "Hires steps"))
        hires |= {"highres_fix_steps": generate["steps"]} if "steps" in generate else {}
        generate |= {"steps": steps} if steps not in ("", "0") else {}
        if scale:
            hires["highres_fix_scale"] = scale
        if upscaler := self.take("Hires upscaler"):
            named = {each.title: name for name, each in UPSCALERS.items()} | UPSCALER_TITLES
            setting = "highres_fix_upscaler" if upscaler in named else "highres_fix_upscaler_file"
            hires[setting] = named.get(upscaler, upscaler)
        if large := SIZE.fullmatch(resize):
            self._resize(int(large[1]), int(large[2]))
        elif resize:
            self.note(f"Hires resize '{resize[:60]}' is not valid and was ignored", "unreadable-value")

    def _resize(self, width: int, height: int) -> None:
        """Hires fix to a size in pixels, of which one side may be 0: by the scale that gives it."""
        generate, hires = self.groups["generate"], self.groups["hires"]
        small = generate.get("width") or 0, generate.get("height") or 0
        if "highres_fix_scale" in hires:  # as this program writes it: a share of the final size
            generate |= {"width": width, "height": height}
            return
        factors = [large / side for large, side in zip((width, height), small, strict=True) if large and side]
        if not factors:
            return
        scale = max(factors)
        hires["highres_fix_scale"] = scale
        wide, high = hires_sizes(small, scale)[1]
        wanted = width or wide, height or high
        if wanted == (wide, high):
            return
        if hires_sizes(wanted, 1 / scale)[0] == small:
            generate |= {"width": wanted[0], "height": wanted[1]}
            hires["highres_fix_scale"] = 1 / scale
            return
        self.note(f"A1111 cropped it to {width}x{height}; here hires fix keeps the aspect ratio", "hires-size")

    def _sampler(self) -> None:
        """The sampler by its label, and the schedule type, which may be part of the label."""
        label, schedule = self.take("Sampler"), self.take("Schedule type")
        if not label:
            return
        ending = "|".join(re.escape(each) for each in _schedule_types())
        found = re.search(rf"\s+({ending})$", label, re.IGNORECASE)
        name = label[: found.start()] if found else label
        labels = LABELS.items() | SAMPLER_LABELS.items()
        by_label = {text.lower(): own for own, text in labels} | {own: own for own in LABELS}
        sampler = by_label.get(sampler_name(name.lower()))
        if sampler is None:
            self.note(f"The sampler {label[:60]} is not available; using {SAMPLER_LABELS['ddim']}", "no-sampler")
            return
        self.put("generate.sampler", sampler)
        schedule = found[1] if found else schedule
        if known := self._schedule(sampler, schedule.lower()):
            self.put("generate.schedule_type", known)
        else:
            what = f"It was generated with another noise schedule ({schedule[:60]}), so the image will differ slightly"
            self.note(what, "noise-schedule")

    def _schedule(self, sampler: str, schedule: str) -> str | None:
        """Our schedule type for A1111's; None if the sampler does not have it."""
        if not schedule or (self.of_a1111 and sampler in UNSCHEDULED):  # before its version 1.9, none was uniform
            return "own"
        known = next((ours for name, ours in _schedule_types().items() if name.casefold() == schedule), None)
        if self.source == "a1111" and sampler in AUTOMATIC:
            known = {"own": AUTOMATIC[sampler], "uniform": "own"}.get(known or "", known)
        return known if known is not None and schedule_problem(sampler, known, "") is None else None

    def _emphasis(self, brackets: bool) -> None:
        name = self.left.get("Emphasis", "")
        if not name and brackets and (self.of_a1111 or self.source == "sd-scripts" or self._of_us):
            name = "Original"
        if name in EMPHASES:
            self.take("Emphasis")
            self.groups["generate"] |= dict(zip(("prompt_weights", "emb_normalize_mode"), EMPHASES[name], strict=True))

    @property
    def _of_us(self) -> bool:
        return self.pairs.get("Version") == PROGRAM

    def _model(self) -> None:
        if self.pairs.get("Model"):
            what = f"It was generated with the model {self.pairs['Model'][:100]}; the selected model is kept"
            self.note(what, "other-model", "choose that model to generate it again")

    def _rest(self) -> None:
        """One note that names everything that was not read and may change the image."""
        names = [
            name
            for name, value in self.left.items()
            if not (name in SILENT or UNIT.fullmatch(name) or value in NOTHING or value.startswith("Use same"))
        ]
        names += [name for name in self.more if name not in names]
        if names:
            more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
            named = ", ".join(name[:60] for name in names[:MOST_NAMED])
            self.note(f"Not available here, so the image may differ: {named}{more}", "not-read")

    def _valid(self, wanted: dict[str, Any], group: type[Settings]) -> dict[str, Any]:
        """The settings that are within range; others get a note and keep their defaults."""
        try:
            group.model_validate(wanted)
        except ValidationError as error:
            for name in dict.fromkeys(str(item["loc"][0]) for item in error.errors()):
                what = f"{group.title_of(name)} '{str(wanted[name])[:60]}' is out of range and is ignored"
                self.note(what, "out-of-range")
                del wanted[name]
        return wanted


def _group(name: str) -> type[Settings]:
    found: type[Settings] = GenerateJob.model_fields[name].annotation  # type: ignore[assignment]
    return found


def _listed(pairs: dict[str, str], name: str) -> dict[str, str]:
    """The `name: hash` pairs within one value."""
    return dict(re.findall(r"\s*([^:,]{1,200}+):\s*([0-9a-fA-F]+)", pairs.get(name, "")))
