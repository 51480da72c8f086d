"""LoRAs in Generate: cards of the LoRAs in use with strengths, steps and trigger words, and the list of all."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import gradio as gr

from core.families.prompt_weights import literal
from core.formats.detect import identify
from core.generation.model.embeddings import find_embedding
from core.generation.model.index import FileFacts, facts_of_file
from core.generation.model.library import find_file, portable_name
from core.generation.prompt.loras import LoraTag
from core.generation.prompt.runs import parts_of
from core.networks.block_weights import PRESETS
from core.record.file_titles import file_stem
from core.record.problems import Problem, collected
from core.record.units import count, first_of
from core.record.workspace import Workspace
from core.settings.base import Declared
from core.settings.generation.generate import LoraUse
from tabs.context import Page
from tabs.form.bars import weight_bars
from tabs.form.form_values import changed_values, entries
from tabs.form.lora_card import LORAS, card, copy_button, strength_slider, strip
from tabs.form.lora_steps import Checkpoint, checkpoints, one_for_each_run
from tabs.form.model_lists import Listed, ModelLists, model_lists, network_text
from tabs.form.picker import check_choice, file_named, matching, misfit
from tabs.form.picker import rows as rows_of
from tabs.form.plain_form import PlainForm
from tabs.form.view import FieldView
from tabs.generate import form
from tabs.generate.cards import add_buttons
from tabs.generate.panel import model_of
from tabs.generate.view import strengths
from tabs.markup import arg_now, board_event, button, esc, index_of, middle, options, row_of, short

MAX_OPTIONS = 300  # files in a datalist
ROW_WIDTH, WORD_WIDTH = 38, 32  # characters of the trigger words in a row, and of one
MAX_WORDS = 16  # trigger words of a LoRA
FRAME = 3  # width of a trigger word's border in characters
PARTS: dict[str, Declared] = entries(LoraUse, "lora")
REGION_COLORS = ("red", "green", "blue")  # of a region map, by the place of a prompt
DETAILS = ("text_encoder_strength", "start_at", "end_at", "block_weights")


# -- the list


def picker(lists: ModelLists, family: str, query: str, page: Page) -> str:
    """HTML of the closed list of LoRAs with a search: those that fit the model, then the others, dimmed, with the reason."""
    loras = lists.of(["lora"])
    number = len(one_for_each_run(loras, page.workspace))

    def reason(each: Listed) -> str:
        return misfit(each.facts, each.path, ["lora"], family)

    rows = rows_of(matching(loras, query), page, reason, lambda path: page.picker.chooses(path, LORAS), LORAS, "Add")
    none = "" if rows else f'<li class="hint">{_nothing(bool(query and loras))}</li>'
    offered = "".join(
        f'<datalist id="gen-{kind}s">{options((each.text, each.name) for each in lists.of([of])[:MAX_OPTIONS])}</datalist>'
        for kind, of in (("model", "checkpoint"), ("refiner", "refiner"), ("vae", "vae"), ("upscaler", "upscaler"))
    )
    return (
        f'<div class="gen-adds" role="group" aria-label="Add"><details class="picker" data-group="lora-add">'
        f'<summary class="btn" title="Choose a LoRA">+ LoRA</summary><div class="gen-offers"><div class="line">'
        f'<input type="search" class="text" id="gen-find" data-act="find" data-live value="{esc(query)}" '
        f'placeholder="Search {count(number, "LoRA")}" aria-label="Search LoRAs" autocomplete="off">'
        f"{button('refresh', 'Refresh', kind='quiet')}</div>"
        f'<ul tabindex="0" class="loras lora-cards model-offers">{rows}{none}</ul></div></details>'
        f"{add_buttons()}</div>{offered}"
    )


def _nothing(searched: bool) -> str:
    return (
        "No LoRA has these words." if searched else "There is no LoRA yet. Train one, or put files into models/loras."
    )


# -- the rows


def rows(
    uses: Sequence[dict[str, Any]],
    tags: Sequence[LoraTag],
    notes: str,
    page: Page,
    family: str,
    prompt: str,
    areas: Mapping[int, str] = {},
) -> str:
    """HTML of a card for each LoRA, and a note on the LoRAs in the prompt. notes: further HTML; family: of the model; areas: as of
    `areas_of`"""
    named = ", ".join(_tag_text(tag, uses) for tag in tags)
    notes = (f'<p class="hint">From the prompt: {esc(named)}</p>' if named else "") + notes
    if not uses:
        return notes
    listed = "".join(
        _card(number, use, len(uses), family, prompt, page, areas.get(number, "")) for number, use in enumerate(uses)
    )
    names = "".join(f'<option value="{name}">' for name in PRESETS)
    return f'<ul class="loras lora-cards">{listed}</ul><datalist id="lora-blocks">{names}</datalist>{notes}'


def _tag_text(tag: LoraTag, uses: Sequence[dict[str, Any]]) -> str:
    """Text of a LoRA of the prompt, "fox 0.7", or "fox 0.7 + 0.8 of its card = 1.5": strengths add up. The sum is left out where
    there is more than one: strengths of the text encoder, of blocks or of some steps."""
    text = f"{tag.name} {strengths(tag.unet, tag.text_encoder)}"
    matching = [use for use in uses if file_stem(str(use["file"])) == tag.name and use.get("enabled", True)]
    if not matching:
        return text
    uniform = tag.unet == tag.text_encoder and tag.block_weights is None and tag.steps == (0, None)
    if not uniform or any(map(_has_details, matching)):
        return f"{text}, added to its card"
    cards = sum(float(use["strength"]) for use in matching)
    return f"{text} + {cards:g} of its card = {tag.unet + cards:g}"


def _has_details(use: dict[str, Any]) -> bool:
    return any(use.get(name, PARTS[name].default) != PARTS[name].default for name in DETAILS)


def areas_of(values: Mapping[str, Any]) -> dict[int, str]:
    """{index of a LoRA in use: where it acts} with a region map: the n-th acts where prompt n does; {} without regions."""
    parts = parts_of(str(values["prompt"]))
    if not values.get("region_map") or len(parts) < 2:
        return {}
    acting = [number for number, use in enumerate(values["loras"]) if LoraUse.model_validate(use).used]
    if values.get("network_regional_mask_max_color_codes"):  # with colors of its own
        areas = [f"prompt {place}" for place in range(1, len(parts) + 1)]
    else:
        areas = [f"prompt {place}, {color}" for place, color in enumerate(REGION_COLORS, 1)][: len(parts)]
    return dict(zip(acting, [*areas, *["whole image"] * len(acting)], strict=False))


def _card(number: int, use: dict[str, Any], total: int, family: str, prompt: str, page: Page, area: str = "") -> str:
    """HTML of a LoRA's card. area: where it acts"""
    lora, file_facts, why = file_named(str(use["file"]), page, family)
    facts, name = file_facts or FileFacts("lora"), lora.name
    on = use.get("enabled", True)
    remove = button("remove", "\u00d7", number, kind="quiet", label=f"Remove {name}")
    fitting = _words_in_row(facts.words)
    others = _word_buttons(number, facts.words[:MAX_WORDS], prompt, fitting)
    about = " \u00b7 ".join(filter(None, [area, facts.problem or network_text(facts)]))
    head = (
        f'<label><input type="checkbox" data-act="on" data-arg="{number}" aria-label="Use {esc(name)}"'
        f'{" checked" if on else ""}><b title="{esc(name)}">{middle(name)}</b></label><span class="grow"></span>{remove}'
    )

    def swaps(each: Checkpoint) -> str:
        return f'data-act="step" data-arg="{number}:{esc(each.path.name)}"'

    return card(
        lora,
        page.thumb_url,
        head=head,
        middle=strength_slider(
            name, float(use["strength"]), f"lora-{number}-", f'data-act="strength" data-arg="{number}"'
        ),
        words=_word_buttons(number, facts.words[:fitting], prompt),
        about=about,
        why=why,
        steps=strip(lora, swaps, page.thumb_url),
        below=_details(
            number, use, others, facts.family or family, _tools(number, name, total, lora.path if file_facts else None)
        ),
        attributes=f' class="{"" if on else "is-off"}"{row_of(str(use["file"]))} data-lora="{esc(use["file"])}"',
    )


def _tools(number: int, name: str, total: int, path: Path | None) -> str:
    """HTML of the buttons of a card's details: its place in the list, and its path."""
    moves = button("up", "\u2191", number, label=f"Move {name} up", disabled=number == 0, again=True)
    moves += button("down", "\u2193", number, label=f"Move {name} down", disabled=number == total - 1, again=True)
    if path is not None:
        moves += copy_button(path, name)
    return f'<div class="strip">{moves}</div>'


def _words_in_row(triggers: Sequence[str]) -> int:
    """Number of trigger words that fit the row; the others are in its details."""
    widths = accumulate(min(len(word), WORD_WIDTH) + FRAME for word in triggers)
    return max(1, sum(each <= ROW_WIDTH for each in widths))


def _word_buttons(number: int, words: Sequence[str], prompt: str, first: int = 0) -> str:
    """HTML of trigger words, beginning with index `first`, as buttons that append them to the prompt."""
    chips = "".join(
        f'<button type="button" class="word" data-act="word" data-arg="{number}:{index}" title="Append to the prompt"'
        f"{' disabled' if has_word(prompt, word) else ''}>{esc(short(word, WORD_WIDTH))}</button>"
        for index, word in enumerate(words[first:], first)
    )
    return f'<div class="words" role="group" aria-label="Trigger words">{chips}</div>' if chips else ""


def embeddings_help(triggers: Sequence[str]) -> str:
    """The line below the label of Embeddings. triggers: of the chosen ones"""
    return f"In prompts: {first_of(triggers, MAX_WORDS)}" if triggers else "Prompts name them by file name."


def has_word(prompt: str, word: str) -> bool:
    return any(each.lower() in prompt.lower() for each in (word, literal(word)))


def _details(number: int, use: dict[str, Any], word_buttons: str, family: str, tools: str) -> str:
    """HTML of closed details: strengths by part, block and step.

    word_buttons   HTML of further trigger words      family   of the LoRA      tools   HTML of buttons
    """
    fields = block_bars = ""
    for name in DETAILS:
        entry = PARTS[name]
        blocks, id, value = entry.widget == "block weights", f"lora-{number}-{name}", use.get(name, entry.default)
        suggestions = "lora-blocks" if blocks else ""
        fields += FieldView(entry, value, "part", f"{number}:{name}", id, empty=entry.hint, offers=suggestions).line()
        block_bars += weight_bars(family, id) if blocks else ""
    return (
        f'<details data-group="lora {esc(use["file"])}"><summary title="Strengths by part, block and step" '
        f'aria-label="Strengths by part, block and step" class="{"is-set" if _has_details(use) else ""}">\u22ef</summary>'
        f'{word_buttons}{tools}<div class="concept-fields">{fields}{block_bars}</div></details>'
    )


# -- changes


def changed(values: dict[str, Any], act: str, arg: str, value: str, page: Page) -> dict[str, Any]:
    """Return the form's values after an act on a LoRA's card. Raises ProblemsError."""
    index_text, _, detail = arg.partition(":")
    uses = list(values.get("loras", []))
    if (number := index_of(index_text, len(uses))) is None:
        return values
    if act == "word":
        word = _word(uses[number], detail, page.workspace)
        word = literal(word) if values["prompt_weights"] else word
        return values | {"prompt": with_word(str(values["prompt"]), word)}
    if act == "remove":
        del uses[number]
    elif act in ("up", "down"):
        neighbor = number - 1 if act == "up" else number + 1
        if 0 <= neighbor < len(uses):
            uses[number], uses[neighbor] = uses[neighbor], uses[number]
    elif act == "step":
        uses[number] = uses[number] | {"file": _other_step(uses[number], detail, page)}
    elif act == "on":
        uses[number] = uses[number] | {"enabled": value == "true"}
    elif act in ("strength", "part"):
        name = "strength" if act == "strength" else detail
        if name not in (*DETAILS, "strength"):
            return values
        uses[number] = changed_values(PARTS, uses[number], name, value, page.roots)
    return values | {"loras": uses}


def _other_step(use: dict[str, Any], name: str, page: Page) -> str:
    """The checkpoint of this name of the LoRA's run, as images name it; the LoRA's own file if it no longer exists."""
    steps = checkpoints(page, find_file(str(use["file"]), page.workspace))
    path = next((each.path for each in steps if each.path.name == name), None)
    return portable_name(path, page.workspace) if path is not None else str(use["file"])


def _word(use: dict[str, Any], index: str, workspace: Workspace) -> str:
    path = find_file(str(use["file"]), workspace)
    words = facts_of_file(path).words if path is not None else ()
    return words[number] if (number := index_of(index, len(words))) is not None else ""


def with_word(prompt: str, word: str) -> str:
    """Return the prompt with a word appended, unless it contains it."""
    if not word or has_word(prompt, word):
        return prompt
    start = prompt.rstrip().rstrip(",")
    return f"{start}, {word}" if start else word


class Loras:
    """Handlers for LoRAs. fields: the form, which stores those in use"""

    def __init__(self, page: Page, fields: PlainForm):
        self.page, self.fields, self.model_lists = page, fields, model_lists(page.workspace)

    def _family(self, values: dict[str, Any]) -> str:
        return model_of(values, self.page.project.job.model, self.page.workspace).family

    def rows(self) -> str:
        values = self.fields.load()
        marked = form.marked_for_zero_snr(
            values, self.page.project.job, self.page.workspace, lambda name: self.model_lists.find(name)[0]
        )
        use = "but it is off." if values["zero_terminal_snr"] == "off" else "and it is used."
        note = f'<p class="hint">Trained with zero terminal SNR: {esc(", ".join(marked))}, {use}</p>' if marked else ""
        prompt = str(values["prompt"])
        family = self._family(values)
        return rows(values["loras"], form.tags_of(prompt), note, self.page, family, prompt, areas_of(values))

    def picker(self) -> str:
        """HTML of the list, with the query of the browser."""
        query = self.page.browser.lora_query
        return picker(self.model_lists, self._family(self.fields.load()), query, self.page)

    def embeddings(self) -> Any:
        """Update of the dropdown with the embeddings, those that fit the model first."""
        values = self.fields.load()
        chosen, family = values["embeddings"], self._family(values)
        offered = self.model_lists.of(["embedding"])
        reasons = {each.name: misfit(each.facts, each.path, ["embedding"], family) for each in offered}
        listed = [(each.with_reason(reasons[each.name]), each.name) for each in offered]
        listed.sort(key=lambda item: bool(reasons[item[1]]))  # stable
        listed += [(text, text) for text in chosen if text not in reasons]
        about = embeddings_help([word for each in form.chosen_embeddings(values, self.page) for word in each.names])
        return gr.Dropdown(choices=listed, value=chosen, multiselect=True, allow_custom_value=True, info=about)

    def refused_embedding(self, text: str) -> list[Problem]:
        """The problem of an embedding that does not fit the model; [] if it fits or is missing, which the start reports."""
        family, problems = self._family(self.fields.load()), list[Problem]()
        embedding = collected(list[Problem](), find_embedding, text, self.page.workspace)
        if embedding is not None and family and self.page.roots.holds(embedding.path):
            collected(problems, lambda: check_choice(identify(embedding.path), embedding.path, ["embedding"], family))
        return problems

    def _fitting(self, name: str, values: dict[str, Any]) -> Path:
        """The file of a LoRA of the list. Raises ProblemsError if it does not fit the model."""
        path = self.model_lists.named(name).path
        check_choice(identify(path), path, ["lora"], self._family(values))
        return path

    def act(self, event: gr.EventData) -> str | None:
        """Handle an event of the list or a card. Returns the HTML of the list if nothing else changes, else None. Raises
        ProblemsError."""
        act, arg, value = board_event(event)
        if act in ("find", "refresh", "add"):
            self.page.browser.lora_query = value[:100] if act == "find" else ""
        if act == "refresh":
            self.model_lists.read()
        if act in ("find", "refresh"):
            return self.picker()
        with self.page.project.lock:
            values = self.fields.load()
            if act == "add":
                after = form.add_lora(values, self._fitting(arg, values), self.page.workspace)
            else:
                arg = arg_now(event, [str(use["file"]) for use in values["loras"]])
                after = changed(values, act, arg, value, self.page)
            self.fields.put(after)
        return None
