"""docs/settings.md from the declarations and docs/recipes.md from the shipped recipes: `python -m core.settings.docs`.
Tests fail when they are stale."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from core.settings.base import Settings, declared
from core.settings.job import CaptionJob, ClassImagesJob, GenerateJob, ImagesJob, PrepareJob, ToolJob, TrainJob
from core.settings.presets import Preset, PresetStore, apply
from core.settings.rates import trains_text
from core.settings.usual_rates import short

PROJECT = Path(__file__).resolve().parents[2]
TARGET = PROJECT / "docs" / "settings.md"
RECIPES = PROJECT / "docs" / "recipes.md"
PARTS = (
    ("Training (`train`)", TrainJob, ()),
    ("Preparing (`prepare`)", PrepareJob, tuple(TrainJob.model_fields)),
    ("Drawing (`generate`)", GenerateJob, ("model", "memory")),
    ("Captions (`caption`)", CaptionJob, ("dataset", "captions")),
    ("Regularization images (`class_images`)", ClassImagesJob, ("model", "dataset", "captions", "memory")),
    ("Tools (`tool`)", ToolJob, ()),
    ("Image tools (`images`)", ImagesJob, ()),
)


def render() -> str:
    lines = [
        "# Settings",
        "",
        "Written by `./launch.sh docs` from the declarations in `core/settings`. The same names stand in the page, in presets and,",
        "as `--group.name value`, on the command line.",
    ]
    for title, model, told_above in PARTS:
        lines += ["", f"## {title}"]
        lines += [f"\nAs above: {', '.join(f'`{group}`' for group in told_above)}."] if told_above else []
        lines += _tables(model, told_above)
    return "\n".join(lines) + "\n"


def _tables(model: type[Settings], skip: tuple[str, ...]) -> list[str]:
    lines: list[str] = []
    for group, info in model.model_fields.items():
        entries = [entry for entry in declared(model) if entry.group == group]
        if group in skip:
            continue
        lines += ["", f"### {info.title or group}", "", (info.annotation.__doc__ or "").strip()]
        if not entries:
            continue
        lines += [
            "",
            "| setting | default | allowed | what it does | sd-scripts | source |",
            "|---|---|---|---|---|---|",
        ]
        for entry in entries:
            allowed = " ".join(part for part in (entry.range_text, f"({entry.unit})" if entry.unit else "") if part)
            default = json.dumps(entry.default, default=str)
            text = " ".join(part for part in (f"**{entry.title}.**", entry.help, entry.costs) if part)
            row = (
                f"`{entry.path}`",
                f"`{default}`",
                allowed,
                text,
                f"`{entry.kohya}`" if entry.kohya else "",
                entry.source,
            )
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    return lines


def render_recipes() -> str:
    store = PresetStore(PROJECT / "presets")
    found = [(name, store.load(name)) for name in store.names() if not name.startswith("user/")]
    lines = [RECIPES_HEAD, "| recipe | for | VRAM | main values |", "|---|---|---|---|"]
    for name, preset in found:
        if preset.kind == "recipe":
            about = f"**{preset.title}.** {preset.description}"
            lines.append(f"| `{name}` | {about} | {preset.vram_gb} GB | {', '.join(_main_values(preset))} |")
    return "\n".join(lines) + "\n"


RECIPES_HEAD = """# Recipes

A recipe is a preset that sets how to train and leaves what to train to you: base model, images, trigger words, sample prompts, validation and names stay as
they are. It sets resolution and batch size; every other setting that it does not state goes to its default.

On the page choose one in **Preset** on the Train tab; *What this recipe sets* lists each value with its reason, and every value can be changed
afterwards. In a terminal:

```sh
python webui.py presets
python webui.py presets sdxl_lora_8gb
```

```
python webui.py train sdxl_lora_8gb --model.base_model models/sdxl.safetensors --dataset.folder images/mira --saving.output_name mira
```

VRAM is that of the GPU. By the memory forecast each recipe takes at most nine tenths of it, with latents cached and 200 images; see [what it needs](hardware.md)
for how that is counted. The tables in [settings.md](settings.md) explain each setting. Written by `./launch.sh docs` from `presets/`.
"""


def _main_values(preset: Preset) -> Iterator[str]:
    job = apply(preset)
    assert isinstance(job, TrainJob)
    yield f"{job.dataset.resolution} px, batch {job.dataset.train_batch_size}"
    if job.method.kind == "lora":
        yield f"rank {job.network.rank}"
        yield from [f"conv rank {job.network.conv_rank}"] if job.network.conv_rank else []
    if job.method.kind == "embedding":
        yield f"{job.embedding.num_vectors_per_token} vectors"
    elif trains_text(job):
        yield "text encoder"
    yield f"{job.optimizer.optimizer_type} {short(job.optimizer.learning_rate)}"
    yield from [f"full {job.memory.full_precision}"] if job.memory.full_precision != "fp32" else []
    for name in ("gradient_checkpointing", "fused_backward_pass"):
        yield from [name.replace("_", " ")] if getattr(job.memory, name) else []


if __name__ == "__main__":
    from core.record.atomic import write_text

    for target, text in ((TARGET, render()), (RECIPES, render_recipes())):
        write_text(target, text)
        print(f"wrote {target.name}")
