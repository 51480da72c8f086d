"""The memory line of the Generate tab: forecast of the memory needed, loaded models, Unload button."""

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio as gr

from core.record import machine
from core.record.problems import ProblemsError
from core.record.units import memory_text
from core.settings.job import GenerateJob
from core.settings.presets.files import to_values
from tabs.context import Page
from tabs.markup import board_event, button, esc

ASK = "Memory that these settings take at most; PyTorch is loaded to count it"
IRRELEVANT = ("prompt", "negative_prompt", "seed", "variation_seed")  # settings that change nothing about memory


class MemoryLine:
    """The memory line. The forecast runs in the background: automatically once torch is loaded, else on request.

    job: function that returns the form's job, or raises ProblemsError
    """

    def __init__(self, page: Page, job: Callable[[], GenerateJob]):
        self.page, self._job = page, job
        self._task: Any = None
        self._cached: tuple[str, str] = ("", "")  # settings, text of their forecast

    def html(self) -> str:
        """Return the HTML of the line; starts the forecast if torch is loaded."""
        job = self.page.engine.status()["job"]
        in_use = bool(job and job.get("task") in ("generate", "grid"))
        forecast, sizes = self._forecast("torch" in sys.modules), dict[str, int]()
        for each in self.page.engine.models.loaded():
            name = Path(each.name).stem
            sizes[name] = sizes.get(name, 0) + each.bytes
        listed = ", ".join(f"{name} {memory_text(size)}" for name, size in sizes.items())
        label, about = f"Unload {memory_text(sum(sizes.values()))}", f"Free the memory of loaded models: {listed}"
        unload = button("unload", label, kind="quiet", disabled=in_use, title=about) if sizes else ""
        needs = button("forecast", "Memory needed", kind="quiet", title=ASK) if forecast is None else ""
        needs = needs or f'<span class="hint" title="{ASK}">{esc(forecast or "")}</span>'
        return f'<div class="strip gen-memory">{needs}<span class="grow"></span>{unload}</div>'

    def act(self, event: gr.EventData) -> str:
        """Handle the button "unload" (free models that are not in use) or "forecast", and return the HTML of the line."""
        act = board_event(event)[0]
        if act == "unload":
            self.page.engine.models.release(wait=False)  # except models in use
        elif act == "forecast":
            self._forecast(True)
        return self.html()

    def _forecast(self, compute: bool) -> str | None:
        """Return the forecast's text: "" while it is computed or if the job is invalid, None if it was not requested.

        compute: whether to start the forecast if these settings have none
        """
        try:
            job = self._job()
        except ProblemsError:
            return ""
        if self.page.roots.refused(job):
            return ""
        values = to_values(job)
        values["generate"] = {name: each for name, each in values["generate"].items() if name not in IRRELEVANT}
        key = json.dumps(values, sort_keys=True, default=str)
        if self._cached[0] == key:
            return self._cached[1]
        busy = self._task is not None and not self._task.done
        if compute and not busy:
            self._task, busy = self.page.engine.light(self._count, job, key, title="memory forecast"), True
        return "" if busy else None

    def _count(self, job: GenerateJob, key: str, task: Any) -> None:
        """Compute the memory forecast of a job in the background and cache its text under `key`."""
        from core.generation.plan.forecast import forecast

        device, text = self.page.engine.known_device or machine.default_device(), ""
        with suppress(ProblemsError, OSError):  # problems of a job are reported when it is started
            memory = forecast(job, self.page.workspace, device)
            text = f"About {memory_text(memory.peak)} of {memory_text(memory.total)}"
            text += " VRAM" if machine.gpu_memory(device) else " RAM"
        self._cached = (key, text)
