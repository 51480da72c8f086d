"""The answer at the top of a run's comparison: which checkpoint to use and why, and the result of the blind choices."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.assess.results import best_strength
from core.record.file_titles import label_of
from core.record.kept import read_kept
from core.record.preference import Choice, preference_result
from core.record.units import listed

ADVICE = {  # why: of `recommended`
    "lowest": "Use {} for now: it has the lowest loss.",
    "only": "Use {} for now: no other existing checkpoint has a measured loss.",
    "trained": "Look at {} first: no held-out image tells which one is best.",
    "clear": "Use {} for now: by loss it may be as good as the lowest, which the assessment warns of.",
    "preferred": "Use {} for now: your blind choices prefer it.",
    "": "Use {} for now: it is the last one.",
}


def answer_of(
    run: Path, columns: Sequence[Mapping[str, Any]], use: Path | None, reason: str, preferred: Mapping[str, Any] | None
) -> tuple[str, str]:
    """Return (sentence on which checkpoint to use at which strength, sentence on the user's other choices).

    columns      "columns" of the comparison (`_data` in verdict.py), the base model first
    use, reason  results of `recommended`
    preferred    result of `preferred_of`
    """
    answer, choices_text, file = _answer(run, columns, use, reason, preferred)
    measured = best_strength(run, file) if file else None
    return answer + (f" Its best strength is {measured:g}." if answer and measured is not None else ""), choices_text


def _answer(
    run: Path, columns: Sequence[Mapping[str, Any]], use: Path | None, reason: str, preferred: Mapping[str, Any] | None
) -> tuple[str, str, str]:
    """Return the sentences of `answer_of` without the strength, and the name of the file to use."""
    file = use.name if use is not None else ""
    leader = preferred["rows"][0] if preferred and preferred["rows"] and not preferred["rows"][0]["gone"] else None
    labels = {column["file"]: column["label"] for column in columns[1:]}
    first = f"first with {leader['first']:.0%} probability" if leader else ""
    open_still = f"Your blind choices leave the first place open: so far {leader['label']}, {first}. " if leader else ""
    kept_labels = [labels[name] for file in read_kept(run) if (name := Path(file).name) in labels]
    if kept_labels:
        chosen = f"Your blind choices prefer {leader['label']}, {first}. " if leader else ""
        decided = chosen if preferred and preferred["file"] else open_still
        answer = f"You kept {listed(kept_labels)}: Generate takes {kept_labels[-1] + ', kept last' if kept_labels[1:] else 'it'}."
        return answer, decided, file
    if reason == "preferred" and leader:
        return f"Use {leader['label']}: your blind choices prefer it, {first}.", "", file
    if use is not None and use.name not in labels:
        kind = "You kept" if reason == "kept" else "Use"
        answer = f"{kind} {label_of(use.name, None)}, which is not in this comparison: Generate takes it."
        return answer, open_still, file
    if reason == "trained" and leader:
        return f"Look at {leader['label']} first: your blind choices put it {first} so far.", "", leader["file"]
    best = next((column for column in columns[1:] if column["use"]), columns[-1])
    if not math.isfinite(best.get("loss") or 0.0):
        return f"Do not use {best['label']}: its loss is NaN or infinite.", open_still, best["file"]
    return (ADVICE[reason].format(best["label"]) if len(columns) > 2 else ""), open_still, best["file"]


def preferred_of(columns: Sequence[Mapping[str, Any]], choices: Sequence[Choice]) -> dict[str, Any] | None:
    """Return the result of the blind choices (`preference_result`), with "gone" in rows of deleted checkpoints; None without choices."""
    gone = {column["file"]: column["gone"] for column in columns[1:]}
    labels = {column["file"]: column["label"] + ", deleted" * column["gone"] for column in columns[1:]}
    result = preference_result(labels, choices)
    if result is not None:
        result["rows"] = [row | {"gone": gone[row["file"]]} for row in result["rows"]]
    return result
