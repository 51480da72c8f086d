"""docs/onetrainer.md: every key of OneTrainer's config, and what it is here."""

from __future__ import annotations

from core.imports.projects.onetrainer_config import data
from core.imports.projects.table import IDLE, SECRET
from core.record.workspace import PROJECT

TARGET = PROJECT / "docs" / "onetrainer.md"
HEAD = """# Coming from OneTrainer

Written by `./launch.sh docs` from the table of the importer. [Import settings](coming_from.md) says how a file is opened: a
preset (`#name.json`), a saved config of any version, or a LoRA file with its config in it.

What a file does not state has OneTrainer's default, not Atelier's: 100 epochs, a learning rate of 3e-6, 200 batches of
warmup, alpha 1, a text encoder that trains. The report lists those that differ.

- **Concepts and samples** are read from the preset, or from the files that it names if they are found next to it. A concept
  becomes a folder in *Additional folders*, a sample becomes a line of sample prompts.
- **Steps** of warmup, saves and samples count batches in OneTrainer; they are divided by the gradient accumulation steps.
- **Models** are SD 1.x, 2.x and SDXL with the methods LoRA, fine-tuning and embedding. Presets for others, for inpainting
  models and for the VAE are refused by name.
- **Masks** named `-masklabel` next to the images are used as they are.

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
