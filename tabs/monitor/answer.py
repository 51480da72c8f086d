"""The first line of a comparison: which checkpoint to use, and why."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from core.assess.results import best_strength
from core.record.file_titles import label_of
from core.record.kept import read_kept
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
    run: Path, columns: Sequence[Mapping[str, Any]], use: Path | None, why: str, preferred: Mapping[str, Any] | None
) -> tuple[str, str]:
    """(which checkpoint to use and with which strength, what else the user has decided), before what was measured. use, why: of
    `recommended`; preferred: of `_preferred`"""
    answer, decided, named = _answer(run, columns, use, why, preferred)
    measured = best_strength(run, named) if named else None
    return answer + (f" Its best strength is {measured:g}." if answer and measured is not None else ""), decided


def _answer(
    run: Path, columns: Sequence[Mapping[str, Any]], use: Path | None, why: str, preferred: Mapping[str, Any] | None
) -> tuple[str, str, str]:
    """`answer_of` without the strength, and the name of the file that it names."""
    file = use.name if use is not None else ""
    leads = preferred["rows"][0] if preferred and preferred["rows"] and not preferred["rows"][0]["gone"] else None
    labels = {column["file"]: column["label"] for column in columns[1:]}
    first = f"first with {leads['first']:.0%} probability" if leads else ""
    open_still = f"Your blind choices leave the first place open: so far {leads['label']}, {first}. " if leads else ""
    kept = [labels[name] for file in read_kept(run) if (name := Path(file).name) in labels]
    if kept:
        chosen = f"Your blind choices prefer {leads['label']}, {first}. " if leads else ""
        decided = chosen if preferred and preferred["file"] else open_still
        answer = f"You kept {listed(kept)}: Generate takes {kept[-1] + ', kept last' if kept[1:] else 'it'}."
        return answer, decided, file
    if why == "preferred" and leads:
        return f"Use {leads['label']}: your blind choices prefer it, {first}.", "", file
    if use is not None and use.name not in labels:
        kind = "You kept" if why == "kept" else "Use"
        answer = f"{kind} {label_of(use.name, None)}, which is not in this comparison: Generate takes it."
        return answer, open_still, file
    if why == "trained" and leads:
        return f"Look at {leads['label']} first: your blind choices put it {first} so far.", "", leads["file"]
    used = next((column for column in columns[1:] if column["use"]), columns[-1])
    return (ADVICE[why].format(used["label"]) if len(columns) > 2 else ""), open_still, used["file"]
