"""Using an image in Generate: load its settings, or use it as initial image, as control image, or for upscaling."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gradio as gr

from core.dataset.images.opening import BrokenImage, read_header
from core.dataset.sources.files import printable
from core.formats.hashes import HashMemo
from core.generation.grids.folder import GridFolder, position_of
from core.generation.images.a1111 import from_a1111_text
from core.generation.images.gallery import UNREAD, Facts, Shot, read_facts
from core.generation.images.metadata import read_image_metadata
from core.generation.images.record import ImageRecord
from core.generation.model.library import find
from core.generation.model.sources import HashComparison
from core.generation.plan.initial import mask_size_advice
from core.generation.plan.requests import FILE as FROM_FILE
from core.generation.plan.upscalers import LANCZOS, UPSCALERS
from core.generation.prompt.files import is_prompt, read_entries
from core.record import atomic
from core.record.bounded_json import json_or_none
from core.record.problems import Problem, ProblemsError
from core.record.stamps import stamp
from core.record.units import count
from core.record.workspace import resolve_path, typed_path
from core.settings.job import GenerateJob
from tabs.context import Page
from tabs.form.model_lists import ModelLists
from tabs.form.picker import misfit
from tabs.form.plain_form import PlainForm, Values
from tabs.generate import cards, form, image_values
from tabs.generate.controls import with_fitting_preprocessors
from tabs.generate.gallery import GalleryHandlers
from tabs.generate.painting import Painting
from tabs.generate.replaced import TAKE_BACK, replacing
from tabs.markup import board_event, button, esc, options, short

TAB = "Generate"
SENT = {"begin": "The next images begin with", "inpaint": "Paint what is repainted of"}  # {act: start of the message}
FACTORS = (2, 3, 4)  # times the sides
KEEPS = 0.2  # a denoising strength that preserves shapes
VARIES = 0.15  # variation strength of a variation
ALONE = {"count": 1, "compare": False, "from_file": None, "from_module": None, "n_iter": 1}  # values of a single image
FILE = "file:"  # prefix of the choice of an upscaler file
UPSCALER, UPSCALER_FILE = "highres_fix_upscaler", "highres_fix_upscaler_file"
LATENTS = "latent_upscaler"
CELL = "grid:"  # prefix of the name of a grid's cell
STEP, MAX_SIDE = 8, 4096  # pixels
OF_IMAGE = tuple(name for name in form.FIELDS if form.OF_JOB[name].group == "image_to_image")
OTHER_MODEL = "image-settings.other-model"  # problem code
SENDING = "send image"  # `about` of messages


class Sending:
    """Handlers that use an image of the gallery, a grid or an upload.

    checked  function of form values that returns their checked jobs, or raises ProblemsError
    make     function that queues jobs
    """

    def __init__(
        self,
        page: Page,
        fields: PlainForm,
        gallery: GalleryHandlers,
        painting: Painting,
        lists: ModelLists,
        checked: Callable[[Values], Sequence[GenerateJob]],
        make: Callable[[Sequence[GenerateJob]], Any],
    ):
        self.page, self._fields, self._gallery, self._painting = page, fields, gallery, painting
        self._lists, self._checked, self._make = lists, checked, make

    def act(self, event: gr.EventData) -> None:
        """Handle a button of an image: "use", "begin", "inpaint", "control", "upscale" or "vary". Raises ProblemsError."""
        act, name, value = board_event(event)
        shot, facts = self._image(name)
        if act == "use":
            self._load_settings(read_image_metadata(shot.path), f"the image {shot.path.name}")
        elif act in SENT:
            self._begin(initial_values(shot, facts))
            self.page.say("done", f"{SENT[act]} {shot.path.name}.")
        elif act == "control":
            self._follow(str(shot.path))
        elif act == "upscale":
            self._enlarge(shot, facts, value)
        elif act == "vary":
            self._vary(shot)

    def _image(self, name: str) -> tuple[Shot, Facts]:
        """Return (file, facts) of a gallery image, or of a grid's cell "grid:NAME/CELL.png". Raises ProblemsError if it does not exist."""
        if not name.startswith(CELL):
            return self._gallery.shot(name), self._gallery.gallery.facts(name)
        grid, _, cell = name.removeprefix(CELL).partition("/")
        folder, position = GridFolder.named(grid, self.page.workspace), position_of(cell.removesuffix(".png"))
        if position is None or not (path := folder.cell(position)).is_file():
            raise ProblemsError.one("This cell no longer exists", cell[:40], "open the grid again", "grid.no-such-cell")
        return Shot(name, path, *stamp(path)), read_facts(path) or UNREAD

    # -- its settings

    def read(self, file: str) -> None:
        """Load the settings of an uploaded image and delete the upload; an unreadable image is reported in a message."""
        name = printable(Path(file).name)
        try:
            read_header(file)
        except BrokenImage as error:
            fix = "drop a PNG, JPEG or WebP image that was generated here or by A1111"
            return self.page.say(
                "error", problems=[Problem(f"{name} {error}", "Image to read", fix, code="image.unreadable")]
            )
        else:
            self._load_settings(read_image_metadata(file), f"the image {name}")
        finally:
            atomic.remove(file)  # the uploaded copy

    def read_text(self, text: str) -> None:
        """Load the settings in A1111's text of an image, pasted as prompt."""
        self._load_settings(from_a1111_text(text), "the text")

    def _load_settings(self, record: ImageRecord, source: str) -> None:
        """Fill in the form with the settings of an image and show a message. source: description of the image for messages"""
        if record.job is None:
            fix = "choose an image that was generated here or by A1111"
            return self.page.say("error", problems=[Problem(record.reason, source, fix, code="image.no-settings")])
        with replacing(self.page):
            values, notes = self._values_of(record)
            if values["image_path"]:
                shared = {cards.STRENGTH} if values["highres_fix_scale"] else set()  # also of hires fix, which stays
                self._remember({name: values[name] for name in OF_IMAGE if name not in shared}, with_settings=True)
            else:
                self._keep({})
            self._fields.put(values)
            cards.drop_unused(self.page, values)
        seed = "" if values["seed"] is None else f" Its seed {values['seed']} is set: turn off Lock for other images."
        self.page.say("done", f"The settings of {source} were loaded.{seed}", problems=notes, undo_by=TAKE_BACK)

    def _values_of(self, record: ImageRecord) -> tuple[Values, list[Problem]]:
        """Return (form values that generate the image again, notes of the image and advice about missing files)."""
        current, job = self._fields.load(), record.job
        assert job is not None
        model, workspace, unhashed = self.page.project.job.model, self.page.workspace, list[Problem]()
        comparison = HashComparison(HashMemo.of(workspace))
        if record.source == "atelier":
            models = current["base_model"], model.base_model
            job = image_values.with_chosen_model(job, record.hashes.model, models, workspace, comparison, unhashed)
        values, notes = image_values.values_of(job, current, workspace, model, record.hashes, comparison)
        foreign = record.source != "atelier"
        if foreign or any(note.code == image_values.NO_MODEL for note in notes):  # the chosen model stays
            # Other programs' names of models are unknown here.
            notes = [note for note in notes if not foreign or note.code != image_values.NO_MODEL]
            usual = None if current["base_model"] else model.clip_skip
            values |= {name: current[name] for name in ("base_model", "model", "prediction")}
            values |= image_values.model_values_in(job, record.source, usual, workspace, notes)
        if not values["variation_strength"]:
            values["variation_seed"] = None  # drawn for each grid, without effect
        if values["zero_terminal_snr"] == "off" and not form.marked_for_zero_snr(
            values, self.page.project.job, workspace, lambda name: find("lora", name, workspace)
        ):
            values["zero_terminal_snr"] = "auto"  # which is off for these files
        chosen, digest = values["base_model"] or model.base_model, record.hashes.model
        same = foreign and bool(record.model or digest)
        same = same and image_values.is_model(chosen, record.model, digest, workspace, comparison, unhashed)
        notes = [note for note in record.notes if not same or note.code != OTHER_MODEL] + unhashed + notes
        output = {name: current[name] for name in form.FIELDS if form.OF_JOB[name].group == "output"}
        return values | output | {"count": 1}, notes

    # -- the image itself

    def begin_with(self, file: str) -> None:
        """Use the uploaded image `file` as initial image."""
        with self._uploaded(file):
            path = self._painting.store_upload(file)
            with self.page.project.lock:
                values = self._fields.load()
                mask = values["mask_path"] if values["image_path"] == path else None  # not that of another image
                self._begin({"image_path": path, "mask_path": mask})
            self.page.say("done", f"{SENT['begin']} {Path(path).name}.")

    def follow(self, file: str) -> None:
        """Use the uploaded image `file` as control image."""
        with self._uploaded(file):
            self._follow(self._painting.store_upload(file))

    @contextmanager
    def _uploaded(self, file: str) -> Iterator[None]:
        """Context in which an upload is used: shows a ProblemsError as a message, and deletes the uploaded copy at the end."""
        try:
            with self.page.browsers.reporting(self.page.browser, SENDING):
                yield
        finally:
            atomic.remove(file)

    def _follow(self, path: str) -> None:
        """Set the common control image, with fitting preprocessors, and show a message."""
        with self.page.project.lock:
            before = self._fields.load()
            values, note = with_fitting_preprocessors(self.page, before, before | {"control_image": path})
            self._fields.put(values, corrected=["control_image"])
        follow = f"ControlNets without an image of their own follow {Path(path).name}."
        self.page.say("done", f"{follow} {note}".strip())

    def _begin(self, fields: Values) -> None:
        """Set the fields of an initial image, and store their previous values for `remove_initial_image`."""
        with self.page.project.lock:
            self._remember(fields)
            self._fields.update(fields)

    def _remember(self, fields: Values, with_settings: bool = False) -> None:
        """Store the values that `fields` will replace, for `remove_initial_image`.

        If the form has an initial image that was not set from here, defaults are stored for the image's settings.
        with_settings: all other settings are replaced too, such as the size that an earlier initial image set
        """
        values, state = self._fields.load(), self._sent_state()
        before = {name: values[name] for name in fields}
        earlier = state.get("given", {})
        if values["image_path"] and earlier.get("image_path") == values["image_path"]:  # one image after another
            fields = fields if with_settings else earlier | fields
            before |= {name: value for name, value in state.get("before", {}).items() if name in fields}
        elif values["image_path"]:
            before |= {
                name: value for name, value in form.start_values().items() if name in before and name in OF_IMAGE
            }
        self._keep({"given": fields, "before": before})

    def remove_initial_image(self) -> None:
        """Remove the initial image, and restore the fields set with it that the user has not changed since."""
        with self.page.project.lock:
            values, state = self._fields.load(), self._sent_state()
            fields, before = state.get("given", {}), state.get("before", {})
            unchanged = {name: before.get(name) for name in fields if fields[name] == values.get(name)}
            if values["image_path"] != fields.get("image_path"):
                unchanged = {}
            after = values | unchanged | {"image_path": None, "mask_path": None}
            removed = {name: value for name, value in values.items() if after[name] != value or name in OF_IMAGE}
            self._fields.put(after)
            self._keep({"left": removed})

    def restore_initial_image(self) -> None:
        """Undo `remove_initial_image`: set the removed initial image and its fields again."""
        with self.page.project.lock:
            removed = self._sent_state().get("left", {})
            values = self._fields.load()
            self._begin({name: value for name, value in removed.items() if name in values})

    def forget_removed_image(self) -> None:
        """Discard the fields that `remove_initial_image` stored for `restore_initial_image`."""
        if "left" in self._sent_state():
            self._keep({})

    def _sent_state(self) -> dict[str, Any]:
        """Return the stored state of the initial image, one of three forms; values are {field: value}.

        {"given", "before"}   while one is set: the fields set with it, and their earlier values
        {"left"}              after its removal: the fields to restore by Undo
        {}                    otherwise
        """
        state = self.page.project.tab_state(TAB).get("sent", {})
        return state if isinstance(state, dict) else {}

    def _keep(self, sent: dict[str, Any]) -> None:
        """Store the state of the initial image (see `_sent_state`)."""
        self.page.project.update_tab(TAB, sent=sent)

    def line(self, values: Values) -> str:
        """Return the HTML below the prompts: the prompt file and the initial image in use, with buttons to stop using them."""
        return self._file_html(values) + self._image_html(values)

    def _file_html(self, values: Values) -> str:
        """Return the HTML about the file or module that prompts come from; "" without one."""
        file, module = (str(values[name] or "") for name in ("from_file", "from_module"))
        if not file and not module:
            return ""
        number, path = 0, resolve_path(file)
        with suppress(ProblemsError, OSError):
            if file and self.page.roots.holds(path):
                entries = read_entries(path, FROM_FILE)
                number = sum(isinstance(entry, dict) or is_prompt(entry) for entry in entries)
        name = path.name if file else module
        number_of_prompts = f" ({count(number, 'prompt')})" if number else ""
        stop = button("file_stop", "Stop using it", kind="quiet", label=f"Stop using the prompts from {name}")
        text = f"Prompts from <b>{esc(short(name, 40))}</b>{number_of_prompts}"
        return f'<div class="gen-using"><span title="{esc(file or module)}">{text}</span>{stop}</div>'

    def _image_html(self, values: Values) -> str:
        """Return the HTML about the initial image, or the Undo of its removal; "" without either."""
        path = str(values["image_path"] or "")
        if not path:
            removed = self._sent_state().get("left", {})
            name = Path(str(removed.get("image_path") or "")).name
            if not name:
                return ""
            text, action = f"{esc(short(name, 40))} is not used.", button("image_again", "Undo", kind="quiet")
        else:
            kind = "Inpaint" if values["mask_path"] else "Image to image"
            text = f"{kind}: <b>{esc(short(Path(path).name, 40))}</b> (strength {values['strength']:g})"
            action = button("image_stop", "Stop using it", kind="quiet")
        advice = "".join(
            f'<span class="warn">{esc(each.what)}; {esc(each.fix)}.</span>' for each in self._advice(values)
        )
        return f'<div class="gen-using"><span title="{esc(path)}">{text}</span>{action}{advice}</div>'

    def _advice(self, values: Values) -> list[Problem]:
        """Return advice if the mask's size differs from the initial image's; [] if there is no mask or a file is unreadable."""
        image, mask = (typed_path(values[name]) for name in ("image_path", "mask_path"))
        if image is None or mask is None or not all(self.page.roots.holds(each) for each in (image, mask)):
            return []
        try:
            headers = [read_header(each) for each in (mask, image)]
        except BrokenImage:  # a folder, or a missing or damaged file, which the start reports
            return []
        mask_size, size = ((each.width, each.height) for each in headers)
        return list(mask_size_advice(mask, mask_size, size))

    # -- upscaling

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the data of the Upscale dialog for image {"name"}. Raises ProblemsError.

        file       name of the image file
        sizes      [[factor, width, height]] in pixels; [[factor]] if the size is unknown
        upscalers  [(choice, label, whether it upscales latents, reason why it cannot be chosen or "")], that of the form first
        strength   default denoising strength
        """
        shot, facts = self._image(str(request.get("name")))
        values = self._fields.load()
        chosen = values["highres_fix_upscaler_file"]
        offered = [(name, each.title, each.latents is not None, "") for name, each in UPSCALERS.items()]
        self._lists.refresh()
        offered += self._files(str(chosen or ""))
        form_choice = FILE + chosen if chosen else values["highres_fix_upscaler"]
        sides = _sides(facts)
        return {
            "file": shot.path.name,
            "sizes": [[times, *(side * times for side in sides.values())] for times in FACTORS],
            "upscalers": sorted(offered, key=lambda each: each[0] != form_choice),  # stable
            "strength": KEEPS,
        }

    def _files(self, chosen: str) -> list[tuple[str, str, bool, str]]:
        """Return [(choice, label, whether it upscales latents, reason why it cannot be chosen or "")] of the upscaler files.

        chosen: upscaler file in the form, listed even if it is missing
        """
        files, family = self._lists.of(["upscaler"]), self._fields.family_for("highres_fix_upscaler_file")
        offered = []
        for each in files:
            reason = misfit(each.facts, each.path, ("upscaler",), family)
            offered.append((FILE + each.name, each.label, each.facts.kind == LATENTS, reason))
        if chosen and FILE + chosen not in {name for name, *_ in offered}:
            offered.append((FILE + chosen, Path(chosen).name, False, ""))
        return offered

    def upscaler_field(self, render_field: Callable[[Values], str], values: Values) -> str:
        """Return the HTML of the upscaler field with the upscaler files added to its list; those that cannot be chosen with the reason.

        render_field: function of form values that returns the HTML of the field
        """
        chosen = str(values[UPSCALER_FILE] or "")
        files = [
            (f"{label}: {reason}" if reason else label, choice) for choice, label, _, reason in self._files(chosen)
        ]
        unfit = [choice for choice, *_, reason in self._files(chosen) if reason]
        with_choice = values | {UPSCALER: FILE + chosen, UPSCALER_FILE: None} if chosen else values
        return render_field(with_choice).replace("</select>", options(files, FILE + chosen, unfit) + "</select>", 1)

    def choose_upscaler(self, choice: str) -> None:
        """Set the upscaler or, for a choice "file:NAME", the upscaler file. Raises ProblemsError."""
        name, value = (UPSCALER_FILE, choice.removeprefix(FILE)) if choice.startswith(FILE) else (UPSCALER, choice)
        self._fields.change(name, value)
        if name == UPSCALER and self._fields.load()[UPSCALER_FILE]:
            self._fields.update({UPSCALER_FILE: None})

    def _vary(self, shot: Shot) -> None:
        """Queue a variation of an image: its settings, with some noise of another seed mixed in. The form stays unchanged."""
        record = read_image_metadata(shot.path)
        if record.job is None:
            fix = "choose an image that was generated here or by A1111"
            raise ProblemsError.one(record.reason, shot.path.name, fix, "image.no-settings")
        values, notes = self._values_of(record)
        self._make(self._checked(values | ALONE | {"variation_seed": form.new_seed(), "variation_strength": VARIES}))
        self.page.say("done", f"Making a variation of {shot.path.name}.", problems=notes)

    def _enlarge(self, shot: Shot, facts: Facts, choice: str) -> None:
        """Queue an upscaled version of an image with its settings, or the form's if unknown. The form stays unchanged.

        facts: metadata of the image; choice: JSON of the Upscale dialog's choices
        """
        record, current = read_image_metadata(shot.path), self._fields.load()
        values, notes = self._values_of(record) if record.job is not None else (current, [])
        factor, upscaler, strength = _parsed_choice(choice)
        changes = upscale_values(shot, facts, factor, upscaler, strength)
        self._make(self._checked(values | changes))
        notes = [note for note in notes if note.where.rpartition(".")[2] not in changes]
        method = f"denoising strength {strength:g}" if strength else "only enlarged"
        self.page.say("done", f"Making {shot.path.name} {factor} times as large ({method}).", problems=notes)


def _parsed_choice(choice: str) -> tuple[int, str, float]:
    """Return (factor, upscaler, denoising strength 0 to 1) from the Upscale dialog's JSON. Raises ProblemsError if invalid."""
    try:
        data = json_or_none(choice)
        factor, upscaler, strength = int(data["factor"]), str(data["upscaler"]), float(data["strength"])
    except (ValueError, TypeError, KeyError):
        factor, upscaler, strength = 0, "", -1.0
    if factor not in FACTORS or not 0 <= strength <= 1 or not (upscaler in UPSCALERS or upscaler.startswith(FILE)):
        what, fix = "The image cannot be upscaled so", "use a factor of 2, 3 or 4 and a denoising strength from 0 to 1"
        raise ProblemsError.one(what, "Upscale", fix, "upscale.bad-choice")
    return factor, upscaler, strength


def initial_values(shot: Shot, facts: Facts) -> Values:
    """Return form values that use the image as initial image, at its size. facts: metadata of the image"""
    return {"image_path": str(shot.path), "mask_path": None, "seed": None} | _sides(facts)


def upscale_values(shot: Shot, facts: Facts, factor: int, upscaler: str, strength: float) -> Values:
    """Return form values that upscale an image `factor` times. A denoising strength of 0 only upscales.

    With Lanczos the image is resized and denoised at the new size. Any other upscaler, or a side above MAX_SIDE pixels, uses hires fix
    whose first stage does not change the image.
    """
    initial = {"image_path": str(shot.path), "mask_path": None, "strength": strength, "highres_fix_save_1st": False}
    large = {name: side * factor for name, side in _sides(facts).items()}
    if upscaler == LANCZOS and strength and max(large.values(), default=0) <= MAX_SIDE:
        return ALONE | {"region_map": None} | initial | {"highres_fix_scale": None} | large
    file = upscaler.removeprefix(FILE) if upscaler.startswith(FILE) else None
    hires: Values = {
        "highres_fix_scale": float(factor),
        "highres_fix_strength": 0.0,
        "highres_fix_latents_upscaling": False,
    }
    hires |= {"highres_fix_upscaler": LANCZOS if file else upscaler, "highres_fix_upscaler_file": file}
    hires |= {} if strength else {"refiner_checkpoint": None}  # which would have no step
    return ALONE | {"region_map": None} | initial | hires | _sides(facts)


def _sides(facts: Facts) -> Values:
    """Return {"width", "height"} of an image in pixels, rounded down to multiples of STEP, at least 64; {} if unknown."""
    sides = {"width": facts.width, "height": facts.height}
    return {name: max(64, side // STEP * STEP) for name, side in sides.items() if side}
