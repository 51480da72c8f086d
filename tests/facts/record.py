"""What is kept of runs: units, patterns, JSON, the best checkpoint, choices, journals, states and names."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from core.record import (
    atomic,
    best,
    bounded_json,
    bounded_toml,
    draws,
    events,
    kept,
    preference,
    problems,
    run_about,
    units,
)
from core.record.journal import Journal, cut_torn_line, last_of_kind, read_lines
from core.record.patterns import Pattern
from core.record.problems import Problem
from core.record.regular import check_regular, impossible_path, read_regular
from core.record.run_folder import RunFolder, is_whole, list_runs, newest_state, safe_name, seal_state, states_in
from core.record.secrets import mask
from core.record.space import clear, folder_bytes, require_space
from core.record.workspace import Workspace, display_path, is_share, last_part, typed_path
from tests.facts.samples import beside
from tests.facts.store import Facts, folder, plain, producer, refused

NUMBERS = (
    0,
    1,
    2,
    999,
    1000,
    1001,
    999.4,
    999.5,
    99.94,
    99.95,
    1e6,
    1.5e6,
    9.99e7,
    1e8,
    4.3e9,
    2**29 - 1,
    2**29,
    2**30,
    7e12,
    9e15,
)


@producer
def words() -> Facts:
    """Numbers as text."""
    for number in NUMBERS:
        yield (
            f"number {number}",
            [
                units.size_text(number),
                units.memory_text(number),
                units.parameters_text(int(number)),
                units.number_text(number),
                units.clock(number),
            ],
        )
    yield (
        "texts",
        [
            units.number_text(each)
            for each in (1e-4, 0.001, 0.00099, 2.5e-7, -1e-5, 16.0, 0.1, True, "x", 1e15, 123456.789)
        ],
    )
    yield (
        "counts",
        [
            units.count(*each)
            for each in ((1, "image"), (2, "entry"), (10000, "image"), (0, "batch", "batches"), (3, "day"))
        ],
    )
    yield (
        "firsts",
        [units.first_of(list("abcde"), most) for most in (1, 4, 5, 6)]
        + [units.first_of([], 3), units.first_of(list("ab"), 1, "; ")],
    )
    yield (
        "articles",
        [
            units.with_article(each)
            for each in ("LoRA", "SD 1.x model", "ONNX file", "embedding", "U-Net", "SDXL", "image")
        ],
    )
    yield (
        "periods",
        [units.period_text(each, "step") for each in (1, 50)]
        + [units.progress_text(3, 20), units.progress_text(3, 0), units.progress_text(10**9, 7 * 10**9, True)],
    )
    yield "clocks", [units.clock(each) for each in (None, float("nan"), -1, 0.4, 59.5, 60, 3599.6, 3600, 90061)]
    yield "masked", [mask(each) for each in ("hf_abcdefghijklmnopqrstuvwxyz0123456789", "plain", "token=x")]


@producer
def patterns() -> Facts:
    """Regular expressions, JSON and TOML of other people."""
    for text in ("a(b)?", "(", "(?R)", "(?1)x", "x" * 2000, "x" * 2001, r"(?P<n>\d+)", "[a-z]+"):

        def made(text=text):
            pattern = Pattern(text, "here")
            found = pattern.first("abc 12")
            return [pattern.groups, found and found.span(), pattern.replaced("abc abc", "-")]

        yield (
            f"{text[:12]} {len(text)}",
            [refused(made), refused(lambda text=text: Pattern(text, "here").check_replacement(r"\1", "there"))],
        )
    deep = "[" * 60 + "]" * 60
    for text in (
        "{}",
        "[1, 2.5, null]",
        '{"a": NaN}',
        '{"a": 1e999}',
        "{'a': 1}",
        '{"a": "\\ud800"}',
        "[" * 200 + "]" * 200,
        deep,
        "1" * 5000,
        '{"a":',
        "",
    ):
        yield (
            f"json {text[:12]} {len(text)}",
            [refused(partial(bounded_json.parse_json, text, "x")), bounded_json.json_or_none(text) is None],
        )
    yield (
        "json values",
        [
            refused(lambda most=most: len(bounded_json.parse_json("[1,2,3,4,5]", "x", max_values=most)))
            for most in (4, 5, 6, 7)
        ],
    )
    for text in ("a = 1", "[a]\nb = [1, 2]", "a = ", "a = 1\na = 2", "a = " + "[" * 120 + "]" * 120):
        yield f"toml {text[:12]} {len(text)}", refused(partial(bounded_toml.parse_toml, text, "x", "fix it"))


@producer
def told() -> Facts:
    """Problems in lists and places."""
    some = [
        Problem("b", "x", level="advice", code="b"),
        Problem("a", "y", code="a"),
        Problem("b", "x", level="advice", code="b"),
        Problem("c", level="warning", code="c"),
    ]
    yield "sorted", [each.code for each in problems.errors_first(some)]
    yield "errors", [each.code for each in problems.errors(some)]
    yield (
        "limited",
        [len(problems.limited([some[0]] * number)) for number in (199, 200, 201, 500)]
        + [problems.limited(some * 100)[-1]],
    )
    yield (
        "at",
        [
            problems.at_setting(
                "s", [Problem("the file m.txt is bad", "/a/m.txt"), Problem("bad", "/a/b"), Problem("x", "s")]
            )[0].what,
            problems.at_setting("s", some),
        ],
    )
    yield "long", [len(Problem("w" * number, "x" * number, "f" * number).what) for number in (1500, 1501, 4000)]
    yield "line", [problems.one_line(each) for each in ("a\nb", "a\x1bb", "\ud800", "ok")]
    for errno in (28, 122, 27, 13):
        yield f"errno {errno}", problems.unwritten(OSError(errno, "why"), "What", "where", "rest").problems


def measured(step: int, loss: float, spread: float = 0.01, number: int = 12, **more: Any) -> dict[str, Any]:
    each = [loss + spread * ((n * 7) % 5 - 2) for n in range(number)]
    return {"kind": "validated", "step": step, "loss": loss, "each": each, "images": 4, "seq": step, **more}


@producer
def bests() -> Facts:
    """Which checkpoint is the best, and how surely; which of two is preferred."""
    rows = {
        "clear": [measured(10, 0.5), measured(20, 0.3), measured(30, 0.4)],
        "noise": [measured(10, 0.301, 0.1), measured(20, 0.3, 0.1), measured(30, 0.4, 0.001)],
        "few": [measured(10, 0.5, number=3), measured(20, 0.4, number=3)],
        "other": [
            measured(10, 0.1, each_of="a"),
            measured(20, 0.3, each_of="b", measured_on="training"),
            measured(30, 0.4, each_of="b"),
        ],
        "nan": [measured(10, float("nan")), measured(20, 0.5)],
        "gone": [measured(40, 0.1)],
        "none": [],
    }
    saved = [(10, "a"), (20, "b"), (20, "b2"), (30, "c")]
    for name, lines in rows.items():
        found = best.best_checkpoint(saved, lines)
        yield (
            name,
            found
            and [
                found.file,
                found.step,
                found.loss,
                found.others,
                found.as_good,
                found.unknown,
                found.unclear,
                found.label,
                len(found.what),
                len(found.sure),
            ],
        )
    yield "t", [best.student_t(probability, freedom) for probability in (0.9, 0.975, 0.999) for freedom in (3, 10, 100)]
    losses = [measured(1, 0.5, 0.05)["each"], measured(1, 0.48, 0.05)["each"][::-1]]
    yield (
        "lower",
        [best.clearly_lower(*pair, compared) for pair in (losses, losses[::-1]) for compared in (1, 5)]
        + [best.clearly_lower([1.0] * n, [2.0 + k / 9 for k in range(n)]) for n in range(1, 9)],
    )
    names = ["a", "b", "c"]
    choices = [
        preference.Choice(*pair, f"p{n % 2}", outcome)
        for n, (pair, outcome) in enumerate(
            zip((("a", "b"), ("b", "c"), ("c", "a")) * 6, ("left", "right", "equal", "skip", "left", "right") * 3)
        )
    ]
    for most in (0, 5, 18):
        found = preference.preference(names, choices[:most])
        pairs = [(one, other, prompt) for one in names for other in names if one < other for prompt in ("p0", "p1")]
        yield (
            f"preferred {most}",
            [
                [round(each, 3) for each in (*found.strengths, *found.low, *found.high)],
                [round(each, 2) for each in found.first],
                found.choices,
                found.leader,
                found.settled,
                preference.next_pair(names, pairs, choices[:most]),
            ],
        )
    with folder() as root:
        for outcome in ("left", "skip", "undo", "equal"):
            preference.add_choice(root, preference.Choice("a", "b", "p", outcome))
        with open(root / preference.FILE, "ab") as handle:
            handle.write(b'{"left": "x"}\n[]\nhalf')
        yield (
            "choices",
            [
                preference.read_choices(root),
                refused(partial(preference.add_choice, root, preference.Choice("a", "a", "p", "left"))),
                preference.read_choices(root / "none"),
            ],
        )


EVENTS = [
    events.Stage("reading", 1, 5),
    events.LogMessage("hello", "warning", "fix it"),
    events.Saved("checkpoints/a.safetensors", 10, bytes=5),
]


@producer
def runs() -> Facts:
    """A run's folder: names, journal, states, what the user wrote of it."""
    with folder() as root:
        names = ("fox", "a/b:c?", "", "x" * 61, "  é ü_", "___", "..", "名前", "a-b_c d")
        yield "names", [safe_name(each) for each in names]
        made = [RunFolder.create(root / "runs", "fox", {"kind": "job", "preset": "p"}, now=1.6e9) for _ in range(3)]
        yield "created", [[each.name[15:], each.job(), each.preset, each.exists, each.damaged] for each in made]
        beside(root / "runs" / "odd" / "x", "x")
        made[0].job_file.unlink()
        beside(made[0].checkpoints / "a", "x")
        yield "listed", [[each.name[15:], each.damaged] for each in list_runs(root / "runs")]
        run = made[1]
        journal = Journal(run.path, clock=lambda: 12.3456)
        lines = [journal.put(event) for event in EVENTS]
        journal.flush()
        text = run.journal_file.read_text()
        journal.close() if hasattr(journal, "close") else None
        yield (
            "journal",
            [
                [{key: value for key, value in line.items() if key != "v"} for line in lines],
                len(text.splitlines()),
                [line["seq"] for line in read_lines(run.journal_file, 2)],
                last_of_kind(run.journal_file, "log"),
            ],
        )
        with open(run.journal_file, "ab") as handle:
            handle.write(b'{"seq": 9, "half')
        cut_torn_line(run.journal_file)
        yield "cut", run.journal_file.read_text() == text
        states = []
        for name in ("step5", "step20-b", "step20-a", "other", "step7"):
            beside(run.states / name / "w", name)
            if name != "step20-b":
                seal_state(run.states / name)
        beside(run.states / "step7" / "w", "changed")
        states += [[each.name, is_whole(each)] for each in states_in(run.states)]
        newest = newest_state(run.states)
        yield (
            "states",
            [states, newest and newest.name, json.loads((run.states / "step5" / "complete.json").read_text())],
        )
        for title, note in (("T" * 300, None), ("new", "a\nb"), (None, "n" * 9000), ("", "")):
            yield (
                f"about {str(title)[:3]} {str(note)[:3]}",
                refused(lambda title=title, note=note: plain(run_about.write_about(run, title=title, note=note))),
            )
        yield (
            "title",
            [run_about.title_of(run), run_about.initial_title(made[2])[:3], len(run_about.read_about(run).note)],
        )
        beside(run.checkpoints / "a.safetensors", "x")
        for name in ("good one", "x" * 300, "", None):
            yield (
                f"kept {str(name)[:9]}",
                [
                    refused(partial(kept.keep, run.path, run.checkpoints / "a.safetensors", name)),
                    {Path(key).name: value for key, value in kept.read_kept(run.path).items()},
                ],
            )
        yield "space", [folder_bytes(run.states), clear(run.states), folder_bytes(run.states)]
        yield (
            "room",
            [refused(partial(require_space, root, needed, "It", "fix")) is None for needed in (1,)]
            + [refused(partial(require_space, root, 10**17, "It", "fix"))["refused"][0][0]],
        )


@producer
def files() -> Facts:
    """Files that are read and written whole; draws by address."""
    with folder() as root:
        path = beside(root / "a", "12345")
        yield "read", [refused(partial(read_regular, path, most)) for most in (4, 5, 6)]
        yield (
            "checked",
            [refused(lambda each=each: check_regular(each).st_size) for each in (path, root, root / "none")],
        )
        atomic.write_json(root / "sub" / "b.json", {"a": "ü", "b": [1, 2]})
        atomic.write_text(root / "c", "x\n")
        beside(root / ".tmp-abcdefgh", "left")
        beside(root / ".tmp-mine", "of the user")
        with atomic.folder_atomic(root / "whole") as temporary:
            beside(temporary / "x", "y")
        yield "written", [(root / "sub" / "b.json").read_text(), sorted(each.name for each in root.iterdir())]
        yield (
            "impossible",
            [impossible_path(root / each, "here") is not None for each in ("a\0b", "n" * 255, "n" * 256, "fine")],
        )
        space = Workspace(root / "o", root / "m", root / "p")
        yield (
            "workspace",
            [
                getattr(space, name)
                for name in (
                    "private",
                    "cache",
                    "thumbs",
                    "trash",
                    "captions",
                    "runs",
                    "images",
                    "inputs",
                    "datasets",
                    "captioners",
                    "preprocessors",
                )
            ],
        )
        yield "typed", [typed_path(each) for each in (None, "", ' "' + root.as_posix() + '" ')]
        yield "last", [last_part(each) for each in ("C:\\sets\\fox\\", "sets/fox", "fox/", "D:\\a/b.pt", "")]
        yield "shown", [display_path(root / "x"), is_share("//server/x"), is_share("/a")]
    yield (
        "draws",
        [
            draws.address(1, "a"),
            draws.address(2, "a"),
            draws.integer(0, 10, 1, "x", 2),
            draws.uniform(1, "x", "y"),
            draws.normal((2, 3), 1, "n"),
        ],
    )
