"""docs/coming_from_onetrainer.md: every key of OneTrainer's config, and what it is here."""

from __future__ import annotations

from core.imports.projects.onetrainer_config import IDLE, SECRET, data
from core.record.workspace import PROJECT

TARGET = PROJECT / "docs" / "coming_from_onetrainer.md"
HEAD = """# Coming from OneTrainer

Written by `./launch.sh docs` from the table of the importer. [Coming from another trainer](coming_from.md) says more of files,
the report and the terminal.

1. Take a preset (`#name.json`), a saved config of any version, or a LoRA file with its config in it.
2. Drop it on **Train**. Files of concepts and samples that it names are read if they are found next to it: in a terminal,
   `python webui.py import FILE`.
3. Read the report above the form, choose what it did not find on this machine, and press *Start training*.

## What is different here

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

| OneTrainer | here | remarks |
|---|---|---|
"""


def render() -> str:
    lines = []
    for names, cells in data()["keys"].items():
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
    return HEAD + "\n".join(lines) + "\n"
