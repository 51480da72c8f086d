"""webui.py generate: generate images without the page, and print their paths."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from core import tasks
from core.cli.jobs import run_job
from core.cli.main import DONE, print_problems
from core.cli.options import COMMAND_OPTIONS, Options, job_from, split_options
from core.cli.train import download_models, print_advice
from core.dataset.captions.words import word_pattern
from core.engine.owner import Ownership
from core.generation.plan.idle import idle_settings
from core.record.context import Reports
from core.record.problems import Problem, ProblemsError
from core.record.workspace import Workspace, display_path
from core.settings.job import GenerateJob
from core.settings.needs import no_effect


def run(argv: list[str]) -> int:
    """Run `webui.py generate` with these arguments and return the exit code. Raises ProblemsError."""
    options = split_options(argv, COMMAND_OPTIONS["generate"], task="generate")
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
    download_models(job.model, options)
    plan = tasks.named("generate").check_job(job, options.workspace())  # errors are reported before anything begins
    print_advice([*no_effect(job, idle_settings(job)), *_unchosen_embeddings(job, options.workspace())])
    if options.values.get("check"):
        print(plan)
        return DONE
    if options.values.get("interactive"):
        return prompt_loop(job, options)
    return run_job("generate", job, job.generate.prompt[:60] or "generate", options)


def _unchosen_embeddings(job: GenerateJob, workspace: Workspace) -> Iterator[Problem]:
    """Yield advice on embeddings of runs whose token is in a prompt although they are not chosen, so it is read as text.

    Embeddings under models/ are used without being chosen.
    """
    from core.generation.model.embeddings import find_embeddings
    from core.generation.model.library import embeddings_of_runs, named_embeddings
    from core.generation.plan.hooks import prompts_of

    texts = prompts_of(job)
    chosen = [
        word for text in job.generate.embeddings for each in find_embeddings(text, workspace) for word in each.names
    ]
    used = {word.casefold() for word in (*chosen, *(name for name, *_ in named_embeddings(texts, workspace)))}
    for token, path in embeddings_of_runs(workspace).items():
        if token.casefold() not in used and word_pattern([token]).search("\n".join(texts)):
            what = f"'{token}' is the embedding of a run that is not chosen, and is read as text"
            fix = f'add --embedding "{display_path(path)}"'
            yield Problem(what, "generate.prompt", fix, "advice", code="prompt.unchosen-embedding")


def prompt_loop(job: GenerateJob, options: Options) -> int:
    """Ask for prompts until the input ends, and generate the images of each; print problems with a prompt. Return the exit code. Raises
    ProblemsError if the outputs folder is in use."""
    from core.generation.model.store import make_store
    from core.generation.run import run_generate

    workspace, store, device = options.workspace(), make_store(), options.device()
    no_files = {"from_file": None, "from_module": None}
    with Ownership(workspace, "generate --interactive on the command line"):
        while True:
            try:
                typed = input("Prompt: ").strip()
            except EOFError:
                return DONE
            if not typed:
                continue
            prompted = job.with_settings(generate={"prompt": typed}, prompts=no_files)
            try:
                run_generate(prompted, workspace, store=store, device=device, reports=PrintedReports())
            except ProblemsError as error:
                print_problems(error)


class PrintedReports(Reports):
    """Reports of a generation: messages go to stderr, paths of images to stdout."""

    def say(self, text: str, level: str = "info", fix: str = "", code: str = "") -> None:
        print(text if level == "info" else f"{level}: {text}", file=sys.stderr)

    def generated(self, path: Path, seed: int) -> None:
        print(path, flush=True)


def lora_use(text: str) -> dict[str, object]:
    r"""Parse FILE or FILE:STRENGTH (default 1) of --lora into an item of `generate.loras`. C:\FILE has no strength."""
    file, colon, strength = text.rpartition(":")
    try:
        return {"file": file, "strength": float(strength)} if colon and file else {"file": text, "strength": 1.0}
    except ValueError:
        return {"file": text, "strength": 1.0}
