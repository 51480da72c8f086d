"""What a training says in the terminal, and where."""

import pytest

from core.cli.jobs import LOG_FIRST_LINE, TerminalProgress
from core.engine.view import RunView
from core.record.events import Planned, Steps
from core.record.journal import Journal
from core.record.problems import ProblemsError
from core.record.run_folder import RunFolder
from core.settings.logging import LoggingSettings

LINES = [
    {"kind": "planned", "total": 4, "sentence": "four steps"},
    {"kind": "steps", "steps": [1, 2], "losses": [0.5, 0.5], "epoch": 1},
    {"kind": "log", "level": "info", "text": "all well", "fix": ""},
    {"kind": "log", "level": "warning", "text": "take care", "fix": "look"},
    {"kind": "steps", "steps": [3, 4], "losses": [0.5, 0.5], "epoch": 1},
    {"kind": "state", "state": "failed", "message": "it broke", "fix": ""},
]


def told(capsys, **settings):
    progress = TerminalProgress(LoggingSettings(**settings))
    for line in LINES:
        progress(line)
    progress.close()
    return capsys.readouterr().err


def test_a_level_leaves_out_what_is_below_it(capsys):
    assert "all well" in told(capsys) and "take care" in told(capsys)
    warnings = told(capsys, console_log_level="WARNING")
    assert "all well" not in warnings and "take care" in warnings and "it broke" in warnings
    errors = told(capsys, console_log_level="ERROR")
    assert "take care" not in errors and "it broke" in errors
    assert told(capsys, console_log_level="CRITICAL") == ""


def test_plain_lines_draw_no_bar(capsys):
    text = told(capsys, console_log_simple=True)
    assert "\r" not in text and "step 4/4, epoch 1, loss 0.5000" in text.splitlines()
    assert "\r" in told(capsys), "the bar draws over itself"


def test_the_smoothed_loss_of_a_run_that_goes_on_goes_on_too(capsys, tmp_path):
    folder = RunFolder.create(tmp_path, "x", {})
    with Journal(folder.path) as journal:
        journal.put(Steps([1, 2, 3], [1.0, 1.0, 9.0], {}, 1, 0.1))  # step 3 came after the last state: it is repeated
    progress = TerminalProgress(LoggingSettings(console_log_simple=True), RunView.read(folder))
    with Journal(folder.path) as journal:
        journal.listen(progress)
        journal.put(Planned(3, 1, 3, 1, "three steps"))
        journal.put(Steps([3], [0.0], {}, 1, 0.1))
    assert "step 3/3, epoch 1, loss 0.6667" in capsys.readouterr().err.splitlines(), "the mean of 1, 1 and 0"


def test_a_file_takes_the_words_and_the_bar_stays(capsys, tmp_path):
    path = tmp_path / "logs" / "a.txt"
    text = told(capsys, console_log_file=str(path))
    assert "all well" in path.read_text("utf-8") and "all well" not in text and "4/4" in text


def test_a_file_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("file/a.txt", "a\0.txt"):
        with pytest.raises(ProblemsError) as refused:
            TerminalProgress(LoggingSettings(console_log_file=str(tmp_path / name)))
        assert refused.value.codes[0] in ("file.not-a-folder", "file.invalid-name")


@pytest.mark.parametrize("name", ["model.safetensors", ".bashrc", "notes.txt", "run.log", "folder"])
def test_a_file_that_is_no_log_of_this_program_takes_no_lines(tmp_path, name):
    path = tmp_path / name
    path.mkdir() if name == "folder" else path.write_bytes(b"# mine\n")
    with pytest.raises(ProblemsError) as refused:
        TerminalProgress(LoggingSettings(console_log_file=str(path)))
    assert refused.value.codes == ["log.not-a-log"] and (name == "folder" or path.read_bytes() == b"# mine\n")


@pytest.mark.parametrize("start", [b"", LOG_FIRST_LINE.encode() + b"\r\n"], ids=["empty", "of Windows"])
def test_a_log_is_added_to_and_a_message_stays_one_line(capsys, tmp_path, start):
    path = tmp_path / "a.txt"
    path.write_bytes(start)
    for message in ("first", "second\nrm -rf ~"):
        TerminalProgress(LoggingSettings(console_log_file=str(path)))._say(message)
    lines = path.read_text("utf-8").splitlines()
    assert len(lines) == 3 and lines[0] == LOG_FIRST_LINE and lines[2].endswith("second\u23cerm -rf ~")
