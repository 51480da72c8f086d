"""The settings in A1111's text: how each is written and how it is read.

Most are a row of `a1111_rows`. TOPICS handle what A1111 writes in another form: several settings in one value, or one
in several.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from math import ceil, prod, sqrt
from pathlib import Path, PurePath
from typing import Any, cast

from pydantic import ValidationError

from core import __version__
from core.control.detectors import DETECTORS, lowest_confidence
from core.diffusion.samplers import schedule_problem
from core.generation.images.a1111_controls import UNIT, hashes_in, units_of, unread_in, uses_in
from core.generation.images.a1111_rows import ROWS, other_settings, other_texts, read_other, value_text
from core.generation.images.record import SAMPLERS, names_of
from core.generation.model.sources import Hashes
from core.generation.plan.stages import detail_size, hires_sizes, stages_of
from core.generation.plan.upscalers import UPSCALERS, upscaler_of
from core.generation.prompt.options import split_schedule
from core.record.bounded_json import json_or_none
from core.record.problems import Problem
from core.record.units import first_of
from core.settings.base import Settings, about_of
from core.settings.generation.controls import ControlUse
from core.settings.generation.detailer import DetailerSettings
from core.settings.generation.generate import GenerateSettings
from core.settings.job import GenerateJob
from core.settings.samples import SAMPLER_LABELS, sampler_name

PROGRAM = "Atelier"  # the first word of the block's version
MOST_NAMED = 100  # settings in one note
SIZE = re.compile(r"(\d{1,5})\s*[x\u00d7]\s*(\d{1,5})")
LABELS = SAMPLER_LABELS | {"pndm": "PLMS"}  # A1111's
# A1111's "Automatic" schedule by sampler, if it is not our "own" schedule, which A1111 calls "Uniform".
AUTOMATIC = {
    "dpmsolver++": "karras",
    "dpmsolver++_sde": "karras",
    "dpmsolver++_2s_a": "karras",
    "dpmsolver++_2m_sde": "exponential",
    "dpmsolver++_3m_sde": "exponential",
    "dpm_2": "karras",
    "dpm_2_a": "karras",
}
UNSCHEDULED = ("ddim", "pndm", "unipc")  # in A1111 their steps ignore the schedule type
# A1111's names for the application of prompt weights: (whether they are applied, how the text states are scaled)
EMPHASES = {"Original": (True, "original"), "No norm": (True, "none"), "None": (False, "none"), "abs": (True, "abs")}
UPSCALER_TITLES = {"None": "lanczos"}  # A1111's other names are ours
# Values without effect, and settings that do not change an image or are read from its hashes.
NOTHING = frozenset({"", "None", "False"})
SILENT = frozenset({
    "Version", "Model", "Model hash", "VAE hash", "Hashes", "Lora hashes", "TI hashes", "TI", "Batch size", "Batch pos",
    "User", "Created Date", "Civitai metadata", "Wildcard prompt", "Wildcard negative prompt", "Template",
    "Negative Template", "Time taken", "Hires prompt template", "Hires negative prompt template", "Refiner hash",
    "App", "Backend", "Pipeline", "Operations", "Batch", "Raw prompt", "Raw negative prompt", "Metadata Scheme", "Base Model hash",
    "Lora weights", "Civitai resources",
})  # fmt: skip
# SD.Next's, Fooocus' and Draw Things' names -> A1111's or ours.
OTHER_NAMES = {
    "Base Model": "Model",
    "Scheduler": "Schedule type",
    "Variation strength": "Variation seed strength",
    "CFG rescale": "guidance_rescale",
    "Guidance Scale": "CFG scale",
    "Hires scale": "Hires upscale",
    "Hires strength": "Denoising strength",
}
DETAILER, ONLY_MASKED = "ADetailer model", "ADetailer inpaint only masked"
# ADetailer's names that are not ours; it has no seed and no order in its text.
DETAILER_NAMES = {
    "ad_mask_k_largest": "ADetailer mask only top k largest",
    "ad_inpaint_only_masked_padding": "ADetailer inpaint padding",
    "ad_cfg_scale": "ADetailer CFG scale",
    "ad_seed": "ad_seed",
    "ad_bbox_sortby": "ad_bbox_sortby",
}
ALWAYS = ("ad_confidence", "ad_dilate_erode", "ad_mask_blur", "ad_denoising_strength", "ad_inpaint_only_masked_padding")
SWITCHES = {  # name -> ours that it turns on
    "ADetailer use inpaint width height": ("ad_inpaint_width", "ad_inpaint_height"),
    "ADetailer use separate steps": ("ad_steps",),
    "ADetailer use separate CFG scale": ("ad_cfg_scale",),
}
DETAILER_IDLE = ("ADetailer version", "ADetailer tap enable", *SWITCHES)
FACE_PREFIXES = ("face", "mediapipe_face")  # how names of ADetailer's face detectors begin
HIRES = ("Hires upscale", "Hires resize")  # either turns hires fix on


class SettingsReader:
    """Converts the settings of one image from A1111's names to jobs' settings.

    pairs      {A1111's name: text}
    source     program that wrote them, in lower case
    more       names of further settings that cannot be read
    unread     the pairs that no reader has taken yet
    notes      advice so far
    groups     {settings group: {setting: value}} so far, not validated
    is_a1111   whether A1111 or Forge wrote the text; others write its format but generate differently
    """

    def __init__(self, pairs: dict[str, str], source: str, more: Sequence[str] = ()):
        self.pairs, self.unread, self.source, self.more = pairs, dict(pairs), source, more
        self.notes: list[Problem] = []
        self.groups: dict[str, dict[str, Any]] = defaultdict(dict)
        # A1111 and Forge; others write its text too, but generate differently. SD.Next's version is a hash.
        by_a1111 = "App" not in pairs and re.match(r"[vf]?\d|neo|$", pairs.get("Version", ""))
        self.is_a1111 = source == "a1111" and bool(by_a1111)

    def note(self, what: str, slug: str, fix: str = "") -> None:
        """Add advice with the code "image-settings.<slug>"."""
        self.notes.append(Problem(what, "the image's settings", fix, level="advice", code=f"image-settings.{slug}"))

    def take(self, name: str, default: str = "") -> str:
        """Remove a name from `unread` and return its text, or `default`."""
        return self.unread.pop(name, default)

    def put(self, path: str, value: Any) -> None:
        """Store the value of a setting. path: such as "generate.steps", with its group"""
        group, _, name = path.partition(".")
        self.groups[group][name] = value

    def read(self, name: str, path: str, convert: Any) -> None:
        """Take the text of a name and store its converted value under `path`.
        convert: text -> value; if it raises ValueError, a note is added instead"""
        text = self.take(name)
        try:
            self.put(path, convert(text))
        except ValueError:
            slug = "no-guidance" if name == "Guidance" else "unreadable-value"
            self.note(f"{name} '{text[:60]}' is not available and was ignored", slug)

    def valid(self, values: dict[str, Any], group: type[Settings]) -> dict[str, Any]:
        """Remove the values that are invalid in a settings group, each with a note, and return the others. values: {setting: value}"""
        try:
            group.model_validate(values)
        except ValidationError as error:
            for name in dict.fromkeys(str(item["loc"][0]) for item in error.errors()):
                what = f"{group.title_of(name)} '{str(values[name])[:60]}' is out of range and is ignored"
                self.note(what, "out-of-range")
                del values[name]
        return values

    @property
    def by_atelier(self) -> bool:
        """Whether this program wrote the text."""
        return self.pairs.get("Version", "").partition(" ")[0] == PROGRAM


# -- sampler and schedule


def _sampler(job: GenerateJob, hashes: Hashes) -> dict[str, Any]:
    """Return {"Sampler": A1111's name, "Schedule type": A1111's name, None for its automatic one}."""
    sampler, schedule = job.generate.sampler, job.generate.schedule_type
    label = "Uniform" if sampler in AUTOMATIC else None
    if schedule != "own":
        label = next(name for name, value in _schedule_types().items() if value == schedule)
    return {"Sampler": LABELS[sampler], "Schedule type": label}


def _schedule_types() -> dict[str, str]:
    """Return {A1111's name of a schedule type: its name here}. Before A1111's version 1.9 they ended the sampler's name."""
    labels: dict[str, str] = about_of(GenerateSettings.model_fields["schedule_type"])["labels"]
    ours = {label.replace("uniform", "Uniform"): name for name, label in labels.items()}
    return ours | {"Polyexponential": "exponential"}  # with its rho of 1; another one is noted as unread


def _read_sampler(reader: SettingsReader) -> None:
    """Read the sampler by its label, and the schedule type, which may be part of the label."""
    label, schedule = reader.take("Sampler"), reader.take("Schedule type")
    if not label:
        return
    name, ending = split_schedule(label)
    labels = LABELS.items() | SAMPLER_LABELS.items()
    by_label = {text.lower(): key for key, text in labels} | {key: key for key in LABELS}
    sampler = by_label.get(sampler_name(name.lower()))
    if sampler is None and label == label.lower():  # nodes of ComfyUI write ComfyUI's names
        name, schedule_name = names_of(label, schedule)
        sampler, schedule = by_label.get(name), schedule_name or schedule
    is_exact = sampler is not None
    if sampler is None:  # the longest name that it begins with, as "DPM++ 2M SDE" for "DPM++ 2M SDE Heun"
        names = by_label | SAMPLERS
        relatives = [each for each in names if re.match(rf"{re.escape(each)}[ _]", name.lower())]
        sampler = names[max(relatives, key=len, default="ddim")]
        reader.note(f"The sampler {label[:60]} is not available; using {SAMPLER_LABELS[sampler]}", "no-sampler")
    reader.put("generate.sampler", sampler)
    schedule = ending or schedule
    if schedule_type := _schedule(reader, sampler, schedule.lower(), is_exact):
        reader.put("generate.schedule_type", schedule_type)
    else:
        what = f"The noise schedule {schedule[:60]} is not available for {SAMPLER_LABELS[sampler]}; the sampler's own is used"
        reader.note(f"{what}, so the image will differ", "noise-schedule")


def _schedule(reader: SettingsReader, sampler: str, schedule: str, is_exact: bool) -> str | None:
    """Return the schedule type for A1111's, or None if the sampler does not support it.

    schedule   A1111's name in lower case; "" for none
    is_exact   whether `sampler` is the one in the image, not a replacement
    """
    if not schedule or (is_exact and reader.is_a1111 and sampler in UNSCHEDULED):  # uniform before version 1.9
        return "own"
    schedule_type = next((value for name, value in _schedule_types().items() if name.casefold() == schedule), None)
    if reader.source == "a1111" and sampler in AUTOMATIC:
        schedule_type = {"own": AUTOMATIC[sampler], "uniform": "own"}.get(schedule_type or "", schedule_type)
    return schedule_type if schedule_type is not None and schedule_problem(sampler, schedule_type, "") is None else None


# -- prompt weights


def _emphasis(job: GenerateJob, hashes: Hashes) -> dict[str, Any]:
    """Return {"Emphasis": A1111's name for how prompt weights are applied}; None as name if it makes no difference for these prompts."""
    settings = job.generate
    weights = (settings.prompt_weights, settings.emb_normalize_mode if settings.prompt_weights else "none")
    name = next(name for name, choice in EMPHASES.items() if choice == weights)
    return {"Emphasis": name if name != "Original" and _brackets(settings.prompt, settings.negative_prompt) else None}


def _read_emphasis(reader: SettingsReader) -> None:
    """Read how prompt weights are applied. If not stated, brackets in prompts of A1111, sd-scripts and this program are weights."""
    name, generate = reader.unread.get("Emphasis", ""), reader.groups["generate"]
    brackets = _brackets(generate["prompt"], generate["negative_prompt"])
    if not name and brackets and (reader.is_a1111 or reader.source == "sd-scripts" or reader.by_atelier):
        name = "Original"
    if name in EMPHASES:
        reader.take("Emphasis")
        generate |= dict(zip(("prompt_weights", "emb_normalize_mode"), EMPHASES[name], strict=True))


def _brackets(*texts: str) -> bool:
    """Return whether any text contains round or square brackets."""
    return any(set("()[]") & set(text) for text in texts)


# -- rows


def _rows(job: GenerateJob, hashes: Hashes) -> dict[str, Any]:
    """Return {name: text} of the settings with a row, None if not written, and of those under Atelier's names."""
    return {row.key: row.text(job, hashes) for row in ROWS} | other_texts(job)


def _read_rows(reader: SettingsReader) -> None:
    """Read the settings with a row, and those under Atelier's names."""
    reader.put("start_noise.noise_source", "device" if reader.is_a1111 else "cpu")  # A1111 leaves RNG out for the GPU
    others = other_settings()
    for row in ROWS:
        if row.key in reader.unread:
            reader.read(row.key, row.path, row.from_text)
    for name in [name for name in reader.unread if name in others]:
        entry = others[name]
        reader.read(name, entry.path, lambda text, entry=entry: read_other(entry, text))
    hires = reader.unread.keys() & {*HIRES}
    if "Denoising strength" in reader.pairs and "image_path" not in reader.pairs and not hires:
        reader.note("It was made from another image, which is not in the file", "no-initial-image", "choose it")


# -- size, and hires fix


def _size(job: GenerateJob, hashes: Hashes) -> dict[str, Any]:
    """Return {"Size": "WxH"}."""
    return {"Size": f"{job.generate.width}x{job.generate.height}"}


def _read_size(reader: SettingsReader) -> None:
    """Read the size, rounded and clamped to valid sides, with a note if it changes."""
    text = reader.take("Size")
    if size := SIZE.fullmatch(text):
        sides = [min(max((int(side) + 4) // 8 * 8, 64), 4096) for side in size.groups()]  # as `Side` has them
        if sides != [int(side) for side in size.groups()]:
            what = f"The size {text} became {sides[0]}x{sides[1]}: sides are multiples of 8 from 64 to 4096"
            reader.note(what, "size")
        reader.groups["generate"] |= dict(zip(("width", "height"), sides, strict=True))
    elif text:
        reader.note(f"Size '{text[:60]}' is not valid and was ignored", "unreadable-value")


def _hires(job: GenerateJob, hashes: Hashes) -> dict[str, Any]:
    """Return {A1111's name: text} of hires fix; None as text removes Atelier's name for the same setting.

    A1111's size and steps are those of the first stage. If that has steps of its own, our setting for them is written too.
    """
    hires, settings = job.hires, job.generate
    if hires.highres_fix_scale is None:
        return {}
    first, second = stages_of(job)[:2]
    hires_steps = hires.hires_steps or settings.steps
    values: dict[str, Any] = {"Steps": first.steps, "Hires steps": hires_steps, "hires_steps": None}
    if hires.highres_fix_scale > 1:
        values |= {"Hires upscale": f"{hires.highres_fix_scale:g}", "highres_fix_scale": None}
    elif settings.width and settings.height:
        values |= {"Size": "{}x{}".format(*first.size), "Hires resize": "{}x{}".format(*second.size)}
    file = hires.highres_fix_upscaler_file
    removed = dict.fromkeys(("highres_fix_upscaler", "highres_fix_upscaler_file", "highres_fix_latents_upscaling"))
    return values | {"Hires upscaler": Path(file).stem if file else upscaler_of(job).title} | removed


def _read_hires(reader: SettingsReader) -> None:
    """Read hires fix. A1111's steps and size are those of the first stage; 0 hires steps means the same number.

    If the text also has our setting for the first stage's steps, the hires steps are the sampling steps.
    """
    if not reader.unread.keys() & {*HIRES}:
        return
    generate, hires = reader.groups["generate"], reader.groups["hires"]
    scale, resize, steps = (reader.take(name) for name in ("Hires upscale", "Hires resize", "Hires steps"))
    if steps not in ("", "0", str(generate.get("steps"))):
        group, name = (generate, "steps") if "highres_fix_steps" in hires else (hires, "hires_steps")
        group[name] = steps
    if scale:
        hires["highres_fix_scale"] = scale
    if upscaler := reader.take("Hires upscaler"):
        named = {each.title: name for name, each in UPSCALERS.items()} | UPSCALER_TITLES
        setting = "highres_fix_upscaler" if upscaler in named else "highres_fix_upscaler_file"
        hires[setting] = named.get(upscaler, upscaler)
    if scale and resize == "0x0":
        return
    if large := SIZE.fullmatch(resize):
        _resize(reader, int(large[1]), int(large[2]))
    elif resize:
        reader.note(f"Hires resize '{resize[:60]}' is not valid and was ignored", "unreadable-value")


def _resize(reader: SettingsReader, width: int, height: int) -> None:
    """Convert the target size of hires fix, in pixels, to a scale. One side may be 0: it follows from the aspect ratio."""
    generate, hires = reader.groups["generate"], reader.groups["hires"]
    small = generate.get("width") or 0, generate.get("height") or 0
    if "highres_fix_scale" in hires:  # as this program writes it: a fraction of the final size
        generate |= {"width": width, "height": height}
        return
    factors = [large / side for large, side in zip((width, height), small, strict=True) if large and side]
    if not factors:
        return
    scale = max(factors)
    hires["highres_fix_scale"] = scale
    wide, high = hires_sizes(small, scale)[1]
    target = width or wide, height or high
    if target == (wide, high):
        return
    if hires_sizes(target, 1 / scale)[0] == small:
        generate |= {"width": target[0], "height": target[1]}
        hires["highres_fix_scale"] = 1 / scale
        return
    reader.note(f"A1111 cropped it to {width}x{height}; here hires fix keeps the aspect ratio", "hires-size")


# -- files


def _model(job: GenerateJob, hashes: Hashes) -> dict[str, Any]:
    """Return {"Model hash": 10 digits, "Model": name, "Lora hashes" and "TI hashes": "name: hash, ..." or ""}."""
    return {
        "Model hash": hashes.model[:10],
        "Model": Path(job.model.base_model).name.removesuffix(".safetensors"),
        "Lora hashes": ", ".join(f"{Path(name).stem}: {digest[:12]}" for name, digest in hashes.loras.items()),
        "TI hashes": ", ".join(f"{token}: {digest[:12]}" for token, digest in hashes.embeddings.items()),
    }


def _read_model(reader: SettingsReader) -> None:
    """Read the embeddings in use; add a note that names the image's model, since the selected one is kept."""
    hashes = read_hashes(reader.pairs)
    reader.put("generate.embeddings", list(hashes.embeddings))
    model, digest = reader.pairs.get("Model", ""), hashes.model
    if model or digest:
        named = f"the model '{model[:100]}'" if model else f"a model with the hash {digest[:64]}"
        what = f"It was generated with {named}; the selected model is kept"
        reader.note(what, "other-model", "choose that model to generate it again")


def read_hashes(pairs: Mapping[str, str]) -> Hashes:
    """Return the hashes of the files in A1111's settings."""
    by_kind: dict[str, dict[str, str]] = defaultdict(dict)
    stored = json_or_none(pairs.get("Hashes", ""))  # Civitai's {"model": hash, "lora:a": hash, "embed:b": hash}
    for key, digest in stored.items() if isinstance(stored, dict) else ():
        kind, _, name = key.partition(":")
        if isinstance(digest, str) and re.fullmatch(r"[0-9a-fA-F]{1,64}", digest):
            by_kind[kind.lower()][name] = digest
    return Hashes(
        pairs.get("Model hash", "") or by_kind["model"].get("", ""),
        by_kind["lora"] | _hash_pairs(pairs, "Lora hashes"),
        by_kind["embed"] | _hash_pairs(pairs, "TI hashes"),
        controls=hashes_in(pairs),
    )


def _hash_pairs(pairs: Mapping[str, str], name: str) -> dict[str, str]:
    """Parse the value of `name`, "a: 0123, b: 4567", into {file or token: hash}."""
    # Commas may be in a name
    return dict(re.findall(r"\s*([^:]{1,200}+):\s*([0-9a-fA-F]+)\s*(?:,|$)", pairs.get(name, "")))


def _read_nets(reader: SettingsReader) -> None:
    """Read the ControlNet units into `controls.nets`."""
    nets = uses_in(reader.pairs, reader.note)
    reader.put("controls.nets", [reader.valid(net, ControlUse) for net in nets])
    reader.more = [*reader.more, *unread_in(reader.pairs)]


# -- detailer


def _detailer_names() -> dict[str, str]:
    """Return {ADetailer's name: setting of the detailer}, without its model."""
    names = [name for name in DetailerSettings.model_fields if name not in ("ad_model", "ad_model_file")]
    derived = {name: f"ADetailer {name.removeprefix('ad_').replace('_', ' ')}" for name in names}
    return {text: name for name, text in (derived | DETAILER_NAMES).items()}


def _detailer(job: GenerateJob, hashes: Hashes) -> dict[str, Any]:
    """Return {ADetailer's name: text} of the detailer; {} if it is off."""
    settings = job.detailer
    if not settings.used:
        return {}
    file = settings.ad_model_file
    values = settings.model_dump() | {"ad_confidence": lowest_confidence(settings)}
    if settings.ad_inpaint_width or settings.ad_inpaint_height:
        values["ad_inpaint_width"], values["ad_inpaint_height"] = detail_size(job)
    default = DetailerSettings().model_dump()
    written = {key for key, name in _detailer_names().items() if name in ALWAYS or values[name] != default[name]}
    texts = {key: value_text(values[name]) for key, name in _detailer_names().items() if key in written}
    switches = {key: "True" for key, names in SWITCHES.items() if any(values[name] != default[name] for name in names)}
    return {DETAILER: PurePath(file).name if file else settings.ad_model, ONLY_MASKED: "True"} | texts | switches


def _read_detailer(reader: SettingsReader) -> None:
    """Read ADetailer's settings into the detailer's.

    Its .pt files cannot be used here: a face detector becomes MTCNN, another the .onnx file of the same name.
    """
    model = reader.take(DETAILER)
    if model in ("", "None"):
        return
    if model in DETECTORS:
        reader.put("detailer.ad_model", model)
    elif not model.lower().endswith(".onnx") and model.lower().startswith(FACE_PREFIXES):
        reader.put("detailer.ad_model", "face")
        confidence = reader.take("ADetailer confidence")[:20]  # of another detector
        unused = f". Its confidence {confidence} was not taken, MTCNN's is not comparable" if confidence else ""
        reader.note(f"Faces were found by {model[:60]}; here by MTCNN, so the image will differ{unused}", "detector")
    else:
        file = PurePath(model).name
        reader.put("detailer.ad_model_file", f"{PurePath(file).stem}.onnx")
        if not file.lower().endswith(".onnx"):
            fix = f"export it, and put it into models/detectors: yolo export model={file[:60]} format=onnx"
            reader.note(f"The detailer needs {file[:60]} as an ONNX file", "detector", fix)
    if reader.take(ONLY_MASKED, "True") != "True":
        reader.more = [*reader.more, ONLY_MASKED]
    for name in DETAILER_IDLE:
        reader.take(name)
    for name, setting in _detailer_names().items():
        if name in reader.unread:
            reader.read(name, f"detailer.{setting}", str)


# -- all


Write = Callable[[GenerateJob, Hashes], Mapping[str, Any]]  # -> {A1111's name: text}; None and "" are not written
Read = Callable[[SettingsReader], None]  # takes its names from a reader and stores settings in it
# In the order in which they are read; of two that write one name, the later one wins.
TOPICS: tuple[tuple[Write, Read], ...] = (
    (_sampler, _read_sampler),
    (_emphasis, _read_emphasis),
    (_rows, _read_rows),
    (_size, _read_size),
    (_hires, _read_hires),
    (_model, _read_model),
    (units_of, _read_nets),
    (_detailer, _read_detailer),
)
# The first names, in A1111's order.
FIRST = ("Steps", "Sampler", "Schedule type", "CFG scale", "Seed", "Size", "Model hash", "Model")
FILES = ("Lora hashes", "TI hashes", "Emphasis")  # written after the rows


def written_pairs(job: GenerateJob, hashes: Hashes) -> dict[str, Any]:
    """Return {A1111's name: text} of an image's settings, in A1111's order; None and "" are not written."""
    pairs: dict[str, Any] = dict.fromkeys((*FIRST, *(row.key for row in ROWS), *FILES))
    for write, _ in TOPICS:
        pairs |= write(job, hashes)
    return pairs | {"Version": f"{PROGRAM} {__version__}"}


def read_pairs(reader: SettingsReader) -> dict[str, Any]:
    """Return {settings group: {setting: value}} from all names in the reader, with notes on those not read. "controls" is not validated.
    reader: its `groups` already contain the prompts"""
    _rename_other_names(reader)
    for _, read in TOPICS:
        read(reader)
    _note_unread(reader)
    kinds = {name: cast(type[Settings], info.annotation) for name, info in GenerateJob.model_fields.items()}
    return {
        name: reader.valid(values, kinds[name]) if name != "controls" else values
        for name, values in reader.groups.items()
    }


def _rename_other_names(reader: SettingsReader) -> None:
    """Rename settings of older A1111 versions, of Forge and of other programs that write A1111's text."""
    for name, current in OTHER_NAMES.items():
        if name in reader.unread and current not in reader.pairs:
            reader.pairs[current] = reader.unread[current] = reader.take(name)
    if (first := reader.take("First pass size")) and SIZE.fullmatch(first):
        reader.unread |= {"Hires resize": reader.unread.get("Size", ""), "Size": _first_pass(first, reader.pairs)}
    if "VAE" not in reader.unread and "Module 2" not in reader.unread and "Module 1" in reader.unread:
        reader.unread["VAE"] = reader.take("Module 1")
    if reader.unread.get("Hires CFG Scale") == reader.unread.get("CFG scale"):
        reader.take("Hires CFG Scale")


def _first_pass(text: str, pairs: Mapping[str, str]) -> str:
    """Return the size before A1111's former hires fix. 0x0 is its automatic one: about 512 x 512 pixels, sides rounded up to 64."""
    size = SIZE.fullmatch(pairs.get("Size", ""))
    if text != "0x0" or size is None:
        return text
    sides = [max(int(side), 1) for side in size.groups()]
    return "x".join(str(ceil(512 * side / sqrt(prod(sides)) / 64) * 64) for side in sides)


def _note_unread(reader: SettingsReader) -> None:
    """Add one note that names all unread settings that may change the image."""
    names = [
        name
        for name, value in reader.unread.items()
        if not (name in SILENT or UNIT.fullmatch(name) or value in NOTHING or value.startswith("Use same"))
    ]
    names += [name for name in reader.more if name not in names]
    if names:
        named = first_of([name[:100] for name in names], MOST_NAMED)
        reader.note(f"Not available here, so the image may differ: {named}", "not-read")
