"""Limits at their edges, tables row by row, and what is usual where nothing is said."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file

from core.diffusion.text_states import TextStates
from core.families import family
from core.families.components import Components
from core.generation.effects.preview import tiled
from core.generation.effects.regions import masks_of
from core.generation.grids.axes import read_values
from core.generation.images.metadata import read_image_metadata
from core.generation.images.output import _safe_name
from core.generation.images.record import SAMPLERS, ForeignSettings
from core.generation.model.loras import _NETWORKS, MOST_CACHED, Strength, _forget_oldest
from core.generation.model.store import TextStateCache
from core.generation.plan import files as sources
from core.generation.plan.requests import requests_of
from core.generation.plan.stages import described, sampling_of, stages_of
from core.generation.prompt.wildcards import no_files
from core.generation.sample.canvas import images_at_once
from core.generation.sample.guidance import EMPTY, NEGATIVE, UNGUIDED, classic, composed
from core.generation.sample.loop import Denoiser, Sampling, Stage, noises_of, steps_of
from core.record.problems import Problem
from core.record.workspace import Workspace
from core.settings.check import build
from core.settings.job import GenerateJob
from tests.models import tiny_file
from tests.refusals import refused

# -- options in prompts

RANGES = {  # option: (the setting, least, most)
    "w": ("generate.width", 64, 4096),
    "h": ("generate.height", 64, 4096),
    "s": ("generate.steps", 1, 1000),
    "l": ("generate.guidance_scale", -100, 100),
    "nl": ("generate.negative_scale", -100, 100),
    "t": ("image_to_image.strength", 0, 1),
    "ow": ("sizes.original_width", 0, 65536),
    "oh": ("sizes.original_height", 0, 65536),
    "nw": ("sizes.original_width_negative", 0, 65536),
    "nh": ("sizes.original_height_negative", 0, 65536),
    "ct": ("sizes.crop_top", 0, 65536),
    "cl": ("sizes.crop_left", 0, 65536),
    "dsd1": ("deep_shrink.ds_depth_1", 0, 8),
    "dst1": ("deep_shrink.ds_timesteps_1", 0, 1000),
    "dsd2": ("deep_shrink.ds_depth_2", 0, 8),
    "dst2": ("deep_shrink.ds_timesteps_2", 0, 1000),
    "dsr": ("deep_shrink.ds_ratio", 0.1, 1),
    "glt": ("gradual_latent.gradual_latent_timesteps", 0, 1000),
    "glr": ("gradual_latent.gradual_latent_ratio", 0.1, 1),
    "gle": ("gradual_latent.gradual_latent_every_n_steps", 1, 1000),
    "gls": ("gradual_latent.gradual_latent_ratio_step", 0.001, 1),
    "glsn": ("gradual_latent.gradual_latent_s_noise", 0, 10),
}


def job_of(prompt="a fox", **groups):
    return build(GenerateJob, {"generate": {"prompt": prompt, "seed": 1} | groups.pop("generate", {}), **groups})


def asked(prompt, **groups):
    """(the job of a prompt with options, the codes of what is said of it)"""
    found, notes = requests_of(job_of(prompt, **groups), no_files)
    return found[0].job, [note.code for note in notes]


def value(job, place):
    group, _, name = place.partition(".")
    return getattr(getattr(job, group), name)


@pytest.mark.parametrize("option", RANGES)
def test_an_option_sets_its_setting_and_what_is_beyond_its_range_becomes_the_nearest(option):
    place, least, most = RANGES[option]
    for edge, beyond in ((least, least - 1), (most, most + 1)):
        job, codes = asked(f"a fox --{option} {edge}")
        assert value(job, place) == edge and set(codes) <= {"prompts.idle-option"}
        job, codes = asked(f"a fox --{option} {beyond}")
        assert value(job, place) == edge and codes.count("prompts.out-of-range") == 1


def test_an_option_of_deep_shrink_or_gradual_latent_turns_it_on_at_the_usual_place():
    job, _ = asked("a fox --dsr 0.6")
    assert (job.deep_shrink.ds_depth_1, job.deep_shrink.ds_ratio) == (3, 0.6)
    job, _ = asked("a fox --glr 0.6")
    assert (job.gradual_latent.gradual_latent_timesteps, job.gradual_latent.gradual_latent_ratio) == (650, 0.6)
    job, _ = asked("a fox")
    assert job.deep_shrink.ds_depth_1 is None and job.gradual_latent.gradual_latent_timesteps is None
    job, _ = asked("a fox --dsr 0.6", deep_shrink={"ds_depth_1": 1})
    assert job.deep_shrink.ds_depth_1 == 1


def test_strengths_of_a_prompt_are_kept_within_10():
    found, _ = asked("a fox --am -11,10,12", generate={"loras": [{"file": name} for name in "abcd"]})
    assert [use.strength for use in found.generate.loras] == [-10, 10, 10, 10]


# -- names of other programs

FOREIGN = {  # ComfyUI's, k-diffusion's and diffusers' names
    "euler": "euler",
    "euler_a": "euler_a",
    "euler_ancestral": "euler_a",
    "k_euler_ancestral": "euler_a",
    "euler_cfg_pp": "euler_cfg_pp",
    "euler_ancestral_cfg_pp": "euler_a_cfg_pp",
    "er_sde": "er_sde",
    "res_multistep": "res_multistep",  # another algorithm: named as one that is not here
    "dpmpp_2m": "dpmsolver++",
    "dpmpp_2m_sde": "dpmsolver++_2m_sde",
    "dpmpp_2m_sde_gpu": "dpmsolver++_2m_sde",
    "dpmpp_sde": "dpmsolver++_sde",
    "dpmpp_2s": "dpmsingle",
    "dpmpp_2s_ancestral": "dpmsolver++_2s_a",
    "dpmpp_3m": "dpmsolver++_3m",
    "dpmpp_3m_sde_gpu": "dpmsolver++_3m_sde",
    "dpmpp_3m_sde": "dpmsolver++_3m_sde",
    "dpm_2": "dpm_2",
    "dpm_2_ancestral": "dpm_2_a",
    "dpm_2_a": "dpm_2_a",
    "dpm2": "dpm_2",
    "dpm2_a": "dpm_2_a",
    "kdpm_2": "dpm_2",
    "kdpm_2_a": "dpm_2_a",
    "dpmpp_2s_a": "dpmsolver++_2s_a",
    "uni_pc": "unipc",
    "uni_pc_bh2": "unipc",
    "unipc": "unipc",
    "ddim": "ddim",
    "ddim_v3": "ddim",
    "heun": "heun",
    "lms": "lms",
    "pndm": "pndm",
    "plms": "pndm",
    "deis": "deis",
    "ddpm": "ddpm",
    "lcm": "lcm",
    "tcd": "tcd",
}


def test_samplers_of_other_programs_are_ours_by_name():
    for name, ours in FOREIGN.items():
        for written, kind in ((name, ""), (f"sample_{name}", ""), (f"{name}_k", "karras"), (f"{name}_exponential", "")):
            found = ForeignSettings("comfyui")
            found.sampled(written)
            schedule = "exponential" if written.endswith("exponential") else kind
            assert (found.pairs["Sampler"], found.pairs.get("Schedule type", "")) == (ours, schedule), written
    assert SAMPLERS.keys() <= FOREIGN.keys()


def test_align_your_steps_has_the_levels_of_the_models_family():
    job = build(GenerateJob, {"generate": {"prompt": "a fox", "schedule_type": "ays"}})
    assert {name: sampling_of(job, "epsilon", name).schedule for name in ("sd1", "sd2", "sdxl")} == {
        "sd1": "ays",
        "sd2": "ays",
        "sdxl": "ays_sdxl",
    }


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("normal", "normal"),
        ("simple", "simple"),
        ("kl_optimal", "kl_optimal"),
        ("native", "own"),
        ("sgm_uniform", "sgm"),
        ("karras", "karras"),
        ("exponential", "exponential"),
        ("beta", "beta"),
    ],
)
def test_schedules_of_other_programs_are_ours_by_name(theirs, ours, tmp_path):
    info = PngInfo()
    nodes = {
        "1": {
            "class_type": "KSampler",
            "inputs": {"seed": 1, "steps": 2, "cfg": 3, "sampler_name": "euler", "scheduler": theirs},
        }
    }
    nodes["1"]["inputs"] |= {"positive": ["2", 0], "negative": ["2", 0], "latent_image": ["3", 0]}
    nodes |= {
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a"}},
        "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64}},
    }
    info.add_text("prompt", json.dumps(nodes))
    Image.new("RGB", (64, 64)).save(tmp_path / "x.png", pnginfo=info)
    assert read_image_metadata(tmp_path / "x.png").job.generate.schedule_type == ours


# -- steps


@pytest.mark.parametrize(
    ("given", "steps", "wanted"),
    [
        ((0.0, 1.0), 3, [1, 1, 1]),
        ((0.25, 0.75), 4, [0, 1, 1, 0]),
        ((0.5, 1.0), 3, [0, 1, 1]),
        ((0.0, 0.5), 3, [1, 0, 0]),
    ],
)
def test_guidance_is_on_from_its_first_share_of_the_steps_up_to_its_last(given, steps, wanted):
    assert [Sampling(guidance_range=given).guides(index, steps) for index in range(steps)] == [
        bool(on) for on in wanted
    ]


@pytest.mark.parametrize(
    ("start", "end", "wanted"), [(0, 1, range(20)), (0.15, 0.35, range(3, 7)), (0.99, 1, range(0))]
)
def test_a_lora_acts_from_its_first_share_of_the_steps_up_to_its_last(start, end, wanted):
    own = Strength(1.0, steps=(start, end))
    assert [index for index in range(20) if own.acts(index, 20)] == list(wanted)


@pytest.mark.parametrize(
    ("compatibility", "wanted"), [("none", [0, 1, 2, 11, 20, 20]), ("sd-scripts-0.10", [0, 0, 1, 10, 19, 20])]
)
def test_a_strength_runs_its_share_of_the_steps_in_sd_scripts_and_one_more_in_a1111(compatibility, wanted):
    found = []
    for strength in (0.0, 0.04, 0.05, 0.5, 0.99, 1.0):
        begin = {"image_path": "in.png", "strength": strength}
        job = build(GenerateJob, {"image_to_image": begin, "model": {"compatibility": compatibility}})
        found += [stage.run for stage in stages_of(job)]
    assert found == wanted


@pytest.mark.parametrize(
    ("steps", "strength", "schedule", "run"),
    [
        (10, 0.4, 25, 10),
        (20, 0.7, 28, 20),
        (20, 1.0, 20, 20),
        (20, 0.0, 20, 0),
        (20, 0.01, 1000, 11),
        (20, 5e-324, 1000, 1),
        (1000, 1.0, 1000, 1000),
    ],
)
def test_the_second_stage_of_hires_fix_runs_all_steps_of_a_schedule_that_is_longer_by_the_strength(
    steps, strength, schedule, run
):
    """A1111's setup_img2img_steps with steps that are given: int(steps / min(strength, 0.999)), of which steps are run."""
    asked = {"generate": {"steps": steps}, "hires": {"highres_fix_scale": 2}, "image_to_image": {"strength": strength}}
    first, second = stages_of(build(GenerateJob, asked))
    assert (first.steps, first.run, second.steps, second.run) == (steps, None, schedule, run)


def test_the_refiner_runs_the_rest_of_the_steps():
    base = Stage((64, 64), 20, 10, switch_at=0.8)
    refiner = Stage((64, 64), 20, 10, switch_at=0.8, begins="unfinished latents")
    assert (steps_of(base), steps_of(refiner)) == (6, 4)
    asked = {"refiner": {"refiner_checkpoint": "r"}, "generate": {"steps": 4, "width": 64, "height": 64}}
    for strength in (0.0, 0.01):
        image = {"image_to_image": {"image_path": "x.png", "strength": strength}}
        job = build(GenerateJob, asked | image | {"model": {"compatibility": "sd-scripts-0.10"}})
        assert all(": 0 of 4" in line for line in described(job)), "a strength that leaves no step"


def test_after_the_last_seed_comes_the_first():
    model = Denoiser(family("sd1"), lambda *given: None)
    (last,) = noises_of(model, Stage((64, 64), 1, seed_offset=1), [2**32 - 1], Sampling())
    (first,) = noises_of(model, Stage((64, 64), 1), [0], Sampling())
    assert torch.equal(last.start, first.start)


def test_prompts_that_and_joins_guide_by_their_weights_also_away():
    draws = torch.Generator().manual_seed(0)
    away, empty, one, two = (torch.randn(1, 4, 2, 2, generator=draws) for _ in range(4))
    outputs = {NEGATIVE: away, EMPTY: empty, "positive 0": one, "positive 1": two}
    made = composed(classic(3.0), [1.0, -0.5])
    assert made.sides == (NEGATIVE, "positive 0", "positive 1")
    torch.testing.assert_close(made.combine(outputs, None), away + 3 * ((one - away) - 0.5 * (two - away)))
    torch.testing.assert_close(
        composed(UNGUIDED, [1.0, 3.0]).combine({**outputs, NEGATIVE: None}, None), (one + 3 * two) / 4
    )
    made = composed(classic(3.0, 2.0), [1.0, -0.5])
    to = away + (one - away) - 0.5 * (two - away)
    torch.testing.assert_close(made.combine(outputs, None), empty + 3 * (to - empty) - 2 * (away - empty))


# -- regions


def test_the_masks_of_four_sub_prompts_are_red_green_blue_and_everything():
    image = Image.new("RGB", (3, 1))
    for x, color in enumerate([(255, 0, 0), (0, 51, 0), (0, 0, 102)]):
        image.putpixel((x, 0), color)
    found = masks_of(image, 4)
    torch.testing.assert_close(found[:, 0], torch.tensor([[1.0, 0, 0], [0, 0.2, 0], [0, 0, 0.4], [1, 1, 1]]))
    assert torch.equal(masks_of(Image.new("RGB", (3, 1)), 2), torch.ones(2, 1, 3)), "an empty one is the whole image"


def test_the_masks_of_color_codes_are_the_bits_of_their_number():
    image = Image.new("RGB", (4, 1))
    for x, color in enumerate([(255, 0, 0), (0, 255, 0), (255, 255, 0), (0, 0, 255)]):
        image.putpixel((x, 0), color)
    assert torch.equal(
        masks_of(image, 4, 3)[:, 0], torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 1, 1, 1]])
    )
    assert torch.equal(masks_of(image, 4, 4)[3, 0], torch.tensor([0.0, 0, 0, 1]))


# -- memory


def states(numbers):
    return TextStates(torch.zeros(1, numbers, 1))


def test_texts_that_were_read_longest_ago_leave_when_there_is_no_room():
    size = states(4).context.numel() * 4
    kept, read = TextStateCache(max_bytes=2 * size), []

    def get(key):
        kept.get(key, lambda: read.append(key) or states(4))

    for key in "abab":
        get(key)
    assert read == ["a", "b"], "two fit exactly"
    get("a")
    get("c")
    get("a")
    assert read == ["a", "b", "c"] and kept.bytes == 2 * size, "b was the one read longest ago"
    get("b")
    assert read == ["a", "b", "c", "b"]
    kept.get("large", lambda: states(99))
    assert kept.bytes == states(99).context.numel() * 4, "the one in use stays"


def test_networks_of_a_model_stay_up_to_their_number_and_bytes_the_newest(monkeypatch):
    class Held:
        def __init__(self, size):
            self.size = size

        def parameters(self):
            return [torch.empty(self.size, dtype=torch.uint8)]

    def left(sizes):
        model = torch.nn.Linear(1, 1)
        _NETWORKS[model] = {number: Held(size) for number, size in enumerate(sizes)}
        _forget_oldest(Components(denoiser=model, family="sd1"))
        return list(_NETWORKS[model])

    for count in (MOST_CACHED - 1, MOST_CACHED, MOST_CACHED + 1):
        assert left([1] * count) == list(range(count))[-20:]
    monkeypatch.setattr("core.generation.model.loras.MOST_CACHED_BYTES", 10)
    assert left([4, 3, 3]) == [0, 1, 2] and left([4, 3, 4]) == [1, 2] and left([4, 3, 11]) == []


@pytest.mark.parametrize(
    ("size", "wanted"), [((64, 64), 4), ((256, 256), 4), ((256, 264), 3), ((512, 512), 1), ((512, 520), 1)]
)
def test_a_cpu_makes_together_what_has_4096_latents(size, wanted):
    components = Components(denoiser=torch.nn.Linear(1, 1), family="sd1")
    assert images_at_once(components, *size) == wanted


# -- names, grids, previews


def test_a_name_has_at_most_120_characters():
    assert [len(_safe_name("x" * length)) for length in (119, 120, 121)] == [119, 120, 120]


def test_an_axis_has_at_most_1000_values():
    assert len(read_values("generate.steps", "1-1000")) == 1000
    with refused("grid.too-many-values"):
        read_values("generate.seed", "0-1000")


def test_images_of_a_batch_are_laid_in_rows():
    one = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 1, 1, 3)
    for count, wanted in {
        1: [[0]],
        2: [[0, 1]],
        3: [[0, 1], [2, 128]],
        4: [[0, 1], [2, 3]],
        5: [[0, 1, 2], [3, 4, 128]],
    }.items():
        assert tiled(one[:count])[..., 0].tolist() == wanted


@pytest.mark.parametrize(("has_loras", "said"), [(False, ["sampler.other-objective"]), (True, [])])
def test_a_sampler_is_refused_for_the_models_objective_unless_a_lora_may_change_it(monkeypatch, has_loras, said):
    problem = Problem("another objective", "generate.sampler", "choose another", code="sampler.other-objective")
    monkeypatch.setattr(sources, "sampler_problem", lambda *given: problem)
    found = sources.image_problems(build(GenerateJob, {"generate": {"prompt": "a"}}), "sd1", has_loras)
    assert [each.code for each in found if each.level == "error"] == said


def test_a_vae_next_to_a_model_that_a1111_would_use_is_told(tmp_path):
    model = tiny_file("sd1", tmp_path / "a.b.safetensors")
    space, job = Workspace(tmp_path / "outputs", tmp_path), job_of(model={"base_model": str(model)})
    codes = {note.code for note in sources.find_sources(job, space).notes}
    (tmp_path / "a.b.vae.pt").touch()
    told = {note.code for note in sources.find_sources(job, space).notes}
    assert told - codes == {"generate.vae-beside"}


@pytest.mark.parametrize(("alpha", "codes"), [(0.0, {"lora.zero-alpha"}), (4.0, set()), (None, set())])
def test_a_lora_of_alpha_0_is_said_to_have_no_effect(tmp_path, alpha, codes):
    name, sizes = "lora_unet_mid_block_attentions_0_proj_in", {"down": (4, 128, 1, 1), "up": (128, 4, 1, 1)}
    tensors = {f"{name}.lora_{side}.weight": torch.ones(size) for side, size in sizes.items()}
    tensors |= {} if alpha is None else {f"{name}.alpha": torch.tensor(alpha)}
    save_file(tensors, tmp_path / "fox.safetensors")
    job = job_of(generate={"loras": [{"file": str(tmp_path / "fox.safetensors")}]})
    assert {note.code for note in sources.find_sources(job, Workspace(tmp_path / "outputs")).notes} == codes
