"""Generation and diffusers' own pipeline on the same model, alternating: time per image, overhead, cost of the preview."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from core.generation.model.store import ModelStore, make_store
from core.generation.run import run_generate
from core.machine_check.random_model import make_model
from core.record.context import Reports
from core.record.workspace import PROJECT, STARTER, Workspace
from core.settings.job import GenerateJob

STEPS, GUIDANCE = 20, 7.5
INSIDE = ("UNet2DConditionModel", "Decoder")


class Shown(Reports):
    """Takes previews as a page does, and writes them."""

    def __init__(self, file: Path):
        self.file = file

    def preview(self, jpeg: bytes) -> None:
        self.file.write_bytes(jpeg)


def measure_generate(folder: Path, device: str, quick: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """SD 1.5's architecture at 256 px, or quick the starter at 128: seconds per image in fp32, medians of alternating rounds."""
    say("generating with diffusers' pipeline, for comparison")
    model, size = (STARTER, 128) if quick else (make_model(folder), 256)
    space = Workspace(folder / "generated", PROJECT / "models")
    space.outputs.mkdir(parents=True, exist_ok=True)
    store, pipeline = make_store(), _pipeline(model, device)
    took: dict[str, list[float]] = {"ours": [], "preview": [], "diffusers": []}
    outside = []
    with _time_inside() as inside:
        for turn in range(-1, 2 if quick else 3):  # the first round loads and is left out
            prompt = f"a fox {turn}"
            for name in took:
                inside[0] = 0.0
                begun = time.perf_counter()
                if name == "diffusers":
                    pipeline(prompt, num_inference_steps=STEPS, guidance_scale=GUIDANCE, width=size, height=size)
                else:
                    _ours(model, size, prompt, 2 if name == "preview" else None, store, space, device)
                if turn >= 0:
                    took[name].append(time.perf_counter() - begun)
                if name == "ours" and turn >= 0:
                    outside.append(1 - inside[0] / took[name][-1])
    middle = {name: statistics.median(seconds) for name, seconds in took.items()}
    return {
        "what": f"{'starter' if quick else 'SD 1.5 architecture'}, {size} px, DDIM, {STEPS} steps, fp32",
        "seconds": middle["ours"],
        "of_diffusers": middle["ours"] / middle["diffusers"],
        "with_preview": middle["preview"] / middle["ours"],
        "outside": statistics.median(outside),
    }


def _pipeline(model: Path, device: str) -> Any:
    import torch
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(
        model, dtype=torch.float32, safety_checker=None, local_files_only=True
    ).to(device)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _ours(
    model: Path, size: int, prompt: str, preview: int | None, store: ModelStore, space: Workspace, device: str
) -> None:
    values = {"prompt": prompt, "steps": STEPS, "guidance_scale": GUIDANCE, "width": size, "height": size, "seed": 1}
    groups = {"generate": values, "model": {"base_model": str(model)}, "memory": {"mixed_precision": "no"}}
    job = GenerateJob.model_validate(groups | {"output": {"preview_every_n_steps": preview}})
    run_generate(job, space, store=store, device=device, reports=Shown(space.outputs / "preview.jpg"))


@contextmanager
def _time_inside() -> Iterator[list[float]]:
    """A context with a list of one number: the seconds spent in U-Net and VAE decoder."""
    from torch.nn.modules import module

    spent, begun = [0.0], [0.0]

    def before(part: Any, given: Any) -> None:
        if type(part).__name__ in INSIDE:
            begun[0] = time.perf_counter()

    def after(part: Any, given: Any, made: Any) -> None:
        if type(part).__name__ in INSIDE:
            spent[0] += time.perf_counter() - begun[0]

    hooks = module.register_module_forward_pre_hook(before), module.register_module_forward_hook(after)
    try:
        yield spent
    finally:
        for hook in hooks:
            hook.remove()


def generate_rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("generation", result["what"]),
        ("time per image", f"{result['seconds']:.2f} s, {result['of_diffusers']:.2f} of diffusers' pipeline"),
        ("of it outside U-Net and VAE", f"{result['outside']:.1%}"),
        ("time with a preview every 2 steps", f"{result['with_preview']:.2f} of that without"),
    ]
