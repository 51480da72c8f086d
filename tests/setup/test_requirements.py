"""requirements.txt and the files every launcher leans on."""

import ast
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from core.setup import launch, probe
from core.setup.choose import ADAPTED, pins_from

ROOT = Path(__file__).parents[2]
PLATFORMS = {
    "Linux x86_64": {"sys_platform": "linux", "platform_machine": "x86_64"},
    "Linux aarch64": {"sys_platform": "linux", "platform_machine": "aarch64"},
    "Windows": {"sys_platform": "win32", "platform_machine": "AMD64"},
    "Mac": {"sys_platform": "darwin", "platform_machine": "arm64"},
}


def requirements(file: str) -> list[Requirement]:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


def names_on(platform: str) -> set[str]:
    """What the file asks for on a platform, by Python 3.11."""
    facts = PLATFORMS[platform] | {"python_version": "3.11"}
    return {r.name for r in requirements("requirements.txt") if r.marker is None or r.marker.evaluate(facts)}


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-test.txt"])
def test_everything_is_pinned_to_one_version(file):
    for requirement in requirements(file):
        (specifier,) = requirement.specifier
        assert specifier.operator == "==" and "*" not in specifier.version, requirement


def test_no_package_is_pinned_twice():
    names = [
        canonicalize_name(r.name) for file in ("requirements.txt", "requirements-test.txt") for r in requirements(file)
    ]
    assert len(names) == len(set(names))


def test_the_promised_packages_are_there():
    promised = {
        *("torch", "diffusers", "transformers", "accelerate", "safetensors", "xformers", "gradio", "toml", "pillow"),
        *(
            "onnxruntime-gpu",
            "onnxruntime",
            "pydantic",
            "filelock",
            "psutil",
            "bitsandbytes",
        ),
        *("tensorboard", "huggingface_hub", "numpy"),
    }
    assert promised <= {r.name for r in requirements("requirements.txt")}
    assert {"pytest", "hypothesis", "playwright", "peft", "ruff", "mypy"} <= {
        r.name for r in requirements("requirements-test.txt")
    }


def imported_packages(source: str) -> set[str]:
    """Top-level packages that a file imports, anywhere in it."""
    nodes = list(ast.walk(ast.parse(source)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return {name.partition(".")[0] for name in names}


def test_the_product_imports_no_package_that_only_tests_have():
    pinned = {canonicalize_name(r.name) for r in requirements("requirements-test.txt")}
    installed = packages_distributions()
    only_tests = {name for name, of in installed.items() if {canonicalize_name(each) for each in of} <= pinned}
    assert {"peft", "lycoris", "onnx", "xdist"} <= only_tests
    files = [ROOT / "webui.py", *(path for room in ("core", "tabs") for path in (ROOT / room).rglob("*.py"))]
    found = {str(path): only_tests & imported_packages(path.read_text("utf-8")) for path in files}
    assert not {path: names for path, names in found.items() if names}
    assert imported_packages("def f():\n    from peft.tuners import lora\n    import onnx") == {"peft", "onnx"}


@pytest.mark.parametrize("platform", PLATFORMS)
def test_markers_leave_out_what_has_no_wheel_and_take_one_onnxruntime(platform):
    names = names_on(platform)
    assert ("xformers" in names) == (platform in ("Linux x86_64", "Windows"))
    assert ("onnxruntime-gpu" in names) == (platform in ("Linux x86_64", "Windows"))
    assert len(names & {"onnxruntime", "onnxruntime-gpu"}) == 1
    assert {"torch", "bitsandbytes", "gradio"} <= names


def test_the_versions_that_depend_on_the_machine_are_found_in_it():
    pins = pins_from((ROOT / "requirements.txt").read_text(encoding="utf-8"))
    listed = {r.name: str(r.specifier) for r in requirements("requirements.txt")}
    assert [listed[name] for name in ADAPTED] == [
        f"=={v}" for v in (pins.torch, pins.xformers, pins.onnxruntime, pins.onnxruntime_gpu)
    ]


def test_the_installed_packages_are_the_pinned_ones():
    from importlib.metadata import version

    for requirement in requirements("requirements.txt"):
        if requirement.name in ADAPTED or (requirement.marker and not requirement.marker.evaluate()):
            continue
        assert requirement.specifier.contains(version(requirement.name)), requirement


@pytest.mark.parametrize("file", ["launch.py", "probe.py"])
def test_an_old_python_can_read_what_it_is_asked_to_run(file):
    source = (ROOT / "core" / "setup" / file).read_text()
    tree = ast.parse(source, feature_version=(3, 4))
    for node in ast.walk(tree):
        assert not isinstance(node, ast.JoinedStr | ast.AnnAssign | ast.AsyncFunctionDef | ast.NamedExpr), ast.unparse(
            node
        )
        if isinstance(node, ast.FunctionDef):
            assert node.returns is None and not any(a.annotation for a in node.args.args), "Python 2 has no annotations"
    assert source.isascii(), "Python 2 reads a file as ASCII"


def old_pythons():
    """Pythons of this machine that are older than supported, where pyenv keeps some."""
    return sorted(Path.home().glob(".pyenv/versions/[23].*/bin/python"))


@pytest.mark.skipif(not old_pythons(), reason="no other Python on this machine")
def test_every_python_here_answers_the_probe_and_an_old_one_gets_a_sentence():
    for python in old_pythons():
        answer = subprocess.run(
            [python, ROOT / "core/setup/probe.py"], capture_output=True, text=True, check=True
        ).stdout
        version, fitness, path = answer.strip().split("|")
        major, minor = map(int, version.split("."))
        assert (fitness == "old") == ((major, minor) < (3, 11)) and path
        if fitness == "old":
            run = subprocess.run([python, ROOT / "core/setup/launch.py"], capture_output=True, text=True, check=False)
            assert run.returncode == 1 and run.stderr.count("\n") == 1
            assert run.stderr.startswith("Atelier needs Python 3.11, 3.12 or 3.13, but this is " + version)


def test_probe_and_launch_agree_on_the_supported_versions():
    assert (probe.OLDEST, probe.NEWEST) == (launch.OLDEST, launch.NEWEST) == ((3, 11), (3, 13))
    for file in ("launch.sh", "launch.bat"):
        assert set(re.findall(r"\b3\.\d\d\b", (ROOT / file).read_text())) == {"3.11", "3.12", "3.13"}


def test_the_launcher_uses_the_standard_library_only():
    for file in (ROOT / "core" / "setup").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                top = name.split(".")[0]
                assert top in sys.stdlib_module_names or name == "core.setup" or name.startswith("core.setup."), (
                    f"{file.name}: {name}"
                )
