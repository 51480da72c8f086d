"""The test files that a change reaches by imports, nearest first: `./launch.sh test --near`."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import defaultdict
from itertools import count
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("core", "tabs", "workshop", "tests")
FILES, SECONDS = 60, 150  # run at most: importing all test files takes a minute


def changed_files(root: Path, revision: str) -> list[str]:
    """Files that differ from a revision in the working tree, new ones included. ValueError: Git does not know it."""
    commands = (["diff", "--name-only", revision, "--"], ["ls-files", "--others", "--exclude-standard"])
    found = []
    for command in commands:
        done = subprocess.run(["git", *command], cwd=root, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(done.stderr.strip() or "this folder has no Git history")
        found += done.stdout.splitlines()
    return sorted(set(found))


def importers(texts: dict[str, str]) -> dict[str, set[str]]:
    """{file: the files that import it}. texts: {path: source}, paths as in Git. Imports in functions count too, so does a
    module's name in a text (registered there, imported late); a test needs the conftest.py of its folder and of those above."""
    modules = {_module(path): path for path in texts}
    found: defaultdict[str, set[str]] = defaultdict(set)
    for path, text in texts.items():
        for name in _imported(text):
            if name in modules:
                found[modules[name]].add(path)
        if Path(path).name.startswith("test_"):
            for parent in Path(path).parents:
                found[f"{parent.as_posix()}/conftest.py"].add(path)
    return found


def _module(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _imported(text: str) -> set[str]:
    names, parents, words = set(), set(), set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.JoinedStr) and isinstance(first := node.values[0], ast.Constant):
            parents.add(first.value)  # f"core.tools.{module}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            words.add(node.value)  # what is registered by its name and imported late
    dotted = {word for word in words if "." in word}
    return names | dotted | {f"{parent}{word}" for parent in parents if parent.endswith(".") for word in words}


def near(changed: list[str], texts: dict[str, str]) -> dict[str, int]:
    """{test file: imports between it and the nearest changed file}: those named after a changed file first, then the nearest;
    at equal distance those of the changed file's own room. A changed file that is not Python counts as the sources that name it."""
    needed_by = importers(texts)
    others = [Path(path).name for path in changed if path not in texts]
    naming = {source for source, text in texts.items() if any(name in text for name in others)}
    distances = {path: 0 for path in changed if path in texts}
    edge, reached = set(distances), naming
    rooms = {Path(path).parts[1] for path in changed if len(Path(path).parts) > 2}
    for distance in count(1):
        reached = (reached | {each for path in edge for each in needed_by[path]}) - distances.keys()
        if not reached:
            break
        distances |= dict.fromkeys(reached, distance)
        edge, reached = reached, set()
    tests = [path for path in distances if Path(path).name.startswith("test_")]
    named = {f"test_{Path(path).name}" for path in changed}
    tests.sort(key=lambda path: (Path(path).name not in named, distances[path], Path(path).parts[1] not in rooms, path))
    return {path: distances[path] for path in tests}


def sources(root: Path) -> dict[str, str]:
    """{path: text} of the project's Python files."""
    files = [path for folder in FOLDERS for path in (root / folder).rglob("*.py")]
    return {path.relative_to(root).as_posix(): path.read_text("utf-8") for path in sorted(files)}


def main(revision: str = "HEAD") -> int:
    """Prints pytest's arguments for the tests near a change, a line each; nothing where no test is near."""
    try:
        changed = changed_files(ROOT, revision)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    tests = near(changed, sources(ROOT))
    files = list(tests)[:FILES]
    far = f"; left out: {len(tests) - FILES} farther ones" if len(tests) > FILES else ""
    print(f"{len(changed)} files changed since {revision}: {len(files)} test files are near{far}", file=sys.stderr)
    if files:
        print("\n".join([f"--until={SECONDS}", *files]))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
