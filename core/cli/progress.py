"""A job's events as a progress bar and lines in a terminal."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

from core.record.journal import Line


class TerminalProgress:
    """Listens to a journal. The bar counts steps; what is said is printed above it."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._stage = ""
        self._smooth = 0.0
        self._gone = False

    def __call__(self, line: Line) -> None:
        handler = getattr(self, "_on_" + line["kind"], None)
        if handler is None or self._gone:
            return
        try:
            handler(line)
        except OSError:  # the terminal was closed, or `head` has seen enough: the job goes on without it
            self._gone = True

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def _on_stage(self, line: Line) -> None:
        count = f" {line['done']}/{line['total']}" if line["total"] else ""
        text = line["text"] + count
        if self._bar is not None:
            self._bar.set_description_str(text)
        elif line["done"] in (0, line["total"]):
            self._say(text)

    def _on_planned(self, line: Line) -> None:
        from tqdm import tqdm

        self._say(line["sentence"])
        self._bar = tqdm(total=line["total"], unit="step", file=sys.stderr, dynamic_ncols=True)

    def _on_steps(self, line: Line) -> None:
        if self._bar is None:
            return
        for loss in line["losses"]:
            self._smooth = loss if not self._smooth else 0.95 * self._smooth + 0.05 * loss
        step = line["steps"][-1]
        if self._bar.n == 0 and step > len(line["steps"]):
            self._bar.initial = self._bar.n = line["steps"][0] - 1
        self._bar.set_postfix_str(f"epoch {line['epoch']}, loss {self._smooth:.4f}")
        self._bar.update(step - self._bar.n)

    def _on_validated(self, line: Line) -> None:
        self._say(
            f"validation loss {line['loss']:.4f}, {line['train_loss']:.4f} on training pictures (step {line['step']})"
        )

    def _on_saved(self, line: Line) -> None:
        self._say(f"saved {line['file']} (step {line['step']})")

    def _on_sample(self, line: Line) -> None:
        self._say(f"drew {line['file']}: {line['prompt']}")

    def _on_picture(self, line: Line) -> None:
        print(line["file"], flush=True)

    def _on_log(self, line: Line) -> None:
        fix = f"\n  fix: {line['fix']}" if line["fix"] else ""
        mark = "" if line["level"] == "info" else f"{line['level']}: "
        self._say(mark + line["text"] + fix)

    def _on_state(self, line: Line) -> None:
        if line["message"]:
            fix = f"\n  fix: {line['fix']}" if line["fix"] else ""
            self._say(line["message"] + fix)

    def close(self) -> None:
        if self._bar is not None:
            with suppress(OSError):
                self._bar.close()
