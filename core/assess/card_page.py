"""Contents of a report card, and its HTML page: one file without script that loads nothing. All text is escaped."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from core import __version__
from core.record.units import count

SECTIONS = {
    "use": "How to use it",
    "base": "Base model and license",
    "training": "Training",
    "file": "The file",
    "about": "From its author",
    "measures": "What was measured",
}
# Nothing may be loaded or run, whatever a text in the page contains.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #60646c; --line: #e0e2e6;
  --paper: #fff; --back: #f4f5f7; --chip: #eef0f4; --link: #1a5fb4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --soft: #a2a8b2; --line: #33373d; --paper: #1d2024; --back: #131518; --chip: #2a2e34; --link: #8ab4f8; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
main { max-width: 920px; margin: 0 auto; padding: 32px 20px 40px; }
h1 { margin: 0; font-size: 28px; line-height: 1.2; } .kind { margin: 4px 0 20px; color: var(--soft); }
.samples { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 0 0 20px; }
figure { margin: 0; max-width: 420px; } figure img { display: block; width: 100%; border-radius: 8px; border: 1px solid var(--line); }
figcaption { margin-top: 4px; color: var(--soft); font-size: 13px; }
.sections { columns: 2 340px; column-gap: 16px; margin-bottom: 16px; }
section { break-inside: avoid; margin: 0 0 16px; padding: 16px 18px;
  background: var(--paper); border: 1px solid var(--line); border-radius: 10px; }
h2 { margin: 0 0 8px; font-size: 16px; } dl { margin: 0; }
dl > div { padding: 6px 0; border-top: 1px solid var(--line); } dl > div:first-child { border: 0; padding-top: 0; }
dl > div.short { display: flex; justify-content: space-between; gap: 16px; } .short dd { text-align: end; }
dt { color: var(--soft); font-size: 13px; flex: none; max-width: 60%; } dd { margin: 0; white-space: pre-line; }
.measures dl { columns: 2 340px; column-gap: 32px; } .measures dl > div { break-inside: avoid; }
dd small { display: block; color: var(--soft); font-size: 13px; } a { color: var(--link); }
.chip { display: inline-block; margin: 2px 4px 2px 0; padding: 1px 8px; border-radius: 6px;
  background: var(--chip); font-family: ui-monospace, monospace; font-size: 14px; }
.hash { font: 12px/1.4 ui-monospace, monospace; }
footer { color: var(--soft); font-size: 13px; }
"""
SHORT = 28  # characters of a value that is shown next to its title
LONGEST_LINE = 100  # characters of a value in the list of contents


@dataclass(frozen=True)
class Fact:
    """A row of the card.

    section    a key of SECTIONS
    name       the row's key in the JSON
    personal   name of the setting that includes the row; "" for a row that is always included
    note       explanation of the value
    """

    section: str
    name: str
    title: str
    value: str | int | float | list[str]
    personal: str = ""
    note: str = ""

    @property
    def text(self) -> str:
        """The value as text, lists separated by commas."""
        return ", ".join(self.value) if isinstance(self.value, list) else str(self.value)


@dataclass(frozen=True)
class Sample:
    """An image as data URL, with the prompt ("" if unknown), seed and training step (None if unknown) that it was generated with."""

    url: str
    prompt: str = ""
    seed: int | None = None
    step: int | None = None


@dataclass(frozen=True)
class Card:
    """Contents of a report card. `left_out`: facts whose setting is off."""

    title: str
    facts: Sequence[Fact]
    left_out: Sequence[Fact]
    samples: Sequence[Sample]

    def data(self) -> dict[str, Any]:
        """Return the contents of the JSON file: {"format", "version", "title", section: {name: value}, "samples": [fields of each `Sample`
        without its "url"]}."""
        sections: dict[str, dict[str, Any]] = {}
        for fact in self.facts:
            sections.setdefault(fact.section, {})[fact.name] = fact.value
        samples = [{name: value for name, value in vars(each).items() if name != "url"} for each in self.samples]
        return {"format": "atelier card", "version": 1, "title": self.title, **sections, "samples": samples}

    def lines(self) -> list[str]:
        """List the contents as text, then the facts that are left out, each with the setting that includes it."""
        contents = [f"  {each.title}: {_short(each.text)}" for each in self.facts]
        left_out = [f"  {each.title}: {_short(each.text)} ({each.personal})" for each in self.left_out]
        head = f"The card contains: {self.title}, {count(len(self.samples), 'sample image')}"
        return [head, *contents, *(["Left out:", *left_out] if left_out else [])]


def _short(text: str) -> str:
    """Return the text on one line, cut to LONGEST_LINE characters."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]} ..."


def page(card: Card) -> str:
    """Return the HTML page of a card."""
    sections = {
        name: _section(title, name, [fact for fact in card.facts if fact.section == name])
        for name, title in SECTIONS.items()
    }
    measures = sections.pop("measures")
    kind = next((fact.text for fact in card.facts if (fact.section, fact.name) == ("file", "what")), "")
    samples = "".join(_sample(each, card.title) for each in card.samples)
    samples = f'<div class="samples">{samples}</div>' if samples else ""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width"><meta name="referrer" content="no-referrer">'
        f"<title>{escape(card.title)}</title><style>{STYLE}</style></head><body><main><h1>{escape(card.title)}</h1>"
        f'<p class="kind">{escape(kind)}</p>{samples}<div class="sections">{"".join(sections.values())}</div>{measures}'
        f"<footer>Report card by Atelier {__version__}.</footer></main></body></html>\n"
    )


def _section(title: str, name: str, facts: list[Fact]) -> str:
    """Return a section of the page as HTML; "" without facts."""
    return f"<section class={name}><h2>{title}</h2><dl>{''.join(map(_fact, facts))}</dl></section>" if facts else ""


def _fact(fact: Fact) -> str:
    """Return a row of the page as HTML."""
    note = f"<small>{escape(fact.note)}</small>" if fact.note else ""
    short = not isinstance(fact.value, list) and len(fact.text) <= SHORT and len(fact.note) <= SHORT
    return f"<div{' class=short' if short else ''}><dt>{escape(fact.title)}</dt><dd>{_value(fact)}{note}</dd></div>"


def _value(fact: Fact) -> str:
    """Return the value of a row as HTML."""
    if isinstance(fact.value, list):
        return "".join(f'<span class="chip">{escape(text)}</span>' for text in fact.value)
    if fact.name == "sha256":
        return f'<span class="hash">{escape(fact.text)}</span>'
    if fact.name == "license_url":  # of our catalog, never of a file
        return f'<a href="{escape(fact.text)}" target="_blank" rel="noopener noreferrer">{escape(fact.text.partition("://")[2])}</a>'
    return escape(fact.text)


def _sample(sample: Sample, title: str) -> str:
    """Return an image with its caption as HTML. `title`: of the card, for the alt text."""
    step = [f"step {sample.step:,}"] if sample.step is not None else []
    seed = [f"seed {sample.seed}"] if sample.seed is not None else []
    texts = "<br>".join(escape(text) for text in (sample.prompt, ", ".join(step + seed)) if text)
    caption = f"<figcaption>{texts}</figcaption>" if texts else ""
    alt = escape(sample.prompt or f"Sample of {title}")
    return f'<figure><img src="{sample.url}" alt="{alt}">{caption}</figure>'
