"""Fields of the Generate tab: their values, conversion to and from generation jobs, and values loaded from runs."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from core.assess.recommended import recommended
from core.assess.results import best_strength
from core.engine.moved_model import with_moved_model
from core.engine.run_grid import embedding_values
from core.families.locate import model_path
from core.families.trained_size import default_guidance, trained_size
from core.formats.detect import identify
from core.generation.images.gallery import without_controls
from core.generation.model.embeddings import Embedding, find_embedding, find_embeddings, without_repeated_tokens
from core.generation.model.library import find_file, portable_name
from core.generation.prompt.loras import LoraTag, split_tags, with_prompt_loras
from core.record.file_titles import is_average
from core.record.problems import Problem, ProblemsError, collected
from core.record.run_folder import RunFolder
from core.record.workspace import Workspace
from core.settings.base import FRESH_SEEDS, Declared, Settings, declared, setting
from core.settings.check import build
from core.settings.generation.controls import ControlUse
from core.settings.generation.generate import LoraUse
from core.settings.job import GenerateJob, TrainJob
from core.settings.model import ModelSettings
from core.settings.presets.files import to_values
from tabs.form.form_values import entries, read, valid_values

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
    generate["loras"] = [values["loras"][index] for index in placed_loras(values)]
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


def placed_loras(values: Mapping[str, Any]) -> list[int]:
    """Return the indexes of form `values`' LoRAs that a job gets: the used ones, and with a region map also those of strength 0,
    which keep their region."""
    uses = [LoraUse.model_validate(use) for use in values.get("loras", [])]
    return [index for index, use in enumerate(uses) if use.used or (use.enabled and values.get("region_map"))]


def new_seed() -> int:
    """Return a random seed from 0 to FRESH_SEEDS - 1."""
    return secrets.randbelow(FRESH_SEEDS)


def with_seed(job: GenerateJob) -> GenerateJob:
    """Return `job` with a random seed, or unchanged if it has a seed."""
    if job.generate.seed is not None:
        return job
    return job.with_settings(generate={"seed": new_seed()})


def jobs_to_generate(job: GenerateJob, compare: bool, project: TrainJob) -> list[GenerateJob]:
    """Return [job], or with `compare` [baseline job, job] with the same seed and with LoRA tags of the prompt as LoRA settings.

    The baseline of a job with LoRAs or embeddings leaves these out. That of another job uses the model of `project` (Train), or, if the
    job already does, leaves out its ControlNets. Raises ProblemsError for invalid LoRA tags, and if there is nothing to compare.
    """
    if not compare:
        return [job]
    job = with_prompt_loras(with_seed(job))
    if job.generate.loras or job.generate.embeddings:
        return [job.with_settings(generate={"loras": [], "embeddings": []}), job]
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
        job = with_moved_model(job, RunFolder(folder), page.workspace)  # moved since these settings were read
        base = find_file(job.model.base_model, page.workspace)
        guidance = job.samples.guidance_scale
        if guidance is None and job.method.traits.base_trains and base is not None:
            guidance = default_guidance(base)  # the saved model does not state its base's
        before["guidance_scale"] = guidance
        sample = _sample_of(job, base)
        automatic = "", str(ENTRIES["prompt"].default), str(state.get("prompt_of_run", ""))  # not of the user
        if sample is not None and before["prompt"] in automatic:
            state, before = state | {"prompt_of_run": sample.prompt}, before | _values_of(sample, job)
    if job is not None and job.method.traits.new_words:
        embeddings = [
            find_embedding(text, page.workspace).short_setting(page.workspace)
            for text in embedding_values(job, list(filter(Path.exists, paths)), page.workspace)
        ]
        values = before | {"loras": [], "embeddings": embeddings} | model_values(job.model, project.model)
    elif job is not None and job.method.traits.control_images:
        control = {"image": sample.control} if sample is not None and sample.control else {}
        values = before | {"loras": [], "nets": [{"file": chosen, **control}]}
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


def _values_of(sample: SamplePrompt, job: TrainJob) -> dict[str, Any]:
    """Return the form values that generate a run's sample again."""
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
