"""Limits of work in parts: the train command before its training, grids whose images fail, compiled blocks, turned faces, limbs
of poses, and how many names a message shows."""

from __future__ import annotations

import io
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from core.cli import train as command
from core.control.hints.pose import drawing
from core.control.hints.pose.person import Person
from core.dataset.sources.metadata import Entry, Matches, match_problems
from core.families import compiling
from core.formats.hub import references
from core.generation.grids import making
from core.record.cancel import Cancelled
from core.record.problems import Problem, ProblemsError
from core.settings.check import build
from core.settings.job import TrainJob
from core.tools.images import faces
from tests.facts.samples import smooth
from tests.facts.store import Facts, folder, producer, refused

# -- the train command


def _options(root: Path, **values: Any) -> Any:
    space = SimpleNamespace(models=root / "models", outputs=root / "outputs", runs=root / "outputs" / "runs")
    return SimpleNamespace(
        values=values,
        preset=None,
        argument=None,
        advice=[],
        problems=[],
        preset_read=None,
        settings={},
        workspace=lambda: space,
        device=lambda: "cuda",
    )


@producer
def trained_by_command() -> Facts:
    """Which checks run in which order, what is downloaded, and what an option does instead of training."""
    level = {"none": [], "advice": [Problem("a", level="advice", code="a")], "error": [Problem("e", code="e")]}
    with folder() as root, ExitStack() as stack:
        heard: list[Any] = []
        report = SimpleNamespace(sentence="one", held_out="")
        for place, name, answer in (
            ("core.dataset.preflight", "preflight", report),
            ("core.training.checks.before_start", "upload_problems", []),
            ("core.training.checks.recipe_fit", "recipe_problems", []),
            ("core.settings.rules", "set_without_effect", []),
            ("core.families.locate", "base_model_family", "sd1"),
            ("core.cli.train", "gpu_memory", 5),
            ("core.cli.train", "prove_resume", 7),
            ("core.cli.train", "run_job", 8),
        ):
            stack.enter_context(patch(f"{place}.{name}", partial(_noted, heard, name, answer)))
        stack.enter_context(patch.object(command, "_download", lambda hub_id, *more: heard.append(str(hub_id))))
        for trains, check, model, before in product((True, False), (False, True), ("a/b", "none.safetensors"), level):
            heard.clear()
            job = build(TrainJob, {"model": {"base_model": model, "vae": "c/d"}})
            found = partial(_noted, heard, "before", level[before])
            with patch("core.training.checks.before_start.problems_before_start", found):
                options, shown = _options(root, **({"check": True} if check else {})), io.StringIO()
                with redirect_stderr(shown):
                    answer = refused(partial(command.check, job, options, trains=trains))
            yield f"{trains} {check} {model} {before}", [answer, list(heard), shown.getvalue().count("a")]
        for values in (
            {},
            {"check": True},
            {"probe": True},
            {"prove": "3"},
            {"check": True, "probe": True},
            {"probe": True, "prove": "3"},
        ):
            heard.clear()
            job = build(TrainJob, {})
            with (
                patch.object(command, "check", lambda *given, **named: report),
                patch.object(command, "is_follower", lambda: False),
                redirect_stderr(io.StringIO()) as errors,
                redirect_stdout(io.StringIO()) as shown,
            ):
                options = _options(root, **values)
                options.advice = [Problem("a", level="advice", code="a")]
                code = command.train_job(job, options)
            yield f"options {values}", [code, list(heard), shown.getvalue(), bool(errors.getvalue())]
        heard.clear()
        with patch.object(command, "is_follower", lambda: True):
            yield "follows", [command.train_job(build(TrainJob, {}), _options(root, check=True)), list(heard)]
        for count in (1, 2):
            with patch.object(command, "launched_processes", lambda count=count: count):
                memory = build(TrainJob, {"memory": {"num_processes": 5}}).memory
                yield f"launched {count}", command.with_launched_processes(memory).num_processes
        for changed in ({"preset": "x"}, {"argument": "x"}, {"values": {"continue": "r", "dataset-config": "x"}}):
            options = _options(root, **{"continue": "r"})
            vars(options).update(changed)
            yield f"resumed {changed}", refused(partial(command.resume, options))
    with folder() as root:
        for text, equal in product(("", "1", "x", "-3", "2.5", "2"), (True, False)):
            proof = SimpleNamespace(equal=equal, report=lambda: "words")
            released: list[Any] = []
            owner = ExitStack()
            owner.callback(released.append, "released")
            with (
                patch("core.training.prove.prove", lambda *given, say, proof=proof: say("said") or proof),
                patch.object(command, "Ownership", lambda *given, owner=owner: owner),
                redirect_stderr(io.StringIO()) as errors,
                redirect_stdout(io.StringIO()) as shown,
            ):
                code = refused(partial(command.prove_resume, build(TrainJob, {}), _options(root, prove=text)))
            yield f"prove {text} {equal}", [code, released, shown.getvalue(), errors.getvalue()]
        for changed, follows in product(({}, {"a": 1}), (True, False)):
            heard = []
            with ExitStack() as stack:
                for name, value in (
                    ("find_run", lambda name, space: type("Run", (str,), {"name": name})(name)),
                    ("Ownership", lambda *given: SimpleNamespace(release=lambda: None)),
                    ("read_flags", lambda job, settings, changed=changed: (changed, [])),
                    ("job_to_resume", lambda folder: build(TrainJob, {})),
                    (
                        "extend",
                        partial(_noted, heard, "extend", build(TrainJob, {"saving": {"output_name": "longer"}})),
                    ),
                    ("is_follower", lambda follows=follows: follows),
                    ("jump_advice", partial(_noted, heard, "jump", [])),
                    ("run_job", partial(_noted, heard, "run_job", 8)),
                    ("check_launch", lambda heard=heard: heard.append("launch")),
                    ("split_options", lambda *given, **named: _options(root, **{"continue": "r"})),
                ):
                    stack.enter_context(patch.object(command, name, value))
                yield f"continued {changed} {follows}", [command.run(["--continue", "r"]), heard]
        with (
            patch.object(command, "split_options", lambda *given, **named: _options(root)),
            patch.object(command, "check_launch", lambda: None),
        ):
            with (
                patch.object(command, "job_from", lambda *given: 5),
                patch.object(command, "train_job", lambda job, options: [job]),
            ):
                yield "new", command.run([])
    bars: list[Any] = []
    with patch("tqdm.tqdm", partial(Bar, bars)):
        with command.checking_bar() as progress:
            for done in (1, 3, 3, 4):
                progress(done, 4)
        command._download(
            references.HubId("a", "b"),
            SimpleNamespace(models="m"),
            lambda hub_id, models, on_progress: [on_progress(each, 9) for each in (2, 9)],
        )
    yield "bars", [[each.total, each.n, each.closed, each.options] for each in bars]


class Bar:
    """A progress bar that shows nothing."""

    def __init__(self, bars: list[Any], total: int | None = None, **options: Any) -> None:
        self.total, self.n, self.closed = total, 0, False
        self.options = {key: value for key, value in options.items() if isinstance(value, bool)}
        bars.append(self)

    def update(self, more: int) -> None:
        self.n += more

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *given: Any) -> None:
        self.closed = True


def _noted(heard: list[Any], name: str, answer: Any, *given: Any, **named: Any) -> Any:
    heard.append(
        [
            name,
            {key: value for key, value in named.items() if isinstance(value, bool)},
            *(each for each in given if isinstance(each, str)),
        ]
    )
    return list(answer) if isinstance(answer, list) else answer


# -- grids


@producer
def failing_grids() -> Facts:
    """Which images of a grid are tried again, one by one, after which errors, and where its minutes end."""
    memory = torch.OutOfMemoryError("out of memory")
    scripts: dict[str, list[Any]] = {
        "whole": [],
        "together": [((0, 1), memory)],
        "together, then alone": [((0, 1), memory), ((0,), ValueError("x"))],
        "alone": [((1,), ValueError("x"))],
        "before a batch": [((), ProblemsError.one("w", "p"))],
        "cancelled": [((0,), Cancelled())],
        "unsaved": [((0, 1), making.Unsaved([Problem("w")]))],
        "all": [((), OSError(28, "full"))],
    }
    for (name, script), minutes in product(scripts.items(), (0, 1)):
        for seconds in (1, 30) if minutes else (0,):
            yield f"{name} {minutes} {seconds}", _grid(list(script), minutes, seconds)


@producer
def run_grids() -> Facts:
    """A grid's task from its folder to its result, and what it reports."""
    for named, late, linked, error in product(
        (None, "old"), (True, False), (0, 1), (None, Cancelled(), ValueError("x"))
    ):
        heard: list[Any] = []
        note = partial(_noted, heard)
        content = SimpleNamespace(minutes=2.5, run="", state="late" if late else "done")
        home: Any = SimpleNamespace(
            name="g", png=Path("a.png"), html=Path("a.html"), job=lambda: 1, content=lambda content=content: content
        )
        home.change = lambda heard=heard, **values: heard.append(values)
        work = SimpleNamespace(
            run=partial(_ran, heard, error, not late),
            end=lambda state, heard=heard: heard.append(state),
            failed={"a": "b"} if linked else {},
        )
        context: Any = SimpleNamespace(
            store=None,
            workspace="w",
            device="cpu",
            stage=partial(note, "stage", None),
            warn=partial(note, "warn", None),
            say=partial(note, "say", None),
        )
        with ExitStack() as stack:
            folders = SimpleNamespace(named=partial(note, "named", home))
            for name, value in (
                ("make_store", partial(note, "make_store", 1)),
                ("GridFolder", folders),
                ("begin", partial(note, "begin", home)),
                ("grid_of", lambda *given: SimpleNamespace(notes=["n"])),
                ("reuse", lambda *given, linked=linked: linked),
                ("GridWork", lambda *given, work=work: work),
            ):
                stack.enter_context(patch.object(making, name, value))
            job: Any = SimpleNamespace(grid=SimpleNamespace(folder=named))
            try:
                done: Any = making.run_task(job, context)
            except (Cancelled, ValueError) as raised:
                done = type(raised).__name__
        yield (
            f"{named} {late} {linked} {error!r}",
            [done if isinstance(done, str) else [len(done.lines), done.facts], heard],
        )


def _ran(heard: list[Any], error: Exception | None, answer: bool) -> bool:
    heard.append("run")
    if error is not None:
        raise error
    return answer


def _grid(script: list[Any], minutes: int, seconds: int) -> list[Any]:
    heard: list[Any] = []
    now = [100]
    request = SimpleNamespace(job=None)
    cells = [SimpleNamespace(position=(number, 0, 0), request=request) for number in range(5)]
    parts = [SimpleNamespace(cells=cells[:3]), SimpleNamespace(cells=cells[3:])]
    home = SimpleNamespace(
        path=Path("grid"),
        generated=lambda: {(2, 0, 0)},
        content=lambda: SimpleNamespace(minutes=minutes, run=""),
        samples=lambda space: {},
        cells=SimpleNamespace(mkdir=lambda exist_ok: heard.append(exist_ok)),
        change=lambda **values: heard.append(
            {key: value if key != "failed" else len(value) for key, value in values.items()}
        ),
    )
    reports: Any = SimpleNamespace(
        say=lambda *words: heard.append(["said", *words[1:]]), stage=lambda *words: heard.append("stage")
    )

    def make(work: making.GridWork, part: Any, most: int | None) -> None:
        heard.append([parts.index(part), most])
        now[0] += seconds
        if script:
            work.progress.batch, error = script.pop(0)
            raise error
        work.done |= {cell.position for cell in part.cells if cell.position not in work.failed}

    with ExitStack() as stack:
        for name, value in (
            ("sampling_steps", lambda job: 4),
            ("free_memory", lambda: heard.append("freed")),
            ("export", lambda folder: heard.append("export")),
        ):
            stack.enter_context(patch.object(making, name, value))
        stack.enter_context(patch.object(making.GridWork, "_generate", make))
        stack.enter_context(patch.object(making.time, "monotonic", lambda: float(now[0])))
        grid: Any = SimpleNamespace(cells=cells, parts=parts)
        work = making.GridWork(grid, home, None, None, "cpu", reports)  # type: ignore[arg-type]
        work.end("not begun")
        began = [work.progress.steps_done, work.progress.images_done, work.progress.steps]
        try:
            found: Any = work.run()
        except (Cancelled, ProblemsError, OSError) as error:
            found = type(error).__name__
        work.progress.steps_done += 3
        work.end("ended")
    return [began, found, sorted(work.failed), heard]


# -- compiled blocks


class BasicTransformerBlock(nn.Linear):
    """A block by its name."""


class ResnetBlock2D(nn.Linear):
    """Another kind of block."""


@producer
def compiled() -> Facts:
    """How many variants of a block are compiled, when that is said, and what is restored."""
    config = torch._dynamo.config
    for sizes in ((), (2,), (2, 2), (2, 3, 4)):
        heard: list[Any] = []
        blocks = [BasicTransformerBlock(size, 2) for size in sizes]
        model = nn.ModuleList([*blocks, ResnetBlock2D(2, 2), ResnetBlock2D(5, 2), nn.Linear(2, 2)])
        before = config.recompile_limit, config.accumulated_recompile_limit

        def compile_(forward: Any, backend: Any, dynamic: bool, heard: list[Any] = heard) -> Any:
            heard.append(dynamic)
            return lambda *given: backend("graph", given) or "compiled"

        with ExitStack() as stack:
            stack.enter_context(patch.object(torch, "compile", compile_))
            stack.enter_context(patch.object(torch._dynamo, "lookup_backend", lambda name: lambda graph, inputs: None))
            stack.enter_context(patch.object(compiling, "VARIANTS", 2))
            one = compiling.CompiledBlocks(
                model, "eager", lambda *words, heard=heard: heard.append("said"), several_sizes=len(sizes) > 1
            )
            limits = [config.recompile_limit, config.accumulated_recompile_limit >= before[1], one._max_graphs]
            for block in (blocks or [model[0]])[:1]:
                with torch.no_grad():
                    plain = block(torch.ones(1, 2)) is not None
                answers = [block(torch.ones(1, 2)) for _ in range(one._max_graphs + 1)]
            pieces = dict(one.graphs)
            one.release()
        restored = [
            (config.recompile_limit, config.accumulated_recompile_limit) == before,
            *("forward" in vars(each) for each in model),
        ]
        yield f"{sizes}", [limits, plain, answers, heard, pieces, restored]


# -- images


@producer
def drawn() -> Facts:
    """Faces that are not turned, ellipses of limbs, joints and dots at their edges."""
    image = smooth(40, 30)
    yield "turned", [faces.rotated(image, degrees, (10, 12)) is image for degrees in (0, 0.049, -0.049, 0.05, -0.05)]
    for start, end in (((0, 0), (8, 0)), ((1, 2), (1, 9)), ((3, 3), (3, 3)), ((0, 0), (3, 4))):
        outline = np.array(drawing._ellipse(np.array(start, float), np.array(end, float), 2.5))
        yield f"ellipse {start} {end}", [outline.shape, outline[:: drawing.POINTS // 4], outline]
    nowhere = np.full((18, 2), np.nan)
    for name, points in (
        ("one", {4: (9.3, 9.6)}),
        ("two", {2: (4.3, 4.1), 3: (14.2, 9.7)}),
        ("half", {2: (4.3, 4.1), 3: (np.nan, 9.7)}),
    ):
        body = nowhere.copy()
        for number, place in points.items():
            body[number] = place
        for size in ((24, 16), (300, 280)):
            seen = drawing.draw([Person(body)], size)
            yield f"{name} {size}", [seen.shape, int((seen > 0).any(2).sum()), [int(each) for each in seen.sum((0, 1))]]
    hand = np.stack([np.arange(21) % 5 * 9.0, np.arange(21) // 5 * 9.0], 1) + 0.3
    face = np.array([[20.3, 20.2], [np.nan, 3.0], [40.3, 20.2]])
    for size in ((64, 50), (600, 520)):
        seen = drawing.draw([Person(nowhere, (hand,), face)], size)
        colors, counts = np.unique(seen.reshape(-1, 3), axis=0, return_counts=True)
        yield f"hand {size}", [colors.tolist(), counts.tolist()]


@producer
def named() -> Facts:
    """How many names the messages about a metadata file show."""
    entries = [Entry(key=f"k{number}.png") for number in range(1, 10)]
    files = [SimpleNamespace(relative=f"f{number}.png") for number in range(1, 10)]
    finder: Any = SimpleNamespace(
        folder=Path("images"), nearest=lambda key: "near77.png" if key in ("k1.png", "k4.png") else ""
    )
    metadata: Any = SimpleNamespace(path=Path("m.json"), entries=entries)
    for name, count, pairs in product(
        ("missing", "only_latents", "inaccessible", "by_name", "ambiguous", "unlisted"), (1, 4, 9), (False, True)
    ):
        matches = Matches()
        of_files = name in ("ambiguous", "unlisted")
        setattr(matches, name, (files if of_files else entries)[:count])
        if name in ("only_latents", "inaccessible"):
            matches.missing = entries[: count + 1]
        matches.pairs = [(entries[0], files[0])] if pairs else []  # type: ignore[list-item]
        yield f"{name} {count} {pairs}", match_problems(matches, finder, metadata)
