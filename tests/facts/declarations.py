"""What every setting of every task is declared with, and what its text conversions make of values and odd texts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from typing import Any

from pydantic import BaseModel

from core import extensions, tasks
from core.settings.base import Declared, compatibility_values, declared, follows_compatibility, item_settings
from core.settings.check import allowed, build
from core.settings.flags import read_flags
from core.settings.job import JOBS, TrainJob
from core.settings.model import FAMILIES
from core.settings.network import NETWORK_KINDS
from core.settings.optimization.optimizers import catalog
from core.settings.readers import program_of, rows
from core.settings.values import arguments_text, shown_value, text_of, value_from, value_typed, with_point
from tests.facts.store import Facts, digest, plain, producer, refused

ABOUT = (
    "unit", "kohya", "widget", "names", "first", "needs", "replaces", "empty_as", "recorded", "blocks_of", "elsewhere",
    "holds", "only",
)  # fmt: skip
TEXTS = (
    "", " ", "0", "1", "-1", "007", "1.5", "0,5", "1,000", "1,5%", "10%", "1e-4", "1E4", "2.5e-8", "nan", "inf", "null", "true",
    "False", "on", "512", "512x768", "512 x 768", "512,768", "[512, 768]", "(0.9, 0.999)", "0.9, 0.99", "0,0001", "1 2 3",
    "a", "a, b", "a\nb\n\n c ", '["a", "b"]', '{"a": 1}', "{a}", "[1,", "a=1 b=x", "betas=0.9,0.99\ndecouple=true", "a='1'",
    "512 MB", "1gb", "1.5 GB", "4294967296", "18446744073709551615", "1_000", "+5", "½", "768,512x768", "64;128",
)  # fmt: skip


def every_setting() -> Iterator[tuple[type[BaseModel], Declared]]:
    """(job model, setting) of every task, settings of folders and LoRAs included, each once."""
    extensions.load()
    seen: set[tuple[str, str]] = set()
    for task in JOBS:
        model = JOBS[task]
        for entry in declared(model):
            for each in (entry, *item_settings(entry)):
                key = each.path, json.dumps(plain(each.default), default=str)
                if key not in seen:
                    seen.add(key)
                    yield model, each


@producer
def settings() -> Facts:
    """Type, default, limits, choices and whatever else code reads of a declaration."""
    groups: dict[str, dict[str, Any]] = {}
    for _, entry in every_setting():
        default = entry.default if entry.info.default_factory or not entry.info.is_required() else "required"
        row = [entry.kind, default, entry.bounds or "", entry.choices or "", "empty" if entry.optional else ""]
        about = {name: value for name in ABOUT if (value := getattr(entry, name))}
        about |= {"labelled": labelled} if (labelled := [*entry.labels]) else {}
        row += [about or "", entry.level]
        while row[-1] in ("", "more"):
            row.pop()
        rows_of_group = groups.setdefault(entry.path.rpartition(".")[0], {})
        name = entry.name if entry.name not in rows_of_group else f"{entry.name} again"
        rows_of_group[name] = row if entry.kind != "object" else row[:3]
    yield from groups.items()


@producer
def tasks_of_the_program() -> Facts:
    """Groups and words of each task."""
    for name, task in tasks.tasks().items():
        yield name, [list(task.job.model_fields), task.lane, task.reads]


@producer
def followers() -> Facts:
    """What follows from `model.compatibility`, per group."""
    for name in ("none", "sd-scripts-0.10", "sd-scripts-0.9"):
        job = build(TrainJob, {"model": {"compatibility": name}})
        groups = {group: getattr(job, group) for group in type(job).model_fields}
        yield (
            name,
            {
                group: {field: getattr(settings, field) for field in compatibility_values(type(settings))}
                for group, settings in groups.items()
                if compatibility_values(type(settings))
            },
        )
    yield "declared", plain(follows_compatibility("a", "b").json_schema_extra)


@producer
def odd_texts() -> Facts:
    """What one setting of each form makes of odd texts: of the form, of the command line, and back."""
    chosen: dict[tuple, Declared] = {}
    for _, entry in sorted(every_setting(), key=lambda each: each[1].path):  # whatever was imported first
        widget = entry.widget if entry.widget in ("sizes", "sources", "file") else bool(entry.blocks_of)
        form = entry.kind, widget, entry.optional and entry.kind != "list", entry.unit in ("bytes", "pixels")
        chosen.setdefault(form, entry)
    yield (
        "arguments",
        arguments_text({"a": 0.5, "b": [1, 2], "c": [1], "d": True, "e": "x", "f": "1", "g": None, "h": []}),
    )
    for entry in sorted(chosen.values(), key=lambda each: each.path):
        yield f"{entry.path} allowed", [allowed(entry), shown_value(entry, None)]
        for text in TEXTS:
            found = [refused(value_from, entry, text), value_typed(entry, text), refused(with_point, entry, text)]
            found.append("" if entry.elsewhere or entry.kind == "arguments" else refused(_there_and_back, entry, text))
            yield f"{entry.path} {text}", [each if each != text else "=" for each in found]


def _there_and_back(entry: Declared, text: str) -> Any:
    return text_of(entry, value_from(entry, text))


@producer
def tables() -> Facts:
    """Facts by family, by network kind, by optimizer, and which programs read which files."""
    for name, traits in FAMILIES.items():
        yield f"family {name}", asdict(traits)
    for name, kind in NETWORK_KINDS.items():
        found = {key: value for key, value in vars(kind).items() if key != "misread" and not callable(value)}
        found = {
            key: each for key, each in found.items() if not isinstance(getattr(type(kind), key, 0), cached_property)
        }
        yield f"network {name}", found
        yield f"readers of {name}", rows(kind.misread)
    entries = catalog().values()
    yield "optimizers", [[each.name, each.path, sorted(each.traits), bool(each.offered)] for each in entries][:40]
    yield "all optimizers", digest([[each.name, each.path, sorted(each.traits), each.offered] for each in entries])
    for folder in (
        "ComfyUI/models",
        "x/stable-diffusion-webui/models/Lora",
        "Forge/a",
        "b/diffusers",
        "a1111",
        "c/d",
        "",
    ):
        from pathlib import PurePosixPath

        yield f"program of {folder}", program_of(PurePosixPath(folder))


WORDS = (
    "--noise.min_snr_gamma 5", "--noise.min_snr_gamma=5", "--method.ema", "--no-method.ema", "--method.ema false",
    "--min_snr_gamma 5", "--noise.min_snr_gama 5", "--network_dim 8", "--use_8bit_adam",
    "--use_8bit_adam --optimizer.optimizer_type=Lion", "--use_lion_optimizer", "--network_module lycoris.kohya",
    "--network_args algo=lokr factor=8", "--network_module lycoris.kohya --network_args algo=loha conv_dim=4 dropout=0.1",
    "--network_module nonsense", "--network_module lycoris.kohya --network_args algo=what", "stray", "--dataset.resolution",
    "--dataset.resolution 512,768", "--dataset.sources a", "--samples.sample_prompts a,b", "--optimizer.optimizer_args d=2 x",
    "--method.kind lllite --dropout 0.5", "--method.kind=controlnet --learning_rate 1", "--memory.cache_latents off",
    "--network_module lycoris.kohya --network_args algo=locon dora_wd=True use_cp=1", "--embedding.token_string null",
    "--network_module networks.lora --network_args conv_dim=4 rank_dropout=0.1 nonsense=1", "--nonsense", "--rank 4",
)  # fmt: skip


@producer
def words_of_the_command_line() -> Facts:
    """Values and problems of flags."""
    for words in WORDS:
        values, problems = read_flags(TrainJob, words.split())
        yield words, [values, problems, [each.fix for each in problems]]
