"""A method that no file of the product knows: form, preset, command line, queue, training, resume, file."""

import json

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from core.cli.main import subcommand_help
from core.engine.engine import Engine
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.presets.files import dump, to_values
from core.settings.rules import ineffective, training_problems
from tests.tabs.work_parts import wait_until

KIND = {"method": {"kind": "biases"}}


def test_form_preset_and_command_line_come_from_the_declaration():
    from tabs.form import fields as form
    from tabs.form.view import choices

    assert [entry.path for entry in form.groups()["biases"]] == ["biases.only"]
    assert "biases" in [value for _, value in choices(form.FIELDS["method.kind"])]
    assert "--biases.only" in subcommand_help("train")
    job = build(TrainJob, {**KIND, "biases": {"only": "conv"}})
    assert build(TrainJob, json.loads(json.dumps(to_values(job)))) == job
    assert dump(job)["biases"] == {"only": "conv"}


def test_rules_ask_the_method():
    job = build(TrainJob, {**KIND, "optimizer": {"learning_rate": 1.0}})
    assert [each.code for each in training_problems(job) if each.where == "optimizer.learning_rate"] == [
        "learning-rate.unusual"
    ]
    assert {"network.rank", "embedding.token_string"} <= ineffective(job).keys()
    assert "biases.only" in ineffective(build(TrainJob, {}))


def test_trains_and_resumes_exactly_and_writes_its_file(train, workspace):
    from core.training.memory.plan import facts_of, memory_plan

    whole, parted = train(**KIND), train(**KIND)
    assert whole.start() == "done"
    assert parted.start(stop_at=2) == "stopped" and parted.again().start() == "done"
    tensors = load_file(whole.file())
    assert tensors and all(name.endswith(".bias") for name in tensors)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in load_file(parted.file()).items())
    with safe_open(whole.file(), "pt") as file:
        assert file.metadata()["modelspec.title"]
    fine_tune = train(method={"kind": "fine_tune"}).job
    small, large = (memory_plan(job, facts_of(job, workspace, "cpu")) for job in (whole.job, fine_tune))
    assert small.optimizer < large.optimizer / 10


def test_goes_through_the_queue(make_job, workspace):
    engine = Engine(workspace, device="cpu")
    engine.start()
    try:
        engine.submit("train", make_job(**KIND | {"schedule": {"max_train_steps": 2}}), "toy")
        wait_until(lambda: all(entry.state not in ("waiting", "running") for entry in engine.queue()), 120)
        assert [entry.state for entry in engine.queue()] == ["done"]
        assert engine.run_job(engine.runs()[0].name).method.kind == "biases"
    finally:
        engine.close()
