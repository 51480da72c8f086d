"""Memory of whole trainings at the real sizes, counted on the card that computes nothing:

    python -m tests.card.sizes FOLDER [WORD OF A CASE ...]

Prints for each case what torch would hold on the card at most while it builds the run and in its steps, and what the
forecast says. A model's files have their headers and no content, so they take no room on the disk.
"""

import json
import sys
from pathlib import Path
from unittest import mock

from tests.card.library import load_library

if __name__ == "__main__":
    load_library()

import torch
from PIL import Image

from core.diffusion.text_states import TextStates
from core.families import family
from core.families.counting import FusedKernel
from core.families.part_shapes import make_empty
from core.record.workspace import PROJECT, Workspace
from core.settings.check import build
from core.settings.flags import merge
from core.settings.job import TrainJob
from core.training.memory.plan import facts_of, memory_plan
from tests.card.runs import steps_on_the_card
from tests.models import WEIGHT_FILES, shipped_config, write_rest
from tests.options import ADAFACTOR

SMALL = {"gradient_checkpointing": True, "mixed_precision": "bf16"}
TUNE = {"kind": "fine_tune"}
EIGHT_BITS = {"optimizer_type": "AdamW8bit"}
FP16 = {
    "method": TUNE,
    "memory": {**SMALL, "mixed_precision": "fp16", "full_precision": "fp16"},
    "optimizer": EIGHT_BITS,
}
UNET = {"rank": 16, "alpha": 16.0, "train_text_encoder": False}
# name: (family, pixels, groups)
CASES = {
    "sd15 lora, unet, checkpointing, 8-bit": (
        "sd1",
        512,
        {"network": UNET, "memory": SMALL, "optimizer": EIGHT_BITS},
    ),
    "sd15 lora, unet": ("sd1", 512, {"network": UNET}),
    "sd15 lora, unet and text": ("sd1", 512, {"network": {**UNET, "train_text_encoder": True}}),
    "sdxl lora, low memory": (
        "sdxl",
        1024,
        {"network": UNET, "memory": {**SMALL, "fp8_base_unet": True}, "optimizer": EIGHT_BITS},
    ),
    "sdxl lora, checkpointing": ("sdxl", 1024, {"network": UNET, "memory": SMALL}),
    "sd15 fine-tune, 8-bit": (
        "sd1",
        512,
        {"method": TUNE, "memory": SMALL, "optimizer": EIGHT_BITS},
    ),
    "sd15 fine-tune, full fp16": ("sd1", 512, FP16),
    "sd2 fine-tune, full fp16": ("sd2", 768, FP16),
    "sdxl fine-tune, fp32, fused": (
        "sdxl",
        1024,
        {"method": TUNE, "memory": {**SMALL, "fused_backward_pass": True}, "optimizer": ADAFACTOR},
    ),
    "sdxl fine-tune, full bf16, fused": (
        "sdxl",
        1024,
        {
            "method": TUNE,
            "memory": {**SMALL, "full_precision": "bf16", "fused_backward_pass": True},
            "optimizer": ADAFACTOR,
        },
    ),
}


def hollow_folder(family_name: str, folder: Path) -> Path:
    """A diffusers folder of the published sizes in fp16 whose weights are holes in their files."""
    for name in ("unet", "vae", *family(family_name).layout.text_encoders):
        config, entries, place = shipped_config(name, family_name), {}, 0
        for key, value in make_empty(name, config).state_dict().items():
            size = 2 * value.numel()
            entries[key] = {"dtype": "F16", "shape": list(value.shape), "data_offsets": [place, place + size]}
            place += size
        header = json.dumps(entries).encode()
        header += b" " * (-len(header) % 8)
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "config.json").write_text(json.dumps(config), encoding="utf-8")
        with open(folder / name / WEIGHT_FILES[name], "wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + place)
    write_rest(folder, family_name)
    return folder


def encoded(texts, captions, tokens=None):
    """Text states of the right sizes, in place of an encoder's."""
    inputs = texts._inputs
    widths = [shipped_config(name, inputs.family_name)["hidden_size"] for name in inputs.family.layout.text_encoders]
    context = torch.zeros(len(captions), 77, sum(widths), dtype=inputs.precision.compute)
    return TextStates(context, torch.zeros(len(captions), 1280) if len(widths) > 1 else None)


def empty_posteriors(inputs, models):
    def encode(pixels):
        zeros = torch.zeros(len(pixels), 4, pixels.shape[-2] // 8, pixels.shape[-1] // 8)
        return zeros, zeros

    return encode


def attention(q, k, v, *_, **__):
    return FusedKernel.apply(q, k, v)


def count(folder: Path, name: str) -> dict:
    found, plan = steps_and_plan(folder, *CASES[name], with_plan=True)
    sizes = {"while it is built": found["building"], "in a step": max(found["peak"]), "forecast": plan.total}
    return {name: f"{size / 2**30:.2f} GB" for name, size in sizes.items()} | {"waits": len(found["waits"][-1])}


def steps_and_plan(
    folder: Path, family_name: str, pixels: int, groups: dict, attention=attention, *, with_plan: bool = False
):
    """What `steps_on_the_card` found of a job, and its memory plan or None. attention: in place of torch's"""
    images = folder / f"images{pixels}"
    images.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (pixels, pixels), (90, 120, 150)).save(images / "one.png")
    (images / "one.txt").write_text("an image", encoding="utf-8")
    model = folder / family_name
    if not (model / "model_index.json").exists():
        hollow_folder(family_name, model)
    base = {
        "model": {"base_model": str(model)},
        "dataset": {"folder": str(images), "resolution": pixels, "train_batch_size": 1},
        "optimizer": {"learning_rate": 1e-4},
        "schedule": {"max_train_steps": 3, "seed": 7},
        "memory": {"mixed_precision": "bf16"},
        "logging": {"log_with": "none"},
    }
    job = build(TrainJob, merge(base, groups))
    workspace = Workspace(folder / "outputs", PROJECT / "models", PROJECT / "presets")
    workspace.private.mkdir(parents=True, exist_ok=True)
    patches = [
        mock.patch("core.families.loading.digest", lambda layout, path, part, **_: f"{layout.family} {part}"),
        mock.patch("core.training.building.latents.encoder", empty_posteriors),
        mock.patch("core.training.building.models.Models.vae", lambda models: torch.nn.Linear(1, 1)),
        mock.patch("torch.nn.functional.scaled_dot_product_attention", attention),
    ]
    if not job.network.train_text_encoder or job.method.traits.base_trains:
        patches.append(mock.patch("core.training.building.texts.Texts.encode", encoded))
    for patch in patches:
        patch.start()
    try:
        found = steps_on_the_card(workspace, job)
        plan = memory_plan(job, facts_of(job, workspace, "cuda")) if with_plan else None
    finally:
        for patch in patches:
            patch.stop()
    return found, plan


if __name__ == "__main__":
    torch.set_num_threads(1)
    place = Path(sys.argv[1])
    for case in CASES:
        if all(word in case for word in sys.argv[2:]):
            print(case, json.dumps(count(place, case)), flush=True)
