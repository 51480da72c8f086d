"""Hostile model files given to the commands that take one: each ends in its exit code with what is wrong in words."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

from core import tasks
from core.record.workspace import PROJECT
from tests.hostile.model_files import PICKLES, SAFETENSORS, Readers

STARTER = PROJECT / "models" / "starter"
_SMALL = ["--dataset.resolution", "64", "--dataset.bucket_reso_steps", "16", "--logging.log_with", "none"]


def make(folder: Path, case: int) -> Path:
    return (SAFETENSORS, PICKLES)[case % 2](folder, case // 2)


def readers() -> Readers:
    def train(*words: str) -> Callable[[Path], None]:
        given = ["train", "--dataset.folder", str(STARTER / "images"), *_SMALL, "--check"]
        return lambda path: run(path, *given, *(word.format(path) for word in words))

    def command(*words: str) -> Callable[[Path], None]:
        return lambda path: run(path, *(word.format(path) for word in words))

    def tool(name: str) -> Callable[[Path], None]:
        """Without the engine, which tidies the memory of the whole process around each job."""
        from core.record.workspace import Workspace
        from tests.tasks import surroundings

        task = tasks.named(name)
        return lambda path: task.start(
            task.job.model_validate({name: {"file": str(path)}}), surroundings(Workspace(outputs=path.parent / "out"))
        )

    starter = ("--model.base_model", str(STARTER))
    return {
        "train a model": train("--model.base_model", "{}"),
        "train with a VAE": train(*starter, "--model.vae", "{}"),
        "train from a LoRA": train(*starter, "--network.network_weights", "{}"),
        "train from an embedding": train(*starter, "--method.kind", "embedding", "--embedding.embedding_weights", "{}"),
        "generate with a model": command("generate", "--check", "--prompt", "a", "--model.base_model", "{}"),
        "generate with a LoRA": command("generate", "--check", "--prompt", "a", *starter, "--lora", "{}"),
        "generate with an embedding": command("generate", "--check", "--prompt", "a", *starter, "--embedding", "{}"),
        "inspect": tool("inspect"),
        "metadata": tool("edit_metadata"),
        "hashes": tool("hashes"),
        "check weights": tool("check_weights"),
        "singular values": tool("singular_values"),
        "convert": tool("convert_lora"),
    }


def run(path: Path, *words: str) -> None:
    from core.cli.main import BAD_INPUT, DONE, FAILED, main

    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        code = main([*words, "--outputs", str(path.parent / "outputs")])
    text = said.getvalue()
    assert code in (DONE, BAD_INPUT, FAILED), code
    assert "Traceback" not in text and "unexpected error" not in text, text[-600:]
    assert "Warning:" not in text, text[:600]
    assert code == DONE or "fix:" in text, text[-600:]
    assert len(text) < 20_000, f"{len(text)} letters: {text[:300]}"


FAMILIES = {"command line": (make, readers)}
