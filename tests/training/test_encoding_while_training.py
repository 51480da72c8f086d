"""Images are encoded when the first step needs them: nothing of the training depends on when."""

import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from core.families.sd1 import FAMILY as sd1
from core.record.problems import ProblemsError
from core.record.workspace import PROJECT
from core.training.building import latents as building
from core.training.building.texts import Texts
from core.training.loop import train as loop
from core.training.memory import plan as memory
from tests.training.test_memory_plan import job_of, published, short

QUIET = {"validation": {"best_checkpoint": "off"}}
LATE, EARLY = "training; encoding images", "encoding images"
IMAGES = ["images"]


@pytest.fixture
def cold(workspace, tmp_path):
    """cold(): from now on there is no cache."""

    def empty():
        if workspace.cache.is_symlink():  # the one of all tests
            workspace.cache.unlink()
        elif workspace.cache.exists():
            workspace.cache.rename(tmp_path / f"cache of before {len(list(tmp_path.iterdir()))}")

    return empty


@pytest.fixture
def encoded(monkeypatch):
    """The shape of each batch that the VAE encodes."""
    shapes, encode = [], sd1.encode_image_latents

    def noted(vae, pixels):
        shapes.append(tuple(pixels.shape))
        return encode(vae, pixels)

    monkeypatch.setattr(sd1, "encode_image_latents", noted)
    return shapes


@pytest.fixture
def watched(monkeypatch, encoded):
    """Of each step: the images that it shows, how many were encoded when it ended, and whether the VAE was there."""
    steps, update = [], loop.optimizer_update

    def noted(run):
        shown = {placed.key for batch in run.plan.step_batches(run.state.step)[1] for placed, _ in batch.items}
        update(run)
        steps.append(SimpleNamespace(shown=shown, encoded=len(encoded), vae=run.passes.components.vae))

    monkeypatch.setattr(loop, "optimizer_update", noted)
    return steps


def stages(training):
    return [line["text"] for line in training.lines("stage")]


def entries(workspace):
    return {path.name: path.read_bytes() for path in (workspace.cache / "latents").rglob("*.safetensors")}


def test_the_first_step_waits_for_its_own_images_alone(train, cold, watched):
    cold()
    training = train(**QUIET, schedule={"max_train_steps": 3, "seed": 7})
    assert training.start() == "done"
    seen = set()
    for step in watched:
        seen |= step.shown
        assert step.encoded == len(seen)
    assert watched[0].encoded < len(seen) == 5
    assert watched[0].vae is not None and watched[-1].vae is None, "it leaves the memory when all is encoded"
    counted = [(line["done"], line["total"]) for line in training.lines("stage") if line["text"] == LATE]
    assert counted[-1] == (5, 5) and stages(training)[-1] != LATE and EARLY not in stages(training)


@pytest.mark.slow
@pytest.mark.parametrize(("where", "at_once"), [("disk", 1), ("disk", 2), ("memory", 1), ("device", 1)])
def test_losses_weights_and_entries_are_those_of_a_run_that_encodes_first(
    train, workspace, cold, monkeypatch, where, at_once
):
    found = []
    for fits in (True, False):
        cold()
        monkeypatch.setattr(building, "encoders_fit", lambda inputs, late, fits=fits: fits)
        monkeypatch.setattr(Texts, "_encodes_in_steps", lambda self, lacking, fits=fits: fits)
        monkeypatch.setattr("core.training.building.texts.FEW", 0)
        memory = {"cache_latents": where, "vae_batch_size": at_once}
        training = train(dataset={"flip_aug": True}, memory=memory, schedule={"max_train_steps": 8, "seed": 7})
        assert training.start() == "done"
        assert (LATE in stages(training), EARLY in stages(training)) == (fits, not fits)
        assert ("training; encoding captions" in stages(training)) is fits
        found.append((training.losses(), load_file(training.file()), entries(workspace)))
    (losses, weights, late), (same_losses, same_weights, early) = found
    assert losses == same_losses and all(torch.equal(weights[name], same_weights[name]) for name in same_weights)
    assert late.items() <= early.items() and bool(late) is (where == "disk"), "a side that was not shown is not there"


@pytest.mark.slow
def test_a_run_that_stops_and_goes_on_is_the_same_and_encodes_nothing_twice(train, cold, encoded):
    found = []
    for stop_at in (None, 1):
        cold()
        encoded.clear()
        training = train(schedule={"max_train_steps": 4, "seed": 7})
        if stop_at:
            assert training.start(stop_at) == "stopped" and 0 < len(encoded) < 5
            training = training.again()
        assert training.start() == "done"
        found.append((training.losses(), load_file(training.file()), len(encoded)))
    (whole, weights, count), (resumed, same, together) = found
    assert whole == resumed and count == together == 5 and all(torch.equal(weights[name], same[name]) for name in same)


KILLED = """
import os, sys
from pathlib import Path
from core.families.sd1 import FAMILY
from core.record.context import JobContext
from core.record.commands import CommandReader
from core.record.journal import Journal
from core.record.run_folder import RunFolder
from core.record.workspace import PROJECT, Workspace
from core.engine.extend import job_to_resume
from core.training.start import run_training

encode, done = FAMILY.encode_image_latents, []

def encoded(vae, pixels):
    done.append(1)
    if len(done) == 4:
        os._exit(9)
    return encode(vae, pixels)

FAMILY.encode_image_latents = encoded
folder = RunFolder(Path(sys.argv[2]))
workspace = Workspace(Path(sys.argv[1]), PROJECT / "models", PROJECT / "presets")
with Journal(folder.path) as journal:
    run_training(job_to_resume(folder), JobContext(workspace, folder, journal, CommandReader(folder.path)))
"""


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_encodes_finds_what_was_encoded(train, workspace, cold, encoded):
    cold()
    whole = train(schedule={"max_train_steps": 4, "seed": 7})
    assert whole.start() == "done"
    cold()
    training = train(schedule={"max_train_steps": 4, "seed": 7})
    words = [sys.executable, "-c", KILLED, str(workspace.outputs), str(training.folder.path)]
    killed = subprocess.run(words, cwd=PROJECT, capture_output=True, timeout=500, env=os.environ)
    assert killed.returncode == 9, killed.stderr.decode()[-2000:]
    assert len(entries(workspace)) == 3
    encoded.clear()
    again = training.again()
    assert again.start() == "done" and len(encoded) == 2
    assert again.losses() == whole.losses()
    weights, same = load_file(whole.file()), load_file(again.file())
    assert all(torch.equal(weights[name], same[name]) for name in same)


@pytest.mark.slow
def test_an_image_that_breaks_before_its_turn_is_named_with_the_step(train, cold, tmp_path, images):
    cold()
    folder = tmp_path / "own"
    shutil.copytree(images, folder)
    training = train(**QUIET, dataset={"folder": str(folder)})

    def lose_them(line):
        if line["kind"] == "stage" and line["text"] == LATE:
            for path in folder.glob("*.png"):
                path.unlink()

    training.on_line = lose_them
    with pytest.raises(ProblemsError) as caught:
        training.start()
    assert caught.value.codes == ["image.unreadable"] and "(step " in caught.value.problems[0].what


@pytest.mark.slow
def test_samples_between_the_steps_and_the_encoding_share_one_vae(train, cold, watched, monkeypatch):
    loaded, load = [], sd1.load

    def noted(path, *, parts=(), **more):
        loaded.extend(part for part in parts if part == "vae")
        return load(path, parts=parts, **more)

    monkeypatch.setattr(sd1, "load", noted)
    cold()
    prompts = {"sample_prompts": ["a fox"], "sample_steps": 1, "sample_every_n_steps": 1}
    training = train(**QUIET, samples=prompts, schedule={"max_train_steps": 3, "seed": 7})
    assert training.start() == "done" and len(training.lines("sample")) >= 3
    assert loaded == ["vae"] and watched[-1].vae is not None


def test_images_are_encoded_between_the_steps_only_where_the_forecast_says_that_it_fits(monkeypatch):
    job, facts = job_of(), short(published("sd1", 512))
    usual, late = memory.memory_plan(job, facts), memory.memory_plan(job, facts, encoded_in_steps=IMAGES)
    vae = 4 * facts.parts["vae"].numbers
    assert late.weights - usual.weights == vae and late.total >= usual.total + vae
    assert memory.fits_with_encoders(job, facts, late.total, IMAGES)
    assert not memory.fits_with_encoders(job, facts, late.total - 1, IMAGES)
    text = 2 * facts.parts["text_encoder"].numbers
    assert memory.memory_plan(job, facts, encoded_in_steps=["captions", *IMAGES]).weights - late.weights == text
    more = job_of(memory={"mixed_precision": "bf16", "vae_batch_size": 16})
    assert memory.memory_plan(more, facts, encoded_in_steps=IMAGES).activations > late.activations, (
        "so many are encoded at once"
    )
    small = job_of(memory={"mixed_precision": "bf16", "vae_precision": "bf16"})
    assert memory.memory_plan(small, facts, encoded_in_steps=IMAGES).weights - usual.weights == vae // 2


def test_on_a_cpu_with_much_memory_no_pass_is_counted_before_the_first_step(monkeypatch):
    from dataclasses import replace

    facts = replace(short(published("sd1", 256)), device="cpu")
    monkeypatch.setattr(memory, "memory_plan", lambda *given, **more: SimpleNamespace(total=1))
    assert memory.fits_with_encoders(job_of(), facts, 1, IMAGES) and not memory.fits_with_encoders(
        job_of(), facts, 0, IMAGES
    )
    monkeypatch.delattr(memory, "memory_plan")
    assert memory.fits_with_encoders(job_of(), facts, 64 << 30, IMAGES)
