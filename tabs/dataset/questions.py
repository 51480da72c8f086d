"""Questions about a dataset (transparency, several caption files, several lines): choices, and answers as settings."""

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from core.dataset.captions.files import SENTENCES, TAGS
from core.dataset.report import Question
from core.record.problems import ProblemsError
from core.record.units import count
from core.settings.base import value_of
from core.settings.job import TrainJob
from core.settings.presets.files import with_values
from tabs.dataset.concepts import with_entries
from tabs.form.project import Project
from tabs.markup import button, esc, section

TAB = "Dataset"  # whose state holds the answers
MAX_DATASETS = 50


@dataclass(frozen=True)
class Choice:
    """A choice of a question.

    name    identifies the choice in its question
    effect  text on what the choice does
    values  {setting path: value} that the choice sets
    """

    name: str
    title: str
    effect: str
    values: dict[str, Any]


QUESTIONS: dict[str, tuple[str, list[Choice]]] = {
    "transparency": (
        "have transparent parts. What should be behind them?",
        [
            Choice(
                "white",
                "White",
                "They are placed on white. Right for drawings and cut-outs made for a white page.",
                {"dataset.alpha_color": "#ffffff", "dataset.alpha_mask": False},
            ),
            Choice(
                "mask",
                "Mask them out",
                "Transparent areas do not count in the loss, so the background is not trained.",
                {"dataset.alpha_mask": True},
            ),
        ],
    ),
    "sidecars": (
        "have several caption files. Which one should be used?",
        [
            Choice(
                "tags",
                "The tags",
                "Uses the .txt file; images with only one file keep it.",
                {"captions.sidecars": "one", "captions.caption_extension": "auto"},
            ),
            Choice(
                "sentences",
                "The sentences",
                "Uses only the .caption files.",
                {"captions.sidecars": "one", "captions.caption_extension": ".caption"},
            ),
            Choice(
                "joined",
                "Both, joined",
                "The sentence, then the tags. Captions become long, so check their token counts.",
                {"captions.sidecars": "joined", "captions.caption_extension": "auto"},
            ),
            Choice(
                "drawn",
                "One at random",
                "Each view uses the sentence or the tags at random; both kinds of prompts work afterwards.",
                {"captions.sidecars": "drawn", "captions.caption_extension": "auto"},
            ),
        ],
    ),
    "lines": (
        "have captions with several lines. Which line should be used?",
        [
            Choice("first", "The first", "Ignores the other lines.", {"captions.caption_lines": "first"}),
            Choice(
                "random",
                "One at random",
                "Each view uses a random line: several captions for one image.",
                {"captions.caption_lines": "random"},
            ),
            Choice("all", "All of them", "The lines are joined by spaces.", {"captions.caption_lines": "all"}),
        ],
    ),
}
COLOR = "color"


def dataset_key(job: TrainJob) -> str:
    """Return a key of the job's dataset folders, by which answers are stored; other folders bring up the questions again."""
    folders = [source.folder for source in job.dataset.all_sources()]
    return hashlib.sha256(json.dumps(folders).encode("utf-8", "surrogatepass")).hexdigest()[:12]


def answered(state: dict[str, Any], job: TrainJob) -> list[str]:
    """Return the kinds of questions that the tab state `state` stores as answered for the job's folders."""
    return list(dict(state.get("answered", {})).get(dataset_key(job), []))


def with_answered(state: dict[str, Any], job: TrainJob, kinds: Collection[str]) -> dict[str, Any]:
    """Return the stored answers {dataset key: kinds} with `kinds` for the job's folders; the newest MAX_DATASETS are kept."""
    others = {key: each for key, each in dict(state.get("answered", {})).items() if key != dataset_key(job)}
    return dict([*others.items(), (dataset_key(job), sorted(kinds))][-MAX_DATASETS:])


def change_folders(project: Project, entries: Sequence[Any], did: str) -> None:
    """Replace the project's folders (Source or their values); answered questions stay answered. did: label of the undo step"""
    with project.lock:
        kinds = answered(project.tab_state(TAB), project.job)
        project.change(with_entries(project.job, entries), did=did)
        if kinds:
            state, job = project.tab_state(TAB), project.job
            answers = with_answered(state, job, {*kinds, *answered(state, job)})
            project.update_tab(TAB, answered=answers)


def answer(job: TrainJob, kind: str, name: str, color: str = "") -> TrainJob:
    """Return `job` with the settings of choice `name` of question `kind`, a key of QUESTIONS. Raises ProblemsError, also for unknown ones.
    color: hex color, for the choice COLOR"""
    if kind == "transparency" and name == COLOR:
        values: dict[str, Any] = {"dataset.alpha_color": color, "dataset.alpha_mask": False}
    else:
        choice = next((each for each in QUESTIONS.get(kind, ("", []))[1] if each.name == name), None)
        if choice is None:
            raise ProblemsError.one("Unknown answer", "Dataset", "reload the page", code="questions.unknown-answer")
        values = choice.values
    return with_values(job, values)


def current_choice(job: TrainJob, kind: str) -> str:
    """Return the name of the choice of question `kind` that the job's settings equal; COLOR or "" if there is none."""
    for choice in QUESTIONS[kind][1]:
        if all(value_of(job, path) == value for path, value in choice.values.items()):
            return choice.name
    return COLOR if kind == "transparency" else ""


def cards(
    job: TrainJob,
    questions: Sequence[Question],
    answered_kinds: Collection[str],
    recently_answered: Collection[str] = (),
) -> str:
    """Return the HTML of the questions about the dataset; "" without any.

    answered_kinds     kinds of answered questions, shown as one line each
    recently_answered  answered kinds that still show their choices, so that the next question does not move under the pointer
    """
    known = [question for question in questions if question.kind in QUESTIONS]
    items = "".join(
        _answered_line(job, question)
        if question.kind in answered_kinds and question.kind not in recently_answered
        else _open_question(job, question, question.kind in answered_kinds)
        for question in known
    )
    if not known:
        return ""
    number = sum(question.kind not in answered_kinds for question in known)
    return section("To decide" if number else "Decided", items, esc(count(number, "question")) if number else "")


def _open_question(job: TrainJob, question: Question, answered: bool) -> str:
    """Return the HTML of a question with its choices. answered: whether it was answered"""
    text, choices = QUESTIONS[question.kind]
    current = current_choice(job, question.kind)
    buttons = "".join(_choice(question, each, each.name == current, answered) for each in choices)
    if question.kind == "transparency":
        mark = " now" if current == COLOR else ""
        buttons += (
            f'<label class="choice{mark}"><b>A color <input type="color" data-act="answer" '
            f'data-arg="transparency:{COLOR}" value="{esc(job.dataset.alpha_color)}" aria-label="Color behind"></b>'
            "<span>They are placed on this color. Right when the subject itself is white.</span></label>"
        )
    if question.images == 1:
        text = text.replace("have", "has", 1)
    return f'<div class="ask"><p>{_images_of(question)} {esc(text)}</p><div class="choices">{buttons}</div></div>'


def _tags_only(question: Question, choice: Choice) -> str:
    """Return a note on images with only a .txt file, which lose their caption if the choice reads only .caption files; else ""."""
    tags_only = question.counts.get(TAGS, 0) - question.images
    if choice.values.get("captions.caption_extension") != SENTENCES or tags_only <= 0:
        return ""
    return f" {count(tags_only, 'image')} with a {TAGS} alone would be without a caption."


def _images_of(question: Question) -> str:
    """Return the HTML of the number of images that a question is about, with counts by kind and some file names."""
    counted = ", ".join(f"{number:,} {noun}" for noun, number in question.counts.items())
    names = ", ".join(question.examples)
    about = "; ".join(part for part in (counted, names) if part)
    return f'<strong>{esc(count(question.images, "image"))}</strong> <span class="hint">({esc(about)})</span>'


def _choice(question: Question, choice: Choice, is_current: bool, answered: bool) -> str:
    """Return the HTML of a choice's button. is_current: whether the settings equal it; answered: whether the question was answered"""
    mark = f'<i class="hint{"" if is_current else " off"}">{"chosen" if answered else "as it is now"}</i>'
    pressed = "true" if is_current and answered else "false"
    return (
        f'<button type="button" class="choice{" now" if is_current else ""}" data-act="answer" '
        f'data-arg="{question.kind}:{choice.name}" aria-pressed="{pressed}"><b>{esc(choice.title)} {mark}</b>'
        f"<span>{esc(choice.effect + _tags_only(question, choice))}</span></button>"
    )


def _answered_line(job: TrainJob, question: Question) -> str:
    """Return the HTML of an answered question: its current choice and a Change button."""
    titles = {
        "transparency": "Behind transparent parts",
        "sidecars": "Of several caption files",
        "lines": "Of several lines",
    }
    current = current_choice(job, question.kind)
    answer = next((each.title.lower() for each in QUESTIONS[question.kind][1] if each.name == current), "")
    if current == COLOR:
        answer = f"the color {job.dataset.alpha_color}"
    change = button("ask", "Change", question.kind, kind="quiet", label=f"Change: {titles[question.kind]}")
    return f'<div class="told"><span>{esc(titles[question.kind])}: <b>{esc(answer or "as set in Train")}</b></span>{change}</div>'
