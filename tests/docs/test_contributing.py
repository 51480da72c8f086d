"""The contributor's page names files that exist and commands that the launcher has."""

import re

from core.record.workspace import PROJECT
from core.setup.start import COMMANDS

TEXT = (PROJECT / "CONTRIBUTING.md").read_text("utf-8")


def test_every_path_of_the_page_exists():
    paths = re.findall(r"`((?:core|tabs|tests|docs|presets|\.ci)/[\w./]*)`", TEXT) + re.findall(
        r"\]\(([^)#:\s]+)\)", TEXT
    )
    assert len(paths) > 25
    assert [path for path in paths if not (PROJECT / path).exists()] == []


def test_every_command_of_the_page_is_one_of_the_launcher():
    assert set(re.findall(r"\./launch\.sh (\w+)", TEXT)) == {"check", "test", "docs"} <= set(COMMANDS)


def test_each_kind_of_thing_says_where_to_begin():
    rows = re.findall(r"^\| an? ([\w ]+?) \| .+ \| .+ \|$", TEXT, re.MULTILINE)
    wanted = {"setting", "network kind", "training method", "model family", "objective or loss", "captioner"}
    assert wanted | {"sampler", "recipe", "rule over several settings", "doc", "tool or other task"} <= set(rows)
