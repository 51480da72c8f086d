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
    from tabs.form.view import choices

    assert [entry.path for entry in form.groups()["straight"]] == [
        "straight.late_weight",
        "straight.logit_normal",
    ]
    for path, name in (("noise.objective", "straight"), ("samples.sample_sampler", "line")):
        assert name in [value for _, value in choices(form.FIELDS[path])]
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


def test_it_draws_its_own_timesteps_as_fractions_of_the_image_alone(train):
    own = {**KIND, "straight": {"logit_normal": True}, "dataset": {"resolution": 64}}
    training = train(**own)
    assert training.start() == "done"
    watched = json.loads((training.folder.path / "watch.json").read_text())
    drawn = sum(band["count"] for band in watched["bands"])
    middle = sum(band["count"] for band in watched["bands"] if 200 <= band["from"] < 800)
    assert drawn > 4 and middle > 0.7 * drawn  # of uniform ones 60% would lie there


def test_what_it_does_not_use_and_samplers_that_do_not_fit_are_said(make_job, workspace):
    from core.settings.rules import ineffective
    from core.training.checks.before_start import problems_with_model

    told = ineffective(build(TrainJob, KIND)).keys()
    unused = {"noise.min_snr_gamma", "noise.noise_offset", "noise.loss_type", "noise.zero_terminal_snr"}
    assert unused <= told and not told & {"noise.min_timestep", "noise.max_timestep"}
    assert not unused & ineffective(build(TrainJob, {})).keys()

    def codes(**samples):
        return [each.code for each in problems_with_model(make_job(**KIND, samples=samples), workspace)]

    assert "sampler.other-objective" in codes(sample_prompts=["a fox"])
    assert "sampler.other-objective" not in codes(sample_prompts=["a fox --ss line"])
    assert "sampler.other-objective" not in codes(sample_prompts=["a fox"], sample_sampler="line")
    assert "sampler.other-objective" not in codes()
