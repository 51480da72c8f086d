"""Pieces of HTML that the tabs share, and what a click in them says.

Every text of a person (names, captions, prompts, paths) goes through `esc`. Elements carry `data-act` and `data-arg`;
the board reports them as one event, and the handler looks the argument up in its own list, so a made-up one does
nothing.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gradio as gr

from core.record.problems import Problem, ProblemsError
from tabs.wire import packed, unpack

# Clicks on buttons and changes of inputs inside the board become the event "act". One listener on the outer element:
# the board replaces what is inside it.
ACTS = r"""
let typed = 0;
const said = (target, more) => {
  atelier.turn = (atelier.turn || 0) + 1;  // the server handles them in this order (Browsers.in_turn)
  const row = target.closest('[data-listed]'), listed = row ? {listed: row.dataset.listed} : {};
  return Object.assign({act: target.dataset.act, arg: target.dataset.arg || '', turn: atelier.turn}, listed, more);
};
const changed = (field) => {
  const value = field.type === 'checkbox' ? String(field.checked) : field.value;
  trigger('act', said(field, {value, field: true}));
  Object.assign(field, {sentValue: field.value, sentTurn: atelier.turn});
};
element.addEventListener('click', async (event) => {
  const target = event.target.closest('button[data-act]');
  // A button may send what stands in a field beside it.
  const from = target && target.dataset.from && element.querySelector('#' + target.dataset.from);
  if (!target || !element.contains(target) || target.disabled) return;
  const sure = target.dataset.sure, words = target.textContent.trim();
  if (sure && !(await atelier.dialog({title: (target.ariaLabel || words) + '?', text: sure, ok: words, danger: true}))) return;
  trigger('act', said(target, from ? {value: from.value} : {}));
});
element.addEventListener('change', (event) => {
  const target = event.target.closest('input[data-act], select[data-act], textarea[data-act]');
  clearTimeout(typed);
  if (target) changed(target);
});
element.addEventListener('input', (event) => {
  clearTimeout(typed);
  if (event.target.dataset.live !== undefined) {  // a list follows what is typed
    typed = setTimeout(() => changed(event.target), 300);
  }
  const twin = event.target.dataset.twin && element.querySelector('#' + event.target.dataset.twin);
  if (twin) twin.value = event.target.value;
});
// What a person has touched no longer follows its attributes by itself. Answers may overtake each other: an older one is not
// shown over a newer one, and a field keeps what was sent until an answer to it has come.
let shown = {turn: 0, value: props.value};
watch('value', () => {
  const turn = Number((/<!--(\d+)-->$/.exec(props.value) || [0, Infinity])[1]);  // written by `as_of`
  if (turn < shown.turn) { props.value = shown.value; return; }
  if (turn < Infinity) shown = {turn, value: props.value};
  element.querySelectorAll('input, select, textarea').forEach((field) => {
    if (field.sentTurn > turn) return;
    if (field.type === 'checkbox') field.checked = field.hasAttribute('checked');
    else if (field === document.activeElement && field.value !== field.sentValue) return;  // somebody is typing in it
    else if (field.tagName === 'TEXTAREA') field.value = field.textContent;
    else if (field.tagName === 'SELECT') field.value = (field.querySelector('option[selected]') || field).value;
    else field.value = field.getAttribute('value') || '';
  });
  if (window.atelier) atelier.goOn(element);
});
"""


# Stands where a tab's first answer goes: until that is drawn the tab shows nothing, so that nothing jumps (assets/page.css).
AWAITED = "<p data-awaits></p>"
LONGEST = 1 << 20  # characters of a text in an event: a prompt, a list of tags, a preset as JSON


def esc(text: Any) -> str:
    """A text for HTML, in contents as well as in quoted attributes. Bytes that are no UTF-8 become a mark."""
    return html.escape(str(text).encode("utf-8", "surrogateescape").decode("utf-8", "replace"), quote=True)


def parted(name: str) -> str:
    """A name or path for HTML contents whose lines break at its _, -, /, \\ and before its suffix rather than within a word."""
    return re.sub(r"(?<=[_\-/\\])(?=.)|(?<=\w)(?=\.[A-Za-z]\w*$)", "<wbr>", esc(name))


def board(elem_id: str, value: str = "", label: str = "", script: str = "", **more: Any) -> gr.HTML:
    """An HTML area whose buttons and inputs report to `.act`."""
    return gr.HTML(
        value,
        elem_id=elem_id,
        elem_classes=["board"],
        label=label,
        js_on_load=ACTS + script,
        apply_default_css=False,
        **more,
    )


def as_of(turn: int, board: str) -> str:
    """A board's contents with the number of the latest act that they tell of; 0 is none."""
    return f"{board}<!--{turn}-->" if turn else board


def act_of(event: gr.EventData, longest: int = LONGEST) -> tuple[str, str, str]:
    """(act, arg, value) of a board's event, as texts whatever the browser sent. Raises ProblemsError for a longer one."""
    data = event._data if isinstance(event._data, dict) else {}
    act, arg, value = (str(data.get(name, "")) for name in ("act", "arg", "value"))
    if max(map(len, (act, arg, value))) > longest:
        what = f"The text is longer than {longest:,} characters"
        raise ProblemsError.one(what, arg[:40], "shorten it", "page.text-too-long")
    return act, arg, value


def row_of(name: str) -> str:
    """The attribute of a row whose acts have its number as `arg`: what it stands for, for `arg_now`."""
    return f' data-listed="{_mark(name)}"'


def arg_now(event: gr.EventData, rows: Sequence[str]) -> str:
    """An event's `arg`, "number" or "number:name", with the number that its row has now: another window may have changed the list
    since it was drawn. "" where the row is gone.

    rows: what each row stands for now, as `row_of` was given it
    """
    arg, mark = act_of(event)[1], event._data.get("listed") if isinstance(event._data, dict) else None
    number, colon, name = arg.partition(":")
    if not mark or not number.isdecimal() or len(number) > 8:
        return arg
    if int(number) < len(rows) and _mark(rows[int(number)]) == mark:
        return arg
    now = [place for place, row in enumerate(rows) if _mark(row) == mark]
    return f"{now[0]}{colon}{name}" if len(now) == 1 else ""


def _mark(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def seen_here() -> gr.Textbox:
    """What this browser shows, for `news`. The browser itself keeps it and gets it with each answer: where a late answer is
    drawn over a newer one, the next tick knows of it and draws the newer one again."""
    return gr.Textbox("", visible="hidden", elem_classes="carrier", label="what is shown")


def stamp_seen(seen: str) -> Any:
    return unpack(seen).get("stamp")


def news(seen: str, stamp: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """What a tick answers, by name: as "seen" what it has sent so far, and each value that this browser was not sent before."""
    before = unpack(seen).get("sent")
    known = before if isinstance(before, dict) else {}
    fresh = {name: value for name, value in values.items() if known.get(name) != hash(value)}
    return fresh | sent(values, stamp)


def sent(values: Mapping[str, Any], stamp: str = "") -> dict[str, str]:
    """ "seen" after a click has sent these values itself: the next tick compares with what the browser shows now.

    Without it a tick would leave out what it sent before the click, although the click has put something else there.
    """
    return {"seen": packed({"stamp": stamp, "sent": {name: hash(value) for name, value in values.items()}})}


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
    pressed: bool | None = None,
) -> str:
    """A button. kind: "" plain, "primary", "quiet" (no border) or "danger". again: pressed many times in a row, as Next is,
    so it counts as the same one whatever its `arg` (assets/aim.js). lands: names what it is about to a board, whose keyboard
    goes to it when it appears (assets/focus.js). sure: what a dialog says before the click counts.
    pressed: whether a switch is on."""
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
    if lands:
        parts.append(f' data-land="{esc(lands)}"')
    return "".join(parts) + (" disabled" if disabled else "") + f">{esc(text)}</button>"


def link(href: str, text: str, *, download: str | None = None, kind: str = "") -> str:
    """A link, or a download under the given name."""
    more = f' download="{esc(download)}"' if download is not None else ' target="_blank" rel="noopener"'
    return f'<a class="btn {kind}" href="{esc(href)}"{more}>{esc(text)}</a>'


def pager(act: str, page: int, pages: int, total: int = 0, noun: str = "", label: str = "Pages") -> str:
    """Previous, next and where one is; the total where a noun is given. page counts from 0; each on a tab has its own label."""
    if pages <= 1:
        return ""
    before = button(act, "Previous", page - 1, disabled=page <= 0, again=True)
    after = button(act, "Next", page + 1, disabled=page >= pages - 1, again=True)
    choices = "".join(f'<option value="{n}"{" selected" if n == page else ""}>{n + 1}</option>' for n in range(pages))
    choose = f'<select data-act="{esc(act)}" aria-label="Page">{choices}</select>'
    of = f" · {total:,} {esc(noun)}" if noun else ""
    return (
        f'<nav class="pager" aria-label="{esc(label)}">{before}<span>Page {choose} of {pages:,}{of}</span>{after}</nav>'
    )


def page_of(text: str, pages: int) -> int:
    """A page number from the browser, kept within what there is."""
    number = int(text) if text.isdecimal() and len(text) < 9 else 0
    return max(0, min(number, pages - 1))


def page_count(total: int, size: int) -> int:
    return max(1, -(-total // size))


def progress(text: str, share: float | None) -> str:
    """A line that says what is going on, with a bar; share 0 to 1, None while it is unknown."""
    now = "" if share is None else f' aria-valuenow="{100 * share:.0f}" aria-valuemin="0" aria-valuemax="100"'
    width = "" if share is None else f' style="width:{100 * share:.1f}%"'
    kind = " unknown" if share is None else ""
    bar = f'<span class="gauge{kind}" role="progressbar" aria-label="{esc(text)}"{now}><i{width}></i></span>'
    return f'<div class="going"><span>{esc(text)}</span>{bar}</div>'


def crop_frame(frame: tuple[float, float, float, float]) -> str:
    """The frame of what trains, to lie on an image. frame: (left, top, right, bottom) as fractions of the image."""
    left, top, right, bottom = (100 * side for side in frame)
    place = f"left:{left:.2f}%;top:{top:.2f}%;width:{right - left:.2f}%;height:{bottom - top:.2f}%"
    return f'<span class="crop" style="{place}"></span>'


def control_over(url: str) -> str:
    """A control image, to lie on its image (assets/pairs.js says when)."""
    return f'<img class="control-over" src="{esc(url)}" loading="lazy" decoding="async" alt="">'


def pair_ways() -> str:
    """Buttons for how images are shown with their control images. Pressed ones are marked by assets/pairs.js."""
    words = {"beside": "Side by side", "over": "Overlay", "alone": "Image"}
    buttons = "".join(
        f'<button type="button" class="btn small" data-pair-way="{way}">{text}</button>' for way, text in words.items()
    )
    return f'<span class="pair-ways" role="group" aria-label="Control images" title="Key: o">{buttons}</span>'


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """A list of names and values; values are HTML already."""
    return '<dl class="facts">' + "".join(f"<dt>{esc(name)}</dt><dd>{value}</dd>" for name, value in rows) + "</dl>"


def section(title: str, body: str, aside: str = "") -> str:
    """A titled block; `aside` stands at the right of the title (HTML)."""
    right = f'<span class="aside">{aside}</span>' if aside else ""
    return f'<section class="block-part"><h3>{esc(title)}{right}</h3>{body}</section>'


def short(text: str, most: int = 60) -> str:
    """A text on one line, at most so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


def middle(text: str, end: int = 8) -> str:
    """A name as HTML that is shortened in its middle where it lacks room: its last letters tell checkpoints apart."""
    at = max(0, len(text) - end)
    return f'<span class="cut"><span>{esc(text[:at])}</span><span>{esc(text[at:])}</span></span>'


def drawn(kind: str, data: Any, tag: str = "div") -> str:
    """What the page's script draws from data where it appears: "problems" or "chart" (atelier.draws)."""
    return f'<{tag} data-draws="{kind}" data-of="{esc(json.dumps(data, ensure_ascii=False))}"></{tag}>'


def problems_html(problems: Iterable[Problem]) -> str:
    """Problems as a list: what, where, fix."""
    return drawn("problems", [problem.to_dict() for problem in problems], "ul")


def empty_state(title: str, hint: str = "") -> str:
    """What to say where nothing is yet: one sentence, and what to do next."""
    return f"<div class='empty'><strong>{esc(title)}</strong><span>{esc(hint)}</span></div>"


def options(choices: Iterable[tuple[str, Any]], chosen: Any = None) -> str:
    """The options of a list. choices: (words, value)."""
    return "".join(
        f'<option value="{esc(value)}"{" selected" if value == chosen else ""}>{esc(words)}</option>'
        for words, value in choices
    )


def choice_list(elem: str, choices: Sequence[tuple[str, str]], chosen: str, label: str, arg: str = "") -> str:
    """A select that reports `elem` with `arg`. choices: (words, value)."""
    about = f'data-act="{esc(elem)}" data-arg="{esc(arg)}" aria-label="{esc(label)}"'
    return f"<select {about}>{options(choices, chosen)}</select>"
