"""Images of a tiny model: one for each effect of generation, at two or three steps, as users get them, and the files they are in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
from PIL import Image

from core.families import family
from core.generation.images.metadata import read_image_metadata
from core.generation.model.store import make_store
from core.generation.plan.plan import plan_of
from core.generation.run import run_generate
from core.record.problems import ProblemsError
from core.record.workspace import Workspace
from core.settings.check import build
from core.settings.flags import merge
from core.settings.job import GenerateJob
from tests.facts.store import Facts, folder, producer
from tests.models import tiny_folder, tiny_lora

USUAL = {
    "prompt": "a (fox:1.3) and a dog",
    "negative_prompt": "red",
    "seed": 5,
    "steps": 2,
    "width": 64,
    "height": 96,
    "guidance_scale": 4.0,
}
BOTH = {"prompt": "a fox AND a dog :0.5", "count": 2}
EFFECTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two in a batch, euler a": {"generate": {"count": 2, "batch_size": 2, "sampler": "euler_a", "schedule_type": "karras"}},
    "parts": {"generate": BOTH},
    "kohya": {"model": {"compatibility": "sd-scripts-0.10"}, "generate": {"negative_scale": 2.0, "clip_skip": None}},
    "regions": {"generate": {"prompt": "a fox AND a dog"}, "regions": {"region_map": "map.png"}},
    "deep shrink": {"deep_shrink": {"ds_depth_1": 1, "ds_timesteps_1": 500, "ds_ratio": 0.5}},
    "gradual latent": {"generate": {"sampler": "euler_a", "steps": 3},
                       "gradual_latent": {"gradual_latent_timesteps": 900, "gradual_latent_ratio": 0.5, "gradual_latent_every_n_steps": 1}},
    "hires": {"hires": {"highres_fix_scale": 1.5, "highres_fix_upscaler": "latent"}, "image_to_image": {"strength": 0.6}},
    "image": {"image_to_image": {"image_path": "first.png", "strength": 0.7}},
    "mask": {"image_to_image": {"image_path": "first.png", "mask_path": "mask.png", "strength": 0.8, "mask_blur": 2}},
    "masked alone": {"image_to_image": {"image_path": "first.png", "mask_path": "mask.png", "inpaint_area": "masked",
                                        "masked_content": "latent_noise"}},
    "lora": {"generate": {"loras": [{"file": "lora.safetensors", "strength": 0.5, "text_encoder_strength": 0.2, "end_at": 0.5}]}},
    "lora by blocks": {"generate": {"prompt": "x <lora:lora:0.4:lbw=1,0.5,0,1,1,1,0,1,1,1,1,0,0.5,1,0,1,1>"}},
    "lora merged": {"generate": {"loras": [{"file": "lora.safetensors", "strength": 0.3}], "network_merge": True}},
    "edits": {"generate": {"prompt": "a [fox:dog:1] [big|red] BREAK hat", "steps": 3}},
    "perturbed": {"generate": {"guidance": "pag", "guidance_rescale": 0.5, "guidance_start": 0.4}},
    "skipped": {"generate": {"guidance": "skip_layer", "variation_seed": 3, "variation_strength": 0.4}},
    "start noise": {"start_noise": {"pyramid_noise_prob": 1.0, "noise_offset_prob": 1.0, "noise_offset_range": [0.2, 0.4]}},
}  # fmt: skip


def _pictures(place: Path) -> None:
    gradient = Image.linear_gradient("L")
    Image.merge("RGB", (gradient, gradient.rotate(90), gradient.rotate(180))).resize((100, 120)).save(
        place / "first.png"
    )
    mask = Image.new("L", (100, 120))
    mask.paste(255, (30, 20, 80, 70))
    mask.save(place / "mask.png")
    codes = Image.new("RGB", (64, 96), (255, 0, 0))
    codes.paste((0, 255, 0), (32, 0, 64, 96))
    codes.save(place / "map.png")


def _values(changes: dict[str, Any], place: Path) -> dict[str, Any]:
    values = merge({"generate": USUAL, "model": {"base_model": str(place / "models" / "tiny")}}, changes)
    values["generate"] = {name: value for name, value in values["generate"].items() if name != "clip_skip"}
    names = {"first.png", "mask.png", "map.png"}
    return {
        group: {
            name: str(place / value) if isinstance(value, str) and value in names else value
            for name, value in own.items()
        }
        for group, own in values.items()
    }


def told_of(job: GenerateJob) -> dict[str, Any]:
    """The settings that differ from the defaults, by group."""
    return job.model_dump(exclude_defaults=True)


@producer
def effects() -> Facts:
    """Pixels of each effect, the steps and notes of its plan, and the settings in the last image's file."""
    with folder() as place:
        workspace = Workspace(place / "outputs", place / "models", place / "presets")
        tiny = tiny_folder("sd1", place / "models" / "tiny")
        (place / "models" / "loras").mkdir(parents=True)
        tiny_lora(family("sd1").load(tiny), place / "models" / "loras" / "lora.safetensors", conv=True)
        _pictures(place)
        store = make_store()
        for name, changes in EFFECTS.items():
            job = build(GenerateJob, _values(changes, place))
            try:
                plan = plan_of(job, workspace)
                files = run_generate(job, workspace, store=store)
            except ProblemsError as error:
                yield name, {"refused": error.problems}
                continue
            # Sums are compared relative to the magnitude
            pixels = [numpy.asarray(Image.open(file)) - 127.5 for file in files]
            record = read_image_metadata(files[-1])
            assert record.job is not None
            again = {group: own for group, own in told_of(record.job).items() if group != "model"}
            yield name, [pixels, plan.steps(), plan.notes, [file.suffix for file in files], again]
