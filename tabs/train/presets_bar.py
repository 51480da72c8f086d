"""The preset bar: choose, save, rename, delete, reset, undo, redo. Loading gives exactly the saved job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.formats.detect import FAMILY_NAMES
from core.record.problems import ProblemsError
from core.record.units import count
from core.settings.job import TrainJob, new_project
from core.settings.names import bad_name
from core.settings.presets import files as preset_files
from core.settings.values import shown_value
from core.training.checks.recipe_fit import fits, nearest, recipe_problems
from tabs.form.plain_presets import read_preset, read_text, shown_name
from tabs.form.project import FIELDS
from tabs.server.browsers import Browser
from tabs.train.method_needs import with_family

if TYPE_CHECKING:
    from tabs.context import Page

DEFAULTS = ""


def choices(page: Page) -> list[tuple[str, list[tuple[str, str]]]]:
    """[(group, [(words, name)])]: whole presets, then recipes by family; in each what this machine has no VRAM for last."""
    found: dict[str, list[tuple[str, str]]] = {"": [("Defaults", DEFAULTS)]}
    for group, words, name in _listed(page):
        found.setdefault(group, []).append((words, name))
    return list(found.items())


def _listed(page: Page) -> list[tuple[str, str, str]]:
    """(group, words, name) of every preset for trainings."""
    gpu, ordered = page.gpu(), []
    for number, name in enumerate(page.presets.names("train")):
        preset = read_preset(page, name)
        own = name.startswith("user/")
        words = shown_name(page, name) + (" (yours)" if own else "")
        family = preset.family if preset is not None and not own else ""
        enough = preset is None or preset.kind != "recipe" or fits(preset, gpu)
        words += "" if enough or not gpu else " (needs more VRAM)"
        group = "Your presets" if own else FAMILY_NAMES.get(family, "Presets")
        group += " (for a GPU)" if family and gpu == 0 else ""
        vram = preset.vram_gb if preset is not None and family else number
        ordered.append(((own, family, not enough, vram), (group, words, name)))
    return [listed for _, listed in sorted(ordered)]


def recipe_facts(page: Page) -> dict[str, Any] | None:
    """What the loaded recipe is for, and each value that it sets with its reason; None where no recipe is loaded."""
    recipe = page.project.recipe()
    if recipe is None:
        return None
    sets = [
        {
            "field": path,
            "title": FIELDS[path].title,
            "value": shown_value(FIELDS[path], value),
            "why": recipe.reasons.get(path, ""),
        }
        for path, value in recipe.stated().items()
    ]
    return {"about": recipe.description, "sets": sets, "fit": _fit(page, recipe)}


def _fit(page: Page, recipe: preset_files.Preset) -> dict[str, Any] | None:
    """What speaks against the recipe here, and the ways out: a recipe of the model's family, a model of the recipe's."""
    job, gpu = page.project.job, page.gpu()
    family = with_family(job, page.checks.model(job.model.base_model, job.model.family)).model.family
    problems = recipe_problems(recipe, family, gpu)
    if not problems:
        return None
    names = (name for name in page.presets.names("train") if name != page.project.preset)
    others = {name: preset for name in names if (preset := read_preset(page, name)) is not None}
    wanted = family if family in FAMILY_NAMES else recipe.family
    best = nearest(others.values(), recipe, wanted, gpu)
    other = next(([name, shown_name(page, name)] for name, preset in others.items() if preset is best), None)
    mismatch = any(problem.code == "recipe.other-family" for problem in problems)
    return {
        "what": [f"{problem.what}." for problem in problems],
        "level": problems[0].level,
        "recipe": other if mismatch or (best is not None and fits(best, gpu)) else None,
        "model": FAMILY_NAMES[recipe.family] if mismatch else "",
    }


def load(page: Page, data: dict[str, Any], browser: Browser) -> None:
    """Load a preset, or the defaults."""
    name = data.get("preset")
    if name == DEFAULTS:
        return reset(page, data, browser)
    if name not in page.presets.names():
        raise ProblemsError.one(f"There is no preset '{name}'", "preset", "choose one from the list", "preset.unknown")
    unsaved = _unsaved(page)
    left = page.project.load_preset(name)
    words = "; your model, images, prompts and name stay" if left else ""
    _say_replaced(page, browser, f"{shown_name(page, name)} loaded{words}.", unsaved)


def reset(page: Page, data: dict[str, Any], browser: Browser) -> None:
    """Every setting at its default, the folder and the model included: the defaults are whole like any preset."""
    unsaved = _unsaved(page)
    page.project.replace(new_project(), preset="", did="reset to default")
    _say_replaced(page, browser, "All settings are at their defaults.", unsaved)


def put_all_back(page: Page, data: dict[str, Any], browser: Browser) -> None:
    unsaved = _unsaved(page)
    page.project.replace(page.project.reference(), did="restoring all")
    _say_replaced(page, browser, "All changes were reverted.", unsaved)


def _unsaved(page: Page) -> int:
    """How many fields of the form no preset holds as they are."""
    with page.project.lock:
        return len(page.project.changed().keys() | page.project.bad.keys())


def _say_replaced(page: Page, browser: Browser, done: str, unsaved: int) -> None:
    """The whole form was replaced; the way back stands next to what is said."""
    had = f" The form had {count(unsaved, 'unsaved change')}." if unsaved else ""
    page.browsers.say(browser, "done", f"{done}{had}", undo=page.project.can_undo)


def save(page: Page, data: dict[str, Any], browser: Browser) -> None:
    """Save the form as an own preset and make it the loaded one."""
    project = page.project
    with project.lock:
        project.guard()
        if project.bad:
            raise ProblemsError([item.problem for item in project.bad.values()])
        name = page.presets.save(str(data.get("preset", "")), project.job, replace=bool(data.get("replace")))
        project.saved_as(name)
    page.browsers.say(browser, "done", f"Saved as {name.removeprefix('user/')}.")


def rename(page: Page, data: dict[str, Any], browser: Browser) -> None:
    old = str(data.get("preset", ""))
    new = page.presets.rename(old, str(data.get("to", "")))
    page.project.rename_preset(old, new)
    page.browsers.say(browser, "done", f"Renamed to {new.removeprefix('user/')}.")


def delete(page: Page, data: dict[str, Any], browser: Browser) -> None:
    name = str(data.get("preset", ""))
    page.presets.delete(name)
    page.project.rename_preset(name, "")
    page.browsers.say(browser, "done", f"Deleted {name.removeprefix('user/')}. The form keeps its values.")


def take_file(page: Page, data: dict[str, Any], browser: Browser) -> None:
    """A preset file that was opened or dropped: checked whole, kept under presets/user, loaded; or nothing at all."""
    given, text = Path(str(data.get("file", "preset.json"))).name, str(data.get("text", ""))
    preset = read_text(given, text)
    if preset.task != "train":
        what = f"{given} is a preset for the task {preset.task}"
        raise ProblemsError.one(what, given, "open it in that tab, or on the command line", "preset.other-task")
    job = preset_files.apply(preset, page.project.job)
    stem = Path(given).stem
    stem = stem if bad_name(stem) is None else "opened"
    taken = set(page.presets.names())
    name = next(
        name
        for number in range(1, 10**6)
        if f"user/{(name := stem if number == 1 else f'{stem}-{number}')}" not in taken
    )
    kept = page.presets.keep(name, preset) if preset.kind == "recipe" else page.presets.save(name, job)
    unsaved = _unsaved(page)
    page.project.load_preset(kept)
    _say_replaced(page, browser, f"Opened {given} and kept it as {name}.", unsaved)


def apply_json(page: Page, data: dict[str, Any], browser: Browser) -> None:
    """The JSON pane's text becomes the job. Problems are listed at the pane; nothing is applied then."""
    try:
        preset = read_text("JSON", str(data.get("text", "")))
        if preset.task != "train":
            raise ProblemsError.one(f"task is {preset.task}", "JSON", 'write "task": "train"', code="preset.other-task")
        job = preset_files.apply(preset, page.project.job)
    except ProblemsError as error:
        browser.json_problems = [problem.to_dict() for problem in error.problems]
        return
    assert isinstance(job, TrainJob)
    page.project.replace(job, did="change in the JSON pane")
    browser.json_problems, browser.json_applied = [], str(data.get("token", ""))[:40]
