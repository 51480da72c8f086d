"""The fields of the Generate tab: their values, the jobs they describe, and values from images and runs."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from core.families.locate import model_path
from core.families.trained_size import own_guidance, trained_size
from core.formats.detect import identify
from core.generation.model.embeddings import Embedding, find_embedding, find_embeddings
from core.generation.model.library import find, find_file, list_vaes, portable_name
from core.generation.model.other_files import NETS, find_refiner, net_of_image
from core.generation.prompt.loras import LoraTag, with_prompt_loras, without_tags
from core.generation.prompt.wildcards import has_variants
from core.record.problems import Problem, ProblemsError
from core.record.workspace import Workspace, display_path, real_path
from core.settings.base import FRESH_SEEDS, Declared, Settings, declared, setting, value_of
from core.settings.check import build
from core.settings.generation.controls import ControlUse
from core.settings.generation.generate import LoraUse
from core.settings.job import GenerateJob, TrainJob
from core.settings.model import ModelSettings
from core.settings.names import without_signs
from core.settings.presets.files import to_values
from tabs.form.form_values import entries, read, usable

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
        False, title="Compare with the base model", help="Generates each image without LoRA too, with the same seed."
    )


class ModelOverrides(Settings):
    """Model settings that differ from Train or, with another base model, from the model's own."""

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
OF_JOB: dict[
    str, Declared
] = {}  # by name; by path if a built-in setting or an earlier group of a package has that name
for _entry in declared(GenerateJob):
    if _entry.group not in ELSEWHERE:
        _taken = _entry.name in OF_JOB or _BUILT_IN.get(_entry.name, _entry.path) != _entry.path
        OF_JOB[_entry.path if _taken else _entry.name] = _entry
MODEL = tuple(ModelOverrides.model_fields)
ENTRIES = OF_JOB | entries(TabSettings, "beside") | entries(ModelOverrides, "model")
EMBEDDINGS = ENTRIES["embeddings"]
FIELDS = tuple(name for name, entry in OF_JOB.items() if entry.kind != "list")  # lists have editors of their own
OWN = ("width", "height", "guidance_scale")  # empty, they are the model's own
MOST_LORAS = 20
NO_MODEL = "generate.no-model"  # the code of the problem that a model of an image is not on this machine
NO_FILE = "generate.no-file"  # as well, of another file
# Files that images name without their folders, and how they are found; each raises ProblemsError.
FOUND_BY_NAME: dict[str, Callable[[str, Workspace], Path]] = {
    "refiner_checkpoint": lambda name, workspace: find_refiner(name, workspace, None),
    "highres_fix_upscaler_file": partial(find, "upscaler"),
}
PRESET = (*OF_JOB, "base_model", *MODEL)  # what a preset covers


def start_values(project: TrainJob | None = None) -> dict[str, Any]:
    """The initial fields. The guidance scale is that of Train's samples, which suits the model."""
    values = {name: json_value(entry.default) for name, entry in ENTRIES.items()}
    if project is not None:
        values["guidance_scale"] = project.samples.guidance_scale
    return values | {"model": {}}


def json_value(value: Any) -> Any:
    """The value as JSON keeps it: a list for a tuple."""
    return list(value) if isinstance(value, tuple) else value


def model_values(own: ModelSettings, project: ModelSettings) -> dict[str, Any]:
    """The fields for a model and its settings, empty where they equal Train's."""
    unset = {name: ENTRIES[name].default for name in MODEL}
    differs = {name: getattr(own, name) for name in MODEL if getattr(own, name) != getattr(project, name)}
    if project.model_copy(update=differs) == own and not differs.items() & unset.items():
        return {"base_model": "", "model": {}} | unset | differs
    others = {name: value for name, value in to_values(own).items() if name not in MODEL}
    return {"base_model": own.base_model, "model": others} | {name: getattr(own, name) for name in MODEL}


def values_of(
    job: GenerateJob,
    before: dict[str, Any],
    workspace: Workspace,
    project: ModelSettings,
    net_hashes: Mapping[str, str],
) -> tuple[dict[str, Any], list[Problem]]:
    """(the fields that generate `job` again, advice about files that are not on this machine). project: the model of Train;
    net_hashes: {name of a ControlNet in an image: its hash}"""
    values = before | {name: json_value(value_of(job, OF_JOB[name].path)) for name in FIELDS}
    values |= _typed_again(job, bool(before.get("dynamic_prompts", True)))
    notes: list[Problem] = []
    values |= _paths_here(values, workspace, notes)
    loras = []
    for use in job.generate.loras:
        try:
            path = find("lora", use.file, workspace)
            loras.append(use.model_copy(update={"file": portable_name(path, workspace)}).model_dump(exclude_none=True))
        except ProblemsError as error:
            notes += [replace(each, level="advice") for each in error.problems]
    values["loras"], values["embeddings"], values["styles"] = loras, [], list(job.prompts.styles)
    values["nets"] = [net for use in job.controls.nets if (net := _net_here(use, net_hashes, workspace, notes))]
    for text in job.generate.embeddings:
        try:
            values["embeddings"] += [word.setting(workspace) for word in find_embeddings(text, workspace)]
        except ProblemsError as error:
            notes += [replace(each, level="advice") for each in error.problems]
    for name, find_named in FOUND_BY_NAME.items():
        try:
            if values[name]:
                find_named(values[name], workspace)
        except ProblemsError as error:
            values[name] = None
            notes += [replace(each, fix=f"it is left out; {each.fix}", level="advice") for each in error.problems]
    wanted = job.model.base_model
    found = find_file(wanted, workspace)
    if found is None:
        what = f"The model '{wanted}' is not on this machine; the chosen one is kept"
        notes.append(Problem(what, "model.base_model", "download it, or choose another", "advice", code=NO_MODEL))
    else:
        same = find_file(project.base_model, workspace)
        name = project.base_model if same is not None and real_path(same) == real_path(found) else wanted
        values |= model_values(job.model.model_copy(update={"base_model": name}), project)
    return values, notes


def model_values_in(job: GenerateJob, workspace: Workspace, notes: list[Problem]) -> dict[str, Any]:
    """The fields of the model's settings that another program's image says, whatever its model. `notes` gets what cannot be
    used here."""
    said = {name: value for name in MODEL if (value := getattr(job.model, name)) != ENTRIES[name].default}
    if name := said.pop("vae", None):
        paths = [path for _, path in list_vaes(workspace) if name in (path.name, path.stem)]
        said |= {"vae": portable_name(paths[0], workspace)} if paths else {}
        notes += [] if paths else [_not_found("VAE", name, "model.vae")]
    if job.model.compatibility != "none":
        what, fix = "It was made with sd-scripts compatibility", "set it in Train to generate the image again"
        notes.append(Problem(what, "model.compatibility", fix, "advice", code="generate.other-compatibility"))
    return said


def _paths_here(values: dict[str, Any], workspace: Workspace, notes: list[Problem]) -> dict[str, str]:
    """The files that an image's settings name by `portable_name`, by their paths on this machine. `notes` gets the missing."""
    found = {}
    for name in FIELDS:
        entry, text = OF_JOB[name], values[name]
        if entry.names != "path" or entry.group == "output" or not text:
            continue
        path = find_file(text, workspace)
        if path is None:
            notes.append(_not_found(entry.title, text, entry.path))
        elif text.startswith(("models/", "outputs/")):
            found[name] = display_path(path)
    return found


def _not_found(title: str, text: str, where: str) -> Problem:
    """Of a file that an image names: by its path, or, where it was outside of the product's folders, by its name alone."""
    fix = "choose another file, or empty the field"
    if "/" not in text:
        fix = "choose it again: images keep only the names of files outside of models and outputs"
    return Problem(f"{title}: '{text}' was not found", where, fix, "advice", code=NO_FILE)


def _net_here(
    use: ControlUse, hashes: Mapping[str, str], workspace: Workspace, notes: list[Problem]
) -> dict[str, Any] | None:
    """A ControlNet of an image by the paths of this machine; None if it has none of its file. `notes` gets what is missing.
    hashes: of `values_of`"""
    own: dict[str, Any] = {}
    try:
        net, fits = net_of_image(use.file, hashes.get(use.file, ""), workspace)
    except ProblemsError as error:
        notes += [replace(each, level="advice") for each in error.problems]
        return None
    own["file"] = portable_name(net, workspace)
    if not fits:
        what = f"The ControlNet {net.name} has the name but not the hash of the one that the image was made with"
        notes.append(Problem(what, NETS, "compare, or choose another file", "advice", code="controls.other-hash"))
    if use.image:
        path = find_file(use.image, workspace)
        own["image"] = display_path(path) if path is not None else None
        if path is None:
            notes.append(_not_found("Control image", use.image, NETS))
    return use.model_copy(update=own).model_dump(exclude_defaults=True)


def _typed_again(job: GenerateJob, dynamic: bool) -> dict[str, Any]:
    """The prompt of an image, stored as plain text, with braces escaped where the fields read {a|b} and options. As
    sd-scripts' generator does, its seed would then only be what others are drawn from."""
    text = job.generate.prompt
    if job.prompts.dynamic_prompts or not dynamic or job.generate.compatibility == "kohya":
        return {}
    escaped = text.replace("{", "\\{").replace("}", "\\}")
    readable = not has_variants(escaped) and " --" not in text
    return {"prompt": escaped, "dynamic_prompts": True} if readable else {}


def ratio_size(ratio: str, native: tuple[int, int]) -> tuple[int, int]:
    """Sides of a ratio such as "2:3" with about the pixels of the model's own size: multiples of 64."""
    wide, high = (int(part) for part in ratio.split(":"))
    area = native[0] * native[1]
    width, height = (area * wide / high) ** 0.5, (area * high / wide) ** 0.5
    return max(1, round(width / 64)) * 64, max(1, round(height / 64)) * 64


def sides(values: dict[str, Any], project: TrainJob, workspace: Workspace) -> tuple[int, int]:
    """(width, height) of the images that the fields describe."""
    path = find_file(str(values["base_model"] or project.model.base_model), workspace)
    native = (512, 512)
    with suppress(ProblemsError, OSError, StopIteration):
        native = trained_size(path) if path is not None else native
    return values["width"] or native[0], values["height"] or native[1]


def default_texts(values: dict[str, Any], project: TrainJob, workspace: Workspace) -> dict[str, str]:
    """{field: what an empty one means, in words} with the chosen model."""
    own = default_values(values, project, workspace)
    return {name: f"{own[name]:g}" if name in own else "default" for name in OWN}


def default_values(values: dict[str, Any], project: TrainJob, workspace: Workspace) -> dict[str, float]:
    """{field: what an empty one means} with the chosen model; empty if it is not known."""
    path = find_file(str(values["base_model"] or project.model.base_model), workspace)
    try:
        if path is None:
            return {}
        size = trained_size(path, "auto" if values["base_model"] else project.model.family)
        return dict(zip(OWN, (*size, own_guidance(path)), strict=True))
    except (ProblemsError, OSError, StopIteration):
        return {}


def job_of(values: dict[str, Any], project: TrainJob) -> GenerateJob:
    """The job that the fields describe. Raises ProblemsError with all invalid values."""
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
        name, own = str(values["base_model"]).strip(), values.get("model", {})
        model = own if own.get("base_model") == name else {"base_model": name}
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
    """The job; to compare, before it the same with the base model alone. Raises ProblemsError if there is nothing to compare.

    The base of LoRAs and embeddings is the job's model, that of another model the one in Train.
    """
    if not compare:
        return [job]
    job = with_prompt_loras(with_seed(job))
    if job.generate.loras or job.generate.embeddings:
        bare = job.generate.model_copy(update={"loras": [], "embeddings": []})
        return [job.model_copy(update={"generate": bare}), job]
    if job.model == project.model:
        what = "There is nothing to compare: no LoRA, embedding or other model is chosen"
        fix = "add a LoRA or an embedding, choose another model than in Train, or turn off the comparison"
        raise ProblemsError.one(what, "Compare with the base model", fix, code="generate.nothing-to-compare")
    return [job.model_copy(update={"model": project.model}), job]


def add_lora(values: dict[str, Any], path: Path, workspace: Workspace) -> dict[str, Any]:
    """The fields with one more LoRA at strength 1, unless it is there already. Raises ProblemsError for too many."""
    name = portable_name(path, workspace)
    loras = list(values.get("loras", []))
    if any(use["file"] == name for use in loras):
        return values
    if len(loras) >= MOST_LORAS:
        what = f"There are {MOST_LORAS} LoRAs already"
        raise ProblemsError.one(what, "LoRAs", "remove one first", "generate.too-many-loras")
    return values | {"loras": [*loras, {"file": name, "strength": 1.0}]}


def generate_with(page: Page, name: str) -> dict[str, Any]:
    """The fields, with a run's best checkpoint, or else its last one, in them: as LoRA with the run's base model and the guidance
    scale of its samples, as base model, as ControlNet, or as embeddings. Unless the user wrote a prompt, also the first sample's settings.
    Raises ProblemsError if the run has no checkpoint."""
    facts = page.engine.snapshot(name)
    best = facts.get("best")
    files = [Path(file["path"]) for file in facts["files"] if best is None or file["step"] == best["step"]]
    if not files:
        raise ProblemsError.one("This run has no saved file", name, "wait until it has saved one", code="run.no-file")
    newest = max(files, key=lambda path: path.stat().st_mtime_ns if path.exists() else 0)
    if best is not None:
        newest = page.workspace.runs / name / best["file"]
    kept, now = page.project.tab_state("Generate"), page.project.job
    before = stored_values(kept, now) | {"embeddings": []}
    file = portable_name(newest, page.workspace)
    try:
        job = page.engine.run_job(name)
    except (ProblemsError, OSError, ValueError):  # of another version, or damaged: its LoRA is good all the same
        job = None
    if job is not None:
        base = find_file(job.model.base_model, page.workspace)
        guidance = job.samples.guidance_scale
        if guidance is None and job.method.traits.base_trains and base is not None:
            guidance = own_guidance(base)  # the saved model does not state its base's
        before["guidance_scale"] = guidance
        sample = _first_sample(job, base)
        if sample and before["prompt"] in _not_written(kept):
            kept, before = kept | {"prompt_of_run": sample["prompt"]}, before | sample
    if job is not None and job.method.traits.new_words:
        words = [word.setting(page.workspace) for word in newest_words(job.embedding.words, files)]
        values = before | {"loras": [], "embeddings": words} | model_values(job.model, now.model)
    elif job is not None and job.method.traits.control_images:
        values = before | {"loras": [], "nets": [{"file": file, **_first_control(job, base)}]}
        values |= model_values(job.model, now.model)
    elif job is not None and job.method.traits.base_trains:  # its VAE is in the file
        model = job.model.model_copy(update={"base_model": file, "vae": None})
        values = before | {"loras": []} | model_values(model, now.model)
    else:
        alone = before | {"loras": [use for use in before["loras"] if use["file"] == file]}
        values = add_lora(alone, newest, page.workspace)
        values |= model_values(job.model, now.model) if job is not None else {}
    page.project.keep("Generate", kept | {"values": values})
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
    """The fields that generate the run's first sample again; empty without one."""
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


def _not_written(kept: dict[str, Any]) -> tuple[str, ...]:
    """Prompts that the user did not write: none, the default, and that of the previous run."""
    return "", str(ENTRIES["prompt"].default), str(kept.get("prompt_of_run", ""))


def newest_words(words: Sequence[str], files: Sequence[Path]) -> list[Embedding]:
    """Each token with its newest file: names of all but the first token end in "-TOKEN"."""
    found = []
    there = sorted((path for path in files if path.exists()), key=lambda path: -path.stat().st_mtime_ns)
    for number, word in enumerate(words):
        own = [path for path in there if _word_of(path, words) == number]
        found += [Embedding(word, path) for path in own[:1]]
    return found


def _word_of(path: Path, words: Sequence[str]) -> int:
    return next(
        (number for number, word in enumerate(words) if number and path.stem.endswith(f"-{without_signs(word)}")), 0
    )


def stored_values(state: dict[str, Any], project: TrainJob | None = None) -> dict[str, Any]:
    """The fields as the project kept them; missing or invalid ones take their initial values."""
    values, kept = start_values(project), state.get("values", {})
    own = kept.get("model") if isinstance(kept, dict) else None
    kept = {name: _typed(name, value) for name, value in kept.items()} if isinstance(kept, dict) else {}
    return values | usable(ENTRIES, kept) | ({"model": own} if isinstance(own, dict) else {})


def _typed(name: str, value: Any) -> Any:
    """A number that an earlier version kept as text."""
    entry = ENTRIES.get(name)
    if entry is not None and isinstance(value, str) and entry.kind in ("int", "float"):
        with suppress(ProblemsError):
            return read(entry, value, optional=entry.optional)
    return value


def marked_for_zero_snr(
    values: dict[str, Any], project: TrainJob, workspace: Workspace, lora: Callable[[str], Path]
) -> list[str]:
    """Names of the chosen files that are marked as trained with zero terminal SNR. Missing files are reported at the start.
    lora: finds the file of a LoRA"""
    looks: list[tuple[Callable[..., Any], str]] = [
        (lambda text: model_path(text, workspace), str(values["base_model"]).strip() or project.model.base_model),
        *((lora, use["file"]) for use in values["loras"] if LoraUse.model_validate(use).used),
        *((lora, tag.name) for tag in tags_of(str(values["prompt"]))),
        *((lambda text: find_embedding(text, workspace).path, text) for text in values["embeddings"]),
    ]
    found = []
    for look, name in looks:
        try:
            path = look(name)
            found += [path.name] if identify(path).zero_terminal_snr else []
        except (ProblemsError, OSError):
            continue
    return found


def tags_of(prompt: str) -> list[LoraTag]:
    """The LoRAs of a prompt; empty if it cannot be read yet."""
    with suppress(ValueError):
        return without_tags(prompt)[1]
    return []
