"""What an image is used for: its settings go into the fields, the next images begin with it, or it is made larger."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio as gr

from core.dataset.images.opening import BrokenImage, read_header
from core.dataset.sources.files import printable
from core.generation.grids.folder import GridFolder, position_of
from core.generation.images.gallery import Facts, Shot, read_facts
from core.generation.images.metadata import read_image_metadata
from core.generation.images.record import ImageRecord
from core.generation.plan.initial import mask_size_advice
from core.generation.plan.requests import FILE as FROM_FILE
from core.generation.plan.upscalers import LANCZOS, UPSCALERS
from core.generation.prompt.files import is_prompt, read_entries
from core.record import atomic
from core.record.bounded_json import json_or_none
from core.record.problems import Problem, ProblemsError
from core.record.units import count
from core.record.workspace import resolve_path, typed_path
from core.settings.job import GenerateJob
from tabs.context import Page
from tabs.form.model_lists import ModelLists
from tabs.form.picker import misfit
from tabs.form.plain_presets import PlainForm, Values
from tabs.generate import form
from tabs.generate.gallery import Shelf
from tabs.generate.painting import Painting
from tabs.markup import act_of, button, esc, short

TAB = "Generate"
SENT = {"begin": "The next images begin with", "inpaint": "Paint what is repainted of"}  # act: what is said of it
FACTORS = (2, 3, 4)  # times the sides
KEEPS = 0.2  # a denoising strength that keeps an image's shapes
FILE = "file:"  # begins the choice of an upscaler file
LATENTS = "latent_upscaler"
CELL = "grid:"  # begins the name of a grid's cell
STEP, MOST = 8, 4096  # pixels: sides are multiples of it; the longest that can be set
OF_GROUPS = tuple(name for name in form.FIELDS if form.OF_JOB[name].group in ("image_to_image", "hires"))
OF_IMAGE = (*OF_GROUPS, "width", "height")  # what comes with an initial image
SENDING = "send image"  # what messages are about


class Sending:
    """What is done with images of the gallery, and with those that are dropped.

    make    queues checked jobs      checked    the jobs that fields ask for. Raises ProblemsError
    """

    def __init__(
        self,
        page: Page,
        fields: PlainForm,
        shelf: Shelf,
        painting: Painting,
        lists: ModelLists,
        checked: Callable[[Values], Sequence[GenerateJob]],
        make: Callable[[Sequence[GenerateJob]], Any],
    ):
        self.page, self._fields, self._shelf, self._painting = page, fields, shelf, painting
        self._lists, self._checked, self._make = lists, checked, make

    def act(self, event: gr.EventData) -> None:
        """An image of the gallery is used. Raises ProblemsError."""
        act, name, value = act_of(event)
        shot, known = self._found(name)
        if act == "use":
            self._take_over(read_image_metadata(shot.path), f"the image {shot.path.name}")
        elif act in SENT:
            self._begin(begun_with(shot, known))
            self.page.say("done", f"{SENT[act]} {shot.path.name}.")
        elif act == "control":
            self._follow(str(shot.path))
        elif act == "upscale":
            self._enlarge(shot, known, value)

    def _found(self, name: str) -> tuple[Shot, Facts]:
        """An image of the gallery, or the cell of a grid. Raises ProblemsError."""
        if not name.startswith(CELL):
            return self._shelf.shot(name), self._shelf.gallery.facts(name)
        grid, _, cell = name.removeprefix(CELL).partition("/")
        folder, place = GridFolder.named(grid, self.page.workspace), position_of(cell.removesuffix(".png"))
        if place is None or not (path := folder.cell(place)).is_file():
            raise ProblemsError.one("This cell no longer exists", cell[:40], "open the grid again", "grid.no-such-cell")
        return Shot(name, path, *_bytes_and_time(path)), read_facts(path)

    # -- its settings

    def read(self, file: str) -> None:
        """The settings of a dropped image go into the fields."""
        name = printable(Path(file).name)
        try:
            read_header(file)
        except BrokenImage as error:
            fix = "drop a PNG, JPEG or WebP image that was generated here or by A1111"
            return self.page.say(
                "error", problems=[Problem(f"{name} {error}", "Image to read", fix, code="image.unreadable")]
            )
        else:
            self._take_over(read_image_metadata(file), f"the image {name}")
        finally:
            atomic.remove(file)  # the server's own copy of the upload

    def _take_over(self, record: ImageRecord, what: str) -> None:
        """Fill the fields with an image's settings; what was taken over is said."""
        if record.job is None:
            fix = "choose an image that was generated here or by A1111"
            return self.page.say("error", problems=[Problem(record.reason, what, fix, code="image.no-settings")])
        with self.page.project.lock:
            values, notes = self._values_of(record)
            if values["image_path"]:
                self._remember({name: values[name] for name in OF_IMAGE})
            else:
                self._keep({})
            self._fields.put(values)
        self.page.say("done", f"The settings of {what} were loaded.", problems=record.notes + notes)

    def _values_of(self, record: ImageRecord) -> tuple[Values, list[Problem]]:
        """The fields that make an image again, and what of it is not on this machine."""
        now, job = self._fields.load(), record.job
        assert job is not None
        values, notes = form.values_of(
            job, now, self.page.workspace, self.page.project.job.model, record.hashes.controls
        )
        if record.source != "atelier":  # it names no model of ours, so the chosen one stays
            own = {name: now[name] for name in ("base_model", "model", *form.MODEL)}
            notes = [note for note in notes if note.code != form.NO_MODEL]
            values |= own | form.model_said(job, self.page.workspace, notes)
        own = {name: now[name] for name in form.FIELDS if form.OF_JOB[name].group == "output"}
        return values | own | {"count": 1}, notes

    # -- the image itself

    def begin_with(self, file: str) -> None:
        """A dropped image becomes the initial one."""
        try:
            path = self._painting.take(file)
            with self.page.project.lock:
                now = self._fields.load()
                mask = now["mask_path"] if now["image_path"] == path else None  # that of another image
                self._begin({"image_path": path, "mask_path": mask})
            self.page.say("done", f"{SENT['begin']} {Path(path).name}.")
        except ProblemsError as error:
            self.page.say("error", problems=error.problems, about=SENDING)
        finally:
            atomic.remove(file)  # the server's own copy of the upload

    def follow(self, file: str) -> None:
        """A dropped image becomes the control image."""
        try:
            self._follow(self._painting.take(file))
        except ProblemsError as error:
            self.page.say("error", problems=error.problems, about=SENDING)
        finally:
            atomic.remove(file)  # the server's own copy of the upload

    def _follow(self, path: str) -> None:
        with self.page.project.lock:
            self._fields.update({"control_image": path})
        self.page.say("done", f"ControlNets without an image of their own follow {Path(path).name}.")

    def _begin(self, given: Values) -> None:
        """Fields that an image brings along; what they were is restored when it is no longer used."""
        with self.page.project.lock:
            self._remember(given)
            self._fields.update(given)

    def _remember(self, given: Values) -> None:
        """Keep what the fields are before an initial image brings `given`. Where they belong to another one, of which that is
        not known, they are the defaults."""
        values, kept = self._fields.load(), self._kept()
        before = {name: values[name] for name in given}
        earlier = kept.get("given", {})
        if values["image_path"] and earlier.get("image_path") == values["image_path"]:  # one image after another
            given, before = earlier | given, before | kept.get("before", {})
        elif values["image_path"]:
            before |= {
                name: value for name, value in form.start_values().items() if name in before and name in OF_GROUPS
            }
        self._keep({"given": given, "before": before})

    def stop(self) -> None:
        """The initial image is no longer used, and fields that came with it are what they were before."""
        with self.page.project.lock:
            values, kept = self._fields.load(), self._kept()
            given, before = kept.get("given", {}), kept.get("before", {})
            unchanged = {name: before.get(name) for name in given if given[name] == values.get(name)}
            if values["image_path"] != given.get("image_path"):
                unchanged = {}
            after = values | unchanged | {"image_path": None, "mask_path": None}
            left = {name: value for name, value in values.items() if after[name] != value}
            self._fields.put(after)
            self._keep({"left": left})

    def again(self) -> None:
        """The image that was left is used again."""
        with self.page.project.lock:
            left = self._kept().get("left", {})
            values = self._fields.load()
            self._begin({name: value for name, value in left.items() if name in values})

    def forget(self) -> None:
        """What was left is not offered any more."""
        if "left" in self._kept():
            self._keep({})

    def _kept(self) -> dict[str, Any]:
        kept = self.page.project.tab_state(TAB).get("sent", {})
        return kept if isinstance(kept, dict) else {}

    def _keep(self, sent: dict[str, Any]) -> None:
        self.page.project.keep(TAB, self.page.project.tab_state(TAB) | {"sent": sent})

    def line(self, values: Values) -> str:
        """Stands below the prompts while a file has them or images begin with another one, and says how to leave that."""
        return self._of_file(values) + self._of_image(values)

    def _of_file(self, values: Values) -> str:
        """While prompts of a file or a module are used in place of the written one."""
        file, module = (str(values[name] or "") for name in ("from_file", "from_module"))
        if not file and not module:
            return ""
        number, path = 0, resolve_path(file)
        with suppress(ProblemsError, OSError):
            if file and self.page.roots.holds(path):
                entries = read_entries(path, FROM_FILE)
                number = sum(isinstance(entry, dict) or is_prompt(entry) for entry in entries)
        name = path.name if file else module
        count_of = f" ({count(number, 'prompt')})" if number else ""
        way = button("file_stop", "Stop using it", kind="quiet", label=f"Stop using the prompts from {name}")
        words = f"Prompts from <b>{esc(short(name, 40))}</b>{count_of}"
        return f'<div class="gen-using"><span title="{esc(file or module)}">{words}</span>{way}</div>'

    def _of_image(self, values: Values) -> str:
        """While images begin with another one, or have just begun to do without."""
        path = str(values["image_path"] or "")
        if not path:
            left = self._kept().get("left", {})
            name = Path(str(left.get("image_path") or "")).name
            if not name:
                return ""
            words, way = f"{esc(short(name, 40))} is not used.", button("image_again", "Undo", kind="quiet")
        else:
            kind = "Inpaint" if values["mask_path"] else "Image to image"
            words = f"{kind}: <b>{esc(short(Path(path).name, 40))}</b> (strength {values['strength']:g})"
            way = button("image_stop", "Stop using it", kind="quiet")
        said = "".join(f'<span class="warn">{esc(each.what)}; {esc(each.fix)}.</span>' for each in self._advice(values))
        return f'<div class="gen-using"><span title="{esc(path)}">{words}</span>{way}{said}</div>'

    def _advice(self, values: Values) -> list[Problem]:
        """What is said of the mask before anything is made."""
        image, mask = (typed_path(values[name]) for name in ("image_path", "mask_path"))
        if image is None or mask is None or not all(self.page.roots.holds(each) for each in (image, mask)):
            return []
        try:
            headers = [read_header(each) for each in (mask, image)]
        except BrokenImage:  # folders have no sizes; what is missing or damaged is said at the start
            return []
        own, size = ((each.width, each.height) for each in headers)
        return list(mask_size_advice(mask, own, size))

    # -- larger

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """What the dialog of Upscale offers for an image; errors are answered as `problems`."""
        try:
            shot, known = self._found(str(request.get("name")))
        except ProblemsError as error:
            return {"problems": [problem.to_dict() for problem in error.problems]}
        now = self._fields.load()
        chosen = now["highres_fix_upscaler_file"]
        offered = [(name, each.title, each.latents is not None, "") for name, each in UPSCALERS.items()]
        offered += self._files(str(chosen or ""))
        first = FILE + chosen if chosen else now["highres_fix_upscaler"]
        sides = _sides(known)
        return {
            "file": shot.path.name,
            "sizes": [[times, *(side * times for side in sides.values())] for times in FACTORS],
            "upscalers": sorted(offered, key=lambda each: each[0] != first),  # stable
            "strength": KEEPS,
        }

    def _files(self, chosen: str) -> list[tuple[str, str, bool, str]]:
        """(choice, words, whether it upscales latents, why it cannot be chosen) of each upscaler file and of the form's."""
        self._lists.look()
        found, family = self._lists.of(["upscaler"]), self._fields.family_for("highres_fix_upscaler_file")
        why = [misfit(each.facts, each.path, ("upscaler",), family) for each in found]
        offered = [
            (FILE + each.name, each.label, each.facts.kind == LATENTS, reason)
            for each, reason in zip(found, why, strict=True)
        ]
        own = (
            []
            if not chosen or FILE + chosen in {name for name, *_ in offered}
            else [(FILE + chosen, Path(chosen).name, False, "")]
        )
        return [*offered, *own]

    def _enlarge(self, shot: Shot, known: Facts, choice: str) -> None:
        """Queue a larger version of an image, made with its own settings; the fields stay as they are."""
        record, now = read_image_metadata(shot.path), self._fields.load()
        values, notes = self._values_of(record) if record.job is not None else (now, [])
        times, upscaler, strength = _chosen(choice)
        own = larger(shot, known, times, upscaler, strength)
        self._make(self._checked(values | own))
        notes = [note for note in notes if note.where.rpartition(".")[2] not in own]
        how = f"denoising strength {strength:g}" if strength else "only enlarged"
        self.page.say("done", f"Making {shot.path.name} {times} times as large ({how}).", problems=notes)


def _chosen(choice: str) -> tuple[int, str, float]:
    """(factor, upscaler, denoising strength) of the dialog. Raises ProblemsError."""
    try:
        given = json_or_none(choice)
        times, upscaler, strength = int(given["factor"]), str(given["upscaler"]), float(given["strength"])
    except (ValueError, TypeError, KeyError):
        times, upscaler, strength = 0, "", -1.0
    if times not in FACTORS or not 0 <= strength <= 1 or not (upscaler in UPSCALERS or upscaler.startswith(FILE)):
        what, fix = "The image cannot be upscaled so", "use a factor of 2, 3 or 4 and a denoising strength from 0 to 1"
        raise ProblemsError.one(what, "Upscale", fix, "upscale.bad-choice")
    return times, upscaler, strength


def _bytes_and_time(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def begun_with(shot: Shot, known: Facts) -> Values:
    """The fields for images that begin with this one, at its size."""
    return {"image_path": str(shot.path), "mask_path": None, "seed": None} | _sides(known)


def larger(shot: Shot, known: Facts, times: int, upscaler: str, strength: float) -> Values:
    """The fields that make one image larger. With Lanczos it is resized and then made at that size; another upscaler enlarges
    it, as any does where the size cannot be set, between two stages, of which the first changes nothing. A strength of 0 only enlarges."""
    alone = {"count": 1, "compare": False, "from_file": None, "from_module": None, "n_iter": 1, "region_map": None}
    begin = {"image_path": str(shot.path), "mask_path": None, "strength": strength, "highres_fix_save_1st": False}
    large = {name: side * times for name, side in _sides(known).items()}
    if upscaler == LANCZOS and strength and max(large.values(), default=0) <= MOST:
        return alone | begin | {"highres_fix_scale": None} | large
    file = upscaler.removeprefix(FILE) if upscaler.startswith(FILE) else None
    way: Values = {
        "highres_fix_scale": float(times),
        "highres_fix_strength": 0.0,
        "highres_fix_latents_upscaling": False,
    }
    way |= {"highres_fix_upscaler": LANCZOS if file else upscaler, "highres_fix_upscaler_file": file}
    way |= {} if strength else {"refiner_checkpoint": None}  # which would have no step
    return alone | begin | way | _sides(known)


def _sides(known: Facts) -> Values:
    """The image's own sides; nothing where they are not known."""
    sides = {"width": known.width, "height": known.height}
    return {name: max(64, side // STEP * STEP) for name, side in sides.items() if side}
