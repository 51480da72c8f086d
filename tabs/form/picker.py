"""The list of model files next to a field: what each is, which do not fit what is known of the model, and whether one may be chosen."""

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
from tabs.form.model_lists import AGAIN, Listed, badges, model_lists, with_starter
from tabs.form.project import FIELDS, Project
from tabs.form.view import TRAIN
from tabs.markup import esc, short
from tabs.roots import Roots

OFFERED = 60  # files shown at once; the search finds the others
GENERATE = "gen"  # the id of a form
BASE = "base_model"  # the field of the model that is trained or generates
UNKNOWN = "other"
SOON = 0.3  # seconds that an answer waits for a look through the folders


class Form(Protocol):
    """What is asked of a form: its settings by name, and the family that a file for one of them must have."""

    known: Mapping[str, Declared]

    def family_for(self, name: str) -> str: ...


class Around(Protocol):
    """What forms need of the page."""

    workspace: Workspace
    project: Project
    presets: PresetStore
    roots: Roots
    picker: Picker

    def thumb_url(self, path: str | os.PathLike, size: int = 256) -> str: ...

    def say(self, kind: str, text: str = "", **more: Any) -> None: ...


# -- whether a file fits


def check_choice(found: ModelKind, path: Path, holds: Sequence[str], family: str, base: bool = False) -> None:
    """Raises ProblemsError where a file cannot be what a field names, by what is known of its header.

    holds   the kinds that the field takes      family   of the model, "" where it is not known or of no matter
    base    whether it is to be the base model
    """
    match tuple(holds):
        case ("lora",):
            check_lora(found, path, family or found.family or UNKNOWN)
        case ("embedding",):
            check_embedding(found, path, family or found.family or UNKNOWN)
        case ("upscaler",):
            check_upscaler(found, path, family)
        case ("controlnet", *_) | ("controlnet_lllite",):
            check_control(found, path, holds, family)
        case ("refiner",):
            check_refiner(found, path)
        case ("checkpoint",) if base or family:
            check_family(found, path, family or "auto", GENERATED if base else [str(found.variant)])


def misfit(facts: FileFacts, path: Path, holds: Sequence[str], family: str, base: bool = False) -> str:
    """Why a file of the index cannot be chosen; "" if it can. Arguments as of `check_choice`"""
    if facts.problem:
        return f"unreadable: {short(facts.problem, 100)}"
    try:
        check_choice(facts.as_kind(), path, holds, family, base)
    except ProblemsError as error:
        return error.problems[0].what.removeprefix(f"{path.name} ")
    return ""


# -- the rows


def row(each: Listed, page: Around, why: str, about: str, verb: str = "") -> str:
    """One file as a button with its preview and badges; dimmed with the reason where it does not fit.

    about: attributes; verb: what a press does, for screen readers
    """
    marks = "".join(f'<span class="badge">{esc(words)}</span>' for words in badges(each.facts))
    said = f'<small class="why">{esc(why)}</small>' if why else ""
    title = f' title="{esc("Trigger words: " + ", ".join(each.facts.words))}"' if each.facts.words else ""
    does = f'<span class="unseen">{esc(verb)} </span>' if verb else ""
    return (
        f'<li><button type="button" class="btn row{" misfit" if why else ""}" {about}{title}>{does}'
        f"{thumb(preview_of(each.path, page.workspace), page.thumb_url)}"
        f'<span class="name">{esc(each.label)}{said}</span><span class="badges">{marks}</span></button></li>'
    )


def thumb(preview: Path | None, thumb_url: Callable[..., str]) -> str:
    image = f'<img src="{esc(thumb_url(preview, 96))}" alt="" loading="lazy">' if preview is not None else ""
    return f'<span class="lora-thumb">{image}</span>'


def rows(
    found: Sequence[Listed],
    page: Around,
    why: Callable[[Listed], str],
    about: Callable[[Listed], str],
    verb: str = "",
) -> str:
    """The first of them, those that fit before the others."""
    reasons = [(each, why(each)) for each in found]
    shown = sorted(reasons, key=lambda pair: bool(pair[1]))[:OFFERED]  # stable
    more = f'<li class="hint">{len(found) - OFFERED:,} more: search for them</li>' if len(found) > OFFERED else ""
    return "".join(row(each, page, reason, about(each), verb) for each, reason in shown) + more


def matching(found: Sequence[Listed], query: str) -> list[Listed]:
    """Those with all words of the query in their label, badges or trigger words."""
    words = query.lower().split()
    texts = (" ".join((each.label, *badges(each.facts), *each.facts.words)).lower() for each in found)
    return [each for each, text in zip(found, texts, strict=True) if all(word in text for word in words)]


# -- the answers


class Picker:
    """Answers what the page's script asks (assets/picker.js). A field is known by its form and its name."""

    def __init__(self, page: Around):
        self.page = page
        self.forms: dict[str, Form] = {}  # by id

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The list for a field {"form", "field", "query"}, or with "chosen" whether that may be taken: its problems."""
        form, field = str(asked.get("form")), str(asked.get("field"))
        known = FIELDS if form == TRAIN else self.forms[form].known if form in self.forms else {}
        entry = known.get(field)
        if entry is None or not entry.holds:
            return {"rows": "", "count": 0, "reading": False}
        family = self._family(form, entry)
        if "chosen" in asked:
            return {"problems": [each.to_dict() for each in self._refusal(str(asked["chosen"]), entry, family)]}
        return self._list(form, entry, family, str(asked.get("query", ""))[:100])

    def _list(self, form: str, entry: Declared, family: str, query: str) -> dict[str, Any]:
        lists = model_lists(self.page.workspace)
        lists.look(SOON, AGAIN)
        found = lists.of(entry.holds)
        found = with_starter(found) if "checkpoint" in entry.holds else found
        named = (lambda each: each.name) if form == GENERATE else (lambda each: each.value)

        def why(each: Listed) -> str:
            return misfit(each.facts, each.path, entry.holds, family, entry.name == BASE)

        html = rows(matching(found, query), self.page, why, lambda each: f'data-value="{esc(named(each))}"')
        return {"rows": html, "count": len(found), "reading": lists.reading}

    def _refusal(self, chosen: str, entry: Declared, family: str) -> list[Problem]:
        path = find_file(chosen, self.page.workspace)
        if path is None or not self.page.roots.holds(path):
            return []  # what is no file here is judged where the field is read
        try:
            check_choice(identify(path), path, entry.holds, family, entry.name == BASE)
        except ProblemsError as error:
            return [replace(each, where=entry.title) for each in error.problems]
        return []

    def _family(self, form: str, entry: Declared) -> str:
        """The family that a file for this field must have, "" where any will do."""
        if form != TRAIN:
            return self.forms[form].family_for(entry.name)
        model = self.page.project.job.model
        stated = model.family if model.family in FAMILIES else ""
        return stated if stated or entry.name == BASE else family_of_file(model.base_model, self.page)


def family_of_file(name: str, page: Around) -> str:
    """The family of a model file or folder by the index; "" where it is not known."""
    path = find_file(name, page.workspace)
    return (facts_of_file(path).family or "") if path is not None and page.roots.holds(path) else ""
