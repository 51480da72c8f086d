"""Stop and save at awkward moments: nothing that was trained is lost, nothing is waited for in vain."""

import errno
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from core.formats import hashes
from core.formats.tensors.writer import save_pickle
from core.record.cancel import Cancelled
from core.settings.dataset.validation import ValidationSettings
from core.settings.job import TrainJob
from core.settings.samples import SampleSettings
from core.settings.saving import SavingSettings
from core.training.loop.loss_readback import MOST_OVERFLOWS, LossBuffer, StepRecord
from core.training.loop.stepper import Stepper
from core.training.loop.timetable import Timetable
from core.training.loop.trackers import make_tracker
from core.training.loop.train import run_commands
from core.training.saving.checkpoints import save_steps


def stop_when(training, wanted):
    """Cancel the run at the first journal line for which `wanted` holds."""

    def look(line):
        if wanted(line):
            training.token.cancel()

    training.on_line = look


def test_a_stop_saves_also_when_the_model_file_was_never_hashed(train, monkeypatch, tmp_path):
    model = tmp_path / "model.safetensors"
    model.write_bytes(b"x" * 100)
    monkeypatch.setattr(
        "core.training.saving.facts.model_hashes",
        lambda path, memo=None, cancel=None: hashes.model_hashes(model, memo, cancel),
    )
    monkeypatch.setattr("core.training.loop.loss_readback.EVENT_SECONDS", 0.0)
    training = train()
    stop_when(training, lambda line: line["kind"] == "steps")
    assert training.start() == "stopped"
    step = max(training.losses())
    assert training.file(f"t-step{step:08d}.safetensors").is_file()
    assert training.lines("backed_up")[-1]["step"] == step


@pytest.mark.slow
def test_a_stop_is_heard_while_samples_are_drawn(train):
    training = train(samples={"sample_prompts": ["a fox", "a bear", "a cat"], "sample_steps": 2})
    stop_when(training, lambda line: line["kind"] == "sample")
    assert training.start() == "stopped"
    assert len(training.lines("sample")) == 1 and not training.lines("steps")
    assert training.again().start() == "done", "a run that was stopped before its first step begins anew"


@pytest.mark.slow
def test_continuing_a_finished_run_writes_nothing_again(train, tmp_path):
    training = train(saving={"output_name": "t", "copy_to": str(tmp_path / "copies")}, schedule={"max_train_steps": 1})
    assert training.start() == "done"
    assert training.again().start() == "done"
    assert len(training.lines("saved")) == 1 and len(list((tmp_path / "copies").iterdir())) == 1


def test_resume_pressed_in_the_same_step_as_pause_resumes():
    said, done = [], []
    batches = iter([["pause", "save", "resume", "sample"]])
    tasks = SimpleNamespace(
        back_up=lambda: done.append("back up"),
        save_now=lambda: done.append("save"),
        sample_now=lambda: done.append("sample"),
    )
    context = SimpleNamespace(
        take_commands=lambda: next(batches), journal=SimpleNamespace(put=lambda event: said.append(event.state))
    )
    run_commands(SimpleNamespace(context=context, state=SimpleNamespace(step=3), stop_wanted=False), tasks)
    assert said == ["paused", "running"] and done == ["back up", "save", "sample"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_an_os_error_when_a_state_is_written():
    with pytest.raises(OSError) as caught:
        save_pickle({"weights": torch.zeros(1 << 20)}, Path("/dev/full"))
    assert caught.value.errno == errno.ENOSPC


def test_a_tracker_that_cannot_write_is_said_once_and_ends_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    said = []
    tracker = make_tracker(TrainJob(), tmp_path / "file" / "logs", lambda text, level: said.append(level))
    for step in range(3):
        tracker.add("loss", 1.0, step)
    tracker.close()
    assert said == ["warning"]


def test_gradients_that_overflow_for_ever_end_a_run_with_scaled_losses():
    def record(step, norm):
        return StepRecord(step, torch.tensor(1.0), torch.tensor(norm), ["a.png"], [5])

    buffer = LossBuffer(scaled=True)
    for step in range(1, MOST_OVERFLOWS + 1):
        buffer.put(record(step, float("inf")))
    assert buffer.read().end is None, "the scaler's first steps are no fault"
    buffer.put(record(51, float("nan")))
    assert "gradient of step 51" in str(buffer.read().end)


def test_more_even_saves_than_steps_are_one_a_step(tmp_path):
    settings = SavingSettings(save_n_evenly=10**15)
    run = SimpleNamespace(
        job=SimpleNamespace(saving=settings, samples=SampleSettings(), validation=ValidationSettings()),
        total=4,
        plan=None,
        state=None,
        context=SimpleNamespace(folder=SimpleNamespace(journal_file=tmp_path / "journal.jsonl")),
    )
    validation = SimpleNamespace(holds_out_images=True, ranks_checkpoints=False, unmeasured_saves=frozenset())
    assert Timetable(run, None, None, validation, None)._planned_saves == dict.fromkeys([1, 2, 3], ("step",))
    assert save_steps(settings, run.plan, run.total) == [1, 2, 3, 4]


def test_a_stop_is_heard_while_captions_are_encoded(train, images, tmp_path):
    """Thousands of captions take minutes on a CPU."""
    folder = tmp_path / "glyphs"
    shutil.copytree(images, folder)
    for path in folder.glob("*.txt"):
        path.write_text(f"never encoded before {path.stem} {tmp_path}")
    training = train(dataset={"folder": str(folder), "resolution": 64, "bucket_reso_steps": 16})
    stop_when(training, lambda line: line["kind"] == "stage" and line["text"] == "encoding captions")
    with pytest.raises(Cancelled):
        training.start()
    assert not any(line["text"] == "loading the model" for line in training.lines("stage"))


@pytest.mark.slow
def test_a_run_that_cannot_be_attach_leaves_the_process_as_it_was(train, monkeypatch):
    """The next job of the same process would find torch.compile's limits, and the steps within the backward pass."""
    left = []
    compiled = SimpleNamespace(release=lambda: left.append("compiled"))
    monkeypatch.setattr("core.training.building.setup.compile_blocks", lambda inputs, unet: compiled)
    release = Stepper.release
    monkeypatch.setattr(Stepper, "release", lambda stepper: (left.append("stepper"), release(stepper)))
    monkeypatch.setattr("core.training.building.setup.objective_of", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train().start()
    assert left == ["stepper", "compiled"]
