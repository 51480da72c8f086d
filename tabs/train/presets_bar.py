"""The list of presets, and the card of a loaded recipe: values with reasons, and whether it fits model and GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from core.formats.detect import FAMILY_NAMES
from core.settings.presets import files as preset_files
from core.settings.values import shown_value
from core.training.checks.recipe_fit import fits, nearest, recipe_problems
from tabs.form.presets import read_preset
from tabs.form.project import FIELDS
from tabs.train.method_needs import with_family

if TYPE_CHECKING:
    from tabs.context import Page

DEFAULTS = ""


def choices(page: Page) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return [(group, [(label, name)])] of the presets: defaults, presets and recipes by family, those that need more VRAM last."""
    members: dict[str, list[tuple[str, str]]] = {"": [("Defaults", DEFAULTS)]}
    for group, label, name in _preset_rows(page):
        members.setdefault(group, []).append((label, name))
    return list(members.items())


def _preset_rows(page: Page) -> list[tuple[str, str, str]]:
    """Return [(group, label, name)] of the training presets in the order of the list."""
    gpu, ranked = page.gpu(), []
    for number, name in enumerate(page.presets.names("train")):
        preset = read_preset(page.presets, name)
        is_user = name.startswith("user/")
        label = page.presets.display_name(name) + (" (yours)" if is_user else "")
        family = preset.family if preset is not None and not is_user else ""
        fits_gpu = preset is None or preset.kind != "recipe" or fits(preset, gpu)
        label += "" if fits_gpu or not gpu else " (needs more VRAM)"
        group = "Your presets" if is_user else FAMILY_NAMES.get(family, "Presets")
        group += " (for a GPU)" if family and gpu == 0 else ""
        vram = preset.vram_gb if preset is not None and family else number
        ranked.append(((is_user, family, not fits_gpu, vram), (group, label, name)))
    return [listed for _, listed in sorted(ranked)]


def recipe_facts(page: Page) -> dict[str, Any] | None:
    """Return {"about": purpose, "sets": [{"field", "title", "value", "why"}], "fit": `_fit`} of the loaded recipe; None without a
    recipe."""
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
    """Return {"what": why the recipe does not fit model or GPU, sentences, "level": of the first, "recipe": [name, title] of one to choose
    instead or None, "model": family to choose instead or ""}; None if it fits."""
    job, gpu = page.project.job, page.gpu()
    family = with_family(job, page.checks.model(job.model.base_model, job.model.family)).model.family
    problems = recipe_problems(recipe, family, gpu)
    if not problems:
        return None
    names = (name for name in page.presets.names("train") if name != page.project.preset)
    others = {name: preset for name in names if (preset := read_preset(page.presets, name)) is not None}
    wanted_family = family if family in FAMILY_NAMES else recipe.family
    closest = nearest(others.values(), recipe, wanted_family, gpu)
    offer = next(
        ([name, page.presets.display_name(name)] for name, preset in others.items() if preset is closest), None
    )
    mismatch = any(problem.code == "recipe.other-family" for problem in problems)
    return {
        "what": [f"{problem.what}." for problem in problems],
        "level": problems[0].level,
        "recipe": offer if mismatch or (closest is not None and fits(closest, gpu)) else None,
        "model": FAMILY_NAMES[recipe.family] if mismatch else "",
    }
