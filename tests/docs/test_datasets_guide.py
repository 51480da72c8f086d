"""The guides say what happens: their examples are run, and what they print is what the guides show."""

import ast
import re

import pytest

from core import extensions
from core.cli.options import DATASET, PAGE, commands
from core.record import allowed
from core.record.workspace import PROJECT
from core.setup.start import USAGE
from core.tasks import tasks
from tabs.server.limits import LIMITS
from tests.docs.guide import DOCS, Guide, blocks_of, forget_modules
from tests.test_architecture import ORDER, PLACE

INSTALL = (DOCS / "install.md").read_text("utf-8")
# they register something: tests/seams runs them in processes of their own
APART = {"extending.md", "extending_images.md", "extending_imports.md", "extending_networks.md"}
WITH_EXAMPLES = sorted(path.name for path in DOCS.glob("*.md") if blocks_of(path) and path.name not in APART)


@pytest.mark.slow(
    but=(
        "class_images.md",
        "control_images.md",
        "conversion.md",
        "recipes.md",
    )
)
@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_of_a_guide_run_and_print_what_it_shows(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(allowed, "_by_flag", set())
    monkeypatch.setattr(extensions, "EXTENSIONS", extensions.EXTENSIONS)  # an example allows a module of its own
    monkeypatch.syspath_prepend(str(tmp_path))
    guide = Guide(name, tmp_path, capsys)
    try:
        guide.run()
    finally:
        forget_modules("my_images")
    assert guide.ran == len(guide.blocks) > 0
    copied = [
        line for block in guide.blocks if block.file == "trains" for line in block.lines if "--saving.copy_to" in line
    ]
    assert bool(copied) == bool(list((tmp_path / "models" / "mine").glob("*.safetensors")))


def test_the_guides_that_have_examples_are_run():
    assert {"datasets.md", "class_images.md"} <= set(WITH_EXAMPLES)
    methods = {"lora.md", "dreambooth.md", "fine_tune.md", "textual_inversion.md"}
    assert methods <= {name for name in WITH_EXAMPLES if any(b.file == "trains" for b in blocks_of(DOCS / name))}
    assert all(f"({name})" in (DOCS / "methods.md").read_text("utf-8") for name in methods)
    kinds = {block.kind for block in blocks_of(DOCS / "datasets.md")}
    assert kinds == {"text layout", "sh", "text output", "text captions", "toml", "json", "python"}


def test_every_option_of_prepare_train_and_bench_is_in_the_page_of_the_command_line():
    page = (DOCS / "command_line.md").read_text("utf-8")
    for name in {*commands()["prepare"], *commands()["train"], *commands()["bench"], *DATASET} - {
        "outputs",
        "models",
        "presets",
        "device",
    }:
        assert f"--{name}" in page, name
    for name in commands():
        under = tasks().get(name) and tasks()[name].under
        assert f"python webui.py {under} {name}" in page if under else f"python webui.py {name}" in page, name


def test_every_option_of_the_page_is_in_the_launchers_help_and_its_guide():
    row = re.search(r"^\| `./launch.sh \[options\]` .*$", INSTALL, re.M)[0]
    for name in PAGE:
        assert f"--{name}" in row and f"--{name}" in USAGE, name


def test_the_limits_of_requests_are_in_the_guide():
    rows = re.findall(r"^\| [^|]+ \| (\d+) \| (\d+) \| (\d+) \|$", INSTALL, re.M)
    assert [tuple(map(float, row)) for row in rows] == list(LIMITS.values())


def test_the_picture_of_the_rooms_is_the_order_of_imports():
    picture = (DOCS / "architecture.md").read_text("utf-8").split("```")[1]
    rows = [line[:50].split() for line in picture.splitlines()]
    rooms = [[word for word in row if word in PLACE] for row in rows]
    assert [sorted(row) for row in rooms if row][::-1] == [sorted(names) for names in ORDER if names != ["cli"]]
    assert "core/cli" in picture.partition("machine_check")[0]


def test_the_table_of_the_rooms_names_every_folder_once():
    rows = re.findall(r"^\| (`[^|]*`) \|", (DOCS / "architecture.md").read_text("utf-8"), re.M)
    named = [name for row in rows for name in re.findall(r"`([\w/]+)`", row)]
    assert sorted(named) == sorted([*(f"core/{name}" for name in PLACE), "tabs", "workshop"])


def test_every_file_says_in_its_first_line_what_is_in_it():
    for folder in ("core", "tabs", "workshop"):
        for path in sorted((PROJECT / folder).rglob("*.py")):
            first = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n")[0]
            assert len(first) > 10, path


def test_links_between_the_guides_lead_somewhere():
    beside = [PROJECT / folder / "README.md" for folder in ("", "core/training", "core/formats", "tabs")]
    for path in [*beside, *DOCS.glob("*.md")]:
        for link in re.findall(r"\]\(([^)#:\s]+)\)", path.read_text("utf-8")):
            assert (path.parent / link).exists(), f"{path.name}: {link}"
