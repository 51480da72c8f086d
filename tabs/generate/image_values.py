"""Values of the Generate form from an image's settings, with advice about files that this machine does not have."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from core.dataset.captions.words import word_pattern
from core.formats.hashes import HashMemo
from core.generation.model.embeddings import Embedding, find_embedding, find_embeddings, split_token
from core.generation.model.index import facts_of_file
from core.generation.model.library import Scan, find, find_file, portable_name, tokens_of_file, trained_token
from core.generation.model.other_files import NETS, find_refiner, net_of_image
from core.generation.model.sources import HashComparison, Hashes, file_of_image
from core.generation.plan.hooks import prompts_of
from core.generation.prompt.loras import strengths
from core.generation.prompt.wildcards import has_variants
from core.record.file_titles import file_stem
from core.record.problems import Problem, collected
from core.record.workspace import Workspace, display_path, real_path
from core.settings.base import value_of
from core.settings.generation.controls import ControlUse
from core.settings.job import GenerateJob
from core.settings.model import ModelSettings
from tabs.generate.form import FIELDS, OF_JOB, json_value, model_values

NO_MODEL = "generate.no-model"  # problem code: the model of an image is not on this machine
NO_FILE = "generate.no-file"  # problem code: another file of an image is not on this machine
# {setting: function that finds a file which images name without its folder, or raises ProblemsError}
FIND_BY_NAME: dict[str, Callable[[str, Workspace], Path]] = {
    "refiner_checkpoint": lambda name, workspace: find_refiner(name, workspace, None),
    "highres_fix_upscaler_file": partial(find, "upscaler"),
}
PROMPT_FIELDS = ("prompt", "negative_prompt", "ad_prompt", "ad_negative_prompt")  # that can have variants
# Programs that never state the clip skip: their images leave it as in Train
NO_CLIP_SKIP = ("sd-scripts", "novelai", "draw things", "another program")


def values_of(
    job: GenerateJob,
    before: dict[str, Any],
    workspace: Workspace,
    project: ModelSettings,
    hashes: Hashes,
    comparison: HashComparison | None = None,
) -> tuple[dict[str, Any], list[Problem]]:
    """Return (form values that generate the images of `job` again, advice about files that are missing on this machine).

    before      current form values; fields that `job` does not set stay
    project     model settings of Train
    hashes      of the image's files
    comparison  compares them with files; None: a new one
    """
    values = before | {name: json_value(value_of(job, OF_JOB[name].path)) for name in FIELDS}
    values |= _escaped_prompt(job)
    notes: list[Problem] = []
    if not values["dynamic_prompts"] and any(map(has_variants, _plain_prompts(job).values())):
        what = "Dynamic prompts are off, since its prompt contains {} or __ as text"
        fix = "turn them on for other prompts"
        notes.append(Problem(what, "prompts.dynamic_prompts", fix, "advice", code="generate.dynamic-off"))
    values |= _located_paths(values, workspace, notes)
    values["loras"], values["styles"] = [], list(job.prompts.styles)
    comparison = comparison or HashComparison(HashMemo.of(workspace))
    for use in job.generate.loras:
        missing: list[Problem] = []
        digest = hashes.loras.get(use.file, "")
        if result := collected(missing, file_of_image, "lora", use.file, digest, workspace, comparison):
            use_here = use.model_copy(update={"file": portable_name(result[0], workspace)})
            values["loras"].append(use_here.model_dump(exclude_none=True))
            notes += _file_notes("LoRA", use.file, digest, *result, "generate.loras", workspace)
        strength = strengths(use.strength, use.text_encoder_strength)
        notes += [replace(each, what=f"{each.what} (strength {strength})") for each in missing]
    values["nets"] = [net for use in job.controls.nets if (net := _located_net(use, hashes.controls, workspace, notes))]
    texts = "\n".join(prompts_of(job))

    def is_in_prompts(word: str) -> bool:
        return word_pattern([word]).search(texts) is not None

    embeddings = [
        collected(notes, _embeddings_here, text, hashes.embeddings, workspace, comparison, notes, is_in_prompts) or ()
        for text in job.generate.embeddings
    ]
    words = list(dict.fromkeys(word for each in embeddings for word in each))
    values["embeddings"] = [word.setting(workspace) for word in words]
    for word in words:
        same = comparison.is_file(word.path, hashes.embeddings.get(word.name, ""))
        notes += [] if same else [_hash_note("embedding", word.path.name, same, "generate.embeddings")]
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


def with_chosen_model(
    job: GenerateJob,
    digest: str,
    models: Iterable[str],
    workspace: Workspace,
    comparison: HashComparison,
    notes: list[Problem],
) -> GenerateJob:
    """Return `job` with its base model replaced by the one of `models` with the same file name, if its stored name is not found.

    Images store only the file name of models outside of models and outputs.
    models: names or paths of base models; the others as in `is_model`
    """
    if find_file(job.model.base_model, workspace) is not None:
        return job
    for name in models:
        path = find_file(name, workspace)
        if path is None or portable_name(path, workspace) != job.model.base_model:
            continue
        if _is_model_hash(path, digest, comparison, notes):
            return job.with_settings(model={"base_model": name})
    return job


def _is_model_hash(path: Path, digest: str, comparison: HashComparison, notes: list[Problem]) -> bool:
    """Return whether the model's hash begins with `digest`; True for "", False if the file's family is unknown. True with advice if
    its hash is not known, which may take minutes."""
    family = facts_of_file(path).family if digest else None
    if not digest or not family:
        return not digest
    same = comparison.is_model(path, digest, family)
    if same is None:
        notes.append(_hash_note("model", path.name, None, "model.base_model"))
    return same is not False


def is_model(
    chosen: str, name: str, digest: str, workspace: Workspace, comparison: HashComparison, notes: list[Problem]
) -> bool:
    """Return whether the file of model `chosen` has the same stem as `name` and a hash that begins with `digest`; "" matches any.
    notes: list to which advice is appended if the hash is unknown"""
    path = find_file(chosen, workspace)
    if path is None or (name and file_stem(name) != file_stem(path.name)):
        return False
    return _is_model_hash(path, digest, comparison, notes)


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
    digest = hashes.get(use.file, "")
    result = collected(missing, net_of_image, use.file, digest, workspace)
    if result is None:
        notes += [replace(each, what=f"{each.what} (weight {use.weight:g})") for each in missing]
        return None
    net, fits = result
    paths: dict[str, Any] = {"file": portable_name(net, workspace)}
    notes += _file_notes("ControlNet", use.file, digest, net, fits, NETS, workspace)
    if use.image:
        path = find_file(use.image, workspace)
        paths["image"] = display_path(path) if path is not None else None
        if path is None:
            notes.append(_not_found("Control image", use.image, NETS))
    return use.model_copy(update=paths).model_dump(exclude_defaults=True)


def _embeddings_here(
    text: str,
    hashes: Mapping[str, str],
    workspace: Workspace,
    comparison: HashComparison,
    notes: list[Problem],
    is_in_prompts: Callable[[str], bool],
) -> list[Embedding]:
    """Return the embeddings of an image's "FILE" or "TOKEN=FILE", found as in `file_of_image`, under the names that its prompts contain.

    notes           list to which advice is appended
    is_in_prompts   word -> whether a prompt of the image contains it
    """
    token, file = split_token(text)
    stem = file_stem(Path(file).name)
    digest = hashes.get(token or stem, "")
    path, fits = file_of_image("embedding", file, digest, workspace, comparison)
    if fits:  # `values_of` compares the hash of each token
        notes += _file_notes("embedding", file, digest, path, fits, "generate.embeddings", workspace)
    name = file if find_file(file, workspace) == path else portable_name(path, workspace)
    tokens = tokens_of_file(path)
    same_name = path.stem.casefold() == stem.casefold()
    if token or same_name or tokens != [""]:
        token = token or (stem if stem in tokens and not same_name else "")
        return find_embeddings(f"{token}={name}" if token else name, workspace)
    embedding, trained = find_embedding(name, workspace), trained_token(path)
    by_stem, by_trained = (bool(word) and is_in_prompts(word) for word in (stem, trained))
    renamed = [Embedding(stem, path)] if by_stem or not trained else []  # the prompts have the file's name in the image
    return renamed + ([embedding] if by_trained or not renamed else [])


def _file_notes(
    kind: str, name: str, digest: str, path: Path, fits: bool | None, where: str, workspace: Workspace
) -> list[Problem]:
    """Return advice about the file that is used for one of an image, if it is elsewhere or has another name or hash.

    kind           "LoRA", "embedding" ...
    name, digest   in the image
    path, fits     the file; whether it has the hash, None if that is not known
    """
    if not fits:
        return [_hash_note(kind, path.name, fits, where)]
    here = portable_name(path, workspace)
    has_name = f"/{name}" in f"/{here}" and file_stem(name) == file_stem(here)
    if has_name or find_file(name, workspace) == path:
        return []
    what = f"The {kind} {here} is used for '{name}', found by its {'hash' if digest else 'name'}"
    return [Problem(what, where, "compare, or choose another file", "advice", code="generate.file-elsewhere")]


def _hash_note(kind: str, name: str, same: bool | None, where: str) -> Problem:
    """Return the advice about a file that has the name but not the hash of the image's file, or whose hash is not known (None).
    kind: "LoRA", "embedding" ..."""
    if same is None:
        what = f"The {kind} {name} may be another one than that of the image: its hash is not known yet"
        fix = "generate an image with it, which computes its hash, and load these settings again to compare them"
        return Problem(what, where, fix, "advice", code="generate.hash-unknown")
    what = f"The {kind} {name} has the name but not the hash of the one that the image was made with"
    return Problem(what, where, "compare, or choose another file", "advice", code="generate.other-hash")


def _escaped_prompt(job: GenerateJob) -> dict[str, Any]:
    """Return "dynamic_prompts": True and the fields of an image's plain prompts with their braces escaped; {} to leave all as they are.

    {} if dynamic prompts are already on, with sd-scripts compatibility (dynamic prompts would change its seed), or if an escaped
    prompt would still be read as variants or options.
    """
    if job.prompts.dynamic_prompts or job.generate.compatibility == "kohya":
        return {}
    escaped = {name: text.replace("{", "\\{").replace("}", "\\}") for name, text in _plain_prompts(job).items()}
    readable = not any(map(has_variants, escaped.values())) and " --" not in job.generate.prompt
    return escaped | {"dynamic_prompts": True} if readable else {}


def _plain_prompts(job: GenerateJob) -> dict[str, str]:
    """Return {form field: prompt} of the prompts of an image that can have variants."""
    prompts = {name: value_of(job, OF_JOB[name].path) for name in PROMPT_FIELDS}
    return {name: text for name, text in prompts.items() if text}
