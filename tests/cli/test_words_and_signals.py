"""What is typed wrong is said before anything begins; a closed terminal loses nothing."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest

from core.cli import bench
from core.cli.jobs import StopOnSignal, TerminalProgress, find_run
from core.cli.main import main, print_problems
from core.cli.options import PAGE, commands, split_options
from core.cli.page import run as open_page
from core.record import machine
from core.record.cancel import CancelToken
from core.record.problems import Problem, ProblemsError
from core.record.run_folder import RunFolder
from core.record.workspace import PROJECT, Workspace

STARTER = PROJECT / "models" / "starter"


def test_an_option_whose_value_is_missing_does_not_swallow_the_next_option():
    options = split_options(["--outputs", "--device", "cpu"], commands()["train"])
    assert [problem.what for problem in options.problems] == ["--outputs has no value"]
    assert options.values == {"device": "cpu"} and options.preset is None


def test_a_switch_with_a_value_is_said():
    options = split_options(["--check=false"], commands()["train"])
    assert [problem.what for problem in options.problems] == ["--check takes no value"]


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cpu:1", "", "cuda:9999", "cuda:999"])
def test_a_device_that_is_none_is_bad_input(name):
    with pytest.raises(ProblemsError, match=f"'{name}'") as error:
        machine.check_device(name)
    assert error.value.codes == ["device.missing" if name == "cuda:999" else "device.unknown"]


@pytest.mark.parametrize(
    "words",
    [
        ["bench", "--only", "page"],
        ["train", "presets/starter_lora.json", "--check"],
        ["train", "presets/starter_lora.json", "--prove", "2"],
    ],
    ids=" ".join,
)
def test_a_device_that_is_not_there_is_bad_input_in_whatever_asks_for_one(tmp_path, words, capsys):
    assert main([*words, "--device", "cuda:999", "--outputs", str(tmp_path)]) == 2
    assert "'cuda:999'" in capsys.readouterr().err


def test_a_run_is_found_by_its_name_and_by_its_path_before_one_of_the_same_name(tmp_path):
    here, elsewhere = Workspace.of(outputs=tmp_path / "a"), Workspace.of(outputs=tmp_path / "b")
    run = RunFolder.create(here.runs, "mira", {}, now=0.0)
    other = RunFolder.create(elsewhere.runs, "mira", {}, now=0.0)
    assert run.name == other.name
    assert find_run(run.name, here).path == run.path
    assert find_run(str(other.path), here).path == other.path
    other.job_file.unlink()
    assert find_run(str(other.path), here).path == run.path, "a path from before the folder was moved"


def test_numbers_that_cannot_be_written_are_shown_all_the_same(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "run_bench", lambda *about, **more: {})
    monkeypatch.setattr(bench, "table", lambda result: "what was measured")
    (tmp_path / "file").write_text("")
    assert main(["bench", "--json", str(tmp_path / "file" / "numbers.json"), "--device", "cpu"]) == 2
    said = capsys.readouterr()
    assert "what was measured" in said.out and "The numbers cannot be written" in said.err


def test_the_cpu_is_always_there():
    machine.check_device("cpu")


@pytest.mark.parametrize(("text", "count"), [("3", 3), ("2,4", 2), ("many", machine.cores()), ("0", machine.cores())])
def test_the_number_of_threads_is_read_from_whatever_stands_there(monkeypatch, text, count):
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert machine.threads() == count


def test_a_truncated_image_is_bad_input_and_begins_no_run(tmp_path, capsys):
    images = tmp_path / "fox"
    images.mkdir()
    shutil.copy(STARTER / "images" / "fox.png", images / "whole.png")
    data = (STARTER / "images" / "fox.png").read_bytes()
    (images / "half.png").write_bytes(data[: len(data) // 2])
    words = ["--model.base_model", str(STARTER), "--dataset.folder", str(images), "--outputs", str(tmp_path / "out")]
    assert main(["train", *words]) == 2
    assert "half.png" in capsys.readouterr().err
    assert not (tmp_path / "out" / "runs").exists()


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_a_closed_terminal_saves_and_stops_like_ctrl_c(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may themselves run under nohup, which ignores it
    try:
        token = CancelToken()
        with StopOnSignal(token) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.requested and token.wanted
            monkeypatch.setattr("core.cli.jobs.time.monotonic", lambda: time.perf_counter() + 10**6)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("launched", [True, False])
def test_a_ctrl_c_that_the_launcher_passes_on_is_no_second_one(monkeypatch, launched):
    monkeypatch.setenv("WORLD_SIZE", "2" if launched else "1")
    now = [100.0]
    monkeypatch.setattr("core.cli.jobs.time.monotonic", lambda: now[0])
    token = CancelToken()
    with StopOnSignal(token, quiet=True) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert token.wanted
        now[0] += 0.5
        os.kill(os.getpid(), signal.SIGINT)  # a notebook's cell repeats it at once
        now[0] += 1.5
        if launched:
            os.kill(os.getpid(), signal.SIGINT)
            now[0] += 10
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested


def test_progress_to_a_terminal_that_is_gone_ends_no_job(monkeypatch):
    class Gone:
        def write(self, text):
            raise BrokenPipeError(32, "Broken pipe")

        def flush(self):
            raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(sys, "stderr", Gone())
    progress = TerminalProgress()
    for _ in range(2):
        progress({"kind": "log", "level": "info", "text": "hello", "fix": ""})
    progress.close()


@pytest.mark.parametrize(
    "words",
    [
        ["generate", "--lora", "no such file"],
        ["generate", "--lora", "no such file", "--check"],
        ["tool", "--tool.name", "inspect", "--tool.file", "no such file"],
        ["train", "--model.base_model", "x" * 5000],
        ["train", "--dataset.folder", " "],
        ["train", "--dataset.sources", '[{"folder": ""}]'],
        ["train", "--dataset.folder", "~no-such-user/images"],
        ["train", "--model.base_model", "~no-such-user/model"],
    ],
    ids=lambda words: " ".join(words)[:50],
)
def test_files_that_are_not_there_are_bad_input_in_every_subcommand(tmp_path, words, capsys):
    assert main([*words, "--outputs", str(tmp_path / "out")]) == 2
    assert "fix:" in capsys.readouterr().err


@pytest.mark.parametrize(("more", "code"), [(0, 0), (1, 130)])
def test_a_page_that_is_asked_to_end_saves_what_runs_and_asked_again_ends_at_once(tmp_path, monkeypatch, more, code):
    """systemd, docker and a closed Colab send SIGTERM."""
    from core.cli import page
    from core.engine.engine import Engine

    closed = []
    monkeypatch.setattr("core.cli.signals.REPEATED_SECONDS", 0)  # asked again later

    def close(self, wait_seconds):
        closed.append(wait_seconds)
        self._owner.release()
        for _ in range(more):
            os.kill(os.getpid(), signal.SIGTERM)

    def serve(*_, **__):
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Engine, "close", close)
    monkeypatch.setattr(page, "exit_process", lambda code: code)
    monkeypatch.setitem(sys.modules, "tabs.server.app", SimpleNamespace(serve=serve))
    assert main(["--outputs", str(tmp_path / "out")]) == code
    assert closed == [None], "a step may take minutes: it is waited for"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_allow_takes_folders_that_are_there(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(
        "core.engine.engine.Engine", lambda workspace, device: opened.append(workspace) or SimpleNamespace()
    )
    monkeypatch.setitem(sys.modules, "tabs.server.app", SimpleNamespace(serve=None))
    with pytest.raises(ProblemsError) as caught:
        open_page(["--allow", str(tmp_path / "gone")])
    assert caught.value.codes == ["cli.no-allowed-folder"]
    with pytest.raises(AttributeError):  # of the engine that is none
        open_page(["--allow", str(tmp_path), "--outputs", str(tmp_path / "out")])
    assert opened[0].allowed == (tmp_path,)


@pytest.mark.parametrize("option", PAGE)
def test_the_pages_options_are_no_mistyped_commands(option, tmp_path):
    """--port is like export and import."""
    value = ["0"] if option == "port" else [str(tmp_path)] if PAGE[option][0] else []
    with pytest.raises(ProblemsError) as caught:
        open_page([f"--{option}", *value, "--port", "0"])
    assert "cli.bad-port" in caught.value.codes


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows ends a process without asking it")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
@pytest.mark.parametrize(
    "words", [["train", "presets/starter_lora.json", "--device", "cpu"], ["--no-browser", "--port", "17990"]]
)
def test_a_signal_while_the_program_still_starts_ends_it_with_130_and_without_a_traceback(tmp_path, name, words):
    """Not at chosen times, which a busy machine moves: as soon as the program's own first module is being read."""
    command = [sys.executable, "-v", "webui.py", *words, "--outputs", str(tmp_path)]
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_DFL)  # the tests may themselves run where it is ignored, as under nohup
    try:
        started = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(number, before)
    for line in started.stderr:
        if "import 'core.settings.flags'" in line or "import 'core.record.problems'" in line:
            break
    started.send_signal(number)
    said = started.stderr.read()
    assert started.wait(60) == 130
    assert "Traceback" not in said and "Exception ignored" not in said


def test_an_interrupt_that_arrives_twice_is_one(monkeypatch):
    """Colab's cell sends SIGINT after its process group got it: the second one ended the page while it saved."""
    from core.cli.signals import interrupt_on_signals

    now = [100.0]
    monkeypatch.setattr("core.cli.signals.time", SimpleNamespace(monotonic=lambda: now[0]))
    with interrupt_on_signals():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)  # a process in the background ignores SIGINT
        now[0] += 0.3
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        now[0] += 1.0
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_forked_child_is_ended_by_its_parent_as_ever():
    from core.cli.signals import interrupt_on_signals

    if not hasattr(os, "fork"):
        pytest.skip("no fork on this system")
    ready, begun = os.pipe()
    with interrupt_on_signals():
        child = os.fork()
        if child == 0:
            os.write(begun, b"x")
            time.sleep(60)
            os._exit(0)
        os.read(ready, 1)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGTERM


ENDS = """
import atexit, threading, torch
from core.cli.page import exit_process
atexit.register(print, "functions of the exit")
begun = threading.Event()
def compute():
    while True:
        torch.ones(64, 64, requires_grad=True).sum().backward()
        begun.set()
threading.Thread(target=compute, daemon=True).start()
begun.wait()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("code", "said"), [(0, "functions of the exit\n"), (130, "")])
def test_a_page_ends_with_its_code_also_while_a_thread_computes(code, said):
    words = [sys.executable, "-c", f"{ENDS}exit_process({code})"]
    done = subprocess.run(words, cwd=PROJECT, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (code, said, "")


def test_advice_is_not_counted_as_a_problem(capsys):
    advice = [Problem("this has no effect", level="advice"), Problem("nor has that", level="advice")]
    print_problems(ProblemsError([*advice, Problem("the rate is negative")]))
    assert capsys.readouterr().err.splitlines()[0] == "1 problem:"


def test_words_of_a_file_cannot_steer_the_terminal(capfd):
    progress = TerminalProgress()
    progress({"kind": "log", "level": "info", "text": "title: \x1b[31mred\x9b2J\u202eslaf\nnext\tline é 猫", "fix": ""})
    progress.close()
    said = capfd.readouterr().err
    assert not {"\x1b", "\x9b", "\u202e"} & set(said) and "next\tline é 猫" in said
