"""Cards of the Generate form: settings groups that a + button adds to the form and an × button removes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from core.record.problems import Problem
from tabs.generate import form
from tabs.markup import button, esc

if TYPE_CHECKING:
    from tabs.context import Page
    from tabs.form.picker import FormPage

TAB = "Generate"
GRID = "grid"  # a card with a board of its own
STATE = "cards"  # key of the tab state: cards that were added, and may have no values yet
# Of an initial image and of the second stage of hires fix: on the card of the first that is shown.
STRENGTH = "strength"
IMAGE, HIRES, DETAILER = "image_to_image", "hires", "detailer"


@dataclass(frozen=True)
class Card:
    """A card of the form: one settings group of GenerateJob with a title, its fields and an × button.

    group   name of the group in GenerateJob; also the card's name
    title   heading of the card and label of the button that adds it
    help    tooltip of that button
    needs   (field that must be set for the card to have an effect, fix shown while the field is empty)
    shown   names of the fields shown first; the group's other fields are under More
    adds    {field: value} set when the card is added
    lists   names of the group's list values that are not form fields, such as "nets"
    masked  names of fields shown first only while an inpainting mask is set
    titles  {field: title on this card}
    """

    group: str
    title: str
    help: str
    needs: tuple[str, str]
    shown: tuple[str, ...] = ()
    adds: Mapping[str, Any] = field(default_factory=dict)
    lists: tuple[str, ...] = ()
    masked: tuple[str, ...] = ()
    titles: Mapping[str, str] = field(default_factory=dict)

    @property
    def fields(self) -> list[str]:
        """Names of the group's form fields, without the strength that Image and Hires share."""
        return [name for name in form.FIELDS if form.OF_JOB[name].group == self.group and name != STRENGTH]

    def is_used(self, values: Mapping[str, Any]) -> bool:
        """Return whether a field of the group differs from its default or a list of the group is not empty."""
        return any(form.is_set(name, values) for name in self.fields) or any(values[name] for name in self.lists)

    def defaults(self) -> dict[str, Any]:
        """Return {field: default value, list name: []} for the whole group."""
        return {name: form.json_value(form.ENTRIES[name].default) for name in self.fields} | {
            name: [] for name in self.lists
        }


CARDS = (
    Card(
        IMAGE,
        "Image",
        "Image to image and inpainting",
        ("image_path", "choose an image"),
        shown=(STRENGTH,),
        masked=("mask_blur", "inpaint_area", "masked_content"),
    ),
    Card(
        HIRES,
        "Hires",
        "Hires fix: a small image first, then a larger one from it",
        ("highres_fix_scale", "set Upscale by"),
        shown=("highres_fix_scale", STRENGTH, "highres_fix_upscaler", "hires_steps"),
        adds={"highres_fix_scale": 2.0, STRENGTH: 0.45},
        titles={"highres_fix_scale": "Upscale by"},
    ),
    Card(
        DETAILER,
        "Detailer",
        "Detects faces, hands or persons, and inpaints each at full size",
        ("ad_model", "choose a detector"),
        shown=("ad_model", "ad_denoising_strength", "ad_prompt"),
        adds={"ad_model": "face"},
        titles={
            name: entry.title.removeprefix("Detailer ").capitalize()
            for name, entry in form.OF_JOB.items()
            if entry.group == DETAILER
        },
    ),
    Card(
        "controls",
        "ControlNet",
        "Follow the edges, pose or depth of an image",
        ("nets", "choose a ControlNet"),
        lists=("nets",),
    ),
    Card("regions", "Regions", "Each prompt of 'a AND b' in its own area", ("region_map", "choose a region map")),
)
BY_NAME = {card.group: card for card in CARDS}
BUTTONS = (*((card.group, card.title, card.help) for card in CARDS), (GRID, "Grid", "X/Y/Z grid of images"))


def shown_cards(values: Mapping[str, Any], added: Collection[str]) -> list[str]:
    """Return the group names of the visible cards: those that were added, and those with values that are not the defaults."""
    return [card.group for card in CARDS if card.group in added or card.is_used(values)]


def with_card(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return form `values` with the `adds` of card `name`; unchanged if it is unknown or in use. An initial image keeps its strength."""
    card = BY_NAME.get(name)
    if card is None or card.is_used(values):
        return values
    return values | {key: value for key, value in card.adds.items() if key != STRENGTH or not values["image_path"]}


def without_card(name: str, values: dict[str, Any], added: Collection[str]) -> dict[str, Any]:
    """Return form `values` with the group of card `name` reset to its defaults.

    The shared strength is reset only when neither the Image nor the Hires card stays visible. added: names of the added cards
    """
    remaining = set(shown_cards(values, added)) - {name}
    shared = {} if remaining & {IMAGE, HIRES} else {STRENGTH: form.ENTRIES[STRENGTH].default}
    return values | BY_NAME[name].defaults() | (shared if name in (IMAGE, HIRES) else {})


def drop_unused(page: Page | FormPage, values: Mapping[str, Any]) -> None:
    """Remove cards without values from the added cards in the tab state, since the start refuses empty cards. The grid card stays."""
    with page.project.lock:
        names = [name for name in added(page) if name == GRID or BY_NAME[name].is_used(values)]
        page.project.update_tab(TAB, **{STATE: names})


def empty_problems(values: Mapping[str, Any], added: Collection[str]) -> list[Problem]:
    """Return a problem for each card that was added but has no values."""
    empty = [card for card in CARDS if card.group in added and not card.is_used(values)]
    return [
        Problem(
            f"The {card.title} card is empty: it would have no effect",
            f"{card.group}.{card.needs[0]}",
            f"{card.needs[1]}, or remove the card",
            code="generate.empty-card",
        )
        for card in empty
    ]


def fields_in(card: Card, values: Mapping[str, Any], visible_cards: Collection[str]) -> tuple[list[str], list[str]]:
    """Return (names of the fields shown first, names of the fields under More) of a card.

    The shared strength is on the Hires card if Hires is visible without Image, else on the Image card.
    visible_cards: groups of the visible cards
    """
    owner = IMAGE if IMAGE in visible_cards or HIRES not in visible_cards else HIRES
    visible = [*card.shown, *(card.masked if values.get("mask_path") else ())]
    visible = [name for name in visible if name != STRENGTH or owner == card.group]
    return visible, [name for name in card.fields if name not in visible]


def html(
    values: Mapping[str, Any],
    added: Collection[str],
    render_fields: Callable[..., str],
    html_above: Callable[[str], str],
    notes: Mapping[str, str] = {},
    invalid: Collection[str] = (),
) -> str:
    """Return the HTML of all cards; cards that are neither added, in use nor invalid are hidden.

    render_fields  function of field names and titles={field: title} that returns the HTML of the fields
    html_above     function of a group name that returns the HTML above its fields
    notes          {group: text next to the card's title}
    invalid        names of fields with invalid input
    """
    to_fix = {form.OF_JOB[name].group for name in invalid if name in form.OF_JOB}
    visible_cards = shown_cards(values, {*added, *to_fix})
    cards = ""
    for card in CARDS:
        visible, more = fields_in(card, values, visible_cards)
        in_sight = f'<div class="concept-fields">{render_fields(*visible, titles=card.titles)}</div>' if visible else ""
        errors, changes = sum(name in invalid for name in more), sum(form.is_set(name, values) for name in more)
        summary = f"{errors} to fix" if errors else f"{changes} set" if changes else ""
        more_html = (
            f'<details data-group="{card.group} more"><summary class="row"><b>More</b><span class="hint">{summary}</span></summary>'
            f'<div class="concept-fields">{render_fields(*more, titles=card.titles)}</div></details>'
        )
        body = html_above(card.group) + in_sight + more_html
        cards += frame(card.group, card.title, body, card.group in visible_cards, notes.get(card.group, ""))
    return cards


def frame(name: str, title: str, body: str, is_visible: bool, note: str = "") -> str:
    """Return the HTML of card `name` with its × button around the HTML `body`; hidden unless `is_visible`. note: text next to the title"""
    remove = button(
        "card_remove",
        "\u00d7",
        name,
        kind="quiet",
        label=f"Remove {title}",
        title="Resets these settings to their defaults",
    )
    return (
        f'<section class="gen-card block-part" data-card="{name}" aria-label="{esc(title)}"{"" if is_visible else " hidden"}>'
        f'<div class="strip"><h3>{esc(title)}</h3><span class="hint">{esc(note)}</span><span class="grow"></span>{remove}</div>'
        f"{body}</section>"
    )


def add_buttons() -> str:
    """Return the HTML of the + buttons that add cards."""
    return "".join(button("card_add", f"+ {title}", name, title=help) for name, title, help in BUTTONS)


# -- the cards that were added


def added(page: Page | FormPage) -> list[str]:
    """Return the names of the cards that were added and not removed since, in button order; they may have no values yet."""
    names = page.project.tab_state(TAB).get(STATE, [])
    return [name for name in (*BY_NAME, GRID) if name in names] if isinstance(names, list) else []


def set_added(page: Page, name: str, present: bool) -> None:
    """Add card `name` to the added cards in the tab state (`present`), or remove it."""
    with page.project.lock:
        names = [each for each in added(page) if each != name] + ([name] if present else [])
        page.project.update_tab(TAB, **{STATE: names})
