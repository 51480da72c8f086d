"""Recommended settings for a job that has the demo's settings but other images: base model, resolution, learning rate, length, name and
sample prompts."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from core.dataset.buckets.length import advised_epochs
from core.dataset.captions.files import IMAGE_SOURCES
from core.dataset.sources.files import printable
from core.families.locate import check_family
from core.families.token_count import word_facts
from core.families.trained_size import trained_size
from core.formats.detect import FAMILY_NAMES, identify
from core.formats.hub.references import resolve
from core.generation.model.library import Scan
from core.generation.prompt.sample_prompts import as_prompt
from core.record.problems import Problem, ProblemsError
from core.record.units import listed
from core.record.workspace import PROJECT, STARTER, Workspace, display_path, real_path, resolve_path
from core.settings.base import declared, value_of
from core.settings.job import TrainJob
from core.settings.names import bad_name, without_signs
from core.settings.optimization.optimizers import adapts
from core.settings.optimization.usual_rates import short, unusual_rates, usual_rates
from core.settings.presets import files as presets

if TYPE_CHECKING:
    from core.dataset.report import Report, Row

DEMO = PROJECT / "presets" / "starter_lora.json"
MODEL, NAME, PROMPTS = "model.base_model", "saving.output_name", "samples.sample_prompts"
TRIGGER = "captions.trigger_word"
TAGGED = "every caption has it"
UNNAMED = "my_images"  # output name where no folder has a telling name
FEWEST_TAGGED, LONGEST_TRIGGER = 3, 40  # captions with a tag in common, and its letters
PHOTOGRAPHS = 512  # lowest native resolution of models that train photographs, in pixels
ROOM_FOR_SDXL = 11 << 30  # bytes of a GPU that train a LoRA of SDXL
PROMPTS_SET, SAMPLES_SET = 4, 8
TAGS_FROM = 5  # in a caption: fewer are a sentence with commas
SMALLEST_SAMPLE = 64  # smallest side of a sample, in pixels
SHARED_TAGS, SINGLE_TAGS = 4, 3  # of a sample prompt
STEP = 64  # recommended resolutions are multiples of this, in pixels
PLAIN_NAMES = {"images", "image", "img", "photos", "dataset", "datasets", "outputs", "data", "train", "training"}
DEFAULTS = {entry.path: entry.default for entry in declared(TrainJob)}


@dataclass(frozen=True)
class Change:
    """A recommended change of one setting. path: dotted name; old, new: values"""

    path: str
    old: Any
    new: Any
    reason: str


@dataclass(frozen=True)
class Setup:
    """Recommended changes for a job. missing_model: message that no base model for photographs is on this machine, else empty"""

    changes: tuple[Change, ...]
    missing_model: str = ""


@cache
def demo() -> TrainJob:
    """Return the job of the demo preset; the default settings where the preset is missing."""
    try:
        job = presets.apply(presets.read(DEMO))
    except ProblemsError:
        return TrainJob()
    assert isinstance(job, TrainJob)
    return job


def trains_other_images(job: TrainJob) -> bool:
    """Return whether the job trains images other than the demo's."""
    folders = [source.folder for source in job.dataset.all_sources() if source.enabled and source.role == "train"]
    shipped = (STARTER / "images").resolve()
    return any(not _inside(resolve_path(folder), shipped) for folder in folders if folder)


def _inside(path: Path, folder: Path) -> bool:
    """Return whether a path, links resolved, is inside a folder; False if it cannot be resolved."""
    try:
        return real_path(path).is_relative_to(folder)
    except (OSError, RuntimeError, ValueError):
        return False


def is_starter(reference: str, workspace: Workspace) -> bool:
    """Return whether a model reference names a file inside the shipped starter folder."""
    try:
        path = resolve(reference, workspace.models, workspace.outputs)
    except ProblemsError:
        return False
    return isinstance(path, Path) and _inside(path, STARTER.resolve())


def _demo_settings(job: TrainJob) -> list[str]:
    """Return which of NAME and PROMPTS still have the demo's value."""
    return [path for path in (NAME, PROMPTS) if _is_demo(job, path)]


def demo_problems(job: TrainJob, workspace: Workspace) -> Iterator[Problem]:
    """Yield advice if the job trains other images than the demo's with the demo's base model, output name or sample prompts."""
    if not trains_other_images(job):
        return
    if is_starter(job.model.base_model, workspace):
        what = "The base model is the starter, a demo for simple icons at 128 px, which cannot train photographs"
        fix = "choose or download another base model, such as SD 1.5 or SDXL"
        yield Problem(what, MODEL, fix, "warning", code="demo.base-model")
    paths = _demo_settings(job)
    if paths:
        unchanged = listed([{NAME: "output name", PROMPTS: "sample prompts"}[path] for path in paths])
        what = f"Still set for the demo: {unchanged}"
        fix = "apply the recommended settings on the page, or set your own"
        yield Problem(what, ", ".join(paths), fix, "advice", code="demo.name-or-prompts")


def uses_demo_settings(job: TrainJob, workspace: Workspace) -> bool:
    """Return whether the job trains other images with the demo's model, output name or sample prompts."""
    return trains_other_images(job) and (is_starter(job.model.base_model, workspace) or bool(_demo_settings(job)))


# -- the set-up


def recommended_setup(
    job: TrainJob, report: Report, workspace: Workspace, memory: int = 0, earlier_changes: Collection[str] = ()
) -> Setup | None:
    """Return the recommended changes for the images of `report`; None if there are none.

    Only an unusual learning rate, and settings with the demo's value, a default or a value of an earlier setup are changed.
    memory           bytes of the GPU, 0 without one
    earlier_changes  settings that an earlier setup made for other images and the user has not changed since
    """
    if not report.trained or not (earlier_changes or uses_demo_settings(job, workspace)):
        return None
    starter = is_starter(job.model.base_model, workspace)
    model = best_model(workspace, memory) if starter else None
    missing_model = ""
    if starter and model is None:
        missing_model = "The starter is a demo for simple icons at 128 px and cannot train photographs. "
        missing_model += "Download a base model such as SD 1.5 or SDXL, then apply these settings again."
    changes = _changes(job, report, workspace, model, earlier_changes, trains_photographs=bool(model) or not starter)
    wanted = tuple(change for change in changes if change.old != change.new)
    return Setup(wanted, missing_model) if wanted else None


def unapplied(job: TrainJob, setup: Setup) -> list[Change]:
    """Return the changes of `setup` whose settings still have their old values."""
    return [each for each in setup.changes if value_of(job, each.path) == each.old]


def trigger_setup(job: TrainJob, report: Report) -> Setup | None:
    """Return the recommended trigger word alone; None if one is set, the method trains new tokens, or the captions share no tag."""
    tag = None if value_of(job, TRIGGER) or job.method.traits.new_words else _shared_tag(report)
    return Setup((Change(TRIGGER, None, tag, TAGGED),)) if tag else None


def apply_setup(job: TrainJob, setup: Setup) -> TrainJob:
    """Return the job with the changes of `setup`, except of settings that were altered since. Raises ProblemsError for invalid values."""
    return presets.with_values(job, {change.path: change.new for change in unapplied(job, setup)})


def best_model(workspace: Workspace, memory: int = 0) -> tuple[str, str] | None:
    """Return (value of model.base_model, title) of the best model on this machine for photographs; None without one.

    Models under models/ come before results of runs; SDXL comes first if `memory` (bytes of the GPU) suffices for it, else SD 1.x.
    """
    order = ("sdxl", "sd1", "sd2") if memory >= ROOM_FOR_SDXL else ("sd1", "sdxl", "sd2")
    ranked = []
    for number, (label, path) in enumerate(Scan(workspace).checkpoints()):
        try:
            family = check_family(identify(path), path)
            if min(trained_size(path, family)) < PHOTOGRAPHS:
                continue
        except (ProblemsError, OSError, StopIteration):
            continue
        result = _inside(path, workspace.runs.resolve())
        ranked.append(((result, order.index(family), number), display_path(path), f"{label} ({FAMILY_NAMES[family]})"))
    return min(ranked)[1:] if ranked else None


def _changes(
    job: TrainJob,
    report: Report,
    workspace: Workspace,
    model: tuple[str, str] | None,
    earlier_changes: Collection[str],
    *,
    trains_photographs: bool,
) -> Iterator[Change]:
    """Yield each recommended value with its reason, even if it equals the present value.

    model               (value of model.base_model, title) to change to; None keeps the model
    trains_photographs  whether the model can train photographs
    Other arguments: see `recommended_setup`.
    """

    def may_change(path: str) -> bool:
        return path in earlier_changes or _is_demo(job, path)

    def change(path: str, new: Any, reason: str) -> Change:
        return Change(path, value_of(job, path), new, reason)

    if model:
        yield change(MODEL, model[0], f"{model[1]} is on this machine; the starter only generates icons")
    folder = next(source.folder for source in job.dataset.all_sources() if source.enabled and source.role == "train")
    repeated = Counter(row.path.parent.name for row in report.rows if row.trains and row.repeats > 1)
    name, named_by = name_of(folder, [inside for inside, _ in repeated.most_common(1)])
    if (NAME in earlier_changes or _is_demo_or_default(job, NAME)) and not job.method.traits.new_words:
        yield change(NAME, name, named_by)
    if PROMPTS in earlier_changes or _is_demo_or_default(job, PROMPTS):
        prompts, where = prompts_of(job, report, name)
        yield change(PROMPTS, prompts, where)
    if TRIGGER in earlier_changes or (value_of(job, TRIGGER) is None and not job.method.traits.new_words):
        yield change(TRIGGER, _shared_tag(report), TAGGED)
    batch = job.dataset.train_batch_size
    if trains_photographs:
        base = model[0] if model else job.model.base_model
        chosen = "dataset.resolution" not in earlier_changes and not _is_demo_or_default(job, "dataset.resolution")
        if not chosen and (size := _resolution(job, report, base, workspace)) is not None:
            yield change("dataset.resolution", *size)
        for path, reason in (
            ("dataset.bucket_reso_steps", "the usual bucket resolution steps"),
            ("dataset.train_batch_size", "suits most GPUs and the learning rate below"),
        ):
            if may_change(path):
                yield change(path, DEFAULTS[path], reason)
                batch = DEFAULTS[path] if path.endswith("batch_size") else batch
        rate = _rate(job)
        if rate is not None:
            yield change("optimizer.learning_rate", rate, "the usual rate for this method and optimizer")
    views = sum(report.views.values())
    epochs = advised_epochs(views, batch * job.schedule.gradient_accumulation_steps)
    steps = -(-views * epochs // (batch * job.schedule.gradient_accumulation_steps))
    if may_change("schedule.max_train_epochs") and job.schedule.max_train_steps is None:
        images = f"{report.trained:,} image{'s' if report.trained != 1 else ''}"
        reason = f"suggested for {images}; the number of steps depends on their sizes"
        yield change("schedule.max_train_epochs", epochs, reason)
        if may_change("samples.sample_every_n_steps"):
            every = max(50, round(steps / SAMPLES_SET / 50) * 50)
            yield change("samples.sample_every_n_steps", every, f"about {SAMPLES_SET} samples per prompt")


def _shared_tag(report: Report) -> str | None:
    """Return the tag to use as trigger word: the only one that all captions share, or their common first tag, without those of common
    words only, such as "solo". None without one, or where any caption is a sentence."""
    tag_lists = [list(filter(None, map(str.strip, row.caption.split(",")))) for row in report.rows if row.trains]
    if len(tag_lists) < FEWEST_TAGGED or min(map(len, tag_lists)) < 2:
        return None
    common = [tag for tag in tag_lists[0] if all(tag in tags for tags in tag_lists) and len(tag) <= LONGEST_TRIGGER]
    shared = [tag for tag in common if not all(word_facts(word).common for word in re.findall(r"[^\W\d_]+", tag))]
    return shared[0] if len(shared) == 1 or (shared and all(tags[0] == shared[0] for tags in tag_lists)) else None


def _is_demo(job: TrainJob, path: str) -> bool:
    """Return whether a setting has the demo's value and this is not the default."""
    return bool(value_of(job, path) == value_of(demo(), path) != DEFAULTS[path])


def _is_demo_or_default(job: TrainJob, path: str) -> bool:
    """Return whether a setting has the demo's or the default value."""
    return value_of(job, path) in (value_of(demo(), path), DEFAULTS[path])


def _resolution(job: TrainJob, report: Report, base: str, workspace: Workspace) -> tuple[int, str] | None:
    """Return (resolution in pixels, reason): the base model's, or less if the images are smaller. None if several resolutions are set or
    the model is unusable."""
    if job.dataset.more_resolutions:
        return None
    try:
        path = resolve(base, workspace.models, workspace.outputs)
        if not isinstance(path, Path):
            return None
        native = max(trained_size(path, job.model.family))
    except (ProblemsError, OSError, StopIteration):
        return None  # reported by the checks of the model
    sizes = [row.size for row in report.rows if row.trains and row.size]
    side = median((width * height) ** 0.5 for width, height in sizes)
    if side >= native:
        return native, "the base model's resolution"
    return max(STEP, -(-round(side) // STEP) * STEP), f"the images are smaller than the base model's {native}"


def _rate(job: TrainJob) -> float | None:
    """Return the usual learning rate if the current one is the demo's or far from usual; else None."""
    path = "optimizer.learning_rate"
    unusual = any(each.where == path for each in unusual_rates(job))
    usual = usual_rates(job)
    if usual is None or (adapts(job.optimizer.optimizer_type) and not unusual):
        return None
    return float(short(usual.start)) if unusual or _is_demo(job, path) else None


def _prompts_of_tags(captions: list[str], stride: int) -> list[str]:
    """Return up to PROMPTS_SET short prompts from captions that are lists of tags; [] for sentences.

    A prompt has the tags that most images share, in the order of the captions, then a few tags of one image, so that it describes one
    subject in one situation. stride: every how many captions one is used
    """
    tag_lists = [list(filter(None, map(str.strip, caption.split(",")))) for caption in captions]
    if median(map(len, tag_lists)) < TAGS_FROM or median(len(tag.split()) for tags in tag_lists for tag in tags) > 2:
        return []
    counts = Counter(tag for tags in tag_lists for tag in set(tags))
    common = {tag for tag, number in counts.items() if number >= 0.75 * len(tag_lists)}
    shared = [tag for tag in dict.fromkeys(chain(*tag_lists)) if tag in common]
    single = [[tag for tag in tags if tag not in common][:SINGLE_TAGS] for tags in tag_lists[::stride]]
    return list(dict.fromkeys(", ".join([*shared[:SHARED_TAGS], *tags]) for tags in single))[:PROMPTS_SET]


def prompts_of_pairs(job: TrainJob, report: Report) -> tuple[list[str], str] | None:
    """Return (at most PROMPTS_SET sample prompts, source) from captions with the `--cn` option of their control image, of validation images
    if some are held out. None without control images."""
    wanted = (row for row in report.rows if row.control and (row.trains or row.role == "validation"))
    pairs = [row for row in wanted if _is_prompt(" ".join(row.caption.split())) and " --" not in str(row.control)]
    held_out = [row for row in pairs if row.role == "validation"]
    rows = held_out or pairs
    if not rows:
        return None
    spread = rows[:: max(1, len(rows) // PROMPTS_SET)][:PROMPTS_SET]
    prompts = [
        f"{as_prompt(job, ' '.join(row.caption.split()))} --cn {display_path(row.control)}{_size(row)}"
        for row in spread
        if row.control
    ]
    return prompts, "validation images with their control images" if held_out else "captions with their control images"


def _size(row: Row) -> str:
    """Return the prompt options --w and --h of the image's training size, so that its control image is not cropped to a square; "" for
    square and tiny images."""
    width, height = row.bucket or (0, 0)
    return f" --w {width} --h {height}" if width != height and min(width, height) >= SMALLEST_SAMPLE else ""


def _is_prompt(caption: str) -> bool:
    """Return whether a caption can be a sample prompt unchanged: it contains no options and is no comment line."""
    return " --" not in f" {caption}" and not caption.startswith("#")


def name_of(folder: str, inside: Collection[str] = ()) -> tuple[str, str]:
    """Return (output name, reason) after a folder's name: "10_mira woman" -> "mira_woman". Where that name is generic, try the names of the
    subfolders `inside`, then the parent's."""
    path = Path(os.path.abspath(resolve_path(folder)))
    for part in (path.name, *inside, path.parent.name):
        text = re.sub(r"\W+", "_", without_signs(re.sub(r"^\d+_", "", part))).strip("_")
        while len(text.encode("utf-8", "replace")) > 80:
            text = text[:-1]
        if (
            text
            and re.sub(r"_\d+$", "", text.lower()) not in PLAIN_NAMES
            and bad_name(text) is None
            and text.isprintable()
        ):
            return text, f"after the folder {printable(part)}"
    return UNNAMED, "the folders have no name of their own"


def prompts_of(job: TrainJob, report: Report, name: str) -> tuple[list[str], str]:
    """Return (up to PROMPTS_SET sample prompts, source): captions with control images for a ControlNet, else tags or captions, else the
    trigger word, else `name`."""
    if job.method.traits.control_images and (pairs := prompts_of_pairs(job, report)):
        return pairs
    trained = [row for row in report.rows if row.trains]
    written = [row for row in trained if row.source in IMAGE_SOURCES]
    captions = [" ".join(row.caption.split("\n")[0].split()) for row in written or trained]
    usable = [caption for caption in dict.fromkeys(captions) if caption and _is_prompt(caption)]
    if usable:
        stride = max(1, len(usable) // PROMPTS_SET)  # from the whole set, not four of its beginning
        source = "captions of these images" if written else "the class tokens"
        prompts = usable[::stride][:PROMPTS_SET]
        if tagged := _prompts_of_tags(usable, stride):
            prompts, source = tagged, "tags that the images share, plus a few of single images"
    else:
        subject = "a photo" if name == UNNAMED else name.replace("_", " ")
        prompts, source = [job.captions.trigger_word or subject], "no captions yet"
    new = job.embedding.words[0] if job.method.traits.new_words and job.embedding.words else ""
    if new and not any(new in prompt for prompt in prompts):
        prompts = [f"{new}, {prompt}" for prompt in prompts]
    return [as_prompt(job, prompt) for prompt in prompts], source
