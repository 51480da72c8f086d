"""The concepts and samples of a OneTrainer config, in it or in files of their own: folders and prompts here."""

from __future__ import annotations

import math
from collections.abc import Iterator

from core.imports.projects.kohya_ss import counted
from core.imports.projects.onetrainer_config import Config, rows
from core.imports.projects.onetrainer_rules import SIZE, size_of
from core.imports.projects.table import Values, bounded, flattened, within

LONGEST = 2_000  # characters of a prompt
FORMER = {"repeats": "balancing", "validation_concept": "type"}
ROLES = {"STANDARD": "train", "VALIDATION": "validation", "PRIOR_PREDICTION": "train"}


def items(config: Config, name: str, file_key: str) -> list[Values]:
    """The concepts or samples by key ("concepts.text.prompt_source"), with the keys that are written."""
    given = config.written.get(name)
    if not isinstance(given, list):
        given = config.source.json_of(config[file_key])
        if not isinstance(given, list):
            config.note(file_key, "unavailable", "is not found here")
            return []
        config.note(file_key, "taken", f"has {len(given)} {name}")
    listed = [flattened(each, ("image", "text")) if isinstance(each, dict) else each for each in given]
    listed = [
        {FORMER.get(key, key): value for key, value in each.items()} if isinstance(each, dict) else each
        for each in listed
    ]
    return config.items(name, listed, f"{name}.")


def concepts(config: Config, listed: list[Values]) -> Values:
    if not listed:
        fix = "put the file of the concepts next to the preset and import it again, or choose the image folders"
        config.warn("The file names no image folders", "concepts", fix, "import.no-concepts")
    sources = [source for each in listed for source in _sources(config, each)]
    return {"dataset.folder": None, "dataset.sources": sources}


def _sources(config: Config, given: Values) -> Iterator[Values]:
    old = given.get("concepts.type")
    if isinstance(old, bool):  # validation_concept
        given = given | {"concepts.type": "VALIDATION" if old else "STANDARD"}
    values = config.take(given, "concepts.")
    role = config.among("concepts.type", ROLES, values["concepts.type"])
    if not values["concepts.path"].strip():
        config.note("concepts.path", "unavailable", "a concept without a folder is left out")
        return
    source = config.folder(values) | {"role": role, "loss_weight": values["concepts.loss_weight"]}
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
    yield bounded(source) | _dropout(config, values)


def _dropout(config: Config, values: Values) -> Values:
    if not values["concepts.text.tag_dropout_enable"]:
        return {}
    key = "concepts.text.tag_dropout_mode"
    mode = config.among(key, rows()[key].choices or {}, values[key])
    rate = within(0.0, 1.0, values["concepts.text.tag_dropout_probability"])
    return {"caption_tag_dropout_rate": rate, "tag_dropout_mode": mode}


def _repeats(config: Config, values: Values) -> Values:
    """How many images of a folder an epoch has: OneTrainer shows floor(images * balancing)."""
    number, path = values["concepts.balancing"], values["concepts.path"]
    if values["concepts.balancing_strategy"] == "SAMPLES":
        return {"samples_per_epoch": int(number)}
    if number == int(number) and number >= 1:
        return {"num_repeats": int(number)}
    here = counted(path) if config.source.folder is not None else None
    if here is None:
        sentence = f"is {number:g} repeats: set samples_per_epoch to that part of the images"
        config.note("concepts.balancing", "unavailable", sentence)
        return {"num_repeats": round(number)}
    images = sum(here.values()) if values["concepts.include_subdirectories"] else here.get("", 0)
    part = math.floor(images * number)
    config.note("concepts.balancing", "changed", f"{number:g} repeats of {images} images are {part} images per epoch")
    return {"samples_per_epoch": part}


def samples(config: Config, listed: list[Values]) -> Values:
    return {"samples.sample_prompts": [line for each in listed for line in _line(config, each)]}


def _line(config: Config, given: Values) -> Iterator[str]:
    """A sample as a line of prompts with its options."""
    values = {key.partition(".")[2]: value for key, value in config.take(given, "samples.").items()}
    key = "samples.noise_scheduler"
    sampler = config.among(key, rows()[key].choices or {}, values["noise_scheduler"])
    if not values["enabled"]:
        config.note("samples.enabled", "changed", "samples that are off are left out")
        return
    prompt, negative = (" ".join(values[name][:LONGEST].split()) for name in ("prompt", "negative_prompt"))
    width, height = (within(64, 4096, values[side] // 8 * 8) for side in ("width", "height"))
    options = {"n": negative, "w": width, "h": height, "d": within(0, 2**32 - 1, values["seed"])}
    options |= {"s": within(1, 1000, values["diffusion_steps"]), "l": f"{values['cfg_scale']:g}", "ss": sampler}
    left = [name for name in ("n", "d") if (name == "n" and not negative) or (name == "d" and values["random_seed"])]
    yield " ".join([prompt, *(f"--{name} {value}" for name, value in options.items() if name not in left)])
