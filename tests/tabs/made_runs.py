"""Run folders made by hand, as a training leaves them, for tests that compare runs."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from work_parts import image

from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.presets.files import dump

IMAGES = [
    {"source": "glyphs", "path": f"{name}.png", "sha256": name * 8, "caption": f"a {name}", "bucket": [128, 128]}
    for name in ("fox", "owl", "bee", "ant")
]
HELD = [row | {"masked": False} for row in IMAGES[2:]]


def dataset(images: Sequence[dict] = IMAGES[:2], held: Sequence[dict] | None = HELD, seed: int = 0) -> dict[str, Any]:
    """A dataset.json; without "validation" where `held` is None, as earlier versions wrote it."""
    found: dict[str, Any] = {"v": 1, "count": len(images), "images": list(images)}
    if held is not None:
        found["validation"] = {"seed": seed, "timesteps": [200, 400, 600, 800], "images": list(held)}
    return found


def make_run(
    runs: Path,
    name: str,
    *,
    settings: dict[str, Any] | None = None,
    steps: int = 60,
    validated: Sequence[tuple[int, float]] = (),
    saved: Sequence[int] = (),
    drawn: Sequence[int] = (),
    prompts: Sequence[str] = ("a fox",),
    about: dict[str, Any] | None = None,
    peak: int = 0,
    preset: str = "",
    fall: float = 20.0,
    ended: tuple[str, str, str] | None = ("done", "", ""),
    log: Sequence[tuple[str, str, str]] = (),
) -> Path:
    """validated: (step, loss); saved, drawn: steps; about: dataset.json; fall: over how many steps the loss falls.

    ended: (state, message, fix), None while it runs; log: (level, text, fix)
    """
    folder = runs / name
    (folder / "checkpoints").mkdir(parents=True)
    given = {"schedule": {"max_train_steps": steps}} | (settings or {})
    (folder / "job.json").write_text(json.dumps(dump(build(TrainJob, given), preset=preset)), encoding="utf-8")
    if about is not None:
        (folder / "dataset.json").write_text(json.dumps(about), encoding="utf-8")
    begun, lines = time.mktime(time.strptime(name[:15], "%Y%m%d-%H%M%S")), []

    def put(kind: str, **facts: Any) -> None:
        lines.append({"v": 1, "seq": len(lines) + 1, "time": begun + len(lines), "kind": kind, **facts})

    put("state", state="running", message="", fix="")
    put("planned", total=steps, epochs=5, images=2, steps_per_epoch=12, sentence="")
    for step in range(steps + 1):
        if step:
            loss = 0.1 + 0.2 * 2.7 ** (-step / fall) + 0.03 * (step % 3 - 1)
            put("steps", steps=[step], losses=[loss], rates={"unet": 1e-4}, epoch=1, seconds_per_step=0.5,
                corrected=[1.3 - 0.5 * step / steps], grad_norm=0.5 + 1 / step, weight_norm=2 + step / 50)  # fmt: skip
        for index, prompt in enumerate(prompts if step in drawn else ()):
            file = f"samples/{step:08d}_{index:02d}.png"
            image(folder / file, color=f"hsl({(37 * step + 90 * index) % 360}, 45%, 50%)")
            put("sample", step=step, index=index, prompt=prompt, seed=1 + index, file=file)
        for loss in [loss for at, loss in validated if at == step]:
            by_timestep = {str(at): loss + (at - 500) / 1e4 for at in (200, 400, 600, 800)}
            put("validated", step=step, loss=loss, train_loss=0.1, gap=loss - 0.1, by_timestep=by_timestep, images=2)
        if step in saved:
            file = f"checkpoints/{name.split('_', 1)[1]}-step{step:08d}.safetensors"
            (folder / file).write_bytes(b"x" * 2_300_000)
            put("saved", step=step, file=file, bytes=2_300_000)
    if peak:
        put("memory", peak_bytes=peak, device="cuda:0")
    for level, text, advice in log:
        put("log", level=level, text=text, fix=advice)
    if ended:
        put("state", **dict(zip(("state", "message", "fix"), ended, strict=True)))
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder
