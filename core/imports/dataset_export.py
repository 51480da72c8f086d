"""Write the job's dataset, captions and validation groups as a dataset config of sd-scripts (TOML or JSON).

Settings that sd-scripts has no option for are reported as advice, never dropped silently.
"""

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import toml

from core.dataset.sources.conditioning import mask_folders
from core.dataset.sources.files import CAPTION_EXTENSIONS, as_words, extension, repeats_and_words
from core.dataset.sources.folders import class_tokens_for, folder_of, roots_of
from core.dataset.sources.image_info import listed
from core.dataset.sources.painted import is_painted
from core.dataset.sources.walk import walk
from core.imports.dataset_options import (
    CONDITIONED,
    DATASET,
    DREAMBOOTH,
    FINE_TUNING,
    GENERAL,
    OPTIONS,
    REFUSED,
    SUBSET,
    area_of_side,
    declaration,
)
from core.record import atomic
from core.record.image_formats import IMAGE_EXTENSIONS
from core.record.problems import Problem, ProblemsError, write_errors
from core.record.workspace import open_home, resolve_path
from core.settings.dataset.concepts import Concept, captions_in_force, concepts_of
from core.settings.dataset.images import ImageSettings
from core.settings.dataset.source import PRESERVE
from core.settings.job import TrainJob

# Written even if they are sd-scripts' defaults, since readers look for them.
ALWAYS = frozenset(
    "resolution batch_size enable_bucket min_bucket_reso max_bucket_reso image_dir num_repeats caption_extension".split()
)
DATASET_ONLY = [name for name, option in OPTIONS.items() if DATASET in option.levels and SUBSET not in option.levels]
NOT_SHARED = frozenset("class_tokens num_repeats custom_attributes cache_info".split())  # stay with their folder

READ_BY_SD_SCRIPTS = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif", ".jxl"))  # the last two with plugins

# Settings of the job that are lost if they differ from their default.
LOST_SETTINGS = (
    ("dataset", "dataset_class", "pass --dataset_class to sd-scripts"),
    ("captions", "max_token_length", "pass --max_token_length (up to 225) to sd-scripts"),
    ("dataset", "short_batches", "expect incomplete batches: sd-scripts always keeps them"),
    ("dataset", "skip_broken", "remove broken images: sd-scripts stops at the first one"),
)
WITH_REGULARIZATION = (("dataset", "prior_loss_weight", "pass --prior_loss_weight to sd-scripts"),)
# Advice to pass an option -> the options with which it is done
ADVISED = {
    "lost.dataset_class": ("dataset_class",),
    "lost.max_token_length": ("max_token_length",),
    "lost.prior_loss_weight": ("prior_loss_weight",),
    "lost.caption_template": ("use_object_template", "use_style_template"),
    "masks-need-option": ("masked_loss",),
}
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_SHORT = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}


@dataclass(frozen=True)
class Exported:
    """A written dataset config: its path, its content, and advice on settings that it cannot contain."""

    path: Path
    config: dict[str, Any]
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True)
class _Folder:
    """A folder as a subset of sd-scripts, without subfolders. masks: its conditioning_data_dir"""

    path: str
    repeats: int
    class_tokens: str
    masks: str | None = None


def write_dataset_config(job: TrainJob, path: str | os.PathLike, kind: str | None = None) -> Exported:
    """Write the folders of a job as a dataset config. kind: "toml" or "json"; None uses the file's extension.

    The kind is appended to a path with another extension. The file is complete or absent. Raises ProblemsError for an unknown kind, if
    there is nothing to write, or if it cannot be written.
    """
    target = open_home(path)
    kind = kind or target.suffix.lower().lstrip(".")
    if kind not in ("toml", "json"):
        what = f"'{target.name}' is neither .toml nor .json"
        raise ProblemsError.one(what, str(target), "name it dataset.toml", "dataset-config.unknown-format")
    if target.suffix.lower() != f".{kind}":
        target = target.with_name(f"{target.name}.{kind}")
    text, config, problems = dataset_text(job, kind, str(target))
    with write_errors("The file cannot be written", str(target)):
        atomic.write_text(target, text)
    return Exported(target, config, problems)


def dataset_text(job: TrainJob, kind: str, where: str = "dataset") -> tuple[str, dict[str, Any], list[Problem]]:
    """Return (text of a dataset config, its content, advice on settings that it cannot contain). Raises ProblemsError for a job without
    a folder, and for content that sd-scripts could not read as TOML.

    kind   "toml" or "json"
    where  the file, for messages
    """
    config, problems = dataset_config(job)
    if kind == "json":
        return json.dumps(config, indent=2, allow_nan=False) + "\n", config, problems
    problems += _drop_not_toml(config)
    text = dataset_toml(config)
    if not reads_as(text, config):
        fix = "write a .json file, or rename folders with unusual characters"
        what = "sd-scripts could not read this dataset as TOML"
        raise ProblemsError.one(what, where, fix, "dataset-config.no-toml")
    return text, config, problems


def _drop_not_toml(config: dict[str, Any]) -> list[Problem]:
    """Remove, in place, custom attributes that TOML cannot represent (null, mixed lists); returns advice on each."""
    problems = []
    for dataset in config["datasets"]:
        for subset in dataset["subsets"]:
            for name, value in list(subset.get("custom_attributes", {}).items()):
                if not fits_toml({name: value}):
                    del subset["custom_attributes"][name]
                    what = f"The custom attribute '{name}' cannot be written as TOML"
                    where, fix = subset.get("image_dir", ""), "write a .json file"
                    problems.append(_advice(what, where, fix, "attribute-not-toml"))
    return problems


def dataset_config(job: TrainJob) -> tuple[dict[str, Any], list[Problem]]:
    """Return (content of a dataset config, advice on settings that it cannot contain). Reads folders and writes nothing.

    Raises ProblemsError for a job without a folder.
    """
    concepts = [*all_concepts(job)]
    if not concepts:
        what = "There is no folder to write"
        raise ProblemsError.one(what, "dataset.sources", "choose an image folder first", "dataset.no-folder")
    problems = not_representable(job, concepts)
    datasets: dict[tuple, dict[str, Any]] = {}
    group_keys: dict[str, set[tuple]] = defaultdict(set)
    listed_folders: Counter[tuple] = Counter()
    for concept in concepts:
        for each, variant in _resolutions(concept):
            for folder in _folders(each, problems):
                refused = REFUSED.get(job.method.kind, ())
                options = {name: value for name, value in _options(each, folder).items() if name not in refused}
                dataset_options = {name: options.pop(name) for name in DATASET_ONLY if name in options}
                options_key = repr(sorted(dataset_options.items()))
                shared = (each.source.batch_group, variant, method_of(each), options_key)
                subset = (shared, options.get("metadata_file") or (folder.path, folder.masks))
                # A number, since sd-scripts ignores a folder that its dataset has already, unless it has no repeats.
                key = (*shared, listed_folders[subset] * each.source.enabled)
                listed_folders[subset] += each.source.enabled
                datasets.setdefault(key, {**dataset_options, "subsets": []})["subsets"].append(options)
                if not variant:
                    problems += _unread_captions(each, folder)
                    group_keys[concept.batch_group].add(key)
    if any(len(keys) > 1 for keys in group_keys.values()):
        what = "Folders that share batches here become separate datasets: sd-scripts never mixes datasets in a batch"
        fix = "give them the same resolution and buckets if they should share batches"
        problems.append(_advice(what, "dataset.sources", fix, "separate-datasets"))
    return _tidy(list(datasets.values()), _seed(job, concepts)), problems


def all_concepts(job: TrainJob) -> Iterator[Concept]:
    """Yield every folder of a job with its effective settings, also disabled ones, which are exported with num_repeats = 0."""
    sources = job.dataset.sources
    with_all = job.with_settings(dataset={"sources": [each.model_copy(update={"enabled": True}) for each in sources]})
    enabled = [True] * (len(with_all.dataset.all_sources()) - len(sources)) + [each.enabled for each in sources]
    for concept, is_enabled in zip(concepts_of(with_all), enabled, strict=True):
        yield concept if is_enabled else replace(concept, source=concept.source.model_copy(update={"enabled": False}))


def method_of(concept: Concept) -> str:
    """Return the kind of dataset that a folder belongs to: CONDITIONED with masks, FINE_TUNING with metadata, else DREAMBOOTH."""
    if concept.images.conditioning_data_dir:
        return CONDITIONED
    return FINE_TUNING if concept.source.metadata_file else DREAMBOOTH


def _resolutions(concept: Concept) -> Iterator[tuple[Concept, str]]:
    """Yield (folder at one resolution, "" or the additional resolution as text): sd-scripts needs a dataset for each resolution."""
    yield concept, ""
    sizes = {_sides(size): size for size in (concept.images.resolution, *concept.images.more_resolutions)}
    for size in list(sizes.values())[1:]:
        images = concept.images.model_copy(update={"resolution": size, "more_resolutions": []})
        yield replace(concept, images=images), str(size)


# ---- values under sd-scripts' names


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return (width, height) of a resolution, which may be one number."""
    return size if isinstance(size, tuple) else (size, size)


def bucket_sides(images: ImageSettings) -> tuple[int, int]:
    """Return the smallest and largest bucket side in pixels in effect: sd-scripts refuses a minimum above the resolution and a maximum
    below it."""
    width, height = _sides(images.resolution)
    lowest, highest = images.min_bucket_reso, images.max_bucket_reso or 2 * max(width, height)
    if images.enable_bucket:
        lowest = lowest if lowest <= min(width, height) else min(width, height) // 2
        highest = max(highest, max(width, height)) if images.bucket_no_upscale else highest
    return lowest, highest


def _options(concept: Concept, folder: _Folder) -> dict[str, Any]:
    """Return {option: value} of a folder and its dataset: all options that its kind of dataset supports."""
    images, captions, source = concept.images, concept.captions, concept.source
    lowest, highest = bucket_sides(images)
    values: dict[str, Any] = {
        "image_dir": folder.path or None,
        "conditioning_data_dir": folder.masks,
        "metadata_file": written_path(source.metadata_file or ""),
        "is_reg": concept.role == "regularization",
        "class_tokens": folder.class_tokens,
        "num_repeats": folder.repeats if source.enabled else 0,
        "caption_extension": _extension(concept, folder),
        "cache_info": source.cache_info,
        "custom_attributes": source.custom_attributes | ({PRESERVE: True} if source.diff_output_preservation else {}),
        "resize_interpolation": None if images.resize_interpolation == "auto" else images.resize_interpolation,
        "face_crop_aug_range": [float(end) for end in images.face_crop_aug_range or ()] or None,
        "skip_image_resolution": area_of_side(images.skip_image_resolution),
        "resolution": list(images.resolution) if isinstance(images.resolution, tuple) else images.resolution,
        "min_bucket_reso": lowest,
        "max_bucket_reso": highest,
        "validation_split": 1.0 if concept.role == "validation" else float(concept.validation.validation_split),
        "validation_seed": None,  # one for all, in [general]
    }
    for name, option in OPTIONS.items():
        if name not in values:
            group: Any = images if option.setting in ImageSettings.model_fields else captions
            value = getattr(group, option.setting or name)
            values[name] = int(value) if option.kind == "number" and float(value).is_integer() else value
    return {name: value for name, value in values.items() if method_of(concept) in OPTIONS[name].methods}


def _extension(concept: Concept, folder: _Folder) -> str:
    """Return the caption extension of a folder. For `auto`, unknown to sd-scripts, the more frequent of .txt and .caption."""
    extension = concept.captions.caption_extension
    if extension != "auto":
        return extension
    endings = Counter(ending for _, ending in _captions_in(folder))
    return ".caption" if endings[".caption"] > endings[".txt"] else ".txt"


def _captions_in(folder: _Folder) -> list[tuple[str, str]]:
    """Return (name, ".txt" or ".caption") of the images directly in a folder with such a caption file; `auto` prefers .txt. [] for a folder
    that cannot be read."""
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
    """Yield advice on caption files that `auto` reads and sd-scripts, with one extension per folder, does not."""
    if concept.captions.caption_extension != "auto" or concept.source.metadata_file:
        return
    chosen = _extension(concept, folder)
    lost = [name for name, ending in _captions_in(folder) if ending != chosen]
    if lost:
        other = ".caption" if chosen == ".txt" else ".txt"
        what = f"sd-scripts reads one caption extension per folder, here {chosen}, and ignores the {other} of {listed(lost, 3)}"
        fix = f"rename these {other} files to {chosen}"
        yield _advice(what, folder.path, fix, "mixed-caption-extensions")


# ---- which folders


def written_path(text: str) -> str:
    """Return a path for another program: absolute, with "/" on Windows too."""
    windows = PureWindowsPath(text)
    if windows.drive:
        return windows.as_posix()
    return resolve_path(text).as_posix()


def _folders(concept: Concept, problems: list[Problem]) -> list[_Folder]:
    """Return the folders of a dataset folder: sd-scripts takes neither subfolders nor repeats in folder names from an image_dir.
    problems: advice is added in place"""
    source = concept.source
    path = written_path(source.folder) if source.folder.strip() else ""
    masks = written_path(concept.images.conditioning_data_dir) if concept.images.conditioning_data_dir else None
    if source.metadata_file:
        return [_Folder(path, source.num_repeats or 1, "", masks)]
    class_tokens = class_tokens_for(source, "\0")  # an impossible folder name: what is left are the source's settings
    if not source.recursive and (source.num_repeats is not None or not source.enabled) and class_tokens != "\0":
        return [_Folder(path, source.num_repeats or 1, class_tokens, masks)]
    return _scanned_folders(concept, path, masks, problems)


def _scanned_folders(concept: Concept, path: str, masks: str | None, problems: list[Problem]) -> list[_Folder]:
    """Return the folder of `concept` and those below it that directly contain images, with the repeats and class tokens of their paths.

    path, masks  the image folder and mask folder as written to the file
    problems     advice on files that sd-scripts does not read, or on finding no images, is added in place
    """
    source = concept.source
    folders: list[_Folder] = []
    others: Counter[str] = Counter()
    top, _ = folder_of(source)
    excluded = mask_folders(concept)
    for root in roots_of(source, top)[0] if top else []:
        walked = walk(root.path, None, root.left_out, excluded=excluded, recursive=source.recursive)
        for parent in dict.fromkeys(file.path.parent for file in walked.files):
            written = parent.as_posix()
            folders.append(_Folder(written, root.repeats, root.class_tokens, _masks_of(parent, top, masks)))
        others.update(ending for file in walked.files if (ending := extension(file.relative)) not in READ_BY_SD_SCRIPTS)
    if others:
        what = f"sd-scripts does not read {', '.join(f'{number} {ending}' for ending, number in others.items())} files"
        problems.append(_advice(what, path, "convert them to .png", "unread-images"))
    if not folders:
        repeats, words = repeats_and_words(PurePosixPath(path).name) or (1, as_words(PurePosixPath(path).name))
        what = "The folder contains no images; it is written without subfolders"
        fix = "check it on the machine that trains"
        problems.append(Problem(what, path, fix, "advice", code="dataset.no-images"))
        folders = [_Folder(path, source.num_repeats or max(repeats, 1), class_tokens_for(source, words), masks)]
    return folders


def _masks_of(folder: Path, top: Path | None, masks: str | None) -> str | None:
    """Return the mask folder for the images in `folder`: the subfolder of `masks` at the same path below `top`, else `masks` itself."""
    if masks is None or top is None or folder == top:
        return masks
    below = Path(masks, os.path.relpath(folder, top))
    return below.as_posix() if below.is_dir() else masks


# ---- where each value goes


def _seed(job: TrainJob, concepts: list[Concept]) -> dict[str, int]:
    """Return {"validation_seed": value} if it is not 0 or a folder has a validation split, else {}."""
    seed = job.validation.validation_seed
    used = seed or any(concept.validation.validation_split for concept in concepts)
    return {"validation_seed": seed} if used else {}


def _tidy(datasets: list[dict[str, Any]], general: dict[str, Any]) -> dict[str, Any]:
    """Return the content of the file: values that all tables share are moved to [general], sd-scripts' defaults removed. Changes its
    arguments."""
    for name, option in OPTIONS.items():
        if GENERAL not in option.levels or name in NOT_SHARED:
            continue
        tables = [subset for each in datasets for subset in each["subsets"]] if SUBSET in option.levels else datasets
        holders = [table for table in tables if name in table]
        if holders and all(table[name] == holders[0][name] for table in holders):
            if not _is_omitted(name, holders[0][name]):
                general[name] = holders[0][name]
            for table in holders:
                del table[name]
    for dataset in datasets:
        for table in (dataset, *dataset["subsets"]):
            for name in [name for name in table if name != "subsets" and _is_omitted(name, table[name])]:
                del table[name]
        dataset["subsets"] = dataset.pop("subsets")  # the last key: TOML writes them below the options
    return {**({"general": general} if general else {}), "datasets": datasets}


def _is_omitted(name: str, value: Any) -> bool:
    """Return whether an option is left out of the file: empty, or sd-scripts' default and not in ALWAYS."""
    if value is None or (value == "" and name == "class_tokens"):
        return True
    return name not in ALWAYS and value == OPTIONS[name].default


# ---- what cannot be written


def not_representable(job: TrainJob, concepts: Sequence[Concept]) -> list[Problem]:
    """Return advice for every setting of the job that a dataset config cannot contain."""
    problems: list[Problem] = []
    with_regularization = any(concept.role == "regularization" for concept in concepts)
    for group, name, fix in LOST_SETTINGS + (WITH_REGULARIZATION if with_regularization else ()):
        model = getattr(job, group)
        info = type(model).model_fields[name]
        if getattr(model, name) != info.default:
            problems.append(_lost_advice(name, f"{group}.{name}", fix, info.title))
    if with_regularization and job.dataset.reg_balance != "kohya":
        what = "sd-scripts uses only the first regularization images"
        fix = "set model.compatibility to compare with it"
        problems.append(_advice(what, "model.compatibility", fix, "regularization-balance"))
    token = None if job.captions.trigger_word else captions_in_force(job).trigger_word  # of textual inversion
    for concept in concepts:
        problems += _folder_advice(concept, token)
        for name in REFUSED.get(job.method.kind, ()):
            if getattr(concept.validation if name == "validation_split" else concept.captions, name):
                fix = "expect a training without it: sd-scripts refuses it with this training method"
                problems.append(_lost_advice(name, concept.source.folder, fix))
    return list(dict.fromkeys(problems))


def without_passed(problems: Sequence[Problem], options: Mapping[str, Any]) -> list[Problem]:
    """Return the problems without advice to pass an option of `options` ({name: value}), since it is already passed."""
    advised = {f"dataset-config.{slug}": names for slug, names in ADVISED.items()}
    return [each for each in problems if not any(options.get(name) for name in advised.get(each.code, ()))]


def _lost_advice(name: str, where: str, fix: str, title: str | None = None) -> Problem:
    """Return advice that a setting is lost, with the code dataset-config.lost.NAME; `title` defaults to the setting's."""
    what = f"'{title or declaration(name).title}' cannot be written to a dataset config of sd-scripts"
    return _advice(what, where, fix, f"lost.{name}")


def _advice(what: str, where: str, fix: str, slug: str) -> Problem:
    """Return advice with the code dataset-config.SLUG."""
    return Problem(what, where, fix, "advice", code=f"dataset-config.{slug}")


def _folder_advice(concept: Concept, token: str | None) -> Iterator[Problem]:
    """Yield advice for a folder's settings that the file cannot contain, or that its kind of dataset does not support.
    token: a textual inversion's token that serves as the trigger word; None if the settings have a trigger word"""
    source, images, captions = concept.source, concept.images, concept.captions
    masks, metadata = images.conditioning_data_dir, source.metadata_file
    regularization = concept.role == "regularization"
    class_words = source.class_tokens or source.identifier or source.class_word
    lost = (
        (captions.sidecars != "one", "sidecars", "join them into one caption file: sd-scripts reads only one"),
        (captions.caption_lines != "first" and not captions.enable_wildcard, "caption_lines", "turn on wildcards to pick a random line"),
        (captions.trigger_word not in (None, token), "trigger_word", "write it into the captions, or use a caption prefix"),
        (captions.caption_template != "none", "caption_template", "pass --use_object_template or --use_style_template to sd-scripts"),
        (images.conditioning_suffix is not None, "conditioning_suffix",
         "move the masks or control images to another folder, named as their images"),
        (images.control_interpolation is not None and concept.control, "control_interpolation", "resize the control images yourself"),
        (images.alpha_color != "#ffffff", "alpha_color", "fill the transparency of the images first: sd-scripts drops it"),
        (source.samples_per_epoch is not None, "samples_per_epoch", "set repeats instead"),
        (source.loss_weight != 1, "loss_weight", "set repeats instead"),
        (images.more_resolutions and images.resolution_choice == "drawn", "resolution_choice", "divide the number of epochs"),
        (captions.caption_tag_dropout_rate and captions.tag_dropout_mode == "all", "tag_dropout_mode", "use caption dropout"),
        (source.validation_images, "validation_images", "put them into a separate folder with the validation role"),
        (masks and not images.masked_loss and not concept.control, "masked_loss",
         "remove the mask folder: sd-scripts would use it for ControlNet, or with --masked_loss as masks"),
        (not masks and images.masked_loss and not images.alpha_mask, "masked_loss", "choose a mask folder"),
        (masks and metadata, "metadata_file", "write caption files: with a mask folder sd-scripts reads only those"),
        (masks and images.alpha_mask, "alpha_mask", "turn one of them off: sd-scripts uses the mask folder only"),
        (regularization and (masks or metadata), "role",
         "use regularization folders without masks and metadata: sd-scripts supports no others"),
        (masks and class_words, "class_tokens", "write caption files"),
        (metadata and source.cache_info, "cache_info", "turn it off: sd-scripts reads the metadata file"),
    )  # fmt: skip
    other = (
        (not source.enabled, "disabled-folder", "The folder is disabled and written with num_repeats = 0, which excludes it",
         "remove it from the file, or set its repeats"),
        (images.more_resolutions, "more-resolutions",
         "Additional resolutions are written as additional datasets over the same folder; an image with one bucket at two of them"
         " trains twice there", "no action needed"),
        (images.enable_bucket and images.bucket_reso_steps % 64, "bucket-step",
         f"sd-scripts refuses a bucket step of {images.bucket_reso_steps}", "use a multiple of 64 (SDXL: 32)"),
        (masks and images.masked_loss, "masks-need-option", "sd-scripts uses masks only with a command line option",
         "pass --masked_loss to sd-scripts"),
        (token and captions.trigger_word == token and captions.caption_template == "none", "token-in-captions",
         "sd-scripts trains the token only with captions that contain it", "write it into the captions, or choose a caption template"),
        (masks and is_painted(resolve_path(masks)), "painted-masks",
         "Only painted masks are in the mask folder, and sd-scripts reads no others", "copy the masks of the other images into it"),
        (masks and images.random_crop, "random-crop-with-masks", "sd-scripts refuses random crop with a mask folder", "turn it off"),
    )  # fmt: skip
    yield from (_lost_advice(name, source.folder, fix) for applies, name, fix in lost if applies)
    yield from (_advice(what, source.folder, fix, slug) for applies, slug, what, fix in other if applies)


# ---- the text


def dataset_toml(config: dict[str, Any]) -> str:
    """Return the content of a dataset config as TOML: [general], [[datasets]] and [[datasets.subsets]]."""
    lines = ["# Dataset config of sd-scripts, for --dataset_config"]
    if config.get("general"):
        lines += ["", "[general]", *toml_table(config["general"], "general", "")]
    for dataset in config["datasets"]:
        options = {name: value for name, value in dataset.items() if name != "subsets"}
        lines += ["", "[[datasets]]", *toml_table(options, "datasets", "")]
        for subset in dataset["subsets"]:
            lines += ["", "  [[datasets.subsets]]", *toml_table(subset, "datasets.subsets", "  ")]
    return "\n".join(lines) + "\n"


def fits_toml(value: Any) -> bool:
    """Return whether a value survives sd-scripts' TOML parser, as null and mixed lists do not."""
    config = {"datasets": [{"subsets": [{"x": value, "image_dir": "a"}, {"image_dir": "b"}]}]}
    return reads_as(dataset_toml(config), config)


def reads_as(text: str, content: dict[str, Any]) -> bool:
    """Return whether a text can be encoded as UTF-8 and sd-scripts' TOML parser reads `content` from it."""
    try:
        text.encode("utf-8")
        return toml.loads(text) == content
    except Exception:  # the package raises IndexError and the like
        return False


def toml_table(values: dict[str, Any], path: str, indent: str) -> list[str]:
    """Return the lines of a TOML table's content. Plain values first: anything after a sub-table's header would belong to that.

    path    dotted name of the table, for the headers of sub-tables
    indent  spaces before each line
    """
    lines = [f"{indent}{_key(name)} = {_value(value)}" for name, value in values.items() if not isinstance(value, dict)]
    for name, value in values.items():
        if isinstance(value, dict):
            below = f"{path}.{_key(name)}"
            lines += ["", f"{indent}[{below}]", *toml_table(value, below, indent)]
    return lines


def _key(name: str) -> str:
    """Return a TOML key, quoted if necessary."""
    return name if _BARE.fullmatch(name) else _double_quoted(name)


def _value(value: Any) -> str:
    """Return a value as TOML that sd-scripts' parser reads back."""
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, list):
        return "[" + ", ".join(_value(each) for each in value) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(name)} = {_value(each)}" for name, each in value.items()) + " }"
    if isinstance(value, float):
        return repr(value) if "." in repr(value) else repr(value).replace("e", ".0e")
    return json.dumps(value)


def _text(text: str) -> str:
    """Return text as a TOML string: in single quotes, which keep backslashes, else the simplest form that sd-scripts' parser reads back."""
    literal = [f"'{text}'"] if "'" not in text and not _CONTROL.search(text) and re.search(r'[\\/"]', text) else []
    escaped = "".join(f"\\u{ord(each):04x}" if ord(each) < 128 and not each.isalnum() else each for each in text)
    forms = [*literal, _double_quoted(text), f'"{escaped}"']
    return next((form for form in forms if reads_as(f"a = {form}\nb = 1\n", {"a": text, "b": 1})), forms[-1])


def _double_quoted(text: str) -> str:
    """Return text as a TOML string in double quotes, with escapes."""
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + _CONTROL.sub(lambda match: _SHORT.get(match[0], f"\\u{ord(match[0]):04x}"), text) + '"'
