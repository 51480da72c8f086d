"""Import training settings of OneTrainer: a preset, a saved config, or the config in a LoRA file.

Concepts and samples, in the config or in files of their own, become folders and prompts.
"""

import math
from collections.abc import Iterable, Iterator

from core.imports.projects.kohya_ss import count_images
from core.imports.projects.onetrainer_config import NAME, TABLE, TITLE, Config, resolve
from core.imports.projects.onetrainer_rules import FIXED, RULES, SIZE, size_of
from core.imports.projects.report import Import, Source
from core.imports.projects.table import Values, clamp, flattened, item_values, to_import, with_bounds
from core.settings.presets.foreign import MARKS, ONETRAINER

__all__ = ["NAME", "TITLE", "keys", "read", "recognizes"]

LONGEST = 2_000  # characters of a prompt
FORMER = {"repeats": "balancing", "validation_concept": "type"}
ROLES = {"STANDARD": "train", "VALIDATION": "validation", "PRIOR_PREDICTION": "train"}


def recognizes(source: Source) -> bool:
    """Return whether a text is a config of OneTrainer."""
    options = source.json
    if options is None or "schema_version" in options:
        return False
    return "training_method" in options or len(MARKS[ONETRAINER] & options.keys()) > 2


def keys() -> Iterable[str]:
    """Return every key that the importer knows; keys of parts, concepts and samples contain dots."""
    return [*TABLE.rows, *TABLE.data["former"]]


def read(source: Source) -> Import:
    """Import a config of OneTrainer as a job with a report. Raises ProblemsError for models and methods that are not trained here."""
    config = resolve(source)
    settings = config.settings(RULES)
    folders = items(config, "concepts", "concept_file_name")
    prompts = items(config, "samples", "sample_definition_file_name")
    settings |= concepts(config, folders) | samples(config, prompts)
    written = config.written | item_values([*folders, *prompts], TABLE)
    for key in written:
        if key.rpartition(".")[2] == "__version":
            config.note(key, "idle", "is the version of the file")
    return to_import(config, settings, written, FIXED, NAME, f"{config['training_method']} of {config['model_type']}")


def items(config: Config, name: str, file_key: str) -> list[Values]:
    """Return the items of `name` ("concepts" or "samples") as {"concepts.path": value}, from the config, else from the file that `file_key`
    names; [] with a note if that is missing."""
    listed = config.written.get(name)
    if not isinstance(listed, list):
        listed = config.source.json_of(config[file_key])
        if not isinstance(listed, list):
            config.note(file_key, "unavailable", "is not found here")
            return []
        config.note(file_key, "taken", f"has {len(listed)} {name}")
    return config.items(
        name, [_with_current_names(each) if isinstance(each, dict) else each for each in listed], f"{name}."
    )


def _with_current_names(item: Values) -> Values:
    """Return a concept or sample with its parts flattened, and former names replaced by the current ones."""
    return {FORMER.get(key, key): value for key, value in flattened(item, ("image", "text")).items()}


def concepts(config: Config, listed: list[Values]) -> Values:
    """Return {"dataset.folder": None, "dataset.sources": settings of the folders}; adds a warning if there are none.
    listed: the concepts, as from `items`"""
    if not listed:
        bring = config.source.bring(config["concept_file_name"], "the file of the concepts")
        fix = f"{bring}, or choose the image folders"
        config.warn("The file names no image folders", "concepts", fix, "import.no-concepts")
    sources = [source for each in listed for source in _sources(config, each)]
    return {"dataset.folder": None, "dataset.sources": sources}


def _sources(config: Config, concept: Values) -> Iterator[Values]:
    """Yield the settings {name: value} of a concept's folder. A concept without a folder yields nothing and adds a note."""
    former_type = concept.get("concepts.type")
    if isinstance(former_type, bool):  # validation_concept
        concept = concept | {"concepts.type": "VALIDATION" if former_type else "STANDARD"}
    values = config.read(concept, "concepts.")
    role = config.choose_from("concepts.type", ROLES, values["concepts.type"])
    if not values["concepts.path"].strip():
        config.note("concepts.path", "unavailable", "a concept without a folder is left out")
        return
    source = config.folder_settings(values) | {"role": role, "loss_weight": values["concepts.loss_weight"]}
    source |= {"diff_output_preservation": values["concepts.type"] == "PRIOR_PREDICTION"} | _repeats(config, values)
    source["caption_separator"] = source["caption_separator"] or ","
    if role == "validation" and not config["validation"]:
        config.note("concepts.type", "changed", "validation is off, and so are its folders")
        source["enabled"] = False
    if values["concepts.image.enable_resolution_override"]:
        text = values["concepts.image.resolution_override"].strip().lower()
        if SIZE.fullmatch(text):
            source["resolution"] = size_of(text)
        else:
            config.note("concepts.image.resolution_override", "unavailable", "is neither a number nor width x height")
    yield with_bounds(source) | _dropout(config, values)


def _dropout(config: Config, values: Values) -> Values:
    """Return {name: value} of "caption_tag_dropout_rate" and "tag_dropout_mode" of a folder; {} if tag dropout is off."""
    if not values["concepts.text.tag_dropout_enable"]:
        return {}
    key = "concepts.text.tag_dropout_mode"
    rate = clamp(0.0, 1.0, values["concepts.text.tag_dropout_probability"])
    return {"caption_tag_dropout_rate": rate, "tag_dropout_mode": config.choice(key, values[key])}


def _repeats(config: Config, values: Values) -> Values:
    """Return {"num_repeats": value} or {"samples_per_epoch": value} of a folder, for OneTrainer's floor(images * balancing). A fraction
    needs the number of images; if it is unknown the repeats are rounded, with a note.
    values: {key: value} of the concept"""
    number, path = values["concepts.balancing"], values["concepts.path"]
    if values["concepts.balancing_strategy"] == "SAMPLES":
        return {"samples_per_epoch": int(number)}
    if number == int(number) and number >= 1:
        return {"num_repeats": int(number)}
    counts = count_images(path) if config.source.folder is not None else None
    if counts is None:
        sentence = f"is {number:g} repeats: set samples_per_epoch to that part of the images"
        config.note("concepts.balancing", "unavailable", sentence)
        return {"num_repeats": round(number)}
    images = sum(counts.values()) if values["concepts.include_subdirectories"] else counts.get("", 0)
    share = math.floor(images * number)
    config.note("concepts.balancing", "changed", f"{number:g} repeats of {images} images are {share} images per epoch")
    return {"samples_per_epoch": share}


def samples(config: Config, listed: list[Values]) -> Values:
    """Return {"samples.sample_prompts": prompts with options}. listed: the samples, as from `items`"""
    return {"samples.sample_prompts": [line for each in listed for line in _line(config, each)]}


def _line(config: Config, sample: Values) -> Iterator[str]:
    """Yield a sample as a prompt with options, "a cat --w 512 --d 1". A sample that is off yields nothing and adds a note."""
    values = {key.partition(".")[2]: value for key, value in config.read(sample, "samples.").items()}
    key = "samples.noise_scheduler"
    sampler = config.choice(key, values["noise_scheduler"])
    if not values["enabled"]:
        config.note("samples.enabled", "changed", "samples that are off are left out")
        return
    prompt, negative = (" ".join(values[name][:LONGEST].split()) for name in ("prompt", "negative_prompt"))
    width, height = (clamp(64, 4096, values[side] // 8 * 8) for side in ("width", "height"))
    options = {"n": negative, "w": width, "h": height, "d": clamp(0, 2**32 - 1, values["seed"])}
    options |= {"s": clamp(1, 1000, values["diffusion_steps"]), "l": f"{values['cfg_scale']:g}", "ss": sampler}
    omitted = [name for name in ("n", "d") if (name == "n" and not negative) or (name == "d" and values["random_seed"])]
    yield " ".join([prompt, *(f"--{name} {value}" for name, value in options.items() if name not in omitted)])
