"""HTML shared by the tabs, and boards: HTML areas whose buttons and inputs trigger one event.

Each text from users or files (names, captions, prompts, paths) goes through `esc`. Elements have `data-act` and `data-arg`, which
the board sends as the event `act`. The handler looks the argument up in a list of valid ones, so a forged one has no effect.
"""

import hashlib
import html
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import gradio as gr

from core.record.problems import Problem, ProblemsError
from tabs.wire import json_object, to_json

# Clicks on buttons and changes of inputs inside a board trigger the event "act". The listeners are on the outer element, since a
# board's contents are replaced.
ACTS = r"""
let timer = 0;
let typing = null;  // {key, value, at, restored}: the text that is being typed, until it is sent
const sent = {};    // by field, the value that was sent last and the number of that event
const key = (field) => field.id || `${field.dataset.act} ${field.dataset.arg}`;
const valueOf = (field) => field.type === 'checkbox' ? String(field.checked) : field.value;
const put = (field, value) => {
  if (field.type === 'checkbox') field.checked = value === 'true';
  else if (field.value !== value) field.value = value;
};
const fields = () => [...element.querySelectorAll('input, select, textarea')];
const said = (target, more) => {
  atelier.asksHere();
  atelier.turn = (atelier.turn || 0) + 1;  // the server handles them in this order (Browsers.in_turn)
  const row = target.closest('[data-listed]'), listed = row ? {listed: row.dataset.listed} : {};
  const chosen = (atelier.chosen[element.parentElement.closest('.board').id] || Object)();
  return Object.assign({act: target.dataset.act, arg: target.dataset.arg || '', turn: atelier.turn}, listed, chosen, more);
};
const changed = (field) => {
  const name = key(field), value = valueOf(field), data = said(field, {value, field: true});
  sent[name] = {value, turn: data.turn};
  atelier.sends(data.turn, field, () => {  // what the server never got is not shown as if it had it
    delete sent[name];
    fields().filter((each) => key(each) === name).forEach((each) => follow(each, Infinity));
  });
  trigger('act', data);
};
element.addEventListener('click', async (event) => {
  const target = event.target.closest('button[data-act]');
  // A button may send the value of a field next to it.
  const from = target && target.dataset.from && element.querySelector('#' + target.dataset.from);
  if (!target || !element.contains(target) || target.disabled) return;
  if (target.dataset.sure && !(await atelier.sure(target))) return;
  trigger('act', said(target, from ? {value: from.value} : {}));
});
element.addEventListener('change', (event) => {
  const target = event.target.closest('input[data-act], select[data-act], textarea[data-act]');
  clearTimeout(timer);
  if (typing && typing.key === key(event.target)) typing = null;
  if (target) changed(target);
});
element.addEventListener('input', (event) => {
  const field = event.target;
  clearTimeout(timer);
  if (field === document.activeElement) typing = {key: key(field), value: field.value, at: field.selectionStart};
  if (field.dataset.live !== undefined) timer = setTimeout(() => changed(field), 300);  // a list follows what is typed
  const twin = field.dataset.twin && element.querySelector('#' + field.dataset.twin);
  if (twin) twin.value = field.value;
});
element.addEventListener('focusout', ({target}) => {
  if (!typing || typing.key !== key(target)) return;
  if (typing.restored && target.dataset.act) changed(target);  // browsers tell of no change of what a script has written
  typing = null;
});
// A control that the user has touched no longer follows its attributes by itself, and an element may stand for another field
// than before. Responses may arrive out of order: an older one is ignored, and a field keeps what was sent until the response to
// that arrives, and what is being typed until it is sent.
const follow = (field, turn) => {
  const last = sent[key(field)];
  if (typing && typing.key === key(field)) {
    if (field.value === typing.value) return;
    field.value = typing.value;
    if (Number.isInteger(typing.at) && field === document.activeElement) field.setSelectionRange(typing.at, typing.at);
    typing.restored = true;
  } else if (last && last.turn > turn) put(field, last.value);
  else if (field.type === 'checkbox' || field.type === 'radio') field.checked = field.hasAttribute('checked');
  else if (field.tagName === 'TEXTAREA') field.value = field.textContent;
  else if (field.tagName === 'SELECT') field.value = (field.querySelector('option[selected]') || field).value;
  else field.value = field.getAttribute('value') || '';
};
let shown = {turn: 0, answer: 0, value: props.value};
watch('value', () => {
  // The number of the last handled event (0: none since the server's start) and of the answer, by `as_listener` (tabs/context.py)
  const label = /<!--(\d+)\.(\d+)(\??)-->$/.exec(props.value);
  const turn = label && Number(label[1]) || Infinity, answer = label ? Number(label[2]) : shown.answer;
  if (turn < shown.turn || answer < shown.answer) { props.value = shown.value; atelier.askAgain(); return; }
  shown = {turn: turn < Infinity ? turn : shown.turn, answer, value: props.value};
  if (label && label[3]) atelier.askAgain();
  fields().forEach((field) => follow(field, turn));
  element.dispatchEvent(new Event('atelier-drawn', {bubbles: true}));
  element.querySelectorAll('block-bars').forEach((bars) => { if (bars.shadowRoot) bars.draw(); });
  if (window.atelier) atelier.goOn(element);
});
"""


# Placeholder of a tab's first contents: until they arrive the tab is hidden, so that nothing moves (assets/page.css).
AWAITED = "<p data-awaits></p>"
LONGEST = 1 << 20  # characters of a text in an event: a prompt, a list of tags, a preset as JSON


def esc(text: Any) -> str:
    """Escape text for HTML contents and quoted attributes. Bytes that are not UTF-8 become replacement characters."""
    return html.escape(str(text).encode("utf-8", "surrogateescape").decode("utf-8", "replace"), quote=True)


def breakable(name: str) -> str:
    r"""Return HTML of a name or path with possible line breaks after _, -, /, \ and before its suffix."""
    return re.sub(r"(?<=[_\-/\\])(?=.)|(?<=\w)(?=\.[A-Za-z]\w*$)", "<wbr>", esc(name))


def board(elem_id: str, value: str = "", script: str = "", **more: Any) -> gr.HTML:
    """Return a gr.HTML whose buttons and inputs trigger its event `.act`. script: further JavaScript for this board."""
    return gr.HTML(
        value,
        elem_id=elem_id,
        elem_classes=["board"],
        js_on_load=ACTS + script,
        apply_default_css=False,
        **more,
    )


def board_event(event: gr.EventData, longest: int = LONGEST) -> tuple[str, str, str]:
    """Return (act, arg, value) of a board's event as texts, whatever the browser sent. Raises ProblemsError for more than `longest`
    characters."""
    data = event._data if isinstance(event._data, dict) else {}
    act, arg, value = (str(data.get(name, "")) for name in ("act", "arg", "value"))
    if max(map(len, (act, arg, value))) > longest:
        what = f"The text is longer than {longest:,} characters"
        raise ProblemsError.one(what, arg[:40], "shorten it", "page.text-too-long")
    return act, arg, value


def row_of(name: str) -> str:
    """Return an HTML attribute that identifies a list's row by `name`, for `arg_now`. For rows whose acts have their index as `arg`."""
    return f' data-listed="{digest(name)}"'


def arg_now(event: gr.EventData, rows: Sequence[str]) -> str:
    """Return the `arg` of a row's event, "index" or "index:name", with the row's current index: another window may have changed the list.
    "" if the row is gone.
    rows: the name of each current row, as passed to `row_of`"""
    arg, mark = board_event(event)[1], event._data.get("listed") if isinstance(event._data, dict) else None
    number, colon, name = arg.partition(":")
    if not mark or not number.isdecimal() or len(number) > 8:
        return arg
    if int(number) < len(rows) and digest(rows[int(number)]) == mark:
        return arg
    matches = [index for index, row in enumerate(rows) if digest(row) == mark]
    return f"{matches[0]}{colon}{name}" if len(matches) == 1 else ""


def digest(text: str) -> str:
    """Return 12 hexadecimal digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def client_state() -> gr.Textbox:
    """Return a hidden textbox with the stamp and the hashes of the contents that the browser shows, for `changed_boards`.

    It is in the browser, so that a late response that replaced newer contents is noticed and corrected by the next tick. The page's
    script empties it if a response was ignored (`atelier.askAgain`): the next tick returns the whole tab.
    """
    return gr.Textbox("", visible="hidden", elem_classes="carrier client", label="what is shown")


def client_stamp(client: str) -> Any:
    """Return the digest of the stamp of what a browser shows; "" after a click, None before anything is shown.
    client: its `client_state`."""
    return json_object(client).get("stamp")


def is_shown(client: str, stamp: str) -> bool:
    """Whether a browser with the `client_state` `client` shows the contents with this stamp."""
    return bool(client_stamp(client) == digest(stamp))


def changed_boards(client: str, stamp: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the outputs of a tick: {name: value} of the contents that the browser does not show, and its new "client" state.

    client   value of its `client_state`
    stamp    of the current contents
    values   {name: current contents}
    """
    sent = json_object(client).get("sent")
    hashes = sent if isinstance(sent, dict) else {}
    changed = {name: value for name, value in values.items() if hashes.get(name) != hash(value)}
    return changed | sent_boards(values, stamp)


def with_client(boards: dict[str, str]) -> dict[str, str]:
    """Return the boards that a click has changed, {name: HTML}, with the "client" state."""
    return boards | sent_boards(boards)


def sent_boards(values: Mapping[str, Any], stamp: str = "") -> dict[str, str]:
    """Return {"client": state of a browser that shows these values}.

    The handler of a click returns it with the values, so that the next tick compares with them.
    """
    mark = digest(stamp) if stamp else ""
    return {"client": to_json({"stamp": mark, "sent": {name: hash(value) for name, value in values.items()}})}


class BoardView(ABC):
    """The boards of a tab, which are sent again when their stamp changes (`Page.on_change`)."""

    @abstractmethod
    def stamp(self) -> str:
        """Return a text that changes with the contents of the boards."""

    @abstractmethod
    def boards(self) -> dict[str, Any]:
        """Return {name: HTML} of the boards."""

    def show(self) -> dict[str, Any]:
        """Return the outputs for all boards."""
        return changed_boards("", self.stamp(), self.boards())

    def tick(self, client: str) -> Any:
        """Return the outputs for boards that differ from what a browser with this `client` state shows; gr.skip() if none does.

        Unchanged boards are not sent, so that text being typed in them is not replaced.
        """
        stamp = self.stamp()
        return gr.skip() if is_shown(client, stamp) else changed_boards(client, stamp, self.boards())


def button(
    act: str,
    text: str,
    arg: Any = "",
    *,
    kind: str = "",
    title: str = "",
    disabled: bool = False,
    label: str = "",
    again: bool = False,
    lands: str = "",
    sure: str = "",
    then: str = "",
    pressed: bool | None = None,
) -> str:
    """Return HTML of a button.

    act, arg   of its event
    label      for screen readers
    kind       "", "primary", "quiet" (no border) or "danger"
    pressed    state of a toggle button
    again      whether it is pressed many times in a row, like Next: clicks count at once, whatever the `arg` (assets/aim.js)
    lands      name of its subject: the button gets the focus when a response brings it (assets/focus.js)
    sure       text of a dialog that asks for confirmation
    then       act of the button that gets the focus when this one has gone, never another one with its `act`
    """
    parts = [f'<button type="button" class="btn {kind}" data-act="{esc(act)}" data-arg="{esc(arg)}"']
    if title:
        parts.append(f' title="{esc(title)}"')
    if label:
        parts.append(f' aria-label="{esc(label)}"')
    if again:
        parts.append(" data-again")
    if pressed is not None:
        parts.append(f' aria-pressed="{str(pressed).lower()}"')
    if sure:
        parts.append(f' data-sure="{esc(sure)}"')
    if then:
        parts.append(f' data-then="{esc(then)}"')
    if lands:
        parts.append(f' data-land="{esc(lands)}"')
    return "".join(parts) + (" disabled" if disabled else "") + f">{esc(text)}</button>"


def link(href: str, text: str, *, download: str | None = None) -> str:
    """Return HTML of a link that opens in a new browser tab, or downloads a file with the name `download`."""
    more = f' download="{esc(download)}"' if download is not None else ' target="_blank" rel="noopener"'
    return f'<a class="btn" href="{esc(href)}"{more}>{esc(text)}</a>'


def pager(act: str, page: int, pages: int, total: int = 0, noun: str = "", label: str = "Pages") -> str:
    """Return HTML of Previous, Next and a list of pages, with the total if there is a `noun`; "" for a single page.

    page    the current page, from 0
    pages   their number
    label   for screen readers, unique on its tab
    """
    if pages <= 1:
        return ""
    previous = button(act, "Previous", page - 1, disabled=page <= 0, again=True)
    following = button(act, "Next", page + 1, disabled=page >= pages - 1, again=True)
    choices = "".join(f'<option value="{n}"{" selected" if n == page else ""}>{n + 1}</option>' for n in range(pages))
    page_list = f'<select data-act="{esc(act)}" aria-label="Page">{choices}</select>'
    total_html = f" · {total:,} {esc(noun)}" if noun else ""
    return f'<nav class="pager" aria-label="{esc(label)}">{previous}<span>Page {page_list} of {pages:,}{total_html}</span>{following}</nav>'


def index_of(text: str, total: int) -> int | None:
    """Parse an index into a list of `total` items from the browser; None if it is invalid or too large."""
    return int(text) if text.isdecimal() and len(text) < 9 and int(text) < total else None


def page_of(text: str, pages: int) -> int:
    """Parse a page number from the browser and clamp it to 0 ... pages - 1."""
    number = int(text) if text.isdecimal() and len(text) < 9 else 0
    return max(0, min(number, pages - 1))


def page_count(total: int, size: int) -> int:
    """Return the number of pages of `size` items for `total` items, at least 1."""
    return max(1, -(-total // size))


def progress(text: str, share: float | None) -> str:
    """Return HTML of a progress bar with its text. share: 0 to 1; None while it is unknown."""
    aria = "" if share is None else f' aria-valuenow="{100 * share:.0f}" aria-valuemin="0" aria-valuemax="100"'
    width = "" if share is None else f' style="width:{100 * share:.1f}%"'
    kind = " unknown" if share is None else ""
    bar = f'<span class="gauge{kind}" role="progressbar" aria-label="{esc(text)}"{aria}><i{width}></i></span>'
    return f'<div class="going"><span>{esc(text)}</span>{bar}</div>'


def framed_image(
    url: str,
    name: str,
    size: tuple[int, int],
    frame: Sequence[float] | None,
    control: str = "",
    badge: str = "",
    more: str = "",
) -> str:
    """Return HTML of an image with its crop frame, and with its control image over and next to it (assets/pairs.js chooses).

    size      (width, height) in pixels
    frame     (left, top, right, bottom) as fractions of the image; None without a crop
    control   URL of the control image, or ""
    badge     HTML over the image
    more      attributes of the images
    """
    width, height = size
    shape = (
        f'{"wide" if width >= height else "tall"}" style="--ratio:{width / height:.4f};aspect-ratio:{width}/{height}"'
    )
    crop = over = side = ""
    if frame is not None:
        left, top, right, bottom = (100 * side for side in frame)
        position = f"left:{left:.2f}%;top:{top:.2f}%;width:{right - left:.2f}%;height:{bottom - top:.2f}%"
        crop = f'<span class="crop" style="{position}"></span>'
    if control:
        over = f'<img class="control-over" src="{esc(control)}" loading="lazy" decoding="async" alt="">'
        alone = f'<img src="{esc(control)}" alt="Control image of {esc(name)}"{more}>'
        side = f'<span class="pic control {shape}>{alone}{crop}</span>'
    image = f'<span class="pic {shape}><img src="{esc(url)}" alt="{esc(name)}"{more}>{over}{crop}{badge}</span>'
    return f'<span class="with-control">{image}{side}</span>' if control else image


def pair_view_buttons() -> str:
    """Return HTML of the buttons that choose how control images are shown. assets/pairs.js marks the pressed one."""
    labels = {"beside": "Side by side", "over": "Overlay", "alone": "Image"}
    buttons = "".join(
        f'<button type="button" class="btn small" data-pair-view="{view}">{text}</button>'
        for view, text in labels.items()
    )
    return f'<span class="pair-views" role="group" aria-label="Control images" title="Key: o">{buttons}</span>'


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Return HTML of a list of names and values. rows: (name as text, value as HTML)."""
    return '<dl class="facts">' + "".join(f"<dt>{esc(name)}</dt><dd>{value}</dd>" for name, value in rows) + "</dl>"


def section(title: str, body: str, aside: str = "") -> str:
    """Return HTML of a block with a title. body, aside: HTML below and to the right of the title."""
    right = f'<span class="aside">{aside}</span>' if aside else ""
    return f'<section class="block-part"><h3>{esc(title)}{right}</h3>{body}</section>'


def short(text: str, length: int = 60) -> str:
    """Return text on one line, cut to at most `length` characters."""
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1].rstrip() + "…"


MAX_WORDS = 14  # characters by which the end of `middle` may be longer for whole words


def middle(text: str) -> str:
    """Return HTML of a name that the browser shortens before its last 8 characters, which distinguish checkpoints.

    The end is one more character and whole words, a number with the word before it ("e step 100 at 0.9"), unless these are long. Never
    splits in a number, whose end would be taken for the whole, nor next to a space, which a screen reader would lose.
    """
    split = max(0, len(text) - 8)
    space = text.rfind(" ", 0, split + 1)
    if text[space + 1 : space + 2].isdigit():
        space = text.rfind(" ", 0, max(0, space))
    if " " in text[max(0, split - 1) :] and 0 < space and split - space <= MAX_WORDS:
        split = space - 1
    while split and (" " in (neighbors := text[split - 1 : split + 1]) or neighbors.isdigit()):
        split -= 1
    return f'<span class="cut"><span>{esc(text[:split])}</span><span>{esc(text[split:])}</span></span>'


def client_rendered(kind: str, data: Any, tag: str = "div") -> str:
    """Return an element that the page's script fills in from JSON `data`. kind: "problems" or "chart" (atelier.draws)."""
    return f'<{tag} data-draws="{kind}" data-of="{esc(json.dumps(data, ensure_ascii=False))}"></{tag}>'


def problems_html(problems: Iterable[Problem]) -> str:
    """Return HTML of a list of problems: what, where, fix; "" without any."""
    listed = [problem.to_dict() for problem in problems]
    return client_rendered("problems", listed, "ul") if listed else ""


def empty_state(title: str, hint: str = "") -> str:
    """Return HTML shown instead of an empty list: a sentence, and what to do next."""
    return f"<div class='empty'><strong>{esc(title)}</strong><span>{esc(hint)}</span></div>"


def options(choices: Iterable[tuple[str, Any]], chosen: Any = None, disabled: Collection[Any] = ()) -> str:
    """Return HTML of the options of a select. choices: (label, value); disabled: values that cannot be chosen."""
    return "".join(
        f'<option value="{esc(value)}"{" selected" * (value == chosen)}{" disabled" * (value in disabled)}>{esc(text)}</option>'
        for text, value in choices
    )


def choice_list(elem: str, choices: Sequence[tuple[str, str]], chosen: str, label: str, arg: str = "") -> str:
    """Return HTML of a select that sends the act `elem` with `arg`. choices: (label, value); label: for screen readers."""
    attributes = f'data-act="{esc(elem)}" data-arg="{esc(arg)}" aria-label="{esc(label)}"'
    return f"<select {attributes}>{options(choices, chosen)}</select>"
