"""A network kind that no file of the product knows: form, preset, command line, queue, training, resume, file, generation."""

import json
from types import SimpleNamespace

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from core.cli.main import subcommand_help
from core.engine.engine import Engine
from core.formats.detect import identify
from core.networks.network import Network
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.presets.files import dump, to_values
from tests.tabs.work_parts import wait_until
from tests.training import test_samples_and_generate as again

store = again.store
KIND = {"network": {"kind": "gain"}, "gain": {"start": 0.01}}


def test_form_preset_and_command_line_come_from_the_declaration():
    from tabs.form import fields as form
    from tabs.form.view import choices

    assert [entry.path for entry in form.groups()["gain"]] == ["gain.start"]
    assert "gain" in dict((value, words) for words, value in choices(form.FIELDS["network.kind"]))
    assert "--gain.start" in subcommand_help("train")
    job = build(TrainJob, KIND)
    assert job.gain.start == 0.01
    assert build(TrainJob, json.loads(json.dumps(to_values(job)))) == job
    assert dump(job)["gain"] == {"start": 0.01}


def test_rules_ask_the_kind_what_it_does_not_use_and_which_weights_it_reads():
    from core.settings.rules import ineffective, training_problems

    assert {"network.rank", "network.alpha"} <= ineffective(build(TrainJob, KIND)).keys()
    assert "network.rank" not in ineffective(build(TrainJob, {}))
    for kind, refused in ((KIND, True), ({}, False)):
        job = build(TrainJob, kind | {"sharding": {"deepspeed": True, "zero_stage": 3}})
        assert ("network.needs-weights" in [each.code for each in training_problems(job)]) is refused


def test_weights_that_a_kind_reads_are_not_packed(at_first_step):
    def packed(training):
        return any("_conv_forward" in vars(module) for module in training.run.passes.components.denoiser.modules())

    assert at_first_step(packed) and not at_first_step(packed, **KIND)


def test_trains_and_resumes_exactly_and_its_file_is_read_back(train, workspace):
    whole, parted = train(**KIND), train(**KIND)
    assert whole.start() == "done"
    assert parted.start(stop_at=2) == "stopped" and parted.again().start() == "done"
    tensors = load_file(whole.file())
    assert tensors and all(name.endswith(".gain") for name in tensors)
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in load_file(parted.file()).items())
    assert any((tensor - 0.01).abs().max() > 1e-4 for tensor in tensors.values())
    with safe_open(whole.file(), "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_network_module"] == "tests.seams.toys.gain"
    assert json.loads(metadata["ss_network_args"]) == {"start": "0.01"}
    assert identify(whole.file()).kind == "lora"
    again = train(**KIND | {"network": {"kind": "gain", "network_weights": str(whole.file())}})
    assert again.start() == "done"
    assert load_file(again.file()).keys() == tensors.keys()


def test_weight_norms_and_memory_ask_the_kind(train, workspace):
    from core.training.memory.plan import facts_of, memory_plan

    limited = train(network={"kind": "gain", "scale_weight_norms": 0.05}, gain={"start": 0.5})
    assert limited.start() == "done"
    free = train(network={"kind": "gain"}, gain={"start": 0.5})
    assert free.start() == "done"
    longest, unlimited = (max(gain.abs().max() for gain in load_file(one.file()).values()) for one in (limited, free))
    assert longest < 0.1 < unlimited
    gain, lora = train(**KIND).job, train().job
    small, large = (memory_plan(job, facts_of(job, workspace, "cpu")) for job in (gain, lora))
    assert small != large


def test_goes_through_the_queue(make_job, workspace):
    engine = Engine(workspace, device="cpu")
    engine.start()
    try:
        engine.submit("train", make_job(**KIND | {"schedule": {"max_train_steps": 2}}), "toy")
        wait_until(lambda: all(entry.state not in ("waiting", "running") for entry in engine.queue()), 120)
        assert [entry.state for entry in engine.queue()] == ["done"]
        run = engine.runs()[0]
        assert engine.run_job(run.name).gain.start == 0.01
    finally:
        engine.close()


def test_a_sample_of_its_training_is_generated_again_from_its_file(train, store):
    training = again.begin(train, "a (fox:1.3) --d 3 --s 3", **KIND, optimizer={"learning_rate": 0.1})
    again.same_images(training, store, loras=[{"file": str(training.file())}])


def test_merging_it_equals_attaching_it(make_job):
    """As the training's network options merge a LoRA into the base model."""
    module = torch.nn.Conv2d(3, 8, 3)
    target = SimpleNamespace(name="lora_unet_conv_in", module=module, parent=None)
    network = Network.from_tensors({"lora_unet_conv_in.gain": torch.linspace(-0.5, 0.5, 8)}, [target])
    images = torch.randn(2, 3, 8, 8)
    network.attach()
    changed = module(images)
    network.detach()
    network.merge_to()
    torch.testing.assert_close(module(images), changed)
