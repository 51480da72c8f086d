"""LoRAs of the Generate form: a card for each with strength, steps and trigger words, and the list to choose from."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import gradio as gr

from core.families.prompt_weights import escape_brackets
from core.formats.detect import identify
from core.generation.model.embeddings import find_embedding
from core.generation.model.index import FileFacts, facts_of_file
from core.generation.model.library import find_file, portable_name
from core.generation.prompt.loras import LoraTag, strengths
from core.generation.prompt.runs import parts_of
from core.generation.prompt.wildcards import escape_variants
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
from tabs.form.model_lists import Listed, model_lists, network_text
from tabs.form.picker import check_choice, file_named, matching, misfit
from tabs.form.picker import rows as rows_of
from tabs.form.plain_form import PlainForm
from tabs.form.view import FieldView
from tabs.generate import form
from tabs.generate.cards import add_buttons
from tabs.generate.panel import model_of
from tabs.markup import arg_now, board_event, button, esc, index_of, middle, options, row_of, short

MAX_OPTIONS = 300  # files in a datalist
ROW_WIDTH, WORD_WIDTH = 38, 32  # characters of the trigger words in a row, and of one
MAX_WORDS = 16  # trigger words of a LoRA
FRAME = 3  # width of a trigger word's border in characters
PARTS: dict[str, Declared] = entries(LoraUse, "lora")
REGION_COLORS = ("red", "green", "blue")  # of a region map, by the place of a prompt
# {name in the id: kind of files}
DATALISTS = {"model": "checkpoint", "refiner": "refiner", "vae": "vae", "upscaler": "upscaler"}
NO_LORAS = "There is no LoRA yet. Train one, or put files into models/loras."
DETAILS = ("text_encoder_strength", "start_at", "end_at", "block_weights")


# -- the cards


def _tag_text(tag: LoraTag, uses: Sequence[dict[str, Any]]) -> str:
    """Return the text of a LoRA tag, "fox 0.7", with the added strength of its cards, "fox 0.7 + 0.8 of its card = 1.5".

    The sum is left out if strengths differ by part, block or step. uses: values of the LoRAs in the form
    """
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
    """Return whether a LoRA has strengths by part, block or step."""
    return any(use.get(name, PARTS[name].default) != PARTS[name].default for name in DETAILS)


def areas_of(values: Mapping[str, Any]) -> dict[int, str]:
    """Return {index of a LoRA in the form: text of the area where it acts} with a region map; {} without one.

    The n-th active LoRA acts in the region of the n-th prompt; further ones act on the whole image.
    """
    parts, placed = parts_of(str(values["prompt"])), form.placed_loras(values)
    if not values.get("region_map") or len(parts) < 2:
        return {}
    if values.get("network_regional_mask_max_color_codes"):  # with colors of its own
        areas = [f"prompt {position}" for position in range(1, len(parts) + 1)]
    else:
        areas = [f"prompt {position}, {color}" for position, color in enumerate(REGION_COLORS, 1)][: len(parts)]
    return dict(zip(placed, [*areas, *["whole image"] * len(placed)], strict=False))


def _card(index: int, use: dict[str, Any], total: int, family: str, prompt: str, page: Page, area: str = "") -> str:
    """Return the HTML of a LoRA's card.

    index   index in the form's LoRAs
    use     values of the LoRA, {"file", "strength", ...}
    total   number of LoRAs in the form
    family  of the base model, "" if unknown
    area    text of the area where the LoRA acts, "" for the whole image
    """
    lora, file_facts, why = file_named(str(use["file"]), page, family)
    facts, name = file_facts or FileFacts("lora"), lora.name
    on = use.get("enabled", True)
    remove = button("remove", "\u00d7", index, kind="quiet", label=f"Remove {name}")
    fitting = _words_in_row(facts.words)
    others = _word_buttons(index, facts.words[:MAX_WORDS], prompt, fitting)
    about = " \u00b7 ".join(filter(None, [area, facts.problem or network_text(facts)]))
    head = (
        f'<label><input type="checkbox" data-act="on" data-arg="{index}" aria-label="Use {esc(name)}"'
        f'{" checked" if on else ""}><b title="{esc(name)}">{middle(name)}</b></label><span class="grow"></span>{remove}'
    )

    def step_attributes(each: Checkpoint) -> str:
        return f'data-act="step" data-arg="{index}:{esc(each.path.name)}"'

    return card(
        lora,
        page.thumb_url,
        first_line=head,
        second_line=strength_slider(
            name, float(use["strength"]), f"lora-{index}-", f'data-act="strength" data-arg="{index}"'
        ),
        third_line=_word_buttons(index, facts.words[:fitting], prompt),
        about=about,
        reason=why,
        steps=strip(lora, step_attributes, page.thumb_url),
        below=_details(
            index, use, others, facts.family or family, _tools(index, name, total, lora.path if file_facts else None)
        ),
        attributes=f' class="{"" if on else "is-off"}"{row_of(str(use["file"]))} data-lora="{esc(use["file"])}"',
    )


def _tools(index: int, name: str, total: int, path: Path | None) -> str:
    """Return the HTML of a card's buttons that move it up or down and copy its path.

    index: of the card; total: number of cards; path: None if the file is missing
    """
    moves = button("up", "\u2191", index, label=f"Move {name} up", disabled=index == 0, again=True)
    moves += button("down", "\u2193", index, label=f"Move {name} down", disabled=index == total - 1, again=True)
    if path is not None:
        moves += copy_button(path, name)
    return f'<div class="strip">{moves}</div>'


def _words_in_row(triggers: Sequence[str]) -> int:
    """Return how many trigger words fit into the card's row, at least 1; further ones are under the card's details."""
    widths = accumulate(min(len(word), WORD_WIDTH) + FRAME for word in triggers)
    return max(1, sum(each <= ROW_WIDTH for each in widths))


def _word_buttons(lora_index: int, triggers: Sequence[str], prompt: str, first: int = 0) -> str:
    """Return the HTML of trigger words, from index `first`, as buttons that append them to the prompt. lora_index: of the LoRA"""
    chips = "".join(
        f'<button type="button" class="word" data-act="word" data-arg="{lora_index}:{index}" title="Append to the prompt"'
        f"{' disabled' if has_word(prompt, word) else ''}>{esc(short(word, WORD_WIDTH))}</button>"
        for index, word in enumerate(triggers[first:], first)
    )
    return f'<div class="words" role="group" aria-label="Trigger words">{chips}</div>' if chips else ""


def embeddings_help(triggers: Sequence[str]) -> str:
    """Return the help text of the Embeddings field. triggers: trigger words of the chosen embeddings"""
    return f"In prompts: {first_of(triggers, MAX_WORDS)}" if triggers else "Prompts name them by file name."


def has_word(prompt: str, word: str) -> bool:
    """Return whether the prompt contains the word, as it is or escaped; case is ignored."""
    spellings = [each for text in (word, escape_brackets(word)) for each in (text, escape_variants(text))]
    return any(each.lower() in prompt.lower() for each in spellings)


def _details(index: int, use: dict[str, Any], word_buttons: str, family: str, tools: str) -> str:
    """Return the HTML of a card's collapsed details: strengths by part, block and step.

    index         index of the LoRA
    word_buttons  HTML of further trigger words
    family        of the LoRA
    tools         HTML of further buttons
    """
    fields = block_bars = ""
    for name in DETAILS:
        entry = PARTS[name]
        blocks, id, value = entry.widget == "block weights", f"lora-{index}-{name}", use.get(name, entry.default)
        suggestions = "lora-blocks" if blocks else ""
        fields += FieldView(entry, value, "part", f"{index}:{name}", id, empty=entry.hint, offers=suggestions).line()
        block_bars += weight_bars(family, id) if blocks else ""
    return (
        f'<details data-group="lora {esc(use["file"])}"><summary title="Strengths by part, block and step" '
        f'aria-label="Strengths by part, block and step" class="{"is-set" if _has_details(use) else ""}">\u22ef</summary>'
        f'{word_buttons}{tools}<div class="concept-fields">{fields}{block_bars}</div></details>'
    )


# -- changes


def changed(values: dict[str, Any], act: str, arg: str, value: str, page: Page) -> dict[str, Any]:
    """Return form `values` after an event on a LoRA's card. Raises ProblemsError.

    act    "word", "remove", "up", "down", "step", "on", "strength" or "part"
    arg    index of the LoRA, followed by ":index" of a word, ":file name" of a step or ":field" of a part
    value  new text of the changed field
    """
    index_text, _, detail = arg.partition(":")
    uses = list(values.get("loras", []))
    if (index := index_of(index_text, len(uses))) is None:
        return values
    if act == "word":
        word = _word(uses[index], detail, page.workspace)
        word = escape_brackets(word) if values["prompt_weights"] else word
        word = escape_variants(word) if values["dynamic_prompts"] else word
        return values | {"prompt": with_word(str(values["prompt"]), word)}
    if act == "remove":
        del uses[index]
    elif act in ("up", "down"):
        neighbor = index - 1 if act == "up" else index + 1
        if 0 <= neighbor < len(uses):
            uses[index], uses[neighbor] = uses[neighbor], uses[index]
    elif act == "step":
        uses[index] = uses[index] | {"file": _other_step(uses[index], detail, page)}
    elif act == "on":
        uses[index] = uses[index] | {"enabled": value == "true"}
    elif act in ("strength", "part"):
        name = "strength" if act == "strength" else detail
        if name not in (*DETAILS, "strength"):
            return values
        uses[index] = changed_values(PARTS, uses[index], name, value, page.roots)
    return values | {"loras": uses}


def _other_step(use: dict[str, Any], name: str, page: Page) -> str:
    """Return the name of the checkpoint file `name` of the LoRA's run; the LoRA's current file if there is no such checkpoint."""
    steps = checkpoints(page, find_file(str(use["file"]), page.workspace))
    path = next((each.path for each in steps if each.path.name == name), None)
    return portable_name(path, page.workspace) if path is not None else str(use["file"])


def _word(use: dict[str, Any], index: str, workspace: Workspace) -> str:
    """Return the trigger word at `index` (a text) of the LoRA; "" if there is none."""
    path = find_file(str(use["file"]), workspace)
    triggers = facts_of_file(path).words if path is not None else ()
    return triggers[word_index] if (word_index := index_of(index, len(triggers))) is not None else ""


def with_word(prompt: str, word: str) -> str:
    """Return the prompt with `word` appended, unless the prompt contains it already."""
    if not word or has_word(prompt, word):
        return prompt
    start = prompt.rstrip().rstrip(",")
    return f"{start}, {word}" if start else word


class Loras:
    """Render the LoRAs of the Generate form and handle their events. fields: the form, whose value "loras" lists the LoRAs"""

    def __init__(self, page: Page, fields: PlainForm):
        self.page, self.fields, self.model_lists = page, fields, model_lists(page.workspace)

    def _family(self, values: dict[str, Any]) -> str:
        """Return the family of the base model in form `values`, "" if unknown."""
        return model_of(values, self.page.project.job.model, self.page.workspace).family

    def rows(self) -> str:
        """Return the HTML of a card for each LoRA, and notes on those of the prompt and on zero terminal SNR."""
        values, notes = self.fields.load(), ""
        uses, prompt = values["loras"], str(values["prompt"])
        if named := ", ".join(_tag_text(tag, uses) for tag in form.tags_of(prompt)):
            notes += f'<p class="hint">From the prompt: {esc(named)}</p>'
        marked = form.marked_for_zero_snr(
            values, self.page.project.job, self.page.workspace, lambda name: self.model_lists.find(name)[0]
        )
        if marked:
            state = "but it is off." if values["zero_terminal_snr"] == "off" else "and it is used."
            notes += f'<p class="hint">Trained with zero terminal SNR: {esc(", ".join(marked))}, {state}</p>'
        if not uses:
            return notes
        family, areas = self._family(values), areas_of(values)
        listed = "".join(
            _card(index, use, len(uses), family, prompt, self.page, areas.get(index, ""))
            for index, use in enumerate(uses)
        )
        names = "".join(f'<option value="{name}">' for name in PRESETS)
        return f'<ul class="loras lora-cards">{listed}</ul><datalist id="lora-blocks">{names}</datalist>{notes}'

    def picker(self) -> str:
        """Return the HTML of the collapsed list of LoRAs with a search field. Those that do not fit the model come last, with why."""
        page, query, family = self.page, self.page.browser.lora_query, self._family(self.fields.load())
        loras = self.model_lists.of(["lora"])
        number = len(one_for_each_run(loras, page.workspace))

        def reason(each: Listed) -> str:
            return misfit(each.facts, each.path, ["lora"], family)

        rows = rows_of(
            matching(loras, query), page, reason, lambda path: page.picker.chooses(path, LORAS), LORAS, "Add"
        )
        why_empty = "No LoRA has these words." if query and loras else NO_LORAS
        none = f'<li class="hint">{why_empty}</li>'
        offered = "".join(
            f'<datalist id="gen-{name}s">{options((each.text, each.name) for each in self.model_lists.of([kind])[:MAX_OPTIONS])}</datalist>'
            for name, kind in DATALISTS.items()
        )
        return (
            f'<div class="gen-adds" role="group" aria-label="Add"><details class="picker" data-group="lora-add">'
            f'<summary class="btn" title="Choose a LoRA">+ LoRA</summary><div class="gen-offers"><div class="line">'
            f'<input type="search" class="text" id="gen-find" data-act="find" data-live value="{esc(query)}" '
            f'placeholder="Search {count(number, "LoRA")}" aria-label="Search LoRAs" autocomplete="off">'
            f"{button('refresh', 'Refresh', kind='quiet')}</div>"
            f'<ul tabindex="0" class="loras lora-cards model-offers">{rows or none}</ul></div></details>'
            f"{add_buttons()}</div>{offered}"
        )

    def embeddings(self) -> Any:
        """Return an updated Embeddings dropdown, with the embeddings that fit the model first."""
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
        """Return [the problem] of an embedding that does not fit the model; [] if it fits, or is missing (which the start reports)."""
        family, problems = self._family(self.fields.load()), list[Problem]()
        embedding = collected(list[Problem](), find_embedding, text, self.page.workspace)
        if embedding is not None and family and self.page.roots.holds(embedding.path):
            collected(problems, lambda: check_choice(identify(embedding.path), embedding.path, ["embedding"], family))
        return problems

    def act(self, event: gr.EventData) -> str | None:
        """Handle an event of the list or a card. Raises ProblemsError.

        Returns the HTML of the list if nothing else has changed ("find", "refresh"), else None.
        """
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
                path = self.model_lists.named(arg).path
                check_choice(identify(path), path, ["lora"], self._family(values))
                after = form.add_lora(values, path, self.page.workspace)
            else:
                arg = arg_now(event, [str(use["file"]) for use in values["loras"]])
                after = changed(values, act, arg, value, self.page)
            self.fields.put(after)
        return None
