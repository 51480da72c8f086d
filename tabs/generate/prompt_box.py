"""Prompt fields of Generate: token counts and problems while typing, completion, history and styles. Answers assets/prompt.js."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.captioning.tag_lists import tag_lists
from core.dataset.captions.words import comparable, tag_words
from core.dataset.sources.files import name_key
from core.families.prompt_weights import escape_brackets
from core.generation.images.gallery import LONGEST, Gallery
from core.generation.model.library import ambiguity_advice, prompt_names, tokens_of_file, trained_token
from core.generation.model.wildcard_files import wildcard_names
from core.generation.plan.stages import passes_of
from core.generation.prompt.analysis import Analysis, Parsing, Part, analyze, has_settings
from core.generation.prompt.styles import Style, read_styles, styles_of_csv, write_styles
from core.record import atomic
from core.record.bounded_json import read_json
from core.record.problems import ProblemsError
from core.record.workspace import Workspace, resolve_path
from core.settings.job import GenerateJob
from tabs.form.model_lists import ModelLists
from tabs.form.plain_form import PlainForm, Values
from tabs.generate import form
from tabs.markup import button, esc, short

if TYPE_CHECKING:
    from tabs.context import Page

PROMPTS = ("prompt", "negative_prompt")
COUNTED_BY = ("embeddings", "dynamic_prompts", "prompt_weights")  # settings that change the token count of a prompt
OPTIONS = 12  # of a completion
MAX_HISTORY, MAX_LENGTH = 200, 20_000  # prompts of the history, and the characters of each
HISTORY_IMAGES = 200  # newest images whose prompts are in it too
WINDOWS_SHOWN = 4
Pair = tuple[str, str]  # a prompt and its negative prompt


class PromptBox:
    """Server side of the two prompt fields. form: the form of the tab; gallery: images whose prompts are in the history"""

    def __init__(self, page: Page, form: PlainForm, gallery: Gallery, model_lists: ModelLists):
        self.page, self._form, self._model_lists = page, form, model_lists
        self.history = History(page, gallery)
        self._before: list[tuple[str, list[Style]]] = []  # undo of styles: (name of the change, styles before it)
        self._handlers: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "look": self._text_state,
            "complete": self._complete,
            "choose": self._choose_embedding,
            "history": lambda request: {"entries": self.history.entries()},
            "import": self._import,
        }

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer a request of the script by its "act": "look" (`_text_state`), "complete", "choose" (an embedding), "history" or "import"
        (styles); {} for an unknown one. Raises ProblemsError."""
        handler = self._handlers.get(str(request.get("act")))
        return handler(request) if handler is not None else {}

    # -- while typing

    def _text_state(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return {"meter", "marks", "settings"} of the prompt {"name", "text"} that is being typed.

        meter     text of the token counts
        marks     problems with "start" and "end" in UTF-16 code units
        settings  whether the text is A1111's text of an image, with settings
        """
        values, text = self._form.load(), _text(request.get("text"))
        negative = request.get("name") == "negative_prompt"
        dynamic, weighted = bool(values["dynamic_prompts"]), bool(values["prompt_weights"])
        mode = replace(self._parsing(values), dynamic=dynamic, weighted=weighted, negative=negative)
        embeddings = form.chosen_embeddings(values, self.page)
        chosen = [(word, each.path, each.token) for each in embeddings for word in each.names]
        names = replace(
            prompt_names(self.page.workspace, chosen),
            lora=lambda name: ambiguity_advice("lora", name, self._model_lists.find(name)),
            unchosen=self._run_embeddings().keys() - {word for word, *_ in chosen},
        )
        analysis = analyze(text, names, mode)
        offsets = _utf16(text)
        marks = [
            {
                "start": offsets[each.start],
                "end": offsets[each.end],
                "level": each.problem.level,
                "what": each.problem.what,
                "fix": each.problem.fix,
                "code": each.problem.code,
            }
            for each in analysis.findings
        ]
        return {"meter": meter(analysis), "marks": marks, "settings": not negative and has_settings(text)}

    def _parsing(self, values: Values) -> Parsing:
        """Return how prompts are parsed with the form's settings; the defaults if the form is invalid."""
        with suppress(ProblemsError):  # which the fields show
            job = self._form.job(values)
            assert isinstance(job, GenerateJob)
            return Parsing(passes=tuple(each for each in passes_of(job) if each is not None))
        return Parsing()

    def _complete(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return {"options", "length": number of typed characters to replace} for {"kind", "value": typed text}.

        kind: "lora", "wildcard" or "word". No "length" without options.
        """
        kind, value = str(request.get("kind")), _text(request.get("value"))[:200]
        sources = {"lora": self._loras, "wildcard": self._wildcards}
        if kind in sources:
            return {"options": sources[kind](value)[:OPTIONS], "length": len(value)}
        for text in dict.fromkeys((value, value.rpartition(" ")[2])):
            options = self._word_options(text) if len(text) > 1 else []
            if options:
                return {"options": options, "length": len(text)}
        return {"options": []}

    def _loras(self, value: str) -> list[dict[str, str]]:
        """Return completions (`_option`) of a LoRA tag from LoRA names. value: typed part of the name"""
        names = Counter(each.path.stem for each in self._model_lists.of(["lora"]))
        labels = [
            each.label if names[each.path.stem] > 1 else each.path.stem for each in self._model_lists.of(["lora"])
        ]
        return [_option(name, f"<lora:{name}:1>", "LoRA") for name in _matching_names(labels, value)]

    def _wildcards(self, value: str) -> list[dict[str, str]]:
        """Return completions (`_option`) of a wildcard name. value: typed part of the name"""
        return [
            _option(name, f"__{name}__", "wildcard")
            for name in _matching_names(wildcard_names(self.page.workspace), value)
        ]

    def _word_options(self, value: str) -> list[dict[str, str]]:
        """Return completions (`_option`) for the typed text `value`: embeddings, then tags. LoRAs are left out, since their names may be
        trigger words."""
        listed = (Path(each.name) for each in self._model_lists.of(["embedding"]))
        files = (path for path in listed if path.parts[0] == "models")
        tokens = (token or path.stem for path in files for token in tokens_of_file(resolve_path(str(path))))
        chosen_by = self._run_embeddings() | {token: "" for token in tokens}
        options = [
            _option(name, name, "embedding") | ({"choose": chosen_by[name]} if chosen_by[name] else {})
            for name in _matching_names(list(chosen_by), value)
        ]
        return (options[: OPTIONS // 2] + self._tags(value))[:OPTIONS]

    def _run_embeddings(self) -> dict[str, str]:
        """Return {token: name of the file in settings} of the runs' newest embedding files; prompts can use them once they are chosen."""
        files = {
            each.name: each.path for each in self._model_lists.of(["embedding"]) if each.name.startswith("outputs/")
        }
        return {trained_token(path) or path.stem: name for name, path in reversed(files.items())}

    def _choose_embedding(self, request: dict[str, Any]) -> dict[str, Any]:
        """Add the run's embedding request["name"] (name of the file in settings) to the form's embeddings. Returns {}."""
        name, chosen = request.get("name"), self._form.load()["embeddings"]
        if name in self._run_embeddings().values() and name not in chosen:
            self._form.update({"embeddings": [*chosen, name]})
        return {}

    def _tags(self, value: str) -> list[dict[str, str]]:
        """Return completions (`_option`) from tags, as in Captions: tags of the dataset, then of the lists in models/tag_lists.
        value: typed text"""
        if self.page.complete_tags is not None:
            listed = [(each["tag"], each["count"], each["alias"]) for each in self.page.complete_tags(value)["options"]]
        else:
            known = tag_lists(self.page.workspace)[0].complete(value, OPTIONS) if comparable(value) else []
            listed = [(tag_words(each.tag), each.post_count, each.alias) for each in known]
        return [_option(tag, escape_brackets(tag), f"{post_count:,}", alias) for tag, post_count, alias in listed]

    # -- styles

    def act(self, act: str, name: str, value: str) -> None:
        """Handle an event of the styles menu: "style" (use or not), "style_save", "style_delete" or "style_undo". Raises ProblemsError.

        name: of the style; value: "true" to use it, or the name to save under
        """
        if act == "style":
            self._choose(name, value == "true")
        elif act == "style_save":
            values = self._form.load()
            style = Style(value.strip(), values["prompt"], values["negative_prompt"])
            styles = read_styles(self.page.workspace)
            verb = "Replaced" if style.name in styles else "Saved"
            self._change(f"{verb} {short(style.name, 40)}", [*(styles | {style.name: style}).values()])
        elif act == "style_delete":
            styles = read_styles(self.page.workspace)
            self._change(f"Deleted {short(name, 40)}", [each for each in styles.values() if each.name != name])
            self._choose(name, False)
        elif act == "style_undo" and self._before:
            write_styles(self.page.workspace, self._before.pop()[1])

    def _choose(self, name: str, chosen: bool) -> None:
        """Add style `name` to the form's styles (`chosen`) or remove it."""
        values = self._form.load()
        styles = [each for each in values["styles"] if each != name] + ([name] if chosen else [])
        if styles != values["styles"]:
            self._form.update({"styles": styles})

    def _change(self, title: str, styles: list[Style]) -> None:
        """Write the styles, and store the earlier ones for Undo under the name of the change, `title`."""
        before = list(read_styles(self.page.workspace).values())
        write_styles(self.page.workspace, styles)
        self._before = [*self._before[-20:], (title, before)]

    def _import(self, request: dict[str, Any]) -> dict[str, Any]:
        """Import the styles of A1111's styles.csv in "text"; a style replaces the one of the same name. Returns {"said": message}."""
        new = {style.name: style for style in styles_of_csv(_text(request.get("text")))}
        self._change(f"Imported {len(new)} styles", [*(read_styles(self.page.workspace) | new).values()])
        return {"said": f"Imported {len(new)} styles"}

    def html(self, render_field: Callable[[str], str], values: Values) -> str:
        """Return the HTML of the two prompt fields, history and styles. render_field: function of a field name that returns its HTML"""
        counted = esc(json.dumps([values[name] for name in COUNTED_BY]))
        boxes = "".join(
            f'<div class="prompt-box" data-counted="{counted}"><div class="prompt-under" aria-hidden="true"></div>{render_field(name)}'
            f'<div class="prompt-strip"></div></div>'
            for name in PROMPTS
        )
        history = '<button type="button" class="btn quiet" id="gen-history" title="Alt+Up, Alt+Down">History</button>'
        chips = "".join(
            button("style", f"{name} \u00d7", name, kind="chip", label=f"Remove the style {name}")
            for name in values["styles"]
        )
        chips = f'<div class="prompt-chips">{chips}</div>' if chips else ""
        return f'{boxes}<div class="prompt-tools">{history}{self._styles(values["styles"])}</div>{chips}'

    def _styles(self, chosen: Iterable[str]) -> str:
        """Return the HTML of the styles menu. chosen: names of the styles in use"""
        error_html, styles = "", dict[str, Style]()
        try:
            styles = read_styles(self.page.workspace)
        except ProblemsError as error:
            error_html = f'<p class="hint">{esc(error.problems[0].what)}: {esc(error.problems[0].where)}</p>'
        marked = set(chosen)
        rows = "".join(
            f'<li title="{esc(short(" / ".join(filter(None, (each.prompt, each.negative_prompt))), 300))}"><label>'
            f'<input type="checkbox" data-act="style" data-arg="{esc(each.name)}"{" checked" * (each.name in marked)}>'
            f"<span>{esc(each.name)}</span></label>"
            f"{button('style_delete', 'Delete', each.name, kind='quiet', label=f'Delete the style {each.name}')}</li>"
            for each in styles.values()
        )
        undo = button("style_undo", f"Undo: {self._before[-1][0]}", kind="row") if self._before else ""
        none = '<p class="hint">No styles yet. Write a prompt and save it as one; {prompt} in it wraps others.</p>'
        return (
            '<details class="menu" id="gen-styles"><summary class="btn quiet">Styles</summary>'
            '<div class="menu-items" role="group" aria-label="Styles">'
            f'{error_html}{f"<ul>{rows}</ul>" if rows else none}<div class="with-button"><input type="text" class="text" '
            'id="gen-style-name" aria-label="Name of the style" placeholder="Name" maxlength="100">'
            '<button type="button" class="btn" data-act="style_save" data-from="gen-style-name">Save prompts as</button>'
            f'</div>{undo}<label class="btn row">Import styles.csv<input type="file" accept=".csv" id="gen-styles-file" '
            'class="prompt-file"></label><button type="button" hidden id="gen-styles-again" data-act="style_again">'
            f"</button></div></details>"
        )


def meter(analysis: Analysis) -> str:
    """Return the token counts by window, such as "75/75, 38/75", of each prompt joined by AND."""
    counts = " AND ".join(_windows(part) for part in analysis.parts[:WINDOWS_SHOWN])
    more = f" AND {len(analysis.parts) - WINDOWS_SHOWN} more" if len(analysis.parts) > WINDOWS_SHOWN else ""
    return f"about {counts}{more}" if analysis.drawn and counts else counts + more


def _windows(part: Part) -> str:
    """Return the token counts of one prompt's windows, such as "75/75, 38/75"."""
    if len(part.windows) > WINDOWS_SHOWN:
        return f"{len(part.windows)} windows, {part.windows[-1]}/75 in the last"
    return ", ".join(f"{number}/75" for number in part.windows)


def _option(name: str, text: str, about: str, alias: str = "") -> dict[str, str]:
    """Return a completion for the script: name as listed, text to insert, kind or count, and the other spelling that matched."""
    return {"name": name, "text": text, "about": about, "alias": alias}


def _matching_names(names: Iterable[str], value: str) -> list[str]:
    """Return the names that begin with `value`, then those that contain it, at most OPTIONS."""
    text = name_key(value.strip())
    matches = [name for name in names if text in name_key(name)]
    return sorted(matches, key=lambda name: not name_key(name).startswith(text))[:OPTIONS]


def _text(value: Any) -> str:
    """Return a browser's text with lone surrogates replaced; "" if it is not a text."""
    text = value if isinstance(value, str) else ""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _utf16(text: str) -> range | list[int]:
    """Return the UTF-16 offset, as browsers count, of each character index of `text`, and of its end."""
    if text.isascii():
        return range(len(text) + 1)
    offsets = [0]
    for letter in text:
        offsets.append(offsets[-1] + (2 if ord(letter) > 0xFFFF else 1))
    return offsets


class History:
    """The prompts of earlier generations, newest first, followed by those of the newest images."""

    def __init__(self, page: Page, gallery: Gallery):
        self.page, self._gallery = page, gallery

    def add(self, job: GenerateJob) -> None:
        """Add the prompts of `job`, unless the prompt is empty or both prompts together exceed MAX_LENGTH characters."""
        pair = (job.generate.prompt, job.generate.negative_prompt)
        if not pair[0].strip() or sum(map(len, pair)) > MAX_LENGTH:
            return
        prompts = [pair, *(each for each in self._stored() if each != pair)][:MAX_HISTORY]
        atomic.write_json(_file(self.page.workspace), {"prompts": prompts})

    def entries(self) -> list[Pair]:
        """Return at most MAX_HISTORY different (prompt, negative prompt) pairs, newest first."""
        return list(dict.fromkeys([*self._stored(), *self._image_prompts()]))[:MAX_HISTORY]

    def _stored(self) -> list[Pair]:
        """Return the stored (prompt, negative prompt) pairs; [] if the file is missing or damaged."""
        path = _file(self.page.workspace)
        try:
            stored = read_json(path).get("prompts", []) if path.exists() else []
            return [(str(prompt), str(negative)) for prompt, negative in stored]
        except (ProblemsError, AttributeError, TypeError, ValueError):  # a damaged file; prompts of images remain
            return []

    def _image_prompts(self) -> Iterable[Pair]:
        """Yield (prompt, negative prompt) of the newest images."""
        for shot in self._gallery.newest()[:HISTORY_IMAGES]:
            facts = self._gallery.facts(shot.name)
            is_whole = max(len(facts.prompt), len(facts.negative)) < LONGEST  # longer ones are cut in the index
            if facts.prompt and is_whole:
                yield facts.prompt, facts.negative


def _file(workspace: Workspace) -> Path:
    """Return the path of the file that stores the prompt history."""
    return workspace.personal_private / "prompts.json"
