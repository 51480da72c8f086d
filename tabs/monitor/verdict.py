"""The comparison of a run's checkpoints at the top of Monitor: data for assets/verdict.js, and the commands of its buttons."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.assess.recommended import recommended
from core.dataset.doctor.trash import put_back, undoable_actions
from core.dataset.sources.files import printable
from core.engine.average import save_average
from core.engine.keeping import put_away_others
from core.engine.queue import whose_run
from core.engine.verdict import (
    STRENGTHS,
    USUAL_STRENGTHS,
    Cell,
    Comparison,
    Verdict,
    candidates,
    cell_of,
    cells_of,
    cells_with_samples,
    comparison_of,
    has_strengths,
    measured_sentence,
    no_gain_text,
    read_verdict,
    write_verdict,
)
from core.generation.grids.folder import GridContent, GridFolder
from core.generation.grids.plan import grid_of
from core.generation.grids.reuse import reuse
from core.record.best import short_label
from core.record.file_titles import MOST_NAMED, is_average, label_of
from core.record.kept import kept_mark, read_kept
from core.record.preference import LEAST_PAIRS, Choice, Pair, add_choice, next_pair, read_choices
from core.record.problems import ProblemsError
from core.record.run_folder import RunFolder
from core.record.stamps import stamp_or_none
from core.record.units import clock, count, listed
from core.settings.job import TrainJob
from tabs.generate import grids
from tabs.monitor import assess
from tabs.monitor.answer import answer_of, preferred_of
from tabs.monitor.comparison import (
    MOST_MINUTES,
    TAB,
    Images,
    comparison_to_generate,
    complete_part,
    images_of,
    minutes_limit,
    opened_grid,
    owner_of_images,
    prompt_in_generate,
    seconds_per_image,
    workspace_of_images,
)
from tabs.server.browsers import Browser
from tabs.tools.copies import TAB as COPIES
from tabs.tools.copies import Copies, saved_kind
from tabs.tools.copies import hint as copy_hint

if TYPE_CHECKING:
    from tabs.context import Page

ACTIVE = ("running", "paused", "waiting")
SMALL, LONGEST = 160, 4000  # pixels of an image in the filmstrip; characters of a prompt or name that a command takes
REMEMBERED = 20  # runs
_STARTING = threading.Lock()  # of two pages at once the second finds what the first has begun


# -- display


def part(page: Page, name: str, facts: Mapping[str, Any], job: TrainJob | None) -> dict[str, Any] | None:
    """Return `_data`, the comparison of a run's checkpoints for the page's script, cached until something changes. None while the run
    trains, if it saved nothing, or if its job cannot be read.
    facts: the run's snapshot"""
    if facts["state"] in ACTIVE or not facts["files"] or job is None:
        return None
    run = page.workspace.runs / name
    verdict = read_verdict(run)
    stamp = _stamp(page, run, facts, verdict)
    cached = page.verdicts.get(name)
    if cached is None or cached[0] != stamp:
        cached = (stamp, _data(page, run, facts, job, verdict))
        page.verdicts = dict(list(page.verdicts.items())[-REMEMBERED:]) | {name: cached}
    return cached[1]


def _stamp(page: Page, run: Path, facts: Mapping[str, Any], verdict: Verdict | None) -> tuple[Any, ...]:
    """Return a value that changes whenever the data of `part` changes. facts: the run's snapshot"""
    files = [file["name"] for file in facts["files"]]
    paths, entry = [run / name for name in ("choices.jsonl", "kept.json")], None
    if verdict is not None:
        workspace = workspace_of_images(page, facts)
        folder = GridFolder(workspace.grids / verdict.grid)
        paths += [folder.path / "grid.json", folder.cells]
        entry = grids.entry_of(page, verdict.grid, ("waiting", "running", "failed"), workspace.person)
    average, copies = page.averages.get(run.name), Copies(page)
    return (
        files,
        facts.get("best"),
        len(facts["samples"]),
        verdict,
        [stamp_or_none(path) for path in paths],
        entry and (entry.id, entry.state, entry.message),
        average and (id(average), average.done),
        assess.stamp(page, run),
        minutes_limit(page),
        page.project.tab_state(COPIES),
        [copies.outcome(run / "checkpoints" / file) for file in files],
    )


def _data(page: Page, run: Path, facts: Mapping[str, Any], job: TrainJob, verdict: Verdict | None) -> dict[str, Any]:
    """Return the data of `part`: {"run", "problems"} if nothing can be compared, else what follows. facts: the run's snapshot

    "columns"                     `candidates` for the base model and the checkpoints, with "kept", "best", "use", "gone" and other marks
    "prompts", "strengths"        rows, and LoRA strengths on offer
    "images"                      {strength: [[`_image` of each column] of each prompt]}
    "answer", "sentence"          texts on which checkpoint to use, and on the losses
    "refused"                     whose run it is if this user may not change it, else ""
    "assess", "making", "blind", "preferred", "average", "others"
                                  of the functions of these names, `_image_progress` and `preferred_of`
    "copy_to", "copy_hint"        folder for copies or "", and an example
    """
    opened = opened_grid(workspace_of_images(page, facts), verdict)
    verdict = verdict if opened else None
    try:
        comparison = comparison_to_generate(page, facts, job, verdict)
    except ProblemsError as error:
        return {"run": run.name, "problems": [problem.to_dict() for problem in error.problems]}
    current = verdict or Verdict("", comparison.files, comparison.prompts)
    files, prompts, strengths = current.files, current.prompts, current.strengths
    images = images_of(page, facts, job, current, opened, frozenset() if opened else cells_with_samples(comparison))
    seconds = seconds_per_image(page, comparison, facts, job, opened[1] if opened else None)
    columns = candidates(files, facts, job.starts_at_base)
    keep_marks, best, copies = read_kept(run), facts.get("best"), Copies(page)
    for column in columns:
        column["kept"] = keep_marks.get(f"checkpoints/{column['file']}")
        column["best"] = best["label"] if best and column["file"] == Path(best["file"]).name else ""
        column["mark"] = short_label(column["best"])
        column["kept_mark"] = kept_mark(column["file"], column["kept"]) if column["kept"] is not None else ""
        column["copied"] = copies.outcome(run / "checkpoints" / column["file"]) if column["file"] else None
        column["gone"] = bool(column["file"]) and column["step"] is None
    choices = read_choices(run)
    preferred = preferred_of(columns, choices)
    use, why = recommended(run, best)
    for column in columns[1:]:
        column["preferred"] = preferred is not None and column["file"] == preferred["file"]
        column["use"] = use is not None and column["file"] == use.name
    refused = whose_run(facts.get("person", ""), page.engine.people)
    answer, decided = answer_of(run, columns, use, why, preferred)
    answer += no_gain_text(facts, job.starts_at_base) if answer and why in ("lowest", "clear", "only") else ""
    advice = why not in ("kept", "preferred") and not choices
    sentence = measured_sentence(best, advice, facts["too_short"], facts.get("measured", ()))
    sentence = assess.with_assessment(sentence, run, columns[1:], best)
    saved = [each for each in columns[1:] if not (each["average"] or each["gone"])]
    unmeasured = [each["label"] for each in saved if best and each["loss"] is None]
    sentence += f" No loss was measured at {listed(unmeasured)}." if unmeasured else ""
    return {
        "run": run.name,
        "refused": refused,
        "columns": columns,
        "prompts": [vars(prompt) for prompt in prompts],
        "strengths": list(STRENGTHS) if has_strengths(job) else list(USUAL_STRENGTHS),
        "images": {
            f"{strength:g}": [
                [_image(page, images, cell_of(file, prompt, strength)) for file in files] for prompt in prompts
            ]
            for strength in strengths
        },
        "answer": answer,
        "sentence": f"{decided}{sentence}",
        "assess": assess.part(page, run, facts, job),
        "making": _image_progress(page, facts, job, seconds, verdict, opened, images, comparison, columns),
        "blind": None if refused else _blind(page, columns, current, images, choices),
        "preferred": preferred,
        "average": _average(page, run.name, job),
        "others": _others(run, facts, keep_marks),
        "copy_to": printable(folder) if (folder := copies.folder(saved_kind(job))) else "",
        "copy_hint": copy_hint(saved_kind(job)),
    }


def _image(page: Page, images: Images, cell: Cell) -> dict[str, str] | None:
    """Return {"small", "whole": URL} of a cell's image, {"failed": reason}, or None if there is none yet."""
    path = images.paths.get(cell)
    if path is None:
        return {"failed": images.failed[cell]} if cell in images.failed else None
    return {"small": page.thumb_url(path, SMALL), "whole": page.file_url(path)}


def _image_progress(
    page: Page,
    facts: Mapping[str, Any],
    job: TrainJob,
    seconds: float,
    verdict: Verdict | None,
    opened: tuple[GridFolder, GridContent] | None,
    images: Images,
    comparison: Comparison,
    columns: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the progress of a comparison's images, and the numbers of images that could be added.

    seconds: expected per image; comparison: the one to generate next
    "state"                                         "", "waiting", "running", "stopped" or "done"
    "new_images", "more_images", "strength_images"  number to make for new checkpoints, for all prompts, for one more strength
    "complete", "incomplete"                        number of images of the complete part, and text on what is not in it
    """
    person = workspace_of_images(page, facts).person
    entry = grids.entry_of(page, verdict.grid, person=person) if verdict is not None else None
    failed = grids.entry_of(page, verdict.grid, ("failed",), person) if verdict is not None and entry is None else None
    state = entry.state if entry else "" if opened is None else "done" if not images.missing else "stopped"
    labels = {each["file"]: each["label"] for each in columns}
    more = comparison.proposed - len(comparison.prompts)
    existing = images.cells if entry else images.generated | images.samples

    def missing_images(wanted: Comparison) -> int:
        return len(cells_of(wanted).keys() - existing - cells_with_samples(wanted))

    new_images = missing_images(comparison)
    more_images = (
        missing_images(comparison_to_generate(page, facts, job, verdict, all_prompts=True))
        if more and state == "done"
        else 0
    )
    strength_images = new_images + len(comparison.prompts) * len(list(filter(None, comparison.files)))
    complete = complete_part(verdict, images) if verdict is not None and state == "stopped" else None
    return {
        "state": state,
        "refused": f"The images belong to {person}" if (person := owner_of_images(page, facts)) else "",
        "entry": entry.id if entry else "",
        "total": len(images.cells),
        "missing": images.missing,
        "taken": images.from_samples,
        "about": clock(seconds * (images.missing - images.from_samples)) if seconds else "",
        "left": assess.time_left(page, entry),
        "minutes": minutes_limit(page),
        "late": state == "stopped" and opened is not None and opened[1].state == "late",
        "strength_images": strength_images,
        "strength_about": clock(seconds * strength_images) if seconds else "",
        "new": len({*comparison.files} - labels.keys()) if opened else 0,
        "new_images": new_images,
        "new_about": clock(seconds * new_images) if seconds else "",
        "more": more,
        "more_images": more_images,
        "more_about": clock(seconds * more_images) if seconds else "",
        "complete": len(cells_of(complete)) if complete is not None else 0,
        "incomplete": _incomplete(verdict, complete, labels) if verdict is not None and complete is not None else "",
        "message": failed.message if failed is not None and state == "stopped" else "",
    }


def _incomplete(verdict: Verdict, complete: Verdict, labels: Mapping[str, str]) -> str:
    """Return what a comparison has beyond its complete part: "step 180, step 240, 5 prompts and strength 0.8"."""
    parts = [labels[file] for file in verdict.files if file not in complete.files]
    if len(parts) > MOST_NAMED:
        parts = [count(len(parts), "checkpoint")]
    if prompts := len(verdict.prompts) - len(complete.prompts):
        parts.append(count(prompts, "prompt"))
    parts += [f"strength {each:g}" for each in verdict.strengths if each not in complete.strengths]
    return listed(parts)


def _blind(
    page: Page, columns: Sequence[Mapping[str, Any]], verdict: Verdict, images: Images, choices: Sequence[Choice]
) -> dict[str, Any] | None:
    """Return the next two images at the usual strength for a blind choice: {"left", "right": files, "prompt", "images": [URLs of both],
    "number": of the choice}; None with fewer than LEAST_PAIRS pairs."""
    names = [column["file"] for column in columns[1:] if not column["gone"]]
    pairs: list[Pair] = [
        (one, other, prompt.text)
        for prompt in verdict.prompts
        for one, other in combinations(names, 2)
        if {cell_of(one, prompt), cell_of(other, prompt)} <= images.paths.keys()
    ]
    pair = next_pair(names, pairs, choices) if len(pairs) >= LEAST_PAIRS else None
    if pair is None:
        return None
    left, right, prompt = pair
    return {
        "left": left,
        "right": right,
        "prompt": prompt,
        "images": [page.file_url(images.paths[name, prompt, *USUAL_STRENGTHS]) for name in (left, right)],
        "number": len(choices) + 1,
    }


def _average(page: Page, run: str, job: TrainJob) -> dict[str, Any] | None:
    """Return {"running", "problems", "saved": label} of the run's newest average; None if its checkpoints are not LoRAs."""
    traits = job.method.traits
    if traits.new_words or traits.base_trains or traits.control_images:
        return None
    task = page.averages.get(run)
    problems = [problem.to_dict() for problem in task.error.problems] if task and task.done and task.error else []
    saved = label_of(task.result.name, None) if task and task.done and task.result else ""
    return {"running": bool(task and not task.done), "problems": problems, "saved": saved}


def _others(run: Path, facts: Mapping[str, Any], keep_marks: Mapping[str, str]) -> dict[str, int]:
    """Return {"left": number of checkpoints not marked to keep (0 if none is marked), "away": number that Put back restores}."""
    removals = undoable_actions(RunFolder(run).checkpoints, 1)
    return {
        "left": len(facts["files"]) - len(keep_marks) if keep_marks else 0,
        "away": len(removals[0].images) if removals else 0,
    }


# -- commands


def _run(page: Page, data: Mapping[str, Any]) -> tuple[RunFolder, dict[str, Any]]:
    """Return (folder, snapshot) of the run data["run"]. Raises ProblemsError if it does not exist or is another user's."""
    name = Path(_text(data, "run")).name
    return page.engine.editable_run(name), page.engine.snapshot(name)


def _text(data: Mapping[str, Any], name: str) -> str:
    """Return data[name] as text, cut to LONGEST characters."""
    return str(data.get(name, ""))[:LONGEST]


def start(page: Page, run: str, all_prompts: bool = False, strength: float = 1.0) -> bool:
    """Queue the grid of a run's comparison: resume it, or create one that takes over existing images. Raises ProblemsError.

    all_prompts: with all prompts; strength: one more LoRA strength. Returns whether a queued grid was cancelled for it.
    """
    with _STARTING:
        facts, job, folder = page.engine.snapshot(run), page.engine.run_job(run), page.engine.editable_run(run).path
        if person := owner_of_images(page, facts):
            what, fix = f"The images of this comparison belong to {person}", "make a grid of the run instead"
            raise ProblemsError.one(what, run, fix, "runs.not-yours")
        verdict = read_verdict(folder)
        opened = opened_grid(page.workspace, verdict)
        comparison = comparison_to_generate(page, facts, job, verdict if opened else None, all_prompts, strength)
        if verdict and opened and comparison.content == verdict.content:
            if grids.entry_of(page, verdict.grid) is None:
                opened[0].change(minutes=minutes_limit(page))
                grids.queue(page, opened[0])
            return False
        entry = grids.entry_of(page, verdict.grid) if verdict else None
        if entry is not None:
            page.engine.cancel(entry.id)
        grids.queue(page, _new_grid(page, folder, comparison))
        return entry is not None


def _new_grid(page: Page, run: Path, comparison: Comparison) -> GridFolder:
    """Create the grid of a run's new comparison, which takes over existing images. Raises ProblemsError."""
    grid = grids.new_grid_folder(page, comparison.grid, run.name)
    grid.change(minutes=minutes_limit(page))
    reuse(grid, grid_of(grid.job(), page.workspace), page.workspace)
    write_verdict(run, grid.name, comparison)
    return grid


def _start(page: Page, data: dict[str, Any], browser: Browser) -> None:
    """Make the images of the comparison. Raises ProblemsError.
    data: {"run", "more": whether with all prompts, "strength": one of STRENGTHS, "minutes": time limit of a first comparison, or none}"""
    strength = data.get("strength", 1.0)
    if strength not in STRENGTHS:
        what, fix = "This strength is not offered", f"choose one of {', '.join(f'{each:g}' for each in STRENGTHS)}"
        raise ProblemsError.one(what, "strength", fix, "verdict.strength")
    if data.get("minutes") is not None:
        _keep_minutes(page, data, browser)
    if start(page, _text(data, "run"), bool(data.get("more")), float(strength)):
        page.browsers.say(browser, "done", "The images are added to those being made, which are kept.")


def _leave_out(page: Page, data: dict[str, Any], browser: Browser) -> None:
    """Reduce the comparison of the run data["run"] to its complete part. Raises ProblemsError if there is none."""
    run, facts = _run(page, data)
    with _STARTING:
        job, verdict = page.engine.run_job(run.name), read_verdict(run.path)
        opened = opened_grid(page.workspace, verdict)
        complete = (
            complete_part(verdict, images_of(page, facts, job, verdict, opened))
            if verdict is not None and opened
            else None
        )
        if complete is None:
            what, fix = "No prompt has all of its images", "make the rest"
            raise ProblemsError.one(what, run.name, fix, "verdict.nothing-complete")
        saved = [file for file in facts["files"] if file["name"] in complete.files]
        steps = {file["step"] for file in saved if not is_average(file["name"])}
        of_steps = [file for file in facts["files"] if file["step"] in steps and not is_average(file["name"])]
        files = [file for file in facts["files"] if file in saved or file in of_steps]  # an embedding's other words too
        few = {**facts, "files": files}
        comparison = comparison_of(
            few, job, page.workspace, len(complete.prompts), prompt_in_generate(page), complete.strengths
        )
        _new_grid(page, run.path, comparison).change(state="done")


def _keep_minutes(page: Page, data: dict[str, Any], browser: Browser) -> None:
    """Store data["minutes"], the time that the images of a first comparison may take. Raises ProblemsError if invalid."""
    minutes = data.get("minutes")
    if not isinstance(minutes, (int, float)) or not 0 < minutes <= MOST_MINUTES:
        what, fix = "The minutes are not a usable number", f"write a number above 0, at most {MOST_MINUTES:,.0f}"
        raise ProblemsError.one(what, "minutes", fix, "verdict.minutes")
    page.project.update_tab(TAB, minutes=float(minutes))


def _show_all(page: Page, data: dict[str, Any], browser: Browser) -> None:
    """Open the grid of the comparison of the run data["run"] in Generate; without one, queue a grid of its checkpoints."""
    run = Path(_text(data, "run")).name
    verdict = read_verdict(page.workspace.runs / run)
    if verdict is None:
        grids.queue_run(page, run)
    else:
        grids.show(page, verdict.grid)
    page.browsers.say(browser, "done", "The grid of its checkpoints is in Generate.", go="Generate")


def _keep(page: Page, data: dict[str, Any], browser: Browser) -> None:
    """Mark the checkpoint {"run", "file"} to keep under "title", or remove the mark unless "keep". Raises ProblemsError."""
    name = _text(data, "title") if data.get("keep") else None
    Copies(page).keep(_text(data, "run"), _text(data, "file"), name)


def _copy(page: Page, data: dict[str, Any], browser: Browser) -> None:
    """Copy the checkpoint {"run", "file"} to "folder". Raises ProblemsError."""
    Copies(page).start(*(_text(data, each) for each in ("run", "file", "folder")))


def _move_to_trash(page: Page, data: dict[str, Any], browser: Browser) -> None:
    """Move the checkpoints of the run data["run"] that are not marked to keep to the trash. Raises ProblemsError."""
    run, facts = _run(page, data)
    _require_no_average(page, run.name)
    files = [page.roots.check(file["path"], file["name"]) for file in facts["files"]]
    put_away_others(run, files, page.workspace, page.engine.queue())
    moved = len(undoable_actions(run.checkpoints, 1)[0].images)
    text = f"{count(moved, 'checkpoint')} moved to the trash. Put back restores what was moved."
    page.browsers.say(browser, "done", text)


def _put_back(page: Page, data: dict[str, Any], browser: Browser) -> None:
    """Restore the checkpoints of the run data["run"] that were last moved to the trash. Raises ProblemsError if there are none."""
    run, _ = _run(page, data)
    removals = undoable_actions(run.checkpoints, 1)
    if not removals:
        what, fix = "The files were already restored", "check the list of the run's files"
        raise ProblemsError.one(what, run.name, fix, "trash.already-restored")
    put_back(removals[0].token)
    page.browsers.say(browser, "done", f"{count(len(removals[0].images), 'checkpoint')} restored from the trash.")


def _choose(page: Page, data: dict[str, Any], browser: Browser) -> None:
    """Store the blind choice {"run", "left", "right", "prompt", "outcome"}. Raises ProblemsError if a checkpoint no longer exists."""
    run, facts = _run(page, data)
    choice = Choice(*(_text(data, each) for each in ("left", "right", "prompt", "outcome")))
    if not {choice.left, choice.right} <= {"", *(file["name"] for file in facts["files"])}:
        raise ProblemsError.one("The checkpoint no longer exists", "choice", "choose between the next two", "file.gone")
    add_choice(run.path, choice)


def _begin_average(page: Page, data: dict[str, Any], browser: Browser) -> None:
    """Start to average checkpoints in the background. Raises ProblemsError while one is computed.
    data: {"run", "files": names, "power": see `save_average`}"""
    (run, facts), files = _run(page, data), data.get("files")
    names = [str(each) for each in files[:100]] if isinstance(files, list) else []
    _require_no_average(page, run.name)

    def work(task: Any) -> Path:
        return save_average(run, facts, names, bool(data.get("power")), page.workspace, task.token)

    page.averages[run.name] = page.engine.light(work, title=f"average of {run.name}", kind="copies")


def _require_no_average(page: Page, run: str) -> None:
    """Raise ProblemsError while an average of the run's checkpoints is being computed."""
    task = page.averages.get(run)
    if task is not None and not task.done:
        raise ProblemsError.one("An average is being computed", run, "wait for it", "average.running")


COMMANDS = {
    "grid": _start,
    "verdict_leave_out": _leave_out,
    "verdict_minutes": _keep_minutes,
    "verdict_all": _show_all,
    "verdict_keep": _keep,
    "verdict_copy": _copy,
    "verdict_put_away": _move_to_trash,
    "verdict_put_back": _put_back,
    "verdict_choose": _choose,
    "verdict_average": _begin_average,
    "verdict_assess": lambda page, data, browser: assess.start(page, _text(data, "run")),
}
