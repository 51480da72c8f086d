"""The Generate tab: draw with any model and LoRAs, compare with the base model, find every image's settings again."""

from __future__ import annotations

import threading
from typing import Any

import gradio as gr

from core.generation.image_metadata import ImageRecord, read_image_metadata
from core.generation.plan import plan_of
from core.generation.prompt.styles import chosen_styles
from core.generation.requests import in_styles
from core.record import atomic
from core.record.problems import Problem, ProblemsError
from core.settings.base import Settings
from core.settings.job import GenerateJob
from tabs.context import ASKING, Page
from tabs.form.own_settings import label
from tabs.form.plain_presets import PlainForm, plain
from tabs.generate import form, grids, panel, view
from tabs.generate.gallery import SENDS, SENT, Shelf, begun_with
from tabs.generate.loras import Loras
from tabs.generate.memory import MemoryLine
from tabs.generate.painting import Painting
from tabs.generate.prompt_box import PROMPTS, PromptBox
from tabs.generate.stage import Stage, status
from tabs.markup import AWAITED, act_of, board, news, seen_here, stamp_seen
from tabs.pieces import piece

TAB = "Generate"
LONGEST = 1 << 20  # characters of a prompt
START, FIELD = "start generate", "change generate"  # what messages are about

# Ctrl + Enter draws, from any field.
DRAW_KEY = """
document.addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || !(event.ctrlKey || event.metaKey) || !element.isConnected) return;
  if (element.offsetParent === null || document.querySelector('dialog[open]')) return;
  event.preventDefault();
  const field = document.activeElement;
  if (field && field.dataset.act) field.dispatchEvent(new Event('change', {bubbles: true}));
  document.querySelector('#gen-draw').click();
});
"""

# Groups that a person opened stay open when their fields are drawn again.
OPEN_GROUPS = """
const open = new Set();
element.addEventListener('click', ({target}) => {
  const group = target.closest('details[data-group] > summary')?.parentElement;
  if (group) open[group.open ? 'delete' : 'add'](group.dataset.group);
});
new MutationObserver(() => {
  for (const group of element.querySelectorAll('details[data-group]:not([open])')) group.open = open.has(group.dataset.group);
}).observe(element, {childList: true, subtree: true, attributeFilter: ['open']});
"""


def build(page: Page) -> None:
    """Widgets and listeners of the tab."""
    desk = Desk(page)
    prompts = board("gen-prompts", AWAITED, script=DRAW_KEY)
    memory = board("gen-memory", AWAITED)
    with gr.Row(equal_height=False, elem_id="gen-main"):
        with gr.Column(scale=0, min_width=300, elem_id="gen-form"):
            settings = board("gen-settings", AWAITED)
            add = board("gen-add", AWAITED, script=OPEN_GROUPS)
            loras = board("gen-loras", script=OPEN_GROUPS)
            more = board("gen-more", AWAITED, script=OPEN_GROUPS)
            initial = gr.File(
                label="Initial image", file_types=[".png", ".jpg", ".jpeg", ".webp"], elem_id="gen-initial"
            )
            words = gr.Dropdown(
                choices=[],
                multiselect=True,
                allow_custom_value=True,
                label=label(form.EMBEDDINGS),
                elem_id="gen-embeddings",
            )
            grid_panel = grids.panel_board()
            presets = board("gen-presets", desk.presets.html())
        with gr.Column(scale=1, min_width=300, elem_id="gen-side"):
            line = board("gen-status", status((), {}, None, ()), script=OPEN_GROUPS)
            grid_table = grids.table_board()
            newest = board("gen-newest", AWAITED)
            strip = board("gen-strip", piece("gallery_strip"))
            drop = gr.File(
                label="Image to read",
                show_label=False,
                file_types=[".png", ".jpg", ".jpeg", ".webp"],
                height=44,
                elem_id="gen-drop",
            )
            gallery = board("gen-gallery", piece("gallery"), script=SENDS)
    seen = seen_here()
    fields = {"prompts": prompts, "settings": settings, "more": more, "loras": loras, "presets": presets}
    boards = {"memory": memory, "status": line, "newest": newest}
    shown = {"seen": seen, "add": add, "drop": drop, "embeddings": words} | fields | boards
    page.on_show(TAB, desk.show, None, shown)
    page.on_tick(TAB, desk.tick, seen, {"seen": seen, "add": add} | boards)
    page.on_given([words.input], desk.choose_words, words, fields)
    page.listen(initial.upload, desk.begin_with, initial, fields | {"initial": initial})
    page.links.answer("paint", desk.painting.answer)
    page.links.answer("prompt", desk.prompt_box.answer)
    page.listen(drop.upload, desk.read, drop, shown)
    page.on_act([prompts, settings, more], desk.act, None, fields | {"status": line})
    page.on_act([add, loras], desk.lora_act, None, fields | {"add": add, "embeddings": words})
    page.on_act(presets, desk.preset_act, None, shown)
    page.on_act(line, desk.stage.act, None, line)
    page.on_act(memory, desk.memory.act, None, memory)
    page.on_act([newest, strip, gallery], desk.send, None, shown)
    page.links.answer("gallery", desk.shelf.answer)
    page.pulse_parts.append(desk.shelf.parts)
    desk.shelf.warm()
    grids.listen(page, desk.presets, grid_panel, grid_table)


class Fields(PlainForm):
    """The fields of the tab, kept by the project, with their presets."""

    offers = "gen-models"

    def __init__(self, page: Page):
        super().__init__(page, "gen", "generate", form.ENTRIES, "field", form.PRESET)

    def load(self) -> dict[str, Any]:
        return form.kept_values(self.page.project.tab_state(TAB), self.page.project.job)

    def keep(self, values: dict[str, Any]) -> None:
        with self.page.project.lock:
            self.page.project.keep(TAB, self.page.project.tab_state(TAB) | {"values": plain(values)})

    def fresh(self) -> dict[str, Any]:
        return form.start_values(self.page.project.job)

    def follows(self, name: str, before: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
        """VAE, clip skip and prediction type were those of the model before."""
        if name != "base_model" or values[name] == before[name]:
            return values
        return values | {own: form.ENTRIES[own].default for own in form.MODEL}

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
        self.shelf = Shelf(page)
        self.presets = Fields(page)
        self.loras = Loras(page, self.presets)
        self.memory = MemoryLine(page, lambda: form.job_of(self._values(), page.project.job))
        self.painting = Painting(page, self._values)
        self.prompt_box = PromptBox(page, self.presets, self.shelf.gallery)
        self.stage = Stage(page, self.shelf.newest, self._jobs)

    # -- what is kept

    def _state(self) -> dict[str, Any]:
        return self.page.project.tab_state(TAB)

    def _values(self) -> dict[str, Any]:
        return self.presets.load()

    def act(self, event: gr.EventData) -> dict[str, Any]:
        """A field was changed, or everything is to be drawn as it stands now."""
        act, name, value = act_of(event, LONGEST)
        if act == "draw":
            return self.draw()
        if act in ("swap", "ratio", "seed"):
            with self._lock:
                self.presets.put(self._values() | self._quick(act, name or value))
            return self._form()
        browser = self.page.browsers.of(ASKING.get())
        try:
            with self._lock:
                if act.startswith("style"):
                    self.prompt_box.act(act, name, value)
                else:
                    self.presets.change(name, value)
            self.page.browsers.succeeded(browser, FIELD)
        except ProblemsError as error:
            self.page.browsers.say(browser, "error", problems=error.problems, about=FIELD)
        return self._form()

    def _quick(self, act: str, arg: str) -> dict[str, Any]:
        """The fields that a button changes: both sides, or the seed."""
        values = self._values()
        if act == "seed":
            return {"seed": self._seed(arg, values["seed"])}
        project, space = self.page.project.job, self.page.workspace
        width, height = form.sides(values, project, space)
        if act == "ratio" and arg in panel.RATIOS:
            native = form.sides({**values, "width": None, "height": None}, project, space)
            height, width = reversed(form.ratio_size(arg, native))
        return {"width": height, "height": width}

    def _seed(self, way: str, now: int | None) -> int | None:
        """None is a random one. Locking keeps that of the newest image, or a new one; locked already, it lets go."""
        newest = self.shelf.last_seed()
        if way == "last":
            return now if newest is None else newest
        if way == "lock" and now is None:
            return form.new_seed() if newest is None else newest
        return None

    def choose_words(self, chosen: Any) -> dict[str, Any]:
        with self._lock:
            self.presets.put(self._values() | {"embeddings": [str(text) for text in chosen or []]})
        return self._form()

    def _form(self) -> dict[str, Any]:
        """Every field as it is kept, and what hangs on them."""
        values = self._values()
        own = self._empty_ones(values)
        settings = self.page.project.job.model
        model = panel.model_of(values, settings, self.page.workspace)
        size = form.sides(values, self.page.project.job, self.page.workspace)

        def draw(*names: str) -> str:
            return self.presets.fields(names, values, own)

        above = {*panel.SHOWN_ABOVE, *PROMPTS, "count", "compare"}
        return {
            "prompts": view.prompts(self.prompt_box.html(draw, values), draw("count", "compare")),
            "settings": panel.settings(draw, model, size, values["seed"] is not None),
            "more": panel.groups(panel.rows_of(values, above, draw, lambda group: self.painting.row(group, values))),
            "loras": self.loras.rows(),
            "presets": self.presets.html(),
        }

    def _empty_ones(self, values: dict[str, Any]) -> dict[str, str]:
        """{field: what stands in it while it is empty}"""
        project = self.page.project.job
        said = form.own_of(values, project, self.page.workspace)
        said["base_model"] = f"as in Train: {project.model.base_model}"
        own, train = values["base_model"], project.model
        said["vae"] = f"as in Train: {train.vae}" if train.vae and not own else "the model's own"
        said["clip_skip"] = f"as in Train: {train.clip_skip}" if train.clip_skip and not own else "last layer"
        return said

    def preset_act(self, event: gr.EventData) -> dict[str, Any]:
        with self._lock:
            self.presets.act(*act_of(event))
        return self._form() | {"embeddings": self.loras.embeddings()}

    # -- showing

    def show(self):
        return self._all() | {"seen": self._news("")["seen"]}

    def tick(self, seen: str):
        if self._stamp() == stamp_seen(seen):
            return gr.skip()
        self.loras.shelf.look(0)
        return self._news(seen)

    def _news(self, seen: str) -> dict[str, Any]:
        """What this browser was not sent before: the LoRAs to choose from, the status, the newest image."""
        listed = {
            "add": self.loras.picker(),
            "memory": self.memory.html(),
            "status": self.stage.status(),
            "newest": self.stage.newest(),
        }
        return news(seen, self._stamp(), listed)

    def _stamp(self) -> str:
        return f"{self.stage.stamp()} {self.shelf.follow()} {self._state().get('closed')} {self.memory.html()} {self.loras.shelf.version}"

    def _all(self) -> dict[str, Any]:
        """The whole tab."""
        self.loras.shelf.look()
        lists = {
            "embeddings": self.loras.embeddings(),
            "add": self.loras.picker(),
            "memory": self.memory.html(),
            "status": self.stage.status(),
            "newest": self.stage.newest(),
        }
        return self._form() | lists

    # -- LoRAs

    def lora_act(self, event: gr.EventData):
        """Something was pressed or typed in the list of LoRAs or in a row of those in use."""
        found = self.loras.act(event)
        return {"embeddings": self.loras.embeddings()} | (self._form() if found is None else {"add": found})

    # -- drawing

    def draw(self) -> dict[str, Any]:
        """Check everything and queue the drawing. What stands against it is marked in the fields."""
        browser = self.page.browsers.of(ASKING.get())
        try:
            jobs = self._jobs()
        except ProblemsError as error:
            self.presets.mark(error.problems)
            self.page.browsers.say(browser, "error", problems=error.problems, about=START)
            return self._form()
        self.stage.submit(jobs)
        grids.close(self.page)
        self.prompt_box.history.add(form.job_of(self._values(), self.page.project.job))
        self.page.browsers.succeeded(browser, START)
        return self._form() | {"status": self.stage.status()}

    def _jobs(self, new_seed: bool = False) -> list[GenerateJob]:
        """What the fields ask for now, checked, with their seed or a random one. Raises ProblemsError."""
        self.presets.check()
        values, now = self._values(), self.page.project.job
        values |= {"seed": None} if new_seed else {}
        job = form.job_of(values, now)
        if not job.prompts.from_file:  # what waits in the queue keeps its words, whatever becomes of the styles
            job = in_styles(job, chosen_styles(job.prompts.styles, self.page.workspace))[0]
        jobs = form.jobs_to_draw(job, values["compare"], now)
        for job in jobs:
            self._check_files(job)
        return jobs

    def _check_files(self, job: GenerateJob) -> None:
        """Model, LoRAs and embeddings are inside the open folders, there, and of the right family."""
        self.page.roots.admit(job)
        sources = plan_of(job, self.page.workspace).sources
        for path in (sources.model, sources.vae, *sources.loras.values(), *(word.path for word in sources.embeddings)):
            if path is not None and not self.page.roots.holds(path):
                self.page.roots.check(path, "model, LoRA or embedding")

    # -- images

    def read(self, file: str | None):
        """The settings of a dropped image go into the fields."""
        if not file:
            return gr.skip()
        record = read_image_metadata(file)
        atomic.remove(file)  # the server's own copy of the upload
        self._take_over(record, "the dropped image")
        return self._all() | {"drop": None}

    def begin_with(self, file: str | None) -> Any:
        """A dropped image becomes the initial one."""
        if not file:
            return gr.skip()
        try:
            path = self.painting.take(file)
            with self._lock:
                values = self._values()
                mask = values["mask_path"] if values["image_path"] == path else None  # that of another image
                self.presets.put(values | {"image_path": path, "mask_path": mask})
        except ProblemsError as error:
            self.page.say("error", problems=error.problems)
        finally:
            atomic.remove(file)  # the server's own copy of the upload
        return self._form() | {"initial": None}

    def _take_over(self, record: ImageRecord, what: str) -> None:
        """Fill the fields with an image's settings; what was taken over is said."""
        if record.job is None:
            fix = "choose an image that was generated here or by A1111"
            return self.page.say("error", problems=[Problem(record.reason, what, fix, code="image.no-settings")])
        with self._lock:
            values, notes = self._values_of(record)
            self.presets.put(values)
        self.page.say("done", f"The settings of {what} were loaded.", problems=record.notes + notes)

    def _values_of(self, record: ImageRecord) -> tuple[dict[str, Any], list[Problem]]:
        """The fields that make an image again, and what of it is not on this machine."""
        now, job = self._values(), record.job
        assert job is not None
        values, notes = form.values_of(job, now, self.page.workspace, self.page.project.job.model)
        if record.source != "atelier":  # it names no model of ours, so the chosen one stays
            own = {name: now[name] for name in ("base_model", "model", *form.MODEL)}
            skip = job.model.clip_skip  # which it may say all the same
            values |= own | ({"clip_skip": skip} if skip else {})
            notes = [note for note in notes if note.code != form.NO_MODEL]
        own = {name: now[name] for name in form.FIELDS if form.OF_JOB[name].group == "output"}
        return values | own | {"count": 1}, notes

    def send(self, event: gr.EventData):
        """An image of the gallery is used for the next ones: its settings, or the image itself."""
        act, name, _ = act_of(event)
        shot = self.shelf.shot(name)
        record = read_image_metadata(shot.path)
        if act == "use":
            self._take_over(record, f"the image {shot.path.name}")
        elif act in ("begin", "inpaint", "upscale"):
            with self._lock:
                values = self._values()
                if act == "upscale" and record.job is not None:
                    values, _ = self._values_of(record)
                self.presets.put(values | begun_with(shot, self.shelf.gallery.facts(name), act))
            self.page.say("done", f"{SENT[act]} {shot.path.name}.")
        return self._all()
