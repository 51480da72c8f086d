"""What the Train form says beyond its fields: what each method needs, which fields it has no use for, recipes, the list
of optimizers, and hints below single fields."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from core.dataset.sources.files import printable
from core.record.problems import ProblemsError
from core.record.units import count, size_words
from core.record.workspace import display_path
from core.settings.base import every
from core.settings.dataset.concepts import concepts_of
from core.settings.job import TrainJob
from core.settings.methods import spec_of
from core.settings.named import CONTROL_IMAGE
from core.settings.needs import lacking_in
from core.settings.optimization.optimizers import USUAL, Argument, Entry, catalog, data, find
from core.settings.optimization.rates import scale_sentence
from core.settings.presets.recipes import HUBER, Recipe, changes, constant_or_warmup, recipes, usual_rate
from core.settings.rules import method, schedule, sharding
from core.settings.rules.dataset import has_partners
from core.settings.rules.validation import holds_out
from core.settings.values import shown_value
from tabs.form.project import FIELDS, with_values

TRAITS = {
    "adapts": "sets its own learning rate: use 1",
    "one_rate": "one rate for all parts",
    "averages": "schedule-free",
    "eight_bit": "8-bit memory",
}
MOST_ARGUMENTS, MOST_FOLDERS = 24, 3
HUBER_LIKE = ("huber", "smooth_l1")
CONTROL_FOLDER = "dataset.conditioning_data_dir"
# Numbers of a whole model of the published size: U-Net, text encoders and VAE
NUMBERS = {"SD 1.x": 1.066e9, "SD 2.x": 1.290e9, "SDXL": 3.469e9}


# -- methods


def with_family(job: TrainJob, model: Mapping[str, Any]) -> TrainJob:
    """The job with the family that was found in the model's file, where the job leaves it to that."""
    keys = {words: key for key, words in FIELDS["model.family"].labels.items()}
    family = keys.get(model["family"])
    if job.model.family != "auto" or family is None:
        return job
    return job.model_copy(update={"model": job.model.model_copy(update={"family": family})})


def idle_fields(job: TrainJob) -> dict[str, str]:
    """{path: reason} of the fields that this method, this curve and DeepSpeed as it is have no use for: the form folds them
    away."""
    found = {path: reason for path, reason in lacking_in(job) if path.partition(".")[0] in ("method", "sharding")}
    found |= {path: reason for topic in (method, schedule, sharding) for path, reason in topic.without_effect(job)}
    return {path: reason for path, reason in found.items() if not FIELDS[path].first or FIELDS[path].only}


def idle_group(group: str, idle: dict[str, str]) -> str:
    """Why nothing in a group has an effect now, or ""."""
    reasons = [idle.get(path, "") for path, entry in FIELDS.items() if entry.group == group and not entry.elsewhere]
    return reasons[0].removeprefix("ignored: ") if reasons and all(reasons) else ""


def needs(job: TrainJob, model: Mapping[str, Any]) -> dict[str, Any]:
    """What the chosen method asks for before a start. model: see Checks.model

    text, fields   a sentence, and the fields it names: [[words, path], ...]
    here           of methods that follow control images: the paths of fields that stand below it
    does           of the same: what a click can do: [[words, action], ...]
    """
    text, fields = spec_of(job).needs(job, model["family"], _size(job, model))
    if usual_rate(job):
        fields = [*fields, ["Learning rate", "optimizer.learning_rate"]]
    if not job.method.traits.control_images:
        return {"text": text, "fields": fields}
    fields = [each for each in fields if each[1] != CONTROL_FOLDER]
    return {"text": text, "fields": fields, "here": [CONTROL_FOLDER], "does": _control_images(job)}


def _control_images(job: TrainJob) -> list[list[str]]:
    """The next click of a training that follows control images, until it has those and samples with them."""
    if not all(has_partners(concept) for concept in concepts_of(job) if concept.control):
        return [["Make control images", "make_pairs"]]
    if all(CONTROL_IMAGE.search(line) for line in job.samples.sample_prompts):
        return []
    held = job.validation.automatic or holds_out(job)
    return [[f"Use {'validation' if held else 'training'} images as samples", "sample_pairs"]]


def _size(job: TrainJob, model: Mapping[str, Any]) -> str:
    """What each saved file takes on the disk."""
    saved, several = job.saving.save_precision, every(job.saving.save_n_evenly) or 0
    one = (model["numbers"] or NUMBERS.get(model["family"], 0)) * (4 if saved == "fp32" else 2)
    size = f"about {size_words(one)} in {saved}" if one else "several GB"
    many = f" {several} evenly spaced ones take {size_words(one * several)}." if several > 1 and one else ""
    return f"The full model is trained; each checkpoint takes {size}.{many}"


# -- optimizers


@cache
def optimizer_choices(device: str | None = None) -> list[tuple[str, list[tuple[str, str]]]]:
    """[(group, [(words, name)])] of every known optimizer, with what each needs.

    device  what trainings run on; None where it is not known yet
    """
    found: dict[str, list[tuple[str, str]]] = {}
    for group, words, entry in _optimizers(device):
        found.setdefault(group, []).append((words, entry.name))
    return list(found.items())


def _optimizers(device: str | None) -> list[tuple[str, str, Entry]]:
    """(group, words, entry): the usual ones, the others by package, then those that cannot be used here, with the reason."""
    packages = list(data()["packages"])
    listed = []
    for number, entry in enumerate(catalog().values()):
        reason, usual = entry.unusable(device), entry.name in USUAL
        place = len(packages) + 1 if reason else 0 if usual else packages.index(entry.package) + 1
        group = "Cannot be used here" if reason else "Usual" if usual else entry.package
        words = f"{entry.name}: unavailable, {reason}" if reason else _optimizer_words(entry, device)
        listed.append(((place, USUAL.index(entry.name) if usual else number), (group, words, entry)))
    return [each for _, each in sorted(listed, key=lambda item: item[0])]


def _optimizer_words(entry: Entry, device: str | None) -> str:
    bare = entry.name.rsplit(".", 1)[-1]
    told = [entry.package] + [words for trait, words in TRAITS.items() if trait in entry.traits]
    told += [f"only on {' or '.join(entry.only_on)}"] if entry.only_on and device is None else []
    return f"{bare} ({', '.join(told)})"


def hints(job: TrainJob) -> dict[str, str]:
    """{path: a sentence below its field} where the other settings decide what can be written there."""
    found = {}
    entry = find(job.optimizer.optimizer_type)
    if entry is not None and entry.arguments:
        names = list(entry.arguments.values())
        more = f" and {len(names) - MOST_ARGUMENTS} more" if len(names) > MOST_ARGUMENTS else ""
        words = ", ".join(_argument(each) for each in names[:MOST_ARGUMENTS])
        found["optimizer.optimizer_args"] = f"{entry.name} takes {words}{more}."
    if chosen := [printable(display_path(each.folder)) for each in job.dataset.sources if each.enabled]:
        more = f" and {len(chosen) - MOST_FOLDERS} more" if len(chosen) > MOST_FOLDERS else ""
        also = "Also trains" if job.dataset.folder else "Trains"
        listed = ", ".join(chosen[:MOST_FOLDERS]) + more
        found["dataset.folder"] = f"{also} on {count(len(chosen), 'folder')} of the Dataset tab: {listed}."
    if sentence := scale_sentence(job, job.memory.num_processes):
        found["optimizer.scale_lr"] = f"{sentence}."
    return found


def _argument(argument: Argument) -> str:
    """ "d_coef=1.0", or the name alone where it has no default."""
    value = argument.default
    if isinstance(value, (list, tuple)):
        return f"{argument.name}={','.join(str(item) for item in value)}"
    return argument.name if value is None or argument.required else f"{argument.name}={value}"


# -- recipes


def _recipes(job: TrainJob) -> dict[str, list[Recipe]]:
    """{path of the field they stand below: recipes that would change something}."""
    found = {"optimizer.optimizer_type": recipes(job.optimizer.optimizer_type)}
    if rate := usual_rate(job):
        found["optimizer.learning_rate"] = [rate]
    found["schedule.lr_scheduler"] = constant_or_warmup(job)
    if job.noise.loss_type in HUBER_LIKE:
        found["noise.loss_type"] = [HUBER]
    return {path: kept for path, each in found.items() if (kept := [one for one in each if changes(job, one)])}


def recipe_offers(job: TrainJob) -> dict[str, list[dict[str, str]]]:
    """{path: [{"title", "why", "sets"}]} for buttons; an offer that is followed already is gone."""
    return {
        path: [{"title": one.title, "why": one.why, "sets": _sets(changes(job, one))} for one in found]
        for path, found in _recipes(job).items()
    }


def _sets(changed: dict[str, Any]) -> str:
    return ", ".join(f"{FIELDS[path].title} {shown_value(FIELDS[path], value)}" for path, value in changed.items())


def with_recipe(job: TrainJob, path: str, title: str) -> TrainJob:
    """The job as the offered recipe of that title makes it. Raises ProblemsError when it is no longer offered."""
    wanted = next((one for one in _recipes(job).get(path, []) if one.title == title), None)
    if wanted is None:
        raise ProblemsError.one("This recipe is already applied", path, "", code="recipe.applied")
    return with_values(job, changes(job, wanted))
