"""The Generate tab: draw with any model and LoRAs, compare with the base model, find every image's settings again."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from contextlib import nullcontext
from itertools import groupby
from typing import Any

import gradio as gr

from core.generation.image_metadata import ImageRecord, portable_name, read_image_metadata
from core.generation.library import list_embeddings, list_loras, list_models
from core.generation.run import find_sources
from core.record import atomic
from core.record.problems import Problem, ProblemsError
from core.settings.base import Declared, Settings
from core.settings.job import GenerateJob
from tabs.context import Page
from tabs.form.fields import events, label, widget
from tabs.form.plain_presets import FormPresets
from tabs.generate import form, view
from tabs.markup import AWAITED, act_of, board, news, page_of, seen_here, short, stamp_seen

TAB = "Generate"
MOST_IMAGES = 5000

# Ctrl + Enter draws, from any field.
DRAW_KEY = """
document.addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || !(event.ctrlKey || event.metaKey) || !element.isConnected) return;
  if (element.offsetParent === null || document.querySelector('.lightbox')) return;
  event.preventDefault();
  document.querySelector('#gen-draw').click();
});
const draw = document.querySelector('#gen-draw');
if (draw) draw.title = 'Ctrl+Enter';
"""

# The enlarged image: Esc closes it, Left and Right go on, and the keyboard stays inside.
KEYS = """
document.addEventListener('keydown', (event) => {
  const box = element.querySelector('.lightbox');
  if (!box || element.offsetParent === null) return;
  const press = (which) => {
    const found = box.querySelector(`.bar-top ${which}`);
    if (found && !found.disabled) found.click();
  };
  if (event.key === 'Escape') press('[data-act=shut]');
  else if (event.key === 'ArrowLeft') press('[data-act=open]');
  else if (event.key === 'ArrowRight') press('[data-act=open] ~ [data-act=open]');
  else if (event.key === 'Tab') {
    const stops = [...box.querySelectorAll('button:not(:disabled), a')];
    const last = event.shiftKey ? stops[0] : stops[stops.length - 1];
    if (document.activeElement !== last && box.contains(document.activeElement)) return;
    stops[event.shiftKey ? stops.length - 1 : 0].focus();
  } else return;
  event.preventDefault();
});
"""


def build(page: Page) -> None:
    """Widgets and listeners of the tab."""
    desk = Desk(page)
    entries = [form.ENTRIES[name] for name in form.FIELDS]
    with gr.Row(equal_height=False, elem_id="gen-main"):
        with gr.Column(scale=2, min_width=300, elem_id="gen-form"):
            presets = board("gen-presets", desk.presets.html())
            fields = _fields(entry for entry in entries if entry.widget == "prompt")
            draw = gr.Button("Generate", variant="primary", size="lg", elem_id="gen-draw")
            compare = gr.Checkbox(
                label="Compare with the base model (same seeds, no LoRA)",
                container=False,
                elem_id="gen-compare",
            )
            status = board("gen-status", view.status((), {}, None, ()))
            with gr.Row(equal_height=True, elem_classes="with-button"):
                add = gr.Dropdown(
                    label="Add a LoRA",
                    info="Your LoRA files and those of your runs, newest first.",
                    choices=[],
                    elem_id="gen-add",
                    scale=4,
                    min_width=200,
                )
                refresh = gr.Button("Refresh", size="sm", elem_id="gen-refresh", scale=0, min_width=80)
            loras = board("gen-loras", view.loras(()))
            entry = form.EMBEDDINGS
            words = gr.Dropdown(
                choices=[],
                multiselect=True,
                allow_custom_value=True,
                label=label(entry),
                info=entry.help,
                elem_id="gen-embeddings",
            )
            fields |= _fields(entry for entry in entries if entry.widget != "prompt")
            model = gr.Dropdown(
                label="Base model",
                info="Same as in Train, another from the list, or a path.",
                choices=[],
                allow_custom_value=True,
                elem_id="gen-model",
            )
        with gr.Column(scale=3, min_width=360):
            drop = gr.File(
                label="Image to read",
                show_label=False,
                file_types=[".png", ".jpg", ".jpeg", ".webp"],
                height=64,
                elem_id="gen-drop",
            )
            gallery = board("gen-gallery", AWAITED, script=DRAW_KEY)
    light = board("gen-light", script=KEYS)
    seen, place = seen_here(), gr.State({})
    fields |= {"base_model": model, "compare": compare, "embeddings": words}
    boards = {"presets": presets, "loras": loras, "status": status, "gallery": gallery, "light": light}
    shown = {"seen": seen, "place": place, "add": add, "drop": drop} | fields | boards
    page.on_show(TAB, desk.show, place, shown)
    page.on_tick(TAB, desk.tick, [seen, place], {"seen": seen, "add": add, "status": status, "gallery": gallery})
    beside = {"loras": loras, "presets": presets}
    for name, field in fields.items():
        changed = beside | ({each: fields[each] for each in form.OWN} if name == "base_model" else {})
        if name == "compare":  # tells no more than it holds
            page.listen(field.input, desk.setter(name), field, changed, trigger_mode="always_last")
        else:
            page.on_given(events(field), desk.setter(name), field, changed)
    page.listen(add.input, desk.add, add, beside | {"add": add})
    page.listen(refresh.click, desk.refresh, None, shown)
    given = [fields[name] for name in form.GIVEN]
    page.listen(draw.click, desk.draw, given, {"status": status, "presets": presets}, trigger_mode="multiple")
    page.listen(drop.upload, desk.read, drop, shown)
    page.on_act(loras, desk.change_lora, None, beside)
    page.on_act(presets, desk.preset_act, None, shown)
    page.on_act(status, desk.status_act, None, status)
    page.on_act([gallery, light], desk.gallery_act, place, shown)


def _fields(entries: Iterable[Declared]) -> dict[str, Any]:
    """The widgets of these settings by name, numbers two a row."""
    made: dict[str, Any] = {}
    for number, group in groupby(entries, lambda entry: entry.kind in ("int", "float")):
        row = list(group)
        for first in range(0, len(row), 2):
            with gr.Row(equal_height=True, elem_classes="level") if number else nullcontext():
                for entry in row[first : first + 2]:
                    made[entry.name] = widget(entry, GenerateJob(), elem_id=f"gen-{entry.name.replace('_', '-')}")
    return made


class Fields(FormPresets):
    """The fields of the tab, kept by the project, with their presets."""

    def __init__(self, page: Page):
        super().__init__(page, "gen", "generate", form.TITLES)

    def load(self) -> dict[str, Any]:
        return form.kept_values(self.page.project.tab_state(TAB), self.page.project.job)

    def keep(self, values: dict[str, Any]) -> None:
        with self.page.project.lock:
            self.page.project.keep(TAB, self.page.project.tab_state(TAB) | {"values": values})

    def fresh(self) -> dict[str, Any]:
        return form.start_values(self.page.project.job)

    def job(self, values: dict[str, Any]) -> GenerateJob:
        return form.job_of(values, self.page.project.job)

    def values_of(self, job: Settings, before: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
        assert isinstance(job, GenerateJob)
        return form.values_of(job, before, self.page.workspace, self.page.project.job.model)


class Desk:
    """What the tab's handlers do. The fields are kept by the project, jobs and images by the engine."""

    def __init__(self, page: Page):
        self.page = page
        self._lock = threading.RLock()
        self._images: tuple[Any, list[view.Shown]] = (None, [])
        self.presets = Fields(page)

    # -- what is kept

    def _state(self) -> dict[str, Any]:
        return self.page.project.tab_state(TAB)

    def _values(self) -> dict[str, Any]:
        return self.presets.load()

    def setter(self, name: str) -> Any:
        """A listener that keeps one field as it stands; it answers the LoRAs, of which other things may hold then, the presets,
        and after another base model its own size and guidance, which stand in the fields that are empty."""

        def keep(value: Any) -> dict[str, Any]:
            with self._lock:
                values = self._values() | {name: _as_text(name, value)}
                self.presets.put(values)
            own = form.own_of(values, self.page.project.job, self.page.workspace) if name == "base_model" else {}
            return {each: gr.Textbox(placeholder=words) for each, words in own.items()} | self._changed()

        return keep

    def _changed(self) -> dict[str, Any]:
        """What a change of any field alters beside it."""
        return {"loras": self._loras(), "presets": self.presets.html()}

    def preset_act(self, event: gr.EventData) -> dict[str, Any]:
        with self._lock:
            self.presets.act(*act_of(event))
        return self._fields()

    # -- showing

    def show(self, place: dict[str, Any]):
        return self._all(place) | {"seen": self._news("", place)["seen"]}

    def tick(self, seen: str, place: dict[str, Any]):
        if self._stamp() == stamp_seen(seen):
            return gr.skip()
        fresh = self._news(seen, place)
        return fresh | ({"add": gr.Dropdown(choices=list(fresh["add"]))} if "add" in fresh else {})

    def _news(self, seen: str, place: dict[str, Any]) -> dict[str, Any]:
        """What this browser was not sent before: the LoRAs to choose from, the status, the gallery."""
        listed = {"add": tuple(self._lora_choices()), "status": self._status(), "gallery": self._gallery(place)}
        return news(seen, self._stamp(), listed)

    def _stamp(self) -> str:
        engine = self.page.engine
        now = engine.status()["job"]
        parts = [(entry.id, entry.state) for entry in engine.queue()]
        doing = [now.get(name) for name in ("entry", "state", "stage", "step")] if now else None
        return f"{parts} {engine.queue_paused} {doing} {self._images_stamp()} {self._state().get('closed')}"

    def _images_stamp(self) -> tuple[Any, ...]:
        """Changes when an image comes or goes; costs one look at each day's folder."""
        root = self.page.workspace.images
        try:
            folders = [entry for entry in os.scandir(root) if entry.is_dir()]
            return (os.stat(root).st_mtime_ns, *sorted((entry.name, entry.stat().st_mtime_ns) for entry in folders))
        except OSError:
            return ()

    def _shown(self) -> list[view.Shown]:
        stamp = self._images_stamp()
        with self._lock:
            if self._images[0] != stamp:
                self._images = (stamp, view.paired(self.page.engine.generated(MOST_IMAGES)))
            return self._images[1]

    def _fields(self) -> dict[str, Any]:
        """Every field as it is kept, and what hangs on them."""
        values = self._values()
        own = form.own_of(values, self.page.project.job, self.page.workspace)
        shown = {name: values[name] for name in form.GIVEN}
        shown |= {name: gr.Textbox(value=values[name], placeholder=words) for name, words in own.items()}
        model = gr.Dropdown(choices=self._model_choices(values["base_model"]), value=values["base_model"])
        return shown | {"base_model": model, "embeddings": self._words(values)} | self._changed()

    def _all(self, place: dict[str, Any]) -> dict[str, Any]:
        """The whole tab."""
        add = gr.Dropdown(choices=self._lora_choices(), value=None)
        light = view.enlarged(self._shown(), place.get("open", -1), self.page.file_url)
        lists = {"add": add, "status": self._status(), "gallery": self._gallery(place), "light": light}
        return self._fields() | lists

    def _gallery(self, place: dict[str, Any]) -> str:
        return view.gallery(self._shown(), place.get("page", 0), self.page.thumb_url)

    def _words(self, values: dict[str, Any]) -> Any:
        """The embeddings to choose from, with those that are chosen."""
        space, chosen = self.page.workspace, values["embeddings"]
        listed = [(name, portable_name(path, space)) for name, path in list_embeddings(space)]
        known = {value for _, value in listed}
        listed += [(text, text) for text in chosen if text not in known]
        return gr.Dropdown(choices=listed, value=chosen, multiselect=True, allow_custom_value=True)

    def _loras(self) -> str:
        values = self._values()
        marked = form.marked_for_zero_snr(values, self.page.project.job, self.page.workspace)
        return view.loras(values["loras"], marked, values["zero_terminal_snr"], form.tags_of(str(values["prompt"])))

    def _lora_choices(self) -> list[tuple[str, str]]:
        space = self.page.workspace
        return [(name, portable_name(path, space)) for name, path in list_loras(space)]

    def _model_choices(self, chosen: str) -> list[tuple[str, str]]:
        space = self.page.workspace
        own = [(f"same as Train: {self.page.project.job.model.base_model}", "")]
        listed = own + [(name, portable_name(path, space)) for name, path in list_models(space)]
        return listed if chosen in [value for _, value in listed] else [*listed, (chosen, chosen)]

    def _status(self) -> str:
        engine = self.page.engine
        return view.status(engine.queue(), engine.waits(), engine.status()["job"], self._failures())

    def _failures(self) -> list[tuple[str, Problem]]:
        """Failed drawings that nobody has closed yet, with what the journal says."""
        closed = self._state().get("closed", [])
        found = []
        for entry in self.page.engine.queue():
            if entry.task == "generate" and entry.state == "failed" and entry.id not in closed:
                found.append(
                    (
                        entry.id,
                        Problem(
                            entry.message or "Generation failed",
                            short(entry.title, 60),
                            self._fix(entry.run),
                            code="generate.failed",
                        ),
                    )
                )
        return found[-3:]

    def _fix(self, run: str) -> str:
        try:
            return str(self.page.engine.snapshot(run)["fix"]) if run else ""
        except (ProblemsError, OSError, KeyError, ValueError):
            return ""

    # -- LoRAs and models

    def refresh(self):
        values = self._values()
        models = gr.Dropdown(choices=self._model_choices(values["base_model"]))
        return {
            "add": gr.Dropdown(choices=self._lora_choices()),
            "base_model": models,
            "embeddings": self._words(values),
        }

    def add(self, chosen: str | None):
        """A LoRA of the list; the list is empty-handed again."""
        if chosen:
            paths = {portable_name(path, self.page.workspace): path for _, path in list_loras(self.page.workspace)}
            if chosen not in paths:
                what = "This LoRA no longer exists"
                raise ProblemsError.one(what, short(chosen), "press Refresh and choose again", "generate.lora-gone")
            with self._lock:
                self.presets.put(form.add_lora(self._values(), paths[chosen], self.page.workspace))
        return {"add": gr.Dropdown(value=None, choices=self._lora_choices())} | self._changed()

    def change_lora(self, event: gr.EventData):
        act, arg, value = act_of(event)
        number = int(arg) if arg.isdecimal() and len(arg) < 9 else -1
        with self._lock:
            self.presets.put(form.change_lora(self._values(), number, value if act == "strength" else None))
        return self._changed()

    # -- drawing

    def draw(self, *values: Any):
        """Check everything and queue the drawing: what the fields hold at this moment, not what was kept before."""
        typed = zip(form.GIVEN, values, strict=True)
        with self._lock:
            given = self._values() | {name: _as_text(name, value) for name, value in typed}
            self.presets.put(given)
        now = self.page.project.job
        jobs = form.jobs_to_draw(form.job_of(given, now), bool(given["compare"]), now)
        for job in jobs:
            self._check_files(job)
        for job in jobs:
            self.page.engine.submit("generate", job)
        return {"status": self._status(), "presets": self.presets.html()}

    def _check_files(self, job: GenerateJob) -> None:
        """Model, LoRAs and embeddings are inside the open folders, there, and of the right family."""
        self.page.roots.admit(job)
        sources = find_sources(job, self.page.workspace)
        for path in (sources.model, sources.vae, *sources.loras, *(word.path for word in sources.embeddings)):
            if path is not None and not self.page.roots.holds(path):
                self.page.roots.check(path, "model, LoRA or embedding")

    def status_act(self, event: gr.EventData):
        act, arg, _ = act_of(event)
        if act == "cancel" and any(entry.id == arg and entry.task == "generate" for entry in self.page.engine.queue()):
            self.page.engine.cancel(arg)
        elif act == "resume":
            self.page.engine.resume_queue()
        elif act == "close":
            with self._lock:
                closed = [*self._state().get("closed", []), arg[:40]][-50:]
                self.page.project.keep(TAB, self._state() | {"closed": closed})
        return self._status()

    # -- images

    def read(self, file: str | None):
        """The settings of a dropped image go into the fields."""
        if not file:
            return gr.skip()
        record = read_image_metadata(file)
        atomic.remove(file)  # the server's own copy of the upload
        self._take_over(record, "the dropped image")
        return self._all({}) | {"drop": None}

    def _take_over(self, record: ImageRecord, what: str) -> None:
        """Fill the fields with an image's settings; what was taken over is said."""
        if record.job is None:
            fix = "choose an image that was generated here or by A1111"
            return self.page.say("error", problems=[Problem(record.reason, what, fix, code="image.no-settings")])
        with self._lock:
            now = self._values()
            job = record.job
            values, notes = form.values_of(job, now, self.page.workspace, self.page.project.job.model)
            if record.source != "atelier":  # it names no model of ours, so the chosen one stays
                values |= {"base_model": now["base_model"], "model": now["model"]}
                notes = [note for note in notes if note.code != form.NO_MODEL]
            self.presets.put(values | {"count": "1"})
        self.page.say("done", f"The settings of {what} were loaded.", problems=record.notes + notes)

    def gallery_act(self, place: dict[str, Any], event: gr.EventData):
        """Pages, enlarging, and taking an image's settings over."""
        act, arg, value = act_of(event)
        shown = self._shown()
        number = int(arg) if arg.isdecimal() and len(arg) < 9 else -1
        if act == "page":
            place = place | {"page": page_of(value or arg, 10**6)}
            return {"place": place, "gallery": self._gallery(place)}
        if act == "open" and 0 <= number < len(shown):
            place = place | {"open": number}
        elif act in ("shut", "use"):
            place = place | {"open": -1}
        answer = {"place": place, "light": view.enlarged(shown, place.get("open", -1), self.page.file_url)}
        if act == "use" and 0 <= number < len(shown):
            self._take_over(shown[number].record, f"the image {shown[number].path.name}")
            answer |= self._all(place)
        return answer


def _as_text(name: str, value: Any) -> Any:
    """A field's content as it is kept: a switch as it is, everything else as text."""
    if name == "embeddings":
        return [str(text) for text in value or []]
    if name in ("compare", "prompt_weights"):
        return bool(value)
    return "" if value is None else str(value)
