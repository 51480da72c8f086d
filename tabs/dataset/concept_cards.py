"""HTML of the dataset's folders as cards: image counts, views per epoch, and the settings of each folder."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from core.captioning.identifiers import identifier_note
from core.dataset.sources.files import printable
from core.dataset.sources.image_info import Folder
from core.record.units import count
from core.record.workspace import display_path, resolve_path
from core.settings.dataset.concepts import overridden_settings
from core.settings.dataset.source import Source
from core.settings.job import TrainJob
from core.settings.rules import ineffective
from core.settings.values import shown_value
from tabs.dataset.concepts import FolderContents
from tabs.form.form_values import SHARED_NAMES, SOURCE, settings_text
from tabs.form.view import FieldView
from tabs.markup import breakable, button, choice_list, empty_state, esc, row_of, section

FOLDERS_SHOWN = 12
ClassForm = Callable[[int, Source | None], str]
_cached_note = lru_cache(maxsize=500)(identifier_note)
NONE: Mapping[int, Sequence[str]] = MappingProxyType({})
SHORT_LIST = 3  # of a folder's own settings that are named on its card
HEAD = ("enabled", "role", "folder")  # at the top of a card
FOLDER_ONLY = [name for name in Source.__annotations__ if name in SOURCE and name not in HEAD]
ON_CARD = [name for name in FOLDER_ONLY if SOURCE[name].level == "shown"]
PLAIN = [name for name in FOLDER_ONLY if SOURCE[name].level != "shown"]


def cards(
    job: TrainJob,
    entries: Sequence[Source],
    contents: Sequence[FolderContents],
    opened: Collection[int],
    thumb_url: Callable[..., str],
    *,
    unread: bool = False,
    proposed: Mapping[int, Sequence[str]] = NONE,
    class_form: ClassForm = lambda index, entry: "",
    undo: str = "",
) -> str:
    """Return the HTML of one card per dataset folder.

    entries     the folders
    contents    contents of each folder, in the same order
    opened      indices of the cards whose settings are all shown
    unread      whether the folders' contents are not known yet, so that none is called empty
    proposed    {index of a card: proposed rare tokens}
    class_form  function of (index, folder) that returns the HTML of the form for regularization images; (-1, None) for a new folder
    undo        HTML of the undo buttons
    """
    if not entries:
        return section(
            "Folders", empty_state("No folder selected.", "Enter its path above, browse, or drop images."), undo
        )
    common, ignored = common_values(job), ignored_settings(job) if opened else {}
    body = ""
    for index, (entry, inside) in enumerate(zip(entries, contents, strict=True)):
        root = resolve_path(entry.folder)
        name, tokens = printable(root.name or entry.folder), proposed.get(index)
        more = _all_settings(index, entry, common, ignored) if index in opened else ""
        form = class_form(index, entry) if entry.role == "regularization" else ""
        state = ("" if entry.enabled else " is-off") + f" {entry.role}"
        body += (
            f'<article class="concept{state}" aria-label="{esc(name)}"{row_of(entry.folder)}>'
            f"{_head(index, entry, inside, name, thumb_url, unread)}"
            f'<div class="concept-fields">{_fields(index, entry, inside)}</div>'
            f"{_identifier_line(index, entry, tokens)}{_subfolders(inside, root)}{form}"
            f"{_more_line(index, entry, name, index in opened, bool(tokens))}{more}</article>"
        )
    if all(entry.role != "regularization" for entry in entries):
        body += class_form(-1, None)
    views = sum(each.views for each in contents)
    return section("Folders", body, undo + (esc(f"{count(views, 'view')} an epoch") if views else ""))


def common_values(job: TrainJob) -> dict[str, Any]:
    """Return {name: value for all folders} of the settings that a folder can override."""
    groups = {"Images": job.dataset, "Captions": job.captions, "Validation": job.validation}
    return {name: getattr(groups[title], name) for title, names in SHARED_NAMES.items() for name in names}


def ignored_settings(job: TrainJob) -> dict[str, str]:
    """Return {name: reason} of the settings that a folder can override and that have no effect in any folder."""
    paths = ((path.partition("."), reason) for path, reason in ineffective(job).items())
    return {name: reason for (group, _, name), reason in paths if group in ("dataset", "captions", "validation")}


def _head(
    index: int, entry: Source, contents: FolderContents, name: str, thumb_url: Callable[..., str], unread: bool
) -> str:
    """Return the HTML of a card's top: preview image, switch, path, counts, role. index: of the card; name: title of the folder"""
    path = display_path(resolve_path(entry.folder))
    image = '<span class="concept-pic"></span>'
    if contents.first is not None:
        url = esc(thumb_url(contents.first, 128))
        image = f'<img class="concept-pic" src="{url}" alt="" loading="lazy" decoding="async">'
    checked = " checked" if entry.enabled else ""
    enabled_box = (
        f'<label class="switch"><input type="checkbox" data-act="own" data-arg="{index}:enabled"{checked} '
        f'aria-label="Use {esc(name)}"><b>{esc(name)}</b></label>'
    )
    roles = [(SOURCE["role"].label(role), role) for role in SOURCE["role"].choices]
    role = choice_list("own", roles, entry.role, f"Role of {name}", arg=f"{index}:role")
    return (
        f'<div class="concept-head">{image}<div class="who">{enabled_box}'
        f'<span class="hint path" title="{esc(path)}">{esc(path)}</span>'
        f'<span class="counted">{esc(_views_text(entry, contents, unread))}</span></div>'
        f'<div class="does">{role}</div></div>'
    )


def _views_text(entry: Source, contents: FolderContents, unread: bool) -> str:
    """Return the text with a folder's numbers of images and of views per epoch.

    unread: whether the contents are not known yet
    """
    if not entry.enabled:
        return "left out"
    if not contents.folders:
        return "" if unread else "no images"
    images = count(contents.images, "image")
    if entry.role == "validation":
        return f"{images}, validation only"
    balanced = ", balanced with the training images" if entry.role == "regularization" else ""
    return f"{images}, {count(contents.views, 'view')} an epoch{balanced}"


def _fields(index: int, entry: Source, contents: FolderContents) -> str:
    """Return the HTML of the fields shown on a card. index: of the card"""
    repeats, tokens = {each.repeats for each in contents.folders}, {each.class_tokens for each in contents.folders}
    repeated = str(next(iter(repeats))) if len(repeats) == 1 else ("by name" if repeats else "1")
    class_tokens = (next(iter(tokens)) or "none") if len(tokens) == 1 else ("by name" if tokens else "none")
    tokens_text = " ".join(word for word in (entry.identifier, entry.class_word) if word)
    hints = {"num_repeats": repeated, "class_tokens": tokens_text or class_tokens}
    return "".join(_field(index, entry, name, hints.get(name, "")) for name in ON_CARD if _applies(name, entry.role))


def _applies(name: str, role: str) -> bool:
    """Return whether folders of this role use setting `name`."""
    return not SOURCE[name].only or role in SOURCE[name].only


def _identifier_line(index: int, entry: Source, proposed: Sequence[str] | None) -> str:
    """Return the HTML of advice on the identifier's tokens and of buttons for the proposed rare tokens. index: of the card"""
    note = _cached_note(entry.identifier) if entry.identifier and entry.role != "validation" else ""
    hint = f'<span class="hint">{esc(note)}</span>' if note else ""
    buttons = "".join(button("word", word, f"{index}:{word}", label=f"Use {word}") for word in proposed or ())
    offers = f'<span class="offers">{buttons}</span>' if buttons else ""
    return f'<div class="word-note">{hint}{offers}</div>' if hint or offers else ""


def _subfolders(contents: FolderContents, root: Any) -> str:
    """Return the HTML of the table of subfolders with their repeats and class tokens; "" without any. root: path of the folder"""
    inner = [folder for folder in contents.folders if folder.path != root]
    if not inner:
        return ""
    rows = "".join(_subfolder_row(folder) for folder in inner[:FOLDERS_SHOWN])
    if len(inner) > FOLDERS_SHOWN:
        rows += f"<tr><td colspan='4' class='hint'>and {count(len(inner) - FOLDERS_SHOWN, 'more folder')}</td></tr>"
    head = "<tr><th>Inside</th><th class='num'>Images</th><th class='num'>Repeats</th><th>Class tokens</th></tr>"
    return f"<table>{head}{rows}</table>"


def _subfolder_row(folder: Folder) -> str:
    """Return the HTML of a subfolder's table row: name, images, repeats, class tokens."""
    class_tokens = esc(folder.class_tokens) or "<span class='hint'>none</span>"
    name, number = breakable(printable(folder.path.name)), f"{folder.images:,}"
    return f"<tr><td>{name}</td><td class='num'>{number}</td><td class='num'>{folder.repeats}</td><td>{class_tokens}</td></tr>"


def _more_line(index: int, entry: Source, name: str, opened: bool, proposed: bool) -> str:
    """Return the HTML of a card's More button with a summary of changed settings, and of its other buttons.

    index: of the card; opened: whether all settings are shown; proposed: whether rare tokens are proposed
    """
    names = [*overridden_settings(entry), *(name for name in PLAIN if getattr(entry, name) != SOURCE[name].default)]
    summary = "same as all folders"
    if names:
        summary = f"{count(len(names), 'setting')} set here: {settings_text(names[:SHORT_LIST], entry)}"
        summary += " ..." if len(names) > SHORT_LIST else ""
    label = "Less" if opened else "More"
    note = "Removes it from this list; its files are kept"
    remove = button("remove", "Remove", index, kind="quiet", title=note, label=f"Remove {name}")
    propose_label = "Other identifiers" if proposed else "Suggest rare words"
    propose = button("propose", propose_label, index, kind="quiet") if entry.role == "train" else ""
    more_button = (
        f'<button type="button" class="btn quiet" data-act="more" data-arg="{index}" '
        f'aria-expanded="{"true" if opened else "false"}">{label}</button>'
    )
    return f'<div class="more-line">{more_button}<span class="hint" title="{esc(summary)}">{esc(summary)}</span>{propose}{remove}</div>'


def _all_settings(index: int, entry: Source, common: dict[str, Any], ignored: Mapping[str, str]) -> str:
    """Return the HTML of all settings of a folder.

    common: {name: value for all folders}, shown in empty fields; ignored: `ignored_settings`
    """
    blocks = ""
    for title, names in SHARED_NAMES.items():
        fields = "".join(
            _field(index, entry, name, shown_value(SOURCE[name], common[name]), True, ignored.get(name, ""))
            for name in names
        )
        blocks += f"<h4>{esc(title)}</h4><div class='concept-fields'>{fields}</div>"
    plain = "".join(_field(index, entry, name) for name in ("folder", *PLAIN) if _applies(name, entry.role))
    note = "Clears this folder's own image, caption and validation settings"
    clear = button("clear", "Use common settings", index, title=note, disabled=not overridden_settings(entry))
    return (
        f'<div class="concept-more">{blocks}<h4>This folder</h4><div class="concept-fields">{plain}</div>'
        f'<div class="class-line">{clear}</div></div>'
    )


def _field(index: int, entry: Source, name: str, empty: str = "", shared: bool = False, ignored: str = "") -> str:
    """Return the HTML of a field of a folder's setting.

    index: of the card; empty: value in effect while the field is empty; shared: whether that is the value for all folders
    ignored: why the setting has no effect, or ""
    """
    declared, value = SOURCE[name], getattr(entry, name)
    empty = empty or declared.hint or ("none" if declared.optional else "")
    changed = declared.optional and value is not None
    view = FieldView(declared, value, "own", f"{index}:{name}", empty=empty, shared=shared, changed=changed)
    return replace(view, ignored=ignored).line()
