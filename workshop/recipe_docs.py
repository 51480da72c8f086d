"""docs/recipes.md, written from the shipped recipes."""

from collections.abc import Iterator

from core.record.workspace import PROJECT
from core.settings.job import TrainJob
from core.settings.optimization.rates import trains_text
from core.settings.optimization.usual_rates import short
from core.settings.presets.files import Preset, PresetStore, apply

TARGET = PROJECT / "docs" / "recipes.md"


def render() -> str:
    store = PresetStore(PROJECT / "presets")
    recipes = [(name, store.load(name)) for name in store.names() if not name.startswith("user/")]
    lines = [HEAD, "| recipe | for | VRAM | main values |", "|---|---|---|---|"]
    for name, preset in recipes:
        if preset.kind == "recipe":
            about = f"**{preset.title}.** {preset.description}"
            lines.append(f"| `{name}` | {about} | {preset.vram_gb} GB | {', '.join(_main_values(preset))} |")
    return "\n".join(lines) + "\n"


HEAD = """# Recipes

A recipe is a preset that sets how to train and leaves what to train to you: base model, images, trigger words, sample prompts, validation, logging and names stay as
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
for how that is counted. A recipe for another family than the base model's, or for more VRAM than there is, is reported next to **Preset**, with a recipe that fits,
and by `--check`. The tables in [settings.md](settings.md) explain each setting. Written by `./launch.sh docs` from `presets/`.
"""


def _main_values(preset: Preset) -> Iterator[str]:
    job = apply(preset)
    assert isinstance(job, TrainJob)
    yield f"{job.dataset.resolution} px, batch {job.dataset.train_batch_size}"
    if job.method.traits.uses_network:
        yield f"rank {job.network.rank}"
        yield from [f"conv rank {job.network.conv_rank}"] if job.network.conv_rank else []
    if job.method.traits.new_words:
        yield f"{job.embedding.num_vectors_per_token} vectors"
    elif trains_text(job):
        yield "text encoder"
    yield f"{job.optimizer.optimizer_type} {short(job.optimizer.learning_rate)}"
    yield from [f"full {job.memory.full_precision}"] if job.memory.full_precision != "fp32" else []
    for name in ("gradient_checkpointing", "fused_backward_pass"):
        yield from [name.replace("_", " ")] if getattr(job.memory, name) else []
