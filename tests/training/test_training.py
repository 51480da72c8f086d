"""Whole trainings on the starter: what they leave, resuming bit for bit, and what they do when things go wrong."""

import errno
import json
from contextlib import suppress

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from core.record import atomic, commands
from core.record.cancel import Cancelled
from core.record.problems import ProblemsError
from core.record.run_folder import newest_state
from core.training.loop.stepper import Stepper
from core.training.saving.checkpoints import Checkpoints
from core.training.saving.states import States
from tests.refusals import refused


def weights(path):
    return load_file(path)


def assert_same_weights(a, b):
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


def test_a_training_leaves_a_file_a_state_and_a_journal(train):
    training = train(samples={"sample_prompts": ["a fox, glyph style"], "sample_steps": 2, "sample_every_n_steps": 2})
    assert training.start() == "done"
    assert sorted(training.losses()) == [1, 2, 3, 4]
    assert [line["step"] for line in training.lines("sample")] == [0, 2, 4], "the base model's image comes first"
    assert all((training.folder.path / line["file"]).is_file() for line in training.lines("sample"))
    assert newest_state(training.folder.states).name == "step00000004"
    assert len(json.loads(training.folder.dataset_file.read_text())) >= 1
    (memory,) = training.lines("memory")
    assert memory["peak_bytes"] > 100 << 20 and memory["device"] == "cpu", "resident, with torch and a model in it"
    with safe_open(training.file(), "pt") as file:
        metadata, names = file.metadata(), list(file.keys())
    assert metadata["ss_network_dim"] == "4" and metadata["ss_steps"] == "4" and metadata["sshs_model_hash"]
    assert metadata["ss_seed"] == "7" and "modelspec.architecture" in metadata
    assert all(name.startswith("lora_unet_") for name in names)
    ups = [tensor for name, tensor in weights(training.file()).items() if name.endswith("lora_up.weight")]
    assert all(bool(up.abs().sum() > 0) for up in ups), "every module has trained something"


@pytest.mark.slow
def test_the_finished_file_is_copied_and_never_over_another(train, tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "t.safetensors").write_text("mine")
    training = train(saving={"copy_to": str(folder)}, schedule={"max_train_steps": 1})
    training.start()
    assert (folder / "t.safetensors").read_text() == "mine"
    assert (folder / "t-2.safetensors").read_bytes() == training.file().read_bytes()


@pytest.mark.slow
def test_commands_pause_save_sample_resume_and_stop(train):
    training = train(
        schedule={"max_train_steps": 500, "seed": 7},
        samples={"sample_prompts": ["a fox"], "sample_steps": 1, "sample_at_first": False},
    )
    order = iter(["save", "sample", "pause", "resume", "stop"])
    waiting_for = {"save": "saved", "sample": "sample", "pause": "state", "resume": "state"}
    asked = []

    def drive(line):
        if (not asked and line["kind"] == "steps") or (asked and line["kind"] == waiting_for.get(asked[-1])):
            asked.append(next(order))
            commands.send(training.folder.path, asked[-1])

    training.on_line = drive
    assert training.start() == "stopped"
    assert asked == ["save", "sample", "pause", "resume", "stop"]
    states = [line["state"] for line in training.lines("state")]
    assert states == ["paused", "running"]
    assert len(training.lines("sample")) == 1
    assert len(list(training.folder.checkpoints.iterdir())) >= 1 and newest_state(training.folder.states) is not None


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_before_the_update_and_names_the_images(train, monkeypatch):
    import core.training.loop.passes as passes

    training = train(schedule={"max_train_steps": 50, "seed": 7}, saving={"output_name": "t", "save_every_n_steps": 2})
    real, calls = passes.training_loss, []

    def poisoned(*arguments, **named):
        calls.append(1)
        loss = real(*arguments, **named)
        return loss * float("nan") if len(calls) == 4 else loss

    monkeypatch.setattr(passes, "training_loss", poisoned)
    with pytest.raises(ProblemsError) as caught:
        training.start()
    problem = caught.value.problems[0]
    assert problem.code == "training.not-finite" and "of step 4 " in problem.what
    assert ".png" in problem.where and "timesteps" in problem.where
    monkeypatch.setattr(passes, "training_loss", real)
    whole = train(schedule={"max_train_steps": 2, "seed": 7})
    whole.start()
    assert_same_weights(training.file("t-step00000002.safetensors"), whole.file())
    assert newest_state(training.folder.states).name == "step00000002"


@pytest.mark.slow
def test_no_update_follows_a_loss_that_is_no_number_even_before_the_host_has_read_it(train, monkeypatch):
    import core.training.loop.passes as passes

    monkeypatch.setattr("core.training.loop.loss_readback.EVENT_SECONDS", 1e9)
    monkeypatch.setattr("core.training.loop.loss_readback.MOST_WAITING", 4)
    real, calls, seen = passes.training_loss, [], []
    training = train(schedule={"max_train_steps": 50, "seed": 7})

    def poisoned(*arguments, **named):
        calls.append(1)
        loss = real(*arguments, **named)
        return loss * float("nan") if len(calls) == 2 else loss

    real_step = Stepper.step

    def watched(stepper, loss):
        before = [parameter.detach().clone() for parameter in stepper._parameters]
        norm = real_step(stepper, loss)
        seen.append(all(torch.equal(a, b) for a, b in zip(before, stepper._parameters, strict=True)))
        return norm

    monkeypatch.setattr(passes, "training_loss", poisoned)
    monkeypatch.setattr(Stepper, "step", watched)
    with refused("training.not-finite", "of step 2 "):
        training.start()
    assert seen == [False, True, True, True], "step 1 moved the weights, step 2 and those after it did not"


@pytest.mark.slow
def test_some_steps_may_fail_when_that_was_asked_for_and_the_next_ends_the_run(train, monkeypatch):
    import core.training.loop.passes as passes

    real, calls, seen = passes.training_loss, [], []

    def poisoned(*arguments, **named):
        calls.append(1)
        loss = real(*arguments, **named)
        return loss * float("nan") if len(calls) in (2, 4, 6) else loss

    real_step = Stepper.step

    def watched(stepper, loss):
        before = [parameter.detach().clone() for parameter in stepper._parameters]
        norm = real_step(stepper, loss)
        seen.append(all(torch.equal(a, b) for a, b in zip(before, stepper._parameters, strict=True)))
        return norm

    monkeypatch.setattr(passes, "training_loss", poisoned)
    monkeypatch.setattr(Stepper, "step", watched)
    training = train(schedule={"max_train_steps": 8, "seed": 7, "skip_non_finite": 2})
    with refused("training.not-finite", "of step 6 "):
        training.start()
    assert seen[:6] == [False, True, False, True, False, True]
    told = [line["text"] for line in training.lines("log") if line["text"].startswith("Skipped")]
    assert ["step 2" in told[0], "step 4" in told[1], ".png" in told[0]] == [True, True, True] and len(told) == 2
    assert 2 not in training.losses() and 3 in training.losses()


@pytest.mark.slow
def test_a_full_disk_is_said_and_leaves_what_was_saved_before(train, monkeypatch):
    training = train(schedule={"max_train_steps": 6, "seed": 7}, saving={"output_name": "t", "save_every_n_steps": 2})
    real = atomic.sync_file

    def full(path):
        if "state" not in str(path) and len(training.lines("saved")) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path)

    monkeypatch.setattr(atomic, "sync_file", full)
    with suppress(OSError):
        training.start()
    said = [line for line in training.lines("log") if line["level"] == "error"]
    assert said[0]["text"].startswith("The disk is full; the checkpoint of step 4 was not saved")
    assert said[0]["fix"].startswith("free some space and ")
    assert weights(training.file("t-step00000002.safetensors"))
    assert not list(training.folder.checkpoints.glob(".tmp*"))


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(OSError(errno.ENOSPC, "full"), marks=pytest.mark.slow),
        ProblemsError.one("No space", "x", "free some", "disk.full"),
    ],
)
def test_a_checkpoint_on_the_way_that_cannot_be_written_ends_no_training(train, monkeypatch, error):
    """Whole models ask for the space before they write: that is a problem with words of its own."""
    training = train(schedule={"max_train_steps": 3, "seed": 7}, saving={"output_name": "t", "save_every_n_steps": 1})
    real = Checkpoints.write

    def full(self, name, step, final=False):
        if step == 1:
            raise error
        return real(self, name, step, final)

    monkeypatch.setattr(Checkpoints, "write", full)
    assert training.start() == "done"
    assert [line["step"] for line in training.lines("saved")] == [2, 3]
    (said,) = (line for line in training.lines("log") if line["level"] == "error")
    assert "checkpoint of step 1" in said["text"] and "tries again" in said["fix"]


def test_a_file_that_cannot_be_removed_takes_nothing_from_what_was_saved(train, monkeypatch):
    def held(self):
        raise PermissionError(errno.EACCES, "in use", "old.pt")

    monkeypatch.setattr(States, "remove_old", held)
    training = train(schedule={"max_train_steps": 2, "seed": 7}, saving={"output_name": "t", "save_state": True})
    assert training.start() == "done"
    assert training.lines("backed_up") and newest_state(training.folder.states).name == "step00000002"
    assert any("old.pt" in line["text"] for line in training.lines("log") if line["level"] == "warning")


@pytest.mark.slow
def test_an_empty_seed_is_drawn_recorded_and_found_again(train):
    training = train(schedule={"max_train_steps": 2})
    training.job = training.job.with_settings(schedule={"seed": None})
    training.start()
    recorded = training.folder.job()["schedule"]["seed"]
    assert isinstance(recorded, int)
    with safe_open(training.file(), "pt") as file:
        assert file.metadata()["ss_seed"] == str(recorded)


def test_a_stop_while_images_are_encoded_is_a_cancel(train):
    training = train()
    training.token.cancel()
    with pytest.raises(Cancelled):
        training.start()


@pytest.mark.slow
def test_a_part_with_a_rate_of_0_is_saved_as_it_was(train):
    training = train(
        network={"rank": 4, "alpha": 4.0, "train_text_encoder": True},
        optimizer={"learning_rate": 1e-3, "text_encoder_lr": 0.0},
        schedule={"max_train_steps": 1},
    )
    training.start()
    tensors = weights(training.file())
    ups = {name: tensor for name, tensor in tensors.items() if name.endswith("lora_up.weight")}
    text = [tensor for name, tensor in ups.items() if name.startswith("lora_te_")]
    unet = [tensor for name, tensor in ups.items() if name.startswith("lora_unet_")]
    assert text and not any(bool(up.any()) for up in text), "a fresh up is zero"
    assert all(bool(up.abs().sum() > 0) for up in unet)


@pytest.mark.slow
def test_a_changed_dataset_is_said_when_a_run_continues(train, tmp_path, images):
    import shutil

    folder = tmp_path / "own"
    shutil.copytree(images, folder)
    training = train(dataset={"folder": str(folder)}, schedule={"max_train_steps": 1})
    training.start()
    next(folder.glob("*.txt")).write_text("changed")
    training.again().start()
    assert any("changed since this run started" in line["text"] for line in training.lines("log"))


@pytest.mark.slow
def test_prepare_fills_the_caches_that_training_uses_and_writes_a_list_for_other_programs(train, tmp_path):
    from core.record.commands import CommandReader
    from core.record.context import JobContext
    from core.record.journal import Journal
    from core.settings.job import PrepareJob, PrepareSettings
    from core.training.start import prepare_caches

    training = train(dataset={"resolution": 80, "bucket_reso_steps": 16, "folder": train().job.dataset.folder})
    with Journal(training.folder.path) as journal:
        context = JobContext(training.workspace, training.folder, journal, CommandReader(training.folder.path))
        groups = {name: getattr(training.job, name) for name in type(training.job).model_fields}
        job = PrepareJob(**groups, prepare=PrepareSettings(write_metadata=str(tmp_path / "meta.json")))
        assert prepare_caches(job, context).state == "done"
    said = json.loads((tmp_path / "meta.json").read_text("utf-8"))
    assert len(said) == 5 and all(entry["tags"] and entry["train_resolution"] for entry in said.values())
    prepared = len(training.lines("stage"))
    training.start()
    stages = [line["text"] for line in training.lines("stage")[prepared:]]
    assert not any("encoding images" in each for each in stages)
    assert "loading the VAE" not in stages and "loading the text encoder" not in stages


@pytest.mark.slow
def test_training_is_said_again_after_the_captions_of_a_later_epoch_were_encoded(train):
    training = train(
        captions={"shuffle_caption": True, "caption_suffix": ", a, b, c, d, e, f"},
        schedule={"max_train_steps": 6, "seed": 11},
    )
    assert training.start() == "done"
    stages = [line["text"] for line in training.lines("stage")]
    later = stages[stages.index("training") + 1 :]
    encoded = later[later.index("loading the text encoder") + 1 :]
    assert encoded[:2] == ["training; encoding captions", "training"], "the second epoch shuffles anew"


def test_training_is_said_again_after_the_first_step_loaded_the_vae_for_images_without_a_cache(train):
    training = train(memory={"cache_latents": "off"}, schedule={"max_train_steps": 2})
    assert training.start() == "done"
    stages = [line["text"] for line in training.lines("stage")]
    assert stages[stages.index("loading the VAE") + 1] == "training"


def test_a_run_folder_that_is_renamed_while_it_trains_is_named_once(train):
    training = train(schedule={"max_train_steps": 2}, saving={"save_every_n_steps": 1})
    training.folder.lock()
    elsewhere = training.folder.path.with_name("elsewhere")
    training.on_line = lambda line: (
        training.folder.path.rename(elsewhere) if line["kind"] == "saved" and not elsewhere.exists() else None
    )
    assert training.start() == "done"
    training.folder.unlock()
    assert [line["code"] for line in training.lines("log")].count("run.folder-moved") == 1
    assert training.file().is_file() and len([*(elsewhere / "checkpoints").iterdir()]) == 1
