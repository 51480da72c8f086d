"""An objective and a sampler that no file of the product knows: form, preset, command line, training, resume, samples."""

import json

import pytest
import torch
from safetensors.torch import load_file

from core.cli.main import subcommand_help
from core.settings.check import build
from core.settings.job import GenerateJob, TrainJob
from core.settings.presets.files import to_values
from tests.training import test_samples_and_generate as again

store = again.store
KIND = {"noise": {"objective": "straight"}}


def test_form_preset_and_command_line_come_from_the_declaration():
    from tabs.form import fields as form

    assert [entry.path for entry in form.groups()["straight"]] == ["straight.late_weight"]
    for path, name in (("noise.objective", "straight"), ("samples.sample_sampler", "line")):
        assert name in [value for _, value in form.choices(form.FIELDS[path])]
    assert "--straight.late_weight" in subcommand_help("train") and "line" in subcommand_help("generate")
    job = build(TrainJob, KIND)
    assert build(TrainJob, json.loads(json.dumps(to_values(job)))) == job
    assert build(GenerateJob, {"generate": {"sampler": "line"}}).generate.sampler == "line"


def test_trains_by_its_own_loss_and_resumes_exactly(train):
    whole, parted, usual = train(**KIND), train(**KIND), train()
    assert whole.start() == usual.start() == "done"
    assert parted.start(stop_at=2) == "stopped" and parted.again().start() == "done"
    tensors = load_file(whole.file())
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in load_file(parted.file()).items())
    assert whole.losses()[1] != usual.losses()[1]


def test_its_weight_counts(train):
    one, none = train(**KIND), train(**KIND, straight={"late_weight": 0.0})
    early = {"noise": {"objective": "straight", "min_timestep": 0, "max_timestep": 400}}
    first, second = train(**early), train(**early, straight={"late_weight": 0.0})
    for training in (one, none, first, second):
        assert training.start() == "done"
    assert first.losses() == pytest.approx(second.losses())
    assert one.losses() != none.losses()


def test_its_sampler_draws_samples_and_generates_them_again(train, store):
    training = again.begin(train, "a fox --d 3 --s 3 --ss line", **KIND)
    again.same_images(training, store, loras=[{"file": str(training.file())}])
