"""Two processes started by `accelerate launch` train what one process trains with twice the batch."""

import json
import os
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file

from core.engine.engine import Engine
from core.record.processes import Together
from core.record.workspace import PROJECT, Workspace
from core.settings.presets import dump

LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
QUIET = ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


def launch(job, tmp_path, name, together):
    """Train in processes of their own; returns the finished LoRA's weights and the run's journal."""
    preset = tmp_path / f"{name}.json"
    preset.write_text(json.dumps(dump(job)))
    outputs = tmp_path / name
    words = [str(PROJECT / "webui.py"), "train", str(preset), "--outputs", str(outputs), "--models"]
    command = [sys.executable, *(LAUNCH + QUIET if together else []), *words, str(PROJECT / "models")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, cwd=PROJECT)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    (run,) = (outputs / "runs").iterdir()
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return load_file(run / "checkpoints" / "t.safetensors"), lines


def losses(lines):
    return {
        step: loss
        for line in lines
        if line["kind"] == "steps"
        for step, loss in zip(line["steps"], line["losses"], strict=True)
    }


def test_two_processes_train_like_one_with_twice_the_batch(make_job, tmp_path):
    """20 steps; five pictures of three shapes, so there are short batches, of which one process may have no part."""

    def job(batch):
        dataset = {"folder": str(folder), "resolution": 64, "bucket_reso_steps": 16, "train_batch_size": batch}
        return make_job(
            dataset=dataset,
            optimizer={"learning_rate": 1e-4},
            captions={"caption_dropout_rate": 0.2, "shuffle_caption": True},
            noise={"min_snr_gamma": 5.0, "noise_offset": 0.05},
            schedule={"max_train_steps": 20, "seed": 7, "gradient_accumulation_steps": 2},
        )

    folder = make_job().dataset.folder
    one, alone = launch(job(4), tmp_path, "one", together=False)
    two, both = launch(job(2), tmp_path, "two", together=True)
    assert losses(both) == pytest.approx(losses(alone), rel=1e-5) and len(losses(both)) == 20
    assert one.keys() == two.keys()
    apart = max(float((one[name] - two[name]).abs().max()) for name in one)
    assert apart < 1e-5
    states = [line["state"] for line in both if line["kind"] == "state"]
    assert states == ["running", "done"]  # one process wrote the journal


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("pictures", [0, 1, 2, 7, 10])
def test_the_shares_of_a_batch_are_even_and_nothing_is_lost(count, pictures):
    items = list(range(pictures))
    shares = []
    for rank in range(count):
        process = Together.__new__(Together)
        process.rank, process.count = rank, count
        shares.append(list(process.share(items)))
    assert [item for share in shares for item in share] == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_engine_launches_follows_and_stops_processes_of_its_own(make_job, tmp_path):
    engine = Engine(Workspace(tmp_path / "outputs", PROJECT / "models", tmp_path / "presets"), "cpu")
    memory = {"num_processes": 2}
    try:
        engine.start()
        done = engine.submit("train", make_job(memory=memory, schedule={"max_train_steps": 3, "seed": 7}))
        wait(lambda: state_of(engine, done) not in ("waiting", "running"))
        assert state_of(engine, done) == "done"
        run = next(entry.run for entry in engine.queue() if entry.id == done)
        shown = engine.snapshot(run)
        assert (shown["state"], shown["step"], shown["total"]) == ("done", 3, 3)
        assert (engine.workspace.runs / run / "checkpoints" / "t.safetensors").is_file()

        long = engine.submit("train", make_job(memory=memory, schedule={"max_train_steps": 5000, "seed": 7}))
        wait(lambda: any(run.step > 0 for run in engine.runs() if run.state == "running"))
        engine.cancel(long)
        wait(lambda: state_of(engine, long) not in ("waiting", "running"))
        stopped = next(run for run in engine.runs() if run.state == "stopped")
        assert 0 < stopped.step < 5000 and list(stopped.folder.glob("state/step*/complete.json"))
    finally:
        engine.close(wait_seconds=20)


def state_of(engine, entry_id):
    return next(entry.state for entry in engine.queue() if entry.id == entry_id)


def wait(condition, seconds=200.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)
