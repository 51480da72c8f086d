"""HTML of a setting's field, from its declaration: a line of a board, or a block of Train's form with its help."""

from dataclasses import dataclass, replace
from typing import Any

from core.settings.base import Declared
from core.settings.values import shown_value, text_of
from tabs.markup import esc, options

NOTHING = '""'  # typed for an empty text, in a field where empty means the common value
TRAIN, TOOL_FILES = "train", "tool-files"  # ids of Train's form, and of the datalist for fields that name a file
WIDE = {"lines", "layers", "sizes", "arguments", "prompt", "blocks"}
LONG_HELP = 220  # characters; longer help needs a wide field
LONG_CHOICE = 20  # characters; longer choices do not fit a narrow column
RADIO_CHOICES, RADIO_LETTERS = 4, 34
PATHS = frozenset(("folder", "metadata_file"))


# -- facts of a declaration


def element_id(path: str) -> str:
    """Return the id of a setting's block on Train."""
    return "field-" + path.replace(".", "-").replace("_", "-")


def label(entry: Declared) -> str:
    """Return the title with the unit, "Warmup (steps)"; without it if the title has it or the field has a `brief`."""
    has_unit = bool(entry.brief) or entry.unit.lower().removesuffix("s") in entry.title.lower()
    return entry.title if has_unit else f"{entry.title} ({entry.unit})"


def choices(entry: Declared) -> list[tuple[str, Any]]:
    """Return [(label, value)] of a choice; for an optional setting the empty one first."""
    none = [(entry.labels.get("", "off"), "")] if entry.optional else []
    return none + [(entry.label(choice), choice) for choice in entry.choices]


def has_lines(entry: Declared) -> bool:
    """Whether the control is a textarea."""
    return entry.kind in ("list", "arguments", "object") or entry.widget in ("lines", "sizes", "prompt")


def is_path(entry: Declared) -> bool:
    """Whether the value is the path of a file or folder that is read."""
    return entry.names != "path or name" and (entry.widget == "folder" or entry.name in PATHS)


def browses(entry: Declared) -> str:
    """Return what the file browser chooses for the setting: "folder", "file" or "any" of both; "" if its value is not a path."""
    if entry.names not in ("path", "path or name") and not is_path(entry):
        return ""
    if entry.widget == "file" or entry.name == "metadata_file":
        return "file"
    return "folder" if entry.widget == "folder" or entry.kind == "list" else "any"


def plain(choice: Any) -> str:
    """Return the `value` attribute of a choice: "" for None, "true", "false"."""
    if choice is None:
        return ""
    return str(choice).lower() if isinstance(choice, bool) else str(choice)


# -- the field


@dataclass(frozen=True)
class FieldView:
    """The field of a setting with its state.

    value            current value
    empty            placeholder while it is empty
    id               of the control
    form             id of the form, for the list of model files
    act, arg         of the event of a board's control
    offers           id of a datalist with suggestions
    replaced         title of the setting that is used instead of this one, or ""
    shared           whether `empty` is the value for all folders and this field is that of one folder
    ignored          why the setting has no effect, or ""
    changed, wrong   whether the field is marked so
    title            to use instead of the setting's
    """

    entry: Declared
    value: Any = None
    act: str = ""
    arg: str = ""
    id: str = ""
    form: str = ""
    empty: str = ""
    offers: str = ""
    replaced: str = ""
    shared: bool = False
    ignored: str = ""
    changed: bool = False
    wrong: bool = False
    title: str = ""

    @property
    def is_switch(self) -> bool:
        return self.entry.kind == "bool" and not self.entry.optional

    def line(self) -> str:
        """Return HTML of a labeled control for a board; for a file or folder, with a button that opens a list or the file browser."""
        entry, title = self.entry, f"<span>{esc(self.title or label(self.entry))}</span>"
        attributes = f'data-act="{esc(self.act)}" data-arg="{esc(self.arg)}" aria-description="{esc(entry.help)}"'
        view = self if self.offers or entry.names != "path or name" else replace(self, offers=TOOL_FILES)
        control, browse = view.control(attributes), self.button()
        classes = (" is-own" if self.changed else "") + (" is-ignored" if self.ignored else "")
        if self.is_switch:
            return f'<label class="own switch{classes}" title="{esc(entry.help)}">{control}{title}</label>'
        classes += " wide" if has_lines(entry) or browse else ""
        texts = (self.empty, *(each for each, _ in choices(entry)))
        classes += " long" if max(map(len, texts)) >= LONG_CHOICE else ""
        note = esc(self._note())
        if not browse:
            return f'<label class="own{classes}" title="{note}">{title}{control}</label>'
        return f'<div class="own browses{classes}" title="{note}"><label>{title}{control}</label>{browse}</div>'

    def block(self, bars: str = "") -> str:
        """Return HTML of the field with title and help, for Train. assets/form.js fills in its value and the notes below it.
        bars: HTML below the control"""
        entry, elem, about = self.entry, element_id(self.entry.path), self.entry.brief or self.entry.help
        wide = " field-wide" if entry.widget in WIDE or len(about) > LONG_HELP else ""
        ask = f'<button type="button" class="field-help" aria-label="About {esc(entry.title)}" title="F1 in the field"'
        return (
            f'<div class="field field-{entry.kind}{wide}" id="{elem}" data-path="{entry.path}">{self._inside(elem, about)}{bars}'
            f'{ask} tabindex="-1">?</button><div class="field-foot" id="{elem}-foot"></div></div>'
        )

    def _inside(self, elem: str, about: str) -> str:
        """Return HTML of the title, help and control of a block. elem: id of the block; about: the help."""
        entry, title = self.entry, esc(label(self.entry))
        info = f'<span class="info-text" id="{elem}-info">{esc(about)}</span>'
        attributes = f'data-set="{entry.path}" aria-describedby="{elem}-info {elem}-foot" aria-keyshortcuts="F1"'
        if self.is_switch:
            return f'<label class="field-switch">{self.control(attributes)}<span>{title}</span></label>{info}'
        letters = [len(each) for each, _ in choices(entry)]
        if entry.kind == "choice" and len(letters) <= RADIO_CHOICES and sum(letters) <= RADIO_LETTERS:
            return f'<span class="field-title" id="{elem}-title">{title}</span>{info}{self._radios(elem, attributes)}'
        control, choose, listed = self.control(attributes), self.button(), ""
        if self.offers:
            listed = f'<datalist id="{self.offers}"></datalist>'
            if not entry.holds:
                choose = f'<select class="offered" data-offers="{entry.path}" aria-label="Choose: {title}"></select>'
        label_html = f'<label class="field-title" for="{self.id}">{title}</label>'
        return label_html + info + (f'<div class="line">{control}{choose}</div>' if choose else control) + listed

    def _radios(self, elem: str, attributes: str) -> str:
        """Return HTML of a choice as radio buttons. elem: id of the block."""
        radios = "".join(
            f'<label><input type="radio" name="{elem}" value="{esc(value)}" {attributes}><span>{esc(title)}</span></label>'
            for title, value in choices(self.entry)
        )
        return f'<div class="few" role="radiogroup" aria-labelledby="{elem}-title">{radios}</div>'

    def control(self, attributes: str) -> str:
        """Return HTML of the control with `attributes` and the attributes of its state."""
        entry = self.entry
        attributes += f' id="{esc(self.id)}"' if self.id else ""
        attributes += ' aria-invalid="true"' if self.wrong else ""
        attributes += " disabled" if self.replaced else ""
        attributes += f' list="{esc(self.offers)}"' if self.offers else ""
        if self.is_switch:
            return f'<input type="checkbox" {attributes}{" checked" if self.value else ""}>'
        if entry.kind in ("bool", "choice"):
            return f"<select {attributes}>{self._options()}</select>"
        if has_lines(entry):
            # A line break at the beginning of a textarea is not part of its text.
            return f'<textarea rows="2" {attributes} placeholder="{esc(self.empty)}">\n{esc(self._text())}</textarea>'
        number = " num" if entry.kind in ("int", "float", "pair", "span") else ""
        text = NOTHING if self.value == "" and entry.optional else self._text()
        return (
            f'<input type="text" class="text{number}" {attributes} value="{esc(text)}" placeholder="{esc(self.empty)}" '
            f'autocomplete="off" spellcheck="false">'
        )

    def button(self) -> str:
        """Return HTML of a button that opens the list of model files or the file browser; "" if the value is not a path."""
        entry, browsed, title = self.entry, browses(self.entry), esc(label(self.entry))
        if entry.holds and self.form:
            name = entry.path if self.form == TRAIN else entry.name
            browsed = entry.widget if self.form == TRAIN and entry.widget == "model" else browsed
            attributes = f'data-pick="{esc(name)}" data-form="{esc(self.form)}" data-looks="{browsed}"'
            return f'<button type="button" class="btn" {attributes} aria-label="Choose: {title}">Choose</button>'
        attributes = f'data-browse="{browsed}" aria-label="Browse: {title}"'
        return f'<button type="button" class="btn" {attributes}>Browse</button>' if browsed else ""

    def _text(self) -> str:
        if isinstance(self.value, str):  # the value of a text, or invalid input
            return self.value
        return str(text_of(self.entry, self.value))

    def _options(self) -> str:
        """Return HTML of the options of a select."""
        entry = self.entry
        if self.replaced:
            return f"<option>{esc(f'set by {self.replaced}')}</option>"
        empty = [(f"as for all: {self.empty}" if self.shared else self.empty, None)] if entry.optional else []
        switch = entry.kind == "bool"
        listed = [("on", True), ("off", False)] if switch else [(entry.label(each), each) for each in entry.choices]
        return options(((title, plain(each)) for title, each in (*empty, *listed)), plain(self.value))

    def _note(self) -> str:
        """Return why the field is ignored, its help, and how to type an empty value if an empty field means the value for all folders."""
        entry = self.entry
        has_common = self.shared and self.empty != shown_value(entry, None)
        takes_nothing = has_common and entry.kind in ("text", "list") and not entry.choices
        ignored = f"{self.ignored.capitalize()}. " if self.ignored else ""
        return ignored + entry.help + (f" Write {NOTHING} for none." if takes_nothing else "")
