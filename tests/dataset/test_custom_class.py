"""A dataset class runs only where the machine's owner allowed its module; what it lists is checked like a folder's."""

import sys

import pytest

import core.record.allowed as allowed
from core.cli.options import commands, split_options
from core.dataset.sources.scan import scan_dataset
from core.settings.dataset.concepts import concepts_of
from core.settings.dataset.dataset import DatasetSettings
from core.settings.job import TrainJob

SOURCE = """
class Images:
    def __init__(self, settings):
        self.settings = settings

    def images(self):
        folder = self.settings["folder"]
        yield {"path": folder + "/a.png", "caption": "a fox", "repeats": 3}
        yield {"path": folder + "/sub/a.png", "words": "fox"}
        yield {"path": folder + "/reg.png", "is_reg": True}


class Iterated(list):
    def __init__(self, settings):
        super().__init__(ROWS)


class Fails:
    def __init__(self, settings):
        raise ValueError("no internet")


class Stops:
    def __init__(self, settings):
        raise SystemExit(3)


class Nothing:
    def __init__(self, settings):
        pass
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Its name; the module itself is imported anew in each test."""
    folder = tmp_path / "code/atelier_test_images"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "own.py").write_text("ROWS = []\nran = True\n" + SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    monkeypatch.setattr(allowed, "_by_flag", set())
    monkeypatch.setattr(allowed, "FILE", tmp_path / "allowed_modules.txt")
    yield "atelier_test_images"
    for name in [name for name in sys.modules if name.startswith("atelier_test_images")]:
        del sys.modules[name]


def look(tmp_path, name, **options):
    return scan_dataset(DatasetSettings(folder=str(tmp_path / "set"), dataset_class=name, **options))


def rows(module, value):
    import importlib

    importlib.import_module(f"{module}.own").ROWS = value


def test_a_preset_alone_can_import_nothing_and_is_told_how_to_allow_it(tmp_path, module):
    found = look(tmp_path, f"{module}.own.Images")
    (problem,) = found.problems
    assert problem.code == "module.not-allowed" and problem.level == "error" and not found.images
    assert f"--allow-module {module}" in problem.fix and "allowed_modules.txt" in problem.fix
    assert f"{module}.own" not in sys.modules and module not in sys.modules


def test_a_module_that_the_command_line_allows_lists_the_images(tmp_path, module, add):
    for name in ("a.png", "sub/a.png", "reg.png"):
        add(f"set/{name}")
    assert not split_options(["--allow-module", module], commands()["train"]).problems
    found = look(tmp_path, f"{module}.own.Images")
    assert not found.problems
    assert [(p.key, p.metadata_caption, p.repeats, p.class_tokens, p.concept) for p in found.images] == [
        (("Images", "a.png"), "a fox", 3, "", 0),
        (("Images", "sub/a.png"), None, 1, "fox", 0),
        (("Images #2", "reg.png"), None, 1, "", 1),
    ]
    job = TrainJob(dataset=DatasetSettings(dataset_class=f"{module}.own.Images"))
    assert [(each.number, each.role) for each in concepts_of(job)] == [(0, "train"), (1, "regularization")]


def test_a_line_of_the_local_file_allows_it_too(tmp_path, module, add):
    add("set/a.png")
    (tmp_path / "allowed_modules.txt").write_text(f"# mine\n{module}  # my own\n")
    found = look(tmp_path, f"{module}.own.Iterated")
    assert "lists no image" in found.problems[0].what
    rows(module, [{"path": str(tmp_path / "set/a.png")}, {"path": str(tmp_path / "set/a.png")}])
    assert [p.relative for p in look(tmp_path, f"{module}.own.Iterated").images] == ["a.png", "set/a.png"]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("own.Fails", "failed: ValueError: no internet"),
        ("own.Stops", "failed: SystemExit: 3"),
        ("own.Missing", "has no attribute 'Missing'"),
        ("other.Images", "there is no module"),
        ("own.Nothing", "failed: TypeError"),
    ],
)
def test_errors_of_the_class_are_named_and_end_nothing_else(tmp_path, module, name, what):
    allowed.allow(module)
    (problem,) = look(tmp_path, f"{module}.{name}").problems
    assert what in problem.what and problem.level == "error"
    if name in ("own.Fails", "own.Stops"):
        assert "own.py, line" in problem.where


def test_a_name_that_is_no_class_is_said(tmp_path, module):
    for name in ("Class", "a.b-c", "a..b"):
        assert look(tmp_path, name).problems[0].code == "dataset-class.name"


BAD = [
    ("a text", "is str, not a dict"),
    ({}, "has no path"),
    ({"path": "", "caption": "x"}, "has no path"),
    ({"path": "a.png", "caption": 5}, "has a caption that is not a string"),
    ({"path": "a.png", "repeats": 0}, "has repeats of 0"),
    ({"path": "a.png", "repeats": True}, "has repeats of True"),
    ({"path": "a.png", "is_reg": "yes"}, "has an is_reg"),
    ({"path": "a.png", "weight": 1}, "has the unknown key 'weight'"),
]


@pytest.mark.parametrize(("row", "what"), BAD)
def test_what_it_lists_is_checked(tmp_path, module, row, what):
    allowed.allow(module)
    rows(module, [row])
    (problem,) = look(tmp_path, f"{module}.own.Iterated").problems
    assert f"number 1 {what}" in problem.what


def test_images_that_are_broken_or_not_there_are_named_like_those_of_a_folder(tmp_path, module, add):
    good = add("set/a.png")
    (tmp_path / "set/b.png").write_bytes(b"no image")
    allowed.allow(module)
    rows(module, [{"path": good}, {"path": str(tmp_path / "set/b.png")}, {"path": str(tmp_path / "set/c.png")}])
    found = look(tmp_path, f"{module}.own.Iterated", skip_broken=True)
    assert [p.relative for p in found.images] == ["a.png"]
    assert [each.relative for each in found.broken] == ["b.png", "c.png"]
    assert {problem.level for problem in found.problems} == {"advice"}


def test_a_word_that_is_no_module_is_refused_on_the_command_line():
    (problem,) = split_options(["--allow-module", "a.b"], commands()["train"]).problems
    assert (problem.code, problem.where) == ("module.bad-name", "command line")
    assert "a.b" in problem.what and "package.module.Class" in problem.fix
