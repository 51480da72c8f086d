"""A job's events as a progress bar and lines in a terminal."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import suppress
from typing import Any, TextIO

from core.engine.view import RunView
from core.record.journal import Line
from core.record.problems import ProblemsError
from core.record.workspace import resolve_path
from core.settings.logging import LoggingSettings

LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40, "CRITICAL": 50}
OF_LINE = {"info": 20, "warning": 30, "error": 40}
PLAIN_SECONDS = 10.0  # between lines about steps where there is no bar


def _opened(name: str) -> TextIO:
    path = resolve_path(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "a", encoding="utf-8", errors="replace")
    except OSError as error:
        what = f"The log cannot be written: {error.strerror}"
        raise ProblemsError.one(
            what, f"logging.console_log_file, {path}", "choose another file", "log.unwritable"
        ) from None


def visible(text: str) -> str:
    """Without signs that steer a terminal or turn the direction of writing: files of strangers bring their own words."""
    return "".join(sign if sign.isprintable() or sign in "\n\t" else "\ufffd" for sign in text)


class TerminalProgress:
    """Listens to a journal. The bar counts steps; what is said is printed above it.

    settings   how much is said, where, and whether with a bar (the console_log options)
    view       what the run has told before: the smoothed loss goes on from there
    """

    def __init__(self, settings: LoggingSettings | None = None, view: RunView | None = None) -> None:
        settings = settings or LoggingSettings()
        self._level, self._simple = LEVELS[settings.console_log_level], settings.console_log_simple
        self._file: TextIO | None = None
        if settings.console_log_file:
            self._file = _opened(settings.console_log_file)
        if settings.console_log_level == "DEBUG":  # what libraries say too
            logging.basicConfig(level=logging.DEBUG, stream=self._file or sys.stderr)
        self._bar: Any = None
        self._stage = ""
        self._total = 0
        self._view = view
        self._told = 0.0
        self._gone = False

    def __call__(self, line: Line) -> None:
        if self._view is not None:
            self._view.apply(line)
        handler = getattr(self, "_on_" + line["kind"], None)
        if handler is None or self._gone:
            return
        try:
            handler(line)
        except OSError:  # the terminal was closed, or `head` has seen enough: the job goes on without it
            self._gone = True

    def _say(self, text: str, level: str = "info") -> None:
        if OF_LINE.get(level, 20) < self._level:
            return
        text = visible(text)
        if self._file is not None:
            print(time.strftime("%Y-%m-%d %H:%M:%S"), text, file=self._file, flush=True)
        elif self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def _on_stage(self, line: Line) -> None:
        count = f" {line['done']}/{line['total']}" if line["total"] else ""
        text = visible(line["text"] + count)
        if self._bar is not None:
            self._bar.set_description_str(text)
        elif line["done"] in (0, line["total"]):
            self._say(text)

    def _on_planned(self, line: Line) -> None:
        self._say(line["sentence"])
        self._total = line["total"]
        if self._simple or self._level > LEVELS["ERROR"]:
            return
        from tqdm import tqdm

        self._bar = tqdm(total=line["total"], unit="step", file=sys.stderr, dynamic_ncols=True)

    def _on_steps(self, line: Line) -> None:
        step, loss = line["steps"][-1], line["losses"][-1]
        if self._view is not None and self._view.losses:
            loss = self._view.losses[-1][2]  # smoothed
        words = f"epoch {line['epoch']}, loss {loss:.4f}"
        if self._bar is None:
            if self._simple and (step == self._total or time.monotonic() - self._told >= PLAIN_SECONDS):
                self._told = time.monotonic()
                self._say(f"step {step}/{self._total}, {words}")
            return
        if self._bar.n == 0 and step > len(line["steps"]):
            self._bar.initial = self._bar.n = line["steps"][0] - 1
        self._bar.set_postfix_str(words)
        self._bar.update(step - self._bar.n)

    def _on_validated(self, line: Line) -> None:
        by_hand = f", {line['train_loss']:.4f} on training images" if line["train_loss"] is not None else ""
        where = "loss on training images (fixed noise)" if line["measured_on"] == "training" else "validation loss"
        words = f"{where} {line['loss']:.4f}{by_hand}"
        self._say(f"{words} (step {line['step']})")

    def _on_saved(self, line: Line) -> None:
        self._say(f"saved {line['file']} (step {line['step']})")

    def _on_sample(self, line: Line) -> None:
        self._say(f"sample {line['file']}: {line['prompt']}")

    def _on_image(self, line: Line) -> None:
        print(line["file"], flush=True)

    def _on_result(self, line: Line) -> None:
        for text in line["lines"]:
            print(visible(text), flush=True)

    def _on_log(self, line: Line) -> None:
        fix = f"\n  fix: {line['fix']}" if line["fix"] else ""
        mark = "" if line["level"] == "info" else f"{line['level']}: "
        self._say(mark + line["text"] + fix, line["level"])

    def _on_state(self, line: Line) -> None:
        if line["message"]:
            fix = f"\n  fix: {line['fix']}" if line["fix"] else ""
            self._say(line["message"] + fix, "error" if line["state"] == "failed" else "info")

    def close(self) -> None:
        with suppress(OSError):
            if self._bar is not None:
                self._bar.close()
            if self._file is not None:
                self._file.close()
