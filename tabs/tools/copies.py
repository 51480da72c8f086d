"""Copies a run's files to the folder of another program, which is remembered for each kind of file."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.dataset.sources.files import printable
from core.engine.keeping import mark_file, unmark_file
from core.engine.verdict import choice_reason, compared_files
from core.formats.copies import MISSING, Copied, copy_into, require_folder
from core.networks.misread import file_misread_problems
from core.record.file_titles import is_average, title_of_file
from core.record.kept import keep, read_kept
from core.record.preference import read_choices
from core.record.problems import Problem, ProblemsError, write_errors
from core.record.run_folder import run_of, safe_name
from core.settings.methods import spec_of
from core.settings.names import bad_name
from core.settings.readers import program_of
from core.tasks import tasks
from tabs.form.task_settings import job_of
from tabs.markup import button, esc, problems_html, progress, short
from tabs.server.browsers import Browser
from tabs.tools.forms import fill_in

if TYPE_CHECKING:
    from core.settings.job import TrainJob
    from tabs.context import Page

TAB = "Runs"
WHERE = "Copy to"
FOLDERS = {  # {what a run saves: (its folder in ComfyUI, in Forge and A1111)}
    "lora": ("models/loras", "models/Lora"),
    "embedding": ("models/embeddings", "embeddings"),
    "model": ("models/checkpoints", "models/Stable-diffusion"),
    "controlnet": ("models/controlnet", "models/ControlNet"),
    "lllite": ("models/controlnet", "models/ControlNet"),
}
PREVIEW = ".preview.png"  # ending of an image that A1111, Forge and ComfyUI show for a model file
CONVERTS = "convert_lora"  # name of the tool and act of its button
KEYS = """
element.addEventListener('keydown', (event) => {
  const wanted = {Enter: event.target.id === 'copy-folder' && 'into', Escape: 'shut'}[event.key];
  if (!wanted) return;
  event.preventDefault();
  element.querySelector(`[data-act=${wanted}]`).click();
});
"""


@dataclass(frozen=True)
class Copying:
    """A running or finished copy of a run's file.

    folder   target folder
    name     file name of the copy
    task     background task
    misread  problems that the program of `folder` has with the file
    """

    folder: Path
    name: str
    task: Any
    misread: list[Problem] = field(default_factory=list)


def saved_kind(job: TrainJob | None) -> str:
    """Return what a run with these settings saves, a key of FOLDERS; "" if the settings cannot be read (None)."""
    return spec_of(job).saves if job is not None else ""


def hint(kind: str) -> str:
    """Return examples of a target folder for files of this kind."""
    comfyui, forge = FOLDERS.get(kind, FOLDERS["model"])
    return f"full path, such as ComfyUI/{comfyui} or Forge/{forge}"


def _key(kind: str) -> str:
    """Return the key of the tab state for the last folder of this kind of files ("copy_to" for LoRAs, as earlier versions had)."""
    return "copy_to" if kind == "lora" else f"copy_to_{kind}"


class Copies:
    """Copies files of runs; shows the newest copy of each file until the server ends."""

    def __init__(self, page: Page):
        self._page = page
        self._copies: dict[str, Copying] = page.copies

    def folder(self, kind: str) -> Path | None:
        """Return the remembered folder for files of this kind; None without one, or if this page may not write to it."""
        text = str(self._page.project.tab_state(TAB).get(_key(kind), ""))
        try:
            return self._page.roots.check_written(text, WHERE) if text else None
        except ProblemsError:
            return None

    # -- actions

    def start(self, run: str, name: str, text: str) -> None:
        """Copy the run's file `name` to the folder at path `text`, and remember the folder for files of its kind. Raises ProblemsError."""
        roots = self._page.roots
        source = self._file(run, name)
        if not text.strip():
            raise ProblemsError.one("No folder is chosen", WHERE, "enter its path, or browse", code="copy.no-folder")
        folder = roots.check_written(text, WHERE)
        try:
            require_folder(folder, source)
        except ProblemsError as error:
            if error.problems[0].code == MISSING:
                self._page.browser.folderless = (run, name, str(folder))
            raise
        running = self._copies.get(str(source))
        if running is not None and not running.task.done:
            what = f"'{self._title(source)}' is being copied"
            raise ProblemsError.one(what, str(running.folder), "wait for it, or cancel it", "copy.running")
        copy_name = self._name(run, source)
        title = f"copy of {self._title(source)}"
        task = self._page.engine.light(self._copy, source, folder, copy_name, title=title, kind="copies")
        program = program_of(folder)
        misread = file_misread_problems(source, (program,)) if program else []
        self._copies[str(source)] = Copying(folder, copy_name, task, misread)
        self._page.project.update_tab(TAB, **{_key(self._kind(run)): str(folder)})

    def again(self, run: str, name: str) -> None:
        """Copy the run's file `name` to the remembered folder. Raises ProblemsError."""
        self.start(run, name, str(self.folder(self._kind(run)) or ""))

    def _kind(self, run: str) -> str:
        """Return what the run saves, a key of FOLDERS; "" if its settings cannot be read."""
        return saved_kind(self._page.readable_job(run))

    def create_folder(self, data: dict[str, Any], browser: Browser) -> None:
        """Create the missing folder that stopped this browser's last copy, and copy the file to it. Raises ProblemsError. data: not used"""
        copy, browser.folderless = browser.folderless, None
        if copy is None:
            return
        folder = self._page.roots.check_written(copy[2], WHERE)
        with write_errors("The folder cannot be created", str(folder), then="copy again"):
            folder.mkdir(parents=True, exist_ok=True)
        self.start(*copy)
        self._page.browsers.say(browser, "done", f"The folder was created: {printable(folder)}.", redraws=True)

    def _name(self, run: str, source: Path) -> str:
        """Return the file name for a copy: the name under which the checkpoint is marked to keep, else the file's own."""
        folder = self._page.workspace.runs / run
        kept_name = read_kept(folder).get(source.relative_to(folder).as_posix(), source.stem)
        name = f"{safe_name(kept_name)}{'' if source.is_dir() else source.suffix}"
        return source.name if kept_name == source.stem or bad_name(name) else name

    def _copy(self, source: Path, folder: Path, name: str, task: Any) -> Copied:
        """Copy a run's file or folder and its preview image, in the background."""
        self._page.roots.check_written(folder, WHERE)  # a link may have replaced it

        def report(share: float, text: str) -> None:
            task.stage(text, round(share * 1000), 1000)

        copied = copy_into(source, folder, task.token, report, name)
        return replace(copied, preview=self._copy_preview(source, copied) if program_of(folder) else "")

    def _copy_preview(self, source: Path, copied: Copied) -> str:
        """Copy a sample of the checkpoint's step next to its copy as a preview image.

        Returns the preview's file name; "" if there is a preview already, no sample, or copying fails.
        """
        taken = any(os.path.lexists(copied.path.with_suffix(ending)) for ending in (".png", PREVIEW))
        run, sample = run_of(source, self._page.workspace.runs), None
        if run is not None and copied.path.is_file() and not taken:
            sample = self._sample(run, source)
        try:
            name = copied.path.with_suffix(PREVIEW).name
            return copy_into(sample, copied.path.parent, name=name).path.name if sample is not None else ""
        except (ProblemsError, OSError):  # the copy is useful without
            return ""

    def _sample(self, run: Path, source: Path) -> Path | None:
        """Return the path of the first sample of the step at which `source` was saved; None without one, and for an average."""
        facts = self._page.engine.snapshot(run.name)
        saved = (each for each in facts["files"] if not is_average(each["name"]))
        step = next((each["step"] for each in saved if each["name"] == source.name), None)
        return next((run / each["file"] for each in facts["samples"] if each["step"] == step), None)

    def keep(self, run: str, name: str, kept_name: str | None) -> None:
        """Mark the run's file `name` to keep under `kept_name` ("" for the file's own), and copy it to the remembered folder.

        Renaming a kept file does not copy it again. None removes the mark, not the copy.
        """
        source, folder = self._file(run, name), self._page.engine.editable_run(run).path
        file, target = source.relative_to(folder).as_posix(), self.folder(self._kind(run))
        newly_kept = kept_name is not None and file not in read_kept(folder)
        keep(folder, source, kept_name)
        browser = self._page.browser
        # One thread does these and copies in the order in which they are begun: the copy has the new metadata.
        self._page.engine.light(
            self._write_metadata, run, source, browser, title=f"metadata of {self._title(source)}", kind="copies"
        )
        copied = (self.outcome(source) or {}).get("path")
        if kept_name is None and copied:
            self._page.say("done", f"No longer kept: {self._title(source)}. Its copy stays: {copied}.")
        if not newly_kept:
            return
        name_kept = read_kept(folder)[file]
        also_named = "" if name_kept == source.stem else f" as {name_kept}"
        message = f"Kept: {self._title(source)}{also_named}."
        try:
            if target is not None:
                self.start(run, name, str(target))
                message += f" Copied to {printable(target)}."
        except ProblemsError as error:
            self._page.say("error", f"{message} It is not copied.", problems=error.problems)
            return
        self._page.say("done", message)

    def _title(self, source: Path) -> str:
        """Return the display title of a file."""
        return title_of_file(source, self._page.workspace.runs)

    def _write_metadata(self, run: str, source: Path, browser: Browser, task: Any) -> None:
        """Write into the file's metadata whether it is kept and why it was chosen; a problem is shown in `browser`."""
        page = self._page
        folder = page.workspace.runs / run
        name = read_kept(folder).get(source.relative_to(folder).as_posix())
        failure = "The checkpoint is kept, but its metadata cannot be written"
        with (
            page.browsers.reporting(browser, "keep", failure),
            write_errors("The metadata cannot be written", str(source)),
        ):
            if name is None:
                unmark_file(source, page.workspace, task.token)
                return
            choices = read_choices(folder)
            names = compared_files(folder, choices)
            choice = choice_reason(page.engine.snapshot(run), names, choices, source.name)
            mark_file(source, name, choice, self._sample(folder, source), page.workspace, task.token)

    def cancel(self, run: str, name: str) -> None:
        """Cancel the copy of the run's file `name`."""
        copy = self._copies.get(str(self._file(run, name)))
        if copy is not None:
            copy.task.cancel()

    def forget(self, run: str, name: str) -> None:
        """Remove the message of the finished copy of the run's file `name`."""
        path = str(self._file(run, name))
        if path in self._copies and self._copies[path].task.done:
            del self._copies[path]

    def convert(self, run: str, name: str) -> None:
        """Fill in the tool "Convert LoRAs" to convert the run's file `name` to a plain LoRA."""
        file, base = printable(self._file(run, name)), self._page.engine.run_job(run).model.base_model
        fill_in(self._page, CONVERTS, {"file": file, "network_type": "lora", "base_model": base})

    def card(self, run: str, name: str) -> None:
        """Fill in the tool "Report card" with the run's file `name`, and start its preview."""
        values = {"file": printable(self._file(run, name))}
        fill_in(self._page, "card", values)
        task = tasks()["card"]
        self._page.works.start(task, job_of(task, values | {"preview": True}, self._page.project.job))

    def _file(self, run: str, name: str) -> Path:
        """Return the path of the run's file `name`. Raises ProblemsError if it is gone or not allowed."""
        files = self._page.engine.snapshot(run)["files"]
        path = next((file["path"] for file in files if file["name"] == name), None)
        if path is None:
            raise ProblemsError.one("The file no longer exists", name, "check the list", code="file.gone")
        return self._page.roots.check(path, name)

    # -- display

    def panel(self, state: dict[str, Any]) -> str:
        """Return the HTML of the panel that chooses a target folder; "" while it is closed.
        state: of the browser's Runs tab; "open": name of the run, "copy": name of the file, "" for a closed panel"""
        name = str(state.get("copy", ""))
        if not name or not state.get("open"):
            return ""
        kind = self._kind(str(state["open"]))
        text = printable(remembered) if (remembered := self.folder(kind)) else ""
        field = (
            f'<input type="text" id="copy-folder" data-land="{esc(name)}" value="{esc(text)}" maxlength="4000" '
            f'spellcheck="false" autocomplete="off" placeholder="{hint(kind)}" '
            f'aria-label="Folder to copy {esc(name)} to">'
        )
        browse = '<button type="button" class="btn" data-browse="folder">Browse</button>'
        copy_button = '<button type="button" class="btn primary" data-act="into" data-from="copy-folder">Copy</button>'
        return (
            f'<section class="block-part copy-to" role="dialog" aria-label="Copy"><h3>Copy {esc(name)} to a folder</h3>'
            f'<div class="copy-line">{field}{browse}{copy_button}{button("shut", "Cancel")}</div>'
            f'<p class="hint">Files with the same name are never replaced. The folder is remembered for files of this kind.</p></section>'
        )

    def row(self, file: dict[str, Any], kind: str) -> tuple[str, str]:
        """Return (HTML of a file's copy buttons, HTML of the state of its copy).

        file: {"name", "path"} as in the run's snapshot; kind: key of FOLDERS
        """
        name = file["name"]
        to_remembered = ""
        if remembered := self.folder(kind):
            text = f"Copy to {short(printable(remembered.name or remembered), 24)}"
            label = f"Copy {name} to {printable(remembered)}"
            to_remembered = button("copy", text, name, title=printable(remembered), label=label)
        to_another = button("copy-to", "Copy to ...", name, label=f"Copy to ... another folder: {name}")
        return to_remembered + to_another, self.state(file)

    def state(self, file: dict[str, Any]) -> str:
        """Return the HTML of the state of a file's newest copy; "" without one. file: {"name", "path"}"""
        copy = self._copies.get(str(file["path"]))
        return _state(file["name"], copy) if copy else ""

    def outcome(self, path: Path) -> dict[str, Any] | None:
        """Return {"percent", "path", "problems"} of a file's newest copy; None without one.

        percent: 0 to 100, None when finished; path: of a finished copy, else ""
        """
        copy = self._copies.get(str(path))
        if copy is None:
            return None
        task = copy.task
        succeeded = task.done and task.error is None
        problems = [*task.error.problems] if task.done and task.error else copy.misread if succeeded else []
        return {
            "percent": None if task.done else round(100 * task.progress),
            "path": printable(task.result.path) if succeeded else "",
            "problems": [problem.to_dict() for problem in problems],
        }


def _state(name: str, copy: Copying) -> str:
    """Return the HTML of the state of a copy of file `name`: progress, result or error."""
    task = copy.task
    if not task.done:
        text = f"{task.text.capitalize()}: {task.progress:.0%}" if task.text else "Waiting for another copy"
        stop = button("uncopy", "Cancel", name, label=f"Cancel the copy of {name}")
        return f'<div class="copying" role="status">{progress(text, task.progress)}{stop}</div>'
    close = button("copied", "Close", name, kind="quiet", label=f"Close the message about {name}")
    if task.error is None:
        warning = ""
        if copy.misread:
            label = f"Convert to a plain LoRA: {name}"
            warning = problems_html(copy.misread) + button(CONVERTS, "Convert to a plain LoRA", name, label=label)
        result = f'<span class="good">{_result_html(copy.name, task.result)}</span>'
        return f'<div class="copying" role="status">{result}{warning}{close}</div>'
    if task.token.wanted:
        return f'<div class="copying" role="status"><span>Cancelled. The copy was removed.</span>{close}</div>'
    return f'<div class="copying" role="alert">{problems_html(task.error.problems)}{close}</div>'


def _result_html(name: str, copied: Copied) -> str:
    """Return the HTML of the result of a copy that was to be called `name`."""
    path = f"<code>{esc(printable(copied.path))}</code>"
    path += f" with the preview <code>{esc(printable(copied.preview))}</code>" if copied.preview else ""
    if not copied.new:
        return f"Already there: {path}"
    if copied.path.name != name:
        return f"Copied under another name because a different {esc(name)} is there: {path}"
    return f"Copied: {path}"
