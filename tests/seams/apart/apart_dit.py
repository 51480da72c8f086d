"""A family of another kind of model from a diffusers folder: nothing of it is a U-Net's."""

import pytest
import torch
from safetensors.torch import load_file

from core.families.locate import family_of
from core.training.memory.plan import facts_of, memory_plan


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tests.seams.toys.dit_family import write_model

    return write_model(tmp_path_factory.mktemp("dit") / "model")


@pytest.fixture
def model(folder):
    return {"model": {"base_model": str(folder)}}


def test_a_rank_of_convolutions_has_no_effect_on_it():
    from core.settings.check import build
    from core.settings.job import TrainJob
    from core.settings.rules import ineffective

    assert "network.conv_rank" in ineffective(build(TrainJob, {"model": {"family": "dit"}}))
    assert "network.conv_rank" not in ineffective(build(TrainJob, {"model": {"family": "sd1"}}))


def test_its_folder_is_recognized_and_its_memory_foretold(model, make_job, workspace):
    job = make_job(**model)
    assert family_of(job.model.base_model) == "dit"
    assert memory_plan(job, facts_of(job, workspace, "cpu")).total > 0


def test_a_lora_trains_resumes_exactly_and_shows_samples(model, train):
    groups = model | {"samples": {"sample_prompts": ["a fox --s 2 --d 3 --ss flow_euler"], "sample_at_first": False}}
    groups |= {"schedule": {"max_train_steps": 2}}
    whole, parted = train(**groups), train(**groups)
    assert whole.start() == "done", whole.lines("error")
    assert parted.start(stop_at=1) == "stopped" and parted.again().start() == "done"
    tensors = load_file(whole.file())
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in load_file(parted.file()).items())
    (sample,) = {line["file"] for line in whole.lines("sample") if line["step"] == 2}
    assert (whole.folder.path / sample).stat().st_size > 500


@pytest.mark.parametrize(
    "groups",
    [
        {"memory": {"mixed_precision": "bf16", "cache_latents": "off", "gradient_checkpointing": True}},
        {"memory": {"fp8_base": True, "torch_compile": True, "dynamo_backend": "eager"}},
        {
            "network": {"train_text_encoder": True},
            "validation": {"validation_split": 0.4},
            "dataset": {"alpha_mask": True},
        },
    ],
    ids=["half precision", "fp8 and compiled", "encoders and masks"],
)
def test_the_ways_to_save_memory_and_to_train_are_its_own_too(groups, model, train):
    from core.settings.flags import merge

    training = train(**merge(model, groups), schedule={"max_train_steps": 1})
    assert training.start() == "done"
    assert all(0 < loss < 10 for loss in training.losses().values()), training.losses()


def test_its_lora_is_read_again_as_starting_weights_in_generate_and_by_inspect(model, train, workspace):
    from PIL import Image

    from core.generation.model.store import make_store
    from core.generation.run import run_generate
    from core.settings.check import build
    from core.settings.job import GenerateJob
    from core.tools.models.inspect import inspect

    first = train(**model)
    assert first.start() == "done"
    more = train(**model, network={"network_weights": str(first.file())}, schedule={"max_train_steps": 1})
    assert more.start() == "done"
    before, after = load_file(first.file()), load_file(more.file())
    assert before.keys() == after.keys() and any(not torch.equal(before[name], after[name]) for name in before)
    assert max(float((before[name] - after[name]).abs().max()) for name in before) < 0.1, "it began at the file"

    facts = inspect(first.file())
    assert facts["kind"] == "lora" and facts["family"] == "dit" and sum(facts["lora"]["layers"].values()) == 29
    image = {"prompt": "a fox", "sampler": "flow_euler", "steps": 3, "seed": 1, "guidance_scale": 5.0}
    jobs = [image, image | {"loras": [{"file": str(first.file())}]}]
    paths = [
        run_generate(build(GenerateJob, model | {"generate": job}), workspace, store=make_store())[0] for job in jobs
    ]
    plain, changed = (Image.open(path) for path in paths)
    assert plain.size == changed.size == (64, 64) and plain.tobytes() != changed.tobytes()


def test_a_whole_model_is_trained_saved_and_read_by_diffusers(model, folder, train):
    from diffusers import StableDiffusion3Pipeline

    whole = {"method": {"kind": "fine_tune", "train_text_encoder": "yes"}, "saving": {"save_model_as": "source"}}
    whole |= {"schedule": {"max_train_steps": 2}}
    training, parted = train(**model, **whole), train(**model, **whole)
    assert parted.start(stop_at=1) == "stopped" and parted.again().start() == "done"
    assert training.start() == "done"
    saved = training.file("t")
    assert family_of(saved) == "dit"
    pipeline = StableDiffusion3Pipeline.from_pretrained(saved)
    before = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    trained = pipeline.transformer.state_dict()
    assert trained.keys() == before.keys() and any(not torch.equal(trained[name], before[name]) for name in before)
    again = load_file(parted.file("t") / "transformer" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(tensor, again[name]) for name, tensor in trained.items())
    assert not torch.equal(
        load_file(saved / "text_encoder_2" / "model.safetensors")["text_projection.weight"],
        load_file(folder / "text_encoder_2" / "model.safetensors")["text_projection.weight"],
    )
    image = pipeline("a fox", height=64, width=64, num_inference_steps=1, output_type="np").images
    assert image.shape == (1, 64, 64, 3)


def test_its_prediction_is_that_of_diffusers_pipeline(folder):
    """The same start, prompt and schedule give the same latents, with guidance."""
    from diffusers import StableDiffusion3Pipeline

    from core.families import family
    from tests.prompts import encode_prompts
    from tests.sampling import sampled

    components = family("dit").load(folder)
    states = encode_prompts(components, "a red fox", "a hat")
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    start = torch.randn(16, 8, 8, generator=torch.Generator().manual_seed(3))
    texts = [_joined(each) for each in (states.positive, states.negative)]
    theirs = pipeline(
        prompt_embeds=texts[0],
        negative_prompt_embeds=texts[1],
        pooled_prompt_embeds=states.positive.pooled,
        negative_pooled_prompt_embeds=states.negative.pooled,
        latents=start[None],
        num_inference_steps=4,
        guidance_scale=5.0,
        height=64,
        width=64,
        output_type="latent",
    ).images
    ours = sampled(
        components,
        states,
        seeds=[3],
        width=64,
        height=64,
        sampler="flow_euler",
        steps=4,
        guidance_scale=5.0,
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_what_does_not_bear_half_precision_stays_wide(folder):
    from core.families import family

    half = family("dit").load(folder, dtype=torch.float16)
    assert half.denoiser.proj_out.weight.dtype == half.text_encoders[0].dtype == torch.float16
    assert half.denoiser.pos_embed.pos_embed.dtype == torch.float32
    assert half.text_encoders[2].dtype != torch.float16


def _joined(texts):
    from torch.nn.functional import pad

    t5 = pad(texts.more["t5"], (0, 0, 0, 16 - texts.more["t5"].shape[1]))
    return torch.cat([pad(texts.context, (0, 8)), t5], dim=1)


def test_what_its_models_cannot_have_is_told_before_the_start(model, make_job, workspace):
    from core.generation.plan.files import find_sources
    from core.settings.check import build
    from core.settings.job import GenerateJob
    from core.training.checks.before_start import problems_with_model
    from tests.refusals import refused

    told = {
        "dataset.size-step": {"dataset": {"bucket_reso_steps": 8}},
        "saving.no-single-file": {"method": {"kind": "fine_tune"}},
        "sampler.other-objective": {"samples": {"sample_prompts": ["a fox"]}},
        "embedding.other-encoders": {"method": {"kind": "embedding"}, "embedding": {"token_string": "zunkel"}},
        "memory.attention-of-unet": {"memory": {"attention": "sliced"}},
        "memory.blocks-of-unet": {"memory": {"gradient_checkpointing": True, "checkpoint_blocks": "outer"}},
        "settings.no-effect": {"model": model["model"] | {"prediction": "v"}},
    }
    for code, groups in told.items():
        assert code in {each.code for each in problems_with_model(make_job(**(model | groups)), workspace)}, code
    image = {"prompt": "a fox", "sampler": "flow_euler", "width": 72}
    with refused("generate.size-step"):
        find_sources(build(GenerateJob, model | {"generate": image}), workspace)


def test_a_model_without_one_of_its_encoders_is_refused_by_name(folder, tmp_path, make_job, workspace):
    import shutil

    from core.training.checks.before_start import problems_with_model

    shutil.copytree(folder, tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "text_encoder_3")
    job = make_job(model={"base_model": str(tmp_path / "model")})
    (problem,) = [each for each in problems_with_model(job, workspace) if each.code == "model.missing-part"]
    assert "text encoder 3" in problem.what


def test_an_image_begins_with_an_image_as_in_diffusers_pipeline(model, folder, workspace, tmp_path):
    import numpy as np
    from diffusers import StableDiffusion3Img2ImgPipeline
    from PIL import Image

    from core.families import family
    from core.generation.sample.canvas import encoded, pixels_of
    from core.generation.sample.loop import Denoiser, Sampling, Stage, denoise, noises_of
    from tests.prompts import encode_prompts

    y, x = np.mgrid[0:64, 0:64] / 63
    image = Image.fromarray((np.stack([x, y, x * y], -1) * 255).astype(np.uint8))
    components, kind = family("dit").load(folder), family("dit")
    states = encode_prompts(components, "a red fox", "a hat")
    sampling, stage = Sampling("flow_euler", 5.0), Stage((64, 64), 5, 3, "image")
    denoiser = Denoiser.of(components)
    noises = noises_of(denoiser, stage, [3], sampling)
    noise, of_vae = noises[0].image_noise()
    latents = encoded(components.vae, kind, pixels_of(image), of_vae)
    ours = denoise(denoiser, states, stage, noises, sampling, latents=latents)
    pipeline = StableDiffusion3Img2ImgPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.prepare_latents = lambda image, timestep, *given: pipeline.scheduler.scale_noise(
        latents, timestep, noise[None]
    )
    texts = [_joined(each) for each in (states.positive, states.negative)]
    theirs = pipeline(
        image=image,
        strength=0.6,
        prompt_embeds=texts[0],
        negative_prompt_embeds=texts[1],
        pooled_prompt_embeds=states.positive.pooled,
        negative_pooled_prompt_embeds=states.negative.pooled,
        num_inference_steps=5,
        guidance_scale=5.0,
        height=64,
        width=64,
        output_type="latent",
    ).images
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_hires_fix_and_guidance_work_and_what_does_not_is_refused(model, workspace, tmp_path):
    from PIL import Image

    from core.generation.model.store import make_store
    from core.generation.plan.plan import plan_of
    from core.generation.run import run_generate
    from core.settings.check import build
    from core.settings.job import GenerateJob
    from tests.refusals import refused

    def job(prompt="a fox", guidance="cfg_zero", scale=1.25, **groups):
        generate = {"prompt": prompt, "sampler": "flow_euler", "steps": 4, "seed": 3, "guidance": guidance}
        sizes = {"width": 64, "height": 64, "guidance_scale": 4.0}
        hires = {"highres_fix_scale": scale, "highres_fix_steps": 2}
        return build(GenerateJob, model | {"generate": generate | sizes, "hires": hires} | groups)

    store = make_store()
    made = [run_generate(job(guidance=guidance), workspace, store=store)[0] for guidance in ("cfg_zero", "classic")]
    assert [Image.open(path).size for path in made] == [(80, 80)] * 2
    assert Image.open(made[0]).tobytes() != Image.open(made[1]).tobytes()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    regions = {"region_map": str(tmp_path / "red.png")}
    for code, wrong in {
        "generate.size-step": job(scale=1.125),
        "guidance.layers": job(guidance="pag"),
        "regions.family": job("a AND b", regions=regions),
    }.items():
        with refused(code):
            plan_of(wrong, workspace)
