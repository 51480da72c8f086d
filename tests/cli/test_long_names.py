"""A name that no disk can hold, in each setting that names something: a sentence, as for one that is not there."""

import pytest

from core.cli.main import main
from core.settings.base import declared
from core.settings.job import JOBS

NAMELESS = ("probe", "caption_history", "assess")  # train --probe; name no file in a setting
COMMANDS = [name for name in JOBS if name not in NAMELESS]
TOO_LONG = ["x" * 5000, f"models/{'y' * 300}.safetensors", "/nowhere/" * 600]


@pytest.mark.slow(but=("generate", "merge_loras", "tag", "caption_sidecars", "make_hints"))
@pytest.mark.parametrize("command", COMMANDS)
def test_names_that_no_disk_can_hold_are_told_in_words(command, tmp_path, capsys):
    named = [entry.path for entry in declared(JOBS[command]) if entry.names]
    assert named
    for path in named:
        for name in TOO_LONG:
            main([command, f"--{path}", name, "--check", "--outputs", str(tmp_path)])
            printed = "".join(capsys.readouterr())
            assert "Traceback" not in printed and "OSError" not in printed, (path, len(name), printed[-500:])
