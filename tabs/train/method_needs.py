"""Texts of the Train form that depend on several settings: needs of methods, unused fields, recipes, optimizers, hints."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from core.dataset.sources.files import printable
from core.record.problems import ProblemsError
from core.record.units import count, first_of, size_text
from core.record.workspace import display_path
from core.settings.base import every
from core.settings.dataset.concepts import concepts_of
from core.settings.dataset.source import OwnSettings
from core.settings.job import TrainJob
from core.settings.methods import spec_of
from core.settings.named import CONTROL_IMAGE
from core.settings.needs import unmet_in
from core.settings.optimization.optimizers import OWN, USUAL, Argument, Entry, catalog, data, find
from core.settings.optimization.rates import scale_sentence
from core.settings.presets.files import with_values
from core.settings.presets.recipes import HUBER, Recipe, changes, constant_or_warmup, recipes, usual_rate
from core.settings.rules import method, schedule, sharding
from core.settings.rules.dataset import has_partners
from core.settings.rules.validation import holds_out
from core.settings.values import shown_value
from tabs.form.project import FIELDS

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
    """Return the job with the model family detected from the file, if its setting is auto. model: see `Checks.model`"""
    keys = {label: key for key, label in FIELDS["model.family"].labels.items()}
    family = keys.get(model["family"])
    if job.model.family != "auto" or family is None:
        return job
    return job.with_settings(model={"family": family})


def idle_fields(job: TrainJob) -> dict[str, str]:
    """Return {path: reason} of fields without effect for this method, scheduler and DeepSpeed setting, which the form hides."""
    reasons = {path: reason for path, reason in unmet_in(job) if path.partition(".")[0] in ("method", "sharding")}
    reasons |= {path: reason for topic in (method, schedule, sharding) for path, reason in topic.without_effect(job)}
    return {path: reason for path, reason in reasons.items() if not FIELDS[path].first or FIELDS[path].only}


def idle_group(group: str, idle: dict[str, str]) -> str:
    """Return the reason why no setting of a group has an effect, or "". idle: {path: reason} of fields without effect"""
    reasons = [idle.get(path, "") for path, entry in FIELDS.items() if entry.group == group and not entry.elsewhere]
    return reasons[0].removeprefix("ignored: ") if reasons and all(reasons) else ""


def needs(job: TrainJob, model: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the chosen method needs before a start. model: see `Checks.model`

    "text"    a sentence
    "fields"  [[label, path]] of fields that it mentions
    "here"    paths of fields to show below it; only for methods with control images
    "does"    [[label, action]] of its buttons; only for these methods
    """
    text, fields = spec_of(job).needs(with_family(job, model), model["family"], _size(job, model))
    if usual_rate(job):
        fields = [*fields, ["Learning rate", "optimizer.learning_rate"]]
    if not job.method.traits.control_images:
        return {"text": text, "fields": fields}
    fields = [each for each in fields if each[1] != CONTROL_FOLDER]
    return {"text": text, "fields": fields, "here": [CONTROL_FOLDER], "does": _control_images(job)}


def _control_images(job: TrainJob) -> list[list[str]]:
    """Return [[label, action]] of the next button for control images: make them, or use them as samples; [] if all is set."""
    if not all(has_partners(concept) for concept in concepts_of(job) if concept.control):
        return [["Make control images", "make_pairs"]]
    if all(CONTROL_IMAGE.search(line) for line in job.samples.sample_prompts):
        return []
    has_validation = job.validation.automatic or holds_out(job)
    return [[f"Use {'validation' if has_validation else 'training'} images as samples", "sample_pairs"]]


def _size(job: TrainJob, model: Mapping[str, Any]) -> str:
    """Return the text on the size of each saved full model."""
    precision, number = job.saving.save_precision, every(job.saving.save_n_evenly) or 0
    file_bytes = (model["numbers"] or NUMBERS.get(model["family"], 0)) * (4 if precision == "fp32" else 2)
    size = f"about {size_text(file_bytes)} in {precision}" if file_bytes else "several GB"
    many = f" {number} evenly spaced ones take {size_text(file_bytes * number)}." if number > 1 and file_bytes else ""
    return f"The full model is trained; each checkpoint takes {size}.{many}"


# -- optimizers


@cache
def optimizer_choices(device: str | None = None) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return [(group, [(label, name)])] of all optimizers, with notes on what each needs.

    device: training device, None while unknown
    """
    members: dict[str, list[tuple[str, str]]] = {}
    for group, label, entry in _optimizers(device):
        members.setdefault(group, []).append((label, entry.name))
    return list(members.items())


def _optimizers(device: str | None) -> list[tuple[str, str, Entry]]:
    """Return [(group, label, entry)]: usual optimizers, then others by package, then those that cannot be used here with the reason."""
    packages = [*data()["packages"], OWN]
    ranked = []
    for number, entry in enumerate(catalog().values()):
        reason, is_usual = entry.unusable(device), entry.name in USUAL
        rank = len(packages) + 1 if reason else 0 if is_usual else packages.index(entry.package) + 1
        group = "Cannot be used here" if reason else "Usual" if is_usual else entry.package
        label = f"{entry.name}: unavailable, {reason}" if reason else _optimizer_label(entry, device)
        ranked.append(((rank, USUAL.index(entry.name) if is_usual else number), (group, label, entry)))
    return [each for _, each in sorted(ranked, key=lambda item: item[0])]


def _optimizer_label(entry: Entry, device: str | None) -> str:
    """Return an optimizer's label: name, package, and notable traits."""
    short_name = entry.name.rsplit(".", 1)[-1]
    notes = [entry.package] + [text for trait, text in TRAITS.items() if trait in entry.traits]
    notes += [f"only on {' or '.join(entry.only_on)}"] if entry.only_on and device is None else []
    return f"{short_name} ({', '.join(notes)})"


def hints(job: TrainJob) -> dict[str, str]:
    """Return {path: hint below the field} of fields whose meaning depends on other settings."""
    texts = {}
    entry = find(job.optimizer.optimizer_type)
    if entry is not None and entry.arguments:
        names = list(entry.arguments.values())
        listed = first_of([_argument(each) for each in names], MOST_ARGUMENTS)
        texts["optimizer.optimizer_args"] = f"{entry.name} takes {listed}."
    if chosen := [printable(display_path(each.folder)) for each in job.dataset.sources if each.enabled]:
        verb = "Also trains" if job.dataset.folder else "Trains"
        folders = first_of(chosen, MOST_FOLDERS)
        texts["dataset.folder"] = f"{verb} on {count(len(chosen), 'folder')} of the Dataset tab: {folders}."
    for group in ("dataset", "captions", "validation"):
        for name in type(getattr(job, group)).model_fields.keys() & OwnSettings.model_fields.keys():
            values = [
                value for each in job.dataset.sources if each.enabled and (value := getattr(each, name)) is not None
            ]
            if values:
                listed = first_of(
                    list(dict.fromkeys(shown_value(FIELDS[f"{group}.{name}"], each) for each in values)), 3
                )
                texts[f"{group}.{name}"] = f"Set for {count(len(values), 'folder')} of the Dataset tab: {listed}."
    if sentence := scale_sentence(job, job.memory.num_processes):
        texts["optimizer.scale_lr"] = f"{sentence}."
    return texts


def _argument(argument: Argument) -> str:
    """Return an optimizer argument as text: "d_coef=1.0", or the name alone without a default."""
    value = argument.default
    if isinstance(value, (list, tuple)):
        return f"{argument.name}={','.join(str(item) for item in value)}"
    return argument.name if value is None or argument.required else f"{argument.name}={value}"


# -- recipes


def _recipes(job: TrainJob) -> dict[str, list[Recipe]]:
    """Return {path of a field: recipes below it that would change a setting}."""
    offers = {"optimizer.optimizer_type": recipes(job.optimizer.optimizer_type)}
    if rate := usual_rate(job):
        offers["optimizer.learning_rate"] = [rate]
    offers["schedule.lr_scheduler"] = constant_or_warmup(job)
    if job.noise.loss_type in HUBER_LIKE:
        offers["noise.loss_type"] = [HUBER]
    return {
        path: changing
        for path, each in offers.items()
        if (changing := [recipe for recipe in each if changes(job, recipe)])
    }


def recipe_offers(job: TrainJob) -> dict[str, list[dict[str, str]]]:
    """Return {path of a field: [{"title", "why", "sets"}] of the recipe buttons below it}."""
    return {
        path: [
            {"title": recipe.title, "why": recipe.why, "sets": _settings_text(changes(job, recipe))}
            for recipe in offered
        ]
        for path, offered in _recipes(job).items()
    }


def _settings_text(changed: dict[str, Any]) -> str:
    """Return settings as text: "Learning rate 1, Warmup 0". changed: {path: value}"""
    return ", ".join(f"{FIELDS[path].title} {shown_value(FIELDS[path], value)}" for path, value in changed.items())


def with_recipe(job: TrainJob, path: str, title: str) -> TrainJob:
    """Return the job with the recipe titled `title` of field `path` applied. Raises ProblemsError if it is no longer offered."""
    recipe = next((each for each in _recipes(job).get(path, []) if each.title == title), None)
    if recipe is None:
        raise ProblemsError.one("This recipe is already applied", path, "", code="recipe.applied")
    return with_values(job, changes(job, recipe))
