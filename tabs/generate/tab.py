"""The Generate tab: generates images with any model and LoRAs, compares with the base model, loads settings from images."""

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import gradio as gr

from core.engine.queue import QueueEntry
from core.generation.model.index import preview_of
from core.generation.model.library import find, find_file, title_of_name
from core.generation.model.sources import Hashes
from core.generation.plan.checks import problems_of
from core.generation.plan.plan import plan_of
from core.generation.plan.requests import in_styles
from core.generation.prompt.styles import chosen_styles
from core.record.problems import Problem, ProblemsError, collected, raise_if_errors
from core.record.units import count
from core.record.workspace import display_path
from core.settings.base import Settings
from core.settings.generation.controls import ControlUse
from core.settings.generation.generate import LoraUse
from core.settings.job import GenerateJob
from tabs.context import Page
from tabs.form.lora_card import thumb
from tabs.form.plain_form import PlainForm, plain
from tabs.form.view import label
from tabs.generate import cards, form, grids, image_values, panel, replaced, view
from tabs.generate.controls import Controls, with_fitting_preprocessors
from tabs.generate.gallery import SENDS, GalleryHandlers
from tabs.generate.loras import Loras, embeddings_help
from tabs.generate.memory import MemoryLine
from tabs.generate.painting import Painting
from tabs.generate.prompt_box import PROMPTS, PromptBox
from tabs.generate.sending import UPSCALER, Sending
from tabs.generate.stage import Stage, status
from tabs.markup import AWAITED, BoardView, arg_now, board, board_event, client_state, with_client
from tabs.pieces import piece

TAB = "Generate"
START, FIELD = "start generate", "change generate"  # `about` of messages

# Ctrl+Enter generates, from any field.
DRAW_KEY = """
document.addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || !(event.ctrlKey || event.metaKey) || !element.isConnected) return;
  if (element.offsetParent === null || document.querySelector('dialog[open]')) return;
  event.preventDefault();
  const field = document.activeElement;
  if (field && field.dataset.act) field.dispatchEvent(new Event('change', {bubbles: true}));
  document.querySelector('#gen-draw')?.click();
});
"""

# The checks before a job is queued can take seconds, so the click shows a text at once.
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

# After a LoRA is chosen, the list closes and the LoRA's row scrolls into view.
CHOSEN = """
element.addEventListener('click', ({target}) => {
  const chosen = target.closest('[data-act=add]:not(.misfit)'), summary = element.querySelector('.picker > summary');
  if (!chosen) return;
  summary.click();
  summary.focus({preventScroll: true});
  const seen = new MutationObserver(() => {
    const row = [...document.querySelectorAll('#gen-loras li')].find((card) => card.dataset.lora === chosen.dataset.arg);
    if (!row) return;
    seen.disconnect();
    row.scrollIntoView({block: 'nearest'});
  });
  seen.observe(document.querySelector('#gen-loras'), {childList: true, subtree: true});
});
"""


def build(page: Page) -> None:
    """Create the tab's components and register their listeners."""
    handlers = GenerateHandlers(page)
    prompts = board("gen-prompts", AWAITED, script=DRAW_KEY + PRESSED)
    memory = board("gen-memory", AWAITED)
    with gr.Row(equal_height=False, elem_id="gen-main"):
        with gr.Column(scale=0, min_width=300, elem_id="gen-form"):
            settings = board("gen-settings", AWAITED)
            add = board("gen-add", AWAITED, script=OPEN_GROUPS + CHOSEN)
            loras = board("gen-loras", script=OPEN_GROUPS)
            added = board("gen-cards", AWAITED, script=OPEN_GROUPS)
            grid_panel = board("gen-grid", AWAITED)
            control = gr.File(label="Control image", elem_id="gen-control")
            # no file_types: our own message names the file
            initial = gr.File(label="Initial image", elem_id="gen-initial")
            more = board("gen-more", AWAITED, script=OPEN_GROUPS)
            embeddings = gr.Dropdown(
                choices=[],
                multiselect=True,
                allow_custom_value=True,
                label=label(form.EMBEDDINGS),
                info=embeddings_help(()),
                elem_id="gen-embeddings",
            )
            presets = board("gen-presets", handlers.presets.html())
        with gr.Column(scale=1, min_width=300, elem_id="gen-side"):
            progress = board("gen-status", status((), {}, None, ()), script=OPEN_GROUPS + view.IN_REACH)
            grid_table = board("gen-table")
            newest = board("gen-newest", AWAITED)
            strip = board("gen-strip", piece("gallery_strip"))
            drop = gr.File(
                label="Image to read",
                show_label=False,
                height=44,
                elem_id="gen-drop",
            )
            gallery = board("gen-gallery", piece("gallery"), script=SENDS)
    client = client_state()
    fields = {
        "prompts": prompts,
        "settings": settings,
        "cards": added,
        "more": more,
        "loras": loras,
        "presets": presets,
    }
    boards = {"memory": memory, "status": progress, "newest": newest}
    outputs = {"client": client, "add": add, "drop": drop, "embeddings": embeddings} | fields | boards
    page.on_show(TAB, handlers.show, None, outputs)
    page.on_change(TAB, handlers, outputs)
    # Clear, Backspace and a typed name change a dropdown without Gradio's `input`
    page.on_input([embeddings.change], handlers.choose_embeddings, embeddings, fields | {"embeddings": embeddings})
    page.listen(initial.upload, handlers.begin_with, initial, fields | {"initial": initial})
    page.listen(control.upload, handlers.follow, control, fields | {"control": control})
    page.links.answer("paint", handlers.painting.answer)
    page.links.answer("prompt", handlers.prompt_box.answer)
    page.listen(drop.upload, handlers.read, drop, outputs)
    page.on_act([prompts, settings, added, more], handlers.act, None, fields | {"status": progress, "client": client})
    lora_outputs = {"add": add, "embeddings": embeddings, "client": client, "panel": grid_panel}
    page.on_act([add, loras], handlers.lora_act, None, fields | lora_outputs)
    page.on_act(presets, handlers.preset_act, None, outputs)
    page.on_act(progress, handlers.stage_act, None, {"status": progress, "settings": settings, "client": client})
    page.on_act(memory, handlers.memory_act, None, {"memory": memory, "client": client})
    page.on_act([newest, strip, gallery], handlers.send, None, outputs)
    page.links.answer("gallery", handlers.gallery_handlers.answer)
    page.links.answer("upscale", handlers.sending.answer)
    page.pulse_parts.append(handlers.gallery_handlers.parts)
    handlers.gallery_handlers.warm()
    handlers.grids = grids.listen(page, handlers.presets, handlers.loras.model_lists, grid_panel, grid_table)


class Fields(PlainForm):
    """The form of the Generate tab with its presets."""

    offers = "gen-models"
    lists = {
        "refiner_checkpoint": "gen-refiners",
        "vae": "gen-vaes",
        "highres_fix_upscaler_file": "gen-upscalers",
    }
    items: ClassVar = {"loras": LoraUse, "nets": ControlUse}

    def __init__(self, page: Page):
        super().__init__(page, "gen", "generate", form.ENTRIES, "field", form.PRESET)

    def load(self) -> dict[str, Any]:
        """Return the stored form values, with defaults for missing or invalid ones."""
        return form.stored_values(self.page.project.tab_state(TAB), self.page.project.job)

    def keep(self, values: dict[str, Any]) -> None:
        """Store the form values."""
        self.page.project.update_tab(TAB, values=plain(values))

    def initial(self) -> dict[str, Any]:
        """Return the default form values."""
        return form.start_values(self.page.project.job)

    def start_problems(self) -> list[Problem]:
        """Return the problems of invalid fields, and of added cards without values."""
        return [*self.problems(), *cards.empty_problems(self.load(), cards.added(self.page))]

    def check(self) -> None:
        """Raise ProblemsError with the problems of `start_problems`, if any."""
        raise_if_errors(self.start_problems())

    def family_for(self, name: str) -> str:
        """Return the model family that files of field `name` must have, "" for any."""
        if name in ("base_model", "refiner_checkpoint"):
            return ""
        return panel.model_of(self.load(), self.page.project.job.model, self.page.workspace).family

    def empty(self, values: dict[str, Any]) -> dict[str, Any]:
        """Return {field: value that applies while the field is empty or "auto"}."""
        project, space = self.page.project.job, self.page.workspace
        effective: dict[str, Any] = {"base_model": project.model.base_model}
        effective |= form.default_values(values, project, space)
        if values["zero_terminal_snr"] != "auto":
            marked = form.marked_for_zero_snr(values, project, space, lambda name: find("lora", name, space))
            effective["zero_terminal_snr"] = "on" if marked else "off"
        return effective

    def with_dependents(self, name: str, before: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
        """Return `values` after field `name` was changed, with the fields that depend on it.

        Another base model resets VAE, clip skip and prediction type; another control image adapts preprocessors.
        """
        if name == "control_image":
            values, note = with_fitting_preprocessors(self.page, before, values)
            if note:
                self.page.say("done", note)
        if name != "base_model" or values[name] == before[name]:
            return values
        return values | {each: form.ENTRIES[each].default for each in form.MODEL}

    def job(self, values: dict[str, Any]) -> GenerateJob:
        """Return the generation job of form `values`. Raises ProblemsError."""
        return form.job_of(values, self.page.project.job)

    def values_of(self, job: Settings, before: dict[str, Any]) -> tuple[dict[str, Any], list[Problem]]:
        """Return (form values that generate `job` again, advice about missing files). before: current form values"""
        assert isinstance(job, GenerateJob)
        return image_values.values_of(job, before, self.page.workspace, self.page.project.job.model, Hashes())


class GenerateHandlers(BoardView):
    """Handlers of the tab's events. The project stores the form's values."""

    def __init__(self, page: Page):
        self.page = page
        page.commands |= replaced.commands(page)
        self._lock = threading.RLock()
        self.grids: grids.Grids | None = None
        self.gallery_handlers = GalleryHandlers(page)
        self.presets = Fields(page)
        self.loras = Loras(page, self.presets)
        self.memory = MemoryLine(page, lambda: form.job_of(self._values(), page.project.job))
        self.painting = Painting(page, self._values)
        self.controls = Controls(page, self.presets, self.painting)
        self.prompt_box = PromptBox(page, self.presets, self.gallery_handlers.gallery, self.loras.model_lists)
        self.stage = Stage(page, self.gallery_handlers.newest, self._jobs)
        self._closes_grid = ""  # id of the job after which the open grid closes
        page.engine.end_listeners.append(self._ended)
        page.project.tab_listeners.append(self._redraw_others)
        self.sending = Sending(
            page, self.presets, self.gallery_handlers, self.painting, self.loras.model_lists, self._checked, self._make
        )

    # -- the form

    def _values(self) -> dict[str, Any]:
        """Return the form values."""
        return self.presets.load()

    def act(self, event: gr.EventData) -> dict[str, Any]:
        """Handle a changed field or a button of the form. Returns {component: new content}. Problems are shown as a message."""
        act, name, value = board_event(event)
        if act == "draw":
            return self.draw()
        if act in ("swap", "ratio", "seed", "hires"):
            with self._lock:
                self.presets.update(self._button_values(act, name or value))
            return self._changed()
        try:
            with self._lock:
                if act.startswith("style"):
                    self.prompt_box.act(act, name, value)
                    self._redraw_others(TAB)  # the list of styles is a file
                elif act == "card_remove" and name in cards.BY_NAME:
                    self._remove_card(name)
                elif act == "read_text":
                    self.sending.read_text(value)
                elif act == "file_stop":
                    self.presets.update({"from_file": None, "from_module": None})
                elif act.startswith("net_"):
                    rows = [str(use["file"]) for use in self._values()["nets"]]
                    self.controls.act(act, arg_now(event, rows), value)
                elif act.startswith("image"):
                    self.sending.remove_initial_image() if act == "image_stop" else self.sending.restore_initial_image()
                    cards.set_added(self.page, cards.IMAGE, False)
                elif name == UPSCALER:
                    self.sending.choose_upscaler(value)
                else:
                    self.presets.change(name, value)
        except ProblemsError as error:
            problems = list(dict.fromkeys([*error.problems, *self.presets.problems()]))
            self.page.browsers.say(self.page.browser, "error", problems=problems, about=FIELD)
            return self._form()
        return self._changed()

    def _add_card(self, name: str) -> dict[str, Any]:
        """Add card `name` to the form. Returns {"panel": HTML} for the grid card, else {}."""
        cards.set_added(self.page, name, True)
        self.presets.update(cards.with_card(name, self._values()))
        return {"panel": self.grids.panel()} if name == cards.GRID and self.grids else {}

    def _remove_card(self, name: str) -> None:
        """Remove card `name` and reset its settings. Fields that its initial image had set elsewhere are restored."""
        if name == cards.IMAGE and self._values()["image_path"]:
            self.sending.remove_initial_image()
        self.presets.update(cards.without_card(name, self._values(), cards.added(self.page)))
        cards.set_added(self.page, name, False)

    def _button_values(self, act: str, arg: str) -> dict[str, Any]:
        """Return the {field: value} that the button `act`, "swap", "ratio", "seed" or "hires", sets. arg: the ratio to set, such as 2:3"""
        values = self._values()
        if act == "seed":
            return {"seed": self._seed(values["seed"])}
        project, space = self.page.project.job, self.page.workspace
        width, height = form.sides(values, project, space)
        if act == "hires":
            scale = panel.hires_scale(panel.model_of(values, project.model, space), (width, height))
            return {"highres_fix_scale": scale} if scale else {}
        if act == "ratio":
            if arg not in panel.RATIOS:  # the empty choice
                return {}
            native = form.sides({**values, "width": None, "height": None}, project, space)
            width, height = form.ratio_size(arg, native)
            return {"width": width, "height": height}
        return {"width": height, "height": width}

    def _seed(self, current: int | None) -> int | None:
        """Return the seed after a click on Lock: None if one was set, else the newest image's seed or a random one."""
        if current is not None:
            return None
        newest = self.gallery_handlers.last_seed()
        return form.new_seed() if newest is None else newest

    def choose_embeddings(self, chosen: Any) -> dict[str, Any]:
        """Set the form's embeddings. Those that do not fit the model are left out and reported in a message."""
        with self._lock:
            before, names = self._values()["embeddings"], [str(text) for text in chosen or []]
            problems = [each for text in names if text not in before for each in self.loras.refused_embedding(text)]
            fitting = [text for text in names if text in before or not self.loras.refused_embedding(text)]
            self.presets.update({"embeddings": fitting})
        if problems:
            self.page.browsers.say(self.page.browser, "error", problems=problems, about=FIELD)
        return (self._form() if problems else self._changed()) | {"embeddings": self.loras.embeddings()}

    def _changed(self) -> dict[str, Any]:
        """Return {component: new content} of the form after a change, with fixed problems removed from the shown error message."""
        browser = self.page.browser
        if browser.failed not in (START, FIELD):
            return self._form()
        shown_problems = (browser.message or {}).get("problems", [])
        problems = self.presets.problems() if browser.failed == FIELD else self._start_problems()
        remaining = [problem for problem in problems if problem.to_dict() in shown_problems]
        self.presets.mark(remaining)
        if not remaining:
            self.page.browsers.succeeded(browser, browser.failed)
        elif len(remaining) < len(shown_problems):
            self.page.browsers.say(browser, "error", problems=remaining, about=browser.failed)
        return self._form()

    def _start_problems(self) -> list[Problem]:
        """Return the problems that prevent generating."""
        problems: list[Problem] = []
        collected(problems, self._jobs)
        return problems

    def _form(self) -> dict[str, Any]:
        """Return {component: HTML} of the components with fields."""
        values = self._values()
        placeholders = self._placeholders(values)
        settings = self.page.project.job.model
        model = panel.model_of(values, settings, self.page.workspace)
        size = form.sides(values, self.page.project.job, self.page.workspace)

        changed = self.presets.changed()

        def draw(*names: str, titles: Mapping[str, str] = {}) -> str:
            def fields(names: Sequence[str], shown: dict[str, Any] = values) -> str:
                return self.presets.fields(names, shown, placeholders, changed, titles=titles)

            html, one = fields(names), (UPSCALER,)
            if UPSCALER in names:
                html = html.replace(fields(one), self.sending.upscaler_field(lambda shown: fields(one, shown), values))
            return html

        above = {*panel.SHOWN_ABOVE, *PROMPTS, "count", "compare"}
        notes = {"refiner": "refiner: SDXL only"} if model.family not in ("", "sdxl") else {}
        notes |= self._notes(values)
        groups = panel.rows_of(values, above, draw, lambda group: self._above(group, values), notes, self.presets.bad)
        return {
            "prompts": view.prompts(
                self.prompt_box.html(draw, values), draw("count", "compare"), self.sending.line(values)
            ),
            "settings": panel.settings(
                draw,
                model,
                size,
                values["seed"] is not None and not self.stage.endless,
                self._chip(values, model),
                values["highres_fix_scale"],
                notes.get("generate", ""),
            ),
            "cards": cards.html(
                values,
                cards.added(self.page),
                draw,
                lambda group: self._above(group, values),
                notes,
                self.presets.bad,
            ),
            "more": panel.groups(groups),
            "loras": self.loras.rows(),
            "presets": self.presets.html(),
        }

    def _notes(self, values: dict[str, Any]) -> dict[str, str]:
        """Return {group: text next to its title}: the number of active ControlNets, or the first advice about the settings."""
        job = collected([], form.job_of, values, self.page.project.job)
        advice = [each for each in problems_of(job) if each.level == "advice"] if job is not None else []
        notes = {each.where.partition(".")[0]: each.what for each in reversed(advice)}
        if values["nets"]:
            acting = sum(ControlUse.model_validate(use).used for use in values["nets"])
            notes["controls"] = f"{acting} of {count(len(values['nets']), 'net')} on"
        return notes

    def _above(self, group: str, values: dict[str, Any]) -> str:
        """Return the HTML above the fields of settings group `group`, "" if it has none."""
        return self.controls.html(values) if group == "controls" else self.painting.row(group, values)

    def _chip(self, values: dict[str, Any], model: panel.Model) -> str:
        """Return the HTML of the button that shows the base model."""
        name = str(values["base_model"]).strip() or self.page.project.job.model.base_model
        path = find_file(name, self.page.workspace)
        preview = preview_of(path, self.page.workspace) if path is not None and self.page.roots.holds(path) else None
        return panel.model_chip(title_of_name(name, self.page.workspace), model, thumb(preview, self.page.thumb_url))

    def _placeholders(self, values: dict[str, Any]) -> dict[str, str]:
        """Return {field: placeholder while it is empty}."""
        project = self.page.project.job
        texts = form.default_texts(values, project, self.page.workspace)
        texts["outdir"] = display_path(self.page.workspace.images)
        texts["base_model"] = f"as in Train: {project.model.base_model}"
        other_model, train = values["base_model"], project.model
        texts["vae"] = f"as in Train: {train.vae}" if train.vae and not other_model else "the model's own"
        texts["clip_skip"] = f"as in Train: {train.clip_skip}" if train.clip_skip and not other_model else "last layer"
        return texts

    def preset_act(self, event: gr.EventData) -> dict[str, Any]:
        """Handle an event of the preset bar. Returns {component: new content}."""
        with self._lock:
            self.presets.act(*board_event(event))
        return self._changed() | {"embeddings": self.loras.embeddings()}

    # -- display

    def show(self) -> dict[str, Any]:
        """Update the lists of model files, and return {component: new content} of the whole tab."""
        self.loras.model_lists.refresh()
        return self._form() | {"embeddings": self.loras.embeddings()} | super().show()

    def tick(self, client: str) -> Any:
        """Return {component: new content} of what has changed since the `client` state of a browser; all for a new browser ("")."""
        return super().tick(client) if client else self.show()

    def boards(self) -> dict[str, str]:
        """Return {component: HTML} of the components that change without an event: list of LoRAs, memory, status, newest image."""
        return {
            "add": self.loras.picker(),
            "memory": self.memory.html(),
            "status": self.stage.status(),
            "newest": self.stage.newest(),
        }

    def stamp(self) -> str:
        """Return a text that changes whenever the result of `boards` changes."""
        closed = self.page.project.tab_state(TAB).get("closed")
        return f"{self.stage.stamp()} {self.gallery_handlers.refresh()} {closed} {self.memory.html()} {self.loras.model_lists.version}"

    def _redraw_others(self, tab: str) -> None:
        """Listener for stored tab states: redraw this form in the other browser windows."""
        if tab == TAB:
            self.page.browsers.redraw_others(self.page.browser, TAB)

    def memory_act(self, event: gr.EventData) -> dict[str, Any]:
        """Handle an event of the memory line. Returns {component: new content}."""
        return with_client({"memory": self.memory.act(event)})

    # -- LoRAs

    def lora_act(self, event: gr.EventData):
        """Handle an event of the list of LoRAs, a LoRA's card or a + button of a card. Returns {component: new content}."""
        act, name, _ = board_event(event)
        if act == "card_add":
            with self._lock:
                return self._add_card(name) | self._changed() if name in (*cards.BY_NAME, cards.GRID) else self._form()
        picker = self.loras.act(event)
        outputs = self._changed() if picker is None else with_client({"add": picker})
        return {"embeddings": self.loras.embeddings()} | outputs

    # -- generating

    def draw(self) -> dict[str, Any]:
        """Check the form and queue its jobs. Returns {component: new content}. Problems are shown and marked in the fields."""
        browser = self.page.browser
        try:
            jobs = self._jobs()
        except ProblemsError as error:
            self.presets.mark(error.problems)
            self.page.browsers.say(browser, "error", problems=error.problems, about=START)
            return self._form() | with_client({"status": self.stage.status()})
        self._make(jobs)
        self.sending.forget_removed_image()
        self.prompt_box.history.add(form.job_of(self._values(), self.page.project.job))
        for about in (START, FIELD):
            self.page.browsers.succeeded(browser, about)
        return self._form() | with_client({"status": self.stage.status()})

    def stage_act(self, event: gr.EventData) -> dict[str, Any]:
        """Handle an event of the status line. Returns {component: new content}. Turning Forever on unlocks the seed field."""
        outputs = with_client({"status": self.stage.act(event)})
        return outputs | ({"settings": self._form()["settings"]} if board_event(event)[0] == "forever" else {})

    def _make(self, jobs: Sequence[GenerateJob]) -> None:
        """Queue jobs, and close the open grid so that the new images are visible; a grid that is running now closes when they end."""
        self._closes_grid = self.stage.submit(jobs)
        grids.close(self.page)

    def _ended(self, entry: QueueEntry) -> None:
        """Listener for ended jobs: register base images of comparisons, and close the grid opened before the job."""
        if entry.id in self.stage.bases:
            with suppress(ProblemsError):
                self.gallery_handlers.gallery.add_bases(map(Path, self.page.engine.progress(entry.id)["images"]))
        if entry.id == self._closes_grid and entry.state == "done":
            grids.close(self.page, entry.added)

    def _jobs(self, new_seed: bool = False) -> list[GenerateJob]:
        """Return the checked jobs of the form, with its seed or (`new_seed`) random ones. Raises ProblemsError."""
        return self._checked(self._values() | ({"seed": None} if new_seed else {}), self.presets.start_problems())

    def _checked(self, values: dict[str, Any], known: Sequence[Problem] = ()) -> list[GenerateJob]:
        """Return the checked jobs of form `values`. Raises ProblemsError with all problems, including the `known` ones."""
        problems, project = list(known), self.page.project.job
        job = collected(problems, form.job_of, values, project)
        if job is not None and not job.prompts.from_file:
            # with the texts of the styles, so that later changes of a style do not affect the queue
            styles = collected(problems, chosen_styles, job.prompts.styles, self.page.workspace)
            styled = None if styles is None else collected(problems, in_styles, job, styles)
            job = styled[0] if styled else job
        jobs = collected(problems, form.jobs_to_generate, job, values["compare"], project) if job is not None else []
        for each in [job] if jobs is None else jobs:
            collected(problems, self._check_files, each)
        raise_if_errors(list(dict.fromkeys(problems)))
        return jobs or []

    def _check_files(self, job: GenerateJob) -> None:
        """Raise ProblemsError unless the job's model, LoRAs, embeddings and ControlNets exist, are allowed, and fit together."""
        self.page.roots.admit(job)
        sources = plan_of(job, self.page.workspace).sources
        added = [*(word.path for word in sources.embeddings), *(net.path for net in sources.controls.values())]
        for path in (sources.model, sources.vae, *sources.loras.values(), *added):
            if path is not None and not self.page.roots.holds(path):
                self.page.roots.check(path, "model, LoRA, embedding or ControlNet")

    # -- images

    def read(self, file: str | None):
        """Load the settings of the uploaded image `file`. Returns {component: new content}."""
        if not file:
            return gr.skip()
        self.sending.read(file)
        return self.show() | {"drop": None}

    def begin_with(self, file: str | None) -> Any:
        """Use the uploaded image `file` as initial image. Returns {component: new content}."""
        if not file:
            return gr.skip()
        self.sending.begin_with(file)
        return self._changed() | {"initial": None}

    def follow(self, file: str | None) -> Any:
        """Use the uploaded image `file` as the common control image. Returns {component: new content}."""
        if not file:
            return gr.skip()
        self.sending.follow(file)
        return self._changed() | {"control": None}

    def send(self, event: gr.EventData):
        """Handle a button of an image. Returns {component: new content}."""
        self.sending.act(event)
        return self.show()
