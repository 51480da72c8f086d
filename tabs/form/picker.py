"""The list of model files for a field: facts of each file, whether it fits the chosen model, and the check of a choice."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from core.control.kinds import check_control
from core.families.locate import FAMILIES, GENERATED, check_family
from core.formats.detect import ModelKind, identify
from core.generation.model.embeddings import check_embedding
from core.generation.model.index import FileFacts, facts_of_file, preview_of
from core.generation.model.library import find_file
from core.generation.model.other_files import check_refiner, check_upscaler
from core.networks.files import check_lora
from core.record.problems import Problem, ProblemsError
from core.record.workspace import Workspace
from core.settings.base import Declared
from core.settings.presets.files import PresetStore
from tabs.form.model_lists import REFRESH_SECONDS, Listed, badges, model_lists, with_starter
from tabs.form.project import FIELDS, Project
from tabs.form.view import TRAIN
from tabs.markup import esc, short
from tabs.roots import Roots

MAX_ROWS = 60  # files shown at once; the search finds the others
GENERATE = "gen"  # id of Generate's form
BASE = "base_model"  # field of the base model
UNKNOWN = "other"
WAIT_SECONDS = 0.3  # for which a response waits for the reading of the folders


class Form(Protocol):
    """A form with fields that name model files: its settings by name, and the model family that a field requires."""

    known: Mapping[str, Declared]

    def family_for(self, name: str) -> str: ...


class FormPage(Protocol):
    """The attributes of Page that forms use."""

    workspace: Workspace
    project: Project
    presets: PresetStore
    roots: Roots
    picker: Picker
    engine: Any

    def thumb_url(self, path: str | os.PathLike, size: int = 256) -> str: ...

    def say(self, kind: str, text: str = "", **more: Any) -> None: ...


# -- whether a file fits


def check_choice(kind: ModelKind, path: Path, holds: Sequence[str], family: str, base: bool = False) -> None:
    """Raise ProblemsError if a file does not fit a field.

    kind     of the file, from its header      holds   kinds of files that the field takes
    family   of the model, "" if it is unknown or does not matter      base   the field is the base model
    """
    match tuple(holds):
        case ("lora",):
            check_lora(kind, path, family or kind.family or UNKNOWN)
        case ("embedding",):
            check_embedding(kind, path, family or kind.family or UNKNOWN)
        case ("upscaler",):
            check_upscaler(kind, path, family)
        case ("controlnet", *_) | ("controlnet_lllite",):
            check_control(kind, path, holds, family)
        case ("refiner",):
            check_refiner(kind, path)
        case ("checkpoint",) if base or family:
            check_family(kind, path, family or "auto", GENERATED if base else [str(kind.variant)])


def misfit(facts: FileFacts, path: Path, holds: Sequence[str], family: str, base: bool = False) -> str:
    """The reason why a file of the index cannot be chosen; "" if it can. Arguments: see `check_choice`"""
    if facts.problem:
        return f"unreadable: {short(facts.problem, 100)}"
    try:
        check_choice(facts.as_kind(), path, holds, family, base)
    except ProblemsError as error:
        return error.problems[0].what.removeprefix(f"{path.name} ")
    return ""


# -- the rows


def row(each: Listed, page: FormPage, reason: str, attributes: str, verb: str = "") -> str:
    """HTML of a file as a button with its preview and badges; dimmed if there is a reason why it does not fit.

    verb: what the button does, for screen readers
    """
    marks = "".join(f'<span class="badge">{esc(text)}</span>' for text in badges(each.facts))
    note = f'<small class="why">{esc(reason)}</small>' if reason else ""
    title = f' title="{esc("Trigger words: " + ", ".join(each.facts.words))}"' if each.facts.words else ""
    does = f'<span class="unseen">{esc(verb)} </span>' if verb else ""
    return (
        f'<li><button type="button" class="btn row{" misfit" if reason else ""}" {attributes}{title}>{does}'
        f"{thumb(preview_of(each.path, page.workspace), page.thumb_url)}"
        f'<span class="name">{esc(each.label)}{note}</span><span class="badges">{marks}</span></button></li>'
    )


def thumb(preview: Path | None, thumb_url: Callable[..., str]) -> str:
    image = f'<img src="{esc(thumb_url(preview, 96))}" alt="" loading="lazy">' if preview is not None else ""
    return f'<span class="lora-thumb">{image}</span>'


def rows(
    files: Sequence[Listed],
    page: FormPage,
    reason: Callable[[Listed], str],
    attributes: Callable[[Listed], str],
    verb: str = "",
) -> str:
    """HTML of the first MAX_ROWS files, those that fit first. reason: of a file, why it does not fit, or \"\""""
    reasons = [(each, reason(each)) for each in files]
    shown = sorted(reasons, key=lambda pair: bool(pair[1]))[:MAX_ROWS]  # stable
    more = f'<li class="hint">{len(files) - MAX_ROWS:,} more: search for them</li>' if len(files) > MAX_ROWS else ""
    return "".join(row(each, page, why, attributes(each), verb) for each, why in shown) + more


def matching(files: Sequence[Listed], query: str) -> list[Listed]:
    """The files with all words of the query in their label, badges or trigger words."""
    words = query.lower().split()
    texts = (" ".join((each.label, *badges(each.facts), *each.facts.words)).lower() for each in files)
    return [each for each, text in zip(files, texts, strict=True) if all(word in text for word in words)]


# -- the answers


class Picker:
    """Answers the requests of assets/picker.js, which name a field by form and name."""

    def __init__(self, page: FormPage):
        self.page = page
        self.forms: dict[str, Form] = {}  # by id

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """The list for a field {"form", "field", "query"}; with "chosen", the problems of that choice."""
        form, field = str(body.get("form")), str(body.get("field"))
        known = FIELDS if form == TRAIN else self.forms[form].known if form in self.forms else {}
        entry = known.get(field)
        if entry is None or not entry.holds:
            return {"rows": "", "count": 0, "reading": False}
        family = self._family(form, entry)
        if "chosen" in body:
            return {"problems": [each.to_dict() for each in self._problems(str(body["chosen"]), entry, family)]}
        return self._list(form, entry, family, str(body.get("query", ""))[:100])

    def _list(self, form: str, entry: Declared, family: str, query: str) -> dict[str, Any]:
        lists = model_lists(self.page.workspace)
        lists.refresh(WAIT_SECONDS, REFRESH_SECONDS)
        files = lists.of(entry.holds)
        files = with_starter(files) if "checkpoint" in entry.holds else files
        value_of = (lambda each: each.name) if form == GENERATE else (lambda each: each.value)

        def reason(each: Listed) -> str:
            return misfit(each.facts, each.path, entry.holds, family, entry.name == BASE)

        html = rows(matching(files, query), self.page, reason, lambda each: f'data-value="{esc(value_of(each))}"')
        return {"rows": html, "count": len(files), "reading": lists.reading}

    def _problems(self, chosen: str, entry: Declared, family: str) -> list[Problem]:
        path = find_file(chosen, self.page.workspace)
        if path is None or not self.page.roots.holds(path):
            return []  # a text that is not a file is checked when the field is read
        try:
            check_choice(identify(path), path, entry.holds, family, entry.name == BASE)
        except ProblemsError as error:
            return [replace(each, where=entry.title) for each in error.problems]
        return []

    def _family(self, form: str, entry: Declared) -> str:
        """The family that a file for this field must have; "" for any."""
        if form != TRAIN:
            return self.forms[form].family_for(entry.name)
        model = self.page.project.job.model
        stated = model.family if model.family in FAMILIES else ""
        return stated if stated or entry.name == BASE else family_of_file(model.base_model, self.page)


def family_of_file(name: str, page: FormPage) -> str:
    """The family of a model file or folder, from the index; "" if unknown."""
    path = find_file(name, page.workspace)
    return (facts_of_file(path).family or "") if path is not None and page.roots.holds(path) else ""
