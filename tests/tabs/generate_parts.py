"""What the tests of Generate share: an engine whose queue never moves, the tab over it, and small files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
from PIL import Image
from safetensors.torch import save_file
from work_parts import make_page

from core.engine.light import LightLane
from core.engine.queue import QueueEntry
from core.engine.waiting import waits
from core.generation.images.metadata import png_info
from core.generation.model.sources import Hashes
from core.settings.check import build
from core.settings.job import GenerateJob
from tabs.generate import form
from tabs.generate.tab import GenerateHandlers

LANE = LightLane()


class Models:
    """What the store says and does."""

    def __init__(self):
        self.held = []

    def loaded(self):
        return self.held

    def release(self, wait):
        self.held = [] if not wait else self.held


class Engine:
    """A queue that never moves, and the images of a folder."""

    people: frozenset = frozenset()
    paused_by = None

    known_device = "cpu"

    def __init__(self, folder):
        self.folder, self.jobs, self.entries, self.queue_paused, self.now = folder, [], [], False, None
        self.paused_by = None
        self.models = Models()
        self.end_listeners = []

    def submit(self, task, job, title="", preset=""):
        self.jobs.append(job)
        self.entries.append(QueueEntry(f"e{len(self.jobs)}", task, job.generate.prompt, {}))
        return self.entries[-1].id

    def queue(self):
        return self.entries

    def waits(self):
        left = self.now.get("eta_seconds", 0) if self.now else 0
        return waits(self.entries, lambda entry: (left, False), paused=self.queue_paused, lent_to="")

    def status(self):
        return {"job": self.now}

    def cancel(self, identity):
        self.entries = [each for each in self.entries if each.id != identity]

    def resume_queue(self):
        self.queue_paused = False

    def light(self, work, *arguments, title="", kind="short"):
        if title == "memory forecast":  # what a test does not ask for never ends
            return SimpleNamespace(done=False)
        return LANE.submit(work, *arguments, title=title, kind=kind)

    def snapshot(self, run):
        return {"fix": "lower the size"}


def make_desk(folder: Path) -> GenerateHandlers:
    """Generate over an empty outputs folder."""
    return GenerateHandlers(make_page(folder, Engine(folder / "outputs" / "images")))


def made(**generate):
    generate = {"prompt": "a fox", "width": 64, "height": 64, "seed": 1} | generate
    return build(GenerateJob, {"generate": generate, "model": {"base_model": "models/starter"}})


def draw(path, **generate):
    """An image as drawing writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), "teal").save(path, pnginfo=png_info(made(**generate), Hashes()))
    return path


def said_codes(desk):
    return sorted(problem["code"] for problem in desk.page.browsers.of(None).message["problems"])


def press(desk, **changes):
    desk.presets.put(form.start_values() | changes)
    return desk.draw().get("status", "")


def lora(path, metadata=None, width=768):
    """A file with a LoRA's keys, of the family whose texts are so wide."""
    path.parent.mkdir(parents=True, exist_ok=True)
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{layer}.lora_down.weight": torch.zeros(4, width), f"{layer}.lora_up.weight": torch.zeros(32, 4)}
    save_file(tensors, path, metadata)
    return path


def embedding(path):
    """A file of one vector as wide as the starter's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"emb_params": torch.zeros(1, 64)}, path)
    return path
