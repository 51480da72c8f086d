"""What a dataset leaves open, asked once where it arises: the choices, what each does, and the answer as settings."""

from __future__ import annotations

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
from tabs.dataset.concepts import with_entries
from tabs.form.project import Project, with_values
from tabs.markup import button, esc, section

TAB = "Dataset"  # whose state holds the answers
KEPT_DATASETS = 50


@dataclass(frozen=True)
class Choice:
    """One answer. values: the settings it stands for, by path."""

    name: str
    words: str
    does: str
    values: dict[str, Any]


ASKED: dict[str, tuple[str, list[Choice]]] = {
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
    """Which folders an answer is about: others are asked again."""
    folders = [source.folder for source in job.dataset.all_sources()]
    return hashlib.sha256(json.dumps(folders).encode("utf-8", "surrogatepass")).hexdigest()[:12]


def answered(state: dict[str, Any], job: TrainJob) -> list[str]:
    """The kinds that were answered for these folders."""
    return list(dict(state.get("answered", {})).get(dataset_key(job), []))


def with_answered(state: dict[str, Any], job: TrainJob, kinds: Collection[str]) -> dict[str, Any]:
    """What the tab keeps: the newest datasets only."""
    others = {key: each for key, each in dict(state.get("answered", {})).items() if key != dataset_key(job)}
    return dict([*others.items(), (dataset_key(job), sorted(kinds))][-KEPT_DATASETS:])


def change_folders(project: Project, entries: Sequence[Any], did: str) -> None:
    """Change the folders' settings. The same dataset with another folder is not asked about again: its answers hold for all."""
    with project.lock:
        done = answered(project.tab_state(TAB), project.job)
        project.change(with_entries(project.job, entries), did=did)
        if done:
            state, after = project.tab_state(TAB), project.job
            known = with_answered(state, after, {*done, *answered(state, after)})
            project.keep(TAB, state | {"answered": known})


def answer(job: TrainJob, kind: str, name: str, color: str = "") -> TrainJob:
    """`job` with the settings that an answer stands for. Raises ProblemsError."""
    if kind == "transparency" and name == COLOR:
        values: dict[str, Any] = {"dataset.alpha_color": color, "dataset.alpha_mask": False}
    else:
        choice = next((each for each in ASKED.get(kind, ("", []))[1] if each.name == name), None)
        if choice is None:
            raise ProblemsError.one("Unknown answer", "Dataset", "reload the page", code="questions.unknown-answer")
        values = choice.values
    return with_values(job, values)


def in_force(job: TrainJob, kind: str) -> str:
    """The name of the choice that the settings stand for now, "" for none of them."""
    for choice in ASKED[kind][1]:
        if all(value_of(job, path) == value for path, value in choice.values.items()):
            return choice.name
    return COLOR if kind == "transparency" else ""


def cards(job: TrainJob, questions: Sequence[Question], done: Collection[str], lately: Collection[str] = ()) -> str:
    """Questions with their choices; those in `done` in a line each, but the ones answered `lately` as they stood, so that the
    next question's choices do not move to where a person has just clicked."""
    known = [question for question in questions if question.kind in ASKED]
    drawn = "".join(
        _told(job, question)
        if question.kind in done and question.kind not in lately
        else _asked(job, question, question.kind in done)
        for question in known
    )
    if not known:
        return ""
    number = sum(question.kind not in done for question in known)
    return section("To decide" if number else "Decided", drawn, esc(count(number, "question")) if number else "")


def _asked(job: TrainJob, question: Question, done: bool) -> str:
    words, choices = ASKED[question.kind]
    now = in_force(job, question.kind)
    drawn = "".join(
        _choice(
            question.kind, choice.name, choice.words, choice.does + _loses(question, choice), choice.name == now, done
        )
        for choice in choices
    )
    if question.kind == "transparency":
        chosen = " now" if now == COLOR else ""
        drawn += (
            f'<label class="choice{chosen}"><b>A color <input type="color" data-act="answer" '
            f'data-arg="transparency:{COLOR}" value="{esc(job.dataset.alpha_color)}" aria-label="Color behind"></b>'
            "<span>They are placed on this color. Right when the subject itself is white.</span></label>"
        )
    if question.images == 1:
        words = words.replace("have", "has", 1)
    return f'<div class="ask"><p>{_concerns(question)} {esc(words)}</p><div class="choices">{drawn}</div></div>'


def _loses(question: Question, choice: Choice) -> str:
    """What an answer leaves without a caption: only .caption files are read, and these images have a .txt alone."""
    lost = question.counts.get(TAGS, 0) - question.images
    if choice.values.get("captions.caption_extension") != SENTENCES or lost <= 0:
        return ""
    return f" {count(lost, 'image')} with a {TAGS} alone would be without a caption."


def _concerns(question: Question) -> str:
    """Whom it is about: how many, what was counted, and some names."""
    counted = ", ".join(f"{number:,} {words}" for words, number in question.counts.items())
    names = ", ".join(question.examples)
    about = "; ".join(part for part in (counted, names) if part)
    return f'<strong>{esc(count(question.images, "image"))}</strong> <span class="hint">({esc(about)})</span>'


def _choice(kind: str, name: str, words: str, does: str, now: bool, done: bool) -> str:
    mark = f'<i class="hint{"" if now else " off"}">{"chosen" if done else "as it is now"}</i>'
    pressed = "true" if now and done else "false"
    return (
        f'<button type="button" class="choice{" now" if now else ""}" data-act="answer" data-arg="{kind}:{name}" '
        f'aria-pressed="{pressed}">'
        f"<b>{esc(words)} {mark}</b><span>{esc(does)}</span></button>"
    )


def _told(job: TrainJob, question: Question) -> str:
    titles = {
        "transparency": "Behind transparent parts",
        "sidecars": "Of several caption files",
        "lines": "Of several lines",
    }
    now = in_force(job, question.kind)
    words = next((each.words.lower() for each in ASKED[question.kind][1] if each.name == now), "")
    if now == COLOR:
        words = f"the color {job.dataset.alpha_color}"
    ask = button("ask", "Change", question.kind, kind="quiet", label=f"Change: {titles[question.kind]}")
    return f'<div class="told"><span>{esc(titles[question.kind])}: <b>{esc(words or "as set in Train")}</b></span>{ask}</div>'
