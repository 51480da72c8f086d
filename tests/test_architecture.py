"""The layout is what docs/architecture.md says: imports point one way, files stay small, the core knows no page."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Later stages may import earlier ones. Those on one line stand side by side and do not import one another.
ORDER = [
    ["record", "setup"],
    ["settings"],
    ["diffusion", "formats"],
    ["dataset"],
    ["families"],
    ["networks", "optimization"],
    ["control"],
    ["methods"],
    ["generation"],
    ["training", "captioning", "tools", "imports"],
    ["engine"],
    ["machine_check", "assess"],
    ["cli"],
]
PLACE = {name: place for place, names in enumerate(ORDER) for name in names}
# settings/check.py and presets.py use the Problem form and the atomic files of the record, which itself imports no settings.
FILES = sorted(path for folder in ("core", "tabs", "workshop") for path in (ROOT / folder).rglob("*.py"))


def statements(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """All statements, also those inside of others."""
    for node in nodes:
        yield node
        for inside in ("body", "orelse", "finalbody", "handlers", "cases"):
            yield from statements(getattr(node, inside, ()))


@cache
def imports(text: str) -> list[ast.Import | ast.ImportFrom]:
    """The imports of a file, anywhere in it."""
    return [node for node in statements(ast.parse(text).body) if isinstance(node, (ast.Import, ast.ImportFrom))]


def imported(path: Path) -> set[str]:
    """Modules that a file imports, anywhere in it."""
    found = set()
    for node in imports(path.read_text("utf-8")):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif node.module and node.level == 0:
            found.add(node.module)
    return found


def test_imports_point_one_way():
    files = [path for path in FILES if path.relative_to(ROOT).parts[0] == "core" and path.parts[-2] != "core"]
    pairs = [(path, path.relative_to(ROOT).parts[1], module) for path in files for module in imported(path)]
    assert not [
        f"{path} imports {module}" for path, place, module in pairs if not _is_earlier(module.split("."), place)
    ]
    assert not _is_earlier(["core", "training"], "settings") and not _is_earlier(["gradio"], "engine")
    assert _is_earlier(["workshop", "bench"], "cli") and not _is_earlier(["workshop", "bench"], "machine_check")


def _is_earlier(words: list[str], place: str) -> bool:
    """Whether a module may be imported in a folder of core/."""
    if words[0] in ("gradio", "tabs", "workshop"):
        return place == "cli"
    if words[0] != "core" or len(words) < 2 or words[1] == place or place == "setup":
        return True
    return words[1] in PLACE and PLACE[words[1]] < PLACE[place]


# The rooms of core/generation, as ORDER; "" is what uses them. Packages import PUBLIC, whose names docs/extending.md states.
ROOMS = [["prompt"], ["sample"], ["model"], ["plan"], ["images", "effects"], [""]]
PUBLIC = {f"core.generation.{name}" for name in ("guidance", "guidances", "hooks", "initial", "loop", "upscalers")}


HEIGHTS = {room: number for number, rooms in enumerate(ROOMS) for room in rooms}


def room_of(module: str) -> str:
    """The room of core/generation that a module is in; "" for those above the rooms."""
    words = module.split(".")
    return words[2] if len(words) > 2 and words[2] in HEIGHTS else ""


def is_uphill(module: str, other: str) -> bool:
    """Whether a module of core/generation may not import another, which is in a room next to its own or above it."""
    rooms = room_of(module), room_of(other)
    return rooms[0] != rooms[1] and HEIGHTS[rooms[1]] >= HEIGHTS[rooms[0]]


def test_rooms_of_generation_import_downwards():
    folders = {path.name for path in (ROOT / "core" / "generation").iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders - {"grids"} == HEIGHTS.keys() - {""}
    modules = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES}
    pairs = [
        (modules[path], other) for path in FILES for other in imported(path) if other.startswith("core.generation.")
    ]
    assert not [pair for pair in pairs if pair[0].startswith("core.generation.") and is_uphill(*pair)]
    assert not [pair for pair in pairs if pair[1] in PUBLIC], "the product imports where a name is defined"
    assert is_uphill("core.generation.plan.checks", "core.generation.effects.inpaint")
    assert is_uphill("core.generation.images.output", "core.generation.effects.preview")
    assert is_uphill("core.generation.sample.loop", "core.generation.run")
    assert not is_uphill("core.generation.grids.plan", "core.generation.run")


# The rooms of tabs/ from the lowest: each imports those before it alone. The files next to them serve all rooms, and import one
# another alone, or join all: `context` hands everything to the tabs.
TABS = ["form", "server", "dataset", "tools", "captions", "generate", "monitor", "runs", "train"]
SERVING, JOINING = {"markup", "pieces", "roots", "theme", "wire"}, {"context", "header", "pulse"}


def climbs(place: str, module: str) -> bool:
    """Whether a module of tabs/ is above a room, or a file that serves all, which imports it."""
    first = [*module.split("."), ""][1]
    if not module.startswith("tabs.") or first in SERVING:
        return False
    if first in JOINING:
        return place not in TABS[2:]
    return place in SERVING or first in TABS[TABS.index(place) + 1 :]


def test_rooms_of_tabs_import_downwards():
    rooms = {path.name: path for path in (ROOT / "tabs").iterdir() if (path / "__init__.py").is_file()}
    assert rooms.keys() == set(TABS)
    files = {path.stem: path for path in (ROOT / "tabs").glob("*.py") if path.stem != "__init__"}
    assert files.keys() == SERVING | JOINING
    # app.py joins all
    places = [(path, room) for room in TABS for path in rooms[room].rglob("*.py") if path.name != "app.py"]
    places += [(files[name], name) for name in SERVING]
    assert not [f"{path} imports {other}" for path, room in places for other in imported(path) if climbs(room, other)]
    assert climbs("form", "tabs.train.messages") and not climbs("train", "tabs.form.fields")
    assert climbs("form", "tabs.context") and climbs("form", "tabs.server.links") and climbs("markup", "tabs.form.view")
    assert not [path for path in rooms["server"].glob("*.py") for other in imported(path) if "tabs.form" in other]


CIRCLES_LEFT = ()


def circle(sources):
    """Modules that import one another in a circle, also inside functions and for types alone; empty for none."""
    importing = {}
    for name, text in sources.items():
        found = set()
        for node in imports(text):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            else:
                assert not node.level, f"{name} imports .{node.module}: write its whole name"
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= {each if each in sources else node.module for each in inside}
        left = [f"{folder}." for folder in CIRCLES_LEFT if name.startswith(f"{folder}.")]
        importing[name] = {each for each in found & sources.keys() - {name} if not each.startswith(tuple(left))}
    try:
        TopologicalSorter(importing).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_files_import_one_another():
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text("utf-8") for path in FILES}
    assert not circle({name.removesuffix(".__init__"): text for name, text in files.items()})
    made_up = {
        "core.made.it": "if TYPE_CHECKING:\n    from core.made import up",
        "core.made.up": "def f():\n    import core.made.it",
    }
    assert circle(made_up)


def test_the_set_up_runs_on_a_bare_python():
    allowed = {"core"}
    import sys

    for path in (ROOT / "core" / "setup").glob("*.py"):
        outside = {module.split(".")[0] for module in imported(path)} - set(sys.stdlib_module_names) - allowed
        assert not outside, f"{path.name} imports {outside}"


def test_no_file_is_longer_than_a_few_screens():
    long = [
        f"{path.relative_to(ROOT)}: {lines}" for path in FILES if (lines := path.read_text("utf-8").count("\n")) > 600
    ]
    assert not long


def test_the_entry_stays_small():
    assert (ROOT / "webui.py").read_text("utf-8").count("\n") < 100


def test_nothing_is_left_unfinished():
    words = ("raise NotImplementedError", "TO" + "DO", "FIX" + "ME")
    found = [f"{path.relative_to(ROOT)}: {word}" for path in FILES for word in words if word in path.read_text("utf-8")]
    assert not found


def test_methods_are_asked_not_compared():
    """What depends on the method is answered by its spec: no file outside of core/methods compares its name or class."""
    spellings = (
        r"method\.kind\s*(==|!=|in\b|not in\b)",  # job.method.kind == "lora"
        r"isinstance\([^)]*Method\)",
        r"\.changes\s*(==|!=|in\b|not in\b)",  # spec.changes != "model"
        r"\bwhole_model\b(?=\s*(and|or|:|$))",  # if job.method.whole_model
        r"spec_of\([^)]*\)\.name\s*(==|!=)",
        r"(?<!extensions\.)\bOF_METHODS\b(?=\[)",
    )
    compared = re.compile("|".join(spellings))
    declared = {ROOT / "core/settings/method.py", ROOT / "core/settings/methods.py"}
    files = [path for path in FILES if "methods" not in path.parts and path not in declared]
    assert not [path for path in files if compared.search(path.read_text("utf-8"))]
    made_up = (
        "if job.method.kind == 'lora'",
        "spec.changes != 'model'",
        "if job.method.whole_model:",
        "OF_METHODS[kind]",
    )
    assert all(compared.search(text) for text in made_up)


@pytest.mark.slow
def test_training_needs_no_escape_from_types():
    """No `type: ignore` in what trains, and a loaded model is never `Any`."""
    trains = ("training", "methods", "networks", "families", "diffusion", "optimization", "generation")
    escapes = ("type: ignore", "components: Any")
    found = {
        str(path.relative_to(ROOT))
        for path in FILES
        if path.relative_to(ROOT).parts[0] == "core" and path.relative_to(ROOT).parts[1] in trains
        for word in escapes
        if word in path.read_text("utf-8")
    }
    assert not found


WITHOUT_TORCH = """
import importlib, pkgutil, sys
import core.settings.presets.files, core.engine.engine
assert not {"torch", "gradio"} & set(sys.modules), "settings and engine"
import core.families, core.networks.kinds, core.generation.model.library, core.generation.prompt.styles
for name in ("tensors.header tensors.pickles detect models.checkpoint tensors.reading hashes hub.references lora.names models.sd_keys"
             " models.whole_model model_spec").split():
    importlib.import_module(f"core.formats.{name}")
from core.formats.detect import identify
identify("models/starter"), identify("models/starter/vae/diffusion_pytorch_model.safetensors")
assert "torch" not in sys.modules, "lists of models and prompts"
for kind in pkgutil.iter_modules(core.networks.kinds.__path__):
    if kind.name != "initialization":  # imported when it computes
        importlib.import_module(f"core.networks.kinds.{kind.name}")
assert "torch" not in sys.modules, "kinds of networks"
from core.record.lazy_torch import nn, torch
import torch as real
assert torch.add is real.add and nn.Linear is real.nn.Linear and torch.float8_e4m3fn is real.float8_e4m3fn
"""


def test_settings_models_prompts_and_kinds_are_looked_at_without_torch():
    """It takes a second or two to import, and the page and the command line do all this before anything computes."""
    ran = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
