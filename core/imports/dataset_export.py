"""Writes the job's dataset, captions and validation groups as a dataset config of sd-scripts (TOML or JSON).

What sd-scripts has no option for is reported as advice, never dropped silently.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from core.dataset.sources.files import CAPTION_EXTENSIONS, extension, repeats_and_words, words_of
from core.dataset.sources.folders import folder_of, roots_of, words_for
from core.dataset.sources.image_info import listed
from core.dataset.sources.walk import walk
from core.imports.dataset_options import (
    CONDITIONED,
    DATASET,
    DREAMBOOTH,
    FINE_TUNING,
    GENERAL,
    OPTIONS,
    SUBSET,
)
from core.imports.dataset_toml import dataset_json, dataset_toml, reads_as, survives
from core.imports.dataset_unwritten import not_representable
from core.record import atomic
from core.record.image_formats import IMAGE_EXTENSIONS
from core.record.problems import Problem, ProblemsError, unwritten
from core.record.workspace import open_home, resolve_path
from core.settings.dataset.concepts import Concept, concepts_of
from core.settings.dataset.images import ImageSettings
from core.settings.dataset.source import PRESERVE
from core.settings.job import TrainJob

# Written even if they are sd-scripts' defaults, since readers look for them.
ALWAYS = frozenset(
    "resolution batch_size enable_bucket min_bucket_reso max_bucket_reso image_dir num_repeats caption_extension".split()
)
OF_DATASETS = [name for name, option in OPTIONS.items() if DATASET in option.levels and SUBSET not in option.levels]
NOT_SHARED = frozenset("class_tokens num_repeats custom_attributes cache_info".split())  # stay with their folder

READ_THERE = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif", ".jxl"))  # the last two with plugins


@dataclass(frozen=True)
class Exported:
    """The written file. config: its content; problems: advice on what could not be written."""

    path: Path
    config: dict[str, Any]
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True)
class _Folder:
    """One folder as a subset of sd-scripts, without subfolders. masks: its conditioning folder."""

    path: str
    repeats: int
    words: str
    masks: str | None = None


def write_dataset_config(job: TrainJob, path: str | os.PathLike, kind: str | None = None) -> Exported:
    """Write the folders of a job as a dataset config. kind: "toml" or "json"; None uses the file's extension.

    The file is complete or absent. Raises ProblemsError if there is nothing to write or it cannot be written.
    """
    target = open_home(path)
    kind = kind or target.suffix.lower().lstrip(".")
    if kind not in ("toml", "json"):
        what = f"'{target.name}' is neither .toml nor .json"
        raise ProblemsError.one(what, str(target), "name it dataset.toml", "dataset-config.unknown-format")
    if target.suffix.lower() != f".{kind}":
        target = target.with_name(f"{target.name}.{kind}")
    config, problems = dataset_config(job)
    if kind == "toml":
        problems += _only_toml(config)
    text = dataset_toml(config) if kind == "toml" else dataset_json(config)
    if kind == "toml" and not reads_as(text, config):
        fix = "write a .json file, or rename folders with unusual characters"
        what = "sd-scripts could not read this dataset as TOML"
        raise ProblemsError.one(what, str(target), fix, "dataset-config.no-toml")
    try:
        atomic.write_text(target, text)
    except OSError as error:
        raise unwritten(error, "The file cannot be written", str(target)) from None
    return Exported(target, config, problems)


def _only_toml(config: dict[str, Any]) -> list[Problem]:
    """Leave out custom attributes that TOML cannot represent (null, mixed lists), and report them."""
    problems = []
    for dataset in config["datasets"]:
        for subset in dataset["subsets"]:
            for name, value in list(subset.get("custom_attributes", {}).items()):
                if not survives({name: value}):
                    del subset["custom_attributes"][name]
                    what = f"The custom attribute '{name}' cannot be written as TOML"
                    where, fix = subset.get("image_dir", ""), "write a .json file"
                    problems.append(Problem(what, where, fix, "advice", code="dataset-config.attribute-not-toml"))
    return problems


def dataset_config(job: TrainJob) -> tuple[dict[str, Any], list[Problem]]:
    """The content of the file, and advice on what it cannot contain. Reads folders and writes nothing."""
    concepts = [*_all_concepts(job)]
    if not concepts:
        what = "There is no folder to write"
        raise ProblemsError.one(what, "dataset.sources", "choose an image folder first", "dataset.no-folder")
    problems = not_representable(job, concepts)
    datasets: dict[tuple, dict[str, Any]] = {}
    places: dict[str, set[tuple]] = defaultdict(set)
    for concept in concepts:
        for each, variant in _resolutions(concept):
            for folder in _folders(each, problems):
                options = _options(each, folder)
                upper = {name: options.pop(name) for name in OF_DATASETS if name in options}
                key = (each.source.batch_group, variant, method_of(each), repr(sorted(upper.items())))
                datasets.setdefault(key, {**upper, "subsets": []})["subsets"].append(options)
                if not variant:
                    problems += _unread_captions(each, folder)
                    places[concept.batch_group].add(key)
    if any(len(keys) > 1 for keys in places.values()):
        what = "Folders that share batches here become separate datasets: sd-scripts never mixes datasets in a batch"
        fix = "give them the same resolution and buckets if they should share batches"
        problems.append(Problem(what, "dataset.sources", fix, "advice", code="dataset-config.separate-datasets"))
    return _tidy(list(datasets.values()), _seed(job, concepts)), problems


def _all_concepts(job: TrainJob) -> Iterator[Concept]:
    """Every folder including disabled ones, which num_repeats = 0 excludes there."""
    everything = job.dataset.model_copy(
        update={"sources": [source.model_copy(update={"enabled": True}) for source in job.dataset.sources]}
    )
    enabled = [True] * (len(everything.all_sources()) - len(job.dataset.sources))
    enabled += [source.enabled for source in job.dataset.sources]
    whole = job.model_copy(update={"dataset": everything})
    for concept, on in zip(concepts_of(whole), enabled, strict=True):
        yield concept if on else replace(concept, source=concept.source.model_copy(update={"enabled": False}))


def method_of(concept: Concept) -> str:
    if concept.images.conditioning_data_dir:
        return CONDITIONED
    return FINE_TUNING if concept.source.metadata_file else DREAMBOOTH


def _resolutions(concept: Concept) -> Iterator[tuple[Concept, str]]:
    """The folder once per resolution: each additional one is another dataset over the same folder."""
    yield concept, ""
    for size in concept.images.more_resolutions:
        images = concept.images.model_copy(update={"resolution": size, "more_resolutions": []})
        yield replace(concept, images=images), str(size)


# ---- values under sd-scripts' names


def _sides(images: ImageSettings) -> tuple[int, int]:
    """The effective bucket sides: sd-scripts refuses a minimum above the resolution and a maximum below it."""
    size = images.resolution
    width, height = size if isinstance(size, tuple) else (size, size)
    lowest, highest = images.min_bucket_reso, images.max_bucket_reso or 2 * max(width, height)
    if images.enable_bucket:
        lowest = lowest if lowest <= min(width, height) else min(width, height) // 2
        highest = max(highest, max(width, height)) if images.bucket_no_upscale else highest
    return lowest, highest


def _options(concept: Concept, folder: _Folder) -> dict[str, Any]:
    """The value of every option for one folder, its dataset's included."""
    images, captions, source = concept.images, concept.captions, concept.source
    lowest, highest = _sides(images)
    found: dict[str, Any] = {
        "image_dir": folder.path or None,
        "conditioning_data_dir": folder.masks,
        "metadata_file": written_path(source.metadata_file or ""),
        "is_reg": concept.role == "regularization",
        "class_tokens": folder.words,
        "num_repeats": folder.repeats if source.enabled else 0,
        "caption_extension": _extension(concept, folder),
        "cache_info": source.cache_info,
        "custom_attributes": source.custom_attributes | ({PRESERVE: True} if source.diff_output_preservation else {}),
        "resize_interpolation": None if images.resize_interpolation == "auto" else images.resize_interpolation,
        "face_crop_aug_range": [float(end) for end in images.face_crop_aug_range or ()] or None,
        "resolution": list(images.resolution) if isinstance(images.resolution, tuple) else images.resolution,
        "min_bucket_reso": lowest,
        "max_bucket_reso": highest,
        "validation_split": 1.0 if concept.role == "validation" else float(concept.validation.validation_split),
        "validation_seed": None,  # one for all, in [general]
    }
    for name, option in OPTIONS.items():
        if name not in found:
            group: Any = images if option.setting in ImageSettings.model_fields else captions
            value = getattr(group, option.setting or name)
            found[name] = _number(value) if option.kind == "number" else value
    return {name: value for name, value in found.items() if method_of(concept) in OPTIONS[name].methods}


def _number(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value


def _extension(concept: Concept, folder: _Folder) -> str:
    """`auto` is .txt if an image has one, else .caption; sd-scripts takes one extension per folder: the more frequent
    one, .txt if there are no captions."""
    given = concept.captions.caption_extension
    if given != "auto":
        return given
    found = Counter(ending for _, ending in _captions_in(folder))
    return ".caption" if found[".caption"] > found[".txt"] else ".txt"


def _captions_in(folder: _Folder) -> list[tuple[str, str]]:
    """(image name, extension of the caption file that `auto` reads) of the folder's own images with captions."""
    try:
        names = sorted(os.listdir(folder.path))
    except OSError:
        return []
    files = {name.casefold() for name in names}
    endings = [
        (name, next((end for end in CAPTION_EXTENSIONS if os.path.splitext(name)[0].casefold() + end in files), ""))
        for name in names
        if extension(name) in IMAGE_EXTENSIONS
    ]
    return [(name, ending) for name, ending in endings if ending]


def _unread_captions(concept: Concept, folder: _Folder) -> Iterator[Problem]:
    """Captions that `auto` reads and sd-scripts does not, with its one extension per folder."""
    if concept.captions.caption_extension != "auto" or concept.source.metadata_file:
        return
    written = _extension(concept, folder)
    lost = [name for name, ending in _captions_in(folder) if ending != written]
    if lost:
        other = ".caption" if written == ".txt" else ".txt"
        what = f"sd-scripts reads one caption extension per folder, here {written}, and ignores the {other} of {listed(lost, 3)}"
        fix = f"rename these {other} files to {written}"
        yield Problem(what, folder.path, fix, "advice", code="dataset-config.mixed-caption-extensions")


# ---- which folders


def written_path(text: str) -> str:
    """A path for another program: absolute, with "/" on Windows too."""
    windows = PureWindowsPath(text)
    if windows.drive:
        return windows.as_posix()
    return resolve_path(text).as_posix()


def _folders(concept: Concept, problems: list[Problem]) -> list[_Folder]:
    """The folders of a source: sd-scripts takes neither subfolders nor repeats in folder names from an image_dir."""
    source = concept.source
    path = written_path(source.folder) if source.folder.strip() else ""
    masks = written_path(concept.images.conditioning_data_dir) if concept.images.conditioning_data_dir else None
    if source.metadata_file:
        return [_Folder(path, source.num_repeats or 1, "", masks)]
    words = words_for(source, "\0")  # an impossible folder name: what is left are the source's own words
    if not source.recursive and (source.num_repeats is not None or not source.enabled) and words != "\0":
        return [_Folder(path, source.num_repeats or 1, words, masks)]
    return _looked_into(concept, path, masks, problems)


def _looked_into(concept: Concept, path: str, masks: str | None, problems: list[Problem]) -> list[_Folder]:
    """Every folder of a source that directly contains images, with the repeats and class tokens of its path."""
    source = concept.source
    found: list[_Folder] = []
    others: Counter[str] = Counter()
    top, _ = folder_of(source)
    without = [Path(masks)] if masks else []
    for root in roots_of(source, top)[0] if top else []:
        walked = walk(root.path, None, root.left_out, without=without, recursive=source.recursive)
        for parent in dict.fromkeys(file.path.parent for file in walked.files):
            written = parent.as_posix()
            found.append(_Folder(written, root.repeats, root.words, _masks_of(parent, top, masks)))
        others.update(ending for file in walked.files if (ending := extension(file.relative)) not in READ_THERE)
    if others:
        what = f"sd-scripts does not read {', '.join(f'{number} {ending}' for ending, number in others.items())} files"
        problems.append(Problem(what, path, "convert them to .png", "advice", code="dataset-config.unread-images"))
    if not found:
        said = repeats_and_words(PurePosixPath(path).name) or (1, words_of(PurePosixPath(path).name))
        what = "The folder contains no images; it is written without subfolders"
        fix = "check it on the machine that trains"
        problems.append(Problem(what, path, fix, "advice", code="dataset.no-images"))
        found = [_Folder(path, source.num_repeats or max(said[0], 1), words_for(source, said[1]), masks)]
    return found


def _masks_of(folder: Path, top: Path | None, masks: str | None) -> str | None:
    """Masks of a subfolder are in the subfolder of that name, or all in one folder."""
    if masks is None or top is None or folder == top:
        return masks
    below = Path(masks, os.path.relpath(folder, top))
    return below.as_posix() if below.is_dir() else masks


# ---- where each value goes


def _seed(job: TrainJob, concepts: list[Concept]) -> dict[str, int]:
    seed = job.validation.validation_seed
    used = seed or any(concept.validation.validation_split for concept in concepts)
    return {"validation_seed": seed} if used else {}


def _tidy(datasets: list[dict[str, Any]], general: dict[str, Any]) -> dict[str, Any]:
    """Values that all share go to [general]; sd-scripts' defaults are left out."""
    for name, option in OPTIONS.items():
        if GENERAL not in option.levels or name in NOT_SHARED:
            continue
        tables = [subset for each in datasets for subset in each["subsets"]] if SUBSET in option.levels else datasets
        having = [table for table in tables if name in table]
        if having and all(table[name] == having[0][name] for table in having):
            if not _left_out(name, having[0][name]):
                general[name] = having[0][name]
            for table in having:
                del table[name]
    for dataset in datasets:
        for table in (dataset, *dataset["subsets"]):
            for name in [name for name in table if name != "subsets" and _left_out(name, table[name])]:
                del table[name]
        dataset["subsets"] = dataset.pop("subsets")
    return {**({"general": general} if general else {}), "datasets": datasets}


def _left_out(name: str, value: Any) -> bool:
    if value is None or (value == "" and name == "class_tokens"):
        return True
    return name not in ALWAYS and value == OPTIONS[name].default
