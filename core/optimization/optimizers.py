"""Builds a job's optimizer: class, arguments, parameter groups and state."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from core.optimization.averaging import ready_to_train
from core.optimization.groups import Group, weights_of
from core.optimization.seeded import seed_steps
from core.record.lazy_torch import Tensor, torch
from core.record.problems import Problem, ProblemsError, raise_if_errors
from core.settings.optimization.optimizer import OptimizerSettings, arguments_in_force, job_arguments, relative_steps
from core.settings.optimization.optimizers import Entry, argument_problems, find, type_problem

if TYPE_CHECKING:
    from torch.optim import Optimizer

WHERE = "optimizer.optimizer_type"
FUSED = ("torch.optim.AdamW", "torch.optim.Adam", "torch.optim.SGD")  # one kernel per step, on every device
# Orthogonalize matrices and flattened convolutions; all else trains as with AdamW.
OF_MATRICES = ("pytorch_optimizer.Muon", "pytorch_optimizer.AdaMuon")
# Arguments that a group has and that are not settings: `Rates` sets "lr", ASGD changes "theta"
STEPPED = {"params", "lr", "theta"}
INSTEAD_OF_FUSED = {"fused", "foreach", "differentiable", "capturable"}


def build_optimizer(
    settings: OptimizerSettings, groups: Sequence[Group], seed: int = 0, embeddings: Iterable[Tensor] = ()
) -> Optimizer:
    """Return the optimizer for these groups, ready to train. Each group stores its learning rate in `initial_lr` for the schedule. Raises
    ProblemsError for invalid rates and arguments.

    seed         for optimizers that use random numbers
    embeddings   token and position tables and rows added to them, which Muon does not treat as matrices
    """
    rates = [group["lr"] for group in groups]
    if not all(math.isfinite(rate) for rate in rates):
        what = f"A learning rate is not a finite number: {rates}"
        raise ProblemsError.one(what, "optimizer", "use a finite rate such as 1e-4", "learning-rate.not-finite")
    entry = resolve(settings.optimizer_type)
    raise_if_errors(argument_problems(job_arguments(settings), entry.arguments, entry.name, "optimizer.optimizer_args"))
    optimizer = _create(settings, entry, groups_for(entry, groups, embeddings))
    if "draws" in entry.traits or not entry.package:
        seed_steps(optimizer, seed)
    ready_to_train(optimizer)
    return optimizer


def groups_for(entry: Entry, groups: Sequence[Group], embeddings: Iterable[Tensor] = ()) -> list[Group]:
    """Return the groups as the optimizer needs them: for Muon, matrices apart from vectors and embeddings, with the same name and rate."""
    if entry.path not in OF_MATRICES:
        return [dict(group) for group in groups]
    rows = {id(weight) for weight in embeddings}

    def is_matrix(weight: Tensor) -> bool:
        return weight.ndim >= 2 and min(len(weight), weight[0].numel()) > 1 and id(weight) not in rows

    parts = [
        {**group, "params": [each for each in group["params"] if is_matrix(each) == matrices], "use_muon": matrices}
        for group in groups
        for matrices in (True, False)
    ]
    return [part for part in parts if part["params"]]


def _create(settings: OptimizerSettings, entry: Entry, groups: list[Group]) -> Optimizer:
    """Create the optimizer; set `lr` and `initial_lr` of each group to its rate, except with AdaFactor's relative step. Raises
    ProblemsError if the library refuses its arguments."""
    arguments = arguments_in_force(settings, entry)
    if entry.path in FUSED and not INSTEAD_OF_FUSED & set(arguments):
        arguments["fused"] = True
    rates = [group.pop("lr") for group in groups]
    relative = relative_steps(settings)
    if "lr" not in entry.arguments and not relative:
        # Several libraries require a default above 0; the groups' rates, set below, are what counts.
        arguments["lr"] = abs(settings.learning_rate) or abs(rates[0])
    try:
        optimizer: Optimizer = load_class(entry)(groups, **arguments)
    except ProblemsError:
        raise
    except Exception as error:  # the library's check of its arguments or this machine
        what = f"{entry.name} cannot be created: {str(error) or type(error).__name__}"
        fix = "correct the argument it names, or choose another optimizer"
        raise ProblemsError.one(what, "optimizer.optimizer_args", fix, "optimizer.refused") from error
    if not relative:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = group["initial_lr"] = rate
    if arguments.get("fused") and "dampening" in optimizer.defaults:
        optimizer.register_step_pre_hook(_add_momenta)
    return optimizer


def _add_momenta(optimizer: Optimizer, *_arguments: Any) -> None:
    """Give weights that get their first gradient a momentum of zeros. torch's fused SGD fails if only some weights have a momentum (after
    dropped layers, with ranks of DyLoRA), and leaves random memory in that of a first step that is skipped."""
    for group in optimizer.param_groups:
        weights = [weight for weight in group["params"] if weight.grad is not None] if group["momentum"] else []
        # With dampening, torch's own first step has none.
        if not group["dampening"] or any("momentum_buffer" in optimizer.state[weight] for weight in weights):
            for weight in weights:
                if "momentum_buffer" not in optimizer.state[weight]:
                    optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)


def resolve(name: str) -> Entry:
    """Return the catalog entry of a job's optimizer_type; for a class in an allowed module an entry with its constructor's arguments.
    Raises ProblemsError for all others."""
    problem = type_problem(name)
    if problem is not None:
        raise ProblemsError([problem])
    entry = find(name)
    if entry is not None:
        return entry
    from core.optimization.signatures import arguments_of

    name = name.strip()
    bare = Entry(name, name, "")
    return Entry(name, name, "", {argument.name: argument for argument in arguments_of(load_class(bare))})


def load_class(entry: Entry) -> Any:
    """Import the class of a catalog entry. Raises ProblemsError if its package does not work on this machine."""
    module, _, attribute = entry.path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a library without a build for this machine raises ImportError, OSError ...
        top = entry.package or module.partition(".")[0]
        what = f"{entry.name} needs {top}, which does not work here ({type(error).__name__}: {error})"
        fix = f"choose AdamW, or install {top} for this machine"
        raise ProblemsError.one(what, WHERE, fix, "optimizer.package-broken") from error


def device_problems(settings: OptimizerSettings, device: str) -> list[Problem]:
    """Return the problem of using the optimizer on a device ("cpu", "cuda:0", "mps"); [] if it can be used."""
    entry = find(settings.optimizer_type)
    reason = entry.unusable(device) if entry is not None and entry.offered else ""  # others are refused by the rules
    if entry is None or not reason:
        return []
    kind, near = device.partition(":")[0], entry.name.replace("32bit", "8bit")
    instead = find(near)
    usable = instead is not None and instead != entry and not instead.unusable(device)
    what = f"{entry.name} cannot be used here: {reason}; this training runs on {kind}"
    return [Problem(what, WHERE, f"choose {near if usable else 'AdamW'}", code="optimizer.other-device")]


def load_state(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Load a saved optimizer state without casting it: torch's `load_state_dict` casts it to the weights' dtype, so an optimizer with
    bfloat16 states would resume from other values than were saved. Rates and the constructor's arguments stay as in this run's settings,
    not as saved."""
    arguments = {"initial_lr", *inspect.signature(type(optimizer).__init__).parameters} - STEPPED
    configured = [{name: group[name] for name in arguments & group.keys()} for group in optimizer.param_groups]
    cosine = getattr(getattr(optimizer, "warmup", None), "cosine_stepper", None)  # of SPAM and StableSPAM
    shape = {name: getattr(cosine, name) for name in ("T_max", "eta_min") if hasattr(cosine, name)}
    optimizer.load_state_dict(dict(state))
    if cosine is not None:
        vars(cosine).update(shape)
    for group, options in zip(optimizer.param_groups, configured, strict=True):
        group.update(options)
    weights = weights_of(optimizer.param_groups)
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    for weight, number in zip(weights, numbers, strict=True):
        saved = state["state"].get(number, {})
        current_state = optimizer.state.get(weight, {})
        for name, value in saved.items():
            current = current_state.get(name)
            if isinstance(value, torch.Tensor) and isinstance(current, torch.Tensor) and current.dtype != value.dtype:
                current_state[name] = value.detach().clone().to(current.device)


def step_sizes(optimizer: Optimizer) -> dict[str, float]:
    """Return {group name: d * lr} of optimizers that estimate their step size, if the host has it; of Automagic {group name: mean rate},
    for which it waits for the device."""
    from core.optimization.automagic import FactoredOptimizer

    sizes = {}
    for group in optimizer.param_groups:
        d = group.get("d")
        if isinstance(d, (int, float)) and group.get("lr") is not None:
            sizes[group["name"]] = float(d) * group["lr"]
    return sizes | (optimizer.average_rates() if isinstance(optimizer, FactoredOptimizer) else {})
