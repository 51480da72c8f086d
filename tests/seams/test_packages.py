"""Packages of other people: they register from outside what the owner allowed, in every process; nothing else is imported.
The package is that of docs/extending.md."""

import os
import shutil
import subprocess
import sys
import tomllib

import pytest

from core.cli.main import main
from core.record.journal import read_lines
from core.record.workspace import PROJECT
from tests.docs.guide import DOCS, blocks_of

BLOCKS = blocks_of(DOCS / "extending.md")
SPY = "from pathlib import Path\nPath(__file__).with_name('imported').write_text('')\n"


@pytest.fixture
def package(tmp_path):
    """The guide's package as pip would install it, with a mark of being imported; and two captions."""
    place = tmp_path / "site"
    for block in BLOCKS:
        if block.kind in ("toml", "python"):
            path = place / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(block.lines) + "\n" + (SPY if block.kind == "python" else ""), "utf-8")
    points = tomllib.loads((place / "pyproject.toml").read_text("utf-8"))["project"]["entry-points"]["atelier"]
    facts = place / "letters-0.1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: letters\nVersion: 0.1\n")
    listed = "".join(f"{name} = {module}\n" for name, module in points.items())
    (facts / "entry_points.txt").write_text(f"[atelier]\n{listed}")
    folder = tmp_path / "images" / "fox"
    folder.mkdir(parents=True)
    for number, text in enumerate(("a fox on a road", "two foxes look")):
        (folder / f"{number}.txt").write_text(text)
    return place


def run(package, *words):
    here = package.parent
    env = os.environ | {"PYTHONPATH": str(package)}
    given = [str(here / word) if word.startswith("images/") else word for word in words]
    command = [sys.executable, "webui.py", *given, "--outputs", str(here / "outputs")]
    return subprocess.run(command, cwd=PROJECT, env=env, capture_output=True, text=True, timeout=120)


def words_of_the_guide():
    (line,) = next(block.lines for block in BLOCKS if block.kind == "sh")
    return line.split()[2:]


def test_the_package_of_the_guide_is_at_most_forty_lines_and_does_what_it_prints(package):
    assert sum(len(block.lines) for block in BLOCKS if block.kind in ("toml", "python")) <= 40
    done = run(package, *words_of_the_guide())
    assert done.returncode == 0, done.stderr
    (wanted,) = next(block.lines for block in BLOCKS if block.kind == "text output")
    assert wanted in done.stdout.splitlines()


@pytest.mark.slow
def test_without_leave_it_is_not_imported(package):
    helped = run(package, "letters", "--help", "--allow-module=letters")
    assert helped.returncode == 0 and "--letters.letter" in helped.stdout
    (package / "letters" / "imported").unlink()
    assert run(package, "--help").returncode == 0
    refused = run(package, "letters", "images/fox")
    assert refused.returncode == 2 and "letters" in refused.stderr
    assert not (package / "letters" / "imported").exists()


@pytest.mark.slow
def test_a_plain_module_needs_no_package(package):
    for facts in package.glob("*.dist-info"):
        shutil.rmtree(facts)
    shutil.copy(package / "letters" / "register.py", package / "mine.py")
    words = [word.replace("letters", "mine") if word == "letters" else word for word in words_of_the_guide()]
    done = run(package, "letters", *words[1:])
    assert done.returncode == 0 and "7 in 2 captions" in done.stdout, done.stderr


@pytest.mark.slow
def test_a_module_that_fails_is_named_and_nothing_starts(package):
    (package / "letters" / "register.py").write_text("import not_here_at_all\n")
    done = run(package, *words_of_the_guide())
    assert done.returncode == 2 and "not_here_at_all" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_processes_that_are_started_know_it(package, tmp_path):
    """The tool in a process of its own, as the page starts it."""
    script = f"""
import sys
from core import extensions
extensions.import_allowed(["--allow-module", "letters"])
from core.engine.child import run_in_child
from core.record.cancel import CancelToken
from core.record.run_folder import RunFolder
from core.record.workspace import Workspace
from core.settings.check import build
from core.settings.job import JOBS
from core.settings.presets.files import dump
from pathlib import Path
space = Workspace(Path({str(tmp_path / "outputs")!r}), Path("models"), Path("presets"))
job = build(JOBS["letters"], {{"letters": {{"folder": {str(tmp_path / "images" / "fox")!r}, "letter": "o"}}}})
folder = RunFolder.create(space.runs, "letters", dump(job, task="letters"))
state, error = run_in_child(folder, space, listener=lambda line: None, token=CancelToken())
sys.exit(0 if state == "done" else f"{{state}} {{error}}")
"""
    env = os.environ | {"PYTHONPATH": str(package)}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=PROJECT, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def network(tmp_path):
    """A module of one's own with a network kind, outside of the tree, and images."""
    place = tmp_path / "site"
    place.mkdir()
    shutil.copy(PROJECT / "tests" / "seams" / "toys" / "gain.py", place / "mynet.py")
    images = PROJECT / "models" / "starter" / "images"
    words = ["train", "--network.kind", "gain", "--gain.start", "0.01", "--model.base_model", "models/starter"]
    words += ["--dataset.folder", str(images), "--dataset.resolution", "64", "--schedule.max_train_steps", "1"]
    return place, [*words, "--saving.output_name", "mine", "--samples.sample_prompts", ""]


@pytest.mark.slow
def test_a_network_of_ones_own_is_known_once_it_is_allowed(network, tmp_path):
    place, words = network
    for given in (words, ["train", "--network_module", "mynet"]):
        assert main([*given, "--check", "--outputs", str(tmp_path / "outputs")]) == 2
    known = run(place, *words, "--check", "--allow-module", "mynet")
    assert known.returncode == 0, known.stderr


@pytest.mark.slow
def test_it_trains_in_the_processes_that_are_launched_and_its_file_is_generated_with(network, tmp_path):
    place, words = network
    done = run(place, *words, "--allow-module", "mynet", "--memory.num_processes", "2")
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "outputs").rglob("mine.safetensors")
    lines = read_lines(file.parents[1] / "events.jsonl")
    states = [line["state"] for line in lines if line["kind"] == "state"]
    assert states == ["running", "done"], "one process wrote the journal"
    generate = ["generate", "--model.base_model", "models/starter", "--prompt", "a fox", "--generate.steps", "1"]
    made = run(place, *generate, "--lora", str(file), "--allow-module", "mynet")
    assert made.returncode == 0, made.stderr
