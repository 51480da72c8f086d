"""Comparison of two to four runs: facts, differing settings and images, and which has the lower validation loss."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.engine.points import spread
from core.engine.view import best_validation
from core.record.bounded_json import read_json_object
from core.record.events import COMPARED, newest_rows
from core.record.file_titles import is_average
from core.record.former import with_current_names
from core.record.problems import ProblemsError
from core.record.stamps import cached_until_changed
from core.record.units import clock, count, loss_text, memory_text, size_text
from core.settings.base import value_of
from core.settings.job import TrainJob
from core.settings.noise import TIMESTEP_SETTINGS
from core.settings.presets.files import differences
from core.settings.rules import ineffective
from tabs.form.project import FIELDS
from tabs.runs.details import epochs_text, of_total, pace_text
from tabs.runs.view import when

UNKNOWN = "–"
MEASURED_BY_MODEL = ("model.base_model", "model.vae", "model.family", "model.prediction")
NOT_IN_THE_MEASURE = {f"noise.{name}" for name in TIMESTEP_SETTINGS}  # the timesteps themselves are compared
DRAWS = ("memory.latent_draw",)
CHANCE = 0.01  # earlier versions measured the same weights up to 0.6 % apart with another seed (starter, 2 images)


@dataclass(frozen=True)
class Side:
    """A compared run.

    letter   "A" to "D"
    facts    the engine's snapshot of the run
    job      None if this version cannot read it
    preset   title of its preset
    dataset  contents of its dataset.json, {} without one
    """

    letter: str
    facts: dict[str, Any]
    job: TrainJob | None = None
    preset: str = ""
    dataset: dict[str, Any] = field(default_factory=dict)

    @property
    def at_base(self) -> bool:
        """Whether the run starts from the unchanged base model, so that its step 0 is the base model."""
        return self.job is None or self.job.starts_at_base

    @property
    def best(self) -> dict[str, Any]:
        """The validation {"step", "loss", ...} with the lowest loss; {} without validation."""
        return best_validation(self.facts.get("validation", [])) or {}

    @property
    def measured(self) -> dict[str, Any]:
        """Recorded description of the run's validation (images, seed, timesteps); {} if it was not recorded."""
        recorded = self.dataset.get("validation")
        recorded = with_current_names(recorded) if isinstance(recorded, dict) else {}
        return recorded if isinstance(recorded.get("images"), list) else {}


@dataclass(frozen=True)
class Row:
    """A row of the table of facts. values: one text per run, or a single one for all runs together"""

    title: str
    values: tuple[str, ...]


@cached_until_changed(20, missing={})  # megabytes for 10,000 images
def read_dataset(path: Path) -> dict[str, Any]:
    """Return the contents of a run's dataset.json; {} if it cannot be read."""
    try:
        content = read_json_object(path, max_bytes=256_000_000, max_values=3_000_000)
    except ProblemsError:
        return {}
    content = with_current_names(content)
    return content if isinstance(content.get("images"), list) else {}


# -- which is better


def verdicts(sides: Sequence[Side]) -> list[str]:
    """Return the verdict on the first run and each of the others, without repeated ones."""
    return list(dict.fromkeys(verdict(sides[0], other, notes=len(sides) == 2) for other in sides[1:]))


def verdict(a: Side, b: Side, notes: bool = True) -> str:
    """Return sentences on which of two runs has the lower validation loss, and how reliable that is.

    notes: whether to add a note on a run whose lowest loss is at its start or end
    """
    if not a.best and not b.best:
        return (
            "These runs measured no validation loss, so the numbers do not show which is better: a training loss "
            "depends on the images, noise and timesteps of its steps. Compare the samples."
        )
    if not a.best or not b.best:
        measured, unmeasured = (a, b) if a.best else (b, a)
        return (
            f"Only {measured.letter} measured validation loss: {_loss_at_step(measured.best)} at best. {unmeasured.letter} measured "
            f"none, so the numbers do not show which is better."
        )
    reasons = incomparable_reasons(a, b)
    message = f"{_lower_loss_clause(a, b)}; {_comparability_clause(a, reasons)}."
    details = [] if reasons else [*_by_timestep(a, b), *_by_chance(a, b)]
    return " ".join([message, *details, *(note for side in (a, b) if notes for note in _notes(side))])


def _loss_at_step(point: dict[str, Any]) -> str:
    """Return "LOSS at step STEP" of a validation."""
    return f"{loss_text(point['loss'])} at step {point['step']:,}"


def _lower_loss_clause(a: Side, b: Side) -> str:
    """Return the clause on which run has the lower best validation loss, or that both are equal."""
    low, high = _by_best_loss(a, b)
    if equal(a, b):
        steps = ", ".join(f"{side.letter} at step {side.best['step']:,}" for side in (a, b))
        return f"The best validation losses are equal: {loss_text(a.best['loss'])}, {steps}"
    return f"{low.letter}'s best validation loss is lower: {_loss_at_step(low.best)} against {_loss_at_step(high.best)}"


def _by_best_loss(a: Side, b: Side) -> tuple[Side, Side]:
    """Return the two runs ordered by their best validation loss."""
    return (a, b) if a.best["loss"] <= b.best["loss"] else (b, a)


def equal(a: Side, b: Side) -> bool:
    """Return whether the best losses of two runs are displayed as the same number."""
    return loss_text(a.best["loss"]) == loss_text(b.best["loss"])


def _comparability_clause(a: Side, reasons: Sequence[str]) -> str:
    """Return the clause on whether the losses of two runs are comparable. reasons: of `incomparable_reasons`"""
    if reasons:
        return f"{', '.join(reasons)}, so not comparable"
    images = count(len(a.measured["images"]), "validation image")
    return f"both measured on the same {images} with the same noise at the same timesteps, so comparable"


def incomparable_reasons(a: Side, b: Side) -> list[str]:
    """Return the reasons why the validation losses of two runs cannot be compared; [] if they can."""
    unknown = [side.letter for side in (a, b) if not side.measured or side.job is None]
    if unknown:
        return [f"what {' and '.join(unknown)} measured is not recorded"]
    reasons = _unlike_images(a.measured["images"], b.measured["images"])
    if a.measured.get("seed") != b.measured.get("seed"):
        reasons.append("with other noise (another validation seed)")
    if a.measured.get("timesteps") != b.measured.get("timesteps"):
        reasons.append("at different timesteps")
    reasons += _unlike_settings(a, b)
    return [f"measured {reasons[0]}", *reasons[1:]] if reasons else []


UNLIKE = {  # what images of dataset.json differ in: the reason
    ("bucket",): "at different sizes",
    ("caption",): "with different captions",
    ("masked",): "with and without masks",
    ("source", "path"): "with other noise (it follows the names of images and folders)",
}


def _unlike_images(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> list[str]:
    """Return the reasons why losses on these validation images cannot be compared; [] if they can. a, b: images of dataset.json"""

    def agree(*names: str) -> bool:
        rows = (sorted(json.dumps([each.get(name) for name in ("sha256", *names)]) for each in side) for side in (a, b))
        return next(rows) == next(rows)

    return [reason for names, reason in UNLIKE.items() if not agree(*names)] if agree() else ["on different images"]


def _unlike_settings(a: Side, b: Side) -> list[str]:
    """Return reasons with the titles of differing settings that change the loss of the same weights; [] without any."""
    assert a.job is not None and b.job is not None
    paths = [path for path in differences(a.job, b.job) if path not in NOT_IN_THE_MEASURE]
    model = [FIELDS[path].title for path in paths if path in MEASURED_BY_MODEL]
    loss = [FIELDS[path].title for path in paths if path.startswith("noise.") or path in DRAWS]
    reasons = [f"with different base models ({', '.join(model)})"] if model else []
    return reasons + ([f"with a different loss ({', '.join(loss)})"] if loss else [])


def _by_timestep(a: Side, b: Side) -> list[str]:
    """Return [a sentence on how many timesteps agree on which loss is lower], since one timestep can dominate the mean; or []."""
    low, high = _by_best_loss(a, b)
    low_losses, high_losses = (side.best.get("by_timestep") or {} for side in (low, high))
    shared = [name for name in low_losses if name in high_losses]
    if len(shared) < 2 or equal(a, b):
        return []
    lower = sum(low_losses[name] < high_losses[name] for name in shared)
    return [f"{low.letter} is lower at {lower} of {len(shared)} timesteps."]


def _by_chance(a: Side, b: Side) -> list[str]:
    """Return [a sentence that the difference may be random]; [] if it cannot be.

    In earlier versions the training seed affected the VAE's latents of validation images.
    """
    assert a.job is not None and b.job is not None
    low, high = (side.best["loss"] for side in _by_best_loss(a, b))
    methods = [side.dataset.get("measured_with") for side in (a, b)]
    same_method = methods[0] == methods[1] and (methods[0] is not None or a.job.schedule.seed == b.job.schedule.seed)
    if a.job.memory.latent_draw == "mean" or same_method or high - low >= CHANCE * high or equal(a, b):
        return []
    return [
        "A difference below 1% can be random here: in an earlier version the VAE's noise followed the training seed."
    ]


def _notes(side: Side) -> list[str]:
    """Return sentences on a run whose lowest validation loss is at its start or end."""
    points, best = side.facts.get("validation", []), side.best
    if not best or len(points) < 2:
        return []
    if best["step"] == 0:
        return [f"{side.letter} was best before the first step: training did not lower this loss."]
    if best["step"] == points[-1]["step"]:
        return [f"{side.letter}'s lowest loss is the last one: more steps might lower it further."]
    return []


# -- facts


def fact_rows(*sides: Side) -> list[Row]:
    """Return the rows of facts, without those that no run has."""
    rows = [Row(title, tuple(text(side) or UNKNOWN for side in sides)) for title, text in FACTS]
    rows = [row for row in rows if {*row.values} != {UNKNOWN}]
    index = next((row_index for row_index, row in enumerate(rows) if row.title == "Training images"), None)
    if index is not None and (shared := shared_images(*(side.dataset for side in sides))):
        rows.insert(index + 1, Row("In both" if len(sides) == 2 else "In all", (shared,)))
    return rows


def shared_images(*datasets: dict[str, Any]) -> str:
    """Return the text on the number of training images in all runs, and of those with the same caption; "" if unknown for a run."""
    captions_by_hash = [
        {each["sha256"]: each.get("caption") for each in run.get("images", []) if each.get("sha256")}
        for run in datasets
    ]
    if not all(captions_by_hash):
        return ""
    shared = set.intersection(*map(set, captions_by_hash))
    captions = sum(len({run[key] for run in captions_by_hash}) == 1 for key in shared)
    if all(len(run) == len(shared) for run in captions_by_hash):
        return "the same images" + (
            " and captions" if captions == len(shared) else f", {captions:,} with the same caption"
        )
    return f"{count(len(shared), 'image')}, {captions:,} with the same caption" if shared else "no image"


@dataclass(frozen=True)
class ImageChanges:
    """Differences between the training images of two runs. changed: [(image, what changed)] of the images in both"""

    added: list[str]
    removed: list[str]
    changed: list[tuple[str, str]]

    def __bool__(self) -> bool:
        """Return whether there is any difference."""
        return bool(self.added or self.removed or self.changed)


def image_changes(before: dict[str, Any], after: dict[str, Any]) -> ImageChanges | None:
    """Compare the training images of two dataset.json; None if one does not list its images.

    An image matches by folder and path, or else by content, so renamed and edited images count as changed.
    """
    old, new = (each.get("images", []) for each in (before, after))
    if not old or not new:
        return None
    pairs: dict[int, int] = {}  # index in `new` -> index in `old`
    for key in (("source", "path"), ("sha256",)):
        paired, unpaired = set(pairs.values()), dict[tuple[Any, ...], list[int]]()
        for index, row in enumerate(old):
            if index not in paired and row.get(key[-1]):
                unpaired.setdefault(tuple(row.get(name) for name in key), []).append(index)
        for index, row in enumerate(new):
            if index not in pairs and (matches := unpaired.get(tuple(row.get(name) for name in key))):
                pairs[index] = matches.pop(0)
    paired = set(pairs.values())
    changes = ((_image(new[index]), _changes(old[other], new[index])) for index, other in sorted(pairs.items()))
    return ImageChanges(
        [_image(row) for index, row in enumerate(new) if index not in pairs],
        [_image(row) for index, row in enumerate(old) if index not in paired],
        [(name, change) for name, change in changes if change],
    )


IMAGE_FACTS = {"sha256": "image", "caption": "caption", "repeats": "repeats", "bucket": "size"}


def _changes(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Return what changed of an image, a row of dataset.json: its earlier name, and the names of changed facts; "" if nothing did."""
    renamed = [f"was {_image(old)}"] if _image(old) != _image(new) else []
    return ", ".join([*renamed, *(title for name, title in IMAGE_FACTS.items() if old.get(name) != new.get(name))])


def _image(row: dict[str, Any]) -> str:
    """Return an image's "folder/path" from its row in dataset.json."""
    return "/".join(str(row[name]) for name in ("source", "path") if row.get(name))


def differing_settings(sides: Sequence[Side]) -> dict[str, list[tuple[Any, bool]]]:
    """Return {setting path: [(value, whether it has an effect) of each run]} of settings that differ and have an effect in a run."""
    jobs = [side.job for side in sides if side.job is not None]
    paths = dict.fromkeys(path for job in jobs[1:] for path in differences(jobs[0], job))
    unused = [ineffective(job) for job in jobs]
    rows = {
        path: [
            (value_of(job, path), path not in ineffective_paths)
            for job, ineffective_paths in zip(jobs, unused, strict=True)
        ]
        for path in paths
    }
    return {path: row for path, row in rows.items() if any(effect for _, effect in row)}


def checkpoint(side: Side) -> str:
    """Return the name of the checkpoint at the best validation, or a text on the nearest one; "" without validation."""
    best, files = side.best, [file for file in side.facts.get("files", []) if not is_average(file["name"])]
    if not best:
        return ""
    if best["step"] == 0:
        return "the base model" if side.at_base else "none: before the first step"
    if not files:
        return "no file left"
    nearest = min(files, key=lambda file: (abs(file["step"] - best["step"]), file["step"]))
    if nearest["step"] == best["step"]:
        return str(nearest["name"])
    return f"none at that step; nearest {nearest['name']}, step {nearest['step']:,}"


def _dataset(side: Side) -> str:
    """Return the names of the run's dataset folders as text, "" if unknown."""
    folders = [source.folder for source in side.job.dataset.all_sources() if source.folder] if side.job else []
    return ", ".join(Path(folder).name or folder for folder in folders)


def _images(side: Side) -> str:
    """Return the text on the run's number of training images, "" if unknown."""
    number = side.dataset.get("count") or side.facts.get("images")
    return count(number, "image") if number else ""


def _last(side: Side) -> str:
    """Return "LOSS at step STEP" of the run's last validation, "" without one."""
    points = side.facts.get("validation", [])
    return _loss_at_step(points[-1]) if points else ""


def _memory(side: Side) -> str:
    """Return the text on the run's peak memory; "" if unknown."""
    peak, device = side.facts.get("peak_bytes"), str(side.facts.get("peak_device") or "")
    return f"{memory_text(peak)} of {'the GPU' if device.startswith('cuda') else 'RAM'}" if peak else ""


def _newest_file(side: Side) -> str:
    """Return the text on size and step of the run's newest file; "" without files."""
    newest = max(side.facts.get("files", []), key=lambda file: (file["step"], -len(file["name"])), default=None)
    return f"{size_text(newest['bytes'])}, step {newest['step']:,}" if newest else ""


FACTS: tuple[tuple[str, Callable[[Side], str]], ...] = (  # (title, its text for one run, "" if unknown)
    ("State", lambda side: side.facts["state"]),
    ("Started", lambda side: when(side.facts.get("started") or 0.0)),
    ("Preset", lambda side: side.preset),
    ("Dataset", _dataset),
    ("Training images", _images),
    ("Steps", lambda side: of_total(side.facts["step"], side.facts.get("total"))),
    ("Epochs", lambda side: epochs_text(side.facts)),
    ("Time", lambda side: clock(side.facts.get("seconds"))),
    ("A step", lambda side: pace_text(side.facts)),
    ("Best validation loss", lambda side: _loss_at_step(side.best) if side.best else ""),
    ("Checkpoint at that step", checkpoint),
    ("Last validation loss", _last),
    ("Peak memory", _memory),
    ("Latest file", _newest_file),
)


# -- samples


Moment = tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class SampleRow:
    """Samples of one prompt.

    moments   one sample of each run at about the same step, for several steps
    compared  for ControlNets the same of their control images, and of samples without the ControlNet; None if a run has none
    """

    prompt: str
    moments: list[Moment]
    compared: list[tuple[dict[str, Any] | None, ...]]


def sample_rows(*sides: Side, limit: int = 5) -> list[SampleRow]:
    """Return a row for each prompt that all runs sampled, in the first run's order.

    A row has at most `limit` moments, at steps of the run with the fewest samples, with the nearest samples of the others; and one more for
    the last samples if the runs end at different steps. No sample appears twice.
    """
    by_prompt = [_by_prompt(side) for side in sides]
    return [
        SampleRow(prompt, _moments([each[prompt] for each in by_prompt], limit), _compared(prompt, sides))
        for prompt in by_prompt[0]
        if all(prompt in each for each in by_prompt)
    ]


def _compared(prompt: str, sides: Sequence[Side]) -> list[tuple[dict[str, Any] | None, ...]]:
    """Return a tuple of one sample (of the run's snapshot) per run, None for a run without, for each kind of comparison sample of the
    prompt."""
    samples = [[each for each in side.facts.get("samples", []) if each["prompt"] == prompt] for side in sides]
    by_step = [{each["step"]: each for each in reversed(of_side)} for of_side in samples]
    rows = [tuple(each.get(step) for each in by_step) for step in COMPARED]
    return [row for row in rows if any(row)]


def other_prompts(*sides: Side) -> list[str]:
    """Return texts on prompts that only some runs sampled, such as "2 prompts only in A"."""
    prompts = [{*_by_prompt(side)} for side in sides]
    letters = [
        ", ".join(side.letter for side, run_prompts in zip(sides, prompts, strict=True) if prompt in run_prompts)
        for prompt in sorted(set[str]().union(*prompts) - prompts[0].intersection(*prompts[1:]))
    ]
    return [f"{count(number, 'prompt')} only in {letter}" for letter, number in sorted(Counter(letters).items())]


def _by_prompt(side: Side) -> dict[str, list[dict[str, Any]]]:
    """Return {prompt: samples of the run's snapshot in order of steps}, without comparison samples."""
    trained = [each for each in side.facts.get("samples", []) if each["step"] not in COMPARED]
    return {prompt: list(row.values()) for prompt, row in newest_rows(trained).items()}


def _moments(samples: list[list[dict[str, Any]]], limit: int) -> list[Moment]:
    """Return one sample of each run for at most `limit` steps of the run with the fewest samples, and the last ones.

    samples: for each run its samples of one prompt, in order of steps
    """
    fewest = min(samples, key=len)
    steps = [fewest[index]["step"] for index in spread(len(fewest), limit)]
    moments = [tuple(_nearest(each, step) for each in samples) for step in steps]
    for run_index, run_samples in enumerate(samples):
        if run_samples is not fewest:
            # of moments with the same sample of the run, keep the one whose steps are nearest
            moments.sort(key=lambda moment: -max(abs(moment[0]["step"] - each["step"]) for each in moment))
            moments = [*{moment[run_index]["step"]: moment for moment in moments}.values()]
    moments.sort(key=lambda moment: [each["step"] for each in moment])
    ends = tuple(each[-1] for each in samples)
    return moments if moments[-1] == ends else [*moments, ends]


def _nearest(samples: list[dict[str, Any]], step: int) -> dict[str, Any]:
    """Return the sample whose step is nearest to `step`."""
    return min(samples, key=lambda each: (abs(each["step"] - step), each["step"]))
