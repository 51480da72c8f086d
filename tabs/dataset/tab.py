"""The Dataset tab: folders, images and their problems, crops and buckets."""

import time
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import gradio as gr

from core.captioning.identifiers import propose
from core.dataset.report import Row
from core.dataset.sources.files import printable
from core.dataset.sources.walk import Walk, unused_files
from core.imports.importers import endings
from core.record import atomic
from core.record.problems import Problem, ProblemsError
from core.record.workspace import display_path, resolve_path
from core.settings.dataset.source import Source
from tabs.context import Page
from tabs.dataset import concept_cards, plots, questions, setup_offer
from tabs.dataset import grid as dataset_grid
from tabs.dataset import view as dataset_view
from tabs.dataset.class_form import NEW, ClassForm
from tabs.dataset.concepts import FolderContents, changed, entries_of, folder_contents, with_shared_settings
from tabs.dataset.doctor import DoctorHandlers
from tabs.dataset.exchange import Exchange, buttons
from tabs.dataset.reading import key_of
from tabs.form.form_values import SOURCE
from tabs.form.project import STARTER_IMAGES
from tabs.markup import (
    AWAITED,
    BoardView,
    arg_now,
    board,
    board_event,
    button,
    client_state,
    esc,
    index_of,
    page_of,
    problems_html,
    progress,
    sent_boards,
    with_client,
)
from tabs.server.uploads import store_upload
from tabs.wire import json_object

TAB = questions.TAB
PROPOSED = 6
ABOUT_FOLDER = "Any folder of images. Additional folders, with their own settings, are listed below."
FOLDER_HINT = "Path of another folder"  # it is empty also while every chosen folder has settings of its own
AREAS = ("summary", "setup", "sources", "questions", "checks", "doctor", "plots", "grid")
OF_CARDS = ("own", "clear", "remove", "propose", "word", "more", "class")  # acts whose arg begins with a card's number
OF_IMAGES = ("open", "hold")  # and those with an image's

# The line below the field describes it and is announced when it changes.
ANNOUNCED = """
let before = "";
new MutationObserver(() => {
  const words = element.textContent.trim(), field = document.querySelector("#ds-folder :is(input, textarea)");
  if (field) field.setAttribute("aria-describedby", "ds-folder-state");
  if (before && words && words !== before) atelier.hear(words);
  before = words || before;
}).observe(element, {childList: true, subtree: true, characterData: true});
"""

WITH_FOLDERS = "(files) => [files, atelier.droppedFolders()]"
# Opens the folder browser for one of the hidden fields of `_chosen_folders`.
BROWSES = "() => {{ document.querySelector('#ds-browser [data-act={}] + button').click(); return []; }}"


def build(page: Page) -> None:
    """Create the tab's components and register their listeners."""
    handlers = DatasetHandlers(page)
    with gr.Row(elem_id="ds-choose", equal_height=False):
        with gr.Column(scale=3, min_width=380):
            folder = gr.Textbox(
                label="Image folder", info=ABOUT_FOLDER, placeholder=FOLDER_HINT, max_lines=1, elem_id="ds-folder"
            )
            state = board("ds-state", script=ANNOUNCED)
            with gr.Row(elem_classes="tight"):
                browse = gr.Button("Browse", size="sm", elem_id="ds-browse")
                add = gr.Button("Add folder", size="sm", elem_id="ds-add")
                reload = gr.Button("Reload", size="sm", elem_id="ds-again")
                import_button = gr.UploadButton(
                    f"Import {' or '.join(ending[1:].upper() for ending in endings())}",
                    file_types=endings(),
                    size="sm",
                    elem_id="ds-import",
                )
            exports = board("ds-exchange", buttons())
        with gr.Column(scale=2, min_width=300):
            drop = gr.File(
                label="Drop images or a zip", show_label=False, file_count="multiple", height=100, elem_id="ds-drop"
            )
            intake = board("ds-intake")
    browser = board("ds-browser")
    boards = {"summary": board("ds-summary", AWAITED)}
    with gr.Row(equal_height=False, elem_id="ds-main"):
        with gr.Column(scale=2, min_width=380):
            boards |= {name: board(f"ds-{name}") for name in AREAS[1:-1]}
        with gr.Column(scale=3, min_width=420):
            boards["grid"] = board("ds-grid")
    client = client_state()
    outputs = {"client": client, "folder": folder, "state": state, "intake": intake, "browser": browser, **boards}
    page.on_show(TAB, handlers.show, None, outputs)
    page.on_change(TAB, handlers, outputs)
    page.on_input([folder.blur, folder.submit], handlers.choose, folder, outputs)
    for opener, act in ((browse, "use"), (add, "also")):
        page.listen(opener.click, None, js=BROWSES.format(act))
    page.listen(reload.click, handlers.read_again, None, outputs)
    dropped = {"drop": drop, "intake": intake, "client": client}
    page.listen(drop.upload, handlers.store_dropped, [drop, page.envelope], dropped, js=WITH_FOLDERS)
    page.listen(import_button.upload, handlers.import_config, import_button, outputs | {"taken": import_button})
    page.on_act(exports, handlers.export)
    page.on_act(intake, handlers.intake_act, None, outputs)
    page.on_act(browser, handlers.browse, None, outputs)
    page.on_act(list(boards.values()), handlers.act, None, outputs | {"tabs": page.tabs})


class DatasetHandlers(BoardView):
    """Handlers of the tab's events. The project stores the view, `reading` has the images."""

    def __init__(self, page: Page):
        self.page = page
        self.reading = page.reading
        self.exchange = Exchange(page)
        self.class_form = ClassForm(page, lambda: page.project.tab_state(TAB), self._keep)
        self.doctor = DoctorHandlers(page, self.reading)
        self._class_jobs = self.class_form.stamp
        self._proposed: dict[int, tuple[int, list[str]]] = {}  # of a card: (seed, rare words)
        self._intake: Any = None
        self._arrived = ""  # folder with dropped files, until it is answered whether it is added to the dataset
        self._lately: set[str] = set()  # questions answered since the tab was opened: they keep their places

    # -- showing

    def show(self):
        """Start reading the dataset, wait a moment for its first images, and return {component: new content}."""
        self._lately = set()
        self.reading.want(again=True)
        self.reading.wait_for_first()
        return super().show()

    def stamp(self) -> str:
        """Return a text that changes whenever the display changes; starts reading the dataset if its settings have changed."""
        self.reading.want(now=self.reading.outdated)
        task = self._intake
        intake = f"{task.progress:.2f} {task.text} {task.done}" if task else ""
        if (jobs := self.class_form.stamp) != self._class_jobs:
            self._class_jobs = jobs
            self.reading.want(now=True)  # images were added
        return f"{jobs} {self.reading.stamp} | {self.page.project.revision} | {self.page.project.tab_state(TAB)} | {intake}"

    def boards(self) -> dict[str, Any]:
        """Return {component: HTML or value} of everything the tab shows: "folder", "state", "intake", "browser", "summary", "setup",
        "sources", "questions", "checks", "doctor", "plots" and "grid"."""
        reading, job, state = self.reading, self.page.project.job, self.page.project.tab_state(TAB)
        show, page_index = str(state.get("show", "all")), int(state.get("page", 0))
        entries = entries_of(job)
        names = [printable(resolve_path(entry.folder).name or entry.folder) for entry in entries]
        contents = folder_contents(entries, reading.report)
        folders = concept_cards.cards(
            job,
            entries,
            contents,
            state.get("open", []),
            self.page.thumb_url,
            unread=reading.report is None,
            proposed={index: text for index, (_, text) in self._proposed.items()},
            class_form=self.class_form.html,
            undo=self._undo(),
        )
        open_questions = reading.report.questions if reading.report else ()
        states = dataset_grid.validation_states(entries)
        return {
            "folder": self.page.project.shown("dataset.folder"),
            "state": dataset_view.state(reading.report, reading.problems + reading.failure, reading.busy, names),
            "intake": self._intake_html(),
            "browser": self._chosen_folders(),
            "summary": dataset_view.summary(reading.report, reading.layout, reading.doing),
            "setup": setup_offer.card(
                self.page.setup.offer(job, reading.report), again=bool(self.page.setup.applied(job))
            ),
            "sources": f"<div data-n='{state.get('turn', 0)}'>{folders}</div>",
            "questions": questions.cards(job, open_questions, questions.answered(state, job), self._lately),
            "checks": dataset_view.checks(job, reading.report, reading.problems + reading.failure, reading.checking),
            "doctor": self.doctor.html(entries),
            "plots": self._plots(entries, contents, show),
            "grid": dataset_grid.grid(
                reading.report, show, page_index, self.page.thumb_url, reading.busy, states, reading.first
            ),
        }

    def _undo(self) -> str:
        """Return the HTML of the undo and redo buttons of Train's form, which includes the folders."""
        steps = {"undo": ("Undo", self.page.project.can_undo), "redo": ("Redo", self.page.project.can_redo)}
        return "".join(
            button(act, message, kind="quiet", title=f"{message}: {did}" if did else "", disabled=not did, again=True)
            for act, (message, did) in steps.items()
        )

    def _all_outputs(self) -> dict[str, Any]:
        """Return {component: new content} of the whole tab and the client state, as outputs after a click."""
        values = self.boards()
        return values | sent_boards(values)

    def _plots(self, entries: list[Source], contents: list[FolderContents], show: str) -> str:
        """Return the HTML of the charts; "" without images. Disabled folders are left out of the views.

        show: view of the image grid, as for `histogram`
        """
        report, job = self.reading.report, self.page.project.job
        enabled = [(entry, each) for entry, each in zip(entries, contents, strict=True) if entry.enabled]
        names = [printable(resolve_path(entry.folder).name or entry.folder) for entry, _ in enabled]
        shares = plots.balance(names, [entry.role for entry, _ in enabled], [each.views for _, each in enabled])
        charts = [
            dataset_view.histogram(report, show),
            shares,
            plots.sizes_plot(job, report),
            plots.lengths_plot(report),
        ]
        return f'<div class="stack">{"".join(charts)}</div>' if any(charts) else ""

    def _keep(self, **changes: Any) -> None:
        """Store changed keys of the tab's state."""
        self.page.project.update_tab(TAB, **changes)

    # -- choosing

    def choose(self, text: str):
        """Set the image folder to the typed text. A folder that is already on a card stays unchanged.

        The field sends its text again on blur after Enter.
        """
        text = text if isinstance(text, str) else ""
        sources = self.page.project.job.dataset.sources
        if not text.strip() or resolve_path(text) not in {resolve_path(each.folder) for each in sources if each.folder}:
            # After a refusal the field shows the folder in use.
            with self.page.browsers.reporting(self.page.browser, "dataset.folder"):
                self._set_folder(text)
        return self._all_outputs()

    def _set_folder(self, text: str) -> None:
        """Set the image folder in Train's form and read it. Raises ProblemsError if the path is not allowed."""
        if text.strip():
            self.page.roots.check(text, "dataset.folder")
        if self.page.project.edit("dataset.folder", text):
            self._keep(show="all", page=0)
            state = self.page.project.tab_state("Captions")
            self.page.project.keep("Captions", {"edits": state.get("edits", {})})  # another set, another list
        self.reading.want()
        self.reading.wait_for_first()

    def read_again(self):
        """Read the dataset again."""
        self.reading.want(now=True)
        return self._all_outputs()

    def _chosen_folders(self) -> str:
        """Return the HTML of two hidden fields for the folder browser: to use the chosen folder alone, and to add it."""
        first = esc(next((entry.folder for entry in entries_of(self.page.project.job)), "."))
        browse = '<button type="button" data-browse="folder"></button>'
        fields = (f'<span><input data-act="{act}" value="{first}">{browse}</span>' for act in ("use", "also"))
        return f"<div hidden>{''.join(fields)}</div>"

    def browse(self, event: gr.EventData):
        """Use the folder chosen in the folder browser in place of the first one ("use"), or add it ("also"). Raises ProblemsError."""
        act, _, value = board_event(event)
        self._use(display_path(self.page.roots.check(value, "dataset.folder")), act)
        return self._all_outputs()

    def _use(self, folder: str, act: str) -> None:
        """Use `folder` as the first folder (act "use"), as the only one ("alone"), or add it ("also")."""
        if act == "use":
            self._set_folder(folder)
        elif act == "alone":
            self._set_sources([Source(folder=folder)], "using a folder alone")
            self._set_folder(folder)  # and a list of captions from its beginning
        elif act == "also":
            self._set_sources([*entries_of(self.page.project.job), Source(folder=folder)], "adding a folder")

    # -- dropped files

    def store_dropped(self, files: list[str] | None, dropped: str = ""):
        """Start storing dropped files, unless earlier ones are being stored or wait for an answer, and clear the drop area.

        dropped: JSON {"folders": [[name of a dropped folder, number of its files in `files`]]}; "" is the name for single files
        """
        if not files:
            return gr.skip()
        busy = self._intake is not None and not self._intake.done
        if busy or self._arrived:
            waits = ("Other files are still being added", "wait until they are added")
            asks = (f"{self._arrived} was dropped before and waits for an answer", "add it, use it alone or close it")
            what, fix = waits if busy else asks
            self.page.say("error", problems=[Problem(what, "the drop area", fix, code="upload.busy")], about="drop")
            return {"drop": None}
        groups = [repeat(str(name), int(count)) for name, count in json_object(dropped).get("folders", [])]
        folders = list(islice(chain(*groups, repeat("")), len(files)))
        self._intake = self.page.engine.light(
            self._take_in, [str(file) for file in files], folders, title="Adding images"
        )
        return {"drop": None} | with_client({"intake": self._intake_html()})

    def _take_in(self, files: list[str], folders: list[str], task: Any) -> list[Problem]:
        """Store dropped files and use their folder, or ask first if the user has chosen other folders.

        folders: as for `store_upload`. Returns problems of the files that were left out.
        """
        unused = Walk()
        try:
            folder = store_upload(files, self.page.workspace.datasets, task, unused, folders)
        finally:
            for file in files:  # the server's own copies of the upload
                atomic.remove(file)
        dataset = self.page.project.job.dataset
        if dataset.sources or dataset.folder not in ("", STARTER_IMAGES):
            self._arrived = display_path(folder)
        else:
            self._set_folder(display_path(folder))
        return unused_files(Path(Path(files[0]).name if len(files) == 1 else display_path(folder)), [("", unused)])

    def _intake_html(self) -> str:
        """Return the HTML of the dropped files: progress, problems, and the question whether to add them; "" without any."""
        task = self._intake
        if task is None:
            return ""
        if not task.done:
            doing = progress(task.text or "Adding files", task.progress)
            return f"<div class='intake'>{doing}{button('cancel', 'Cancel')}</div>"
        problems, kind = (task.result, "") if task.error is None else (task.error.problems, " failed")
        question, buttons = "", button("close", "Close")
        if self._arrived:
            name = printable(resolve_path(self._arrived).name)
            added, report = f"<strong>{esc(name)}</strong>", self.reading.report
            if self.reading.busy or (report is not None and report.rows):
                asks, usual = f"The dataset has images. Add {added} to them?", "add"
            else:
                asks, usual = f"The chosen folders have no images now. Use {added} instead?", "alone"
            question = f"<span>{asks}</span>"
            answers = {"add": "Add", "alone": "Use it alone"}
            buttons = (
                "".join(button(*each, kind="primary" if each[0] == usual else "") for each in answers.items()) + buttons
            )
        if not problems and not question:
            return ""
        return f"<div class='intake{kind}'>{problems_html(problems)}{question}<span class='does'>{buttons}</span></div>"

    def intake_act(self, event: gr.EventData) -> dict[str, Any]:
        """Handle a button of the dropped files: "cancel", "close", "add" or "alone"."""
        act, _, _ = board_event(event)
        task, folder = self._intake, self._arrived
        if task is not None and act == "cancel":
            task.cancel()
        elif act != "cancel":
            self._intake, self._arrived = None, ""
            if folder and act in ("add", "alone"):
                self._use(folder, "also" if act == "add" else act)
            elif folder:
                self.page.say("done", f"The files are kept in {folder}.")
        return self._all_outputs()

    # -- the config of sd-scripts

    def import_config(self, file: str | None):
        """Import an uploaded dataset config and clear the upload button."""
        if file:
            self.exchange.import_config(file)
            self._keep(show="all", page=0, open=[])
            self.reading.want()
        return self._all_outputs() | {"taken": None}

    def export(self, event: gr.EventData) -> None:
        """Export the dataset config in the event's format."""
        self.exchange.export_config(board_event(event)[1])

    # -- lists and images

    def act(self, event: gr.EventData):
        """Handle a click or change. Returns {component: new content} of the whole tab, and "tabs" to open another tab."""
        act, arg, value = board_event(event)
        if act in ("away", "back"):
            self._move(act, arg)
            tabs = gr.skip()
        else:
            with self.page.project.lock:  # two changes at once must both count
                tabs = self._handle(act, self._arg_now(event), value)
        self.reading.want()
        return self._all_outputs() | {"tabs": tabs}

    def _arg_now(self, event: gr.EventData) -> str:
        """Return the event's `arg` with the current index of its card or image, since another window may have changed the list."""
        act, arg, _ = board_event(event)
        if act in OF_IMAGES:
            return arg_now(event, [key_of(row) for row in self.reading.report.rows] if self.reading.report else [])
        return arg_now(event, [entry.folder for entry in entries_of(self.page.project.job)]) if act in OF_CARDS else arg

    def _move(self, act: str, arg: str) -> None:
        """Move the images of finding `arg` to the trash (act "away"), or restore the removal `arg` ("back")."""
        listed = entries_of(self.page.project.job)
        if act == "away":
            self.doctor.move_to_trash(arg, listed)
        else:
            self.doctor.put_back(arg, listed)

    def _handle(self, act: str, arg: str, value: str) -> Any:
        """Handle an event of the tab. Returns an update of the tabs to open another one, or gr.skip(). Raises ProblemsError.

        act     of a button or field, such as "page", "answer" or "own"; see the methods that handle it
        arg     index of a folder or image, or what `act` needs
        value   new text of the field, "true" for a switch that is on
        """
        tabs = gr.skip()
        if self.class_form.form.act(act, arg, value):
            return tabs
        if act == "show":
            self._keep(show=value or arg, page=0)
        elif act == "page":
            self._keep(page=page_of(value or arg, 10**6))
        elif act == "skip":
            self.page.project.edit("dataset.skip_broken", value == "true")
        elif act == "open":
            tabs = self._open_caption(arg)
        elif act in ("answer", "ask"):
            self._answer(act, arg, value)
        elif act == "propose":
            self._propose(arg)
        elif act == "word":
            number, _, word = arg.partition(":")
            self._change_source("own", f"{number}:identifier", word)
            self._proposed = {}
        elif act == "hold":
            self._set_validation(arg, value == "true")
        elif act == "more":
            self._toggle_settings(arg)
        elif act in ("undo", "redo"):
            self.page.project.undo(redo=act == "redo")
        elif act == "setup":
            self.page.setup.apply(self.page.setup.offer(self.page.project.job, self.reading.report))
        elif act == "keep_demo":
            self.page.setup.decline()
        elif act == "get_model":
            tabs = gr.Tabs(selected="Tools")
        elif act in ("own", "clear", "remove", "class", "class_make", "class_field"):
            try:
                if act in ("class", "class_make"):
                    self._class_images(act, arg)
                elif act == "class_field":
                    self.class_form.form.change(arg, value)
                else:
                    self._change_source(act, arg, value)
            except ProblemsError:
                self._keep(turn=time.time_ns())  # so that the field goes back to what holds
                raise
        return tabs

    def _row(self, arg: str) -> Row | None:
        """Return the report's row at index `arg`; None if there is none."""
        rows = self.reading.report.rows if self.reading.report else ()
        index = index_of(arg, len(rows))
        return None if index is None else rows[index]

    def _open_caption(self, arg: str):
        """Return an update that opens the Captions tab at the image with index `arg`."""
        if (row := self._row(arg)) is None:
            return gr.skip()
        self.page.project.update_tab("Captions", key=key_of(row), show="all", find="")
        return gr.Tabs(selected="Captions")

    def _answer(self, act: str, arg: str, value: str) -> None:
        """Apply the answer "kind:name" to a question ("answer"), or ask the question "kind" again ("ask"). value: color"""
        kind, _, name = arg.partition(":")
        job, state = self.page.project.job, self.page.project.tab_state(TAB)
        answered = {each for each in questions.answered(state, job) if each != kind}
        if act == "answer":
            self.page.project.change(questions.answer(job, kind, name, value), did="an answer about the images")
            answered.add(kind)
            self._lately.add(kind)
        self._keep(answered=questions.with_answered(state, job, answered))

    def _class_images(self, act: str, arg: str) -> None:
        """Toggle the form for regularization images (act "class"), or queue its job and add its folder to the dataset."""
        listed = entries_of(self.page.project.job)
        if act == "class":
            if arg:
                self.class_form.toggle(int(arg) if arg.removeprefix("-").isdecimal() and len(arg) < 9 else NEW)
            return
        new = self.class_form.make(listed)
        if new is not None and new.folder not in [entry.folder for entry in listed]:
            self._set_sources([*listed, new], "a folder for regularization images")

    def _propose(self, arg: str) -> None:
        """Propose rare tokens for the subject of the folder at index `arg`; other ones each time."""
        entries = entries_of(self.page.project.job)
        if (index := index_of(arg, len(entries))) is not None:
            seed = self._proposed.get(index, (0, []))[0] + 1
            used = [entry.identifier for entry in entries if entry.identifier]
            self._proposed[index] = (seed, propose(PROPOSED, seed, used))

    def _set_validation(self, arg: str, validates: bool) -> None:
        """Use the image at index `arg` for validation, or for training again."""
        entries, row = entries_of(self.page.project.job), self._row(arg)
        enabled = [index for index, entry in enumerate(entries) if entry.enabled]
        if row is None or row.concept >= len(enabled) or not dataset_grid.validation_states(entries)(row):
            return
        source_index = enabled[row.concept]
        names = [name for name in entries[source_index].validation_images if name not in (row.key[1], row.path.name)]
        entry = entries[source_index].model_copy(
            update={"validation_images": [*names, row.key[1]] if validates else names}
        )
        did = "using an image for validation" if validates else "using an image for training again"
        self._set_sources([*entries[:source_index], entry, *entries[source_index + 1 :]], did)

    def _toggle_settings(self, arg: str) -> None:
        """Show or hide all settings of the folder at index `arg`."""
        if (index := index_of(arg, len(entries_of(self.page.project.job)))) is not None:
            opened = {int(each) for each in self.page.project.tab_state(TAB).get("open", [])}
            self._keep(open=sorted(opened ^ {index}))

    def _change_source(self, act: str, arg: str, value: str) -> None:
        """Set a field of a folder ("own", arg "index:name"), clear its overrides ("clear"), or remove the folder ("remove")."""
        entries = entries_of(self.page.project.job)
        index_text, _, name = arg.partition(":")
        if (index := index_of(index_text, len(entries))) is None:
            return
        if act == "remove":
            self._proposed = {}
            self._set_sources(entries[:index] + entries[index + 1 :], "removing a folder")
            opened, form = self.page.project.tab_state(TAB).get("open", []), self.class_form.open_on
            still_open = [int(each) - (int(each) > index) for each in opened if int(each) != index]
            self._keep(open=still_open, class_on=None if form in (None, index) else form - (form > index))
            return
        entry = entries[index]
        values = with_shared_settings(entry) if act == "clear" else changed(entry, name, value, self.page.roots)
        did = f"change of a folder's {SOURCE[name].title.lower()}" if act == "own" else "change of a folder's settings"
        self._set_sources([*entries[:index], values, *entries[index + 1 :]], did)

    def _set_sources(self, entries: list[Any], did: str) -> None:
        """Replace the dataset's folders and read them. did: label of the undo step"""
        questions.change_folders(self.page.project, entries, did)
        self.reading.want()
