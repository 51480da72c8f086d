"""The pretended engine, which also draws: plain images with the settings a real drawing writes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from fake_engine import FakeEngine

from core.generation.images.metadata import png_info
from core.generation.model.sources import Hashes


class WorkEngine(FakeEngine):
    """Trainings as in FakeEngine; a drawing takes `draw_seconds` an image and depends on prompt, seed and LoRAs."""

    draw_seconds = 0.2

    def submit(self, task: str, job: Any, title: str = "", preset: str = "") -> str:
        return super().submit(task, job, title or (job.generate.prompt if task == "generate" else ""))

    def _new_run(self, entry: Any) -> Any:
        run = super()._new_run(entry)
        if entry.task == "generate":
            self._runs.pop(run.name)  # drawings are no runs
            run.folder.joinpath("samples").rmdir()
            run.folder.joinpath("checkpoints").rmdir()
            run.folder.rmdir()
        return run

    def _run(self, run: Any) -> None:
        if hasattr(run.job, "generate"):
            self._draw(run)
        else:
            super()._run(run)

    def _draw(self, run: Any) -> None:
        job = run.job.generate
        if job.prompt == "fail":
            run.state = "failed"
            self._message = "The device ran out of memory"
            return
        folder = self.workspace.images / "2026-01-01"
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(job.count):
            run.stage = f"drawing image {number + 1} of {job.count} {number}/{job.count}"
            end = time.monotonic() + self.draw_seconds
            while time.monotonic() < end and "stop" not in run.commands and not self._closing.wait(0.05):
                pass
            if "stop" in run.commands:
                run.state = "stopped"
                return
            self._image(run.job, (job.seed or 5) + number, folder)
        run.state = "done"

    def _image(self, job: Any, seed: int, folder: Path) -> None:
        from PIL import Image

        size = {"width": job.generate.width or 128, "height": job.generate.height or 128}
        generate = job.generate.model_copy(update={"seed": seed, "count": 1, **size})
        color = (40, 90, 160) if generate.loras else (200, 120, 40)
        image = Image.new("RGB", (generate.width, generate.height), color)
        info = png_info(job.model_copy(update={"generate": generate}), Hashes())
        image.save(folder / f"{time.time_ns()}_{seed}.png", pnginfo=info)

    def command(self, run_name: str, name: str) -> None:
        now = self._now
        if now is not None and now.name == run_name:
            now.commands.append(name)
        else:
            super().command(run_name, name)

    def status(self) -> dict[str, Any]:
        found = super().status()
        if found["job"] is not None and self._now is not None and hasattr(self._now.job, "generate"):
            found["job"]["task"] = "generate"
        return found

    def snapshot(self, run_name: str) -> dict[str, Any]:
        if run_name not in self._runs:  # a drawing's journal
            return {"fix": "lower the size"}
        return super().snapshot(run_name)

    def queue(self) -> list[Any]:
        from dataclasses import replace

        said = getattr(self, "_message", "")
        return [replace(each, message=said) if each.state == "failed" else each for each in super().queue()]
