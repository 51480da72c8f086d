"""The queue, runs and their journals, what is said of them, and numbers in words."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PureWindowsPath
from random import Random
from typing import Any
from unittest.mock import patch

from core.engine import average, run_labels
from core.engine import queue as queues
from core.engine.explain import explain
from core.engine.extend import extend, may_change
from core.engine.points import Points, spread
from core.engine.proposed_prompts import CONTEXTS, SCENES, proposed_prompts, trigger_of
from core.engine.run_facts import read_facts, stamps, write_facts
from core.engine.run_grid import run_grid_of, spread_steps
from core.engine.run_summary import summary_of
from core.engine.verdict import candidates, measured_sentence
from core.engine.view import RunView, facts_of, read_watch, thin, true_state
from core.engine.waiting import Wait, waits
from core.record import allowed, bounded_json, draws, journal, kept, patterns, preference, run_about, secrets, units
from core.record.best import Best, read_best, write_best
from core.record.events import ImageGenerated, Sampled, Stage, StateChanged, Steps, Validated
from core.record.file_titles import is_average, label_of
from core.record.problems import (
    LEVELS,
    Problem,
    ProblemsError,
    at_setting,
    errors_first,
    limited,
    one_line,
    unwritten,
    whole_text,
)
from core.record.regular import impossible_path, is_special_on_windows, read_regular
from core.record.run_folder import RunFolder, is_whole, list_runs, safe_name, seal_state, state_step, states_in
from core.record.workspace import Workspace
from core.settings.base import declared
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.named import Limits, escape_problems, named_in
from core.settings.named import limit_problems as refused_by
from core.settings.names import bad_name, without_signs
from core.settings.presets.files import dump
from tests.facts.jobs import changes
from tests.facts.store import Facts, digest, folder, producer, refused

# -- the queue


@producer
def queue() -> Facts:
    """The list of jobs after random additions, moves, ends and restarts."""
    for number in range(12):
        draw = Random(f"queue {number}")
        with (
            folder() as place,
            patch.object(queues.uuid, "uuid4", _Counting()),
            patch.object(queues.time, "time", lambda: 100.0),
        ):
            jobs = queues.Queue(place / "queue.json")
            log: list[Any] = []
            for _ in range(draw.choice((8, 40, 90))):
                log.append(_act(jobs, draw))
            again = queues.Queue(place / "queue.json")
            lists = [
                [[each.title, each.state, each.task, each.guest, each.lane] for each in one.entries()]
                for one in (jobs, again)
            ]
            pace = 80.0, draw.random() < 0.3
            found = waits(
                jobs.entries(),
                lambda entry, pace=pace: pace,
                paused=jobs.paused,
                lent_to=draw.choice(("", "x")),
            )
            words = [each.message for each in found.values()]
            states = [[each.begins, each.ahead, each.left] for each in found.values()]
            yield (
                str(number),
                [
                    len(lists[0]),
                    lists[0][-12:],
                    lists[1] == lists[0] or lists[1][-12:],
                    again.paused,
                    log[-6:],
                    words[:5],
                    states[:5],
                ],
            )
    for wait in (
        Wait(),
        Wait("fox", 80),
        Wait("fox", 0.5, 2),
        Wait("f" * 50, 80, 1),
        Wait("fox", 80, on_pause=True),
        Wait(ahead=2, queue_paused=True),
    ):
        yield f"wait {wait}", [wait.message, wait.begins]
    for values in (
        {},
        {"id": 5},
        {"added": -1},
        {"job": []},
        {"task": "pictures"},
        {"state": "running"},
        {"nonsense": ""},
    ):
        yield f"read {values}", _reread(values)


class _Counting:
    """uuid4 that counts."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self) -> Any:
        self.number += 1
        return type("Number", (), {"hex": f"{self.number:032d}"[::-1]})()


def _act(jobs: queues.Queue, draw: Random) -> Any:
    entries = jobs.entries()
    some = draw.choice(entries).id if entries else ""
    token = queues.GUEST.set(draw.choice(("", "", "ann", "bob")))
    try:
        match draw.choice(
            ("add", "add", "add", "end", "move", "cancel", "take", "pause", "cpu", "begin", "forget", "gone")
        ):
            case "add":
                task = draw.choice(("train", "train", "resize", "download", "tag", "nonsense", "hashes"))
                state = draw.choice(("waiting", "waiting", "done", "failed"))
                return jobs.add(task, f"job {len(entries)}", {"a": {}}, state=state).title
            case "end" if some:
                return jobs.change(some, state=draw.choice(("done", "stopped", "failed"))).state
            case "move" if some:
                jobs.move(some, draw.choice((-1, 0, 1, 2, 9)))
                return [each.title for each in jobs.entries()][:6]
            case "cancel" if some:
                return jobs.cancel_waiting(some)
            case "take":
                return (entry := jobs.take()) and entry.title
            case "pause":
                return jobs.pause(draw.random() < 0.4)
            case "cpu" if some:
                return refused(lambda: (entry := jobs.put_on_cpu(some)) and entry.lane)
            case "begin" if some:
                return (entry := jobs.begin(some)) and entry.title
            case "forget" if some:
                return jobs.forget({some})
            case "gone":
                return refused(jobs.get, "nobody")
    finally:
        queues.GUEST.reset(token)


def _reread(changes: dict[str, Any]) -> Any:
    entry = {"id": "a", "task": "train", "title": "t", "job": {"model": {}}, "state": "waiting"} | changes
    with folder() as place, patch.object(queues.time, "time", lambda: 100.0):
        file = place / "queue.json"
        file.write_text(json.dumps({"entries": [entry, {**entry, "id": "b", "state": "waiting"}], "paused": False}))
        found = queues.Queue(file)
        return [
            [vars(each) for each in found.entries()],
            found.paused,
            bool(found.set_aside),
            len(list(place.iterdir())),
        ]


# -- runs


def write_run(place: Path, name: str, draw: Random) -> RunFolder:
    """A run folder with a journal of a random life: stops, resumes from earlier states, validations, files."""
    run = RunFolder(place / "outputs" / "runs" / name)
    (run.path / "checkpoints").mkdir(parents=True)
    settings = {
        "dataset": {"folder": "sets/foxes"},
        "samples": {"sample_prompts": ["a fox", "an owl"]},
        "saving": {"output_name": "fox"},
    }
    if draw.random() < 0.9:
        run.job_file.write_text(
            json.dumps(dump(build(TrainJob, settings), preset=draw.choice(("", "mine")))), encoding="utf-8"
        )
    lines, clock = list(_life(draw, run)), 1000.0
    text = []
    for seq, (kind, facts) in enumerate(lines, 1):
        clock += draw.choice((0.5, 1, 2, 30))
        text.append(json.dumps({"v": 1, "seq": seq, "time": clock, "kind": kind, **facts}) + "\n")
    if draw.random() < 0.3:
        text.insert(len(text) // 2, "damaged\n")
    run.journal_file.write_text("".join(text), encoding="utf-8")
    return run


def _life(draw: Random, run: RunFolder) -> Iterator[tuple[str, dict[str, Any]]]:
    total = draw.choice((20, 600, 2500))
    yield "state", {"state": "running", "message": "", "fix": ""}
    yield "planned", {"total": total, "epochs": 4, "steps_per_epoch": total // 4, "images": 7, "sentence": "x"}
    yield "stage", {"text": "encoding", "done": 3, "total": 9, "of_bytes": draw.random() < 0.3}
    step = 0
    while step < total:
        count = draw.choice((1, 2, 5))
        steps = list(range(step + 1, min(step + count, total) + 1))
        losses = [0.1 + 1 / each + draw.choice((0, 0.02)) for each in steps]
        if draw.random() < 0.01:
            losses[0] = math.inf
        yield "steps", {"steps": steps, "losses": losses, "rates": {"unet": 1e-4 * (1 - step / total)}, "epoch": 1 + 4 * step // total,
                        "seconds_per_step": 0.5, "corrected": [1.1] * len(steps), "grad_norm": draw.choice((None, 0.5))}  # fmt: skip
        step = steps[-1]
        if draw.random() < 0.03:
            loss = draw.uniform(0.05, 0.2)
            yield "validated", {"step": step, "loss": loss, "train_loss": 0.1, "gap": loss - 0.1, "by_timestep": {"200": loss}, "images": 2,
                                "measured_on": draw.choice(("held_out", "training")), "each": [loss] * 8, "each_of": "a"}  # fmt: skip
        if draw.random() < 0.03:
            file = f"checkpoints/fox-step{step:08d}.safetensors"
            if draw.random() < 0.8:
                (run.path / file).write_bytes(b"x")
            yield "saved", {"step": step, "file": file, "bytes": 5}
        if draw.random() < 0.03:
            yield (
                "sample",
                {
                    "step": step,
                    "index": draw.randint(0, 1),
                    "prompt": "a fox",
                    "seed": 1,
                    "file": f"samples/{step}.png",
                },
            )
        if draw.random() < 0.02:
            yield "log", {"level": draw.choice(("info", "warning", "error")), "text": f"at {step}", "fix": ""}
            yield "memory", {"peak_bytes": draw.choice((5, 9, 7)), "device": "cuda:0"}
        if draw.random() < 0.01:
            yield "state", {"state": draw.choice(("stopped", "paused")), "message": "", "fix": ""}
            yield "state", {"state": "running", "message": "", "fix": ""}
            step = max(0, step - draw.choice((0, 3, 10)))
    if draw.random() < 0.8:
        yield (
            "state",
            {
                "state": draw.choice(("done", "failed", "stopped")),
                "message": draw.choice(("", "full")),
                "fix": "x",
                "code": "a.b",
            },
        )
    yield "nonsense", {}


@producer
def runs() -> Facts:
    """Snapshot, facts and row of random runs; their comparison grids."""
    for number in range(14):
        draw = Random(f"run {number}")
        with folder() as place:
            run = write_run(place, f"20260101-12{number:02}00_fox {number}", draw)
            view, held = RunView.read(run), draw.random() < 0.3
            with patch("core.engine.view.time.time", lambda: 5000.0):
                snapshot = view.snapshot(held)
            curves = {name: snapshot.pop(name) for name in ("loss", "lr", "corrected", "norms")}
            facts, of = facts_of(run), stamps(run)
            write_facts(run, replace(facts, of=of))
            row = vars(summary_of(run, facts, held)) | {"words": facts.words}
            row.pop("started")
            small = {
                name: value if len(str(value)) < 500 else digest(str(value).replace(str(place), "~"))
                for name, value in snapshot.items()
            }
            yield (
                str(number),
                {
                    "snapshot": small,
                    "curves": {
                        name: [len(points), points[:1], points[len(points) // 2 :][:1], points[-1:]]
                        for name, points in curves.items()
                    },
                    "row": {name: value for name, value in row.items() if name not in small or small[name] != value},
                    "read": read_facts(run) == replace(facts, of=of),
                    "left": view.seconds_left,
                    "progress": digest(str(view.progress(snapshot["state"])).replace(str(place), "~")),
                    "grid": refused(_grid, snapshot, place),
                    "candidates": candidates(
                        ["", *(each["name"] for each in snapshot["files"][:3]), "x-average-1-to-9.safetensors"],
                        snapshot,
                    ),
                },
            )
    states = ("", "running", "paused", "done", "stopped", "failed")
    yield (
        "states",
        [
            [state, [true_state(state, damaged, held) for damaged in (False, True) for held in (False, True)]]
            for state in states
        ],
    )
    yield (
        "thin",
        [
            [each[0] for each in thin([[step] for step in range(count)], limit)]
            for count, limit in ((10, 4), (4, 4), (5, 2))
        ],
    )
    yield "watch", read_watch(RunFolder(Path("nowhere")))


def _grid(snapshot: dict[str, Any], place: Path) -> Any:
    values = {"samples": {"sample_prompts": ["a {fox} --n bad --s 5", "an owl --d 7 --w 64 --h 128"]}}
    workspace = Workspace(place / "outputs", place / "models", place / "presets")
    grid = run_grid_of(snapshot, build(TrainJob, values), workspace)
    values["samples"]["sample_prompts"].pop()
    alone = run_grid_of(snapshot, build(TrainJob, values), workspace)
    negatives = [each.job.generate.negative_prompt for each in (grid, alone)]
    return [grid.job.grid, grid.job.generate.prompt, grid.notes, len(grid.files), negatives, alone.job.grid]


@producer
def records() -> Facts:
    """Points, averages, verdicts, prompts and preferences."""
    points = Points(named=True)
    for step in range(12):
        points.add(step, {"a": step / 3, "b": None} if step % 5 else {"c": 1.0})
    yield (
        "points",
        [len(points), points[3], points[-1], points[2:4], points.thinned(5)[:], points.up_to(4)[:], points.step],
    )
    yield "spread", [list(spread(count, limit)) for count, limit in ((10, 3), (3, 3), (4, 3), (100, 7), (1, 1))]
    for steps in ([10], [10, 20], [10, 20, 40, 45], [1, 2, 3, 400]):
        yield f"average {steps}", [average.average_weights(steps, power) for power in (False, True)]
    yield "powers", [average.power_of(sigma) for sigma in (0.05, 0.1, 0.15, 0.25)]
    yield (
        "chosen",
        [spread_steps(list(range(1, count)), best) for count in (12, 13, 14, 40) for best in (None, {"step": 7})],
    )
    names = (
        "a-average-1-to-9.safetensors",
        "a-average-1-to-9-power-2.pt",
        "a-average.pt",
        "a-step00000004.safetensors",
        "",
    )
    yield "labels", [[is_average(name), label_of(name, step)] for name in names for step in (None, 1200)]
    known = Best("checkpoints/a", 1040, 0.1, "held_out", 6, 5)
    for values in ({}, {"as_good": (20,)}, {"as_good": (20, 30, 50, 60, 70)}, {"unknown": (5,)}, {"others": 0},
                   {"as_good": (9,), "unclear": 1},
                   {"measured_on": "training", "others": 1}, {"as_good": (9, 11), "unknown": (3,), "others": 3}):  # fmt: skip
        best = replace(known, **values)
        yield f"best {values}", [best.sure, best.what, best.label, measured_sentence(best.to_dict())]
    captions = [
        "a fox in the snow, zkw style",
        "a bee <lora:x:1>, zkw style",
        "zkw style, an owl --d 3",
        "an ant, zkw style",
        "a boat",
    ]
    for samples, held, some, trigger in (
        (["a fox"], captions[:2], captions, "zkw"),
        ([], [], captions[:1], ""),
        (list("abcdef"), list("ghijk"), [], "t"),
    ):
        found = [[each.text, each.shows] for each in proposed_prompts(samples, held, some, trigger)]
        yield f"prompts {len(samples)} {trigger}", found
    yield (
        "triggers",
        [
            trigger_of(given, texts)
            for given in ([None], ["x "])
            for texts in (captions, captions[:4], captions[:2], ["a, b"] * 2, [])
        ],
    )
    yield "phrases", [len(CONTEXTS), len(SCENES), digest([CONTEXTS, SCENES])]
    for number in range(8):
        yield f"preference {number}", _preferred(Random(f"preference {number}"))


def _preferred(draw: Random) -> Any:
    names = list("abcd")[: draw.choice((2, 3, 4))]
    pairs = [(one, other, prompt) for one in names for other in names if one < other for prompt in ("p", "q")]
    choices = []
    for _ in range(draw.choice((0, 3, 12, 40))):
        pair = preference.next_pair(names, pairs, choices)
        assert pair is not None
        better = "left" if pair[0] < pair[1] else "right"
        outcome = draw.choice((better, better, better, "equal", "skip", "left"))
        choices.append(preference.Choice(*pair, outcome))
    found = preference.preference(names, choices)
    rounded = [[float(f"{number:.3g}") for number in row] for row in (found.strengths, found.low, found.high)]
    return [*rounded, found.choices, found.leader, found.settled, [list(vars(each).values()) for each in choices[:6]]]


# -- files of a run


@producer
def files() -> Facts:
    """What is read back of journals, marks, titles, choices and states, and which settings a resumed run may change."""
    with folder() as place:
        run = write_run(place, "20260101-120000_fox", Random("files"))
        (place / "three").write_bytes(b"abc")
        names = ("three", "nothing", "outputs", "x\0y")
        yield (
            "read",
            [
                [refused(lambda name=name, most=most: read_regular(place / name, most).decode()) for most in (2, 3)]
                for name in names
            ],
        )
        lines = list(journal.read_lines(run.journal_file, 3))
        yield (
            "journal",
            [
                len(lines),
                lines[0],
                journal.last_of_kind(run.journal_file, "state"),
                journal.last_of_kind(run.journal_file, "x"),
            ],
        )
        with open(run.journal_file, "ab") as handle:
            handle.write(b'{"seq": 1')
        journal.cut_torn_line(run.journal_file)
        yield "cut", run.journal_file.read_bytes()[-1:].decode()
        file = run.path / "checkpoints" / "x.safetensors"
        file.write_bytes(b"x")
        marks = []
        for name in (" my\u202e mark\n", "", "n" * 81, "n" * 80, None):
            marks.append([refused(kept.keep, run.path, file, name), kept.read_kept(run.path)])
            kept._marks.cache_clear()
        yield "marks", marks
        titles = []
        for title, note in (
            (" a\tb\n", None),
            (None, "x\n\ty\u202e"),
            ("t" * 81, None),
            ("fox", ""),
            (None, "n" * 2001),
        ):
            titles.append(
                [
                    refused(lambda title=title, note=note: vars(run_about.write_about(run, title=title, note=note))),
                    run_about.title_of(run),
                ]
            )
            run_about._read.cache_clear()
        yield "titles", titles
        for outcome, left in (
            ("left", "a"),
            ("equal", "a"),
            ("skip", "a"),
            ("undo", "b"),
            ("right", "b"),
            ("nonsense", "a"),
            ("right", "a"),
        ):
            refused(preference.add_choice, run.path, preference.Choice(left, "b", "p", outcome))
        yield "choices", [list(vars(each).values()) for each in preference.read_choices(run.path)]
        write_best(run.path, Best("checkpoints/x.safetensors", 4, 0.1, "training", 2, 1))
        yield "best", read_best(run.path)
        for name in ("step00000004", "step00000012", "step00000012-1", ".tmp-step00000020", "other"):
            (run.states / name).mkdir(parents=True)
            (run.states / name / "training.pt").write_bytes(name.encode())
            if name != "step00000012":
                seal_state(run.states / name)
        (run.states / "step00000004" / "training.pt").write_bytes(b"changed")
        yield "sealed", [[path.name, state_step(path), is_whole(path)] for path in states_in(run.states)]
        yield "runs", [each.name for each in list_runs(run.path.parent)]
        yield "labels", run_labels.labels_of(run)
        for changed in ({}, {"schedule": {"max_train_steps": 90}}, {"schedule": {"max_train_steps": 9}},
                        {"network": {"rank": 3}, "saving": {"output_name": "y"}},
                        {"samples": {"seed": 5}},
                        {"optimizer": {"learning_rate": 1.0}, "validation": {"validate_every_n_steps": 2}},
                        {"noise": {"x": 1}}):  # fmt: skip
            after = refused(lambda changed=changed: digest(extend(run, changed)))
            yield f"extend {changed}", [after, sorted(path.name for path in run.path.glob("job*.json"))]
    yield "may change", digest([entry.path for entry in declared(TrainJob) if may_change(entry.path)])
    for name in ("a b/c", "CON", "", "x" * 200, "..", "Füchse (1)", "a\nb"):
        yield f"name {name[:20]!r}", [safe_name(name), bad_name(name) is None, without_signs(name)]
    events = (
        StateChanged("done"),
        Stage("x"),
        Steps([1], [0.1], {}, 1, 0.5),
        Validated(1, 0.1, None, None, {}, 2),
        Sampled(1, 0, "a", 1, "b"),
        ImageGenerated("x", 1),
    )
    yield "events", [[each.kind, each.urgent, each.facts()] for each in events]


# -- words and limits


@producer
def words() -> Facts:
    """Numbers, sizes, times and counts in words; problems; what a shared page may open."""
    numbers = (
        0,
        1,
        999,
        1000,
        12345,
        999_499,
        999_500,
        1e6,
        99_949_999,
        1e8,
        3.2e9,
        6.94e12,
        2**29 - 1,
        2**29,
        2**30,
        -5,
    )
    yield (
        "sizes",
        [[units.size_text(each), units.memory_text(each), units.parameters_text(int(each))] for each in numbers],
    )
    floats = (0.0, 1.0, 16.0, 0.1, 1e-3, 9.99e-4, 1e-4, 2.5e-5, -3e-7, 1e15, 1e16, 1234567.0, 7, True, "x")
    yield "numbers", [units.number_text(each) for each in floats]
    yield (
        "clock",
        [units.clock(each) for each in (None, -1, 0, 0.4, 59.5, 60, 3599.4, 3599.6, 3600, 90061, math.inf, math.nan)],
    )
    yield (
        "counts",
        [units.count(number, noun) for number in (0, 1, 2, 10000) for noun in ("image", "entry")]
        + [units.count(2, "batch", "batches")],
    )
    yield "lists", [units.first_of(list("abcd"), most) for most in (0, 2, 3, 4, 9)]
    yield "periods", [units.period_text(each, "step") for each in (1, 2, 5000)]
    yield "progress", [units.progress_text(3, total, of_bytes) for total in (0, 9) for of_bytes in (False, True)]
    yield "articles", [units.with_article(word) for word in ("LoRA", "SD 1.x", "ONNX file", "image", "user", "Unet")]
    problems = [Problem(f"p{number}", code=str(number % 3), level=LEVELS[number % 3]) for number in range(7)]
    yield "order", [each.what for each in errors_first([*problems, *problems[:2]])]
    yield "limited", [len(limited([Problem("x")] * number)) for number in (199, 200, 201, 500)]
    yield (
        "lines",
        [
            one_line("a\nb\x00\u202e\ud800"),
            whole_text("a\ud800b"),
            Problem("x" * 2000).what[:20],
            len(Problem("x" * 2000).what),
        ],
    )
    yield (
        "at",
        [
            [each.what, each.where]
            for each in at_setting(
                "a.b", [Problem("bad x.png", "/d/x.png"), Problem("bad", "/d/y.png"), Problem("z", "a.b")]
            )
        ],
    )
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES):
        (each,) = unwritten(OSError(number, "no"), "The cache cannot be written", "w", "rest").problems
        yield f"unwritten {errno.errorcode[number]}", [each.code, each.what, each.fix]
    for error in (
        ProblemsError([Problem("a", "b", "c", code="d"), Problem("e")]),
        RuntimeError("CUDA out of memory"),
        MemoryError(),
        PermissionError(13, "no"),
        RuntimeError("device-side assert"),
        FileNotFoundError(2, "no", "f"),
        OSError(errno.ENOSPC, "full"),
        RuntimeError("Broken pipe"),
        KeyError("k"),
    ):
        found = explain(error, lambda: "turn x on")
        yield (
            f"explain {type(error).__name__} {str(error)[:12]}",
            [found.poisoned, found.invalid_request, found.known, found.code, found.fix],
        )
    for text in ("(a)(?P<n>b)", "(", "a" * 2001, "(?R)", "\\1"):
        yield (
            f"pattern {text[:20]}",
            refused(lambda text=text: [(p := patterns.Pattern(text, "w")).groups, p.replaced("xab", "<\\1>")]),
        )
    for text in (
        "{}",
        "[1,",
        '{"a": NaN}',
        "[" * 200 + "]" * 200,
        '"\\ud800"',
        "1e999",
        "\ufeff{}",
        "[1,2,3,4]",
        '{"a": {"b": [1]}}',
    ):
        yield (
            f"json {text[:20]}",
            [
                refused(lambda text=text, most=most: bounded_json.parse_json(text, "w", max_values=most))
                for most in (3, 1000)
            ],
        )
    address = [draws.address(seed, "p", *key) for seed in (0, 7) for key in ((), ("a", 1), ("a", 2))]
    yield (
        "draws",
        [*map(str, address), draws.integer(0, 1000, 7, "x", 1), draws.uniform(7, "x", 1), draws.normal((3,), 7, "x")],
    )


@producer
def shared() -> Facts:
    """What jobs of a shared page are refused for, and which paths Windows reads as others."""
    parts = (
        "con",
        "CON.txt",
        "a.",
        "a ",
        "a",
        "lpt1",
        "LPT0.x",
        "com¹",
        "a:b",
        "aux.tar.gz",
        "CONIN$",
        "",
        "nul ",
        "com10",
        "x<y",
    )
    yield "traps", [part for part in parts if is_special_on_windows(part)]
    paths = (
        r"C:\a\b",
        r"c:\A\x",
        r"C:\ab",
        r"\\?\C:\a\b",
        r"\\.\C:\a",
        r"C:\a\..\b",
        r"C:\a\nul",
        r"\\host\a\b",
        r"C:a\b",
        r"\\?\UNC\host\a\b",
    )
    yield "windows", [path for path in paths if allowed.lies_in_on_windows(path, [r"C:\a", r"\\host\a"])]
    assert PureWindowsPath(r"C:\a")
    yield "impossible", [impossible_path(Path(path), "w") is None for path in ("a", "a/\0", "x" * 300, "a/" * 3000)]
    with folder() as place, patch.dict("os.environ", {"HF_TOKEN": "secret-token", "WANDB_API_KEY": "short"}):
        yield "masked", secrets.mask("a secret-token and short")
        for name in ("outputs", "models", "presets"):
            (place / name).mkdir()
        workspace = Workspace(place / "outputs", place / "models", place / "presets")
        inside = str(place / "models" / "x.safetensors")
        for number in range(40):
            draw = Random(f"shared {number}")
            fixed = {
                "model.base_model": draw.choice((inside, "/etc/x", "owner/name", "https://h/x")),
                "dataset.folder": draw.choice((inside, "../x")),
            }
            fixed |= {
                "schedule.max_train_steps": draw.choice((None, 100_000, 100_001)),
                "schedule.max_train_epochs": draw.choice((1000, 1001)),
            }
            fixed |= {
                "logging.log_with": draw.choice((None, "wandb", "tensorboard", "all")),
                "saving.output_name": draw.choice(("a", "../b", "CON")),
            }
            fixed |= {
                "samples.sample_prompts": draw.choice(([], ["a --cn /etc/x --s 3"])),
                "method.kind": draw.choice(("lora", "controlnet")),
            }
            try:
                job = build(
                    TrainJob,
                    changes(
                        TrainJob, str(number), 6, ("resume", "hub", "saving", "samples", "network", "embedding"), fixed
                    ),
                )
            except ProblemsError as error:
                yield str(number), {"refused": error.problems}
                continue
            limits = Limits.of(workspace, keys=draw.random() < 0.5)
            yield (
                str(number),
                [refused_by(job, limits), escape_problems(job), sorted(each.where for each in named_in(job))],
            )
