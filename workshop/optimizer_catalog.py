"""Writes core/settings/optimization/optimizers.json from the installed packages: `python -m workshop.optimizer_catalog`.

Only the packages named here are searched. Each optimizer found trains a small net, saves and resumes; one that does
not resume bit for bit is listed with the reason instead of being offered. A test fails if the file is stale.
"""

import importlib
import inspect
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from core.optimization.signatures import arguments_of
from core.optimization.trial import PAGED_ROWS, Result, run_trial
from core.settings.optimization.optimizers import FILE, OWN, Argument, Entry, entry_from

# distribution -> modules whose optimizers are listed, the shortest path first
PACKAGES: dict[str, tuple[str, ...]] = {
    "torch": ("torch.optim",),
    "bitsandbytes": ("bitsandbytes.optim",),
    "transformers": ("transformers.optimization",),
    "lion-pytorch": ("lion_pytorch",),
    "dadaptation": ("dadaptation", "dadaptation.experimental"),
    "prodigyopt": ("prodigyopt",),
    "schedulefree": ("schedulefree",),
    "prodigy-plus-schedule-free": ("prodigyplus.prodigy_plus_schedulefree",),
    "pytorch_optimizer": ("pytorch_optimizer",),
    OWN: ("core.optimization.automagic",),
}
NOT_OPTIMIZERS = {"LayerWiseDummyOptimizer", "CoreOptimiser", "FactoredOptimizer"}  # parts of others
# arguments a constructor requires, or cannot run without
NEEDED: dict[str, dict[str, Any]] = {
    **{
        f"bitsandbytes.optim.{name}{bits}": {"momentum": 0.9}
        for name in ("SGD", "LARS")
        for bits in ("", "8bit", "32bit")
    },
    "bitsandbytes.optim.PytorchLARS": {"momentum": 0.9},
}
GIVEN_BY_PERSON: dict[str, dict[str, Any]] = {
    "pytorch_optimizer.Ranger21": {"num_iterations": 100},
    "pytorch_optimizer.BSAM": {"num_data": 100},
}
ALSO_AT = {  # other paths of the same classes found in users' configurations
    "transformers.optimization.Adafactor": ("transformers.Adafactor",),
    "prodigyplus.prodigy_plus_schedulefree.ProdigyPlusScheduleFree": ("prodigyplus.ProdigyPlusScheduleFree",),
}
SCHEDULES = (
    "StepLR",
    "MultiStepLR",
    "ConstantLR",
    "LinearLR",
    "ExponentialLR",
    "PolynomialLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "CyclicLR",
    "OneCycleLR",
)
# phrases of the libraries' errors -> the reason shown to users
REASONS = (
    (("closure",), "it evaluates the loss several times per step (a closure)"),
    (
        ("does not require grad and does not have a grad_fn", "create_graph", "hessian"),
        "it needs second-order gradients",
    ),
    (
        ("base_optimizer", "`params` when you pass", "'defaults'", "param_groups", "keyword argument 'lr'"),
        "it wraps another optimizer",
    ),
    (("named_parameters", "'parameters'", "'model'"), "it takes the whole model instead of weights"),
    (
        ("use_muon", "only supports 2D", "shapes cannot be multiplied"),
        "it takes matrices only: no biases, norms or convolutions",
    ),
    (("SparseAdam",), "it takes sparse gradients only"),
    (("Weights only load failed",), "its state contains objects that a safe state file cannot store"),
    (("parameter groups",), "it takes one group of weights and evaluates the loss several times per step (a closure)"),
    (("einops", "Default process group"), "it needs the package einops and several GPUs"),
)


def candidates() -> Iterator[tuple[str, str, type]]:
    """(distribution, path, class) of every optimizer in the packages."""
    from torch.optim import Optimizer

    listed: set[type] = set()
    for package, modules in PACKAGES.items():
        for name in modules:
            module = importlib.import_module(name)
            for attribute, member in sorted(vars(module).items()):
                is_one = inspect.isclass(member) and issubclass(member, Optimizer) and member is not Optimizer
                if is_one and member not in listed and attribute not in NOT_OPTIMIZERS:
                    listed.add(member)
                    yield package, f"{name}.{attribute}", member


def describe(package: str, path: str, found: type) -> dict[str, Any]:
    """The file's entry for one optimizer, without the trial's result."""
    arguments = [as_data(argument) for argument in arguments_of(found)]
    names = {argument["name"] for argument in arguments}
    definition = f"{found.__module__}.{found.__name__}"
    aliases = sorted({definition, *ALSO_AT.get(path, ())} - {path})
    traits = [*(["adapts"] if "d0" in names else []), *(["eight_bit"] if path.endswith("8bit") else [])]
    item: dict[str, Any] = {"path": path, "package": package, "arguments": arguments, "traits": traits}
    item |= {"aliases": aliases, "definition": definition} if aliases else {}
    if path in NEEDED:
        item["implied"] = NEEDED[path]
    return item


def tried(item: dict[str, Any]) -> dict[str, Any]:
    """The item with the result of its trial on this machine: reason, traits, only_on."""
    entry = entry_from(item)
    result, rates_differ = trial(entry)
    traits = [*item["traits"], *([] if rates_differ else ["one_rate"]), *result.traits]
    item_with_traits = {**item, "traits": traits}
    if entry.package == "bitsandbytes":
        # What fails on a CPU is made for CUDA, its main target, 8-bit steps need kernels of their own.
        devices = ["cuda"] if result.reason else ["cpu", "cuda"] if "eight_bit" in traits and not _on_apple() else []
        item_with_traits |= {"only_on": devices} if devices else {}
    elif result.reason:
        item_with_traits["reason"] = in_words(result.reason)
    return item_with_traits


def _on_apple() -> bool:
    """Whether bitsandbytes registers its 8-bit step for Apple's GPUs."""
    import bitsandbytes

    kernels = Path(bitsandbytes.__file__).parent / "backends" / "mps"
    return any("optimizer_update_8bit_blockwise" in path.read_text("utf-8") for path in kernels.glob("*.py"))


def trial(entry: Entry) -> tuple[Result, bool]:
    """(result, whether groups may have different rates)."""
    extra = GIVEN_BY_PERSON.get(entry.path, {})
    rate = 1.0 if "adapts" in entry.traits else 1e-3

    def make(groups: list[dict[str, Any]]) -> Any:
        return construct(entry, groups, rate, extra)

    rows = PAGED_ROWS if entry.package == "bitsandbytes" else 96
    result = run_trial(make, rate, rows=rows)
    if "different" not in result.reason:
        return result, True
    return run_trial(make, rate, same_rate=True, rows=rows), False


def construct(entry: Entry, groups: list[dict[str, Any]], rate: float, arguments: Mapping[str, Any]) -> Any:
    """The optimizer of a trial, with its own defaults except what its entry requires."""
    from core.optimization.optimizers import groups_for, load_class

    given = {**entry.implied, **arguments}
    if "relative_step" in entry.arguments:
        given.setdefault("relative_step", False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_class(entry)(groups_for(entry, groups), lr=rate, **given)


def in_words(reason: str) -> str:
    return next((reason_text for signs, reason_text in REASONS if any(sign in reason for sign in signs)), reason)


def as_data(argument: Argument) -> dict[str, Any]:
    """The fields that differ from the plain form, for a short file."""
    plain = vars(Argument(argument.name))
    data = {name: value for name, value in vars(argument).items() if name == "name" or value != plain[name]}
    if "choices" in data:
        data["choices"] = list(data["choices"])
    return data


def schedules() -> list[dict[str, Any]]:
    """torch's learning rate schedulers that depend on the step only."""
    import torch

    rows = []
    for name in SCHEDULES:
        arguments = arguments_of(getattr(torch.optim.lr_scheduler, name), ("optimizer", "last_epoch", "verbose"))
        # torch's annotation cannot be evaluated, and a text of numbers would be read letter by letter
        arguments = [replace(each, kind="numbers") if each.name == "milestones" else each for each in arguments]
        rows.append({"path": f"torch.optim.lr_scheduler.{name}", "arguments": [as_data(each) for each in arguments]})
    return rows


def versions() -> dict[str, str]:
    """Without the build tag: 2.13.0+cpu and 2.13.0 have the same optimizers."""
    return {package: version(package).partition("+")[0] for package in PACKAGES if package != OWN}


def described() -> list[dict[str, Any]]:
    return sorted((describe(*candidate) for candidate in candidates()), key=lambda item: item["path"])


def render() -> str:
    """The file's text: one line per optimizer."""
    content: dict[str, Any] = {
        "packages": versions(),
        "optimizers": [tried(item) for item in described()],
        "schedules": schedules(),
    }
    rows = {
        name: ",\n".join("    " + json.dumps(item, ensure_ascii=False) for item in content[name])
        for name in ("optimizers", "schedules")
    }
    packages = json.dumps(content["packages"])
    lists = ",\n".join(f'  "{name}": [\n{text}\n  ]' for name, text in rows.items())
    return f'{{\n  "packages": {packages},\n{lists}\n}}\n'


if __name__ == "__main__":
    from core.record.atomic import write_text

    write_text(FILE, render())
    print(f"wrote {FILE.name}")
