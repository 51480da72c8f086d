"""A page on which something has happened: runs in every state, a queue, images with their settings, a dataset with faults."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
from made_runs import IMAGES, dataset, make_run
from PIL import Image
from safetensors.numpy import save_file
from work_engine import WorkEngine
from work_parts import image

from core.engine.engine import Engine
from core.settings.check import build
from core.settings.dataset.source import Source
from core.settings.job import GenerateJob
from tabs.dataset.concepts import with_entries

PROMPTS = ("a fox, glyph style", "an owl in the snow, glyph style")
DONE, OTHER, STOPPED, FAILED = (
    "20260101-120000_fox_done",
    "20260102-120000_fox_again",
    "20260103-120000_fox_stopped",
    "20260104-120000_fox_failed",
)
# What stands on a tab once it is drawn.
MARKS = {
    "Dataset": "#ds-doctor .finding",
    "Captions": "#cap-list .pick",
    "Train": "#field-method-kind",
    "Monitor": "#samples img",
    "Generate": "#gen-gallery .tile",
    "Runs": "table.runs tbody tr",
    "Tools": "#tools-loras select",
}


def fill(page) -> str:
    """Make all of it under a `Served` page whose engine is a real one; returns the name of the run in progress."""
    page.engine.pause_queue()
    running = time.strftime("%Y%m%d-%H%M%S_fox_running", time.localtime(time.time() - 60))
    _make_runs(page.workspace.runs, running)
    _make_queue(page.engine, running)
    _make_images(page.workspace, make_lora(page.workspace.runs / DONE / "checkpoints" / "fox.safetensors"))
    trash = page.workspace.trash / "run-1" / "old.safetensors"
    trash.parent.mkdir(parents=True)
    trash.write_bytes(b"x" * 4000)
    project = page.page.project
    project.replace(with_entries(project.job, _make_dataset(page.workspace.outputs.parent)))
    return running


def _make_runs(runs: Path, running: str) -> None:
    measured = [(step, 0.2 - 0.08 * (1 - abs(step - 40) / 80)) for step in range(0, 121, 20)]
    same = {
        "about": dataset(),
        "preset": "starter_lora",
        "prompts": PROMPTS,
        "drawn": (0, 20, 40, 60),
        "saved": (20, 40),
    }
    log = [
        ("warning", "2 images have no caption", "write captions for them"),
        *[("info", f"line {n}", "") for n in range(40)],
    ]
    make_run(runs, DONE, steps=120, validated=measured, peak=3 << 30, log=log, **same)
    make_run(runs, OTHER, steps=120, validated=measured, settings={"optimizer": {"learning_rate": 3e-4}}, **same)
    make_run(runs, STOPPED, ended=("stopped", "Stopped by you at step 60", ""), **same)
    error = ("failed", "The GPU ran out of memory", "lower the batch size")
    make_run(runs, FAILED, ended=error, log=[("error", *error[1:])], **same)
    folder = make_run(runs, running, steps=120, ended=None, validated=measured, log=log, **same)
    bands = [{"from": low, "to": low + 50, "mean": 0.4, "recent": 0.3, "count": 3} for low in range(0, 1000, 50)]
    worst = [
        {"source": row["source"], "name": row["path"], "corrected": 1.6 - n / 9, "count": 4}
        for n, row in enumerate(IMAGES * 6)
    ]
    watch = {"step": 60, "bands": bands, "images": worst, "images_seen": len(worst)}
    (folder / "watch.json").write_text(json.dumps(watch))
    (runs / DONE / "about.json").write_text(json.dumps({"title": "fox, done", "note": "a little too strong"}))


def _make_queue(engine: Engine, running: str) -> None:
    """One at work, three that wait, two that ended badly. The engine takes the first to be its own, and works on nothing."""
    add = engine._queue.add
    engine._device_job = add("train", "fox_running", {}, run=running, state="running")
    for task, title in (("train", "fox_next_with_a_long_name"), ("generate", "a small fox"), ("train", "fox_last")):
        add(task, title, {})
    add("generate", "a very large fox", {}, state="failed", message="The GPU ran out of memory. Lower the size.")
    add("train", "fox_cut_off", {}, run=STOPPED, state="interrupted")


def _make_images(workspace, lora: Path) -> None:
    """Images of the base model and of a LoRA at the same seeds, which stand side by side."""
    folder = workspace.images / "2026-01-01"
    folder.mkdir(parents=True)
    for seed in range(3):
        for loras in ([], [{"file": str(lora), "strength": 0.8}]):
            asked = {"prompt": "a small fox", "negative_prompt": "blurred", "loras": loras}
            WorkEngine._image(None, build(GenerateJob, {"generate": asked}), seed, folder)  # type: ignore[arg-type]


def make_lora(path: Path, metadata: dict[str, str] | None = None) -> Path:
    """A file with a LoRA's keys."""
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    down, up = np.zeros((4, 64), "f4"), np.ones((32, 4), "f4")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({f"{layer}.lora_down.weight": down, f"{layer}.lora_up.weight": up}, path, metadata)
    return path


def _make_dataset(home: Path) -> list[Source]:
    """A folder whose images raise every question and most problems, one of regularization images and one held out."""
    main = home / "foxes"
    for number in range(5):
        path = image(
            main / f"fox_{number}.png", (200, 200 + 40 * number), caption=f"fox, red, day {number}\nsecond line"
        )
        Image.effect_noise((200, 200 + 40 * number), 60 + 20 * number).convert("RGB").save(path)
        (main / f"fox_{number}.caption").write_text("a fox on a day " * 40 if number == 4 else f"a fox on day {number}")
    (main / "fox_0_copy.png").write_bytes((main / "fox_0.png").read_bytes())
    Image.new("RGBA", (200, 200), (200, 0, 0, 90)).save(main / "transparent.png")
    image(main / "without_caption.png", (64, 300))
    (main / "broken.png").write_bytes(b"")
    image(home / "dogs" / "dog.png", (200, 200), caption="a dog")
    image(home / "held" / "owl.png", (200, 200), caption="an owl")
    return [
        Source(folder=str(main), num_repeats=2, identifier="sks", class_word="fox"),
        Source(folder=str(home / "dogs"), role="regularization"),
        Source(folder=str(home / "held"), role="validation"),
    ]
