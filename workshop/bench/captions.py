"""How fast thousands of captions are filtered, changed at once and restored."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from workshop.bench.datasets import IMAGES, make_many
from workshop.bench.measure import seconds_of, timed

EXPRESSION = '"tag number 7" & !"tag number 20" | tokens:>75'


def measure_captions(quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Seconds for a folder of many images whose captions are known, as on the Captions tab."""
    from core.captioning.bulk import changes_of, chosen, items_of, planned, tag_counts
    from core.dataset.captions.history import History
    from core.settings.captioning.edits import CaptionEditSettings
    from core.settings.check import build
    from core.settings.job import CaptionEditJob

    images = IMAGES // 10 if quick else IMAGES
    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as name:
        folder = Path(name) / "images"
        say(f"creating {images} images with captions")
        make_many(folder, images)
        items = items_of(build(CaptionEditJob, {"dataset": {"folder": str(folder)}}))
        say("filtering and changing captions")
        first = seconds_of(lambda: chosen(items, EXPRESSION))
        filtered = seconds_of(lambda: chosen(items, EXPRESSION))
        counted = seconds_of(lambda: tag_counts(items, 400))
        edit = CaptionEditSettings(edit="add", tags="one more tag")
        shown = seconds_of(lambda: planned(items, edit))
        history, plan = History(Path(name) / "captions"), planned(items, edit)
        done, changed = timed(lambda: history.apply("Add tags", changes_of(plan)))
        assert len(done.written) == images
        restored = seconds_of(lambda: history.undo(done.id))
    return {
        "images": images,
        "first_filter_seconds": first,
        "filter_seconds": filtered,
        "count_seconds": counted,
        "preview_seconds": shown,
        "change_seconds": changed,
        "undo_seconds": restored,
    }


def caption_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    many = f"{result['images']} captions"
    return [
        (
            f"filtering {many}",
            f"{result['filter_seconds'] * 1000:.0f} ms, the first time {result['first_filter_seconds'] * 1000:.0f} ms",
        ),
        (f"tags of {many}", f"{result['count_seconds'] * 1000:.0f} ms"),
        (f"preview of a change to {many}", f"{result['preview_seconds'] * 1000:.0f} ms"),
        (f"changing {many}", f"{result['change_seconds']:.1f} s; undo {result['undo_seconds']:.1f} s"),
    ]
