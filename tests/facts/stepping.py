"""Steps that a fused backward pass takes, states that do not fit, and what a run validates, samples and writes at its edges."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import product
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from core.optimization import optimizers
from core.optimization.clipping import make_scaler
from core.record.problems import ProblemsError
from core.training.loop import timetable
from tests.facts.partitions import Average
from tests.facts.store import Facts, folder, producer, refused
from tests.facts.trainers import _raise, _timetable
from tests.training.test_stepper import stepper, weight


@producer
def steppers() -> Facts:
    """Fused steps, weights that only count in the norm, averages, and states with what they lack."""
    heard: list[Any] = []
    fused = SimpleNamespace(
        begin=lambda loss: heard.append(float(loss.detach())),
        end=lambda: torch.tensor(3.0),
        release=partial(heard.append, "released"),
    )
    one = stepper([weight(1.0)])
    one._fused, one._guard = fused, SimpleNamespace(begin=partial(heard.append, "begun"))  # type: ignore[assignment]
    one.begin()
    losses = one.backward(lambda: one._parameters[0] * torch.ones(3) + 1, 2, True)
    yield "fused", [losses, one.step(torch.zeros(())), list(one.placeholder_items([1])), one.release(), heard]
    for loss in (1.0, float("inf")):
        one = stepper([weight(0.0)], scaler=make_scaler("cpu", torch.float32))
        one.backward(lambda one=one: one._parameters[0] * 2, 1, True)
        yield f"scaled {loss}", [one.step(torch.tensor(loss)), one._parameters[0], one._scaler.get_scale()]
    rests = weight(4.0).requires_grad_(False)
    rests.grad = None
    one = stepper([weight(3.0)], clipped=[rests], keeps_clipped_gradients=True)
    yield "counts only", [rests.requires_grad, one.step(torch.zeros(())), rests.grad, one.release()]
    for averaged, use in product((True, False), ("files", "samples")):
        heard = []
        one = stepper([weight(1.0)])
        one.average = Average(heard) if averaged else None  # type: ignore[assignment]
        with patch("core.training.loop.stepper.evaluation_weights", partial(_entered, heard)), one.weights_for(use):  # type: ignore[arg-type]
            heard.append("inside")
        yield f"weights {averaged} {use}", [heard, sorted(one.state_dict()["weights"])]
    with folder() as root:
        whole = stepper([weight(1.0)], scaler=make_scaler("cpu", torch.float32)).state_dict()
        scaler = whole["scaler"] | {"scale": 8.0}
        for name, changed in (
            ("older", None),
            ("scale", {"scaler": scaler}),
            ("no scale", {"scaler": None}),
            ("no weights", {"weights": 5}),
        ):
            one = stepper([weight(1.0)], scaler=make_scaler("cpu", torch.float32))
            content = (
                {key: each for key, each in whole.items() if key != "paused"} if changed is None else whole | changed
            )
            yield f"loaded {name}", [refused(one.load, content, root), one.overflow_steps, one._scaler.get_scale()]
            plain = stepper([weight(1.0)])
            yield f"loaded {name} unscaled", [refused(plain.load, content, root), plain.overflow_steps]
        for error in (KeyError, RuntimeError, TypeError, AttributeError, ValueError, IndexError):
            one = stepper([weight(1.0)])
            one._method.load_state_dict = partial(_raise, error("x"))  # type: ignore[method-assign]
            yield f"weights {error.__name__}", _outcome(one.load, whole | {"scaler": None}, root)
            with patch.object(optimizers, "load_state", partial(_raises, error("x"))):
                yield (
                    f"optimizer {error.__name__}",
                    _outcome(stepper([weight(1.0)]).load, whole | {"scaler": None}, root),
                )


def _raises(error: Exception, *given: Any) -> None:
    raise error


def _outcome(call: Any, *given: Any) -> Any:
    try:
        return refused(call, *given)
    except Exception as error:
        return type(error).__name__


@contextmanager
def _entered(heard: list[Any], *given: Any) -> Any:
    heard.append("averaged by the optimizer")
    yield


@producer
def edges() -> Facts:
    """What is validated and sampled before the first step and at the last, what is written where something fails."""
    for number, (step, begun, saved, due) in enumerate(product((0, 4, 9), (0, 2), (True, False), (True, False))):
        heard: list[Any] = []
        one = _noting(heard, step, begun, due)
        lines = [{"kind": "saved", "step": step if saved else step + 1}, {"kind": "steps", "step": step}]
        with patch.object(timetable, "read_lines", lambda file, lines=lines: iter(lines)):
            one.before_first_step()
        yield f"begins {number}", heard
    for number, (step, saved, known) in enumerate(
        product((8, 9), (True, False), ("", "validated", "sample", "sample twice"))
    ):
        heard = []
        lines = [{"kind": known.split()[0], "step": step}] * (2 if "twice" in known else 1) if known else []
        _noting(heard, step, 0, True)._measure_if_due(saved, lines)
        yield f"measured {number}", heard
    for write, state, save in product(
        (None, OSError(28, "full"), ProblemsError.one("w", code="w", fix="f")), (True, False), (None, OSError(13, "no"))
    ):
        heard = []
        one = _noting(heard, 5, 0, True)
        one._checkpoints = SimpleNamespace(  # type: ignore[assignment]
            write=lambda *given, heard=heard, write=write: heard.append(["write", *given]) or _raise(write),
            remove_old=lambda step, heard=heard: heard.append("rotated"),
        )
        one._states = SimpleNamespace(save=partial(_raise, save), remove_old=partial(heard.append, "states rotated"))  # type: ignore[assignment]
        found = [refused(partial(one._write_and_back_up, "name", True, state)), list(heard)]
        heard.clear()
        one._state_with_checkpoints = state
        found += [one._save("name"), list(heard)]
        heard.clear()
        yield f"written {write!r} {state} {save!r}", [*found, one._save("name", not state), list(heard)]
    for batches, at, ranks in product(([], [1]), (5, 4), (True, False)):
        heard = []
        one = _noting(heard, 5, 0, True)
        measure = SimpleNamespace(batches=batches, ranks_checkpoints=ranks, measure=lambda *given: "found")
        vars(one).update(_validation=measure, _validated_at=at, _write_best=partial(heard.append, "best"))
        one._attempt = lambda name, fix, smaller, work, use, heard=heard: [heard.append([name, use]), work()]  # type: ignore[method-assign]
        del vars(one)["_validate"]
        one._validate()
        yield f"validated {batches} {at} {ranks}", [heard, one._validated_at]


def _noting(heard: list[Any], step: int, begun: int, due: bool) -> timetable.Timetable:
    """A timetable of 9 steps and 3 epochs at a step, with what it needs noted."""
    timer = SimpleNamespace(due=due, restart=partial(heard.append, "restarted"))
    reports = SimpleNamespace(report_all=partial(heard.append, "all"), report_validation=heard.append)
    plan = SimpleNamespace(total=9, epoch_of=lambda step: -(-step // 3), ends_epoch=lambda step: step % 3 == 0)
    job = SimpleNamespace(samples=SimpleNamespace(sample_at_first=due))
    run = SimpleNamespace(
        job=job,
        plan=plan,
        total=9,
        stop_wanted=False,
        reports=reports,
        passes=None,
        stepper=SimpleNamespace(weights_for=lambda use: ExitStack()),
    )
    say = lambda *words, code="": heard.append(["said", *words[1:2], len(words), *filter(None, [code])])  # noqa: E731
    context = SimpleNamespace(
        say=say,
        folder=SimpleNamespace(journal_file="x"),
        journal=SimpleNamespace(put=lambda event: heard.append(event.step)),
    )
    one = _timetable(run, context, step)
    one._state.start_step = begun
    vars(one).update(
        _validation=SimpleNamespace(
            limit_message="limited" if due else "", ranks_checkpoints=due, unmeasured_saves=frozenset((3,))
        ),
        _samples=SimpleNamespace(prompts=["a", "b"]),
        _validates_first=due,
        _validate_steps=4,
        _validate_epochs=None,
        _sample_steps=None,
        _sample_epochs=2,
        _sample_timer=timer,
        _checkpoint_timer=timer,
        _backup_timer=timer,
        _validate=partial(heard.append, "validate"),
        _sample=partial(heard.append, "sample"),
    )
    return one
