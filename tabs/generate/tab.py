"""The Generate tab: images with any model and LoRAs, compared with the base model; settings read from any image."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import gradio as gr

from core.generation.model.library import find
from core.generation.plan.plan import plan_of
from core.generation.plan.requests import in_styles
from core.generation.prompt.styles import chosen_styles
from core.record.problems import Problem, ProblemsError, collected, raise_if_errors
from core.record.units import count
from core.settings.base import Settings
from core.settings.generation.controls import ControlUse
from core.settings.job import GenerateJob
from tabs.context import ASKING, Page
from tabs.form.plain_presets import PlainForm, plain
from tabs.form.view import label
from tabs.generate import form, grids, panel, view
from tabs.generate.controls import Controls
from tabs.generate.gallery import SENDS, Shelf
from tabs.generate.loras import Loras
from tabs.generate.memory import MemoryLine
from tabs.generate.painting import Painting
from tabs.generate.prompt_box import PROMPTS, PromptBox
from tabs.generate.sending import Sending
from tabs.generate.stage import Stage, status
from tabs.markup import AWAITED, act_of, arg_now, board, news, seen_here, sent, stamp_seen
from tabs.pieces import piece
from tabs.server.browsers import Browser

TAB = "Generate"
START, FIELD = "start generate", "change generate"  # what messages are about

# Ctrl + Enter generates, from any field.
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

# What is checked before a job is in the queue can take seconds: the press is answered at once.
PRESSED = """
element.addEventListener('click', ({target}) => {
  const line = target.closest('#gen-draw') && document.querySelector('#gen-status .gen-now > .hint');
  if (line) line.textContent = 'Checking the settings ...';
});
"""

# Groups that a user opened stay open when their fields are replaced.
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

# The list closes once a LoRA of it is chosen, and the LoRA's row is in view.
CHOSEN = """
element.addEventListener('click', ({target}) => {
  const chosen = target.closest('[data-act=add]:not(.misfit)'), summary = element.querySelector('.picker > summary');
  if (!chosen) return;
  summary.click();
  summary.focus({preventScroll: true});
  const seen = new MutationObserver(() => {
    const row = [...document.querySelectorAll('#gen-loras li b')].find((name) => name.title === chosen.dataset.arg);
    if (!row) return;
    seen.disconnect();
    row.closest('li').scrollIntoView({block: 'nearest'});
  });
  seen.observe(document.querySelector('#gen-loras'), {childList: true, subtree: true});
});
"""


def build(page: Page) -> None:
    """Widgets and listeners of the tab."""
    desk = Desk(page)
    prompts = board("gen-prompts", AWAITED, script=DRAW_KEY + PRESSED)
    memory = board("gen-memory", AWAITED)
    with gr.Row(equal_height=False, elem_id="gen-main"):
        with gr.Column(scale=0, min_width=300, elem_id="gen-form"):
            settings = board("gen-settings", AWAITED)
            add = board("gen-add", AWAITED, script=OPEN_GROUPS + CHOSEN)
            loras = board("gen-loras", script=OPEN_GROUPS)
            more = board("gen-more", AWAITED, script=OPEN_GROUPS)
            control = gr.File(label="Control image", elem_id="gen-control")
            initial = gr.File(
                label="Initial image", elem_id="gen-initial"
            )  # no file_types: our own message names the file
            grid_panel = grids.panel_board()
            words = gr.Dropdown(
                choices=[],
                multiselect=True,
                allow_custom_value=True,
                label=label(form.EMBEDDINGS),
                elem_id="gen-embeddings",
            )
            presets = board("gen-presets", desk.presets.html())
        with gr.Column(scale=1, min_width=300, elem_id="gen-side"):
            line = board("gen-status", status((), {}, None, ()), script=OPEN_GROUPS)
            grid_table = grids.table_board()
            newest = board("gen-newest", AWAITED)
            strip = board("gen-strip", piece("gallery_strip"))
            drop = gr.File(
                label="Image to read",
                show_label=False,
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
    page.on_given([words.input], desk.choose_words, words, fields | {"embeddings": words})
    page.listen(initial.upload, desk.begin_with, initial, fields | {"initial": initial})
    page.listen(control.upload, desk.follow, control, fields | {"control": control})
    page.links.answer("paint", desk.painting.answer)
    page.links.answer("prompt", desk.prompt_box.answer)
    page.listen(drop.upload, desk.read, drop, shown)
    page.on_act([prompts, settings, more], desk.act, None, fields | {"status": line, "seen": seen})
    page.on_act([add, loras], desk.lora_act, None, fields | {"add": add, "embeddings": words, "seen": seen})
    page.on_act(presets, desk.preset_act, None, shown)
    page.on_act(line, desk.stage_act, None, {"status": line, "settings": settings, "seen": seen})
    page.on_act(memory, desk.memory_act, None, {"memory": memory, "seen": seen})
    page.on_act([newest, strip, gallery], desk.send, None, shown)
    page.links.answer("gallery", desk.shelf.answer)
    page.links.answer("upscale", desk.sending.answer)
    page.pulse_parts.append(desk.shelf.parts)
    desk.shelf.warm()
    grids.listen(page, desk.presets, desk.loras.shelf, grid_panel, grid_table)


class Fields(PlainForm):
    """The fields of the tab, kept by the project, with their presets."""

    offers = "gen-models"
    lists = {
        "refiner_checkpoint": "gen-refiners",
        "vae": "gen-vaes",
        "highres_fix_upscaler_file": "gen-upscalers",
    }

    def __init__(self, page: Page):
        super().__init__(page, "gen", "generate", form.ENTRIES, "field", form.PRESET)

    def load(self) -> dict[str, Any]:
        return form.kept_values(self.page.project.tab_state(TAB), self.page.project.job)

    def keep(self, values: dict[str, Any]) -> None:
        with self.page.project.lock:
            self.page.project.keep(TAB, self.page.project.tab_state(TAB) | {"values": plain(values)})

    def fresh(self) -> dict[str, Any]:
        return form.start_values(self.page.project.job)

    def family_for(self, name: str) -> str:
        if name in ("base_model", "refiner_checkpoint"):
            return ""
        return panel.model_of(self.load(), self.page.project.job.model, self.page.workspace).family

    def empty(self, values: dict[str, Any]) -> dict[str, Any]:
        project = self.page.project.job
        found: dict[str, Any] = {"base_model": project.model.base_model}
        found |= form.own_values(values, project, self.page.workspace)
        if values["zero_terminal_snr"] != "auto":
            space = self.page.workspace
            marked = form.marked_for_zero_snr(values, project, space, lambda name: find("lora", name, space))
            found["zero_terminal_snr"] = "on" if marked else "off"
        return found

    def follows(self, name: str, before: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
        """The values after the field `name` was changed: another base model resets VAE, clip skip and prediction type."""
        if name != "base_model" or values[name] == before[name]:
            return values
        return values | {own: form.ENTRIES[own].default for own in form.MODEL}

    def job(self, values: dict[str, Any]) -> GenerateJob:
        return form.job_of(values, self.page.project.job)

    def values_of(self, job: Settings, before: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
        assert isinstance(job, GenerateJob)
        return form.values_of(job, before, self.page.workspace, self.page.project.job.model, {})


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
        self.controls = Controls(page, self.presets, self.painting)
        self.prompt_box = PromptBox(page, self.presets, self.shelf.gallery, self.loras.shelf)
        self.stage = Stage(page, self.shelf.newest, self._jobs)
        self.sending = Sending(
            page, self.presets, self.shelf, self.painting, self.loras.shelf, self._checked, self._make
        )

    # -- what is kept

    def _state(self) -> dict[str, Any]:
        return self.page.project.tab_state(TAB)

    def _values(self) -> dict[str, Any]:
        return self.presets.load()

    def act(self, event: gr.EventData) -> dict[str, Any]:
        """A field was changed, or Generate was pressed."""
        act, name, value = act_of(event)
        if act == "draw":
            return self.draw()
        if act in ("swap", "ratio", "seed", "hires"):
            with self._lock:
                self.presets.update(self._quick(act, name or value))
            return self._changed()
        try:
            with self._lock:
                if act.startswith("style"):
                    self.prompt_box.act(act, name, value)
                elif act == "file_stop":
                    self.presets.update({"from_file": None, "from_module": None})
                elif act.startswith("net_"):
                    rows = [str(use["file"]) for use in self._values()["nets"]]
                    self.controls.act(act, arg_now(event, rows), value)
                elif act.startswith("image"):
                    self.sending.stop() if act == "image_stop" else self.sending.again()
                else:
                    self.presets.change(name, value)
        except ProblemsError as error:
            problems = list(dict.fromkeys([*error.problems, *self.presets.problems()]))
            self.page.browsers.say(self._browser(), "error", problems=problems, about=FIELD)
            return self._form()
        return self._changed()

    def _quick(self, act: str, arg: str) -> dict[str, Any]:
        """The fields that a button changes: both sides, the seed, or where hires fix begins."""
        values = self._values()
        if act == "seed":
            return {"seed": self._seed(arg, values["seed"])}
        project, space = self.page.project.job, self.page.workspace
        width, height = form.sides(values, project, space)
        if act == "hires":
            scale = panel.hires_scale(panel.model_of(values, project.model, space), (width, height))
            return {"highres_fix_scale": scale} if scale else {}
        if act == "ratio":
            if arg not in panel.RATIOS:  # none is chosen
                return {}
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
        """What was chosen is kept, but for an embedding of another family, which is said."""
        with self._lock:
            before, given = self._values()["embeddings"], [str(text) for text in chosen or []]
            problems = [each for text in given if text not in before for each in self.loras.refused_embedding(text)]
            kept = [text for text in given if text in before or not self.loras.refused_embedding(text)]
            self.presets.update({"embeddings": kept})
        if not problems:
            return self._changed()
        self.page.browsers.say(self._browser(), "error", problems=problems, about=FIELD)
        return self._form() | {"embeddings": self.loras.embeddings()}

    def _browser(self) -> Browser:
        return self.page.browsers.of(ASKING.get())

    def _changed(self) -> dict[str, Any]:
        """The form after a change. Of an error that is shown, what it has corrected goes."""
        browser = self._browser()
        if browser.failed not in (START, FIELD):
            return self._form()
        shown = (browser.said or {}).get("problems", [])
        found = self.presets.problems() if browser.failed == FIELD else self._faults()
        left = [problem for problem in found if problem.to_dict() in shown]
        self.presets.mark(left)
        if not left:
            self.page.browsers.succeeded(browser, browser.failed)
        elif len(left) < len(shown):
            self.page.browsers.say(browser, "error", problems=left, about=browser.failed)
        return self._form()

    def _faults(self) -> list[Problem]:
        """The problems that prevent a start."""
        try:
            self._jobs()
        except ProblemsError as error:
            return error.problems
        return []

    def _form(self) -> dict[str, Any]:
        """Every field as it is kept, and what hangs on them."""
        values = self._values()
        own = self._empty_ones(values)
        settings = self.page.project.job.model
        model = panel.model_of(values, settings, self.page.workspace)
        size = form.sides(values, self.page.project.job, self.page.workspace)

        changed = self.presets.changed()

        def draw(*names: str) -> str:
            return self.presets.fields(names, values, own, changed)

        above = {*panel.SHOWN_ABOVE, *PROMPTS, "count", "compare"}
        notes = {"conditioning": "refiner: SDXL only"} if model.family not in ("", "sdxl") else {}
        acting = sum(ControlUse.model_validate(use).used for use in values["nets"])
        notes |= {"controls": f"{acting} of {count(len(values['nets']), 'net')} on"} if values["nets"] else {}
        return {
            "prompts": view.prompts(
                self.prompt_box.html(draw, values), draw("count", "compare"), self.sending.line(values)
            ),
            "settings": panel.settings(
                draw,
                model,
                size,
                values["seed"] is not None and not self.stage.endless,
                values["highres_fix_scale"] is not None,
            ),
            "more": panel.groups(panel.rows_of(values, above, draw, lambda group: self._above(group, values), notes)),
            "loras": self.loras.rows(),
            "presets": self.presets.html(),
        }

    def _above(self, group: str, values: dict[str, Any]) -> str:
        """What stands above the fields of a group."""
        return self.controls.html(values) if group == "controls" else self.painting.row(group, values)

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
        return self._changed() | {"embeddings": self.loras.embeddings()}

    # -- showing

    def show(self):
        return self._all()

    def tick(self, seen: str):
        if self._stamp() == stamp_seen(seen):
            return gr.skip()
        self.loras.shelf.look(0)
        return self._news(seen)

    def _news(self, seen: str) -> dict[str, Any]:
        """What this browser was not sent before of what changes by itself."""
        return news(seen, self._stamp(), self._lists())

    def _lists(self) -> dict[str, str]:
        """The LoRAs to choose from, what is in memory, the status, the newest image."""
        return {
            "add": self.loras.picker(),
            "memory": self.memory.html(),
            "status": self.stage.status(),
            "newest": self.stage.newest(),
        }

    def _stamp(self) -> str:
        return f"{self.stage.stamp()} {self.shelf.follow()} {self._state().get('closed')} {self.memory.html()} {self.loras.shelf.version}"

    def _all(self) -> dict[str, Any]:
        """The whole tab."""
        self.loras.shelf.look()
        stamp, lists = self._stamp(), self._lists()
        return self._form() | {"embeddings": self.loras.embeddings()} | lists | sent(lists, stamp)

    def memory_act(self, event: gr.EventData) -> dict[str, Any]:
        """Something was pressed in the line about memory."""
        return _and_seen({"memory": self.memory.act(event)})

    # -- LoRAs

    def lora_act(self, event: gr.EventData):
        """Something was pressed or typed in the list of LoRAs or in a row of those in use."""
        found = self.loras.act(event)
        more = self._changed() if found is None else _and_seen({"add": found})
        return {"embeddings": self.loras.embeddings()} | more

    # -- generating

    def draw(self) -> dict[str, Any]:
        """Check everything and queue the jobs; problems are marked in the fields."""
        browser = self._browser()
        try:
            jobs = self._jobs()
        except ProblemsError as error:
            self.presets.mark(error.problems)
            self.page.browsers.say(browser, "error", problems=error.problems, about=START)
            return self._form() | _and_seen({"status": self.stage.status()})
        self._make(jobs)
        self.sending.forget()
        self.prompt_box.history.add(form.job_of(self._values(), self.page.project.job))
        for about in (START, FIELD):
            self.page.browsers.succeeded(browser, about)
        return self._form() | _and_seen({"status": self.stage.status()})

    def stage_act(self, event: gr.EventData) -> dict[str, Any]:
        """Something was pressed in the status line. Forever draws seeds, so Lock is off meanwhile."""
        shown = _and_seen({"status": self.stage.act(event)})
        return shown | ({"settings": self._form()["settings"]} if act_of(event)[0] == "forever" else {})

    def _make(self, jobs: Sequence[GenerateJob]) -> None:
        """Queue jobs; their images, not a grid, are what is shown."""
        self.stage.submit(jobs)
        grids.close(self.page)

    def _jobs(self, new_seed: bool = False) -> list[GenerateJob]:
        """What the fields ask for now, with their seed or a random one. Raises ProblemsError."""
        return self._checked(self._values() | ({"seed": None} if new_seed else {}), self.presets.problems())

    def _checked(self, values: dict[str, Any], wrong: Sequence[Problem] = ()) -> list[GenerateJob]:
        """What values of the fields ask for. wrong: what is known already. Raises ProblemsError with all that is wrong."""
        problems, now = list(wrong), self.page.project.job
        job = collected(problems, form.job_of, values, now)
        if job is not None and not job.prompts.from_file:
            # what waits in the queue keeps its words, whatever becomes of the styles
            job = collected(problems, self._in_styles, job) or job
        jobs = collected(problems, form.jobs_to_generate, job, values["compare"], now) if job is not None else []
        for each in [job] if jobs is None else jobs:
            collected(problems, self._check_files, each)
        raise_if_errors(list(dict.fromkeys(problems)))
        return jobs or []

    def _in_styles(self, job: GenerateJob) -> GenerateJob:
        return in_styles(job, chosen_styles(job.prompts.styles, self.page.workspace))[0]

    def _check_files(self, job: GenerateJob) -> None:
        """Model, LoRAs, embeddings and ControlNets are inside the open folders, there, and of the right family."""
        self.page.roots.admit(job)
        sources = plan_of(job, self.page.workspace).sources
        more = [*(word.path for word in sources.embeddings), *(net.path for net in sources.controls.values())]
        for path in (sources.model, sources.vae, *sources.loras.values(), *more):
            if path is not None and not self.page.roots.holds(path):
                self.page.roots.check(path, "model, LoRA, embedding or ControlNet")

    # -- images

    def read(self, file: str | None):
        """The settings of a dropped image go into the fields."""
        if not file:
            return gr.skip()
        self.sending.read(file)
        return self._all() | {"drop": None}

    def begin_with(self, file: str | None) -> Any:
        """A dropped image becomes the initial one."""
        if not file:
            return gr.skip()
        self.sending.begin_with(file)
        return self._changed() | {"initial": None}

    def follow(self, file: str | None) -> Any:
        """A dropped image becomes the control image for all."""
        if not file:
            return gr.skip()
        self.sending.follow(file)
        return self._changed() | {"control": None}

    def send(self, event: gr.EventData):
        """An image of the gallery is used."""
        self.sending.act(event)
        return self._all()


def _and_seen(boards: dict[str, str]) -> dict[str, str]:
    """Boards that changed with a click, with the stamp for the next tick."""
    return boards | sent(boards)
