"""Lists of model files for fields: facts of each file, whether it fits the field, and the check of a chosen file."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.control.kinds import check_control
from core.dataset.sources.files import name_key
from core.families.locate import FAMILIES, GENERATED, check_family
from core.formats.detect import ModelKind, identify
from core.generation.model.embeddings import check_embedding
from core.generation.model.index import FileFacts, facts_of_file
from core.generation.model.library import KINDS, find_file, portable_name
from core.generation.model.other_files import check_refiner, check_upscaler
from core.networks.files import check_lora
from core.record.file_titles import WEIGHTS, file_stem
from core.record.problems import Problem, ProblemsError
from core.record.run_folder import run_of
from core.record.units import count
from core.record.workspace import display_path
from core.settings.base import Declared
from tabs.form.form_page import Form, FormPage
from tabs.form.lora_card import LORAS, RUNS, card, card_line, copy_button, lazy_strip, step_buttons
from tabs.form.lora_steps import Lora, brief, checkpoints, lora_of, one_for_each_run
from tabs.form.model_lists import REFRESH_SECONDS, Listed, badges, model_lists, with_starter
from tabs.form.project import FIELDS
from tabs.form.view import TRAIN
from tabs.markup import esc, middle, short

MAX_ROWS = 60  # files shown at once; the search finds the others
GENERATE = "gen"  # id of Generate's form
MOST_PATH = 4096  # characters
BASE = "base_model"  # field of the base model
UNKNOWN = "other"
WAIT_SECONDS = 0.3  # for which a response waits for the reading of the folders


# -- whether a file fits


def check_choice(kind: ModelKind, path: Path, holds: Sequence[str], family: str, base: bool = False) -> None:
    """Raise ProblemsError if a file does not fit a field.

    kind     of the file, from its header
    holds    kinds of files that the field takes
    family   required family; "" for any
    base     whether it is the field of the base model
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
    """Return the reason why a file does not fit a field; "" if it fits. Arguments as in `check_choice`."""
    if facts.problem:
        return f"unreadable: {short(facts.problem, 100)}"
    try:
        check_choice(facts.as_kind(), path, holds, family, base)
    except ProblemsError as error:
        return error.problems[0].what.removeprefix(f"{path.name} ")
    return ""


def readable(name: str, page: FormPage) -> Path | None:
    """Return the path of the file or folder that a field's value names; None if it is missing or the page may not read it."""
    path = find_file(name, page.workspace)
    return path if path is not None and page.roots.holds(path) else None


def file_named(
    name: str, page: FormPage, family: str, holds: Sequence[str] = ("lora",), *, steps: bool = True
) -> tuple[Lora, FileFacts | None, str]:
    """Return (model file, its facts, reason why it cannot be used or "") for the value `name` of a setting.

    facts            None for a file that is missing or that the page may not read
    steps            whether the other checkpoints of its run are read
    family, holds    as in `check_choice`
    """
    path = readable(name, page)
    if path is None:
        return Lora(Path(name), file_stem(name)), None, "is not on this machine"
    facts = facts_of_file(path)
    lora = lora_of(page, path) if steps else brief(path, page.workspace)
    return lora, facts, misfit(facts, path, holds, family)


def is_path(name: str) -> bool:
    """Whether a name can only be the path of a file on this machine, not a bare name or a Hub id."""
    inside = name.startswith(("models/", "outputs/", "/", ".", "~"))
    return inside or "\\" in name or ("/" in name and name.casefold().endswith(WEIGHTS))


# -- the rows


def rows(
    files: Sequence[Listed],
    page: FormPage,
    reason: Callable[[Listed], str],
    attributes: Callable[[Path], str],
    form: str,
    verb: str = "Choose",
) -> str:
    """Return HTML of a card for each run or single file, fitting ones first, at most MAX_ROWS.

    reason      (file) -> why it does not fit, or ""
    attributes  (path) -> attributes of the button that chooses the file
    form        id of the form or list that the cards are for
    verb        what the button does, for screen readers
    """
    entries = [(each, number, reason(each)) for each, number in one_for_each_run(files, page.workspace)]
    visible = sorted(entries, key=lambda entry: bool(entry[2]))[:MAX_ROWS]  # stable
    more = f'<li class="hint">{len(entries) - MAX_ROWS:,} more: search for them</li>' if len(entries) > MAX_ROWS else ""
    return "".join(_row(*entry, page, attributes(entry[0].path), form, verb) for entry in visible) + more


def _row(file: Listed, number: int, reason: str, page: FormPage, attributes: str, form: str, verb: str) -> str:
    """Return HTML of a card. number: of checkpoints of its run; reason: why the file does not fit, or ""; others as in `rows`."""
    lora, badge_texts = brief(file.path, page.workspace), badges(file.facts)
    about = esc(", ".join((*badge_texts, *([reason] if reason else []))))
    aria = f'aria-label="{esc(verb)} {esc(lora.name)}" aria-description="{about}"'
    choose = f'<button type="button" class="choose" {attributes} {aria}><b>{middle(lora.name)}</b></button>'
    triggers = esc(", ".join(file.facts.words))
    saved = count(number, "checkpoint") if number > 1 else ""
    marks = lora.checkpoint.marks if lora.checkpoint else ()
    return card(
        lora,
        page.thumb_url,
        first_line=choose,
        second_line=f'<div class="strip badges">{_badges((*badge_texts, *marks))}</div>',
        third_line=f'<small class="why">{esc(reason)}</small>'
        if reason
        else f'<small title="{triggers}">{triggers}</small>',
        about=saved if lora.checkpoint else file.label.rpartition("/")[0].strip(),
        steps=lazy_strip(lora, form),
        attributes=' class="misfit"' if reason else "",
    )


def _badges(texts: Iterable[str]) -> str:
    """Return HTML of texts as badges."""
    return "".join(f'<span class="badge">{esc(text)}</span>' for text in texts)


def matching(files: Sequence[Listed], query: str) -> list[Listed]:
    """Return the files that have all words of the query in label, badges or trigger words; those with all in the label first."""
    words = name_key(query).split()
    texts = (name_key(" ".join((each.label, *badges(each.facts), *each.facts.words))) for each in files)
    matches = [each for each, text in zip(files, texts, strict=True) if all(word in text for word in words)]
    return sorted(matches, key=lambda each: not all(word in name_key(each.label) for word in words))


# -- the answers


class Picker:
    """Answers requests of assets/picker.js, which identify a field by the form's id and the field's name."""

    def __init__(self, page: FormPage):
        self.page = page
        self.forms: dict[str, Form] = {}  # by id

    def answer(self, body: dict[str, Any]) -> dict[str, Any]:
        """Answer a request {"form", "field", "query"}: by default with the list for the field (`_list`).

        With "chosen": {"problems"} of that choice. With "steps", a file: {"steps": HTML of its run's checkpoints}. With "faces", values of
        fields: {"faces": {value: HTML of name and image}}.
        """
        form, field = str(body.get("form")), str(body.get("field"))
        if "steps" in body:
            return {"steps": self._steps(body["steps"], form)}
        if isinstance(body.get("faces"), list):
            return {"faces": {str(each): self._face(each) for each in body["faces"][:MAX_ROWS]}}
        fields = FIELDS if form == TRAIN else self.forms[form].known if form in self.forms else {}
        entry = fields.get(field)
        if entry is None or not entry.holds:
            return {"rows": "", "count": 0, "reading": False}
        family = self._family(form, entry)
        if "chosen" in body:
            return {"problems": [each.to_dict() for each in self._problems(str(body["chosen"]), entry, family)]}
        return self._list(form, entry, family, str(body.get("query", ""))[:100])

    def _list(self, form: str, entry: Declared, family: str, query: str) -> dict[str, Any]:
        """Return {"rows": HTML, "count": number of all files, "reading": whether the folders are being read, "where": advice on where such
        files come from} for a field.
        family: required; "" for any."""
        lists = model_lists(self.page.workspace)
        lists.refresh(WAIT_SECONDS, REFRESH_SECONDS)
        files = lists.of(entry.holds)
        files = with_starter(files) if "checkpoint" in entry.holds else files

        def reason(each: Listed) -> str:
            return misfit(each.facts, each.path, entry.holds, family, entry.name == BASE)

        matches = matching(files, query)
        html = rows(matches, self.page, reason, lambda path: self.chooses(path, form), form)
        advice = next((KINDS[kind].none for kind in entry.holds if kind in KINDS), "")
        return {"rows": html, "count": len(files), "reading": lists.reading, "where": advice}

    def chooses(self, path: Path, form: str) -> str:
        """Return the attributes of the button that chooses a file: its value for a field, an act for Generate's LoRAs and for Runs."""
        run = run_of(path, self.page.workspace.runs)
        if form == RUNS and run is not None:
            return f'data-act="draw" data-arg="{esc(f"{run.name}/{path.name}")}"'
        if form == LORAS:
            return f'data-act="add" data-arg="{esc(portable_name(path, self.page.workspace))}"'
        value = portable_name(path, self.page.workspace) if form == GENERATE else display_path(path)
        return f'data-value="{esc(value)}"'

    def _steps(self, text: Any, form: str) -> str:
        """Return HTML of the checkpoints of the run that saved a file, and of a button that copies the file's path."""
        path = readable(str(text)[:MOST_PATH], self.page)
        if path is None:
            return '<li class="hint">This file is not on this machine.</li>'
        steps = checkpoints(self.page, path)
        heading = '<li class="hint">Generate with</li>' if form == RUNS else ""
        return (
            heading
            + step_buttons(steps, path, lambda each: self.chooses(each.path, form), self.page.thumb_url)
            + f"<li>{copy_button(path)}</li>"
        )

    def _face(self, text: Any) -> str:
        """Return HTML of the model file or folder that a field's value names; "" if it is none."""
        path = readable(str(text)[:MOST_PATH], self.page)
        if path is None or facts_of_file(path).problem:
            return ""
        return card_line(brief(path, self.page.workspace), self.page.thumb_url)

    def _problems(self, chosen: str, entry: Declared, family: str) -> list[Problem]:
        """Return the reasons why a chosen file does not fit the field; [] for a text that is not a readable file."""
        path = readable(chosen, self.page)
        if path is None:
            return []  # a text that is not a file is checked when the field is read
        try:
            check_choice(identify(path), path, entry.holds, family, entry.name == BASE)
        except ProblemsError as error:
            return [replace(each, where=entry.title) for each in error.problems]
        return []

    def _family(self, form: str, entry: Declared) -> str:
        """Return the family that a file for this field must have; "" for any."""
        if form != TRAIN:
            return self.forms[form].family_for(entry.name)
        model = self.page.project.job.model
        stated = model.family if model.family in FAMILIES else ""
        return stated if stated or entry.name == BASE else family_of_file(model.base_model, self.page)


def family_of_file(name: str, page: FormPage) -> str:
    """Return the family of a model file or folder, from the index; "" if unknown."""
    path = readable(name, page)
    return (facts_of_file(path).family or "") if path is not None else ""
