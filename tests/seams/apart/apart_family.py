"""A family that no file of the product knows, of another shape: no U-Net, 8 latent channels, flow matching."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from core.cli.main import subcommand_help
from core.families import family
from core.families.locate import family_of
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.presets.files import to_values
from core.training.memory.plan import facts_of, memory_plan


@pytest.fixture
def model(tmp_path):
    from tests.seams.toys.linear_family import write_model

    return {"model": {"base_model": str(write_model(tmp_path / "linear.safetensors"))}}


def test_form_preset_and_command_line_know_it():
    from tabs.form import fields as form
    from tabs.form.view import choices

    assert "linear" in [value for _, value in choices(form.FIELDS["model.family"])]
    assert "linear" in subcommand_help("train")
    job = build(TrainJob, {"model": {"family": "linear"}})
    assert build(TrainJob, json.loads(json.dumps(to_values(job)))) == job


def test_its_file_is_recognized_and_its_memory_foretold(model, make_job, workspace):
    job = make_job(**model)
    assert family_of(job.model.base_model) == "linear"
    plan = memory_plan(job, facts_of(job, workspace, "cpu"))
    assert 0 < plan.total < memory_plan(make_job(), facts_of(make_job(), workspace, "cpu")).total


def test_a_lora_trains_resumes_exactly_and_shows_samples(model, train):
    groups = model | {"samples": {"sample_prompts": ["a fox --s 2 --d 3 --ss line"], "sample_at_first": False}}
    whole, parted = train(**groups), train(**groups)
    assert whole.start() == "done"
    assert parted.start(stop_at=2) == "stopped" and parted.again().start() == "done"
    tensors = load_file(whole.file())
    assert {name.partition(".")[0] for name in tensors} == {"lora_unet_into", "lora_unet_text", "lora_unet_out"}
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in load_file(parted.file()).items())
    with safe_open(whole.file(), "pt") as file:
        assert file.metadata()["ss_base_model_version"] == "linear"
    (sample,) = {line["file"] for line in whole.lines("sample") if line["step"] == 4}
    assert (whole.folder.path / sample).stat().st_size > 500


def test_its_objective_is_its_own(model, train):
    """The first loss is that of the straight line at the base model."""
    training = train(**model, schedule={"max_train_steps": 1})
    assert training.start() == "done"
    assert training.losses()[1] > 0 and family("linear").latent_channels == 8


def test_what_has_no_effect_on_its_models_is_said_once_the_model_is_known(model, make_job, workspace):
    from core.generation.plan.files import find_sources
    from core.settings.job import GenerateJob
    from core.training.checks.before_start import problems_with_model
    from tests.refusals import refused

    job = make_job(**model | {"noise": {"min_snr_gamma": 5.0}, "samples": {"sample_prompts": ["a fox"]}})
    job = job.model_copy(update={"model": job.model.model_copy(update={"clip_skip": 2})})
    found = problems_with_model(job, workspace)
    without = {each.where for each in found if each.code == "settings.no-effect"}
    assert {"noise.min_snr_gamma", "model.clip_skip"} <= without
    assert [each.where for each in found if each.code == "sampler.other-objective"] == ["samples.sample_sampler"]
    with refused("sampler.other-objective"):
        find_sources(build(GenerateJob, model | {"generate": {"prompt": "a fox"}}), workspace)
    find_sources(build(GenerateJob, model | {"generate": {"prompt": "a fox", "sampler": "line"}}), workspace)


def test_its_folder_is_recognized_too_and_trains_the_same(model, train, tmp_path):
    folder = tmp_path / "linear" / "mlp"
    folder.mkdir(parents=True)
    shutil.copy(model["model"]["base_model"], folder / "model.safetensors")
    (folder / "config.json").write_text('{"_class_name": "Denoiser"}')
    assert family_of(folder.parent) == "linear"
    file, parts = train(**model), train(model={"base_model": str(folder.parent)})
    assert file.start() == parts.start() == "done"
    tensors = load_file(parts.file())
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in load_file(file.file()).items())


def test_an_image_of_its_own_size_is_generated(model, workspace):
    from PIL import Image

    from core.families.trained_size import trained_size
    from core.generation.model.store import make_store
    from core.generation.run import run_generate
    from core.settings.job import GenerateJob

    size = trained_size(Path(model["model"]["base_model"]))
    job = build(GenerateJob, model | {"generate": {"prompt": "a fox", "sampler": "line", "steps": 2, "seed": 1}})
    other = build(GenerateJob, job.model_dump() | {"generate": job.generate.model_dump() | {"guidance_scale": 1.5}})
    one, again, less = (run_generate(each, workspace, store=make_store()) for each in (job, job, other))
    with Image.open(one[0]) as first, Image.open(again[0]) as second:
        assert first.size == size == (128, 128) and first.tobytes() == second.tobytes()
        with Image.open(less[0]) as third:
            assert third.tobytes() != first.tobytes(), "it reads the guidance scale"


def test_what_it_cannot_do_is_refused_before_it_is_loaded(model, workspace, tmp_path):
    from PIL import Image

    from core.generation.plan.plan import plan_of
    from core.settings.job import GenerateJob
    from tests.refusals import refused

    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    image = str(tmp_path / "red.png")

    def plan(prompt="a fox", guidance="classic", **groups):
        generate = {"prompt": prompt, "sampler": "line", "guidance": guidance}
        return plan_of(build(GenerateJob, model | {"generate": generate} | groups), workspace)

    assert plan(guidance="classic").requests
    told = {
        "sampler.no-images": {"image_to_image": {"image_path": image}},
        "guidance.family": {"guidance": "apg"},
        "regions.family": {"prompt": "a AND b", "regions": {"region_map": image}},
        "generate.ds-depth": {"deep_shrink": {"ds_depth_1": 3}},
    }
    for code, groups in told.items():
        with refused(code):
            plan(**groups)
    with refused("sampler.no-images"):
        plan(hires={"highres_fix_scale": 2.0})
