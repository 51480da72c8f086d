"""The tool `card`: a report card of a model file, one HTML page without script or links to other files, and the same as JSON.

Personal facts (captions, prompts, names, paths, author) are left out unless their setting is on; a preview lists what is in and out.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from core.assess.card_page import Card, Fact, Sample, page
from core.assess.measures import MEASURES
from core.assess.results import best_strength, read_results, rows_of
from core.dataset.images.opening import BrokenImage, open_rgb
from core.dataset.images.thumbnails import jpeg_url
from core.engine.extend import job_of
from core.engine.verdict import captions_of, images_in, measured_sentence, trigger_word
from core.engine.view import RunView
from core.formats.detect import FAMILY_NAMES
from core.formats.embedding_file import TOKEN
from core.formats.hashes import HashMemo, model_hashes
from core.formats.hub.catalog import ALLOWS, ENTRIES, Entry, of_sha256
from core.formats.hub.fetch import SHA256
from core.formats.lora.metadata import frequent_tags, stated_triggers
from core.formats.tensors.header import read_header
from core.generation.model.index import preview_of
from core.generation.model.library import find_file
from core.record import atomic
from core.record.cancel import CancelToken
from core.record.context import JobContext, Outcome
from core.record.file_titles import is_average, label_of
from core.record.problems import UNSEEN, ProblemsError, raise_if_errors, unwritten
from core.record.run_about import initial_title, title_of
from core.record.run_folder import RunFolder, run_of
from core.record.units import count, size_text
from core.record.workspace import Workspace, display_path, last_part
from core.settings.job import TrainJob
from core.settings.tools.card import CardSettings
from core.tools.files import file_of
from core.tools.models.inspect import inspect
from core.tools.models.strip_metadata import private_paths, without_paths
from core.tools.output import output_file, output_problems
from core.tools.plans import FilePlan

SAMPLE_SIDE = 640  # pixels
LONGEST = 2000  # characters of a text
MOST_BYTES = 10_000_000  # of a page
MOST_THUMBNAIL = 8_000_000  # characters of modelspec.thumbnail
TRAINING_ROWS = {
    "steps": ("Steps", "ss_steps"),
    "epochs": ("Epochs", "ss_epoch"),
    "unet_lr": ("U-Net learning rate", "ss_unet_lr"),
    "learning_rate": ("Learning rate", "ss_learning_rate"),
    "scheduler": ("Learning rate scheduler", "ss_lr_scheduler"),
    "batch_size": ("Batch size", "ss_total_batch_size"),
    "mixed_precision": ("Mixed precision", "ss_mixed_precision"),
}


# -- the tool


def plan(settings: CardSettings, workspace: Workspace) -> FilePlan:
    """Return the model file to describe and the page to write. Raises ProblemsError."""
    path = file_of(settings.file, workspace, "card.file")
    if path.is_dir():
        what = f"{display_path(path)} is a folder; a report card is of one file"
        raise ProblemsError.one(what, "card.file", "choose a file in it", "card.folder")
    if settings.preview:
        return FilePlan(f"list what a report card of {display_path(path)} would contain", path)
    target = output_file(settings.output, path, "_card", (".html",), files_of)
    for file in files_of(target):
        raise_if_errors(output_problems(file, [path], MOST_BYTES, "card.output"))
    return FilePlan(f"write {display_path(target)} and the same as .json", path, target)


def files_of(target: Path) -> tuple[Path, Path]:
    """Return (HTML file, JSON file) of the card that is written to `target`."""
    return target, target.with_suffix(".json")


def do(settings: CardSettings, plan: FilePlan, context: JobContext) -> Outcome:
    """Write the card as HTML and JSON, or with `settings.preview` only list its contents."""
    context.stage(f"reading {plan.path.name}")
    card = card_of(plan.path, settings, context.workspace, context.cancel)
    if settings.preview:
        return Outcome(lines=card.lines(), facts={"card": card.data()})
    html, json = files_of(plan.target)
    try:
        atomic.write_json(json, card.data())
        atomic.write_text(html, page(card))
    except OSError as error:
        for file in (json, html):
            file.unlink(missing_ok=True)  # neither was there before
        raise unwritten(error, "The card cannot be written", str(html)) from None
    lines = [*card.lines(), f"Saved: {display_path(html)} and {json.name}"]
    return Outcome(lines=lines, facts={"card": card.data(), "file": str(html)})


def card_of(path: Path, settings: CardSettings, workspace: Workspace, cancel: CancelToken | None = None) -> Card:
    """Return the card of the model file `path`. Raises ProblemsError for an unreadable file."""
    source = Source.of(path, settings, workspace, cancel)
    facts: list[Fact] = []
    for fact in source.facts():
        if (value := source.clean(fact.value)) not in ("", []):
            facts.append(replace(fact, value=value))
            if not settings.names and (paths := private_paths(UNSEEN.sub("", fact.text[:LONGEST]))):
                facts.append(Fact(fact.section, f"{fact.name}_paths", f"Paths in {fact.title}", paths, "names"))
    included = [each for each in facts if not each.personal or getattr(settings, each.personal)]
    left_out = [each for each in facts if each not in included]
    named = (source.metadata.get("atelier_kept"), source.new_title, source.metadata.get("modelspec.title"), path.stem)
    title = str(source.clean(next(filter(None, named))))
    return Card(title[:200] or path.stem, included, left_out, source.samples())


# -- what the file and its run tell


@dataclass(frozen=True)
class Source:
    """A model file and the data that its card is taken from.

    about      result of `inspect`
    run, job   the run that saved the file, and its settings; None if unknown
    snapshot   of the run; {} if there is none
    """

    path: Path
    settings: CardSettings
    workspace: Workspace
    about: Mapping[str, Any]
    metadata: Mapping[str, str]
    run: RunFolder | None
    job: TrainJob | None
    snapshot: Mapping[str, Any]
    cancel: CancelToken | None

    @classmethod
    def of(cls, path: Path, settings: CardSettings, workspace: Workspace, cancel: CancelToken | None) -> Source:
        """Read the file's header and the run that saved it. A run of another version or a damaged one counts as unknown."""
        folder = run_of(path, workspace.runs)
        run, job, snapshot = RunFolder(folder) if folder else None, None, {}
        if run is not None:
            with suppress(ProblemsError, OSError, ValueError):  # of another version, or damaged
                job, snapshot = job_of(run), RunView.read(run).snapshot(False)
        about, metadata = inspect(path, cancel), read_header(path)[1]
        return cls(path, settings, workspace, about, metadata, run, job, snapshot, cancel)

    def clean(self, value: Any) -> Any:
        """Return `value` fit for the card.

        A text loses control characters, all beyond LONGEST characters and, unless names are included, its paths. A list is cleaned
        text by text, without those left empty. Any other value is returned unchanged.
        """
        if isinstance(value, list):
            return [text for each in value if (text := self.clean(each))]
        if not isinstance(value, str):
            return value
        text = UNSEEN.sub("", value[:LONGEST]).strip()
        return text if self.settings.names else without_paths(text)

    @property
    def new_title(self) -> str:
        """The run's title if it was changed after the start; otherwise ""."""
        title = title_of(self.run) if self.run is not None else ""
        return title if self.run is not None and title != initial_title(self.run) else ""

    @property
    def step(self) -> int | None:
        """The step at which the run saved the file; None if unknown."""
        files = self.snapshot.get("files", [])
        return next((file["step"] for file in files if file["name"] == self.path.name), None)

    def facts(self) -> Iterator[Fact]:
        """Yield all facts of the card, section by section, not yet passed through `clean`."""
        yield from self._use()
        yield from self._base()
        yield from self._measures()
        yield from self._training()
        yield from self._file()
        for name in ("description", "tags", "license", "author"):
            title = {"license": "License of this file"}.get(name, name.capitalize())
            personal = "author" if name == "author" else ""
            yield Fact("about", name, title, self.metadata.get(f"modelspec.{name}", ""), personal)

    def _use(self) -> Iterator[Fact]:
        """Yield the facts of the section "use": trigger words, strength, image size, sampling."""
        fact = partial(Fact, "use")
        triggers = list(stated_triggers(self.path, self.metadata))
        if self.job is not None and self.run is not None:
            words = self.job.embedding.words if self.job.method.traits.new_words and TOKEN not in self.metadata else ()
            triggers += [*words, trigger_word(self.job, captions_of(self.run)[0])]
        note = ""
        if self.about["kind"] == "embedding":
            triggers = [self.path.stem, self.metadata.get(TOKEN, ""), *triggers]
            note = "Other programs know an embedding by its file name alone, the first of these."
        yield fact("triggers", "Trigger words", list(dict.fromkeys(each for each in triggers if each)), note=note)
        yield fact("frequent_tags", "Frequent tags", frequent_tags(self.metadata), "captions")
        if self.about["kind"] == "lora":
            strength, note = self._strength()
            yield fact("strength", "Strength", strength, note=note)
        yield fact("resolution", "Image size", self._stated("modelspec.resolution", "ss_resolution"))
        yield fact("prediction", "Prediction type", self.about["prediction"] or "")
        yield fact("clip_skip", "Clip skip", self._stated("modelspec.encoder_layer", "ss_clip_skip"))
        if self.job is not None and self.snapshot.get("samples"):
            samples = self.job.samples
            yield fact("sampler", "Sampler of the samples", f"{samples.sample_sampler}, {samples.sample_steps} steps")
            yield fact("guidance", "Guidance scale", samples.guidance_scale or "")

    def _strength(self) -> tuple[float, str]:
        """Return (recommended strength, note on its source): from the settings, else measured, else 1."""
        measured = best_strength(self.run.path, self.path.name) if self.run else None
        if self.settings.strength is not None:
            return self.settings.strength, ""
        if measured is not None:
            return measured, "as measured on its run"
        return 1, "not measured; 1 is usual"

    def _stated(self, *names: str) -> str:
        """Return the first of the metadata values of `names` that is not empty, "None" or "no"; otherwise ""."""
        values = (self.metadata.get(name, "")[:200] for name in names)
        return next((value for value in values if value not in ("", "None", "no")), "")

    def _base(self) -> Iterator[Fact]:
        """Yield the facts of the section "base": name, family, hash and license of the base model."""
        fact = partial(Fact, "base")
        digest, entry = self._base_digest()
        name = self._stated("ss_sd_model_name") or (self.job.model.base_model if self.job else "")
        yield fact("name", "Trained on", entry.title if entry else last_part(name))
        yield fact("path", "Path of the base model", self.job.model.base_model if self.job else "", "names")
        yield fact("family", "Family", FAMILY_NAMES.get(self.about["family"], ""))
        yield fact("sha256", "SHA-256 of the base model", digest)
        if entry is None:
            text = "Not known: look where the base model comes from. It applies to this file too."
            yield fact("license", "License", text)
            return
        note = "not confirmed on its author's page" if "license" in entry.unverified else ""
        yield fact("license", "License", entry.license, note=note)
        yield fact("allows", "What it allows", ALLOWS.get(entry.license, "See the license."))
        yield fact("license_url", "Its text", entry.license_url)

    def _base_digest(self) -> tuple[str, Entry | None]:
        """Return (SHA-256 of the base model or "", its catalog entry or None). A file that is in the catalog is its own base model."""
        if entry := of_sha256(str(self.about.get("sha256"))):
            return entry.sha256, entry
        if SHA256.fullmatch(digest := self.metadata.get("ss_new_sd_model_hash", "").lower()):
            return digest, of_sha256(digest)
        path = find_file(self.job.model.base_model, self.workspace) if self.job else None
        if path is None or not path.is_file() or path.stat().st_size not in {each.size for each in ENTRIES}:
            return "", None
        digest = model_hashes(path, HashMemo.of(self.workspace), self.cancel)[1]
        return digest, of_sha256(digest)

    @property
    def _measured(self) -> dict[str, dict[str, Any]]:
        """{measure: its data} of the measures that have a result for this file."""
        cells = read_results(self.run.path).get(self.path.name, {}) if self.run else {}
        return {name: data for name, data in cells.items() if name in MEASURES and "why" not in data}

    def _measures(self) -> Iterator[Fact]:
        """Yield the facts of the section "measures": how the file compares with its run's checkpoints, and its assessment."""
        fact = partial(Fact, "measures")
        best, too_short = self.snapshot.get("best"), self.snapshot.get("too_short", False)
        points = self.snapshot.get("measured", ())
        if self.step is not None and (best is not None or too_short or points):
            label = label_of(self.path.name, self.step)
            unmeasured = f" Of the {label} no loss was measured." if best and is_average(self.path.name) else ""
            sentence = f"This is {label}. {measured_sentence(best, False, too_short, points)}{unmeasured}"
            yield fact("among", "Among the checkpoints of its run", sentence)
        yield fact("choice", "Why it was kept", self.metadata.get("atelier_choice", ""))
        for name, data in self._measured.items():
            anonymous = {} if self.settings.names or "name" not in data else {"name": "one"}
            for row in rows_of({name: data | anonymous}):
                yield fact(name, row["title"], row["sentence"], note=row["meaning"])

    def _training(self) -> Iterator[Fact]:
        """Yield the facts of the section "training": dataset, hyperparameters and date."""
        fact = partial(Fact, "training")
        folders = self.about["metadata"].get("ss_dataset_dirs")
        folders = folders if isinstance(folders, dict) else {}
        counts = (each.get("img_count") for each in folders.values() if isinstance(each, dict))
        images = self.snapshot.get("images") or sum(each for each in counts if isinstance(each, int))
        yield fact("images", "Training images", images or self._stated("ss_num_train_images"))
        yield fact("folders", "Folders of the dataset", [str(each) for each in folders][:20], "names")
        for name, (title, key) in TRAINING_ROWS.items():
            yield fact(name, title, self._stated(key))
        yield fact("optimizer", "Optimizer", self._stated("ss_optimizer").partition("(")[0].rpartition(".")[2])
        yield fact("date", "Date", self._stated("modelspec.date")[:10])

    def _file(self) -> Iterator[Fact]:
        """Yield the facts of the section "file": contents, precision, size and hash."""
        fact = partial(Fact, "file")
        lora = self.about.get("lora") or {}
        yield fact("what", "What it is", self.about["what"])
        for name, title in (("ranks", "Rank"), ("alphas", "Alpha")):
            values = [f"{value:g}" for value in sorted(lora.get(name, {}))]
            yield fact(name, title, values[0] if len(values) == 1 else " to ".join([*values[:1], *values[-1:]]))
        damaged = len(lora.get("not_finite", ())) + len(lora.get("too_large", ()))
        yield fact("damage", "Damage", f"{count(damaged, 'tensor')} with NaN or too large values" if damaged else "")
        yield fact("types", "Precision", ", ".join(self.about.get("types", {})))
        yield fact("size", "Size", size_text(self.about["bytes"]))
        yield fact("sha256", "SHA-256", self.about.get("sha256", ""))
        version = self._stated("atelier_version")
        yield fact("made_with", "Trained with", f"Atelier {version}" if version else "")
        yield fact("file_name", "File name", self.path.name, "names")

    # -- samples

    def samples(self) -> list[Sample]:
        """Return at most `settings.samples` sample images, without those of the base model.

        Taken from the first of these that exists: samples of the file's step, images of the file in the run's comparison, samples
        of the nearest step, the file's preview image. An average has no samples.
        """
        samples = [each for each in self.snapshot.get("samples", []) if each["step"] > 0]
        step = self.step if self.step is not None else self.snapshot.get("step", 0)
        nearest = min((each["step"] for each in samples), key=lambda other: abs(other - step), default=None)
        included = [each for each in samples if each["step"] == nearest]
        if (nearest != step or is_average(self.path.name)) and self.run is not None:
            compared = images_in(self.run.path, self.path.name, self.workspace)
            others = [{"file": image, "prompt": prompt, "seed": None, "step": step} for image, prompt in compared]
            included = others or ([] if is_average(self.path.name) else included)
        included, loaded = included[: self.settings.samples], []
        for each in included:
            prompt = self.clean(each["prompt"]) if self.settings.captions else ""
            if url := _image_url(Path(each["file"])):
                loaded.append(Sample(url, prompt, each["seed"], each["step"]))
        if loaded or not self.settings.samples:
            return loaded
        preview = preview_of(self.path, self.workspace)
        url = (_image_url(preview) if preview else "") or thumbnail_of(self.metadata)
        return [Sample(url)] if url else []


def _image_url(path: Path) -> str:
    """Return the image as a JPEG data URL, reduced to SAMPLE_SIDE pixels; "" if it cannot be read."""
    try:
        return jpeg_url(open_rgb(path), SAMPLE_SIDE)
    except (BrokenImage, OSError):
        return ""


def thumbnail_of(metadata: Mapping[str, str]) -> str:
    """Return the image of modelspec.thumbnail, encoded again, as a JPEG data URL; "" without a readable one."""
    head, _, data = metadata.get("modelspec.thumbnail", "")[:MOST_THUMBNAIL].partition(";base64,")
    if not head.startswith("data:image/"):
        return ""
    try:
        with Image.open(BytesIO(base64.b64decode(data, validate=True)), formats=["JPEG", "PNG", "WEBP"]) as image:
            return jpeg_url(image.convert("RGB"), SAMPLE_SIDE)
    except (ValueError, OSError, SyntaxError, Image.DecompressionBombError):
        return ""
