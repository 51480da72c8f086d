"""The pages of docs/ on importers that read a table of keys: every key of the program's config, and what it is here."""

from __future__ import annotations

from pathlib import Path

from core.imports.projects import ai_toolkit, onetrainer_config, simpletuner
from core.imports.projects.table import IDLE, SECRET, Table
from core.record.workspace import PROJECT

DOCS = PROJECT / "docs"
ONETRAINER = """# Coming from OneTrainer

Written by `./launch.sh docs` from the table of the importer. [Coming from another trainer](coming_from.md) says more of files,
the report and the terminal.

1. Take a preset (`#name.json`), a saved config of any version, or a LoRA file with its config in it.
2. Drop it on **Train**. Files of concepts and samples that it names are read if they are found next to it: in a terminal,
   `python webui.py import FILE`.
3. Read the report above the form, choose what it did not find on this machine, and press *Start training*.

What a file does not state has OneTrainer's default, not Atelier's: 100 epochs, a learning rate of 3e-6, 200 batches of
warmup, alpha 1, a text encoder that trains. The report lists those that differ.

- **Concepts and samples** are read from the preset, or from the files that it names if they are found next to it. A concept
  becomes a folder in *Additional folders*, a sample becomes a line of sample prompts.
- **Steps** of warmup, saves and samples count batches in OneTrainer; they are divided by the gradient accumulation steps.
- **Models** are SD 1.x, 2.x and SDXL with the methods LoRA, fine-tuning and embedding. Presets for others, for inpainting
  models and for the VAE are refused by name.
- **Masks** named `-masklabel` next to the images are used as they are.

## The way back

There is no export for OneTrainer: keep your preset there. For sd-scripts and kohya_ss there is
[an export](coming_from.md#the-other-way).

## Its keys
"""
AI_TOOLKIT = """# Coming from AI Toolkit

Written by `./launch.sh docs` from the table of the importer. [Coming from another trainer](coming_from.md) says how a file is opened: the
`.yaml` of a job, from `config/` or from *Show advanced* of its page, or the same as JSON.

What a file does not state has AI Toolkit's default, not Atelier's: 1000 steps, a learning rate of 1e-6, alpha 1, fp32, an
epsilon of 1e-6 for AdamW, samples at 512 x 512 every 100 steps. The report lists those that differ.

- **Method**: a process with `network` trains a LoRA, one with `embedding` alone an embedding, one with neither the whole model.
  Of several processes one is chosen: buttons on the page, `--choose` in a terminal.
- **Models** are SD 1.x, 2.x and SDXL. Configs for others (FLUX, Stable Diffusion 3, Qwen-Image, Wan ...), sliders and adapters
  are refused by name.
- **Steps** are optimizer steps with `gradient_accumulation`. With `gradient_accumulation_steps` they count batches, and are
  divided by it.
- **Datasets** become *Additional folders*; a list of resolutions trains each image at all of them.
- **Prompts** become sample prompts with their options; `[trigger]` is replaced. Without `walk_seed` all have the same seed.
- **Buckets** are chosen from another list of sizes, so that crops can differ by some pixels.
- Aliases (`*name`) and tags (`!!name`) of YAML are refused. A key that is written twice is reported; the last one counts.
"""
SIMPLETUNER = """# Coming from SimpleTuner

Written by `./launch.sh docs` from the table of the importer. [Coming from another trainer](coming_from.md) says how a file is opened:
`config.json`, whose keys may begin with `--`, or `multidatabackend.json` alone. The data backends, the LyCORIS config and the
prompt library that a config names are read if they are found there or next to it.

What a file does not state has SimpleTuner's default, not Atelier's: a learning rate of 4e-7, batch size 4, rank 16, LoRA
dropout and caption dropout 0.1, a negative prompt for samples. The report lists those that differ.

- **Models** are SD 1.x, 2.x and SDXL, with the types `lora` and `full`. Configs for others (FLUX, Stable Diffusion 3, Wan ...)
  and of ControlNets are refused by name. Without a path the model is that of `model_flavour`.
- **LoRA** layers are those of SimpleTuner: attention only, unless `peft_lora_target_modules` or the LyCORIS config says others.
- **Length**: `max_train_steps` if it is above 0, else `num_train_epochs`. A folder with `repeats` 0 is trained once per epoch.
- **Gradients** are clipped by value in SimpleTuner unless `grad_clip_method` is `norm`; they are not clipped here then.
- **Data backends** of type `local` become *Additional folders*, those of `eval` with the role validation. Caches are not read,
  other storage is named. Captions of `textfile` are read, a random line each time; `instanceprompt` becomes class tokens.
- **Cosine and sine** schedules repeat in SimpleTuner, with `lr_warmup_steps` as their period; here they fall once over the run.
"""
PAGES: dict[Path, tuple[str, Table]] = {
    DOCS / "coming_from_onetrainer.md": (ONETRAINER, onetrainer_config.table()),
    DOCS / "coming_from_ai_toolkit.md": (AI_TOOLKIT, ai_toolkit.table()),
    DOCS / "coming_from_simpletuner.md": (SIMPLETUNER, simpletuner.table()),
}


def render(page: Path) -> str:
    head, table = PAGES[page]
    lines = [f"| {table.title} | here | remarks |", "|---|---|---|"]
    for names, cells in table.data["keys"].items():
        parts, _, keys = names.rpartition(":")
        here, sentence, notes = cells[1], (cells[2:3] or [""])[0], (cells[4:5] or [{}])[0]
        keys = " ".join(f"`{part}.{key}`" for part in parts.split() or [""] for key in keys.split()).replace("`.", "`")
        settings = ", ".join(f"`{path}`" for path in here.removeprefix("=").split())
        settings = {IDLE: "no effect", SECRET: "never imported", "": "-"}.get(here, settings)
        remarks = [
            sentence,
            *(f"{value if value != '*' else 'otherwise'}: {text[1:]}" for value, text in notes.items()),
        ]
        lines.append(f"| {keys} | {settings} | {'; '.join(filter(None, remarks))} |")
    return f"{head}\n" + "\n".join(lines) + "\n"
