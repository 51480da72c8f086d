"""Memory of generations at the real sizes, counted on the card that computes nothing:

    python -m tests.card.generations FOLDER [CASE ...]

Prints for each case, or for these, as a line of JSON, what torch would hold on the card at most while the model is loaded, in an image's
steps and while it is decoded, what the forecast says without what torch takes for itself, and what stays there.
"""

import json
import sys
from pathlib import Path
from unittest import mock

from tests.card.library import load_library

if __name__ == "__main__":
    load_library()

import torch

from core.families.counting import FusedKernel
from core.families.vae_strips import Strips
from core.generation.making import ImageMaker
from core.generation.model.embeddings import embeddings_attached
from core.generation.model.leases import leased
from core.generation.model.loras import LorasInUse
from core.generation.model.parts import Parts
from core.generation.model.store import ModelStore, ModelTextCache
from core.generation.plan.forecast import needs_of, offload_for
from core.generation.plan.plan import plan_of
from core.record import machine
from core.record.context import NO_REPORTS
from core.record.workspace import PROJECT, Workspace
from core.settings.check import build
from core.settings.job import GenerateJob
from tests.card.sizes import hollow_folder
from tests.card.watched import card

GB = 1 << 30
# name: (family, pixels, the card's memory, groups)
CASES = {
    "sd15 auto, 8 GB": ("sd1", 512, 8, {}),
    "sd15 auto, 4 GB": ("sd1", 512, 4, {}),
    "sd15 in parts": ("sd1", 512, 8, {"generation_memory": {"offload": "parts"}}),
    "sd15 by layers": ("sd1", 512, 8, {"generation_memory": {"offload": "layers"}}),
    "sdxl auto, 24 GB": ("sdxl", 1024, 24, {}),
    "sdxl auto, 8 GB": ("sdxl", 1024, 8, {}),
    "sdxl fp8, auto, 6 GB": ("sdxl", 1024, 6, {"memory": {"fp8_base": True}}),
    "sdxl auto, 4 GB": ("sdxl", 1024, 4, {}),
    "sdxl 32 strips": ("sdxl", 1024, 4, {"generation_memory": {"vae_slices": 32}}),
}


def attention(q, k, v, *_, **__):
    return FusedKernel.apply(q, k, v)


def count(folder: Path, name: str) -> dict:
    family_name, pixels, size, groups = CASES[name]
    model = folder / family_name
    if not (model / "model_index.json").exists():
        hollow_folder(family_name, model)
    asked = {"prompt": "a fox", "steps": 2, "width": pixels, "height": pixels, "seed": 1}
    own = {"model": {"base_model": str(model)}, "generate": asked, "output": {"preview_every_n_steps": None}}
    job = build(GenerateJob, own | groups)
    workspace = Workspace(folder / "outputs", PROJECT / "models", PROJECT / "presets")
    workspace.private.mkdir(parents=True, exist_ok=True)
    plan, found = plan_of(job, workspace), {}
    one = plan.requests[0].job, plan.sources
    with (
        mock.patch.object(machine, "memory", lambda device: (0, size * GB)),
        mock.patch.object(machine, "available_memory", lambda device: size * GB - watched.now),
        mock.patch("torch.cuda.mem_get_info", lambda device=None: (size * GB, size * GB)),
        mock.patch("torch.nn.functional.scaled_dot_product_attention", attention),
        mock.patch("core.generation.model.parts._to_channels_last"),  # the card knows no layouts
        mock.patch("core.families.vae_strips.scaled_dot_product_attention", attention),
        mock.patch.object(Strips, "decoder", autospec=True, side_effect=Strips.decoder) as in_strips,
        card() as watched,
        leased(*one, ModelStore(), "cuda", NO_REPORTS, offload_for(*one, "cuda")) as components,
        embeddings_attached(components, [], ModelTextCache(device="cuda")) as words,
    ):
        found["loading"], watched.peak = watched.peak, watched.now
        made = ImageMaker(components, words, LorasInUse()).make(plan.requests, decoded=False)
        found["steps"], watched.peak = watched.peak, watched.now
        components_vae = components.vae
        from core.families.vae import decode_latents

        decode_latents(components_vae, made.latents[-1])
        found["decoding"], found["held"] = watched.peak, watched.now
        parts = Parts(job.memory, plan.sources, "cuda")
        parts.offload = "layers" if next(components.denoiser.parameters()).device.type == "cpu" else "off"
        if parts.offload == "off" and next(components_vae.parameters()).device.type == "cpu":
            parts.offload = "parts"
    with mock.patch.object(machine, "memory", lambda device: (0, size * GB)):
        needs = needs_of(plan.requests[0].job, parts)
    found["evaluation"] = needs.evaluation
    found["forecast"] = needs.peak(parts.offload, sliced=in_strips.called)
    return {"name": name, "offload": parts.offload} | {key: round(value / GB, 2) for key, value in found.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case in sys.argv[2:] or CASES:
        print(json.dumps(count(Path(sys.argv[1]), case)), flush=True)
