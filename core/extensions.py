"""Modules that extend the program: each registers methods, objectives ... when it is imported.

Modules of other packages register the same way if the owner of the machine allowed them (`--allow-module`,
allowed_modules.txt); nothing else is imported.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

from core.record.allowed import allow, allowed_modules
from core.record.problems import ProblemsError, raise_any

EXTENSIONS: tuple[str, ...] = (
    "core.builtin",
    "core.captioning.registered",
    "core.control.detectors",
    "core.control.hints.registered",
    "core.diffusion.objectives",
    "core.generation.sample.guidances.registered",
    "core.generation.plan.hooks",
    "core.generation.plan.upscalers",
    "core.methods.kinds.lora",
    "core.methods.kinds.full",
    "core.methods.kinds.embedding",
    "core.methods.kinds.controlnet",
    "core.methods.kinds.lllite",
    "core.networks.kinds.lora",
    "core.networks.kinds.lora_fa",
    "core.networks.kinds.dylora",
    "core.networks.kinds.loha",
    "core.networks.kinds.lokr",
    "core.networks.kinds.locon",
    "core.networks.kinds.full",
    "core.networks.kinds.dora",
    "core.networks.kinds.glora",
    "core.networks.kinds.ia3",
    "core.networks.kinds.oft",
)
_loaded: tuple[str, ...] = ()  # the list that was imported whole
GROUP = "atelier"  # of entry points in a package's pyproject.toml
FLAG = "--allow-module"


def later(module: str, name: str) -> Callable[..., Any]:
    """Return a function that imports `module` when it is called and passes its arguments to the module's function `name`.

    So registering stays cheap and free of circular imports.
    """

    def call(*args: Any) -> Any:
        return getattr(import_module(module), name)(*args)

    return call


def load() -> None:
    """Import the modules of EXTENSIONS, without torch. Repeated calls are nearly free."""
    global _loaded
    if _loaded is not EXTENSIONS:
        listed = EXTENSIONS
        for name in listed:
            import_module(name)
        _loaded = listed


def import_allowed(argv: Sequence[str] = ()) -> None:
    """Import the allowed modules of other packages and add them to EXTENSIONS: called once, before any registry is read.

    argv   the command line, of which only --allow-module is read; its other problems are reported later

    Of a package with entry points in the group `atelier` their modules are imported, else the package itself. Raises ProblemsError
    with every module that fails.
    """
    global EXTENSIONS
    names = [word.partition("=")[2] for word in argv if word.startswith(f"{FLAG}=")]
    names += [after for word, after in pairwise(argv) if word == FLAG]
    for name in names:
        with suppress(ProblemsError):  # not a module name: reported later
            allow(name)
    allowed = allowed_modules()
    modules = {point.module for point in entry_points(group=GROUP) if _top(point.module) in allowed}
    without_entry_points = allowed - {_top(module) for module in modules}
    packages = {name for name in without_entry_points if find_spec(name) is not None}
    load()
    wrong = []
    for name in sorted(modules | packages):
        try:
            import_module(name)
        except Exception as error:  # of other people's code
            what = f"The module '{name}' is allowed, but cannot be imported: {type(error).__name__}: {error}"
            fix = f"repair or install it, or remove it from {FLAG} and allowed_modules.txt"
            wrong += ProblemsError.one(what, name, fix, "module.import").problems
    raise_any(wrong)
    EXTENSIONS = tuple(dict.fromkeys((*EXTENSIONS, *sorted(modules | packages))))


def _top(module: str) -> str:
    """Return the top-level package of a dotted module name."""
    return module.partition(".")[0]
