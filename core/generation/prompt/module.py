"""Prompts from a Python module: its `prompts(job)`, or sd-scripts' `get_prompter(args, pipe, networks)`."""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Iterable, Iterator
from itertools import islice
from random import Random
from types import ModuleType, SimpleNamespace
from typing import Any

from core.generation.prompt.files import MAX_PROMPTS, Entry, is_prompt
from core.record.allowed import FILE, allowed_modules
from core.record.problems import ProblemsError
from core.settings.base import declared, value_of
from core.settings.job import GenerateJob

WHERE = "prompts.from_module"
# names in sd-scripts' generator -> settings, where they differ
KOHYA = {"W": "generate.width", "H": "generate.height", "scale": "generate.guidance_scale"}
KOHYA |= {"steps": "generate.steps", "seed": "generate.seed", "images_per_prompt": "generate.count"}
KOHYA |= {"prompt": "generate.prompt", "sampler": "generate.sampler", "ckpt": "model.base_model"}


def module_entries(job: GenerateJob) -> list[Entry]:
    """The prompts of the job's module, not yet parsed; it is called once. Raises ProblemsError."""
    name = job.prompts.from_module or ""
    module = _imported(name)
    make = next((way for what, way in WAYS.items() if callable(getattr(module, what, None))), None)
    if make is None:
        what = f"The module '{name}' has no prompts(job) and no get_prompter(args, pipe, networks)"
        raise ProblemsError.one(what, WHERE, "define one of them in it", "prompts.module-empty")
    try:
        found = list(islice(make(module, job), MAX_PROMPTS + 1))
    except (Exception, SystemExit) as error:  # of other people's code
        what = f"The module '{name}' failed: {type(error).__name__}: {error}"
        raise ProblemsError.one(what, WHERE, "fix the module", "prompts.module-failed") from error
    if len(found) > MAX_PROMPTS:
        raise ProblemsError.one(
            f"There are more than {MAX_PROMPTS:,} prompts", WHERE, f"use at most {MAX_PROMPTS:,}", "prompts.too-many"
        )
    wrong = next((entry for entry in found if not isinstance(entry, str | dict)), None)
    if wrong is not None:
        what = f"The module '{name}' returned a {type(wrong).__name__} where a prompt is expected"
        raise ProblemsError.one(what, WHERE, "return lines of text", "prompts.module-failed")
    return [entry for entry in found if isinstance(entry, dict) or is_prompt(entry)]


def _imported(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")) or name.endswith(".py"):
        fix = "put mine.py next to webui.py and write: mine"
        raise ProblemsError.one(f"'{name}' is not the name of a module", WHERE, fix, "prompts.module-name")
    top = name.partition(".")[0]
    if top not in allowed_modules():
        what = f"The module '{top}' is not allowed on this machine"
        fix = f"start with --allow-module {top} if you trust it, or add {top} to {FILE.name} next to webui.py"
        raise ProblemsError.one(what, WHERE, fix, "module.not-allowed")
    try:
        return importlib.import_module(name)
    except Exception as error:
        what = f"The module '{name}' cannot be imported: {type(error).__name__}: {error}"
        fix = "install it into Atelier's Python environment, or put it next to webui.py"
        raise ProblemsError.one(what, WHERE, fix, "module.import") from error


def _of_prompts(module: Any, job: GenerateJob) -> Iterable[Any]:
    found: Iterable[Any] = module.prompts(job)
    return found


def _of_prompter(module: Any, job: GenerateJob) -> Iterator[Any]:
    """Called as by sd-scripts' generator, but before a model is loaded: pipe is None, networks are empty."""
    args = SimpleNamespace(**{entry.kohya or entry.name: value_of(job, entry.path) for entry in declared(GenerateJob)})
    vars(args).update({name: value_of(job, path) for name, path in KOHYA.items()})
    prompter = module.get_prompter(args, None, [])
    seeds = Random(secrets.randbits(32) if job.generate.seed is None else job.generate.seed)
    iter_seed = seeds.randint(0, 2**32 - 1)
    for number in range(MAX_PROMPTS + 1):
        line = prompter(args, None, seeds, iter_seed, number, number * job.generate.count)
        if line is None:
            return
        yield line


WAYS = {"prompts": _of_prompts, "get_prompter": _of_prompter}
