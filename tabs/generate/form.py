"""The fields of the Generate tab: their values, the jobs they describe, and values from images and runs."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from core.assess.recommended import recommended
from core.assess.results import best_strength
from core.engine.run_grid import word_values
from core.families.locate import model_path
from core.families.trained_size import default_guidance, trained_size
from core.formats.detect import identify
from core.formats.hashes import HashMemo
from core.generation.images.gallery import without_controls
from core.generation.model.embeddings import Embedding, find_embedding, find_embeddings, without_repeated_tokens
from core.generation.model.index import facts_of_file
from core.generation.model.library import Scan, find, find_file, portable_name
from core.generation.model.other_files import NETS, find_refiner, net_of_image
from core.generation.model.sources import model_hash
from core.generation.prompt.changes import with_settings
from core.generation.prompt.loras import LoraTag, split_tags, with_prompt_loras
from core.generation.prompt.wildcards import has_variants
from core.record.file_titles import file_stem, is_average
from core.record.problems import Problem, ProblemsError, collected
from core.record.workspace import Workspace, display_path, real_path
from core.settings.base import FRESH_SEEDS, Declared, Settings, declared, setting, value_of
from core.settings.check import build
from core.settings.generation.controls import ControlUse
from core.settings.generation.generate import LoraUse
from core.settings.job import GenerateJob, TrainJob
from core.settings.model import ModelSettings
from core.settings.presets.files import to_values
from tabs.form.form_values import entries, read, usable
from tabs.generate.view import strengths

if TYPE_CHECKING:
    from core.generation.prompt.sample_prompts import SamplePrompt
    from tabs.context import Page


class TabSettings(Settings):
    """Fields of the tab that are not settings of a generation."""

    base_model: str = setting(
        "",
        hint="same as in Train",
        names="path or name",
        holds="checkpoint",
        help="A model from the list, or a path. Empty is the one selected in Train.",
    )
    control_net: str = setting(
        "",
        title="Add a ControlNet",
        hint="choose, or write a path",
        names="path or name",
        holds="controlnet, controlnet_lllite",
        help="A ControlNet or ControlNet-LLLite of models/ or of a run, or its path. Each that is added has its own control image.",
    )
    compare: bool = setting(
        False,
        title="Compare with the base model",
        help="Generates each image without LoRAs too, or if there are none, without ControlNets, with the same seed.",
    )


class ModelOverrides(Settings):
    """Model settings that override those of Train or, with another base model, those of the model."""

    vae: str | None = setting(
        None,
        title="VAE",
        hint="as in Train",
        names="path or name",
        holds="vae",
        help="A VAE file to decode with. Empty is the one selected in Train, or with another base model the model's own.",
    )
    clip_skip: int | None = setting(
        None,
        within=(1, 12),
        hint="as in Train",
        help="The text encoder layer to use, counted from the last; many anime models use 2. Empty is as in Train. SDXL has 2 for 1.",
    )
    prediction: Literal["auto", "epsilon", "v"] = setting(
        "auto",
        title="Prediction type",
        labels={"auto": "auto", "epsilon": "epsilon (noise)", "v": "v-prediction"},
        help="What the model predicts. Auto detects it; set it where images come out as noise or gray.",
    )


ELSEWHERE = ("model", "memory")  # groups of a generation that are set in Train
_BUILT_IN = {each.name: each.path for each in declared(GenerateJob) if each.group in GenerateJob.__annotations__}
# By name; by path if a built-in setting or an earlier group of a package has that name
OF_JOB: dict[str, Declared] = {}
for _entry in declared(GenerateJob):
    if _entry.group not in ELSEWHERE:
        _taken = _entry.name in OF_JOB or _BUILT_IN.get(_entry.name, _entry.path) != _entry.path
        OF_JOB[_entry.path if _taken else _entry.name] = _entry
MODEL = tuple(ModelOverrides.model_fields)
ENTRIES = OF_JOB | entries(TabSettings, "beside") | entries(ModelOverrides, "model")
EMBEDDINGS = ENTRIES["embeddings"]
FIELDS = tuple(name for name, entry in OF_JOB.items() if entry.kind != "list")  # lists have editors of their own
OF_MODEL = ("width", "height", "guidance_scale")  # an empty field means the model's value
MAX_LORAS = 20
SMALL_MODEL = 448  # pixels of a side of the trained size
NO_MODEL = "generate.no-model"  # problem code: the model of an image is not on this machine
NO_FILE = "generate.no-file"  # problem code: another file of an image is not on this machine
# {setting: function that finds a file which images name without its folder, or raises ProblemsError}
FIND_BY_NAME: dict[str, Callable[[str, Workspace], Path]] = {
    "refiner_checkpoint": lambda name, workspace: find_refiner(name, workspace, None),
    "highres_fix_upscaler_file": partial(find, "upscaler"),
}
# Programs that never state the clip skip: their images leave it as in Train
NO_CLIP_SKIP = ("sd-scripts", "novelai", "draw things", "another program")
PRESET = (*OF_JOB, "base_model", *MODEL)  # fields that presets store


def start_values(project: TrainJob | None = None) -> dict[str, Any]:
    """The values of a new user. The guidance scale is that of Train's samples, which suits the model."""
    values = {name: json_value(entry.default) for name, entry in ENTRIES.items()}
    if project is not None:
        values["guidance_scale"] = project.samples.guidance_scale
    return values | {"model": {}}


def json_value(value: Any) -> Any:
    """The value as JSON would return it: a list for a tuple."""
    return list(value) if isinstance(value, tuple) else value


def is_set(name: str, values: Mapping[str, Any]) -> bool:
    """Whether a field differs from its default."""
    return bool(values.get(name) != json_value(ENTRIES[name].default))


def model_values(model: ModelSettings, project: ModelSettings) -> dict[str, Any]:
    """The values of the fields for model settings; empty fields where they equal those of Train."""
    unset = {name: ENTRIES[name].default for name in MODEL}
    overrides = {name: getattr(model, name) for name in MODEL if getattr(model, name) != getattr(project, name)}
    if project.model_copy(update=overrides) == model and not overrides.items() & unset.items():
        return {"base_model": "", "model": {}} | unset | overrides
    others = {name: value for name, value in to_values(model).items() if name not in MODEL}
    return {"base_model": model.base_model, "model": others} | {name: getattr(model, name) for name in MODEL}


def values_of(
    job: GenerateJob,
    before: dict[str, Any],
    workspace: Workspace,
    project: ModelSettings,
    net_hashes: Mapping[str, str],
) -> tuple[dict[str, Any], list[Problem]]:
    """Return (values of the fields that generate `job` again, advice on files that are not on this machine).

    before      the current values          project   the model settings of Train
    net_hashes  {name of a ControlNet in an image: its hash}
    """
    values = before | {name: json_value(value_of(job, OF_JOB[name].path)) for name in FIELDS}
    values |= _escaped_prompt(job)
    notes: list[Problem] = []
    if not values["dynamic_prompts"] and has_variants(job.generate.prompt):
        what, fix = (
            "Dynamic prompts are off, since its prompt contains {} or __ as text",
            "turn them on for other prompts",
        )
        notes.append(Problem(what, "prompts.dynamic_prompts", fix, "advice", code="generate.dynamic-off"))
    values |= _paths_here(values, workspace, notes)
    values["loras"], values["styles"] = [], list(job.prompts.styles)
    for use in job.generate.loras:
        missing: list[Problem] = []
        if path := collected(missing, find, "lora", use.file, workspace):
            use_here = use.model_copy(update={"file": portable_name(path, workspace)})
            values["loras"].append(use_here.model_dump(exclude_none=True))
        strength = strengths(use.strength, use.text_encoder_strength)
        notes += [replace(each, what=f"{each.what} (strength {strength})") for each in missing]
    values["nets"] = [net for use in job.controls.nets if (net := _net_here(use, net_hashes, workspace, notes))]
    embeddings = [collected(notes, find_embeddings, text, workspace) or () for text in job.generate.embeddings]
    values["embeddings"] = [word.setting(workspace) for each in embeddings for word in each]
    for name, find_named in FIND_BY_NAME.items():
        missing = []
        if values[name] and collected(missing, find_named, values[name], workspace) is None:
            values[name] = None
        notes += [replace(each, fix=f"it is left out; {each.fix}") for each in missing]
    stated = job.model.base_model
    file = find_file(stated, workspace)
    if file is None:
        what, fix = f"The model '{stated}' is not on this machine", "download it, or choose another"
        if "/" not in stated:
            what = f"The model '{stated}' was not found in the models folder"
            fix = "choose it: images keep only the names of models outside of it"
        notes.append(Problem(f"{what}; the chosen one is kept", "model.base_model", fix, "advice", code=NO_MODEL))
    else:
        train_file = find_file(project.base_model, workspace)
        name = project.base_model if train_file is not None and real_path(train_file) == real_path(file) else stated
        values |= model_values(job.model.model_copy(update={"base_model": name}), project)
    return values, [replace(each, level="advice") for each in notes]


def with_chosen_model(job: GenerateJob, digest: str, chosen: Iterable[str], workspace: Workspace) -> GenerateJob:
    """The job of an image with the one of the `chosen` models that it names, if that is not found by this name, which is all that
    images keep of models outside of models and outputs. digest: of the image's model; "" if unknown"""
    if find_file(job.model.base_model, workspace) is not None:
        return job
    for name in chosen:
        path = find_file(name, workspace)
        if path is None or portable_name(path, workspace) != job.model.base_model:
            continue
        if _has_hash(path, digest, workspace):
            return with_settings(job, model={"base_model": name})
    return job


def _has_hash(path: Path, digest: str, workspace: Workspace) -> bool:
    """Whether a model's hash begins with `digest`, which may be ""."""
    family = facts_of_file(path).family if digest else None
    memo = HashMemo(workspace.private / "hashes.json")
    return not digest or (bool(family) and model_hash(path, family or "", memo, None).startswith(digest.lower()))


def is_model(chosen: str, name: str, digest: str, workspace: Workspace) -> bool:
    """Whether the chosen model has the name, and the hash if there is one, that another program's image states."""
    path = find_file(chosen, workspace)
    return path is not None and file_stem(name) == file_stem(path.name) and _has_hash(path, digest, workspace)


def model_values_in(
    job: GenerateJob, source: str, usual: int | None, workspace: Workspace, notes: list[Problem]
) -> dict[str, Any]:
    """Values of the model settings in an image whose base model is not identified. Programs leave out the model's own VAE and clip
    skip 1; the prediction type is the chosen model's. source: the program; usual: the clip skip of an empty field; notes: collects
    problems"""
    skip = job.model.clip_skip or (None if source in NO_CLIP_SKIP else 1)
    values: dict[str, Any] = {"vae": None, "clip_skip": None if skip == (usual or 1) else skip}
    if job.model.prediction != "auto" and source != "atelier":
        values["prediction"] = job.model.prediction
    if text := job.model.vae:
        name = Path(text).name
        paths = [path for _, path in Scan(workspace).vaes() if name in (path.name, path.stem)]
        values["vae"] = portable_name(paths[0], workspace) if paths else None
        notes += [] if paths else [_not_found("VAE", text, "model.vae")]
    if job.model.compatibility != "none":
        what, fix = "It was made with sd-scripts compatibility", "set it in Train to generate the image again"
        notes.append(Problem(what, "model.compatibility", fix, "advice", code="generate.other-compatibility"))
    return values


def _paths_here(values: dict[str, Any], workspace: Workspace, notes: list[Problem]) -> dict[str, str]:
    """{field: path on this machine} of the files that an image's settings name by `portable_name`. notes: collects problems of
    missing ones"""
    paths = {}
    for name in FIELDS:
        entry, text = OF_JOB[name], values[name]
        if entry.names != "path" or entry.group == "output" or not text:
            continue
        path = find_file(text, workspace)
        if path is None:
            notes.append(_not_found(entry.title, text, entry.path))
        elif text.startswith(("models/", "outputs/")):
            paths[name] = display_path(path)
    return paths


def _not_found(title: str, text: str, where: str) -> Problem:
    """The advice about a missing file of an image. text: its path, or the name of a file outside of models and outputs"""
    fix = "choose another file, or empty the field"
    if "/" not in text:
        fix = "choose it again: images keep only the names of files outside of models and outputs"
    return Problem(f"{title}: '{text}' was not found", where, fix, "advice", code=NO_FILE)


def _net_here(
    use: ControlUse, hashes: Mapping[str, str], workspace: Workspace, notes: list[Problem]
) -> dict[str, Any] | None:
    """The values of an image's ControlNet with paths of this machine; None if its file is missing. hashes: {name: hash}; notes:
    collects problems"""
    missing: list[Problem] = []
    result = collected(missing, net_of_image, use.file, hashes.get(use.file, ""), workspace)
    if result is None:
        notes += [replace(each, what=f"{each.what} (weight {use.weight:g})") for each in missing]
        return None
    net, fits = result
    paths: dict[str, Any] = {"file": portable_name(net, workspace)}
    if not fits:
        what = f"The ControlNet {net.name} has the name but not the hash of the one that the image was made with"
        notes.append(Problem(what, NETS, "compare, or choose another file", "advice", code="controls.other-hash"))
    if use.image:
        path = find_file(use.image, workspace)
        paths["image"] = display_path(path) if path is not None else None
        if path is None:
            notes.append(_not_found("Control image", use.image, NETS))
    return use.model_copy(update=paths).model_dump(exclude_defaults=True)


def _escaped_prompt(job: GenerateJob) -> dict[str, Any]:
    """The prompt of an image with its braces escaped and dynamic prompts on: images store plain prompts. With sd-scripts
    compatibility it stays as it is, since dynamic prompts would then also change the seed."""
    text = job.generate.prompt
    if job.prompts.dynamic_prompts or job.generate.compatibility == "kohya":
        return {}
    escaped = text.replace("{", "\\{").replace("}", "\\}")
    readable = not has_variants(escaped) and " --" not in text
    return {"prompt": escaped, "dynamic_prompts": True} if readable else {}


def ratio_size(ratio: str, native: tuple[int, int]) -> tuple[int, int]:
    """(width, height) for a ratio such as "2:3" with about the area of the model's native size, in multiples of 64 (8 for a small
    model)."""
    wide, high = (int(part) for part in ratio.split(":"))
    area = native[0] * native[1]
    step = 64 if area >= SMALL_MODEL**2 else 8
    width, height = (area * wide / high) ** 0.5, (area * high / wide) ** 0.5
    return max(1, round(width / step)) * step, max(1, round(height / step)) * step


def sides(values: dict[str, Any], project: TrainJob, workspace: Workspace) -> tuple[int, int]:
    """(width, height) of the images of these values: an empty one is the model's trained size, 512 if that is unknown."""
    defaults = default_values(values, project, workspace)
    width, height = (values[side] or int(defaults.get(side, 512)) for side in ("width", "height"))
    return width, height


def default_texts(values: dict[str, Any], project: TrainJob, workspace: Workspace) -> dict[str, str]:
    """{field: text of its value while it is empty} with the chosen model."""
    defaults = default_values(values, project, workspace)
    return {name: f"{defaults[name]:g}" if name in defaults else "default" for name in OF_MODEL}


def default_values(values: dict[str, Any], project: TrainJob, workspace: Workspace) -> dict[str, float]:
    """{field: value that applies while it is empty} with the chosen model; {} if the model is unknown."""
    path = find_file(str(values["base_model"] or project.model.base_model), workspace)
    try:
        if path is None:
            return {}
        size = trained_size(path, "auto" if values["base_model"] else project.model.family)
        return dict(zip(OF_MODEL, (*size, default_guidance(path)), strict=True))
    except (ProblemsError, OSError, StopIteration):
        return {}


def job_of(values: dict[str, Any], project: TrainJob) -> GenerateJob:
    """The job of these values. Raises ProblemsError with all invalid ones."""
    groups: dict[str, dict[str, Any]] = {}
    for name in FIELDS:
        groups.setdefault(OF_JOB[name].group, {})[OF_JOB[name].name] = values.get(name)
    generate = groups["generate"]
    generate["loras"] = [use for use in values.get("loras", []) if LoraUse.model_validate(use).used]
    generate["embeddings"] = list(values.get("embeddings", []))
    groups["controls"]["nets"] = [use for use in values.get("nets", []) if ControlUse.model_validate(use).used]
    groups["prompts"]["styles"] = list(values.get("styles", []))
    model = to_values(project.model)
    if values.get("base_model"):
        # Settings of Train's model (VAE, prediction) do not apply to another one; those that came with this one from a run
        # or an image do.
        name, stored = str(values["base_model"]).strip(), values.get("model", {})
        model = stored if stored.get("base_model") == name else {"base_model": name}
    model |= {name: values[name] for name in MODEL if values.get(name) != ENTRIES[name].default}
    return build(GenerateJob, groups | {"model": model, "memory": to_values(project.memory)})


def new_seed() -> int:
    return secrets.randbelow(FRESH_SEEDS)


def with_seed(job: GenerateJob) -> GenerateJob:
    """`job` with a seed, so that two jobs start from the same noise."""
    if job.generate.seed is not None:
        return job
    return job.model_copy(update={"generate": job.generate.model_copy(update={"seed": new_seed()})})


def jobs_to_generate(job: GenerateJob, compare: bool, project: TrainJob) -> list[GenerateJob]:
    """[job]; with `compare` [the job with the base model alone, the job], both with the same seed and with the LoRAs of the
    prompt moved to the LoRAs.

    A job with LoRAs or embeddings is compared with its own model without them; any other with the model of Train (`project`), or
    if it has this model, without its ControlNets.
    Raises ProblemsError for invalid LoRAs in the prompt, and if there is nothing to compare.
    """
    if not compare:
        return [job]
    job = with_prompt_loras(with_seed(job))
    if job.generate.loras or job.generate.embeddings:
        bare = job.generate.model_copy(update={"loras": [], "embeddings": []})
        return [job.model_copy(update={"generate": bare}), job]
    if job.model == project.model and job.controls.used:
        return [without_controls(job), job]
    if job.model == project.model:
        what = "There is nothing to compare: no LoRA, embedding, ControlNet or other model is chosen"
        fix = "add a LoRA, an embedding or a ControlNet, choose another model than in Train, or turn off the comparison"
        raise ProblemsError.one(what, "Compare with the base model", fix, code="generate.nothing-to-compare")
    return [job.model_copy(update={"model": project.model}), job]


def add_lora(values: dict[str, Any], path: Path, workspace: Workspace, strength: float = 1.0) -> dict[str, Any]:
    """Return the values with a LoRA: at this strength, or turned on if it is there already. Raises ProblemsError for too many."""
    name = portable_name(path, workspace)
    loras = list(values.get("loras", []))
    if any(use["file"] == name for use in loras):
        return values | {"loras": [use | {"enabled": True} if use["file"] == name else use for use in loras]}
    if len(loras) >= MAX_LORAS:
        what = f"There are {MAX_LORAS} LoRAs already"
        raise ProblemsError.one(what, "LoRAs", "remove one first", "generate.too-many-loras")
    return values | {"loras": [*loras, {"file": name, "strength": strength}]}


def files_to_use(page: Page, facts: Mapping[str, Any], file: str = "") -> list[Mapping[str, Any]]:
    """The checkpoint `file` of a run, else the `recommended` or its last one, and the others of its step, since an embedding has one
    for each word; [] if the run has none. facts: the run's snapshot"""
    best, _ = (None, "") if file else recommended(page.workspace.runs / facts["run"], facts.get("best"))
    name = best.name if best is not None else file
    saved = [each for each in facts["files"] if not is_average(each["name"])]
    chosen = [each for each in facts["files"] if each["name"] == name] if name else saved[-1:] or facts["files"][-1:]
    return chosen + [
        each for each in saved for one in chosen if one in saved and each != one and each["step"] == one["step"]
    ]


def chosen_embeddings(values: Mapping[str, Any], page: Page) -> list[Embedding]:
    """The embeddings that are chosen in the form, without those that are missing, which the start reports."""
    embeddings = (
        collected(list[Problem](), find_embeddings, text, page.workspace) or () for text in values["embeddings"]
    )
    return without_repeated_tokens([word for words in embeddings for word in words if page.roots.holds(word.path)])


def generate_with(page: Page, name: str, file: str = "") -> dict[str, Any]:
    """Fill in the form with a run's checkpoint `file`, else the `recommended` or its last one: as LoRA at its best strength with the
    run's base model and the guidance scale of its samples, as base model, as ControlNet, or as embeddings. Unless the user wrote a
    prompt, also with the settings of the first sample. Returns the values. Raises ProblemsError if the run has no checkpoint."""
    facts, folder = page.engine.snapshot(name), page.workspace.runs / name
    paths = [Path(each["path"]) for each in files_to_use(page, facts, file)]
    if not paths:
        raise ProblemsError.one("This run has no saved file", name, "wait until it has saved one", code="run.no-file")
    state, project = page.project.tab_state("Generate"), page.project.job
    before = stored_values(state, project) | {"embeddings": []}
    chosen = portable_name(paths[0], page.workspace)
    job = page.readable_job(name)  # without it, its LoRA can still be used
    if job is not None:
        base = find_file(job.model.base_model, page.workspace)
        guidance = job.samples.guidance_scale
        if guidance is None and job.method.traits.base_trains and base is not None:
            guidance = default_guidance(base)  # the saved model does not state its base's
        before["guidance_scale"] = guidance
        sample = _first_sample(job, base)
        if sample and before["prompt"] in _automatic_prompts(state):
            state, before = state | {"prompt_of_run": sample["prompt"]}, before | sample
    if job is not None and job.method.traits.new_words:
        embeddings = [
            find_embedding(text, page.workspace).short_setting(page.workspace)
            for text in word_values(job, list(filter(Path.exists, paths)), page.workspace)
        ]
        values = before | {"loras": [], "embeddings": embeddings} | model_values(job.model, project.model)
    elif job is not None and job.method.traits.control_images:
        values = before | {"loras": [], "nets": [{"file": chosen, **_first_control(job, base)}]}
        values |= model_values(job.model, project.model)
    elif job is not None and job.method.traits.base_trains:  # its VAE is in the file
        model = job.model.model_copy(update={"base_model": chosen, "vae": None})
        values = before | {"loras": []} | model_values(model, project.model)
    else:
        without_others = before | {"loras": [use for use in before["loras"] if use["file"] == chosen]}
        values = add_lora(without_others, paths[0], page.workspace, best_strength(folder, paths[0].name) or 1.0)
        values |= model_values(job.model, project.model) if job is not None else {}
    page.project.keep("Generate", state | {"values": values})
    return values


def _sample_of(job: TrainJob, base: Path | None) -> SamplePrompt | None:
    """The run's first sample; None if it has none or its prompts cannot be read."""
    from core.training.loop.samples import prompts_of

    try:
        return next((each for each in prompts_of(job, base) if each.prompt), None)
    except (ProblemsError, OSError):
        return None


def _first_control(job: TrainJob, base: Path | None) -> dict[str, Any]:
    """The control image of the run's first sample."""
    sample = _sample_of(job, base)
    return {"image": sample.control} if sample is not None and sample.control else {}


def _first_sample(job: TrainJob, base: Path | None) -> dict[str, Any]:
    """Values that generate the run's first sample again; {} without one."""
    sample = _sample_of(job, base)
    if sample is None:
        return {}
    return {
        "prompt": sample.prompt,
        "negative_prompt": sample.negative,
        "width": sample.width,
        "height": sample.height,
        "steps": sample.steps,
        "guidance_scale": sample.guidance,
        "seed": sample.seed,
        "sampler": sample.sampler,
        "prompt_weights": job.samples.prompt_weights,
        "zero_terminal_snr": "auto",
    }


def _automatic_prompts(state: dict[str, Any]) -> tuple[str, ...]:
    """Prompts that the user did not write: an empty one, the default, and that of the previous run."""
    return "", str(ENTRIES["prompt"].default), str(state.get("prompt_of_run", ""))


def stored_values(state: dict[str, Any], project: TrainJob | None = None) -> dict[str, Any]:
    """The values in a tab state; missing or invalid ones are those of `start_values`."""
    values, stored = start_values(project), state.get("values", {})
    model = stored.get("model") if isinstance(stored, dict) else None
    stored = {name: _renewed(name, value) for name, value in stored.items()} if isinstance(stored, dict) else {}
    return values | usable(ENTRIES, stored) | ({"model": model} if isinstance(model, dict) else {})


def _renewed(name: str, value: Any) -> Any:
    """Convert a number that an earlier version stored as text."""
    entry = ENTRIES.get(name)
    if entry is not None and isinstance(value, str) and entry.kind in ("int", "float"):
        with suppress(ProblemsError):
            return read(entry, value, optional=entry.optional)
    return value


def marked_for_zero_snr(
    values: dict[str, Any], project: TrainJob, workspace: Workspace, lora: Callable[[str], Path]
) -> list[str]:
    """Names of the chosen files that were trained with zero terminal SNR, by their metadata. Missing files are skipped, since the
    start reports them. lora: returns the file of a LoRA's name"""
    lookups: list[tuple[Callable[..., Any], str]] = [
        (lambda text: model_path(text, workspace), str(values["base_model"]).strip() or project.model.base_model),
        *((lora, use["file"]) for use in values["loras"] if LoraUse.model_validate(use).used),
        *((lora, tag.name) for tag in tags_of(str(values["prompt"]))),
        *((lambda text: find_embedding(text, workspace).path, text) for text in values["embeddings"]),
    ]
    names = []
    for find_path, name in lookups:
        try:
            path = find_path(name)
            names += [path.name] if identify(path).zero_terminal_snr else []
        except (ProblemsError, OSError):
            continue
    return names


def tags_of(prompt: str) -> list[LoraTag]:
    """The LoRA tags of a prompt; [] if it is incomplete."""
    with suppress(ValueError):
        return split_tags(prompt)[1]
    return []
