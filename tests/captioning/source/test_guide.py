"""docs/captions_from_elsewhere.md says what is so."""

import re
import shlex
from pathlib import Path

import pytest

from core import tasks
from core.captioning.source.metadata import FIELDS, check
from core.captioning.source.names import check as check_names
from core.record.workspace import Workspace
from core.settings.check import build
from core.settings.flags import read_flags

GUIDE = (Path(__file__).parents[3] / "docs" / "captions_from_elsewhere.md").read_text("utf-8")
COMMANDS = re.findall(r"^python webui\.py (.+)$", GUIDE, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_its_commands_are_valid(command, tmp_path):
    name, *words = shlex.split(command)
    values, problems = read_flags(tasks.named(name).job, words)
    job = build(tasks.named(name).job, values)
    assert not problems
    if name == "caption_names":
        check_names(job.caption_names, Workspace(tmp_path))


def test_its_example_of_names_gives_what_it_says(place):
    path, number = re.search(r"For `(.+/(.+)\.png)`", GUIDE)[1], 0
    place.image(path)
    for field, caption in re.findall(r"^\| `(\{\w+\})` \| (.+?) \|", GUIDE, re.MULTILINE):
        assert place.run("caption_names", {"existing": "replace"}, pattern=field) == {Path(path).stem: caption}
        number += 1
    assert number == 4


def test_it_names_every_field(tmp_path):
    named = re.findall(r"`((?:\w+\.)?\w+)`", GUIDE.partition("## From image metadata")[2])
    assert set(FIELDS) <= set(named)
    fields = [*FIELDS, "png.NAME"]
    job = build(tasks.named("caption_metadata").job, {"caption_metadata": {"text_fields": fields}})
    check(job.caption_metadata, Workspace(tmp_path))
