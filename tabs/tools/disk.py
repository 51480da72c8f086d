"""The disk space card of Tools: sizes of caches and trash folders, and buttons to empty them."""

from __future__ import annotations

import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from core.dataset.caches.store import CONTROLS, LATENTS, MASKS, TEXTS, prune
from core.dataset.doctor import trash
from core.dataset.sources.files import TRASH_FOLDER
from core.engine.deleted import DeletedRun, deleted_runs, restore_run
from core.engine.queue import may_change
from core.record.problems import ProblemsError
from core.record.space import clear, folder_bytes
from core.record.units import size_text
from core.record.workspace import resolve_path
from tabs.markup import AWAITED, board, board_event, button, esc, section

if TYPE_CHECKING:
    from tabs.context import Page

WHERE = "Space on the disk"
GB = 1_000_000_000  # as disks are sold
# {name: (title, effect of emptying it)}
CACHES = {
    LATENTS.folder: ("Cached latents", "Encoded again by the next training that uses the images."),
    TEXTS.folder: ("Cached text encoder outputs", "Encoded again by the next training that uses the captions."),
    MASKS.folder: ("Cached masks", "Created again when needed."),
    CONTROLS.folder: ("Cached control images", "Resized again by the next training that uses them."),
    (THUMBS := "thumbs"): ("Thumbnails", "Created again when shown. Includes those of deleted images."),
}
LISTED = 20  # deleted runs
RUNS, IMAGES, GENERATED = "runs", "images", "generated"


def build(page: Page) -> None:
    """Create the card and register its listeners."""
    handlers = DiskHandlers(page)
    state = gr.State({})
    card = board("tools-disk", AWAITED)
    page.on_show("Tools", handlers.html, state, card)
    page.on_act(card, handlers.act, state, card)


class DiskHandlers:
    """Handlers of the card's buttons. The gr.State `state` of each browser: {"keep": GB of each cache to keep, as text}, or {}. It is
    changed in place: a press that waits for its turn already has it, and must see what was typed before it."""

    def __init__(self, page: Page):
        self.page = page

    def act(self, state: dict[str, Any], event: gr.EventData) -> str:
        """Handle an event and return the card's HTML. Raises ProblemsError."""
        act, arg, value = board_event(event)
        if act == "keep":
            state["keep"] = value
        elif act == "prune" and arg in CACHES:
            self.page.say("done", f"{size_text(self._prune(arg, state.get('keep', '0')))} freed.")
        elif act == "put-back":
            self.page.say("done", f"{restore_run(arg, self.page.workspace, self.page.engine.people)} is in Runs again.")
        elif act == "delete" and arg in (RUNS, IMAGES, GENERATED):
            self.page.say("done", f"{size_text(self._delete(arg))} freed.")
        return self.html(state)

    def _prune(self, name: str, keep: str) -> int:
        """Delete the oldest files of cache `name` until at most `keep` GB (a text) are left; return the bytes freed.

        Raises ProblemsError for an invalid number, or while a job runs.
        """
        try:
            gigabytes = float(keep.replace(",", "."))
        except ValueError:
            gigabytes = -1.0
        if not 0 <= gigabytes < 1e6:
            what = f"'{keep[:20]}' is not a number of GB"
            raise ProblemsError.one(what, WHERE, "write 0 to empty it, or 10 for 10 GB", "disk.bad-number")
        if self.page.engine.status()["job"] is not None:
            what = "A job is running and may need the cache"
            raise ProblemsError.one(what, WHERE, "wait for it, or stop it", "disk.in-use")
        return prune(self._cache(name), int(gigabytes * GB))

    def _cache(self, name: str) -> Path:
        """Return the folder of cache `name`."""
        return self.page.workspace.thumbs if name == THUMBS else self.page.workspace.cache / name

    def _delete(self, name: str) -> int:
        """Empty the trash `name` (RUNS, IMAGES or GENERATED) for good; return the bytes freed. Raises ProblemsError if not allowed."""
        if self.page.workspace.person and name == RUNS:
            what, fix = "The trash of all can be emptied by the owner only", "ask them, or log in as the owner"
            raise ProblemsError.one(what, WHERE, fix, "disk.not-yours")
        if name == RUNS:
            return clear(self.page.workspace.trash) + sum(trash.empty(folder)[1] for folder in self._checkpoints())
        if name == GENERATED:
            return trash.empty(self.page.workspace.images)[1]
        return sum(trash.empty(folder)[1] for folder in self._folders())

    def _folders(self) -> list[Path]:
        """Return the dataset's folders that this page may use."""
        folders = dict.fromkeys(resolve_path(each.folder) for each in self.page.project.job.dataset.all_sources())
        return [folder for folder in folders if self.page.roots.holds(folder)]

    def _checkpoints(self) -> list[Path]:
        """Return the folders of runs with checkpoints in the trash."""
        return [path.parent for path in self.page.workspace.runs.glob(f"*/checkpoints/{TRASH_FOLDER}")]

    @staticmethod
    def _trash_bytes(folders: list[Path]) -> int:
        """Return the bytes in the trash folders of `folders`, where something can be restored."""
        return sum(folder_bytes(folder / TRASH_FOLDER) for folder in folders if trash.undoable_actions(folder))

    # -- display

    def html(self, state: dict[str, Any]) -> str:
        """Return the HTML of the card."""
        space = self.page.workspace
        rows = [
            _row(
                title,
                effect_text,
                folder_bytes(self._cache(name)),
                button("prune", "Empty", name, label=f"Empty: {title}"),
            )
            for name, (title, effect_text) in CACHES.items()
        ]
        trashes = [
            (
                RUNS,
                "Deleted runs and checkpoints",
                "In the trash of the outputs folder and of the runs.",
                folder_bytes(space.trash) + self._trash_bytes(self._checkpoints()),
            ),
            (
                IMAGES,
                "Removed images",
                "From the current folders; restore them in Dataset.",
                self._trash_bytes(self._folders()),
            ),
            (
                GENERATED,
                "Deleted generations",
                "Images moved to the trash in Generate.",
                self._trash_bytes([space.images]),
            ),
        ]
        for name, title, effect, size in trashes:
            sure, label = f"Frees {size_text(size)}. It cannot be undone.", f"Delete for good: {title}"
            delete = button("delete", "Delete for good", name, kind="danger", label=label, sure=sure)
            rows.append(_row(title, effect, size, "" if space.person and name == RUNS else delete))
            restorable = (each for each in deleted_runs(space) if may_change(each.person, self.page.engine.people))
            rows += map(_deleted, islice(restorable, LISTED)) if name == RUNS else []
        keep = esc(state.get("keep", "0"))
        field = (
            '<label class="disk-keep">Emptying keeps the newest '
            f'<input type="text" data-act="keep" value="{keep}" inputmode="decimal"'
            ' aria-label="GB of each cache to keep"> GB of a cache</label>'
        )
        return section(WHERE, f'<ul class="disk">{"".join(rows)}</ul>{field}')


def _row(title: str, effect: str, size: int, button_html: str) -> str:
    """Return the HTML of a row: title, effect of emptying it, size in bytes, buttons (only if there is anything)."""
    buttons = button_html if size else ""
    return (
        f'<li><div><strong>{esc(title)}</strong><span class="hint">{esc(effect)}</span></div>'
        f'<span class="figures">{size_text(size) if size else "nothing"}</span><span class="does">{buttons}</span></li>'
    )


def _deleted(run: DeletedRun) -> str:
    """Return the HTML of a deleted run with a Put back button."""
    when = f"deleted {time.strftime('%Y-%m-%d %H:%M', time.localtime(run.time))}"
    restore = button("put-back", "Put back", run.name, label=f"Put back {run.run}")
    return (
        f'<li><div>{esc(run.run)}<span class="hint">{when}</span></div><span class="figures"></span>'
        f'<span class="does">{restore}</span></li>'
    )
