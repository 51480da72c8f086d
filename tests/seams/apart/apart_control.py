"""A ControlNet that no file of the product knows: form, preset, command line, queue, training, resume, file, samples."""

import json
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import load_file

from core.cli.main import subcommand_help
from core.dataset.images.pixels import load_pixels
from core.families import family
from core.settings.check import build
from core.settings.flags import merge
from core.settings.job import TrainJob
from core.settings.named import Limits, limit_problems
from core.settings.presets.files import dump, to_values
from core.settings.rules import ineffective, training_problems
from core.tools.models.inspect import inspect
from tests.models import tiny_folder
from tests.training import test_samples_and_generate as again
from tests.training.untrained import distances

KIND = {"method": {"kind": "control"}}


@pytest.fixture(scope="session")
def controls(images, tmp_path_factory):
    """A control image for each image: its negative."""
    folder = tmp_path_factory.mktemp("control")
    for path in images.glob("*.png"):
        ImageOps.invert(Image.open(path).convert("RGB")).save(folder / path.name)
    return folder


@pytest.fixture
def groups(controls):
    """groups(...): those of a training of a ControlNet."""
    return lambda **more: merge(KIND | {"dataset": {"conditioning_data_dir": str(controls)}}, more)


def test_form_preset_and_command_line_come_from_the_declaration():
    from tabs.form import fields as form
    from tabs.form.view import choices

    assert [entry.path for entry in form.groups()["control"]] == ["control.weights", "control.scale"]
    assert "control" in [value for _, value in choices(form.FIELDS["method.kind"])]
    assert "--control.scale" in subcommand_help("train")
    job = build(TrainJob, {**KIND, "control": {"scale": 0.5}})
    assert build(TrainJob, json.loads(json.dumps(to_values(job)))) == job
    assert dump(job)["control"] == {"weights": None, "scale": 0.5}


def test_rules_ask_the_method(groups, make_job):
    def told(**more):
        job = make_job(**more)
        return [each.code for each in training_problems(job)], ineffective(job).keys()

    codes, unused = told(**groups())
    assert "control.no-folder" not in codes
    assert {"network.rank", "dataset.masked_loss", "embedding.token_string", "method.block_lr"} <= unused
    assert not {"dataset.conditioning_data_dir", "memory.fused_backward_pass"} & unused
    assert "control.no-folder" in told(**KIND)[0] and "control.no-folder" not in told()[0]
    assert "control.scale" in told()[1]


def test_what_is_missing_is_named_before_the_start(groups, make_job, workspace, controls, images, tmp_path):
    from core.dataset.preflight import preflight
    from core.training.checks.before_start import problems_before_start

    def codes(**more):
        job = make_job(**groups(**more))
        return Counter(each.code for each in problems_before_start(job, workspace, preflight(job, workspace), "cpu"))

    one = sorted(controls.glob("*.png"))[0]
    shutil.copy(one, tmp_path)
    (tmp_path / "other.txt").write_text("no image")
    unwanted = {"control.missing", "prompts.no-control-image", "prompts.bad-control-image", "control.other-file"}
    assert not unwanted & codes(samples={"sample_prompts": [f"a fox --cn {one}"]}).keys()
    assert "control.missing" in codes(dataset={"conditioning_data_dir": str(tmp_path)})
    assert "prompts.no-control-image" in codes(samples={"sample_prompts": ["a fox"]})
    bad = [f"a fox --cn {tmp_path / name}" for name in ("other.txt", "missing.png")]
    assert codes(samples={"sample_prompts": bad})["prompts.bad-control-image"] == 2
    assert "control.other-file" in codes(control={"weights": str(make_job().model.base_model)})


def test_control_images_of_samples_lie_in_the_open_folders_of_a_shared_page(make_job, workspace):
    limits = Limits.of(workspace)
    inside = f"{workspace.outputs}/a.png"

    def codes(*prompts, file=None, **more):
        job = make_job(**more, samples={"sample_prompts": list(prompts), "sample_prompts_file": file})
        return [each.code for each in limit_problems(job, limits) if each.where.startswith("samples.")]

    assert codes(f"a ../fox --d 3 --cn {inside}", "a fox", **KIND) == []
    for path in ("/etc/a.png", "../a.png", f"{inside}/../../../x.png", "'/etc/a.png'", "~/a.png"):
        assert codes(f"a fox --CN {path} --d 3", **KIND) == ["shared.path-closed"], path
        assert codes(f"a fox --cn {path}") == [], "ignored"
    file = f"{workspace.outputs}/prompts.txt"
    assert codes(file=file, **KIND) == ["shared.prompts-file"] and codes(file=file) == []


def test_it_begins_as_the_model_trains_and_resumes_exactly_and_its_file_is_known(groups, train, workspace):
    two = {"optimizer": {"learning_rate": 1e-3}, "schedule": {"max_train_steps": 2}}
    whole, parted, plain = train(**groups(**two)), train(**groups(**two)), train(**two)
    assert whole.start() == plain.start() == "done"
    assert whole.losses()[1] == pytest.approx(plain.losses()[1], rel=1e-5), "it adds nothing before the first step"
    assert whole.losses()[2] != plain.losses()[2]
    assert parted.start(stop_at=1) == "stopped" and parted.again().start() == "done"
    tensors = load_file(whole.file())
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in load_file(parted.file()).items())
    facts = inspect(whole.file())
    assert (facts["kind"], facts["family"], facts["layout"]) == ("controlnet", "sd1", "diffusers")
    assert facts["tensors"] == len(tensors)
    with safe_open(whole.file(), "pt") as file:
        assert file.metadata()["modelspec.architecture"] == "stable-diffusion-v1/controlnet"


def test_of_sdxl_it_reads_pooled_texts_and_sizes_too(groups, train, images, tmp_path):
    line = f"a fox --d 3 --s 2 --cn {next(images.glob('*.png'))}"
    more = {
        "model": {"base_model": str(tiny_folder("sdxl", tmp_path / "sdxl"))},
        "dataset": {"bucket_reso_steps": 32, "flip_aug": True},
        "schedule": {"max_train_steps": 1},
    }
    training, plain = train(**groups(**more, samples={"sample_prompts": [line]})), train(**more)
    assert training.start() == plain.start() == "done"
    # The others are the control image and without it
    assert sum(line["step"] >= 0 for line in training.lines("sample")) == 2
    assert training.losses()[1] == pytest.approx(plain.losses()[1], rel=1e-5)
    assert inspect(training.file())["family"] == "sdxl"


def test_its_file_is_what_the_next_training_begins_with(groups, train, at_first_step):
    first = train(**groups(schedule={"max_train_steps": 1}))
    assert first.start() == "done"

    def tensors(training):
        return {name: value.clone() for name, value in training.run.passes.method.state_dict().items()}

    begun = at_first_step(tensors, **groups(control={"weights": str(first.file())}))
    saved = load_file(first.file())
    assert begun.keys() == saved.keys() and all(torch.equal(begun[name], saved[name]) for name in saved)


def test_two_control_images_make_two_samples_and_its_file_makes_them_again(groups, train, controls, images):
    """Through the parts of Generate: the model, `denoise` with a control image, `decode`."""
    from core.generation.prompt.sample_prompts import control_image
    from core.generation.sample.canvas import decode
    from core.generation.sample.loop import Denoiser
    from core.networks.frozen import install
    from core.training.loop.samples import prompts_of
    from tests.prompts import encode_prompts
    from tests.sampling import sampled
    from tests.seams.toys.control import _beside
    from tests.training.conftest import STARTER

    name = sorted(path.name for path in images.glob("*.png"))[0]
    lines = [f"a (fox:1.3) --d 3 --s 3 --cn {folder / name}" for folder in (images, controls)]
    samples = {"sample_prompts": lines, "sample_at_first": False}
    training = train(**groups(optimizer={"learning_rate": 0.01}, samples=samples))
    assert training.start() == "done"
    lines = [line for line in training.lines("sample") if line["step"] >= 0]
    shown = [again.pixels(training.folder.path / line["file"]) for line in lines]
    assert len(shown) == 2 and (shown[0] != shown[1]).any()
    model = family("sd1").load(STARTER)
    install(model.denoiser)
    side = _beside(model.denoiser).requires_grad_(False)
    side.net.load_state_dict(load_file(training.file()))

    def predict(noisy, timesteps, given):
        given = replace(given, added=side(noisy, timesteps, given))
        return family("sd1").predict(model, noisy, timesteps, given)

    for prompt, image in zip(prompts_of(training.job, STARTER), shown, strict=True):
        states = encode_prompts(model, prompt.prompt, prompt.negative)
        latents = sampled(
            Denoiser(family("sd1"), predict),
            states,
            seeds=[prompt.seed],
            width=prompt.width,
            height=prompt.height,
            sampler=prompt.sampler,
            steps=prompt.steps,
            guidance_scale=prompt.guidance,
            control=torch.from_numpy(control_image(prompt)),
        )
        np.testing.assert_array_equal(np.asarray(decode(model.vae, latents)[0]), image)


def test_the_untrained_model_is_the_model_without_it(groups, at_first_step):
    changed, same = at_first_step(distances, **groups())
    assert changed > 1e-3 and same == 0


@pytest.mark.parametrize("more", [{"flip_aug": True}, {"flip_aug": True, "random_crop": True}])
def test_a_control_image_is_of_the_view_of_its_image(groups, at_first_step, images, more):
    """With the images themselves as control images."""

    def differ(training):
        latents, (_, batches) = training.run.passes.latents, training.run.plan.step_batches(0)
        batch = latents.batch(0, [(placed, repeat) for placed, _ in batches[0].items for repeat in range(8)])
        assert {view.flip for view in batch.views} == {True, False}
        shown = [
            load_pixels(placed.image.path, view, images=placed.concept.images)
            for (placed, _), view in zip(batch.items, batch.views, strict=True)
        ]
        return np.abs(batch.control.numpy() - (np.stack(shown) + 1) / 2).max()

    with_images = {"conditioning_data_dir": str(images), **more}
    assert at_first_step(differ, **groups(dataset=with_images)) < 1e-6


def test_validation_measures_it_with_the_control_images(groups, train):
    held = {"validation": {"validation_split": 0.4}, "dataset": {"flip_aug": True, "random_crop": True}}
    training = train(**groups(**held, optimizer={"learning_rate": 1e-2}))
    assert training.start() == "done"
    begin, *_, end = training.lines("validated")
    assert begin["loss"] != end["loss"]


def test_the_forecast_counts_it(groups, make_job, workspace, at_first_step):
    from core.settings.methods import spec_of
    from core.training.memory.plan import facts_of, memory_plan

    def of(**more):
        job = make_job(**more)
        return job, facts_of(job, workspace, "cpu"), memory_plan(job, facts_of(job, workspace, "cpu"))

    (job, facts, own), (_, _, whole), (_, _, lora) = of(**groups()), of(method={"kind": "fine_tune"}), of()
    counted = sum(spec_of(job).trained_numbers(job, facts.family, facts.parts).values())
    trains = at_first_step(lambda training: sum(map(torch.numel, training.run.stepper._parameters)), **groups())
    assert counted == trains
    assert lora.optimizer < own.optimizer < whole.optimizer
    assert own.weights > lora.weights and own.gradients == 4 * counted
    assert own.activations > lora.activations, "its pass, and the half of the U-Net that hands gradients to it"
