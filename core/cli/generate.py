"""webui.py generate: draw images without the page. The paths of the images are printed."""

from __future__ import annotations

import json

from core import tasks
from core.cli.jobs import run_job
from core.cli.main import DONE
from core.cli.options import OWN, job_from, split_options
from core.cli.train import get_models
from core.settings.job import GenerateJob


def run(words: list[str]) -> int:
    options = split_options(words, OWN["generate"], task="generate")
    if "prompt" in options.values:
        options.settings += [f"--generate.prompt={options.values['prompt']}"]
    if "lora" in options.values:
        options.settings += [f"--generate.loras={json.dumps([lora_use(text) for text in options.values['lora']])}"]
    if "embedding" in options.values:
        options.settings += [f"--generate.embeddings={json.dumps(options.values['embedding'])}"]
    job = job_from("generate", options)
    assert isinstance(job, GenerateJob)
    get_models(job.model, options)
    would = tasks.named("generate").look(job, options.workspace())  # what is wrong is reported before anything begins
    if options.values.get("check"):
        print(would)
        return DONE
    return run_job("generate", job, job.generate.prompt[:60] or "generate", options)


def lora_use(text: str) -> dict[str, object]:
    """FILE or FILE:STRENGTH; a drive letter's colon is no strength."""
    file, colon, strength = text.rpartition(":")
    try:
        return {"file": file, "strength": float(strength)} if colon and file else {"file": text, "strength": 1.0}
    except ValueError:
        return {"file": text, "strength": 1.0}
