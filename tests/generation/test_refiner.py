"""SDXL's refiner: the numbers of diffusers' two pipelines, and what a base model and a refiner share."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from diffusers import (
    HeunDiscreteScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
)
from PIL import Image
from safetensors.torch import save_file

from core.families import family
from core.families.locate import family_of
from core.generation import making
from core.generation.images.a1111 import from_a1111_text
from core.generation.images.metadata import read_image_metadata
from core.generation.model import leases
from core.generation.model.store import ModelStore, make_store
from core.generation.plan.forecast import Needs, forecast, peak_of
from core.generation.plan.plan import check_task, plan_of
from core.generation.run import loaded_maker, run_generate
from core.generation.sample.loop import Denoiser, Sampling, Stage, denoise, noises_of, stage_evaluations, steps_of
from core.machine_check.random_model import random_state
from core.record.context import NO_REPORTS
from core.record.problems import ProblemsError
from core.record.workspace import PROJECT, Workspace
from core.settings.check import build
from core.settings.job import GenerateJob
from core.settings.presets.files import to_values
from tests.generation.theirs import scheduler_of
from tests.models import single_file, tiny_configs, tiny_folder
from tests.prompts import encode_prompts
from tests.refusals import problems_of, refused
from tests.reports import Heard

STARTER = PROJECT / "models" / "starter"
PROMPT, NEGATIVE, SEED, STEPS, GUIDANCE, WIDTH, HEIGHT = "a fox, flat icon", "red", 11, 10, 4.0, 96, 64
PIPELINE = "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("space")
    space = Workspace(folder / "outputs", folder / "models")
    space.runs.mkdir(parents=True)
    tiny_folder("sdxl", space.models / "base")
    tiny_folder("sdxl_refiner", space.models / "refiner", seed=5)
    return space


def job_of(refiner=(), **groups):
    """With the refiner, unless its settings say another."""
    generate = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "seed": SEED, "steps": STEPS, "width": WIDTH}
    generate |= {"height": HEIGHT, "sampler": "ddim", "guidance_scale": GUIDANCE} | groups.pop("generate", {})
    own = {"refiner_checkpoint": "refiner"} | dict(refiner)
    memory = {"mixed_precision": "no"}
    model = {"base_model": "base"}
    return build(GenerateJob, {"generate": generate, "refiner": own, "memory": memory, "model": model} | groups)


@pytest.fixture(scope="module")
def plain(workspace, store):
    """The latents of the base model and of the refiner for a plain job."""
    return latents_of(job_of(), workspace, store)


def latents_of(job, workspace, store):
    """Of all images of a job, after each stage."""
    plan = plan_of(job, workspace)
    with loaded_maker(plan, workspace, store=store, device="cpu", reports=NO_REPORTS) as (maker, _):
        return maker.make(plan.requests, decoded=False).latents


@cache
def loaded(kind, folder):
    made = kind.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    made.set_progress_bar_config(disable=True)
    made.tokenizer_2.pad_token = "!"
    return made


def pipeline(kind, folder, sampler):
    made = loaded(kind, folder)
    made.scheduler = scheduler_of(sampler)
    return made


def theirs(workspace, sampler, begun=None, switch=0.8, **of_refiner):
    """The latents of diffusers' base model and refiner. begun: what an image to image begins with, and its strength"""
    generator = torch.Generator().manual_seed(SEED)
    asked = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "num_inference_steps": STEPS, "guidance_scale": GUIDANCE}
    asked |= {"generator": generator, "output_type": "latent"}
    sides = {"width": WIDTH, "height": HEIGHT}
    kind = StableDiffusionXLPipeline
    if begun is not None:
        kind, sides = StableDiffusionXLImg2ImgPipeline, {"image": begun[0], "strength": begun[1]}
    base = pipeline(kind, workspace.models / "base", sampler)(**asked, **sides, denoising_end=switch).images
    refiner = pipeline(StableDiffusionXLImg2ImgPipeline, workspace.models / "refiner", sampler)
    return base, refiner(**asked, image=base, denoising_start=switch, **of_refiner).images


@pytest.mark.slow(
    but=(
        "ddim",
        "euler_a",
    )
)
@pytest.mark.parametrize(
    "sampler", ["ddim", "euler", "dpmsolver++_3m", pytest.param("euler_a", marks=pytest.mark.slow)]
)
def test_base_model_and_refiner_make_the_latents_of_diffusers(sampler, workspace, store):
    mine = latents_of(job_of(generate={"sampler": sampler}), workspace, store)
    base, refined = theirs(workspace, sampler)
    assert float((mine[0] - base).abs().mean()) < 1e-4
    assert float((mine[1] - refined).abs().mean()) < 1e-4
    assert float((mine[1] - mine[0]).abs().mean()) > 0.01


@pytest.mark.slow
def test_an_initial_image_is_finished_too(workspace, store, tmp_path, monkeypatch):
    """Their image to image with a strength and an end, from our noise and latents of the image."""
    values = np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8)
    Image.fromarray(values).resize((WIDTH, HEIGHT)).save(tmp_path / "a.png")
    given = {"image_path": str(tmp_path / "a.png"), "strength": 0.6}
    noises, begun = [], making.ImageMaker._initial_latents

    def kept(self, stage, batch, own, made):
        noises.append(begun(self, stage, batch, own, made))
        noises.append(own[0].image_noise()[0][None])
        return noises[0]

    monkeypatch.setattr(making.ImageMaker, "_initial_latents", kept)
    mine = latents_of(job_of(image_to_image=given, generate={"sampler": "euler"}), workspace, store)
    monkeypatch.setattr(f"{PIPELINE}.randn_tensor", lambda *shape, **how: noises[1])
    as_many = (int(STEPS * 0.6) + 1) / STEPS  # A1111's strength of 0.6 runs one step more than diffusers'
    base, refined = theirs(workspace, "euler", begun=(noises[0], as_many))
    assert float((mine[0] - base).abs().mean()) < 1e-4
    assert float((mine[1] - refined).abs().mean()) < 1e-4


# -- how the steps are divided


@pytest.mark.slow(but=("ddim",))
@pytest.mark.parametrize("sampler", [pytest.param("ddim", marks=pytest.mark.slow), "euler_a", "heun"])
def test_one_model_in_both_parts_makes_what_it_makes_alone(sampler, starter):
    """Of samplers without a history: nothing is noised again, and random numbers go on where the base model ended."""
    model, states = Denoiser.of(starter), encode_prompts(starter, PROMPT, NEGATIVE)
    sampling, whole = Sampling(sampler, GUIDANCE, guidance_range=(0.2, 0.9)), Stage((64, 64), STEPS)

    def made(stage, noises, latents=None, hooks=()):
        return denoise(model, states, stage, noises, sampling, latents=latents, hooks=hooks)

    alone = made(whole, noises_of(model, whole, [SEED, 3], sampling))
    first, noises = replace(whole, switch_at=0.7), noises_of(model, whole, [SEED, 3], sampling)
    begun = made(first, noises)
    both = made(replace(first, begins="unfinished latents"), noises, begun)
    torch.testing.assert_close(both, alone, rtol=0, atol=1e-5)
    assert not torch.allclose(begun, alone, atol=1e-2)


@pytest.mark.parametrize("run", [None, 7, 1])
@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpmsolver++", "heun", "dpm_2", "pndm", "lcm"])
def test_every_evaluation_is_of_one_part_and_no_step_is_divided(sampler, run):
    stage, way = Stage((64, 64), STEPS, run, switch_at=0.8), Sampling(sampler).scheduler()
    way.set_timesteps(STEPS)
    first = 0 if run is None else (STEPS - run) * getattr(way, "order", 1)
    base, refiner = (
        stage_evaluations(way, stage, first),
        stage_evaluations(way, replace(stage, begins="unfinished latents"), first),
    )
    assert [*base, *refiner] == list(range(len(way.timesteps) - first))
    assert all(way.timesteps[first + index] >= 200 for index in base)
    assert len(base) % getattr(way, "order", 1) == 0
    parts = stage, replace(stage, begins="unfinished latents")
    assert sum(map(steps_of, parts)) == steps_of(replace(stage, switch_at=None))


def test_two_evaluations_of_a_step_begin_as_the_refiner_of_diffusers():
    """Heun's timesteps are doubled but for the first: their image to image steps back to where a step begins."""
    way = HeunDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    for steps in range(4, 12):
        way.set_timesteps(steps)
        pipeline = object.__new__(StableDiffusionXLImg2ImgPipeline)
        pipeline.__dict__["scheduler"] = way
        begin = len(way.timesteps) - StableDiffusionXLImg2ImgPipeline.get_timesteps(pipeline, steps, 1.0, "cpu", 0.8)[1]
        mine = stage_evaluations(way, Stage((64, 64), steps, switch_at=0.8, begins="unfinished latents"), 0)
        assert mine.start == begin and begin % 2 == 0


# -- settings


@pytest.mark.slow
def test_each_setting_changes_what_the_refiner_makes(workspace, store, plain):
    for changed in (
        {"refiner_switch_at": 0.5},
        {"aesthetic_score": 1.0},
        {"negative_aesthetic_score": 9.0},
    ):
        other = latents_of(job_of(changed), workspace, store)
        assert float((other[-1] - plain[-1]).abs().mean()) > 3e-5, changed
    alone = latents_of(job_of({"refiner_checkpoint": None}), workspace, store)
    assert len(alone) == 1 and float((alone[0] - plain[1]).abs().mean()) > 0.01


def test_it_reads_the_score_in_place_of_the_size():
    stage = Stage((832, 1216), begins="unfinished latents", scores=(6.0, 2.5))
    assert stage.sizes_of("positive") == (1216, 832, 0, 0, 6.0)
    assert stage.sizes_of("negative") == stage.sizes_of("empty") == (1216, 832, 0, 0, 2.5)


@pytest.mark.slow
def test_with_hires_fix_it_finishes_the_second_stage(workspace, store):
    job = job_of(hires={"highres_fix_scale": 1.5, "highres_fix_steps": 4, "highres_fix_upscaler": "latent"})
    assert [stage.refines for stage in making.stages_of(job)] == [False, False, True]
    small, large, refined = latents_of(job, workspace, store)
    assert small.shape[-2:] == (8, 12) and large.shape == refined.shape == (1, 4, 12, 18)
    (file,) = run_generate(job, workspace, store=store)
    assert Image.open(file).size == (144, 96)


@pytest.mark.slow
def test_what_a_mask_keeps_is_kept_by_the_refiner_too(workspace, store, tmp_path):
    Image.new("RGB", (WIDTH, HEIGHT), "teal").save(tmp_path / "a.png")
    mask = Image.new("L", (WIDTH, HEIGHT))
    mask.paste(255, (0, 0, 48, HEIGHT))
    mask.save(tmp_path / "mask.png")
    given = {"image_path": str(tmp_path / "a.png"), "mask_path": str(tmp_path / "mask.png"), "mask_blur": 0}
    base, refined = latents_of(job_of(image_to_image=given), workspace, store)
    alone = latents_of(job_of({"refiner_checkpoint": None}, image_to_image=given), workspace, store)[0]
    torch.testing.assert_close(refined[..., 6:], alone[..., 6:], rtol=0, atol=1e-6)
    assert float((refined - base)[..., :6].abs().mean()) > 0.01


@pytest.mark.slow
def test_a_batch_is_what_each_seed_gives_alone(workspace, store):
    together = latents_of(job_of(generate={"count": 2, "batch_size": 2, "sampler": "euler_a"}), workspace, store)
    alone = latents_of(job_of(generate={"seed": SEED + 1, "sampler": "euler_a"}), workspace, store)
    torch.testing.assert_close(together[-1][1:], alone[-1], rtol=0, atol=5e-4)  # sums of a batch, in fp32


@pytest.mark.slow
def test_prompts_that_and_joins_guide_it_as_they_guide_the_base_model(workspace, store):
    both = latents_of(job_of(generate={"prompt": "a fox AND a dog :0.5"}), workspace, store)
    one = latents_of(job_of(generate={"prompt": "a fox"}), workspace, store)
    assert float((both[1] - one[1]).abs().mean()) > 1e-3


@pytest.mark.slow
def test_loras_are_the_base_models_alone(workspace, store, plain):
    """At all steps, and counted over the whole image: one that begins after the switch does nothing."""
    model = family("sdxl").load(workspace.models / "base", parts=("denoiser",)).denoiser
    draw, tensors = torch.Generator().manual_seed(0), {}
    for target in family("sdxl").lora_targets(model):
        shape = target.module.weight.shape
        tensors[f"{target.name}.lora_down.weight"] = torch.randn(4, *shape[1:], generator=draw)
        tensors[f"{target.name}.lora_up.weight"] = torch.randn(shape[0], 4, *[1] * (len(shape) - 2), generator=draw)
    (workspace.models / "loras").mkdir()
    save_file(tensors, workspace.models / "loras" / "loud.safetensors", {"ss_base_model_version": "sdxl_base_v1-0"})
    late = job_of(generate={"loras": [{"file": "loud", "start_at": 0.8}]})
    assert torch.equal(latents_of(late, workspace, store)[1], plain[1])
    early = latents_of(job_of(generate={"loras": [{"file": "loud", "start_at": 0.7}]}), workspace, store)
    assert float((early[0] - plain[0]).abs().mean()) > 0.01
    assert "refiner.loras" in codes(late, workspace)


def test_a_lora_for_the_refiner_is_refused(workspace):
    key = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    tensors = {f"{key}.lora_down.weight": torch.zeros(4, 1280), f"{key}.lora_up.weight": torch.zeros(768, 4)}
    save_file(tensors, workspace.models / "of_refiner.safetensors")
    used = {"loras": [{"file": str(workspace.models / "of_refiner.safetensors")}]}
    assert "lora.other-family" in codes(job_of(generate=used), workspace)


@pytest.mark.slow
def test_previews_and_masks_act_at_its_steps_and_nothing_else(workspace, store, monkeypatch):
    seen, hooks_of = [], making.hooks_of
    monkeypatch.setattr(making, "hooks_of", lambda asked: seen.append(hooks_of(asked)) or seen[-1])
    groups = {"output": {"preview_every_n_steps": 1}, "deep_shrink": {"ds_depth_1": 2, "ds_timesteps_1": 0}}
    latents_of(job_of(**groups), workspace, store)
    assert [[type(hook).__name__ for hook in hooks] for hooks in seen] == [["Preview", "DeepShrink"], ["Preview"]]


# -- memory


@pytest.mark.slow
def test_the_store_lends_it_and_gives_its_memory_back(workspace):
    store = make_store()
    plan, alone = plan_of(job_of(), workspace), plan_of(job_of({"refiner_checkpoint": None}), workspace)
    with loaded_maker(plan, workspace, store=store, device="cpu", reports=NO_REPORTS) as (maker, _):
        image = maker.make(alone.requests, decoded=False).latents[0]
        before = {name: tensor.clone() for name, tensor in maker.components.denoiser.state_dict().items()}
        maker.make(plan.requests, decoded=False)
        after = dict(maker.components.denoiser.state_dict())
        torch.testing.assert_close(after, before, rtol=0, atol=0, equal_nan=True)  # NaN: packed for the CPU
        assert torch.equal(maker.make(alone.requests, decoded=False).latents[0], image)
    held = {each.slot: each for each in store.loaded()}
    assert held["refiner"].name == "refiner" and not any(each.uses for each in store.loaded())
    assert held["refiner"].bytes == family("sdxl_refiner").weight_bytes(workspace.models / "refiner")["unet"]
    store.release()
    assert not store.loaded()


@pytest.mark.slow
def test_it_leaves_a_store_without_room_and_is_loaded_again(workspace, plain):
    tight = make_store()
    with_it = job_of(generation_memory={"keep_models_gb": 0.0})
    other = job_of({"refiner_checkpoint": None}, model={"base_model": str(STARTER)})
    for job in (with_it, other, with_it):
        made = latents_of(job.model_copy(update={"generation_memory": with_it.generation_memory}), workspace, tight)
        assert ("refiner" in [each.slot for each in tight.loaded()]) == (job is with_it)
    torch.testing.assert_close(made[-1], plain[-1], rtol=0, atol=0)


@pytest.mark.slow
def test_its_texts_are_read_once(workspace, monkeypatch):
    store, read = make_store(), []
    encoders = leases._encoders

    def watched(parts, store, stack, **own):
        found = encoders(parts, store, stack, **own)
        return leases.LazyList(lambda: read.append(parts.kind.name) or list(found))

    monkeypatch.setattr(leases, "_encoders", watched)
    first = latents_of(job_of(), workspace, store)
    assert read == ["sdxl", "sdxl_refiner"]
    assert torch.equal(latents_of(job_of(), workspace, store)[-1], first[-1]) and len(read) == 2


@pytest.mark.slow
def test_where_parts_are_offloaded_each_model_waits_while_the_other_works(workspace, plain, monkeypatch):
    moved = []
    monkeypatch.setattr("core.generation.run.offload_for", lambda *given: "parts")
    tight = make_store()
    plan = plan_of(job_of(), workspace)
    with loaded_maker(plan, workspace, store=tight, device="cpu", reports=NO_REPORTS) as (maker, _):
        base = maker.components.denoiser
        monkeypatch.setattr(base, "to", lambda device: moved.append(str(device)))
        made = maker.make(plan.requests, decoded=False)
    assert moved == ["cpu", "cpu"], "to RAM, and back to the device, which is a CPU here"
    torch.testing.assert_close(made.latents[-1], plain[-1], rtol=0, atol=0)


@pytest.mark.slow
def test_the_forecast_counts_both(workspace):
    with_it, alone = (forecast(job_of(own), workspace, "cpu").peak for own in ({}, {"refiner_checkpoint": None}))
    weights = family("sdxl_refiner").weight_bytes(workspace.models / "refiner")
    assert with_it - alone >= weights["unet"] + weights["text_encoder_2"]


def test_side_by_side_both_count_and_one_after_the_other_the_larger():
    base, refiner = Needs(50, 5, 2, 10, 6, 8, 4, 1), Needs(45, 7, 0, 12, 11, 9, 0, 0)
    assert peak_of(base, [refiner], "off") == 50 + 45 + 2 + 10 + 12 + 9
    assert peak_of(base, [refiner], "parts") == max(base.peak("parts"), 45 + 11)
    assert peak_of(base, [refiner], "layers") == max(base.peak("layers"), 2 * 7 + 9)
    assert peak_of(base, [], "off") == base.peak("off")


# -- files


@pytest.mark.slow
def test_a_single_file_makes_what_its_folder_makes(workspace, store):
    configs = tiny_configs("sdxl_refiner")
    states = {name: random_state(name, config, torch.float32, 5) for name, config in configs.items()}
    known = "conditioner.embedders.0.model.transformer.resblocks.9.mlp.c_proj.bias"  # a tiny encoder has no tenth layer
    tensors = single_file(states, "sdxl_refiner") | {known: torch.zeros(48)}
    save_file(tensors, workspace.models / "one.safetensors", {"atelier_sizes": json.dumps(configs)})
    folder, file = (latents_of(job_of({"refiner_checkpoint": name}), workspace, store) for name in ("refiner", "one"))
    torch.testing.assert_close(file[-1], folder[-1], rtol=0, atol=0)


def test_the_published_sizes_are_those_of_the_published_file():
    """2 bytes for each number of its 6.08 GB in fp16, and a header of 0.3 MB."""
    kind = family("sdxl_refiner")
    parts = ("unet", "vae", "text_encoder_2")
    numbers = sum(tensor.numel() for part in parts for tensor in kind.make_empty(part).state_dict().values())
    assert 0 < 6_075_981_930 - 2 * numbers < 400_000


def codes(job, workspace):
    try:
        return [problem.code for problem in plan_of(job, workspace).notes]
    except ProblemsError as error:
        return error.codes


def test_what_is_no_refiner_is_said_before_anything_is_loaded(workspace):
    store = ModelStore()
    for job, code in (
        (job_of({"refiner_checkpoint": "base"}), "refiner.not-a-refiner"),
        (job_of({"refiner_checkpoint": "nothing"}), "model.not-found"),
        (job_of({"refiner_checkpoint": "owner/absent"}), "model.not-downloaded"),
        (job_of(model={"base_model": str(STARTER)}), "refiner.other-base"),
        (job_of({"refiner_switch_at": 0.99}, generate={"schedule_type": "sgm"}), "refiner.no-steps"),
    ):
        with refused(code):
            run_generate(job, workspace, store=store)
    assert not store.loaded()


def test_a_refiner_without_its_text_encoder_is_refused(workspace):
    bare = {"model.diffusion_model.label_emb.0.0.weight": torch.zeros(1, 2560)}
    save_file(bare, workspace.models / "bare.safetensors")
    assert "model.missing-part" in codes(job_of({"refiner_checkpoint": "bare"}), workspace)


@pytest.mark.parametrize("switch", [0.0, 1.0, 1.5, -0.2])
def test_a_switch_outside_of_the_steps_is_refused(switch):
    values = {"refiner": {"refiner_checkpoint": "refiner", "refiner_switch_at": switch}}
    assert [problem.where for problem in problems_of(GenerateJob, values)] == ["refiner.refiner_switch_at"]


def test_it_is_neither_trained_nor_a_base_model(workspace):
    with refused("model.other-family", "refiner of an SDXL model"):
        family_of(workspace.models / "refiner")
    assert "model.other-family" in codes(
        job_of({"refiner_checkpoint": None}, model={"base_model": "refiner"}), workspace
    )
    assert family_of(workspace.models / "refiner", "sdxl_refiner") == "sdxl_refiner"


def test_what_it_cannot_be_used_with_is_said(workspace, tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "map.png")
    regions = {"regions": {"region_map": str(tmp_path / "map.png")}, "generate": {"prompt": "a AND b"}}
    assert "refiner.regions" in codes(job_of(**regions), workspace)
    growing = {"gradual_latent": {"gradual_latent_timesteps": 750}, "generate": {"sampler": "euler_a"}}
    assert "refiner.gradual-latent" in codes(job_of(**growing), workspace)
    weak = {"image_to_image": {"image_path": str(tmp_path / "map.png"), "strength": 0.1}}
    assert "refiner.alone" in codes(job_of(**weak), workspace)


@pytest.mark.slow
def test_layers_that_guidance_names_are_those_of_both_models(workspace):
    for layers, wrong in (("mid", False), ("up.0", True), ("up.2", True)):  # attention: up.0 and up.1, up.1 and up.2
        job = job_of(generate={"guidance": "pag"}, pag={"pag_layers": layers})
        assert ("guidance.layers" in codes(job, workspace)) == wrong, layers
    alone = job_of({"refiner_checkpoint": None}, generate={"guidance": "pag"}, pag={"pag_layers": "up.0"})
    assert "guidance.layers" not in codes(alone, workspace)


# -- settings in files


def test_a_job_with_a_refiner_is_read_as_it_was_written():
    job = job_of({"refiner_switch_at": 0.65, "aesthetic_score": 7.0, "negative_aesthetic_score": 1.0})
    assert build(GenerateJob, to_values(job)) == job


@pytest.mark.slow
def test_an_image_says_its_refiner_twice(workspace, store):
    (file,) = run_generate(job_of({"refiner_switch_at": 0.7}), workspace, store=store)
    record = read_image_metadata(file)
    assert record.job.refiner.refiner_checkpoint == "models/refiner" and record.job.refiner.refiner_switch_at == 0.7
    assert list(record.hashes.refiners) == ["models/refiner"]
    text = Image.open(file).text["parameters"]
    digest = record.hashes.refiners["models/refiner"][:10]
    assert f"Refiner: refiner [{digest}], Refiner switch at: 0.7" in text
    (again,) = run_generate(record.job, workspace, store=store)
    assert np.array_equal(np.asarray(Image.open(file)), np.asarray(Image.open(again)))


def test_a1111s_refiner_is_read():
    text = "a fox\nSteps: 20, Sampler: Euler, Seed: 1, Size: 64x64, Refiner: sd_xl_refiner_1.0 [7440042bbd], Refiner switch at: {}"
    assert from_a1111_text(text.format("0.6")).job.refiner.refiner_checkpoint == "sd_xl_refiner_1.0"
    assert from_a1111_text(text.format("0.6")).job.refiner.refiner_switch_at == 0.6
    record = from_a1111_text(text.format("1"))
    assert record.job.refiner.refiner_switch_at == 0.8
    assert "image-settings.out-of-range" in [note.code for note in record.notes]


def test_the_check_names_the_stage_and_its_steps(workspace):
    said = check_task(job_of(), workspace)
    assert "8 of 10 steps" in said and "refiner: 2 of 10 steps" in said
    assert plan_of(job_of(), workspace).steps() == STEPS


def test_progress_counts_the_steps_of_both(workspace, store):
    heard = Heard()
    run_generate(job_of(), workspace, store=store, reports=heard)
    steps = [done for text, done, total in heard.stages if total == STEPS]
    assert steps == sorted(steps) and steps[-1] == STEPS and len(set(steps)) == STEPS + 1
