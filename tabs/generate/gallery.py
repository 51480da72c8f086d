"""Images of the Generate tab: the strip of the session, the gallery of all images, and the viewer. Answers assets/gallery.js."""

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

from core.dataset.doctor import trash
from core.dataset.images.opening import BrokenImage, read_header
from core.generation.images.dataset import copy_as_dataset
from core.generation.images.gallery import UNREAD, Filter, Gallery, Shot, read_facts
from core.generation.images.metadata import read_image_metadata
from core.generation.images.record import ImageRecord
from core.generation.model.library import find_file, title_of_name
from core.generation.plan.initial import blur_of
from core.generation.prompt.loras import strengths
from core.record.file_titles import file_stem
from core.record.problems import ProblemsError
from core.record.units import count
from core.record.workspace import display_path, resolve_path
from core.settings.base import Declared, declared, fields_of
from core.settings.dataset.source import Source
from core.settings.generation.controls import ControlUse
from core.settings.job import GenerateJob
from core.settings.samples import SAMPLER_LABELS
from core.settings.values import shown_value
from tabs.context import Page
from tabs.dataset.concepts import entries_of
from tabs.dataset.questions import change_folders
from tabs.form.model_lists import STARTER
from tabs.form.view import label
from tabs.generate.view import NewestImage
from tabs.markup import esc, facts, short

TAB = "Generate"
FIRST_TILES = 80  # sent with the list
MAX_TILES = 300  # in one response
MAX_STRIP = 100  # images of the session's strip
READ_AT_ONCE = 64  # new images whose facts are read within a request
MAX_DAYS = 400  # in the filter
MAX_COPIED = 1000  # images of a new dataset
LATELY = 10  # newest deletions that are looked through for one that can be undone
THUMB, SMALL = 384, 256
# Settings that `about_job` lists separately, or that have no meaning for one image.
NAMED = {"prompt", "negative_prompt", "width", "height", "steps", "sampler", "guidance_scale", "seed"}
NAMED |= {"loras", "embeddings", "nets", "count", "prompt_weights", "zero_terminal_snr"}

# The viewer is outside the boards, so its buttons trigger the event of the gallery's board. Its script may load before or after.
SENDS = """
window.atelierGallery = element;
if (window.atelier && atelier.attachGallery) atelier.attachGallery();
atelier.sendImage = (act, arg, value) => { atelier.turn = (atelier.turn || 0) + 1; trigger('act', {act, arg, value, turn: atelier.turn}); };
"""


class GalleryHandlers:
    """Answers requests of the gallery script (atelier/gallery), and provides the gallery's part of the page's periodic update."""

    def __init__(self, page: Page):
        self.page, self.gallery = page, Gallery(page.workspace)
        self.begun = time.time()
        self._reading: Any = None
        self._copying: Any = None
        self._acts = {
            "list": self._list,
            "tiles": self._tiles,
            "open": self._open,
            "stars": self._set_stars,
            "trash": self._trash,
            "back": self._restore,
            "train": self._train,
            "cancel": self._cancel,
        }

    def refresh(self) -> int:
        """Update the image index and return its version. More than READ_AT_ONCE new images are read in the background."""
        self.gallery.refresh()
        if self.gallery.unread():
            self.gallery.read(READ_AT_ONCE)
            if self.gallery.unread() and (self._reading is None or self._reading.done):
                self._reading = self.page.engine.light(self._read, False, title="Reading the settings of images")
        return self.gallery.version

    def warm(self) -> None:
        """Start to list all image files and read their metadata in the background, unless that is running."""
        if self._reading is None or self._reading.done:
            self._reading = self.page.engine.light(self._read, True, title="Reading the settings of images")

    def _read(self, whole: bool, task: Any) -> None:
        """Read the metadata of unread images; with `whole`, first list all files again."""
        if whole:
            self.gallery.refresh(full=True)
        self.gallery.read(check=task.check)

    def newest(self) -> NewestImage | None:
        """Return the newest image of the gallery; None if it is empty."""
        self.refresh()
        for shot in self.gallery.newest():
            image_facts = self.gallery.facts(shot.name)
            image_facts = (read_facts(shot.path) if image_facts is UNREAD else image_facts) or UNREAD
            prompt, stars = image_facts.prompt or shot.path.name, self.gallery.stars(shot.name)
            return NewestImage(shot.name, shot.path, prompt, image_facts.seed, bool(image_facts.source), stars)
        return None

    def last_seed(self) -> int | None:
        """Return the seed of the newest image whose seed is known; None without one."""
        self.refresh()
        seeds = (self.gallery.facts(shot.name).seed for shot in self.gallery.newest())
        return next((seed for seed in seeds if seed is not None), None)

    def shot(self, name: str) -> Shot:
        """Return the gallery's image `name`. Raises ProblemsError if it does not exist."""
        self.refresh()
        return self.gallery.shot(name)

    # -- the tick

    def parts(self, tab: Any, request: dict[str, Any]) -> dict[str, Any]:
        """Return {"gallery": {"version", "copy"}} for the page's periodic update on the Generate tab; {} for other tabs.

        version: changes when the script should reload the list; copy: see `_copy_state`
        """
        return {"gallery": {"version": self.refresh(), "copy": self._copy_state()}} if tab == TAB else {}

    def _copy_state(self) -> dict[str, Any] | None:
        """Return the progress of the newest copy to a dataset; None if there was none.

        {"id", "text", "share": 0 to 1, "done"}; when done also "problems" and "said", the final message
        """
        task = self._copying
        if task is None:
            return None
        state = {
            "id": task.started,
            "text": task.text or task.title,
            "share": round(task.progress, 2),
            "done": task.done,
        }
        if task.done:
            problems = task.error.problems if task.error is not None else []
            state |= {"problems": [each.to_dict() for each in problems], "said": "" if problems else task.result}
        return state

    # -- requests

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer a request of the script by its "act": "list", "tiles", "open", "stars", "trash", "back", "train" or "cancel"; {} for an
        unknown one. Raises ProblemsError, with nothing changed."""
        act = self._acts.get(str(request.get("act")))
        return act(request) if act else {}

    def _list(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the list of images that match the filter (`filter_of`). With "whole" in the request, all files are listed again.

        "version"                      of the image index
        "names", "strip"               of the matches, newest first, and of this session's images
        "tiles"                        {name: `_tile`} of the first ones
        "total", "left"                numbers of all images, and of those not read yet
        "away"                         `_last_deletion`
        "models", "loras", "days"      choices of the filter with their numbers of images
        """
        version, gallery = self.refresh(), self.gallery
        if request.get("whole") is True:  # a page was opened: a full scan finds overwritten files
            self.warm()
        matches = gallery.matching(filter_of(request))
        of_session = list(takewhile(lambda shot: shot.time >= self.begun, gallery.newest()))
        strip = [shot.name for shot in gallery.without_twins(of_session)][:MAX_STRIP]
        names = [shot.name for shot in matches]
        return {
            "version": version,
            "names": names,
            "strip": strip,
            "tiles": {name: self._tile(name) for name in {*names[:FIRST_TILES], *strip}},
            "total": len(gallery.newest()),
            "away": self._last_deletion(),
            "left": len(gallery.unread()),
            "models": sorted(gallery.models().items()),
            "loras": sorted(gallery.loras().items()),
            "days": sorted(gallery.days().items(), reverse=True)[:MAX_DAYS],
        }

    def _tiles(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return {"tiles": {name: `_tile`}} for the images in the request's "names" that still exist."""
        tiles = {}
        for name in names_of(request, MAX_TILES):
            try:
                tiles[name] = self._tile(name)
            except ProblemsError:  # deleted meanwhile
                continue
        return {"tiles": tiles}

    def _tile(self, name: str) -> dict[str, Any]:
        """Return {"thumb", "base": thumbnail URLs of the image and of the one compared with it ("" for none), "says": prompt or file name,
        "seed": text or None, "own": see `Facts`, "stars"} of an image, for strip and gallery."""
        shot, image_facts, base = self.gallery.shot(name), self.gallery.facts(name), self.gallery.twin(name)
        return {
            "thumb": self.page.thumb_url(shot.path, THUMB),
            "base": self.page.thumb_url(self.gallery.shot(base).path, SMALL) if base else "",
            "says": short(image_facts.prompt or shot.path.name, 90),
            "seed": None if image_facts.seed is None else str(image_facts.seed),  # JavaScript rounds above 2**53
            "own": image_facts.own,
            "stars": self.gallery.stars(name),
        }

    def _open(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the data of the image request["name"] for the viewer: "name", "file": file name, "url", "base": URL of the image compared
        with it or "", "initial": `_initial`, "other": [model, URL] of the image before it or [], "about": settings as HTML, "prompt",
        "settings": whether these are known, and "says", "seed", "own" and "stars" of `_tile`."""
        shot = self.shot(str(request.get("name")))
        base, previous = self.gallery.twin(shot.name), self.gallery.before(shot.name)
        record = read_image_metadata(shot.path)
        return {
            "name": shot.name,
            "file": shot.path.name,
            "url": self.page.file_url(shot.path),
            "base": self.page.file_url(self.gallery.shot(base).path) if base else "",
            "initial": self._initial(record.job),
            "other": [self.gallery.facts(previous).model, self.page.file_url(self.gallery.shot(previous).path)]
            if previous
            else [],
            "about": about_job(
                record.job, record, partial(title_of_name, workspace=self.page.workspace), _size(shot.path)
            ),
            "prompt": self.gallery.facts(shot.name).prompt,
            "settings": record.job is not None,
            **{name: value for name, value in self._tile(shot.name).items() if name not in ("thumb", "base")},
        }

    def _initial(self, job: GenerateJob | None) -> dict[str, str]:
        """Return {"file": name, "url"} of the initial image in `job`; {} without one. "url" is "" if the file is missing or not allowed."""
        name = job.image_to_image.image_path if job is not None else None
        if not name:
            return {}
        path = find_file(name, self.page.workspace)
        usable = path is not None and path.is_file() and self.page.roots.holds(path)
        return {"file": Path(name).name, "url": self.page.file_url(path) if path is not None and usable else ""}

    # -- changes

    def _set_stars(self, request: dict[str, Any]) -> dict[str, Any]:
        """Set request["stars"] (a number) for the images request["names"]. Returns {"stars": {name: stars}}."""
        number = request.get("stars")
        names = self._present(request)
        self.gallery.set_stars(names, number if isinstance(number, int) else 0)
        return {"stars": {name: self.gallery.stars(name) for name in names}}

    def _trash(self, request: dict[str, Any]) -> dict[str, Any]:
        """Move the requested images to the trash. Returns {"token" for undo, "names": also those gone before, "said": message}."""
        names = self._present(request)
        token = self.gallery.put_away(names)
        return {"token": token, "names": names_of(request), "said": f"{count(len(names), 'image')} moved to the trash"}

    def _present(self, request: dict[str, Any]) -> list[str]:
        """Return the requested images that are still in the folder; if none is, all, so that the refusal names one."""
        self.gallery.refresh()
        names, present = names_of(request), {shot.name for shot in self.gallery.newest()}
        return [name for name in names if name in present] or names

    def _last_deletion(self) -> dict[str, Any] | None:
        """Return {"token", "said": message, "recent"} of the last deletion that can be undone; None without one.

        recent: whether it was deleted since the server started, so that Undo survives a page refresh
        """
        for each in trash.undoable_actions(self.gallery.folder, most=LATELY):
            message = f"{count(len(each.images), 'image')} moved to the trash"
            return {"token": each.token, "said": message, "recent": each.when >= self.begun}
        return None

    def _restore(self, request: dict[str, Any]) -> dict[str, Any]:
        """Restore the images deleted under the request's "token". Returns {"names", "said": message}."""
        names = self.gallery.put_back(str(request.get("token")))
        return {"names": names, "said": f"{count(len(names), 'image')} restored"}

    # -- copying to a dataset

    def _train(self, request: dict[str, Any]) -> dict[str, Any]:
        """Start to copy images to a new dataset folder. Returns {"copy": `_copy_state`}. Raises ProblemsError while others are copied.
        request: {"names", else the filter (`filter_of`), "folder": its name}"""
        if self._copying is not None and not self._copying.done:
            what = "Other images are still being copied"
            raise ProblemsError.one(what, "Train on these", "wait until they are copied", "gallery.busy")
        names = names_of(request, MAX_COPIED) or [
            shot.name for shot in self.gallery.matching(filter_of(request))[:MAX_COPIED]
        ]
        images = [(self.gallery.shot(name).path, self.gallery.facts(name).prompt) for name in names]
        name = " ".join(str(request.get("folder", "")).split()) or "generated"
        self._copying = self.page.engine.light(self._copy, images, name, title="Copying images", kind="copies")
        return {"copy": self._copy_state()}

    def _copy(self, images: list[tuple[Path, str]], name: str, task: Any) -> str:
        """Copy (image path, prompt) pairs to a new folder `name`, add it to the dataset of Train, and return a message."""
        folder = copy_as_dataset(images, name, self.page.workspace.datasets, task.check, task.stage)
        project, folder_text = self.page.project, display_path(folder)
        with project.lock:
            others = [entry for entry in entries_of(project.job) if resolve_path(entry.folder) != STARTER / "images"]
            if others:
                change_folders(project, [*others, Source(folder=folder_text)], "adding generated images")
            else:  # replaces the starter's images
                project.edit("dataset.folder", folder_text)
        self.page.reading.want()
        return f"{count(len(images), 'image')} copied to {folder_text}"

    def _cancel(self, request: dict[str, Any]) -> dict[str, Any]:
        """Cancel the running copy to a dataset. Returns {}. request: not used"""
        if self._copying is not None:
            self._copying.cancel()
        return {}


def filter_of(request: dict[str, Any]) -> Filter:
    """Return the gallery filter that a request describes by "words", "model", "lora", "day" (texts, "" for any) and "stars" (a number)."""
    texts = {name: str(request.get(name) or "")[:300] for name in ("words", "model", "lora", "day")}
    stars = request.get("stars")
    return Filter(**texts, stars=stars if isinstance(stars, int) else 0)


def names_of(request: dict[str, Any], most: int | None = None) -> list[str]:
    """Return the image names in a request's "names", at most `most`; [] if it has none."""
    names = request.get("names")
    return [name for name in names[:most] if isinstance(name, str)] if isinstance(names, list) else []


def _net(use: ControlUse, title_of: Callable[[str], str]) -> str:
    """Return the HTML of a ControlNet: name, weight, control image and settings that are not the defaults.

    title_of: function of a file's name that returns its display name
    """
    entries = [Declared(name, "controls", name, info) for name, info in fields_of(ControlUse).items()]
    further = [each for each in entries if each.name not in ("file", "image", "weight", "enabled")]
    changed = [(each, value) for each in further if (value := getattr(use, each.name)) != each.default]
    texts = [f", {esc(label(each).lower())} {esc(shown_value(each, value))}" for each, value in changed]
    image = f", follows {_file(use.image, file_stem)}" if use.image else ""
    return f"{_file(use.file, title_of)} <b>{use.weight:g}</b>{image}{''.join(texts)}"


def _file(name: str, title_of: Callable[[str], str]) -> str:
    """Return the HTML of a file's display name, `title_of(name)`, with the full name as tooltip."""
    return f'<span title="{esc(name)}">{esc(title_of(name))}</span>'


def _size(path: Path) -> str:
    """Return the size of an image file as text, "512 × 768"; "" if it cannot be read."""
    with suppress(BrokenImage, OSError):
        header = read_header(path)
        return f"{header.width} × {header.height}"
    return ""


def about_job(
    job: GenerateJob | None, record: ImageRecord, title_of: Callable[[str], str] = file_stem, size: str = ""
) -> str:
    """Return the HTML of an image's settings, or of the reason why they are unknown.

    job       the image's job, None if unknown
    title_of  function of a model file's name that returns its display name
    size      text of the image's final size, which hires fix or an upscaler may have enlarged
    """
    if job is None:
        return f'<p class="hint">{esc(record.reason)}</p>'
    settings = job.generate
    requested = f"{settings.width} × {settings.height}" if settings.width and settings.height else ""
    texts = [(use.file, strengths(use.strength, use.text_encoder_strength)) for use in settings.loras]
    loras = (f"{_file(file, title_of)} <b>{text}</b>" for file, text in texts)
    rows = [
        ("Prompt", esc(settings.prompt) or "<i>empty</i>"),
        ("Negative", esc(settings.negative_prompt)),
        ("Size", f"{size}, from {requested}" if size and requested not in ("", size) else size or requested),
        ("Steps", f"{settings.steps}"),
        ("Sampler", esc(SAMPLER_LABELS.get(settings.sampler, settings.sampler))),
        ("Guidance", "" if settings.guidance_scale is None else f"{settings.guidance_scale:g}"),
        ("Seed", "" if settings.seed is None else str(settings.seed)),
        ("Model", _file(job.model.base_model, title_of) if record.source == "atelier" else ""),
        ("VAE", esc(job.model.vae or "")),
        ("Clip skip", str(job.model.clip_skip or "")),
        ("LoRAs", "<br>".join(loras)),
        ("Embeddings", "<br>".join(esc(text) for text in settings.embeddings)),
        ("ControlNets", "<br>".join(_net(use, title_of) for use in job.controls.used)),
        ("Zero terminal SNR", "on" if settings.zero_terminal_snr == "on" else ""),
        ("Prompt weights", "" if settings.prompt_weights else "off"),
    ]
    in_use = _always_listed(job)
    for entry in declared(GenerateJob):
        value = in_use.get(entry.path, getattr(getattr(job, entry.group), entry.name))
        is_listed = entry.path in in_use or (entry.name not in NAMED and value != entry.default)
        if is_listed and entry.group not in ("model", "memory", "prompts"):
            rows.append((label(entry), esc(shown_value(entry, value))))
    return facts([(name, value) for name, value in rows if value])


def _always_listed(job: GenerateJob) -> dict[str, Any]:
    """Return {setting path: value} of settings that are listed even if they have their defaults, as A1111 does."""
    settings, hires = job.image_to_image, job.hires
    values: dict[str, Any] = {"generate.schedule_type": job.generate.schedule_type}
    if hires.highres_fix_scale is not None:
        values["hires.hires_steps"] = hires.hires_steps or job.generate.steps
        if not hires.highres_fix_upscaler_file:
            values["hires.highres_fix_upscaler"] = hires.highres_fix_upscaler
    if settings.image_path or job.hires.highres_fix_scale is not None:
        values["image_to_image.strength"] = settings.strength
    if settings.image_path and settings.mask_path:
        values["image_to_image.mask_blur"] = blur_of(job)
        if settings.inpaint_area == "masked":
            values["image_to_image.mask_padding"] = settings.mask_padding
    return values
