"""Fields of the Generate tab: their values, conversion to and from generation jobs, and values loaded from images and runs."""

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
from core.engine.run_grid import embedding_values
from core.families.locate import model_path
from core.families.trained_size import default_guidance, trained_size
from core.formats.detect import identify
from core.formats.hashes import HashMemo
from core.generation.images.gallery import without_controls
from core.generation.model.embeddings import Embedding, find_embedding, find_embeddings, without_repeated_tokens
from core.generation.model.index import facts_of_file
from core.generation.model.library import Scan, find, find_file, portable_name
from core.generation.model.other_files import NETS, find_refiner, net_of_image
from core.generation.model.sources import Hashes, has_hash, model_hash
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
from tabs.form.form_values import entries, read, valid_values
from tabs.generate.view import strengths

if TYPE_CHECKING:
    from core.generation.prompt.sample_prompts import SamplePrompt
    from tabs.context import Page


class TabSettings(Settings):
    """Fields of the Generate tab that are not settings of GenerateJob."""

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
    """Fields of the Generate tab that override model settings: those of Train, or the detected ones of another base model."""

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
    """Return the default form values. With `project`, the guidance scale is that of the sample settings in Train."""
    values = {name: json_value(entry.default) for name, entry in ENTRIES.items()}
    if project is not None:
        values["guidance_scale"] = project.samples.guidance_scale
    return values | {"model": {}}


def json_value(value: Any) -> Any:
    """Return `value` as JSON stores it: a tuple becomes a list."""
    return list(value) if isinstance(value, tuple) else value


def is_set(name: str, values: Mapping[str, Any]) -> bool:
    """Return whether the value of field `name` differs from its default."""
    return bool(values.get(name) != json_value(ENTRIES[name].default))


def model_values(model: ModelSettings, project: ModelSettings) -> dict[str, Any]:
    """Return the form values {"base_model", "model", vae, clip_skip, prediction} that select the settings `model`.

    project: model settings of Train. If overriding vae, clip_skip and prediction of `project` gives `model`, "base_model" and "model"
    are empty (as in Train). Otherwise "base_model" is that of `model`, and "model" has its settings except the overrides.
    """
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
    hashes: Hashes,
) -> tuple[dict[str, Any], list[Problem]]:
    """Return (form values that generate the images of `job` again, advice about files that are missing on this machine).

    before      current form values; fields that `job` does not set stay
    project     model settings of Train
    hashes      of the image's files
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
    values |= _located_paths(values, workspace, notes)
    values["loras"], values["styles"] = [], list(job.prompts.styles)
    memo = HashMemo(workspace.private / "hashes.json")
    for use in job.generate.loras:
        missing: list[Problem] = []
        if path := collected(missing, find, "lora", use.file, workspace):
            use_here = use.model_copy(update={"file": portable_name(path, workspace)})
            values["loras"].append(use_here.model_dump(exclude_none=True))
            if not has_hash(path, hashes.loras.get(use.file, ""), memo):
                notes.append(_other_hash("LoRA", path.name, "generate.loras"))
        strength = strengths(use.strength, use.text_encoder_strength)
        notes += [replace(each, what=f"{each.what} (strength {strength})") for each in missing]
    values["nets"] = [net for use in job.controls.nets if (net := _located_net(use, hashes.controls, workspace, notes))]
    embeddings = [collected(notes, find_embeddings, text, workspace) or () for text in job.generate.embeddings]
    values["embeddings"] = [word.setting(workspace) for each in embeddings for word in each]
    for word in (word for each in embeddings for word in each):
        if not has_hash(word.path, hashes.embeddings.get(word.name, ""), memo):
            notes.append(_other_hash("embedding", word.path.name, "generate.embeddings"))
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


def with_chosen_model(job: GenerateJob, digest: str, models: Iterable[str], workspace: Workspace) -> GenerateJob:
    """Return `job` with its base model replaced by the one of `models` with the same file name, if its stored name is not found.

    Images store only the file name of models outside of models and outputs.
    models: names or paths of base models; digest: hash of the image's model, which must match unless it is ""
    """
    if find_file(job.model.base_model, workspace) is not None:
        return job
    for name in models:
        path = find_file(name, workspace)
        if path is None or portable_name(path, workspace) != job.model.base_model:
            continue
        if _has_hash(path, digest, workspace):
            return with_settings(job, model={"base_model": name})
    return job


def _has_hash(path: Path, digest: str, workspace: Workspace) -> bool:
    """Return whether the model's hash begins with `digest`; True for "", False if the file's family is unknown."""
    family = facts_of_file(path).family if digest else None
    memo = HashMemo(workspace.private / "hashes.json")
    return not digest or (bool(family) and model_hash(path, family or "", memo, None).startswith(digest.lower()))


def is_model(chosen: str, name: str, digest: str, workspace: Workspace) -> bool:
    """Return whether the file of model `chosen` has the same stem as `name` and a hash that begins with `digest`; "" matches any."""
    path = find_file(chosen, workspace)
    if path is None or (name and file_stem(name) != file_stem(path.name)):
        return False
    return _has_hash(path, digest, workspace)


def model_values_in(
    job: GenerateJob, source: str, default_clip_skip: int | None, workspace: Workspace, notes: list[Problem]
) -> dict[str, Any]:
    """Return form values {"vae", "clip_skip", maybe "prediction"} for an image whose base model is not identified.

    source             program that wrote the image; most leave out clip skip 1 and the model's own VAE
    default_clip_skip  clip skip that an empty field stands for, None for the model's
    notes              list to which advice is appended
    """
    skip = job.model.clip_skip or (None if source in NO_CLIP_SKIP else 1)
    values: dict[str, Any] = {"vae": None, "clip_skip": None if skip == (default_clip_skip or 1) else skip}
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


def _located_paths(values: dict[str, Any], workspace: Workspace, notes: list[Problem]) -> dict[str, str]:
    """Return {field: path on this machine} for path fields that an image stores as "models/..." or "outputs/...".

    notes: list to which advice about missing files is appended
    """
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
    """Return advice that a file of an image is missing.

    title  of the field      text  stored path, or a bare file name      where  path of the setting
    """
    fix = "choose another file, or empty the field"
    if "/" not in text:
        fix = "choose it again: images keep only the names of files outside of models and outputs"
    return Problem(f"{title}: '{text}' was not found", where, fix, "advice", code=NO_FILE)


def _located_net(
    use: ControlUse, hashes: Mapping[str, str], workspace: Workspace, notes: list[Problem]
) -> dict[str, Any] | None:
    """Return the form values of an image's ControlNet with paths of this machine; None if the ControlNet file is missing.

    hashes: {name of a ControlNet in the image: its hash}; notes: list to which advice is appended
    """
    missing: list[Problem] = []
    result = collected(missing, net_of_image, use.file, hashes.get(use.file, ""), workspace)
    if result is None:
        notes += [replace(each, what=f"{each.what} (weight {use.weight:g})") for each in missing]
        return None
    net, fits = result
    paths: dict[str, Any] = {"file": portable_name(net, workspace)}
    if not fits:
        notes.append(_other_hash("ControlNet", net.name, NETS))
    if use.image:
        path = find_file(use.image, workspace)
        paths["image"] = display_path(path) if path is not None else None
        if path is None:
            notes.append(_not_found("Control image", use.image, NETS))
    return use.model_copy(update=paths).model_dump(exclude_defaults=True)


def _other_hash(kind: str, name: str, where: str) -> Problem:
    """Return the advice about a file that has the name but not the hash of the image's file. kind: "LoRA", "embedding" ..."""
    what = f"The {kind} {name} has the name but not the hash of the one that the image was made with"
    return Problem(what, where, "compare, or choose another file", "advice", code="generate.other-hash")


def _escaped_prompt(job: GenerateJob) -> dict[str, Any]:
    """Return {"prompt", "dynamic_prompts": True} with the braces of an image's plain prompt escaped; {} to leave both as they are.

    {} if dynamic prompts are already on, with sd-scripts compatibility (dynamic prompts would change its seed), or if the escaped
    prompt would still be read as variants or options.
    """
    text = job.generate.prompt
    if job.prompts.dynamic_prompts or job.generate.compatibility == "kohya":
        return {}
    escaped = text.replace("{", "\\{").replace("}", "\\}")
    readable = not has_variants(escaped) and " --" not in text
    return {"prompt": escaped, "dynamic_prompts": True} if readable else {}


def ratio_size(ratio: str, native: tuple[int, int]) -> tuple[int, int]:
    """Return (width, height) with aspect ratio `ratio`, such as "2:3", and about the area of `native` (width, height).

    Sides are multiples of 64 pixels; of 8 if `native` has less than SMALL_MODEL ** 2 pixels.
    """
    wide, high = (int(part) for part in ratio.split(":"))
    area = native[0] * native[1]
    step = 64 if area >= SMALL_MODEL**2 else 8
    width, height = (area * wide / high) ** 0.5, (area * high / wide) ** 0.5
    return max(1, round(width / step)) * step, max(1, round(height / step)) * step


def sides(values: dict[str, Any], project: TrainJob, workspace: Workspace) -> tuple[int, int]:
    """Return (width, height) in pixels of the images to generate; empty fields are the model's trained size, or 512 if unknown."""
    defaults = default_values(values, project, workspace)
    width, height = (values[side] or int(defaults.get(side, 512)) for side in ("width", "height"))
    return width, height


def default_texts(values: dict[str, Any], project: TrainJob, workspace: Workspace) -> dict[str, str]:
    """Return {field: placeholder} for width, height and guidance scale: the chosen model's value, or "default" if unknown."""
    defaults = default_values(values, project, workspace)
    return {name: f"{defaults[name]:g}" if name in defaults else "default" for name in OF_MODEL}


def default_values(values: dict[str, Any], project: TrainJob, workspace: Workspace) -> dict[str, float]:
    """Return the chosen model's {"width", "height", "guidance_scale"}, which apply while the fields are empty; {} if unknown."""
    path = find_file(str(values["base_model"] or project.model.base_model), workspace)
    try:
        if path is None:
            return {}
        size = trained_size(path, "auto" if values["base_model"] else project.model.family)
        return dict(zip(OF_MODEL, (*size, default_guidance(path)), strict=True))
    except (ProblemsError, OSError, StopIteration):
        return {}


def job_of(values: dict[str, Any], project: TrainJob) -> GenerateJob:
    """Return the generation job of form `values`; memory settings and, unless overridden, model settings are those of `project`.

    Raises ProblemsError with all invalid values.
    """
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
    """Return a random seed from 0 to FRESH_SEEDS - 1."""
    return secrets.randbelow(FRESH_SEEDS)


def with_seed(job: GenerateJob) -> GenerateJob:
    """Return `job` with a random seed, or unchanged if it has a seed."""
    if job.generate.seed is not None:
        return job
    return job.model_copy(update={"generate": job.generate.model_copy(update={"seed": new_seed()})})


def jobs_to_generate(job: GenerateJob, compare: bool, project: TrainJob) -> list[GenerateJob]:
    """Return [job], or with `compare` [baseline job, job] with the same seed and with LoRA tags of the prompt as LoRA settings.

    The baseline of a job with LoRAs or embeddings leaves these out. That of another job uses the model of `project` (Train), or, if the
    job already does, leaves out its ControlNets. Raises ProblemsError for invalid LoRA tags, and if there is nothing to compare.
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
    """Return form `values` with the LoRA at `path` added at `strength`; one that is listed already is turned on instead.

    Raises ProblemsError above MAX_LORAS.
    """
    name = portable_name(path, workspace)
    loras = list(values.get("loras", []))
    if any(use["file"] == name for use in loras):
        return values | {"loras": [use | {"enabled": True} if use["file"] == name else use for use in loras]}
    if len(loras) >= MAX_LORAS:
        what = f"There are {MAX_LORAS} LoRAs already"
        raise ProblemsError.one(what, "LoRAs", "remove one first", "generate.too-many-loras")
    return values | {"loras": [*loras, {"file": name, "strength": strength}]}


def files_to_use(page: Page, facts: Mapping[str, Any], file: str = "") -> list[Mapping[str, Any]]:
    """Return [the checkpoint to use, other files of the same step] from facts["files"]; [] if the run has saved none.

    The checkpoint is `file` if named, else the recommended one, else the last. An embedding run saves one file per word and step.
    facts: the run's snapshot
    """
    best, _ = (None, "") if file else recommended(page.workspace.runs / facts["run"], facts.get("best"))
    name = best.name if best is not None else file
    saved = [each for each in facts["files"] if not is_average(each["name"])]
    chosen = [each for each in facts["files"] if each["name"] == name] if name else saved[-1:] or facts["files"][-1:]
    return chosen + [
        each
        for each in saved
        for checkpoint in chosen
        if checkpoint in saved and each != checkpoint and each["step"] == checkpoint["step"]
    ]


def chosen_embeddings(values: Mapping[str, Any], page: Page) -> list[Embedding]:
    """Return the embeddings chosen in the form, without repeated tokens; missing and not allowed files are left out."""
    embeddings = (
        collected(list[Problem](), find_embeddings, text, page.workspace) or () for text in values["embeddings"]
    )
    return without_repeated_tokens(
        [embedding for of_setting in embeddings for embedding in of_setting if page.roots.holds(embedding.path)]
    )


def generate_with(page: Page, name: str, file: str = "") -> dict[str, Any]:
    """Fill in the form to use checkpoint `file` of run `name` ("": the recommended or last one), and return the new form values.

    A LoRA gets its best assessed strength, the run's base model and the guidance scale of its samples. A full model becomes the base
    model, a ControlNet or embeddings are added. If the prompt was not written by the user, the settings of the run's first sample are
    set too. Raises ProblemsError if the run has no checkpoint.
    """
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
            for text in embedding_values(job, list(filter(Path.exists, paths)), page.workspace)
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
    """Return the first sample of a run that has a prompt; None if there is none or the prompts cannot be read."""
    from core.training.loop.samples import prompts_of

    try:
        return next((each for each in prompts_of(job, base) if each.prompt), None)
    except (ProblemsError, OSError):
        return None


def _first_control(job: TrainJob, base: Path | None) -> dict[str, Any]:
    """Return {"image": path of the control image of the run's first sample}; {} without one."""
    sample = _sample_of(job, base)
    return {"image": sample.control} if sample is not None and sample.control else {}


def _first_sample(job: TrainJob, base: Path | None) -> dict[str, Any]:
    """Return the form values that generate the run's first sample again; {} without samples."""
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
    """Return the prompts that do not come from the user: "", the default prompt, and the prompt of the previously loaded run."""
    return "", str(ENTRIES["prompt"].default), str(state.get("prompt_of_run", ""))


def stored_values(state: dict[str, Any], project: TrainJob | None = None) -> dict[str, Any]:
    """Return the form values stored in a tab state; missing or invalid ones are replaced by `start_values`."""
    values, stored = start_values(project), state.get("values", {})
    model = stored.get("model") if isinstance(stored, dict) else None
    stored = {name: _renewed(name, value) for name, value in stored.items()} if isinstance(stored, dict) else {}
    return values | valid_values(ENTRIES, stored) | ({"model": model} if isinstance(model, dict) else {})


def _renewed(name: str, value: Any) -> Any:
    """Return a number that an earlier version stored as text as a number; any other value unchanged."""
    entry = ENTRIES.get(name)
    if entry is not None and isinstance(value, str) and entry.kind in ("int", "float"):
        with suppress(ProblemsError):
            return read(entry, value, optional=entry.optional)
    return value


def marked_for_zero_snr(
    values: dict[str, Any], project: TrainJob, workspace: Workspace, lora: Callable[[str], Path]
) -> list[str]:
    """Return the file names of the chosen model, LoRAs and embeddings whose metadata say zero terminal SNR.

    lora: function of a LoRA's name that returns its path. Missing files are skipped, since the start reports them.
    """
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
    """Return the LoRA tags of a prompt; [] if it cannot be parsed, as while a tag is being typed."""
    with suppress(ValueError):
        return split_tags(prompt)[1]
    return []
