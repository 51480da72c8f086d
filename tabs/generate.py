"""The Generate tab: draw with any model and LoRAs, compare with the base model, find every picture's settings again."""

from __future__ import annotations

import os
import threading
from typing import Any

import gradio as gr

from core.generation.library import list_embeddings, list_loras, list_models
from core.generation.picture_metadata import PictureRecord, portable_name, read_picture
from core.generation.run import find_sources
from core.record import atomic
from core.record.problems import Problem, ProblemsError
from core.settings.job import GenerateJob
from tabs import generate_form as form
from tabs import generate_view as view
from tabs.context import Page, problems_html
from tabs.form import choices, label
from tabs.markup import act_of, board, button, esc, news, on_act, page_of, short

TAB = "Generate"
MOST_PICTURES = 5000
SMALL = ("width", "height", "steps", "guidance_scale", "seed", "count")

# Ctrl + Enter draws, from any field.
DRAW_KEY = """
document.addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || !(event.ctrlKey || event.metaKey) || !element.isConnected) return;
  if (element.offsetParent === null || document.querySelector('.lightbox')) return;
  event.preventDefault();
  document.querySelector('#gen-draw').click();
});
"""

# The enlarged picture: Esc closes it, Left and Right go on, and the keyboard stays inside.
KEYS = """
document.addEventListener('keydown', (event) => {
  const box = element.querySelector('.lightbox');
  if (!box || element.offsetParent === null) return;
  const press = (name) => {
    const found = [...box.querySelectorAll('button')].find((each) => each.textContent === name);
    if (found && !found.disabled) found.click();
  };
  if (event.key === 'Escape') press('Close');
  else if (event.key === 'ArrowLeft') press('Previous');
  else if (event.key === 'ArrowRight') press('Next');
  else if (event.key === 'Tab') {
    const stops = [...box.querySelectorAll('button:not(:disabled), a')];
    const last = event.shiftKey ? stops[0] : stops[stops.length - 1];
    if (document.activeElement !== last && box.contains(document.activeElement)) return;
    stops[event.shiftKey ? stops.length - 1 : 0].focus();
  } else return;
  event.preventDefault();
});
let before = null;
watch('value', () => {
  const box = element.querySelector('.lightbox');
  if (box && !box.contains(document.activeElement)) {
    before = document.activeElement;
    [...box.querySelectorAll('button')].find((each) => each.textContent === 'Close').focus();
  }
  if (!box && before) { if (before.isConnected) before.focus(); before = null; }
});
"""


def build(page: Page) -> None:
    """Widgets and listeners of the tab."""
    desk = Desk(page)
    with gr.Row(equal_height=False, elem_id="gen-main"):
        with gr.Column(scale=2, min_width=300, elem_id="gen-form"):
            fields = _prompts()
            draw = gr.Button("Generate", variant="primary", size="lg", elem_id="gen-draw")
            compare = gr.Checkbox(
                label="Compare with the base model (same seeds, drawn by it alone)",
                container=False,
                elem_id="gen-compare",
            )
            status = board("gen-status")
            with gr.Row(equal_height=True, elem_classes="with-button"):
                add = gr.Dropdown(
                    label="Add a LoRA",
                    info="Yours and the results of your runs, newest first.",
                    choices=[],
                    elem_id="gen-add",
                    scale=4,
                    min_width=200,
                )
                refresh = gr.Button("Refresh", size="sm", elem_id="gen-refresh", scale=0, min_width=80)
            loras = board("gen-loras")
            entry = form.EMBEDDINGS
            words = gr.Dropdown(
                choices=[],
                multiselect=True,
                allow_custom_value=True,
                label=label(entry),
                info=entry.help,
                elem_id="gen-embeddings",
            )
            fields |= _small_fields()
            model = gr.Dropdown(
                label="Base model",
                info="As in Train, another one of the list, or a path.",
                choices=[],
                allow_custom_value=True,
                elem_id="gen-model",
            )
        with gr.Column(scale=3, min_width=360):
            drop = gr.File(
                label="Picture to read",
                show_label=False,
                file_types=[".png", ".jpg", ".jpeg", ".webp"],
                height=64,
                elem_id="gen-drop",
            )
            said = board("gen-said")
            gallery = board("gen-gallery", script=DRAW_KEY)
    light = board("gen-light", script=KEYS)
    seen, place = gr.State({}), gr.State({})
    widgets = [fields[name] for name in form.FIELDS] + [model, compare, words]
    lists = [add, loras, said, status, gallery]
    page.on_show(TAB, desk.show, place, [seen, *widgets, *lists, light])
    page.on_tick(TAB, desk.tick, [seen, place], [seen, add, status, gallery])
    for name in form.FIELDS:
        events = (
            [fields[name].input] if isinstance(fields[name], gr.Dropdown) else [fields[name].blur, fields[name].submit]
        )
        page.listen(events, desk.setter(name), fields[name], None, trigger_mode="always_last")
    page.listen(model.input, desk.setter("base_model"), model, None, trigger_mode="always_last")
    page.listen(compare.input, desk.setter("compare"), compare, None, trigger_mode="always_last")
    page.listen(words.input, desk.setter("embeddings"), words, None, trigger_mode="always_last")
    page.listen(add.input, desk.add, add, [add, loras])
    page.listen(refresh.click, desk.refresh, None, [add, model, words])
    page.listen(draw.click, desk.draw, widgets, [said, status])
    page.listen(drop.upload, desk.read, drop, [drop, *widgets, *lists])
    on_act(page, loras, desk.change_lora, None, loras)
    on_act(page, status, desk.status_act, None, status)
    on_act(page, said, lambda: "", None, said)
    on_act(page, [gallery, light], desk.gallery_act, place, [place, *widgets, *lists, light])


def _text(name: str, lines: int = 1, **more: Any) -> gr.Textbox:
    """A field with the title, unit and help of its declaration."""
    entry = form.ENTRIES[name]
    most = 8 if lines > 1 else 1
    return gr.Textbox(
        label=label(entry),
        info=entry.help,
        lines=lines,
        max_lines=most,
        elem_id=f"gen-{name.replace('_', '-')}",
        **more,
    )


def _prompts() -> dict[str, Any]:
    return {"prompt": _text("prompt", 2), "negative_prompt": _text("negative_prompt")}


def _small_fields() -> dict[str, Any]:
    """Numbers two a row, then the sampler."""
    made: dict[str, Any] = {}
    for first in range(0, len(SMALL), 2):
        with gr.Row(equal_height=True, elem_classes="level"):
            for name in SMALL[first : first + 2]:
                hint = {"seed": "random", "width": "model's own", "height": "model's own"}.get(name, "")
                made[name] = _text(name, text_align="right", placeholder=hint, min_width=120)
    entry = form.ENTRIES["sampler"]
    made["sampler"] = gr.Dropdown(
        choices(entry), label=label(entry), info=entry.help, filterable=False, elem_id="gen-sampler"
    )
    return made


class Desk:
    """What the tab's handlers do. The fields are kept by the project, jobs and pictures by the engine."""

    def __init__(self, page: Page):
        self.page = page
        self._lock = threading.RLock()
        self._pictures: tuple[Any, list[view.Shown]] = (None, [])

    # -- what is kept

    def _state(self) -> dict[str, Any]:
        return self.page.project.tab_state(TAB)

    def _values(self) -> dict[str, Any]:
        return form.kept_values(self._state(), self.page.project.job)

    def _keep(self, **changes: Any) -> None:
        with self._lock:
            self.page.project.keep(TAB, self._state() | changes)

    def setter(self, name: str) -> Any:
        """A listener that keeps one field as it stands."""

        def keep(value: Any) -> None:
            with self._lock:
                self._keep(values=self._values() | {name: _as_text(name, value)})

        return keep

    # -- showing

    def show(self, place: dict[str, Any]):
        light = view.enlarged(self._shown(), place.get("open", -1), self.page.file_url)
        return self._news({}, place)[0], *self._widgets(), *self._lists(place), light

    def tick(self, seen: dict[str, Any], place: dict[str, Any]):
        if self._stamp() == seen.get("stamp"):
            return gr.skip()
        told, loras, *others = self._news(seen, place)
        return told, gr.Dropdown(choices=list(loras)) if isinstance(loras, tuple) else loras, *others

    def _news(self, seen: dict[str, Any], place: dict[str, Any]) -> tuple[Any, ...]:
        """What this browser was not sent before: the LoRAs to choose from, the status, the gallery."""
        gallery = view.gallery(self._shown(), place.get("page", 0), self.page.thumb_url)
        return news(seen, self._stamp(), (tuple(self._lora_choices()), self._status(), gallery))

    def _stamp(self) -> str:
        engine = self.page.engine
        now = engine.status()["job"]
        parts = [(entry.id, entry.state) for entry in engine.queue()]
        doing = [now.get(name) for name in ("entry", "state", "stage", "step")] if now else None
        return f"{parts} {engine.queue_paused} {doing} {self._pictures_stamp()} {self._state().get('closed')}"

    def _pictures_stamp(self) -> tuple[Any, ...]:
        """Changes when a picture comes or goes; costs one look at each day's folder."""
        root = self.page.workspace.images
        try:
            folders = [entry for entry in os.scandir(root) if entry.is_dir()]
            return (os.stat(root).st_mtime_ns, *sorted((entry.name, entry.stat().st_mtime_ns) for entry in folders))
        except OSError:
            return ()

    def _shown(self) -> list[view.Shown]:
        stamp = self._pictures_stamp()
        with self._lock:
            if self._pictures[0] != stamp:
                self._pictures = (stamp, view.paired(self.page.engine.generated(MOST_PICTURES)))
            return self._pictures[1]

    def _widgets(self, values: dict[str, Any] | None = None) -> tuple[Any, ...]:
        """What `widgets` in `build` holds, in its order."""
        values = values or self._values()
        model = gr.Dropdown(choices=self._model_choices(values["base_model"]), value=values["base_model"])
        return (*(values[name] for name in form.FIELDS), model, values["compare"], self._words(values))

    def _words(self, values: dict[str, Any]) -> Any:
        """The embeddings to choose from, with those that are chosen."""
        space, chosen = self.page.workspace, values["embeddings"]
        listed = [(name, portable_name(path, space)) for name, path in list_embeddings(space)]
        known = {value for _, value in listed}
        listed += [(text, text) for text in chosen if text not in known]
        return gr.Dropdown(choices=listed, value=chosen, multiselect=True, allow_custom_value=True)

    def _lists(self, place: dict[str, Any], said: str = "") -> tuple[Any, ...]:
        """What `lists` in `build` shows, in its order."""
        return (
            gr.Dropdown(choices=self._lora_choices(), value=None),
            view.loras(self._values()["loras"]),
            said,
            self._status(),
            view.gallery(self._shown(), place.get("page", 0), self.page.thumb_url),
        )

    def _lora_choices(self) -> list[tuple[str, str]]:
        space = self.page.workspace
        return [(name, portable_name(path, space)) for name, path in list_loras(space)]

    def _model_choices(self, chosen: str) -> list[tuple[str, str]]:
        space = self.page.workspace
        own = [(f"as in Train: {self.page.project.job.model.base_model}", "")]
        listed = own + [(name, portable_name(path, space)) for name, path in list_models(space)]
        return listed if chosen in [value for _, value in listed] else [*listed, (chosen, chosen)]

    def _status(self) -> str:
        engine = self.page.engine
        return view.status(engine.queue(), engine.queue_paused, engine.status()["job"], self._failures())

    def _failures(self) -> list[tuple[str, Problem]]:
        """Failed drawings that nobody has closed yet, with what the journal says."""
        closed = self._state().get("closed", [])
        found = []
        for entry in self.page.engine.queue():
            if entry.task == "generate" and entry.state == "failed" and entry.id not in closed:
                found.append(
                    (entry.id, Problem(entry.message or "Drawing failed", short(entry.title, 60), self._fix(entry.run)))
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
        return gr.Dropdown(choices=self._lora_choices()), models, self._words(values)

    def add(self, chosen: str | None):
        """A LoRA of the list; the list is empty-handed again."""
        if chosen:
            paths = {portable_name(path, self.page.workspace): path for _, path in list_loras(self.page.workspace)}
            if chosen not in paths:
                raise ProblemsError.one("This LoRA is no longer there", short(chosen), "press Refresh and choose again")
            with self._lock:
                self._keep(values=form.add_lora(self._values(), paths[chosen], self.page.workspace))
        return gr.Dropdown(value=None, choices=self._lora_choices()), view.loras(self._values()["loras"])

    def change_lora(self, event: gr.EventData):
        act, arg, value = act_of(event)
        number = int(arg) if arg.isdecimal() and len(arg) < 9 else -1
        with self._lock:
            self._keep(values=form.change_lora(self._values(), number, value if act == "strength" else None))
        return view.loras(self._values()["loras"])

    # -- drawing

    def draw(self, *values: Any):
        """Check everything and queue the drawing: what the fields hold at this moment, not what was kept before."""
        names = (*form.FIELDS, "base_model", "compare", "embeddings")
        with self._lock:
            given = self._values() | {name: _as_text(name, value) for name, value in zip(names, values, strict=True)}
            self._keep(values=given)
        now = self.page.project.job
        jobs = form.jobs_to_draw(form.job_of(given, now), bool(given["compare"]), now)
        for job in jobs:
            self._check_files(job)
        for job in jobs:
            self.page.engine.submit("generate", job)
        return "", self._status()

    def _check_files(self, job: GenerateJob) -> None:
        """Model, LoRAs and embeddings are there, of the right family, and inside the open folders."""
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
                self._keep(closed=[*self._state().get("closed", []), arg[:40]][-50:])
        return self._status()

    # -- pictures

    def read(self, file: str | None):
        """The settings of a dropped picture go into the fields."""
        if not file:
            return gr.skip()
        record = read_picture(file)
        atomic.remove(file)  # the server's own copy of the upload
        values, said = self._taken_over(record, "the dropped picture")
        return None, *self._widgets(values), *self._lists({}, said)

    def _taken_over(self, record: PictureRecord, what: str) -> tuple[dict[str, Any], str]:
        """The fields after "use these settings", and what to say about it."""
        if record.job is None:
            return self._values(), _notice(
                [Problem(record.reason, what, "choose a picture that was drawn here or by A1111", "advice")]
            )
        with self._lock:
            now = self._values()
            base = self.page.project.job.model.base_model
            job = record.job
            values, notes = form.values_of(job, now, self.page.workspace, base)
            if record.source != "atelier":  # it names no model of ours, so the chosen one stays
                values["base_model"] = now["base_model"]
                notes = [note for note in notes if note.where != "base model"]
            self._keep(values=values)
        done = f"The settings of {what} are in the fields." if not (record.notes + notes) else ""
        return values, _notice(record.notes + notes, done)

    def gallery_act(self, place: dict[str, Any], event: gr.EventData):
        """Pages, enlarging, and taking a picture's settings over."""
        act, arg, value = act_of(event)
        shown = self._shown()
        number = int(arg) if arg.isdecimal() and len(arg) < 9 else -1
        place = dict(place)
        widgets: tuple[Any, ...] = (gr.skip(),) * (len(form.FIELDS) + 3)
        lists: tuple[Any, ...] = (gr.skip(),) * 5
        if act == "page":
            place["page"] = page_of(value or arg, 10**6)
            lists = (*lists[:4], view.gallery(shown, place["page"], self.page.thumb_url))
        elif act == "open" and 0 <= number < len(shown):
            place["open"] = number
        elif act == "shut":
            place["open"] = -1
        elif act == "use" and 0 <= number < len(shown):
            place["open"] = -1
            values, said = self._taken_over(shown[number].record, f"the picture {shown[number].path.name}")
            widgets, lists = self._widgets(values), self._lists(place, said)
        return place, *widgets, *lists, view.enlarged(shown, place.get("open", -1), self.page.file_url)


def _as_text(name: str, value: Any) -> Any:
    """A field's content as it is kept: a switch as it is, everything else as text."""
    if name == "embeddings":
        return [str(text) for text in value or []]
    return bool(value) if name == "compare" else "" if value is None else str(value)


def _notice(problems: list[Problem], done: str = "") -> str:
    """What is said above the gallery until it is closed."""
    if not problems and not done:
        return ""
    body = f"<span>{esc(done)}</span>" if done else problems_html(problems)
    return f'<div class="intake" role="status">{body}{button("close", "Close")}</div>'
