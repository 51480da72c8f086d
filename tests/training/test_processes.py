"""Two processes started by `accelerate launch` train what one process trains with twice the batch."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from core import extensions
from core.cli.main import main
from core.cli.options import commands, split_options
from core.dataset.buckets.batches import PlannedBatch
from core.engine import follow as follow_module
from core.engine import launch as launch_module
from core.engine.extend import job_of
from core.engine.follow import _wait_for_end
from core.networks.frozen import uninstall
from core.record import allowed, journal
from core.record.cancel import CancelToken
from core.record.commands import NoCommands
from core.record.context import JobContext
from core.record.events import Stage, StateChanged
from core.record.journal import Journal, read_lines
from core.record.processes import LAUNCHER_GONE, Together
from core.record.run_folder import RunFolder, newest_state, state_step
from core.record.workspace import PROJECT, Workspace
from core.settings.flags import merge
from core.settings.presets.files import dump, to_values
from core.training.building import setup
from core.training.building.models import Models
from core.training.loop.update import micro_batch
from core.training.start import run_training
from tests.models import tiny_folder

LAUNCH = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
APART = 6e-5  # of weights: what Adam makes of gradients near 0 that are rounded in another order (docs/architecture.md)
QUIET = ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]


def losses(lines):
    return {
        step: loss
        for line in lines
        if line["kind"] == "steps"
        for step, loss in zip(line["steps"], line["losses"], strict=True)
    }


CLIPPED = {
    "optimizer": {"optimizer_type": "SGD", "learning_rate": 1.0, "max_grad_norm": 1e-3},
    "model": {"compatibility": "sd-scripts-0.10"},
    "schedule": {"max_train_steps": 2, "seed": 7, "gradient_accumulation_steps": 2},
}
REST = merge(CLIPPED, {"network": {"train_text_encoder": True}, "optimizer": {"text_encoder_lr": 0.0}})
WORD = merge(
    CLIPPED,
    {
        "method": {"kind": "embedding"},
        "embedding": {"token_string": "zunkel", "init_word": "fox"},
        "captions": {"caption_prefix": "zunkel, ", "max_token_length": 75},
    },
)


CONTROL = {
    "a ControlNet": {"method": {"kind": "controlnet"}, "controlnet": {"control_net_lr": 2e-4}},
    "an LLLite": {"method": {"kind": "lllite"}, "lllite": {"cond_emb_dim": 4, "hidden_dim": 8, "dropout": 0.2}},
}


def controlled(name, images, count, processes):
    """Their images are their control images."""
    own = {"dataset": {"conditioning_data_dir": str(images)}, "schedule": {"max_train_steps": 3}}
    return merge(merge(batches_of(count, processes), CONTROL[name]), own)


def batches_of(count, processes):
    """5 steps; five images of three shapes, so there are short batches, of which one process may have no part."""
    return {
        "dataset": {"train_batch_size": count},
        "optimizer": {"learning_rate": 1e-4},
        "captions": {"caption_dropout_rate": 0.2, "shuffle_caption": True},
        "noise": {"min_snr_gamma": 5.0, "noise_offset": 0.05},
        "schedule": {"max_train_steps": 5, "seed": 7, "gradient_accumulation_steps": 2},
        "memory": {"num_processes": processes},
    }


@pytest.fixture(scope="module")
def together(make_job, images, tmp_path_factory):
    """{name: its run's folder}, all trained by the same two processes."""
    place = tmp_path_factory.mktemp("together")
    cases = {"twice the batch": batches_of(2, 2), "a part at rest": REST, "a new word": WORD}
    cases |= {name: controlled(name, images, 2, 2) for name in CONTROL}
    listed = [{"name": name, "job": to_values(make_job(**groups))} for name, groups in cases.items()]
    (place / "cases.json").write_text(json.dumps(listed))
    command = [sys.executable, *LAUNCH, *QUIET, "-m", "tests.training.sharded_runs", str(place / "cases.json")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, cwd=PROJECT)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return {name: place / name for name in cases}


@pytest.mark.slow
def test_two_processes_train_like_one_with_twice_the_batch(train, together):
    alone, both = train(**batches_of(4, 1)), together["twice the batch"]
    assert alone.start() == "done"
    told = losses(read_lines(both / "events.jsonl"))
    assert told == pytest.approx(alone.losses(), rel=1e-5) and len(told) == 5
    one, two = load_file(alone.file()), load_file(both / "checkpoints" / "t.safetensors")
    assert one.keys() == two.keys()
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < APART
    # The table of losses holds the images of both.
    table, shared = (json.loads((folder / "watch.json").read_text()) for folder in (alone.folder.path, both))
    assert by_image(shared) == pytest.approx(by_image(table), rel=1e-4) and len(by_image(table)) == 5
    assert [band["count"] for band in shared["bands"]] == [band["count"] for band in table["bands"]]


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTROL)
def test_what_follows_control_images_is_trained_alike_by_two_processes(train, together, images, name):
    alone, both = train(**controlled(name, images, 4, 1)), together[name]
    assert alone.start() == "done"
    assert losses(read_lines(both / "events.jsonl")) == pytest.approx(alone.losses(), rel=1e-5)
    one, two = load_file(alone.file()), load_file(both / "checkpoints" / "t.safetensors")
    # a shift of all keys changes no attention: what trains it is rounding, of which Adam makes steps
    apart = {key: float((one[key] - two[key]).abs().max()) for key in one if not key.endswith("attn1_to_k.up.0.bias")}
    assert max(apart.values()) < APART, max(apart, key=apart.get)


def by_image(table):
    return {entry["name"]: entry["corrected"] for entry in table["images"]}


SHARED = {
    "dropouts, captions by chance, text encoders that train": {
        "network": {
            "rank": 2,
            "train_text_encoder": True,
            "network_dropout": 0.3,
            "rank_dropout": 0.3,
            "module_dropout": 0.3,
        },
        "captions": {"caption_dropout_rate": 0.3, "shuffle_caption": True},
    },
    "noise of every kind, losses weighed": {
        "noise": {
            "noise_offset": 0.05,
            "noise_offset_random_strength": True,
            "multires_noise_iterations": 4,
            "ip_noise_gamma": 0.1,
            "ip_noise_gamma_random_strength": True,
            "min_snr_gamma": 5.0,
            "loss_type": "huber",
        }
    },
    "images by chance": {"dataset": {"flip_aug": True, "color_aug": True, "random_crop": True}},
    "a model that keeps its class": {"method": {"kind": "dreambooth", "prior": "model", "class_caption": "a shape"}},
    "a new word": {"method": {"kind": "embedding"}, "embedding": {"token_string": "zunkel", "init_word": "fox"}},
}


@pytest.mark.slow(but=("dropouts, captions by chance, text encoders that train",))
@pytest.mark.parametrize("name", SHARED)
def test_an_image_has_the_same_loss_and_gradient_in_any_share_of_a_batch(
    train, make_job, tiny, tmp_path, in_float64, name
):
    """All that is drawn belongs to the image. What is left is the order of sums, of which float64 shows nothing."""
    groups = merge({"dataset": {"folder": tiny_images(make_job, tmp_path), "train_batch_size": 4}}, SHARED[name])
    training = train(**merge({"model": {"base_model": tiny}}, groups))
    with Journal(training.folder.path) as journal:
        context = JobContext(training.workspace, training.folder, journal, NoCommands(), "cpu")
        built = setup.build_training(training.job, context)
        run = built.run
        try:
            epoch, (batch,) = run.plan.step_batches(1)
            whole, gradient = losses_and_gradient(run, epoch, batch, [batch.items])
            apart, summed = losses_and_gradient(run, epoch, batch, [batch.items[:1], batch.items[1:2], batch.items[2:]])
        finally:
            built.release()
    assert len(whole) == 4
    torch.testing.assert_close(apart, whole, rtol=1e-7, atol=1e-9)
    assert (summed - gradient).norm() < 1e-6 * gradient.norm()


def losses_and_gradient(run, epoch, batch, shares):
    """Of a batch that is computed in parts: losses [B], and the sum of the gradients as one vector."""
    found = []
    run.stepper.optimizer.zero_grad(set_to_none=True)
    for items in shares:
        part = PlannedBatch(batch.bucket, tuple(items))
        run.passes.method.before_micro_batch(1, 0, [(placed.key, repeat) for placed, repeat in items])
        timesteps = [100 + 200 * batch.items.index(item) for item in items]
        losses = micro_batch(run, epoch, part, timesteps)
        losses.sum().backward()
        run.passes.method.after_micro_batch()
        found.append(losses.detach())
    gradients = [weight.grad.flatten() for weight in run.stepper._parameters if weight.grad is not None]
    return torch.cat(found), torch.cat(gradients)


def tiny_images(make_job, tmp_path):
    """Four images of one shape."""
    (tmp_path / "squares").mkdir()
    for path in sorted(Path(make_job().dataset.folder).glob("*.png"))[:4]:
        Image.open(path).convert("RGB").resize((80, 80)).save(tmp_path / "squares" / path.name)
        text = path.with_suffix(".txt").read_text()
        (tmp_path / "squares" / path.with_suffix(".txt").name).write_text(f"zunkel, {text}")
    return str(tmp_path / "squares")


@pytest.fixture
def in_float64(monkeypatch):
    """Trainings compute in float64."""
    load, build = Models.load, setup.build_training

    def widened(models):
        components = load(models)
        for part in (components.denoiser, *components.text_encoders):
            part.double()
        return components

    def built(*given):
        training = build(*given)
        for weight in training.run.stepper._parameters:
            weight.data = weight.data.double()
        if frozen := getattr(training.inputs.method, "_untrained_unet", None):  # packed for float32
            uninstall(frozen)
            frozen.double()
        return training

    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(Models, "load", widened)
    monkeypatch.setattr(setup, "build_training", built)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(tiny_folder("sd1", tmp_path_factory.mktemp("tiny") / "sd1"))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "groups"), [("a part at rest", REST), ("a new word", WORD)])
def test_two_processes_clip_as_sd_scripts_what_one_clips_so(train, together, name, groups):
    """Of a part at rate 0, and of the words that do not train, each process has the gradient of its own images."""
    alone = train(**groups)  # the batches are the same: the script tells the jobs nothing of processes
    assert alone.start() == "done"
    told = [line for line in read_lines(together[name] / "events.jsonl") if line["kind"] == "steps"]
    assert told[-1]["grad_norm"] == pytest.approx(alone.lines("steps")[-1]["grad_norm"], rel=1e-4)
    assert losses(told) == pytest.approx(alone.losses(), rel=1e-5)
    one, two = load_file(alone.file()), load_file(together[name] / "checkpoints" / "t.safetensors")
    assert one.keys() == two.keys()
    assert max(float((one[key] - two[key]).abs().max()) for key in one) < 1e-6  # it moves by up to 1e-3


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("images", [0, 1, 2, 7, 10])
def test_the_shares_of_a_batch_are_even_and_nothing_is_lost(count, images):
    items = list(range(images))
    shares = []
    for rank in range(count):
        process = Together.__new__(Together)
        process.rank, process.count = rank, count
        shares.append(list(process.share(items)))
    assert [item for share in shares for item in share] == items
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.slow
def test_the_command_line_launches_processes_of_its_own_and_ctrl_c_saves(make_job, tmp_path):
    """Ctrl-C in a terminal is heard by all of the command's process group."""
    preset, outputs = tmp_path / "long.json", tmp_path / "outputs"
    preset.write_text(json.dumps(dump(make_job(schedule={"max_train_steps": 5000, "seed": 7}))))
    places = ["--outputs", str(outputs), "--models", str(PROJECT / "models"), "--device", "cpu"]
    words = [sys.executable, str(PROJECT / "webui.py"), "train", str(preset), *places, "--memory.num_processes", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(
        words, env=environment, cwd=PROJECT, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as command:
        wait(lambda: any(losses(read_lines(path)) for path in outputs.glob("runs/*/events.jsonl")))
        below = psutil.Process(command.pid).children(recursive=True)
        assert len(below) == 3, "a launcher and two that train"
        os.killpg(command.pid, signal.SIGINT)
        _, errors = command.communicate(timeout=200)
    assert command.returncode == 130, errors
    (path,) = (outputs / "runs").iterdir()
    folder = RunFolder(path)
    step = max(losses(read_lines(folder.journal_file)))
    assert state_step(newest_state(folder.states)) == step and f"--continue {path.name}" in errors


FAILING = """
import os
import torch

class Fails(torch.optim.SGD):
    def step(self, closure=None):
        if os.environ.get("RANK") == "1":
            raise torch.OutOfMemoryError("CUDA out of memory")
        super().step(closure)
"""


@pytest.mark.slow
def test_what_ended_another_process_is_what_the_run_says(make_job, tmp_path, monkeypatch, capsys):
    """The first one only sees it leave, or is asked to end by the launcher, which must not read as a wish."""
    (tmp_path / "failing.py").write_text(FAILING)
    preset, outputs = tmp_path / "fails.json", tmp_path / "outputs"
    optimizer = {"optimizer_type": "failing.Fails"}
    preset.write_text(json.dumps(dump(make_job(optimizer=optimizer, schedule={"max_train_steps": 50, "seed": 7}))))
    monkeypatch.syspath_prepend(tmp_path)  # of this process, and of those it launches
    for name, value in (("PYTHONPATH", str(tmp_path)), ("CUDA_VISIBLE_DEVICES", "")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(allowed, "_by_flag", set())
    monkeypatch.setattr(extensions, "EXTENSIONS", extensions.EXTENSIONS)
    places = ["--outputs", str(outputs), "--models", str(PROJECT / "models"), "--device", "cpu"]
    more = ["--allow-module", "failing", "--memory.num_processes", "2"]
    try:
        assert main(["train", str(preset), *places, *more]) == 1
    finally:
        sys.modules.pop("failing", None)
    (path,) = (outputs / "runs").iterdir()
    last = [line for line in read_lines(path / "events.jsonl") if line["kind"] == "state"][-1]
    told = "The device ran out of memory (in process 2)"
    assert last["state"] == "failed" and told in last["message"], last
    assert told in capsys.readouterr().err


def test_what_the_launched_are_told(make_job, tmp_path, monkeypatch):
    """A module that was allowed where this process was started is allowed in the others too, and files that a shared page
    keeps closed are closed to them."""
    started, environments = [], []

    def popen(words, env, **more):
        started.append(words)
        environments.append(env)

    monkeypatch.setattr(launch_module.subprocess, "Popen", popen)
    monkeypatch.setattr(allowed, "_open_folders", None)
    monkeypatch.setattr(allowed, "_by_flag", {"my_optimizers"})
    workspace = Workspace(tmp_path / "outputs", PROJECT / "models", tmp_path)
    folder = RunFolder.create(workspace.runs, "t", {})
    launch_module._start(make_job(memory={"num_processes": 2}), folder, workspace, None)
    assert split_options(started[0][started[0].index("train") + 1 :], commands()["train"]).values == {
        "continue": str(folder.path),
        "outputs": str(workspace.outputs),
        "models": str(workspace.models),
        "allow-module": ["my_optimizers"],
    }
    assert allowed.OPEN_FOLDERS not in environments[0]
    allowed.keep_files_inside([tmp_path / "outputs", tmp_path / "models"])
    launch_module._start(make_job(memory={"num_processes": 2}), folder, workspace, None)
    monkeypatch.setattr(allowed, "_open_folders", None)
    monkeypatch.setattr(os, "environ", environments[1])
    main(["--help"])
    assert allowed.may_reach(tmp_path / "models" / "a") and not allowed.may_reach(tmp_path / "a")


def test_a_journal_is_read_once_while_it_is_followed(make_job, tmp_path, monkeypatch):
    """A day's training has 100,000 lines, which take a second to read, and it is looked at three times a second."""
    lines, looks = 50, 40

    class Child:
        returncode, stdin = 0, None

        def poll(self):
            nonlocal looks
            looks -= 1
            return None if looks else 0

    folder = RunFolder.create(tmp_path, "t", {})
    with Journal(folder.path) as written:
        for step in range(lines):
            written.put(Stage(f"step {step}"))
        written.put(StateChanged("running"))
    monkeypatch.setattr(launch_module, "_start", lambda *about: Child())
    monkeypatch.setattr(follow_module, "POLL_SECONDS", 0.0)
    read = []
    monkeypatch.setattr(journal.json, "loads", lambda text, loads=json.loads: read.append(text) or loads(text))
    workspace = Workspace(tmp_path / "outputs", PROJECT / "models", tmp_path)
    launch_module.supervise(make_job(), folder, workspace, "cpu", listener=lambda line: None, token=CancelToken())
    assert len(read) < 5 * lines


def test_a_run_is_told_as_ended_only_when_its_processes_have_let_go(tmp_path):
    holder = RunFolder(tmp_path)
    holder.lock()
    waiting = threading.Thread(target=_wait_for_end, args=(RunFolder(tmp_path),))
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive()
    holder.unlock()
    waiting.join(60)
    assert not waiting.is_alive()


def wait(condition, seconds=200.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.1)


@pytest.mark.slow
def test_processes_whose_launcher_is_killed_end_too_and_the_run_goes_on(make_job, tmp_path):
    saving = {"save_every_n_steps": 1, "save_state": True, "save_last_n_steps": 1}
    job = make_job(schedule={"max_train_steps": 5000, "seed": 7}, saving=saving)
    preset, outputs = tmp_path / "long.json", tmp_path / "outputs"
    preset.write_text(json.dumps(dump(job)))
    words = [str(PROJECT / "webui.py"), "train", str(preset), "--outputs", str(outputs), "--models"]
    command = [sys.executable, *LAUNCH, *QUIET, *words, str(PROJECT / "models")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(
        command, env=environment, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as launcher:
        wait(lambda: list(outputs.glob("runs/*/state/step*/complete.json")))
        workers = psutil.Process(launcher.pid).children()
        assert len(workers) == 2
        launcher.kill()
        assert psutil.wait_procs(workers, timeout=60)[1] == []
        assert LAUNCHER_GONE in launcher.stderr.read()
    (path,) = (outputs / "runs").iterdir()
    folder = RunFolder(path)
    step = state_step(newest_state(folder.states))
    assert step > 0 and not folder.held
    assert folder.job()["memory"]["num_processes"] == 2, "as many as were launched: a batch is that of two"
    with Journal(folder.path) as journal:
        workspace = Workspace(outputs, PROJECT / "models", tmp_path)
        context = JobContext(workspace, folder, journal, NoCommands(), "cpu")
        assert run_training(job_of(folder), context, step + 1) == "stopped"
    assert step + 1 in losses(list(read_lines(folder.journal_file)))
