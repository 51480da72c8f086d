"""webui.py without a command: serve the page."""

import atexit
import os
import re
import sys
from contextlib import suppress
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from typing import Any

from core.cli.main import DONE, INTERRUPTED
from core.cli.options import PAGE, commands, split_options
from core.cli.signals import interrupt_on_signals
from core.record import machine
from core.record.heap import without_gc
from core.record.problems import Problem, ProblemsError, collected, raise_any
from core.record.workspace import open_home
from core.settings.names import bad_name

AUTH_VARIABLE = "ATELIER_AUTH"
HOST_NAME = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)(:\d{1,5})?")


def _closest_command(word: str) -> str:
    """Return the command that a mistyped or shortened word most resembles; "" for none."""
    begun = [name for name in commands() if len(word) > 2 and name.startswith(word)]
    return next(iter(begun or get_close_matches(word, commands(), 1)), "")


def run(argv: list[str]) -> int:
    """Serve the page with these arguments until it is ended; exits the process. Raises ProblemsError."""
    options = split_options(argv, PAGE, job=False)
    command = next((word for word in argv if word in commands()), "")
    if command and (options.problems or options.settings):
        what, fix = f"The command comes first: {command}", f"write webui.py {command}, then its options"
        raise ProblemsError.one(what, "command line", fix, "cli.command-not-first")
    if argv and not argv[0].startswith("-") and (near := _closest_command(argv[0].lower())):
        what, fix = f"There is no command '{argv[0]}'", f"did you mean {near}?"
        raise ProblemsError.one(what, "command line", fix, "cli.unknown-command")
    problems = list(options.problems)
    port = options.values.get("port", "7860")
    if not (str(port).isdigit() and 1 <= int(port) <= 65535):
        problems.append(
            Problem(f"--port is {port}", "command line", "use a number from 1 to 65535", code="cli.bad-port")
        )
    logins = _logins(options.values, problems)
    for name in options.values.get("host", ()):
        if not HOST_NAME.fullmatch(name):
            fix = "write name or name:port, without http:// and without a path"
            problems.append(Problem(f"--host {name} is not a host name", "command line", fix, code="cli.bad-host"))
    allowed = tuple(open_home(folder).absolute() for folder in options.values.get("allow", ()))
    for folder in allowed:
        if not folder.is_dir():
            what, fix = f"--allow {folder}: there is no such folder", "write the path of a folder"
            problems.append(Problem(what, "command line", fix, code="cli.no-allowed-folder"))
    if "device" in options.values:
        collected(problems, partial(machine.check_device, exists=False), options.values["device"])
    raise_any(problems)

    from tabs.server.direct import without_proxies

    with without_gc(), without_proxies():
        from core.engine.engine import Engine
        from tabs.server.app import serve

    workspace = replace(options.workspace(), allowed=allowed)
    code = DONE
    with interrupt_on_signals():
        engine = Engine(workspace, options.values.get("device"))
        try:
            engine.start(resume=bool(options.values.get("resume")))
            serve(
                engine,
                workspace,
                host="0.0.0.0" if options.values.get("listen") else "127.0.0.1",
                port=int(port),
                share=bool(options.values.get("share")),
                logins=logins,
                browser=not options.values.get("no-browser"),
                names=options.values.get("host", ()),
                keys=bool(options.values.get("lend-keys")),
            )
        except KeyboardInterrupt:  # before the page was open; `serve` handles later ones
            code = INTERRUPTED
        finally:
            if any(entry.state == "running" for entry in engine.queue()):
                with suppress(OSError):  # the terminal may be gone
                    print("Saving and stopping. Press Ctrl-C again to stop now.", flush=True)
            try:
                engine.close(wait_seconds=None)
            except KeyboardInterrupt:
                code = INTERRUPTED
    return exit_process(code)


def _logins(values: dict[str, Any], problems: list[Problem]) -> list[tuple[str, str]]:
    """Return (user, password) of each line of the file values["auth-file"], else of values["auth"], else of the environment variable. Adds
    invalid logins and an unreadable file to `problems`. Unlike --auth, a file and the environment do not show in the list of processes."""
    text, source = os.environ.get(AUTH_VARIABLE, ""), AUTH_VARIABLE
    if file := values.get("auth-file"):
        source = f"the content of {file}"
        try:
            text = open_home(file).read_text("utf-8-sig") or "\n"
        except (OSError, UnicodeDecodeError) as error:
            what = f"The login cannot be read from {file}: {error}"
            problems.append(Problem(what, "--auth-file", "write USER:PASSWORD into it", code="cli.bad-auth-file"))
            return []
    elif auth := values.get("auth"):
        text, source = auth, "--auth"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = lines or ([""] if text else [])  # an empty login is a problem, none is not
    logins = [(user.strip(), password) for user, _, password in (line.partition(":") for line in lines)]
    users = [user.casefold() for user, _ in logins]
    for number, (user, password) in enumerate(logins):
        where = f"Line {number + 1} of {source}" if number else source
        if not (user and password):
            fix = "write both, with a colon between"
            problems.append(Problem(f"{where} is not USER:PASSWORD", "command line", fix, code="cli.bad-auth"))
        elif number and (reason := "it is taken" if users[number] in users[:number] else bad_name(user)):
            what, fix = f"{where} has an unusable user name: {reason}", "use letters, digits, - and _"
            problems.append(Problem(what, "command line", fix, code="cli.bad-user"))
    return logins


def exit_process(code: int) -> int:
    """End the process with this code; never returns. Output is flushed; atexit functions run only for DONE.

    The rest of Python's shutdown is skipped: threads that still compute (requests, or a training after a second Ctrl-C) would crash
    in C++ once the interpreter is gone.
    """
    if code == DONE:
        atexit._run_exitfuncs()  # after an interrupt they are skipped: a tracker's would wait for its uploads
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # the terminal may be gone
            stream.flush()
    os._exit(code)
