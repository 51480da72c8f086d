"""Steps of weights at their edges: arguments of optimizers, votes of Automagic, parts of a fused backward pass, rounding, undoing."""

from __future__ import annotations

from functools import partial
from itertools import product
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from core.optimization import automagic, rounding, undo
from core.optimization.clipping import NonFiniteGuard, make_scaler
from core.optimization.fused import FusedBackward
from core.optimization.optimizers import build_optimizer, groups_for, load_class, load_state, resolve, step_sizes
from core.optimization.rounding import widen_steps
from core.record.problems import ProblemsError
from core.settings.optimization.optimizer import OptimizerSettings
from core.settings.optimization.optimizers import Entry
from tests.facts.networks import weights
from tests.facts.store import Facts, producer, refused


def groups_of(rate: float = 1e-2, *more: float) -> list[dict[str, Any]]:
    return [
        {"name": name, "params": list(each), "lr": lr}
        for (name, each), lr in zip(weights().items(), (rate, *(more or (rate,))))
    ]


@producer
def automatic() -> Facts:
    """Automagic's limits, rates and votes."""
    one = [nn.Parameter(torch.ones(2))]
    for low, high in ((0, 0), (0, 1), (1e-3, 1e-3), (1e-3, 1e-4), (-1, 1)):
        yield f"limits {low} {high}", refused(partial(_none, automagic.Automagic, one, min_lr=low, max_lr=high))
    for history in (1, 2, 3, 8, 9, 31, 32):
        yield f"history {history}", refused(partial(_signs, history))
    for history in (2, 3, 4, 5):
        signs = torch.arange(2 ** (history + 1), dtype=torch.int32)
        yield f"votes {history}", automagic._vote(signs, history).tolist()
    for name, arguments in (
        ("Automagic", {"min_lr": 9e-3, "max_lr": 1.3e-2, "lr_bump": 1e-3, "weight_decay": 0.1}),
        ("Automagic", {"clip_threshold": 0.3, "beta2": 0.5}),
        ("Automagic3", {"polarity_history": 3, "weight_decay": 0.1}),
        ("Automagic3", {"polarity_history": 2, "clip_threshold": 0.3, "beta2": 0.5}),
    ):
        settings = OptimizerSettings(optimizer_type=name, optimizer_args=arguments)
        optimizer = build_optimizer(settings, groups_of(1e-2, 2e-2))
        start, seen = step_sizes(optimizer), []
        every = [weight for group in optimizer.param_groups for weight in group["params"]]
        for step in range(7):
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * (1.0, 1.0, 0.5, -1.0)[step % 4]
            for number, weight in enumerate(every):
                weight.grad = (
                    None if step == 2 and number == 1 else torch.cos(weight.detach() * 5 + step * (number + 1))
                )
            optimizer.step()
            seen.append(step_sizes(optimizer))
        yield f"{name} {arguments}", [start, seen, every]


def _none(make: Any, *given: Any, **named: Any) -> None:
    make(*given, **named)


def _signs(history: int) -> Any:
    weight = nn.Parameter(torch.ones(2))
    optimizer = automagic.Automagic3([weight], lr=0.1, polarity_history=history)
    for _ in range(history):
        weight.grad = torch.ones(2)
        optimizer.step()
    state = optimizer.state[weight]
    return [str(state["signs"].dtype), state["signs"].tolist(), state["rate"]]


@producer
def made() -> Facts:
    """Optimizers by their arguments: one kernel or not, rates of groups, refusals, matrices, states in other dtypes."""
    for name, arguments, rate in (
        ("AdamW", {}, 1e-2), ("AdamW", {"foreach": True}, 1e-2), ("AdamW", {"fused": False}, 1e-2), ("AdamW", {"amsgrad": True}, -1e-2),
        ("SGD", {}, 0.5), ("RMSprop", {}, 1e-2), ("RAdam", {}, 1e-2), ("Lion", {}, -1e-3), ("AdamW", {"betas": [2, 3]}, 1e-2),
        ("AdamW", {"nope": 1}, 1e-2), ("AdaFactor", {"relative_step": True}, 1e-2), ("AdaFactor", {"relative_step": False}, 1e-2),
        ("AdamW", {}, 0.0), ("AdamW", {}, float("nan")), ("nope", {}, 1e-2), ("Muon", {}, 1e-2),
        ("pytorch_optimizer.Gravity", {}, 1e-2), ("Automagic", {}, 1e-2), ("StableAdamW", {}, -1e-2),
    ):  # fmt: skip
        yield f"{name} {arguments} {rate}", refused(partial(_made, name, arguments, rate))
    for entry in (
        Entry("X", "nowhere.X", "package"),
        Entry("X", "nowhere.deep.X", ""),
        Entry("X", "torch.optim.Nope", "torch"),
    ):
        yield f"class {entry.path}", [refused(load_class, entry), _words(load_class, entry)]
    shapes = ((4, 6), (6,), (1, 6), (6, 1), (3, 2, 1, 1), (1, 8, 1), ())
    group = {"name": "unet", "params": [nn.Parameter(torch.zeros(shape)) for shape in shapes], "lr": 0.1}
    for name in ("Muon", "pytorch_optimizer.AdaMuon", "AdamW"):
        for embeddings in ((), group["params"][:1]):
            found = groups_for(resolve(name), [group], embeddings)
            yield (
                f"matrices {name} {len(embeddings)}",
                [[each.get("use_muon"), [list(weight.shape) for weight in each["params"]]] for each in found],
            )
    for dtype in (torch.bfloat16, torch.float32):
        optimizers = [
            build_optimizer(OptimizerSettings(optimizer_type="SGD", optimizer_args={"momentum": 0.9}), groups_of(rate))
            for rate in (0.1, 0.2)
        ]
        optimizers[0].step()
        saved = optimizers[0].state_dict()
        for state in saved["state"].values():
            state["momentum_buffer"] = state["momentum_buffer"].to(dtype)
        load_state(optimizers[1], saved)
        kept = [[str(value.dtype) for value in state.values()] for state in optimizers[1].state.values()]
        yield f"state {dtype}", [kept, [group["lr"] for group in optimizers[1].param_groups]]


def _words(call: Any, *given: Any) -> Any:
    """The first words of how to fix the error of a call."""
    try:
        return call(*given)
    except ProblemsError as error:
        return error.problems[0].fix.split()[:5]


def _made(name: str, arguments: dict[str, Any], rate: float) -> Any:
    settings = OptimizerSettings(
        optimizer_type=name, optimizer_args=arguments, learning_rate=rate if rate == rate else 1.0
    )
    optimizer = build_optimizer(settings, groups_of(rate, 3e-3), 5)
    optimizer.step()
    known = ("lr", "initial_lr", "fused", "foreach", "use_muon", "name", "draws_step")
    options = [{key: value for key, value in group.items() if key in known} for group in optimizer.param_groups]
    return [
        options,
        optimizer.defaults.get("lr"),
        list(step_sizes(optimizer)),
        [group["params"] for group in optimizer.param_groups],
    ]


@producer
def fused() -> Facts:
    """Parts whose tensors get no gradient or do not train, released hooks, and parts of many weights."""
    for by_tensor, limit in product((True, False), (0.0, 0.05)):
        every = [weight for each in weights().values() for weight in each]
        every.append(nn.Parameter(torch.ones(2), requires_grad=True))
        for weight in every:
            weight.grad = None
        optimizer = torch.optim.AdamW([{"name": "a", "params": every[:2]}, {"name": "b", "params": every[2:]}], lr=0.1)
        guard = NonFiniteGuard("cpu")
        one = FusedBackward(
            optimizer, widen_steps(optimizer, 4, stochastic=False, by_parts=True), guard, limit, by_tensor=by_tensor
        )
        norms = []
        for used in ((0, 1, 2), (1,), (), (0, 2, 3)):
            loss = (
                torch.stack([torch.cos(every[number]).sum() for number in used]).sum()
                if used
                else torch.zeros((), requires_grad=True)
            )
            one.begin(loss.detach())
            loss.backward()
            norms.append([one.end(), [each.grad is None for each in every]])
        one.release()
        torch.cos(every[0]).sum().backward()
        yield (
            f"{by_tensor} {limit}",
            [norms, every, every[0].grad, guard.tripped(), [sorted(optimizer.state[each]) for each in every]],
        )
    with patch.object(rounding, "LARGEST", 7):
        sizes = ((3, 4, 1), (7, 1), (8, 2), (1, 8, 1), ())
        parts = [rounding.parts_of([{"params": [torch.zeros(size) for size in each], "name": "g"}]) for each in sizes]
        yield "parts", [[[len(weight) for weight in group["params"]] for (group,) in part] for part in parts]
    with patch.object(rounding, "PIECE", 4):
        yield "pieces", [[len(each) for (each,) in rounding.in_pieces(torch.zeros(size))] for size in (0, 3, 4, 5, 9)]
        yield (
            "apart",
            [
                len(list(rounding.in_pieces(*each)))
                for each in ((torch.zeros(3, 4).t(),), (torch.zeros(9), torch.zeros(9)))
            ],
        )
        values = torch.arange(1, 10).to(torch.bfloat16)
        yield "norm", [rounding.wide_norm(values), rounding.wide_norm(values[:3])]


@producer
def narrow() -> Facts:
    """Steps of 16-bit weights: withheld, rounded to nearest or by chance, with what rounding left out."""
    for dtype, stochastic, kahan in product(
        (torch.bfloat16, torch.float16, torch.float32), (True, False), (True, False)
    ):
        for withheld in (None, 0.0, 1.0):
            first = nn.Parameter(torch.linspace(1, 2, 8).to(dtype))
            second = nn.Parameter(torch.linspace(2, 1, 8))
            optimizer = torch.optim.SGD([{"params": [first, second]}], lr=1e-3, momentum=0.5)
            wide = widen_steps(optimizer, 4, stochastic=stochastic, by_parts=False, kahan=kahan)
            for step in range(3):
                first.grad, second.grad = (
                    torch.cos(torch.arange(8) + step).to(dtype),
                    torch.sin(torch.arange(8.0) + step),
                )
                wide.step_groups(optimizer.param_groups, None if withheld is None else torch.tensor(withheld))
                wide.count()
            found = [
                first.grad is None,
                sorted(optimizer.state[first]),
                optimizer.param_groups[0][rounding.STEP],
                "step" in vars(optimizer),
            ]
            yield f"{dtype} {stochastic} {kahan} {withheld}", [first.detach().float(), second, found]
    values = torch.tensor([1.0, -1.0, float("nan"), float("inf"), 3.0e38, 1.0000001])
    yield (
        "not numbers",
        [
            str(each)
            for each in rounding.round_stochastically(
                values, lambda count: torch.full((count,), 32767, dtype=torch.int16)
            ).tolist()
        ],
    )
    yield "drawn", [rounding.draws(3, torch.device("cpu"))(count).tolist() for count in (1, 4, 5)]


@producer
def undone() -> Facts:
    """Which optimizers' steps can be undone, and that nothing is left of one."""
    device = torch.device("cpu")
    for name, arguments in (
        ("AdamW", {}),
        ("SGD", {"momentum": 0.9}),
        ("Prodigy", {}),
        ("AdaFactor", {"relative_step": False}),
    ):
        optimizer = build_optimizer(
            OptimizerSettings(optimizer_type=name, optimizer_args=arguments),
            groups_of(1.0 if name == "Prodigy" else 0.1),
        )
        able = [undo.can_undo(optimizer, device)]
        optimizer.step()
        able.append(undo.can_undo(optimizer, device))
        bytes_ = sum(
            box[key].numel() * box[key].element_size()
            for box, key in undo._slots(optimizer)
            if box[key].device == device
        )
        for most in (bytes_ - 1, bytes_):
            with patch.object(undo, "MOST", most):
                able.append(undo.can_undo(optimizer, device))
        able.append(undo.can_undo(optimizer, torch.device("meta")))
        every = [weight for group in optimizer.param_groups for weight in group["params"]]
        before = _copies(optimizer)
        same = []
        for withheld in (1.0, 0.0):
            for weight in every:
                weight.grad = torch.full_like(weight, float("nan") if withheld else 0.5)
            undo.step_or_undo(optimizer, torch.tensor(withheld))
            same.append(all(map(torch.equal, before, _copies(optimizer))))
        every.append(nn.Parameter(torch.ones(1)))
        every[-1].grad = torch.ones(1)
        optimizer.add_param_group({"params": every[-1:], "name": "new"})
        yield name, [able, same, undo.can_undo(optimizer, device)]
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    for value in (
        "a",
        1,
        None,
        [1, (torch.ones(1),)],
        {"a": torch.ones(1)},
        object(),
        torch.ones(1, dtype=torch.complex128),
    ):
        optimizer.state[optimizer.param_groups[0]["params"][0]] = {"x": value}
        yield f"holds {type(value).__name__} {getattr(value, 'dtype', '')}", undo.can_undo(optimizer, device)


def _copies(optimizer: Any) -> list[Tensor]:
    return [box[key].detach().clone() for box, key in undo._slots(optimizer)]


@producer
def guarded() -> Facts:
    """Scaled steps with infinite gradients, allowed skips, and weights that the optimizer does not have."""
    for allowed, fused_, bad in product((0, 1), (True, False), (None, "gradient", "loss")):
        inside, outside = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
        optimizer = torch.optim.AdamW([inside], lr=0.1, fused=fused_)
        guard, scaler, seen = NonFiniteGuard("cpu", allowed), make_scaler("cpu", torch.float32), []
        for step in range(3):
            wrong = bad if step == 1 else None
            guard.begin()
            guard.watch(torch.tensor(float("inf") if wrong == "loss" else 1.0))
            scaler.scale(inside.sum() * (float("inf") if wrong == "gradient" else 2.0) + outside.sum() * 3).backward()
            norm = guard.scaled_step(scaler, optimizer, [inside, outside], 0.5, [outside])
            seen.append(
                [str(round(float(norm), 3)), inside.detach().clone(), outside.grad, guard.tripped(), scaler.get_scale()]
            )
            inside.grad = outside.grad = None
        yield f"{allowed} {fused_} {bad}", seen
