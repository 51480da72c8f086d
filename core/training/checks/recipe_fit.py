"""Whether a recipe fits the base model and the machine."""

from collections.abc import Iterable

from core.formats.detect import FAMILY_NAMES
from core.record.problems import Problem
from core.settings.presets.files import Preset

COMPARED = ("method.kind", "network.conv_rank", "optimizer.optimizer_type")  # the most telling first
GB = 10**9  # a GPU of 12 GB has a little less than 12 GiB


def fits(recipe: Preset, gpu: int | None) -> bool:
    """Return whether the GPU has the VRAM that the recipe states. gpu: bytes of VRAM, 0 without a GPU, None if unknown"""
    return gpu is None or gpu >= recipe.vram_gb * GB * 0.95


def recipe_problems(recipe: Preset | None, family: str, gpu: int | None = None) -> list[Problem]:
    """Return the problems of using a recipe with a base model and GPU; [] for None and for presets that are no recipes.

    family   of the base model, a key of FAMILY_NAMES; any other text if unknown
    gpu      see `fits`
    """
    if recipe is None or recipe.kind != "recipe":
        return []
    name, problems = recipe.title or recipe.name, []
    if recipe.family and family in FAMILY_NAMES and recipe.family != family:
        wanted, has = FAMILY_NAMES[recipe.family], FAMILY_NAMES[family]
        what = f"The recipe '{name}' is for {wanted}, but the base model is {has}"
        fix = f"choose a recipe for {has}, or a base model of {wanted}"
        problems.append(Problem(what, "model.base_model", fix, "warning", code="recipe.other-family"))
    if not fits(recipe, gpu):
        has = f"this GPU has {gpu / GB:.0f} GB" if gpu else "this machine trains on its CPU"
        what = f"The recipe '{name}' is for a GPU with {recipe.vram_gb} GB of VRAM, and {has}"
        fix = "choose a recipe for less VRAM, or check the memory forecast"
        problems.append(Problem(what, "preset", fix, "advice", code="recipe.more-vram"))
    return problems


def nearest(recipes: Iterable[Preset], wanted: Preset, family: str, gpu: int | None) -> Preset | None:
    """Return the recipe of a family that is most similar to `wanted`, compared by fitting VRAM, then method, convolution rank and
    optimizer; None if the family has no recipe.
    gpu: see `fits`"""

    def distance(each: Preset) -> tuple[bool, ...]:
        stated, other = each.stated(), wanted.stated()
        return (not fits(each, gpu), *(stated.get(path) != other.get(path) for path in COMPARED))

    matches = [each for each in recipes if each.kind == "recipe" and each.family == family]
    return min(matches, key=lambda each: (distance(each), abs(each.vram_gb - wanted.vram_gb)), default=None)
