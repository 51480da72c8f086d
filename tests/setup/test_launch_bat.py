"""launch.bat read as text, because no test machine runs Windows: line endings, quotes, labels, exit codes."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RAW = (ROOT / "launch.bat").read_bytes()
LINES = RAW.decode("ascii").split("\r\n")
COMMANDS = [line for line in LINES if line and not line.lower().startswith(("rem ", ":"))]
LABELS = [line[1:].lower() for line in LINES if line.startswith(":")]
# Whatever may hold a space, a bracket or an ampersand: paths, and what was passed on.
NAMED = "python|answer|list|place|LOCALAPPDATA|ProgramFiles|USERPROFILE|TEMP|ATELIER_PYTHON"
PATHS = rf"%~dp0|%~f0|%~1|%%p(?! in)|%(?:{NAMED})(?::[^%]*)?%"


def quoted_at(line: str, position: int) -> bool:
    """Whether cmd reads this position as inside double quotes: an odd number of them stands before it."""
    return line.count('"', 0, position) % 2 == 1


def part(label: str) -> list[str]:
    """The commands from a label to the next one."""
    start = LINES.index(f":{label}") + 1
    length = next((i for i, line in enumerate(LINES[start:]) if line.startswith(":")), len(LINES) - start)
    return [line for line in LINES[start : start + length] if line and not line.startswith("rem ")]


def test_every_line_ends_in_carriage_return_and_line_feed():
    assert RAW.count(b"\n") == RAW.count(b"\r\n") == RAW.count(b"\r") > 50
    assert RAW.endswith(b"\r\n")


def test_it_is_plain_ascii_without_a_mark_that_cmd_would_run_as_a_command():
    assert RAW.isascii() and RAW.startswith(b"@echo off\r\n")


@pytest.mark.skipif(
    not (ROOT / ".git").exists() or not shutil.which("git"), reason="a zip has no Git attributes to ask"
)
@pytest.mark.parametrize(("file", "ending"), [("launch.bat", "crlf"), ("launch.sh", "lf"), (".ci/run", "lf")])
def test_git_checks_the_launchers_out_with_their_line_endings(file, ending):
    asked = subprocess.run(["git", "-C", ROOT, "check-attr", "eol", file], capture_output=True, text=True, check=True)
    assert asked.stdout.strip().endswith(f"eol: {ending}")


def test_its_own_folder_and_every_other_path_stands_in_quotes():
    seen = 0
    for line in COMMANDS:
        for found in re.finditer(PATHS, line):
            assert quoted_at(line, found.start()) and quoted_at(line, found.end()), f"{found[0]} without quotes: {line}"
            seen += found[0] == "%~dp0"
    assert seen >= 3


def test_quotes_are_paired_on_every_line():
    for line in COMMANDS:
        assert line.count('"') % 2 == 0, line


def test_no_bracketed_block_spans_lines():
    # cmd expands a block as a whole before it runs: a path such as C:\Program Files (x86) would end it early.
    for line in COMMANDS:
        unquoted = re.sub(r'"[^"]*"', "", line)
        assert not unquoted.rstrip().endswith("(") and not unquoted.strip().startswith(")"), line


def test_every_jump_has_its_label_and_every_label_is_used():
    jumps = [found.lower() for line in COMMANDS for found in re.findall(r"(?:goto |call :)(\w+)", line)]
    assert set(jumps) <= set(LABELS) and len(set(LABELS)) == len(LABELS)
    fallen_into = {"look"}
    assert set(LABELS) <= set(jumps) | fallen_into


def test_variables_stay_its_own_and_exclamation_marks_stay_whole():
    assert COMMANDS[1] == "setlocal EnableExtensions DisableDelayedExpansion"


def test_the_exit_code_of_the_program_is_kept_and_returned():
    run = part("run")
    assert run == ['"%python%" %flag% "%~dp0core\\setup\\launch.py" %*', 'set "code=%ERRORLEVEL%"']
    end = part("end")
    assert LINES.index(":end") > LINES.index(":run") and end[-1] == "exit /b %code%"
    for line in end:
        if "exit" in line:
            assert line.endswith("exit /b %code%") or line == 'if "%code%"=="0" exit /b 0', line


def test_a_search_without_success_ends_with_code_1():
    before_look = LINES[: LINES.index(":look")]
    assert 'set "code=1"' in before_look
    assert not [
        line
        for line in COMMANDS
        if line.startswith('set "code=') and line not in ('set "code=1"', 'set "code=%ERRORLEVEL%"')
    ]
    look = part("look")
    assert look[-2].startswith("echo Atelier needs Python") and look[-1] == "goto end"
    for label in ("wrong", "store"):
        sentence, jump = part(label)
        assert sentence.startswith("echo Atelier needs Python") and "python.org" in sentence and jump == "goto end"


def test_parts_that_are_called_end_in_a_return():
    for label in ("ask_py", "ask_file", "judge"):
        assert part(label)[-1] == "exit /b 0"


def test_it_pauses_on_an_error_after_a_double_click_only():
    end = part("end")
    (pause,) = [i for i, line in enumerate(end) if line.endswith("pause")]
    assert end[:pause] == [
        'if "%code%"=="0" exit /b 0',
        "if defined CI exit /b %code%",
        'if not "%~1"=="" exit /b %code%',
    ]
    assert end[pause] == 'if /i %0=="%~f0" pause'
    assert sum("pause" in line for line in COMMANDS) == 1


def test_the_python_of_the_environment_is_taken_then_the_py_launcher_is_asked_3_11_first_of_all():
    look = part("look")
    config = '"%~dp0.venv\\pyvenv.cfg"'
    each = f'for /f "usebackq tokens=1,* delims== " %%a in ({config})'
    assert look[0] == f'if exist {config} {each} do if /i "%%a"=="home" call :ask_file "%%b\\python.exe"'
    assert look[1] == "for %%v in (3.11 3.12 3.13) do call :ask_py %%v"
    assert next(i for i, line in enumerate(look) if "where python" in line) > 0
    assert 'py -%1 "%~dp0core\\setup\\probe.py" >"%answer%" 2>nul' in part("ask_py")


def test_packages_of_another_program_are_out_of_reach():
    first_probe = next(i for i, line in enumerate(COMMANDS) if "probe.py" in line)
    assert {'set "PYTHONHOME="', 'set "PYTHONPATH="'} <= set(COMMANDS[:first_probe])


def test_the_stores_stub_is_recognized_by_its_silence_and_its_place():
    ask = part("ask_file")
    silent, told = ask.index("if defined fit exit /b 0"), [i for i, line in enumerate(ask) if "WindowsApps" in line]
    assert told and silent < told[0], "a Python really installed from the Store answers, and is taken"
    assert part("look")[-3] == "if defined stub goto store"


def test_the_first_python_that_fits_is_kept():
    for label in ("ask_py", "ask_file"):
        assert part(label)[0] == "if defined python exit /b 0"


def test_it_needs_no_rights_no_activation_no_policy_and_no_git():
    text = "\n".join(COMMANDS).lower()
    for word in ("runas", "powershell", "activate", "executionpolicy", "net session", "git", "cd /d", "pushd"):
        assert word not in text
