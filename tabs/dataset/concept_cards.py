"""The chosen folders as cards: what lies in each, how often it is shown, and what it sets for itself."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from core.captioning.identifiers import identifier_note
from core.dataset.sources.files import printable
from core.dataset.sources.image_info import Folder
from core.record.units import count
from core.record.workspace import display_path, resolve_path
from core.settings.dataset.concepts import own_settings
from core.settings.dataset.source import Source
from core.settings.job import TrainJob
from core.settings.values import shown_value
from tabs.dataset.concepts import Found
from tabs.form.own_settings import SHARED_NAMES, SOURCE, in_words
from tabs.form.view import FieldView
from tabs.markup import button, choice_list, empty_state, esc, row_of, section

FOLDERS_SHOWN = 12
ClassForm = Callable[[int, Source | None], str]
NONE: Mapping[int, Sequence[str]] = MappingProxyType({})
SHORT_LIST = 3  # of a folder's own settings that are named on its card
HEAD = ("enabled", "role", "folder")  # drawn at the top of a card
OWN = [name for name in Source.__annotations__ if name in SOURCE and name not in HEAD]  # what only a folder has
ON_CARD = [name for name in OWN if SOURCE[name].level == "shown"]
PLAIN = [name for name in OWN if SOURCE[name].level != "shown"]


def cards(
    job: TrainJob,
    entries: Sequence[Source],
    found: Sequence[Found],
    opened: Collection[int],
    thumb_url: Callable[..., str],
    *,
    busy: bool = False,
    proposed: Mapping[int, Sequence[str]] = NONE,
    class_form: ClassForm = lambda number, entry: "",
    undo: str = "",
) -> str:
    """One card a folder.

    opened     whose own settings are unfolded        proposed   rare words for a card's subject
    undo       the buttons that take a change back
    class_form the form that makes regularization images, for a card or (number -1) for a folder that is yet to be
    """
    if not entries:
        return section(
            "Folders", empty_state("No folder selected.", "Enter its path above, browse, or drop images."), undo
        )
    common = common_values(job)
    body = "".join(
        _card(number, entry, common, each, number in opened, thumb_url, busy, proposed.get(number), class_form)
        for number, (entry, each) in enumerate(zip(entries, found, strict=True))
    )
    if all(entry.role != "regularization" for entry in entries):
        body += class_form(-1, None)
    views = sum(each.views for each in found)
    return section("Folders", body, undo + (esc(f"{count(views, 'view')} an epoch") if views else ""))


def common_values(job: TrainJob) -> dict[str, Any]:
    """What holds for all folders that set nothing of their own, by name."""
    groups = {"Images": job.dataset, "Captions": job.captions, "Validation": job.validation}
    return {name: getattr(groups[title], name) for title, names in SHARED_NAMES.items() for name in names}


def _card(
    number: int,
    entry: Source,
    common: dict[str, Any],
    found: Found,
    opened: bool,
    thumb_url: Callable[..., str],
    busy: bool,
    proposed: Sequence[str] | None,
    class_form: ClassForm,
) -> str:
    root = resolve_path(entry.folder)
    name = printable(root.name or entry.folder)
    own = own_settings(entry)
    more = _more(number, entry, common) if opened else ""
    made = class_form(number, entry) if entry.role == "regularization" else ""
    state = ("" if entry.enabled else " is-off") + f" {entry.role}"
    return (
        f'<article class="concept{state}" aria-label="{esc(name)}"{row_of(entry.folder)}>'
        f"{_head(number, entry, found, name, thumb_url, busy)}"
        f'<div class="concept-fields">{_fields(number, entry, found)}</div>'
        f"{_words(number, entry, proposed)}{_inside(found, root)}{made}"
        f"{_more_line(number, entry, name, own, opened, bool(proposed))}{more}</article>"
    )


def _head(number: int, entry: Source, found: Found, name: str, thumb_url: Callable[..., str], busy: bool) -> str:
    shown = display_path(resolve_path(entry.folder))
    image = '<span class="concept-pic"></span>'
    if found.first is not None:
        address = esc(thumb_url(found.first, 128))
        image = f'<img class="concept-pic" src="{address}" alt="" loading="lazy" decoding="async">'
    ticked = " checked" if entry.enabled else ""
    use = (
        f'<label class="switch"><input type="checkbox" data-act="own" data-arg="{number}:enabled"{ticked} '
        f'aria-label="Use {esc(name)}"><b>{esc(name)}</b></label>'
    )
    roles = [(SOURCE["role"].label(role), role) for role in SOURCE["role"].choices]
    role = choice_list("own", roles, entry.role, f"Role of {name}", arg=f"{number}:role")
    return (
        f'<div class="concept-head">{image}<div class="who">{use}'
        f'<span class="hint path" title="{esc(shown)}">{esc(shown)}</span>'
        f'<span class="counted">{esc(_counted(entry, found, busy))}</span></div>'
        f'<div class="does">{role}</div></div>'
    )


def _counted(entry: Source, found: Found, busy: bool) -> str:
    """What lies in it and how much of an epoch it is."""
    if not entry.enabled:
        return "left out"
    if not found.folders:
        return "" if busy else "no images"
    images = count(found.images, "image")
    if entry.role == "validation":
        return f"{images}, validation only"
    if entry.samples_per_epoch:
        return f"{images}, {count(entry.samples_per_epoch, 'view')} an epoch"
    if entry.role == "regularization":
        return f"{images}, as many views as the training images"
    return f"{images}, {count(found.views, 'view')} an epoch"


def _fields(number: int, entry: Source, found: Found) -> str:
    repeats, words = {folder.repeats for folder in found.folders}, {folder.words for folder in found.folders}
    repeated = str(next(iter(repeats))) if len(repeats) == 1 else ("by name" if repeats else "1")
    said = (next(iter(words)) or "none") if len(words) == 1 else ("by name" if words else "none")
    both = " ".join(word for word in (entry.identifier, entry.class_word) if word)
    hints = {"num_repeats": repeated, "class_tokens": both or said}
    return "".join(_own(number, entry, name, hints.get(name, "")) for name in ON_CARD if _holds(name, entry.role))


def _holds(name: str, role: str) -> bool:
    """Whether a folder of this role uses the setting: how often a validation folder is shown is nothing to ask."""
    return not SOURCE[name].only or role in SOURCE[name].only


def _words(number: int, entry: Source, proposed: Sequence[str] | None) -> str:
    """What the identifier is to the model, and rare words to choose from."""
    note = _note_on(entry.identifier) if entry.identifier and entry.role != "validation" else ""
    said = f'<span class="hint">{esc(note)}</span>' if note else ""
    words = "".join(button("word", word, f"{number}:{word}", label=f"Use {word}") for word in proposed or ())
    offers = f'<span class="offers">{words}</span>' if words else ""
    return f'<div class="word-note">{said}{offers}</div>' if said or offers else ""


@lru_cache(maxsize=500)
def _note_on(word: str) -> str:
    return identifier_note(word)


def _inside(found: Found, root: Any) -> str:
    """The folders below it that bring repeats or words of their own."""
    inner = [folder for folder in found.folders if folder.path != root]
    if not inner:
        return ""
    rows = "".join(_inner(folder) for folder in inner[:FOLDERS_SHOWN])
    if len(inner) > FOLDERS_SHOWN:
        rows += f"<tr><td colspan='4' class='hint'>and {count(len(inner) - FOLDERS_SHOWN, 'more folder')}</td></tr>"
    head = "<tr><th>Inside</th><th class='num'>Images</th><th class='num'>Repeats</th><th>Class tokens</th></tr>"
    return f"<table>{head}{rows}</table>"


def _inner(folder: Folder) -> str:
    words = esc(folder.words) or "<span class='hint'>none</span>"
    name, number = esc(printable(folder.path.name)), f"{folder.images:,}"
    return f"<tr><td>{name}</td><td class='num'>{number}</td><td class='num'>{folder.repeats}</td><td>{words}</td></tr>"


def _more_line(number: int, entry: Source, name: str, own: dict[str, Any], opened: bool, proposed: bool) -> str:
    """The button that unfolds, with what is set behind it; what else can be done with the card."""
    names = [*own, *(name for name in PLAIN if getattr(entry, name) != SOURCE[name].default)]
    said = "same as all folders"
    if names:
        said = f"{count(len(names), 'setting')} set here: {in_words(names[:SHORT_LIST], entry)}"
        said += " ..." if len(names) > SHORT_LIST else ""
    words = "Less" if opened else "More"
    taken_off = "Removes it from this list; its files are kept"
    remove = button("remove", "Remove", number, kind="quiet", title=taken_off, label=f"Remove {name}")
    ask = "Other identifiers" if proposed else "Suggest rare words"
    propose = button("propose", ask, number, kind="quiet") if entry.role == "train" else ""
    unfold = (
        f'<button type="button" class="btn quiet" data-act="more" data-arg="{number}" '
        f'aria-expanded="{"true" if opened else "false"}">{words}</button>'
    )
    return f'<div class="more-line">{unfold}<span class="hint" title="{esc(said)}">{esc(said)}</span>{propose}{remove}</div>'


def _more(number: int, entry: Source, common: dict[str, Any]) -> str:
    """Every setting that a folder can have of its own; an empty field shows what holds without it."""
    blocks = ""
    for title, names in SHARED_NAMES.items():
        drawn = "".join(
            _own(number, entry, name, shown_value(SOURCE[name], common[name]), shared=True) for name in names
        )
        blocks += f"<h4>{esc(title)}</h4><div class='concept-fields'>{drawn}</div>"
    plain = "".join(_own(number, entry, name) for name in PLAIN if _holds(name, entry.role))
    said = "Clears this folder's own image, caption and validation settings"
    clear = button("clear", "Use common settings", number, title=said, disabled=not own_settings(entry))
    return (
        f'<div class="concept-more">{blocks}<h4>This folder</h4><div class="concept-fields">{plain}</div>'
        f'<div class="class-line">{clear}</div></div>'
    )


def _own(number: int, entry: Source, name: str, empty: str = "", shared: bool = False) -> str:
    """The field of a folder's setting. empty: what holds while it is, for this folder or, where it is shared, for all"""
    declared, value = SOURCE[name], getattr(entry, name)
    empty = empty or declared.hint or ("none" if declared.optional else "")
    changed = declared.optional and value is not None
    return FieldView(declared, value, "own", f"{number}:{name}", empty=empty, shared=shared, changed=changed).line()
