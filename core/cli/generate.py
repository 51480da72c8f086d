"""webui.py generate: draw images without the page. The paths of the images are printed."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path

from core import tasks
from core.cli.jobs import run_job
from core.cli.main import DONE, print_problems
from core.cli.options import OWN, Options, job_from, split_options
from core.cli.train import get_models
from core.engine.owner import Ownership
from core.record.context import Reports
from core.record.problems import ProblemsError
from core.settings.job import GenerateJob


def run(words: list[str]) -> int:
    options = split_options(words, OWN["generate"], task="generate")
    if "prompt" in options.values:
        options.settings += [f"--generate.prompt={options.values['prompt']}"]
    if "from-file" in options.values:
        options.settings += [f"--prompts.from_file={options.values['from-file']}"]
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
    if options.values.get("interactive"):
        return ask(job, options)
    return run_job("generate", job, job.generate.prompt[:60] or "generate", options)


def ask(job: GenerateJob, options: Options) -> int:
    """Images for each prompt that is typed, with its options; what is wrong with one is said, and the next one asked for."""
    from core.generation.model.store import make_store
    from core.generation.run import run_generate

    workspace, store, device = options.workspace(), make_store(), options.device()
    plain = job.prompts.model_copy(update={"from_file": None, "from_module": None})
    owner = Ownership(workspace, "generate --interactive on the command line")
    with ExitStack() as stack:
        stack.callback(owner.release)
        while True:
            try:
                typed = input("Prompt: ").strip()
            except EOFError:
                return DONE
            if not typed:
                continue
            asked = job.model_copy(
                update={"generate": job.generate.model_copy(update={"prompt": typed}), "prompts": plain}
            )
            try:
                run_generate(asked, workspace, store=store, device=device, reports=Said())
            except ProblemsError as error:
                print_problems(error)


class Said(Reports):
    """Prints what is said and the paths of images."""

    def say(self, text: str, level: str = "info", fix: str = "") -> None:
        print(text if level == "info" else f"{level}: {text}", file=sys.stderr)

    def generated(self, path: Path, seed: int) -> None:
        print(path, flush=True)


def lora_use(text: str) -> dict[str, object]:
    """FILE or FILE:STRENGTH; a drive letter's colon is no strength."""
    file, colon, strength = text.rpartition(":")
    try:
        return {"file": file, "strength": float(strength)} if colon and file else {"file": text, "strength": 1.0}
    except ValueError:
        return {"file": text, "strength": 1.0}
