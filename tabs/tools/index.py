"""The index at the top of Tools: all tools in groups, with a search field. A click opens the tool's form (assets/tools.js)."""

from core.tasks import Card, Task, tasks
from tabs.form.task_settings import form_settings
from tabs.form.view import choices
from tabs.markup import esc
from tabs.tools.forms import cards

CAPTIONS = "Captions"
MACHINE = "This machine"
FIRST = ("loras", "models", "images", "hints")  # cards of the groups that stand first, in this order
# What people call what a tool does.
ALSO = {
    "resize": "smaller downscale shrink thumbnail",
    "crop": "cut aspect ratio",
    "convert": "png jpg jpeg webp",
    "resize_lora": "smaller dim dimension rank",
    "extract_lora": "dim difference",
    "latent_upscaler": "larger bigger",
    "strip_metadata": "privacy remove",
    "convert_model": "smaller prune fp16",
}
# What the Tools tab has in addition to tasks: (words, what else it is found by, the id of its element).
PLACES = (
    ("Get a base model", "download checkpoint SD SDXL", "tools"),
    ("Keys", "token Hugging Face wandb", "keys-holder"),
    ("Space on the disk", "cache trash delete", "tools-disk"),
    ("Check this machine", "GPU driver precision test", "machine-check-holder"),
)


def ordered(tab: str) -> list[Card]:
    """Return the cards of a tab, those named in FIRST first."""
    return sorted(cards(tab), key=lambda card: FIRST.index(card.name) if card.name in FIRST else len(FIRST))


def groups() -> dict[str, list[str]]:
    """Return {group title: HTML of its entries}. Cards with a single tool are in the group about the machine."""
    by_group: dict[str, list[str]] = {}
    of_machine = []
    for card in [*ordered("Tools"), *cards(CAPTIONS)]:
        members = [task for task in tasks().values() if task.card == card]
        entries = [
            _entry(
                task.title,
                f"{task.name} {task.about} {task.job.__doc__} {_offered(task)} {ALSO.get(task.name, '')}",
                card,
                task.name,
            )
            for task in members
        ]
        if card.tab == CAPTIONS:
            by_group.setdefault(f"On the {CAPTIONS} tab", []).extend(entries)
        elif len(members) > 1:
            by_group[card.title] = entries
        else:
            of_machine += [_entry(card.title, f"{members[0].name} {members[0].about}", card, members[0].name)]
    place_entries = [
        _index_entry(title, words, f'data-at="{place}" data-tab="Tools"') for title, words, place in PLACES
    ]
    return by_group | {MACHINE: [place_entries[0], *of_machine, *place_entries[1:]]}


def _offered(task: Task) -> str:
    """Return the labels of the choices in a task's form, such as Canny edges, as search keywords."""
    fields = form_settings(task).values()
    return " ".join(label for entry in fields if entry.kind == "choice" for label, _ in choices(entry))


def _entry(title: str, keywords: str, card: Card, task: str) -> str:
    """Return the HTML of an index entry that opens task `task` on its card. keywords: what the search finds it by"""
    attributes = f'data-tool="{esc(task)}" data-at="tools-{esc(card.name)}" data-tab="{esc(card.tab)}"'
    return _index_entry(title, keywords, attributes)


def _index_entry(title: str, keywords: str, attributes: str) -> str:
    """Return the HTML of an index entry. attributes: of its button, which say what it opens"""
    found_by = esc(" ".join(f"{title} {keywords}".lower().split()))
    return f'<li data-found="{found_by}"><button type="button" class="link" {attributes}>{esc(title)}</button></li>'


def html() -> str:
    """Return the HTML of the index: a search field and the groups."""
    columns = "".join(
        f'<div class="tool-group"><h3>{esc(title)}</h3><ul>{"".join(entries)}</ul></div>'
        for title, entries in groups().items()
    )
    return (
        '<section class="card" id="tool-index" aria-label="All tools">'
        '<input type="search" id="tool-search" class="text" placeholder="Find a tool" aria-label="Find a tool" autocomplete="off" '
        'spellcheck="false"><p class="hint" id="tool-none" role="status" hidden>No tool matches.</p>'
        f'<div class="tool-groups">{columns}</div></section>'
    )
