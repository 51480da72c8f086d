"""What commands do around a job (queue, ownership, processes, signals, exit codes), and which training states a run finds."""

from __future__ import annotations

import io
import shutil
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from core.cli import generate, jobs
from core.record.cancel import CancelToken
from core.record.problems import ProblemsError
from core.record.run_folder import RunFolder, seal_state, states_in
from core.record.workspace import Workspace
from core.settings.check import build
from core.settings.job import GenerateJob, TrainJob
from core.settings.saving import SavingSettings
from core.training.saving import states
from tests.facts.samples import beside
from tests.facts.store import Facts, folder, producer, refused


def noted(heard: list[Any], name: str, answer: Any, *given: Any, **named: Any) -> Any:
    heard.append([name, *(each for each in (*given, *named.values()) if isinstance(each, str | int | float | list))])
    if isinstance(answer, Exception):
        raise answer
    return answer


def options_of(root: Path, **values: Any) -> Any:
    names = {name.replace("_", "-"): value for name, value in values.items()}
    space = Workspace(root / "outputs", root / "models", root / "presets")
    return SimpleNamespace(values=names, settings=[], preset_name="p", workspace=lambda: space, device=lambda: "mps")


def owner_of(heard: list[Any]) -> ExitStack:
    """Return a context that adds "released" to `heard` at its end, in place of an Ownership."""
    owner = ExitStack()
    owner.callback(heard.append, "released")
    return owner


@producer
def around_jobs() -> Facts:
    """Who owns the folder, where a job runs and which code a command ends with."""
    with folder() as root:
        for number, (task, values, reads, processes) in enumerate(
            product(("train", "generate"), ({}, {"queue": True}, {"device": "cuda:9"}), (True, False), (1, 2))
        ):
            heard: list[Any] = []
            owner = owner_of(heard)
            with (
                ExitStack() as stack,
                redirect_stdout(io.StringIO()) as shown,
                redirect_stderr(io.StringIO()) as errors,
            ):
                for name, value in (
                    ("hand_in", partial(noted, heard, "queued", None)),
                    ("has_page", lambda space, reads=reads: reads),
                    ("_wait_for_page", lambda space, identity: jobs.stored_queue(space)),
                    ("launched_processes", lambda processes=processes: processes),
                    ("run_together", partial(noted, heard, "together", 5)),
                    ("Ownership", partial(noted, heard, "owned", owner)),
                    ("_new_folder", partial(noted, heard, "folder", RunFolder(root / "new"))),
                    ("_execute", partial(noted, heard, "executed", 6)),
                    (
                        "tasks",
                        SimpleNamespace(named=lambda task, reads=reads: SimpleNamespace(only_reads=lambda job: reads)),
                    ),
                ):
                    stack.enter_context(patch.object(jobs, name, value))
                stack.enter_context(patch.object(jobs.machine, "check_device", partial(noted, heard, "device", None)))
                code = jobs.run_job(
                    task,
                    build(TrainJob, {}),
                    "title",
                    options_of(root, **values),
                    None if reads else RunFolder(root / "old"),
                )
            yield str(number), [code, heard, len(shown.getvalue().split()), bool(errors.getvalue())]
        for number, (state, task, requested, invalid, own) in enumerate(
            product(
                ("done", "failed", "stopped"), ("train", "generate"), (True, False), (None, True, False), (True, False)
            )
        ):
            yield f"code {number}", _executed(root, state, task, requested, invalid, own)


def _executed(root: Path, state: str, task: str, requested: bool, invalid: bool | None, own: bool) -> Any:
    heard: list[Any] = []
    words = None if invalid is None else SimpleNamespace(invalid_request=invalid)
    stop = SimpleNamespace(requested=requested)
    with ExitStack() as stack, redirect_stderr(io.StringIO()) as errors:
        for name, value in (
            ("tasks", SimpleNamespace(named=lambda task: SimpleNamespace(lane="device" if own else "light", own=own))),
            ("is_launched", lambda task, job: own and task == "train"),
            (
                "TerminalProgress",
                lambda logging, view: SimpleNamespace(
                    close=partial(heard.append, ["closed", logging and logging.console_log_file])
                ),
            ),
            ("RunView", SimpleNamespace(read=lambda folder: None)),
            ("StopOnSignal", lambda token, patient: _Entered(stop, heard, patient)),
            ("supervise", partial(noted, heard, "supervised", (state, words))),
            ("execute", partial(noted, heard, "executed", (state, words))),
        ):
            stack.enter_context(patch.object(jobs, name, value))
        stack.enter_context(patch.object(jobs.machine, "threads", torch.get_num_threads))
        job = build(TrainJob, {"logging": {"console_log_file": "x.log"}}) if task == "train" else build(GenerateJob, {})
        options = options_of(root, **({"outputs": "o", "models": "m"} if requested else {}))
        code = jobs._execute(task, job, RunFolder(root / "run"), options.workspace(), options)
    return [code, heard, errors.getvalue().split()[2:]]


class _Entered:
    def __init__(self, value: Any, heard: list[Any], patient: bool) -> None:
        self.value = value
        heard.append(["patient", patient])

    def __enter__(self) -> Any:
        return self.value

    def __exit__(self, *given: Any) -> None:
        return None


@producer
def together() -> Facts:
    """What the first of several processes does, and what the others do."""
    with folder() as root:
        (root / "there").mkdir()
        for number, (first, supervised, place, error) in enumerate(
            product((True, False), (None, "5"), ("there", "gone"), (None, ProblemsError.one("w", code="w")))
        ):
            heard: list[Any] = []
            job = build(TrainJob, {"memory": {"ddp_timeout": 7}})
            one = SimpleNamespace(first=first, count=2, rank=1, device="cuda:1", close=partial(heard.append, "closed"))
            one.broadcast = partial(noted, heard, "broadcast", (root / place, job))
            owner = owner_of(heard)
            with ExitStack() as stack, redirect_stderr(io.StringIO()):
                stack.enter_context(patch.dict("os.environ", {jobs.SUPERVISED: supervised} if supervised else {}))
                for name, value in (
                    ("Together", partial(noted, heard, "joined", one)),
                    ("Ownership", partial(noted, heard, "owned", owner)),
                    ("_new_folder", partial(noted, heard, "folder", RunFolder(root / "new"))),
                    ("clear_failure", partial(noted, heard, "cleared", None)),
                    ("_execute", partial(noted, heard, "executed", error or 6)),
                    ("write_details", partial(noted, heard, "details", None)),
                    ("record_failure", partial(noted, heard, "failure", None)),
                    ("explain", lambda error, switches: "explained"),
                    ("lost_another_process", lambda error, supervised=supervised: bool(supervised)),
                    (
                        "StopOnSignal",
                        lambda token, heard=heard, **named: _Entered(None, heard, named["patient"] and named["quiet"]),
                    ),
                ):
                    stack.enter_context(patch.object(jobs, name, value))
                stack.enter_context(patch("core.training.start.run_training", partial(noted, heard, "trained", error)))
                found = refused(jobs.run_together, job, "title", options_of(root).workspace(), options_of(root), None)
            yield str(number), [found, [each[:1] if each[0] == "details" else each for each in heard]]


@producer
def signals() -> Facts:
    """The first and the second signal, and those that a launcher repeats."""
    for count, quiet in product((1, 2), (True, False)):
        told: list[int] = []
        with (
            patch.object(jobs, "launched_processes", lambda count=count: count),
            patch.object(jobs.os, "write", lambda handle, text, told=told: told.append(handle)),
        ):
            token = CancelToken()
            stop, found = jobs.StopOnSignal(token, quiet=quiet, patient=True), []
            for now in (10.0, 10.0 + jobs.REPEAT_SECONDS - 0.1, 10.0 + jobs.REPEAT_SECONDS):
                with patch.object(jobs.time, "monotonic", lambda now=now: now):
                    try:
                        stop._handle(2, None)
                        found.append(stop.requested)
                    except KeyboardInterrupt:
                        found.append("interrupted")
        yield f"{count} {quiet}", [found, told, token.wanted]
    with folder() as root:
        space = options_of(root).workspace()
        for name in ("outputs/runs/a", "b", "outputs/runs/b"):
            beside(root / name / "job.json", "{}")
        for text in ("a", "b", "c", (root / "b").as_posix(), "x/a", (root / "x" / "b").as_posix()):
            yield f"run {text.replace(root.as_posix(), '')}", refused(lambda text=text: jobs.find_run(text, space).path)


@producer
def generated() -> Facts:
    """Options of the generate command as settings, and prompts that are typed."""
    for text in ("a.safetensors", "a:0.5", "C:\\a", ":5", "a:b:2", "a:-1", ""):
        yield f"lora {text}", generate.lora_use(text)
    with folder() as root:
        for values in (
            {}, {"prompt": "a"}, {"from_file": "f"}, {"lora": ["a:0.5", "b"]}, {"embedding": ["e"]}, {"check": True}, {"interactive": True},
            {"check": True, "interactive": True},
        ):  # fmt: skip
            heard: list[Any] = []
            options = options_of(root, **values)
            plan = partial(noted, heard, "looked", "plan")
            with ExitStack() as stack, redirect_stdout(io.StringIO()) as shown:
                for name, value in (
                    ("split_options", lambda *given, options=options, **named: options),
                    ("job_from", lambda task, options: build(GenerateJob, {"generate": {"prompt": "fox " * 30}})),
                    ("download_models", partial(noted, heard, "models", None)),
                    ("tasks", SimpleNamespace(named=lambda task, plan=plan: SimpleNamespace(check_job=plan))),
                    ("prompt_loop", partial(noted, heard, "loop", 4)),
                    ("run_job", partial(noted, heard, "run", 5)),
                ):
                    stack.enter_context(patch.object(generate, name, value))
                code = generate.run([])
            yield f"options {values}", [code, options.settings, heard, shown.getvalue()]
        heard = []
        typed = iter(["a", "", "  ", "bad", " b "])

        def answered(job: GenerateJob, *given: Any, **named: Any) -> None:
            heard.append([job.generate.prompt, job.prompts.from_file, named["device"]])
            if job.generate.prompt == "bad":
                raise ProblemsError.one("w", code="w")

        with ExitStack() as stack, redirect_stderr(io.StringIO()) as errors:
            stack.enter_context(patch("builtins.input", partial(_typed, typed)))
            stack.enter_context(patch.object(generate, "Ownership", lambda *given: owner_of(heard)))
            stack.enter_context(patch("core.generation.run.run_generate", answered))
            stack.enter_context(patch("core.generation.model.store.make_store", lambda: None))
            job = build(GenerateJob, {"prompts": {"from_file": "x.txt"}})
            yield "typed", [generate.prompt_loop(job, options_of(root)), heard, bool(errors.getvalue())]
    with redirect_stderr(io.StringIO()) as errors, redirect_stdout(io.StringIO()) as shown:
        printed = generate.PrintedReports()
        printed.say("a")
        printed.say("b", "warning")
        printed.generated(Path("c.png"), 1)
    yield "printed", [errors.getvalue(), shown.getvalue()]


def _typed(lines: Any, prompt: str) -> str:
    line = next(lines, None)
    if line is None:
        raise EOFError
    return line


# -- training states


@producer
def found_states() -> Facts:
    """Which state a run saves, loads, renames and removes."""
    with folder() as root:
        heard: list[Any] = []
        run = _run(root / "run", heard)
        saver = states.States(
            run,
            SimpleNamespace(
                send_state=lambda path: heard.append(["sent", path.name]), finish=partial(heard.append, "finished")
            ),
        )
        yield "nothing", [saver.load(), list(heard)]
        beside(run.context.folder.journal_file, '{"kind": "steps", "seq": 1}\n')
        yield "no state", [saver.load(), list(heard)]
        for step in (3, 3, 5, 12):
            run.state.step = step
            yield f"saved {step} {len(heard)}", saver.save().name
        (run.context.folder.states / "step00000012" / states.STATE_FILE).write_bytes(b"x")
        yield "saved again", saver.save().name
        shutil.rmtree(run.context.folder.states / "step00000012-1")
        for first in (False, True):
            run.context.processes.first = first
            heard.clear()
            (run.context.folder.states / "damaged-step00000012").mkdir(exist_ok=True)
            yield (
                f"loaded {first}",
                [
                    saver.load(),
                    run.state.step,
                    run.reports.clock.total,
                    list(heard),
                    sorted(each.name for each in run.context.folder.states.iterdir()),
                ],
            )
        for name, changed in (
            ("torch", "1.0"),
            ("threads", "99"),
            ("device", "cuda"),
            ("precision", "fp16"),
            ("processor", "x"),
        ):
            heard.clear()
            content = saver._content()
            content["made_with"] = content["made_with"] | {name: changed}
            place = run.context.folder.states / "step00000020"
            place.mkdir(exist_ok=True)
            torch.save(content, place / states.STATE_FILE)
            saver.use(place)
            yield f"other {name}", [each[:2] if each[0] == "load" else len(each) for each in heard]
        for missing in ("step", "seconds", "made_with", "watch"):
            content = saver._content()
            content.pop(missing)
            torch.save(content, place / states.STATE_FILE)
            yield (
                f"without {missing}",
                refused(saver.use, place),
            )
        shutil.rmtree(place)
        for upload, step in ((False, 12), (True, 12), (True, 4)):
            heard.clear()
            run.job = SimpleNamespace(
                saving=SavingSettings(save_last_n_states=1), hub=SimpleNamespace(save_state_to_huggingface=upload)
            )
            run.state.step = step
            for each in (3, 5, 7):
                seal_state(beside(run.context.folder.states / f"step0000000{each}" / "w", "x").parent)
            saver.remove_old()
            yield (
                f"removed {upload} {step}",
                [[each.name for each in states_in(run.context.folder.states)], list(heard)],
            )
        for place in states_in(run.context.folder.states):
            beside(place / "w", "damaged")
        yield "all damaged", refused(saver.load)


def _run(place: Path, heard: list[Any]) -> Any:
    say = lambda *words: heard.append(["said", *words[1:2], len(words)])  # noqa: E731
    context = SimpleNamespace(
        folder=RunFolder(place), say=say, device="cpu", warn_if_moved=list, processes=SimpleNamespace(first=True)
    )
    stepper = SimpleNamespace(
        write_parts=lambda folder: heard.append("parts"),
        state_dict=lambda: {"weights": {}},
        load=lambda content, folder: heard.append(["load", content["step"]]),
    )
    watch = SimpleNamespace(state_dict=dict, load_state_dict=lambda content: heard.append("watched"))
    reports = SimpleNamespace(clock=SimpleNamespace(total=2.5), watch=watch)
    passes = SimpleNamespace(precision=SimpleNamespace(name="bf16"))
    return SimpleNamespace(
        state=SimpleNamespace(step=0), context=context, stepper=stepper, reports=reports, passes=passes, plan=None
    )
