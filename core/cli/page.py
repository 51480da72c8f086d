"""webui.py: the page."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from core.cli.main import DONE, INTERRUPTED
from core.cli.options import PAGE, split_options
from core.record import machine
from core.record.problems import Problem, ProblemsError


def run(words: list[str]) -> int:
    options = split_options(words, PAGE, preset_allowed=False)
    problems = list(options.problems)
    problems += [Problem(f"'{word}' is not understood", "command line", "see --help") for word in options.settings]
    port = options.values.get("port", "7860")
    if not (str(port).isdigit() and 1 <= int(port) <= 65535):
        problems.append(Problem(f"--port is {port}", "command line", "use a number from 1 to 65535"))
    auth = options.values.get("auth")
    if auth is not None and (":" not in auth or not all(auth.split(":", 1))):
        problems.append(Problem("--auth is not USER:PASSWORD", "command line", "write both, with a colon between"))
    if "device" in options.values:
        try:
            machine.check_device(options.values["device"], look=False)
        except ProblemsError as error:
            problems += error.problems
    if problems:
        raise ProblemsError(problems)

    from core.engine.engine import Engine
    from tabs.app import serve

    workspace = options.workspace()
    code = DONE
    with polite_ends():
        engine = Engine(workspace, options.values.get("device"))
        try:
            engine.start()
            serve(
                engine,
                workspace,
                host="0.0.0.0" if options.values.get("listen") else "127.0.0.1",
                port=int(port),
                share=bool(options.values.get("share")),
                auth=tuple(auth.split(":", 1)) if auth else None,
                browser=not options.values.get("no-browser"),
            )
        except KeyboardInterrupt:
            pass
        finally:
            if any(entry.state == "running" for entry in engine.queue()):
                with suppress(OSError):  # the terminal may be gone
                    print("Saving and stopping. Press Ctrl-C again to stop now.", flush=True)
            try:
                engine.close(wait_seconds=None)
            except KeyboardInterrupt:
                code = INTERRUPTED
    return leave(code)


def leave(code: int) -> int:
    """End this process, not Python first: threads may still compute, those of a browser's requests or, when it is to stop
    now, a training. C++ takes the process down when Python is gone from under it."""
    if code == DONE:
        atexit._run_exitfuncs()  # others are to stop now: a tracker's would wait for its uploads
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # the terminal may be gone
            stream.flush()
    os._exit(code)


@contextmanager
def polite_ends() -> Iterator[None]:
    """Inside, the end of a service, a closed terminal and Ctrl-Break act like Ctrl-C: what runs is saved first."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {}
    for name in ("SIGTERM", "SIGHUP", "SIGBREAK"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # nohup: ignored stays ignored
            before[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
