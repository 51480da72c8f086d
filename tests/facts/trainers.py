"""What a training loads, how processes share its work, and what its steps and states do with gradients that do not step."""

from __future__ import annotations

import json
from contextlib import ExitStack
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import psutil
import torch
from torch import nn

from core.optimization.clipping import make_scaler
from core.record import processes
from core.record.problems import Problem
from core.record.processes import Together, check_launch, is_follower, launched_processes
from core.record.run_folder import RunFolder, seal_state
from core.record.workspace import Workspace
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.presets.files import differences
from core.training import prove
from core.training.building import inputs as building
from core.training.building import models
from core.training.building.models import Models
from core.training.loop import timetable
from core.training.saving import resume
from core.training.sharding.stepper import GOOD_STEPS, LossScale, ShardedStepper
from tests.facts.samples import beside
from tests.facts.store import Facts, folder, producer, refused
from tests.training.test_stepper import stepper, weight

# -- what is loaded


class Family:
    """A family whose parts are one linear layer each; it notes what was loaded."""

    def __init__(self, heard: list[Any]) -> None:
        self.layout, self._heard = SimpleNamespace(text_encoders=("text_encoder", "text_encoder_2")), heard

    def load(self, model: str, parts: tuple[str, ...], **options: Any) -> Any:
        self._heard.append([model, list(parts), {name: str(value) for name, value in options.items()}])
        made = {name: nn.Linear(2, 2, dtype=options.get("dtype")) for name in ("denoiser", "vae", "one", "two")}
        texts = [made["one"], made["two"]] if "text_encoders" in parts else []
        return SimpleNamespace(
            denoiser=made["denoiser"] if "denoiser" in parts else None,
            vae=made["vae"] if "vae" in parts else None,
            text_encoders=texts,
            tokenizers=["tokenizer"] if "tokenizers" in parts else [],
        )


MEMORY = ({}, {"fp8_base": True, "mixed_precision": "bf16"}, {"fp8_base_unet": True, "mixed_precision": "bf16"},
          {"lowram": True, "fp8_base": True}, {"gradient_checkpointing": True, "checkpoint_blocks": "outer"})  # fmt: skip
METHODS: tuple[dict[str, Any], ...] = (
    {},
    {"network": {"train_text_encoder": True}},
    {"method": {"kind": "fine_tune"}},
    {"method": {"kind": "fine_tune", "train_text_encoder": "yes"}, "optimizer": {"text_encoder_lr": [1e-5, 0.0]}},
    {"method": {"kind": "fine_tune", "train_text_encoder": "yes"}, "optimizer": {"unet_lr": 0.0}},
    {"method": {"kind": "embedding"}},
    *({"method": {"kind": "fine_tune"}, "sharding": {"deepspeed": True, "zero_stage": stage, "zero3_init_flag": early}}
      for stage, early in ((2, True), (3, False), (3, True))),
)  # fmt: skip


@producer
def loaded() -> Facts:
    """Parts of a model, their dtypes and devices, and what is applied to them."""
    for number, (groups, memory) in enumerate(product(METHODS, MEMORY)):
        job = build(TrainJob, {"memory": memory, **groups})
        for trainable in (torch.bfloat16, torch.float32):
            with ExitStack() as stack:
                yield f"{number} {trainable}", _loaded(job, trainable, stack)


def _loaded(job: TrainJob, trainable: torch.dtype, stack: ExitStack) -> list[Any]:
    heard: list[Any] = []
    for name in ("set_attention", "to_fp8", "checkpoint_unet", "checkpoint_text_encoder", "merge_files"):
        stack.enter_context(patch.object(models, name, lambda *given, name=name: heard.append([name, len(given)])))
    trains_text = job.network.train_text_encoder or job.method.kind == "embedding"
    inputs: Any = SimpleNamespace(
        job=job,
        context=SimpleNamespace(device="meta", stage=heard.append),
        family=Family(heard),
        model="m",
        vae="v",
        prompts=["a"] if trains_text else [],
        method=SimpleNamespace(trains_text=trains_text),
        precision=SimpleNamespace(compute=torch.bfloat16, trainable=trainable),
        files=SimpleNamespace(merged=[]),
    )
    whole = Models(inputs)
    first = whole.vae()
    again = [whole.vae() is first, whole.encoders() is whole.encoders()]
    whole.release_encoders()
    parts = whole.load()
    placed = [
        [part and str(part.weight.dtype), part and str(part.weight.device)]
        for part in (parts.denoiser, *parts.text_encoders)
    ]
    again += [parts.vae is first, whole.vae() is first, whole.encoders() is parts, whole.casts_on_cpu, whole.fp8_text]
    whole.offload_vae()
    again += [whole._vae is None, parts.vae is None]
    early = Models(inputs)
    early.offload_vae()
    early.vae()
    early.offload_vae()
    later = [early._vae is None]
    for inputs.context.device in ("meta", "cpu:0"):
        heard.append(inputs.context.device)
        with patch("core.networks.frozen.install", lambda denoiser: heard.append("installed")):
            Models(inputs).load_untrained()
    return [heard, placed, again, later]


# -- several processes


@producer
def together() -> Facts:
    """What one of several processes computes and notices."""
    for size, count in ((7, 3), (6, 3), (2, 3), (0, 2), (5, 1)):
        shares = []
        for rank in range(count):
            one = object.__new__(Together)
            one.rank, one.count = rank, count
            shares.append(list(one.share(range(size))))
        yield f"{size} of {count}", shares
    for number, names in enumerate(
        ({}, {"WORLD_SIZE": "3"}, {"WORLD_SIZE": "3", "RANK": "0"}, {"WORLD_SIZE": "3", "RANK": "2"}, {"RANK": "2"},
         {"WORLD_SIZE": ""}, {"WORLD_SIZE": "0"}, {"WORLD_SIZE": "-1", "RANK": "1"}, {"ACCELERATE_MIXED_PRECISION": "no"},
         {"MASTER_PORT": "1"}, {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "1"},
         {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "1", "WORLD_SIZE": "1"})
    ):  # fmt: skip
        with patch.dict("os.environ", names, clear=True):
            yield f"launched {number}", [launched_processes(), is_follower(), refused(check_launch)]
    tensors = [torch.ones(2, 3), torch.arange(4, dtype=torch.float64), torch.full((), 5.0)]
    sizes: list[Any] = []
    processes._by_type(tensors, lambda flat: sizes.append([str(flat.dtype), flat.mul_(2).numel()]))
    yield "exchanged", [sizes, tensors]
    for steady in (True, False):
        one, had = object.__new__(Together), []
        one._used = None
        vars(one).update(
            _all_reduce_on_cpu=lambda flat, had=had: had.append(flat.tolist()), _all_reduce=lambda flat: flat.mul_(3)
        )
        weights = [weight(1.0), weight(2.0, 3.0), weight(4.0)]
        weights[1].grad = None
        one.sum_gradients(weights, steady)
        weights[0].grad, weights[1].grad = None, torch.ones(2)
        one.sum_gradients(weights, steady)
        yield f"gradients {steady}", [had, [each.grad for each in weights]]


@producer
def launchers() -> Facts:
    """Whose end ends a process, and what it says then."""
    me = psutil.Process()
    for names in (
        {},
        {processes.LAUNCHED: "x"},
        {processes.SUPERVISED: "7"},
        {processes.LAUNCHED: "", processes.SUPERVISED: "7"},
    ):
        watched: list[Any] = []
        thread = partial(SimpleNamespace, start=lambda watched=watched: watched.append("started"))
        with ExitStack() as stack:
            stack.enter_context(patch.dict("os.environ", names, clear=True))
            stack.enter_context(patch.object(processes.os, "getppid", lambda: 5))
            stack.enter_context(
                patch.object(processes, "_processes_of", lambda pids, watched=watched: watched.extend(pids) or [])
            )
            stack.enter_context(patch.object(processes.threading, "Thread", thread))
            processes.end_with_launcher()
        yield f"watched {names}", watched
    yield "processes", [each is None for each in processes._processes_of([me.pid, 2**31 - 1])]
    ended = SimpleNamespace(is_running=lambda: False, status=lambda: "running")
    zombie = SimpleNamespace(is_running=lambda: True, status=lambda: psutil.STATUS_ZOMBIE)
    lost = SimpleNamespace(is_running=lambda: True, status=partial(_raise, psutil.NoSuchProcess(1)))
    yield "gone", [processes._gone(each) for each in (None, me, ended, zombie, lost)]  # type: ignore[arg-type]
    for names in ({}, {"WORLD_SIZE": "2", "RANK": "1"}):
        heard: list[Any] = []
        answers = [False, False, False, True]
        with ExitStack() as stack:
            stack.enter_context(patch.dict("os.environ", names, clear=True))
            stack.enter_context(patch.object(processes, "_gone", lambda process, answers=answers: answers.pop(0)))
            stack.enter_context(patch.object(processes.time, "sleep", heard.append))
            stack.enter_context(
                patch.object(processes.os, "write", lambda handle, text, heard=heard: heard.append(handle))
            )
            stack.enter_context(patch.object(processes.os, "_exit", heard.append))
            processes._watch([me, me])
        yield f"ends {names}", heard


@producer
def scales() -> Facts:
    """The scale of fp16 losses, names of partitions, and states that do not fit them."""
    scale, seen = LossScale(), []
    for overflow, times in ((False, GOOD_STEPS - 1), (True, 1), (False, GOOD_STEPS - 1), (False, 1), (False, 1)):
        for _ in range(times):
            scale.update(overflow)
        seen.append([scale.factor, scale.good])
    yield "factors", seen
    sharded = object.__new__(ShardedStepper)
    sharded._processes = SimpleNamespace(rank=1, count=3)  # type: ignore[assignment]
    sharded._settings = SimpleNamespace(zero_stage=2)  # type: ignore[assignment]
    sharded.optimizer, sharded.overflow_steps = SimpleNamespace(), 4  # type: ignore[assignment]
    yield "partition", [sharded._partition_file(), sharded.state_dict(), sharded.placeholder_items([1, 2])]
    with folder() as root:
        for content in ({}, {"sharded": sharded._partitioning() | {"stage": 1, "processes": 2}}):
            yield f"load {len(content)}", refused(partial(sharded.load, content, root))


# -- gradients and states


@producer
def gradients() -> Facts:
    """Gradients of weights that count in the norm without stepping, weights outside the norm, overflows, and states."""
    for bad, keeps_clipped_gradients in product((False, True), (False, True)):
        trains, rests, apart = weight(3.0), weight(4.0), weight(12.0)
        one = stepper([trains, apart], clipped=[trains, rests], keeps_clipped_gradients=keeps_clipped_gradients)
        loss = torch.tensor(float("nan") if bad else 1.0)
        norm = one.step(loss)
        yield (
            f"{bad} {keeps_clipped_gradients}",
            [norm, trains, apart, rests.grad, one.weight_norm(), one.state_dict()["beside"]],
        )
    trains, apart = weight(3.0), weight(float("inf"))
    one = stepper([trains, apart], clipped=[trains])
    yield "infinite outside the norm", [one.step(torch.zeros(())), trains]
    for counts_overflows, values in product((True, False), ((1.0,), (float("inf"),))):
        trains = weight(0.0)
        one = stepper([trains], scaler=make_scaler("cpu", torch.float32), counts_overflows=counts_overflows)
        one.backward(lambda trains=trains, values=values: trains * values[0], 1, True)
        one.step(torch.zeros(()))
        yield f"scaled {counts_overflows} {values}", [trains, one.overflow_steps, one._scaler.get_scale()]
    trains = weight(1.0)
    one = stepper([trains])
    one.step(torch.zeros(()))
    state = one.state_dict()
    with folder() as root:
        for name, changed in (
            ("same", {}),
            ("older", {"optimizer_class": None, "paused": 3}),
            ("another optimizer", {"optimizer_class": "Adam"}),
            ("with DeepSpeed", {"sharded": 1}),
            ("no groups", {"optimizer": {"state": {}, "param_groups": []}}),
        ):
            other = stepper([weight(1.0)])
            yield name, [refused(partial(other.load, state | changed, root)), other.overflow_steps]
        beside_it = stepper([weight(1.0)], clipped=[weight(2.0), weight(5.0)], keeps_clipped_gradients=True)
        beside_it.load(state | {"beside": [torch.ones(1), None]}, root)
        yield "beside", [each.grad for each in beside_it._clipped_only]


# -- when something is done


@producer
def timers() -> Facts:
    """Minutes at their edge, steps and epochs that are due."""
    for minutes in (None, 0, 0.5, 2):
        with patch.object(timetable.time, "monotonic", lambda: 100.0):
            timer = timetable.Timer(minutes)
        due = []
        for now in (100.0, 129.9, 130.0, 219.9, 220.0):
            with patch.object(timetable.time, "monotonic", lambda now=now: now):
                due.append(timer.due)
        yield f"minutes {minutes}", due
    yield (
        "due",
        [timetable._is_due(*given) for given in product((4, 6), (None, 3, 4), (None, 2, 3), (None, 2, 3))],
    )


@producer
def reported() -> Facts:
    """What a run says of errors while it saves, samples and validates, and what it names as best."""
    said: list[Any] = []
    context = SimpleNamespace(
        say=lambda *words: said.append([len(words), *words[1:2]]),
        stage=said.append,
        folder=SimpleNamespace(path=Path("x")),
    )
    for number, (step, work) in enumerate(
        product((3, 8), (None, timetable.Cancelled(), ValueError("x"), torch.OutOfMemoryError("out of memory")))
    ):
        said.clear()
        run = SimpleNamespace(
            reports=SimpleNamespace(report_all=lambda: None), total=8, stepper=SimpleNamespace(weights_for=_noted(said))
        )
        one = _timetable(run, context, step)
        freed: list[int] = []
        with patch.object(timetable, "free_memory", lambda freed=freed: freed.append(1)):
            one._attempt("Sampling", "fix", "smaller", partial(_raise, work))
        yield f"attempt {number}", [list(said), freed]
    for number, error in enumerate((None, OSError(13, "denied", "/a/b"), OSError("bare"))):
        said.clear()
        one._rotate(partial(_raise, error))
        yield f"rotated {number}", list(said)
    for number, (step, best) in enumerate(
        product(
            (3, 8),
            (
                None,
                SimpleNamespace(file="a/b", others=[], what="loss", sure="sure"),
                SimpleNamespace(file="a/b", others=["c"], what="loss", sure="sure"),
            ),
        )
    ):
        said.clear()
        one = _timetable(run, context, step)
        one._journal = SimpleNamespace(lines=lambda: [1, 2])  # type: ignore[assignment]
        taken: list[Any] = []
        one._best = SimpleNamespace(take=taken.append, best=lambda folder, best=best: best)  # type: ignore[assignment]
        with patch.object(timetable, "write_best", lambda folder, best: said.append("written")):
            one._write_best()
        yield f"best {number}", [list(said), taken]


@producer
def stopped() -> Facts:
    """What is written and measured at a stop, at the end, after it, and when the user asks for it."""
    for number, (step, ranks, quick, prompts, last) in enumerate(
        product((2, 5), (True, False), (True, False), ((), ("a", "b")), (True, False))
    ):
        heard: list[Any] = []
        context = SimpleNamespace(
            say=lambda *words, heard=heard: heard.append(["said", *words[1:2]]), after_stop=ExitStack
        )
        run = SimpleNamespace(reports=SimpleNamespace(report_all=lambda heard=heard: heard.append("all")), total=9)
        one = _timetable(run, context, step)
        lines = [{"kind": "validated", "step": 9}] * quick + [{"kind": "sample", "step": 9}] * (1 + quick)
        vars(one).update(
            _validation=SimpleNamespace(ranks_checkpoints=ranks, is_quick=quick),
            _samples=SimpleNamespace(prompts=prompts),
            _checkpoints=SimpleNamespace(step_name=str, final=SimpleNamespace(name="final")),
            _validates_last=last,
            _state_at_end=quick,
            _validate=partial(heard.append, "validated"),
            _sample=partial(heard.append, "sampled"),
            _save=lambda *given, heard=heard, **named: heard.append(["saved", *given, named]),
            _write_and_back_up=lambda *given, heard=heard, **named: heard.append(["written", *given, named]),
        )
        one._state.start_step = 2
        context.folder = SimpleNamespace(journal_file="x")
        with patch.object(timetable, "read_lines", lambda file, lines=lines: iter(lines)):
            for act in (one.at_a_stop, one.at_the_end, one.after_the_end, one.save_now, one.sample_now):
                heard.append(act.__name__)
                act()
        yield str(number), heard


def _noted(said: list[Any]) -> Any:
    def weights_for(use: str) -> Any:
        said.append(use)
        return ExitStack()

    return weights_for


def _raise(error: Exception | None) -> None:
    if error is not None:
        raise error


def _timetable(run: Any, context: Any, step: int) -> timetable.Timetable:
    one = object.__new__(timetable.Timetable)
    one._run, one._context, one._state = run, context, SimpleNamespace(step=step)  # type: ignore[assignment]
    return one


# -- where a run begins


@producer
def beginnings() -> Facts:
    """The first step, the dtype decided before, the budget of validation, and addresses of states."""
    plan: Any = SimpleNamespace(epochs=SimpleNamespace(first_step=lambda epoch: epoch * 7))
    for values in (
        {},
        {"initial_step": 0},
        {"initial_step": 5, "initial_epoch": 3},
        {"initial_epoch": 3},
        {"initial_epoch": 1},
    ):
        job = build(TrainJob, {"resume": values})
        yield (
            f"first {values}",
            [resume.first_step(job, plan), [resume._after_end_error(job, step, 10) for step in (9, 10, 11)]],
        )
    for epochs in (None, 0, 2):
        job = build(TrainJob, {"network": {"train_text_encoder": True}})
        job = job.with_settings(method={"stop_text_encoder_epochs": epochs})
        settings = building._with_stop(job, plan).method
        yield f"stop {epochs}", [settings.stop_text_encoder_training, settings.stop_text_encoder_epochs]
    with folder() as root:
        file = root / "machine.json"
        yield "undecided", building._earlier_precision(file, "cuda")
        for device, precision in (
            ("cuda:1", "bf16"), ("cpu", "bf16"), ("cuda", "x"), ("cuda", "no"), ("cuda", "fp16"), (None, "fp16"), ("cuda", None),
        ):  # fmt: skip
            text = json.dumps({"device": device, "precision": precision})
            beside(file, text)
            yield f"decided {text}", [building._earlier_precision(file, device) for device in ("cuda:0", "cpu")]
        state = root / "run" / "state" / "step00000005"
        beside(state / "w", "x")
        for quick in (True, False):
            workspace: Any = SimpleNamespace(runs=root)
            for text in ("run", str(root / "run"), str(state), str(root), "none"):
                yield (
                    f"state {quick} {text.replace(root.as_posix(), '~')}",
                    refused(partial(resume.find_state, text, workspace, quick=quick)),
                )
    for text in (
        "a/b/c",
        " a/b/c/d:main:dataset ",
        "a/b/c::space",
        "a/b/c:x:",
        "a/b/c/:x:other",
        "a/b",
        "a/b/c:x:model:y",
    ):
        yield f"address {text}", refused(partial(resume.parse_address, text))


@producer
def decided() -> Facts:
    """The dtype of a run: as set, as decided before, or measured once by the first process; the checks before a start."""
    heard: list[Any] = []
    chosen = partial(_answer, heard, "choose", SimpleNamespace(name="bf16"))
    with folder() as root, ExitStack() as stack:
        for name in ("use_threads", "use_tf32"):
            stack.enter_context(patch.object(building, name, partial(_answer, heard, name, None)))
        stack.enter_context(patch.object(building, "choose_precision", chosen))
        for number, (mixed, known, states, first) in enumerate(
            product(("auto", "fp16"), (None, "no"), (False, True), (True, False))
        ):
            heard.clear()
            run = SimpleNamespace(machine_file=root / f"{number}.json", states=root / f"{number}")
            if known:
                beside(run.machine_file, json.dumps({"device": "cuda", "precision": known}))
            if states:
                beside(run.states / "step00000001" / "w", "x")
            one = SimpleNamespace(first=first, main_process_first=ExitStack)
            context: Any = SimpleNamespace(folder=run, device="cuda:0", processes=one)
            job = build(TrainJob, {"memory": {"mixed_precision": mixed}})
            building._precision(job, context, 9)
            yield str(number), [list(heard), run.machine_file.read_text() if run.machine_file.exists() else None]
        for begins, failing in product((True, False), (True, False)):
            heard.clear()
            run = SimpleNamespace(states=root / ("none" if begins else "1"), checkpoints=root / "none")
            (root / "1").mkdir(exist_ok=True)
            context = SimpleNamespace(
                folder=run, device="cpu", token="token", stage=partial(_answer, heard, "stage", None), workspace="w"
            )
            found = [Problem("e", code="e")] if failing else [Problem("a", level="advice", code="a")]
            with (
                patch.object(building, "preflight", partial(_checked, heard)),
                patch.object(building, "problems_before_start", partial(_answer, heard, "before", found)),
            ):
                yield (
                    f"checked {begins} {failing}",
                    [refused(partial(building.check_dataset, job, context)), list(heard)],
                )


def _checked(heard: list[Any], *given: Any, progress: Any, **named: Any) -> str:
    progress(1, 2)
    return _answer(heard, "preflight", "report", **named)


def _answer(heard: list[Any], name: str, answer: Any, *given: Any, **named: Any) -> Any:
    shown = [each for each in given if isinstance(each, str | int | bool)]
    kept = {
        key: value if isinstance(value, str | int | bool) else getattr(value, "__name__", "a partial")
        for key, value in named.items()
    }
    heard.append([name, shown, {key: value for key, value in kept.items() if key != "method"}])
    return answer


@producer
def budgets() -> Facts:
    """Pairs of validation: as many as before, else within the run's length."""
    saves = [10, 20, 30]
    with folder() as root, patch.object(building, "save_steps", lambda *given: saves):
        for number, (text, total, steps, count) in enumerate(
            product(
                (
                    None,
                    '{"validation": {"pairs": 9}}',
                    '{"validation": {}}',
                    '{"validation": 3}',
                    '{"validation": {"pairs": "x"}}',
                ),
                (600,),
                (0, 30),
                (1, 2),
            )
        ):
            file = root / f"{number}.json"
            if text:
                beside(file, text)
            context: Any = SimpleNamespace(
                folder=SimpleNamespace(dataset_file=file), processes=SimpleNamespace(count=count)
            )
            report: Any = SimpleNamespace(total_steps=total, views={"a": 40, "b": 20})
            plan: Any = SimpleNamespace(epochs=SimpleNamespace(steps_in=lambda epoch, steps=steps: steps + epoch))
            budget = building._validation_budget(build(TrainJob, {}), context, report, plan)
            yield str(number), [budget.views, budget.pairs]


# -- proofs


@producer
def proofs() -> Facts:
    """Which trainings a proof runs, what it turns off in them, and what it compares."""
    groups = {
        "saving": {
            "save_every_n_epochs": 1,
            "save_state": False,
            "copy_to": "/x",
            "save_n_evenly": 3,
            "save_every_minutes": 2,
        },
        "samples": {"sample_prompts": ["a"], "sample_every_n_steps": 2},
        "validation": {"validate_every_n_steps": 2},
        "schedule": {"max_train_epochs": 4, "seed": 9},
        "logging": {"log_with": "tensorboard"},
    }
    small = prove.short_job(build(TrainJob, groups), 6)
    yield "short", {path: mine for path, (mine, _) in differences(small, TrainJob()).items()}
    yield "seeded", prove.short_job(build(TrainJob, {}), 6).schedule.seed is not None
    with folder() as root, ExitStack() as stack:
        space = Workspace(root / "outputs", root / "models", root / "presets")
        ran: list[Any] = []
        case = SimpleNamespace()

        def trained(job: TrainJob, context: Any, stop_at: int | None) -> str:
            ran.append(
                [
                    context.folder.path.name[16:],
                    stop_at,
                    job.schedule.max_train_steps,
                    sorted(each.name for each in space.private.iterdir()),
                ]
            )
            return case.answers.pop(0)

        stack.enter_context(patch.object(prove, "run_training", trained))
        stack.enter_context(
            patch.object(
                prove, "_state_hashes", lambda run: {"a": "1", run.path.name[16:]: "2"} if case.differs else {"a": "1"}
            )
        )
        stack.enter_context(
            patch.object(
                prove,
                "_journal_losses",
                lambda run: {1: 2.0, 2: 0.5 if run.path.name[16:] == "whole" else 0.5 + case.lost},
            )
        )
        for number, (case.answers, case.differs, case.lost) in enumerate(
            (
                (["done", "stopped", "done"], False, 0.0),
                (["done", "stopped", "done"], True, 0.25),
                (["stopped"], False, 0.0),
                (["done", "done"], False, 0.0),
            )
        ):
            beside(space.private / "proofs" / "old" / "x", "x")
            ran.clear()
            found = refused(partial(prove.prove, small, space, "cpu", 7))
            yield str(number), [found, list(ran), [each.name for each in (space.private / "proofs").iterdir()]]
    with folder() as root:
        run = RunFolder.create(root, "a", {})
        yield "no state", refused(partial(prove._state_hashes, run))
        state = run.states / "step00000002"
        state.mkdir(parents=True)
        for name, extra in ((prove.STATE_FILE, {"seconds": 3, "made_with": "x"}), ("part.pt", {})):
            torch.save({"w": {"b": torch.ones(2), "c": [torch.zeros(0), 5]}, **extra}, state / name)
        seal_state(state)
        yield "content", sorted(prove._state_hashes(run))
        beside(
            run.journal_file,
            '{"kind": "steps", "seq": 1, "steps": [1, 2], "losses": [0.5, 0.25]}\n{"kind": "log", "seq": 2}\n',
        )
        yield "losses", prove._journal_losses(run)
