"""Import of other programs' settings into the form, with a report on each; export for sd-scripts and kohya_ss."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.dataset.captions.encodings import decode_text
from core.imports.dataset_export import dataset_text, without_passed
from core.imports.projects.export import export_project, with_prediction
from core.imports.projects.importers import adapted_to_machine, import_project, is_config, main_file
from core.imports.projects.kohya_export import export_preset
from core.imports.projects.missing import SOURCES, missing_paths, nearby, nearby_folders
from core.imports.projects.report import FOLDED, IMPORTED, TITLES, ChoiceNeeded, Entry, Import
from core.record.bounded_json import json_or_none
from core.record.problems import Problem, ProblemsError, limited, whole_text
from core.record.regular import read_regular
from core.record.workspace import LONGEST_PASTED, PROJECT, pasted_path, resolve_path
from core.settings.job import TrainJob
from core.settings.presets.files import to_values
from core.settings.presets.foreign import foreign_problem, toml_values
from core.settings.values import shown_value
from tabs.form.presets import MAX_BYTES, Done
from tabs.form.project import FIELDS, OldRevision, Project
from tabs.form.view import browses
from tabs.markup import short
from tabs.server.browsers import Browser
from tabs.train.method_needs import with_family

if TYPE_CHECKING:
    from tabs.context import Page

MOST_ROWS, MOST_LETTERS = 200, 200  # of a kind in a report, and of a name or key
MOST_FILES = 20  # opened together
WEIGHTS, MOST_BYTES = ".safetensors", 1 << 32  # of a LoRA, of which the browser sends the header
# One path of a file of settings, and no command
PATH = re.compile(
    r"(?:/|~|\\|\.{1,2}[/\\]|[A-Za-z]:)(?:(?! -).)*\.(?:json|toml|ya?ml|sh|bat|ps1|ipynb|txt|env|safetensors)",
    re.IGNORECASE,
)
STOP = re.compile(r'"data_offsets":\s*\[\d{1,15},\s*(\d{1,15})\]')  # where a tensor ends


def open_text(page: Page, data: dict[str, Any], browser: Browser) -> None:
    """Load files or pasted text into the form: a preset, or another program's settings. Raises ProblemsError.

    data: {"text", "file": name or "", "more": [{"text", "file"}] of files that it may name, "choice", "token"}. An ambiguous text changes
    nothing: its choices are shown in `browser`, as are the problems of one that is refused.
    """
    answer: dict[str, Any] = {"token": str(data.get("token"))[:MOST_LETTERS], "choices": (), "problems": []}
    try:
        _open(page, data, browser, answer["token"])
    except ChoiceNeeded as error:
        answer["choices"] = error.choices[:MOST_ROWS]
    except ProblemsError as error:
        answer["problems"] = [problem.to_dict() for problem in error.problems]
        raise
    except OldRevision:
        answer["problems"] = [Problem("The form was changed in another browser", "", "import it again").to_dict()]
        raise
    finally:
        browser.opened = answer


def _open(page: Page, data: dict[str, Any], browser: Browser, token: str) -> None:
    """Load files or pasted text into the form, as `open_text`. Raises ProblemsError, ChoiceNeeded for an ambiguous text."""
    more = data.get("more")
    sent = [data, *(more if isinstance(more, list) else [])]
    named = [_named_text(each) for each in sent if isinstance(each, dict)]
    texts = dict(named)
    if len(texts) < len(named):
        twice = next(name for name, count in Counter(name for name, _ in named).items() if count > 1)
        raise ProblemsError.one(
            f"Two files are named {twice}", "", "open those that belong together", "import.same-name"
        )
    if len(texts) > MOST_FILES:
        fix = f"open the settings and the files that they name, at most {MOST_FILES}"
        raise ProblemsError.one(f"These are {len(texts)} files", "", fix, "import.too-many-files")
    name = main_file(texts)
    text, unused, lacks = texts.pop(name), tuple(texts), False
    path = _pasted_file(page, text) if not name else None
    if path is not None:
        name = path.name
        text = "" if name.lower().endswith(WEIGHTS) else decode_text(read_regular(path, MAX_BYTES)).text
    if _is_preset(text):
        result = page.project.take_file(name or "pasted.json", text)
    else:
        with _stored(page, texts) as files:
            result, imported = _import_text(page, name, path or text, str(data.get("choice") or ""), token, files)
        unused, lacks = imported.unused, bool(imported.absent)
    if result:
        fixes: dict[str, list[str]] = {}
        for each in unused:
            fixes.setdefault(_unused_fix(each, texts[each], name, lacks), []).append(each)
        notes = [
            Problem("Not used", ", ".join(each), fix, "warning", code="import.unused-file")
            for fix, each in fixes.items()
        ]
        page.browsers.say(browser, "done", result.text, problems=[*result.problems, *notes], undo=result.undo)


def _unused_fix(name: str, text: str, main: str, lacks: bool) -> str:
    """Return what to do with a file that the imported file `main` does not name; "" for nothing.
    lacks: whether a file that it names is missing"""
    if "\0" in text:
        return "leave it out: settings are read from text files only"
    # Of texts of prompts and lists, which settings name, some look like a command or a config.
    is_named = name.lower().endswith(".txt") or isinstance(json_or_none(text), list)
    if _is_preset(text) or (not is_named and is_config(name, text)):
        return f"open each alone: it has settings of its own, and those of {main} were imported"
    if lacks:
        return f"rename each as {main} names it, and open all together again"
    foreign = foreign_problem(json_or_none(text) or toml_values(text), name)
    return foreign.fix if foreign is not None and foreign.code == "preset.is-dataset-config" else ""


def _pasted_file(page: Page, text: str) -> Path | None:
    """Return the file whose path was pasted; None for other texts, and on a shared page. Raises ProblemsError for the path of a file of
    settings that does not exist."""
    line = "" if page.shared or len(text) > LONGEST_PASTED else pasted_path(text)
    with suppress(OSError, ValueError, RuntimeError):
        if line and resolve_path(line).is_file():
            return resolve_path(line)
    if PATH.fullmatch(line):
        raise ProblemsError.one("There is no such file where Atelier runs", line, "check the path", "import.no-file")
    return None


def _named_text(sent: dict[str, Any]) -> tuple[str, str]:
    """Return (name, text) of a file that a browser sent."""
    return Path(str(sent.get("file") or "")).name[:MOST_LETTERS], whole_text(str(sent.get("text") or ""))


@contextmanager
def _stored(page: Page, texts: dict[str, str]) -> Iterator[dict[str, Path]]:
    """Context with {name: path} of files that were sent, in a folder of this person's that is deleted afterwards."""
    page.workspace.personal_private.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="import-", dir=page.workspace.personal_private) as folder:
        files = {}
        for number, (name, text) in enumerate(texts.items()):
            ending = re.search(r"\.\w{1,10}$", name)
            files[name] = Path(folder) / f"{number}{ending[0] if ending else ''}"
            files[name].write_text(text, encoding="utf-8", newline="")
        try:
            yield files
        except ProblemsError as error:
            error.problems[:] = _by_name(error.problems, files)
            raise


def _by_name(problems: list[Problem], files: dict[str, Path]) -> list[Problem]:
    """Return the problems with the name of a file that was sent in place of its path. files: {name: path}"""
    for name, path in files.items():
        problems = [replace(each, where=each.where.replace(str(path), name)) for each in problems]
    return problems


def _is_preset(text: str) -> bool:
    """Return whether a text is a preset of Atelier."""
    value = json_or_none(text) if len(text) <= MAX_BYTES and text.lstrip("\ufeff \t\r\n").startswith("{") else None
    return isinstance(value, dict) and "schema_version" in value


def _import_text(
    page: Page, name: str, source: str | Path, choice: str, token: str, files: dict[str, Path]
) -> tuple[Done, Import]:
    """Fill in the form from another program's settings; return (the message, the import).

    On a shared page only those of `files` are read that these settings name.

    source: text, or path on this machine
    name: of the file; choice: which of several jobs to import; token: of the request; files: {name: path} that were sent with it
    """
    if isinstance(source, Path):
        imported = import_project(source, name=name, choice=choice, files=files)
    elif name.lower().endswith(WEIGHTS):
        imported = _import_header(source, name, page.workspace.personal_private, files)
    else:
        folder = None if page.shared else PROJECT
        imported = import_project(source, name=name, folder=folder, choice=choice, files=files)
    imported = adapted_to_machine(imported)
    imported.problems = _by_name(imported.problems, files)
    details = {"token": token, "description": imported.description, "report": report_of(imported, page)}
    title = name or imported.title
    done = page.project.take_import(imported.job, title, f"{title} imported: {imported.summary}.", details)
    return done, imported


def _import_header(header: str, name: str, folder: Path, files: dict[str, Path]) -> Import:
    """Import the training settings in a LoRA file's metadata. header: its safetensors header as JSON text

    The browser sends only the header, so the tensors are replaced by a sparse file in `folder`. Raises ProblemsError.
    """
    data, tensor_ends = header.encode(), [int(stop) for stop in STOP.findall(header)]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="import-", dir=folder) as folder_name:
        path = Path(folder_name) / f"header{WEIGHTS}"
        with path.open("wb") as file:
            file.write(len(data).to_bytes(8, "little") + data)
            file.truncate(file.tell() + min(max(tensor_ends, default=0), MOST_BYTES))
        try:
            return import_project(path, name=name, reads=False, files=files)
        except ProblemsError as error:
            raise ProblemsError(replace(each, where=name) for each in error.problems) from None


# -- the report


def origin(project: Project) -> dict[str, Any] | None:
    """Return {"token": of the request, "about": title, "folders"} of the import that the form is based on; None without one."""
    if not project.imported:
        return None
    return {
        "token": str(project.imported.get("token", "")),
        "about": project.description.partition("\n")[0],
        "folders": [each.folder for each in project.job.dataset.sources],
    }


def report(project: Project) -> dict[str, Any]:
    """Return the report (`report_of`) of the import that the form is based on; for a preset saved from an import, the report in its
    description."""
    return project.imported.get("report") or _stored_report(project.description)


def report_of(imported: Import, page: Page) -> dict[str, Any]:
    """Return the report of an import as JSON values.

    "title", "summary"     texts
    "parts"                [{"kind", "title", "folded", "rows": [`_row`], "more": number of rows left out}]
    "missing"              [`_missing`]
    "advice"               problems as dicts
    "choices", "choice"    jobs in an ambiguous text, and the imported one
    """

    def exists(path: Path) -> bool:
        return page.roots.holds(path) and path.exists()

    form_job = page.project.job  # of the form that is replaced: its folders exist here
    folder, model = form_job.dataset.folder, form_job.model.base_model
    form_paths = (("dataset.folder", folder), (SOURCES, folder), ("model.base_model", model))
    form_values = {path: text for path, text in form_paths if text and exists(resolve_path(text))}
    sources = [
        each for each in imported.job.dataset.sources if each.role == "train" and not each.diff_output_preservation
    ]
    train_folders = [each.folder for each in sources]
    if len(train_folders) > 1:
        form_values.pop(SOURCES, None)  # it is unclear which of them it replaces
    parents = [resolve_path(each).parent for each in (folder, model) if each]
    missing = list(missing_paths(imported.job, exists))
    own_folders = filter(page.roots.holds, nearby_folders(imported.job, exists))
    folders = [*own_folders, page.workspace.models, *parents, *([PROJECT, PROJECT.parent] if page.roots.local else ())]
    nearby_paths = nearby(missing, folders)

    def suggestions(path: str, text: str) -> list[str]:
        paths = [*map(str, filter(page.roots.holds, nearby_paths[path, text]))]
        is_listed = (
            path not in form_values
            or (path == SOURCES and text not in train_folders)
            or str(resolve_path(form_values[path])) in paths
        )
        return paths if is_listed else [*paths, form_values[path]]

    parts = []
    for kind, title in TITLES.items():
        rows = [_row(entry) for entry in imported.entries(kind)]
        more = max(0, len(rows) - MOST_ROWS)
        parts.append({"kind": kind, "title": title, "folded": kind in FOLDED, "rows": rows[:MOST_ROWS], "more": more})
    return {
        "title": IMPORTED + imported.title,
        "summary": imported.summary,
        "parts": [part for part in parts if part["rows"]],
        "missing": [_missing(path, text, suggestions(path, text)) for path, text in missing],
        "advice": [
            problem.to_dict() for problem in limited(imported.problems) if problem.code != "import.missing-path"
        ],
        "choices": imported.choices[:MOST_ROWS],
        "choice": imported.choice,
    }


def _row(entry: Entry) -> dict[str, Any]:
    """Return {"key", "value": text, "settings": paths, "why": sentence} of a key of the other program's file, for the report."""
    key = "" if entry.key in entry.settings else entry.key  # a default for which the program has no option
    return {"key": key[:MOST_LETTERS], "value": entry.text, "settings": entry.settings, "why": entry.sentence}


def _missing(path: str, text: str, suggestions: list[str]) -> dict[str, Any]:
    """Return {"field": path of the setting, "text": path of the file, "looks": what to browse for ("model", "folder", "any" ...), "nearby":
    suggestions} of a setting whose file is missing on this machine."""
    entry = FIELDS[path]
    browsed = "model" if entry.widget == "model" else "folder" if path == SOURCES else browses(entry) or "any"
    return {"field": path, "text": text, "looks": browsed, "nearby": suggestions}


def replace_folder(page: Page, data: dict[str, Any], browser: Browser) -> None:
    """Replace the dataset folder {"before": path} by {"now": path}. Raises ProblemsError if the new folder is not allowed."""
    before, new_folder = str(data.get("before")), str(page.roots.check(str(data.get("now")), SOURCES))
    sources = map(to_values, page.project.job.dataset.sources)
    changed = [each | ({"folder": new_folder} if each.get("folder") == before else {}) for each in sources]
    page.project.set_values({SOURCES: changed}, did="choosing a folder")


def _stored_report(description: str) -> dict[str, Any]:
    """Return the report, in the form of `report_of`, stored in a preset's description (`Import.description`)."""
    head, *lines = description.split("\n")
    title, _, summary = head.partition(": ")
    parts: list[dict[str, Any]] = []
    for line in lines:
        if line.startswith(" ") and parts:
            parts[-1]["rows"].append({"why": line.strip()})
        elif line.strip():
            parts.append({"kind": "", "title": line.strip().removesuffix(":"), "folded": False, "rows": [], "more": 0})
    return {"title": title, "summary": summary, "parts": parts, "missing": [], "advice": [], "choices": []}


# -- the export


def export_texts(page: Page, program: str = "") -> dict[str, Any]:
    """Return the form as texts for another program. Raises ProblemsError.

    program   "kohya_ss" for {"preset": text, "tab": its tab}, else {"command", "toml"} for sd-scripts
    returns   these and {"name": output name, "dataset": dataset config, "lost": [{"field", "here", "there"}] of settings that cannot be
              expressed, "advice": problems}
    """
    page.project.check()
    job = page.project.job
    job = with_family(job, page.checks.model(job.model.base_model, job.model.family))
    job, open_prediction = with_prediction(job, page.workspace, page.roots.check)
    folders = f"{job.saving.output_name}_dataset.toml" if job.dataset.all_sources() else ""
    texts: dict[str, Any]
    if program == "kohya_ss":
        preset = export_preset(job, folders)
        texts, lost = {"preset": preset.text, "tab": preset.title}, preset.lost
        passed: Mapping[str, Any] = preset.options
    else:
        project = export_project(job).with_dataset_config(folders)
        texts, lost = {"command": project.command, "toml": project.toml}, project.lost
        passed = project.options
    dataset, advice = _dataset(page, job)
    return texts | {
        "name": job.saving.output_name,
        "dataset": dataset,
        "lost": [
            {"field": path}
            | {column: short(shown_value(FIELDS[path], value), 60) for column, value in zip(("here", "there"), pair)}
            for path, pair in lost.items()
        ],
        "advice": [problem.to_dict() for problem in [*open_prediction, *without_passed(advice, passed)]],
    }


def _dataset(page: Page, job: TrainJob) -> tuple[str, list[Problem]]:
    """Return (dataset config of sd-scripts or "", its problems). A shared page reads only allowed folders."""
    try:
        page.roots.admit(job)
        text, _, problems = dataset_text(job, "toml")
    except ProblemsError as error:
        return "", error.problems
    return text, problems
