"""What is said of a generation, what it makes and what it takes, each at its edge."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from core.families import family
from core.generation.effects.controls.checks import unused_images, with_control_images
from core.generation.effects.controls.hook import Controls
from core.generation.effects.perceptual import checks as perceptual
from core.generation.grids.axes import axes_of, read_values
from core.generation.grids.folder import list_grids
from core.generation.grids.plan import Cell, _seed, _unsupported_settings, expected_steps, parts_of
from core.generation.plan import files as sources
from core.generation.plan import forecast, initial
from core.generation.plan.checks import problems_of, stage_problems
from core.generation.plan.forecast import Needs, forecast_batch_size, peak_of
from core.generation.plan.initial import (
    blur_of,
    image_files,
    mask_size_advice,
    masks_of,
    size_from,
    with_initial_images,
)
from core.generation.plan.requests import Request, count_merged, count_merged_for_job, requests_of
from core.generation.plan.stages import least_strength
from core.generation.prompt.wildcards import no_files
from core.record.file_titles import file_stem
from core.record.workspace import Workspace
from core.settings.check import build
from core.settings.job import GenerateJob, GridJob
from tests.refusals import refused


def job_of(prompt="a fox", **groups):
    return build(GenerateJob, {"generate": {"prompt": prompt, "seed": 1} | groups.pop("generate", {}), **groups})


def asked(prompt, **groups):
    """(the job of a prompt with options, the codes of what is said of it)"""
    found, notes = requests_of(job_of(prompt, **groups), no_files)
    return found[0].job, [note.code for note in notes]


# -- what is said of one image, by its settings alone

MAP = {"regions": {"region_map": "x.png"}}
NET = {"nets": [{"file": "n", "image": "i.png"}]}
LATENT = {"highres_fix_upscaler": "latent"}


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ({}, []),
        ({"generate": {"guidance_start": 0.49, "guidance_end": 0.5}}, []),
        ({"generate": {"guidance_start": 0.5, "guidance_end": 0.5}}, ["guidance.range"]),
        ({"generate": {"guidance_scale": 1, "guidance": "apg"}}, ["generate.no-guidance"]),
        ({"generate": {"guidance_scale": 1.01, "guidance": "apg"}}, []),
        ({"generate": {"guidance": "apg"}}, []),
        ({"generate": {"guidance_scale": 1}}, []),
        ({"generate": {"guidance_scale": 1, "negative_scale": 0}}, ["generate.no-guidance"]),
        ({"generate": {"guidance_scale": 1, "negative_prompt": "b"}}, ["generate.no-guidance"]),
        ({"generate": {"guidance_scale": 1, "negative_prompt": "b", "guidance": "pag"}}, []),
        ({"generate": {"sampler": "euler", "guidance_scale": 7}}, []),
        ({"pag": {"pag_scale": 2}}, ["settings.no-effect"]),
        ({"pag": {"pag_scale": 2}, "generate": {"guidance": "pag"}}, []),
        ({"generate": {"prompt": "a AND b", "guidance_start": 0.1}, **MAP}, ["guidance.regions"]),
        ({"generate": {"prompt": "a AND b", "guidance_end": 0.9}, **MAP}, ["guidance.regions"]),
        ({"generate": {"prompt": "a AND b"}, **MAP}, []),
        (MAP, ["generate.no-regions"]),
        ({"hires": {"highres_fix_scale": 1.01}}, []),
        ({"hires": {"highres_fix_scale": 2, "highres_fix_strength": 0.5}}, ["generate.first-strength"]),
        ({"hires": {"highres_fix_scale": 2, "highres_fix_strength": 0.5}, "image_to_image": {"image_path": "a"}}, []),
        ({"hires": {"highres_fix_latents_upscaling": True}}, []),
        ({"hires": {"highres_fix_latents_upscaling": True, "highres_fix_upscaler": "nearest"}}, ["generate.two-upscalers"]),
        ({"hires": {"highres_fix_latents_upscaling": True, "highres_fix_upscaler_file": "a"}}, ["generate.two-upscalers"]),
        ({"hires": {"highres_fix_scale": 2, **LATENT}, "image_to_image": {"strength": 0.49}}, ["generate.latent-strength"]),
        ({"hires": {"highres_fix_scale": 2, **LATENT}, "image_to_image": {"strength": 0.5}}, []),
        ({"hires": {"highres_fix_scale": 2}, "image_to_image": {"strength": 0.3}}, []),
        ({"gradual_latent": {"gradual_latent_timesteps": 0}}, ["generate.no-gradual-latent"]),
        ({"gradual_latent": {"gradual_latent_timesteps": 0}, "generate": {"sampler": "euler_a"}}, []),
        (
            {"gradual_latent": {"gradual_latent_timesteps": 0}, "generate": {"sampler": "euler_a"},
             "image_to_image": {"image_path": "a", "mask_path": "b"}},
            ["generate.growing-mask"],
        ),
        ({"image_to_image": {"image_path": "a"}, "start_noise": {"noise_offset_prob": 0.1}}, ["generate.seed-noise"]),
        ({"image_to_image": {"image_path": "a"}, "start_noise": {"noise_offset_prob": 0}}, []),
        ({"start_noise": {"noise_offset_prob": 0.1, "pyramid_noise_prob": 0.1}}, []),
        ({"image_to_image": {"image_path": "a", "strength": 0.01}}, []),
        ({"image_to_image": {"image_path": "a", "strength": 0.04}, "model": {"compatibility": "sd-scripts-0.10"}},
         ["generate.no-steps"]),
        ({"image_to_image": {"image_path": "a", "strength": 0.05}, "model": {"compatibility": "sd-scripts-0.10"}}, []),
        ({"image_to_image": {"image_path": "a", "strength": 0}, "hires": {"highres_fix_scale": 1.5}}, []),
        ({"image_to_image": {"image_path": "a", "strength": 0}, "hires": {"highres_fix_scale": 0.5}},
         ["generate.no-steps"]),
        ({"image_to_image": {"image_path": "a", "strength": 0, "mask_path": "b"}, "hires": {"highres_fix_scale": 1.5}},
         ["generate.no-steps"]),
        # hooks
        ({"controls": NET}, []),
        ({"controls": {"nets": [{"file": "n"}]}}, ["controls.no-image"]),
        ({"controls": {"nets": [{"file": "n", "weight": 0}]}}, []),
        ({"controls": {"nets": [{"file": "n", "enabled": False}]}}, []),
        ({"controls": {"nets": [{"file": "n", "image": "i", "start_at": 0.5, "end_at": 0.5}]}}, ["controls.step-range"]),
        ({"controls": {"nets": [{"file": "n", "image": "i", "start_at": 0.49, "end_at": 0.5}]}}, []),
        ({"controls": {"control_image": "i"}}, ["controls.image-alone"]),
        ({"controls": {"control_image": "i"}, "perceptual": {"vgg16_guidance_scale": 1}}, []),
        ({"controls": NET, "deep_shrink": {"ds_depth_1": 0}}, ["controls.deep-shrink"]),
        ({"deep_shrink": {"ds_depth_1": 0}}, []),
        ({"perceptual": {"vgg16_guidance_scale": 1}}, ["perceptual.no-image"]),
        ({"perceptual": {"clip_image_guidance_scale": 1, "guide_image": "g"}}, []),
        ({"perceptual": {"guide_image": "g", "clip_guidance_scale": 1}}, ["perceptual.image-alone"]),
        ({"perceptual": {"clip_prompt": "a"}}, ["perceptual.prompt-alone"]),
        ({"perceptual": {"clip_prompt": "a", "clip_guidance_scale": 1}}, []),
        ({"perceptual": {"clip_guidance_scale": 1}, "generation_memory": {"offload": "layers"}}, ["perceptual.offload"]),
        ({"perceptual": {"clip_guidance_scale": 1}, "generation_memory": {"offload": "parts"}}, []),
        ({"generation_memory": {"offload": "layers"}}, []),
        ({"generate": {"prompt": "a AND b"}, "perceptual": {"clip_guidance_scale": 1}, **MAP}, ["perceptual.regions"]),
        # an image's text as prompt
        ({"generate": {"prompt": "a fox\nSteps: 12, Sampler: Euler a, CFG scale: 5"}}, ["prompt.settings"]),
        ({"generate": {"prompt": "Steps: a photo of steps, CFG"}}, []),
        # refiner
        ({"refiner": {"refiner_checkpoint": "r"}}, []),
        ({"refiner": {"refiner_checkpoint": "r"}, "generate": {"prompt": "a AND b"}, **MAP}, ["refiner.regions"]),
        ({"refiner": {"refiner_checkpoint": "r"}, "generate": {"loras": [{"file": "a"}]}}, ["refiner.loras"]),
        ({"refiner": {"refiner_checkpoint": "r"}, "generate": {"loras": [{"file": "a", "strength": 0}]}}, []),
        (
            {"refiner": {"refiner_checkpoint": "r"}, "generate": {"sampler": "euler_a"},
             "gradual_latent": {"gradual_latent_timesteps": 5}},
            ["refiner.gradual-latent"],
        ),
    ],
)  # fmt: skip
def test_what_is_said_of_one_image(groups, said):
    assert sorted(problem.code for problem in problems_of(job_of(**groups))) == said


@pytest.mark.parametrize(
    ("use", "used", "always"),
    [({}, True, True), ({"strength": 0}, False, True), ({"strength": 0, "text_encoder_strength": 0.1}, True, True)]
    + [({"enabled": False}, False, True), ({"start_at": 0.1}, True, False), ({"end_at": 0.9}, True, False)],
)
def test_whether_a_lora_acts(use, used, always):
    (lora,) = job_of(generate={"loras": [{"file": "a", **use}]}).generate.loras
    assert (lora.used, lora.always) == (used, always)


@pytest.mark.parametrize(
    ("loras", "said"),
    [
        ([{"start_at": 0.5, "end_at": 0.5}], ["lora.step-range"]), ([{"start_at": 0.4, "end_at": 0.5}], []),
        ([{"block_weights": "1,2"}], ["lora.block-weights"]), ([{"block_weights": None}], []),
    ],
)  # fmt: skip
def test_ranges_and_block_weights_of_loras(loras, said):
    job = job_of(generate={"loras": [{"file": "a", **each} for each in loras]})
    assert [each.code for each in sources.lora_problems([job], "sd1")] == said


@pytest.mark.parametrize(
    ("width", "height", "step", "fixes"),
    [(64, 72, 8, []), (72, 64, 16, ["use 64"]), (72, 136, 64, ["use 64", "use 128"]), (None, None, 64, [])],
)
def test_sides_are_multiples_of_the_familys_step(width, height, step, fixes):
    job = job_of(generate={"width": width, "height": height})
    assert [each.fix for each in sources.size_problems(job, step)] == fixes


def test_a_weight_that_is_no_number_is_told_where_weights_are_read():
    for weights, said in ((True, ["prompt.bad-weight"]), (False, [])):
        job = job_of(generate={"negative_prompt": "(a:1.2.3)", "prompt_weights": weights})
        assert [each.code for each in sources.weight_problems(job)] == said


@pytest.mark.parametrize(
    ("given", "image", "step", "size"),
    [
        ((None, None), (100, 75), 8, (96, 72)), ((64, None), (100, 75), 8, (64, 48)), ((None, 64), (100, 50), 8, (128, 64)),
        ((64, 128), (100, 75), 8, (64, 128)), ((None, None), (7, 7), 8, (8, 8)), ((None, None), (16, 15), 8, (16, 8)),
    ],
)  # fmt: skip
def test_the_size_for_an_initial_image(given, image, step, size):
    asked_for = {"width": given[0], "height": given[1]}
    assert size_from(job_of(generate=asked_for), image, step) == size
    kohya = job_of(generate=asked_for, model={"compatibility": "sd-scripts-0.10"})
    assert size_from(kohya, (100, 75), step) == tuple(side // 32 * 32 for side in size_from(kohya, (100, 75), 8))
    assert (blur_of(job_of()), blur_of(kohya), blur_of(job_of(image_to_image={"mask_blur": 0}))) == (4, 0, 0)


@pytest.mark.parametrize(
    ("size", "strength", "said"),
    [
        ((8, 8), 0.5, ["generate.image-size"]),
        ((64, 16_384), 0.5, []),
        ((64, 16_392), 0.5, ["generate.image-size"]),
        ((8, 8), 0, []),
    ],
)
def test_sizes_that_follow_from_an_initial_image_have_limits(size, strength, said):
    job = job_of(
        image_to_image={"image_path": "a", "strength": strength},
        hires={"highres_fix_scale": 2 if not strength else None},
    )
    job = job.with_settings(generate={"width": size[0], "height": size[1]})
    assert [problem.code for problem in stage_problems(job, family("sd1"))] == said


@pytest.mark.parametrize(("name", "said"), [("sd1", ["generate.sizes-ignored"]), ("sdxl", [])])
def test_sizes_of_sdxl_without_effect_are_told(name, said):
    job = job_of(sizes={"crop_top": 8}).with_settings(generate={"width": 512, "height": 512})
    assert [problem.code for problem in stage_problems(job, family(name))] == said


@pytest.mark.parametrize(
    ("size", "words"),
    [((10, 20), None), ((5, 10), "is resized"), ((20, 10), "is stretched"), ((10, 21), "is stretched")],
)
def test_a_mask_of_another_size_is_resized_or_stretched(size, words):
    from pathlib import Path

    found = list(mask_size_advice(Path("m.png"), size, (10, 20)))
    assert [each.what.endswith(words or "") for each in found] == [True] * (words is not None)


def test_a_folder_has_images_of_every_readable_format_sorted(tmp_path):
    images = ["a.jpg", "b.PNG", "c.jfif", "d.webp", "e.gif", "g.bmp", "h.tif", "i.avif"]
    for name in (*reversed(images), "f.txt", ".b.png", "Thumbs.db"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in image_files(str(tmp_path), "a")] == images
    assert image_files(str(tmp_path / "f.txt"), "a") == [tmp_path / "f.txt"]
    (tmp_path / "empty").mkdir()
    for name in ("empty", "gone"):
        with refused("image.missing", name):
            image_files(str(tmp_path / name), "a")


@pytest.mark.parametrize(("images", "masks", "pairs"), [(2, 2, "0011"), (3, 1, "001020"), (1, 2, "000100")])
def test_initial_images_and_masks_of_folders_take_turns(tmp_path, images, masks, pairs):
    for folder, count in (("i", images), ("m", masks)):
        (tmp_path / folder).mkdir()
        for number in range(count):
            (tmp_path / folder / f"{number}.png").write_bytes(b"")
    begin = {"image_path": str(tmp_path / "i"), "mask_path": str(tmp_path / "m")}
    requests, _ = requests_of(job_of(generate={"count": len(pairs) // 2}, image_to_image=begin), no_files)
    found = [each.job.image_to_image for each in with_initial_images(requests)]
    wanted = [pairs[2 * n : 2 * n + 2] for n in range(len(pairs) // 2)]
    assert [f"{each.image_path[-5]}{each.mask_path[-5]}" for each in found] == wanted


def test_a_folder_is_listed_once_for_all_images(tmp_path, monkeypatch):
    for name in ("a", "b"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    listed = []
    for module in (initial, perceptual):
        monkeypatch.setattr(module, "image_files", lambda text, where: listed.append(where) or image_files(text, where))
    begin, guide = {"image_path": str(tmp_path)}, {"guide_image": str(tmp_path), "vgg16_guidance_scale": 1.0}
    job = job_of(image_to_image=begin, perceptual=guide, regions={"region_map": str(tmp_path)})
    with_initial_images([Request(job)] * 4)
    perceptual.with_guide_images([job] * 4)
    assert listed == [initial.IMAGE, initial.MAP, initial.GUIDE]


@pytest.mark.parametrize(
    ("images", "masks", "found"),
    [
        ("a b", "b a", "a b"),
        ("a b", "a b c", "a b"),
        ("a b", "m n", "m n"),
        ("a b", "m n o", None),
        ("a b c", "a b", None),
        ("a b c", "a b d", None),
    ],
)
def test_masks_of_a_folder_belong_to_the_images_of_their_names_or_else_come_in_turn(images, masks, found):
    files = [[Path(f"{name}.png") for name in names.split()] for names in (images, masks)]
    if found:
        assert [mask.stem for mask in masks_of(*files)] == found.split()
        return
    with refused("generate.mask-count"):
        masks_of(*files)


def test_control_images_of_a_folder_are_dealt_to_the_nets_as_sd_scripts_does(tmp_path):
    for number in range(5):
        Image.new("RGB", (8, 8), "white").save(tmp_path / f"{number}.png")
    nets = [{"file": "a"}, {"file": "b"}, {"file": "c", "image": str(tmp_path / "4.png")}]
    for compatibility, dealt, left_over in (
        ("none", ["0", "1", "2", "3", "4", "0"], 0),
        ("sd-scripts-0.10", ["0 1", "2 3", "0 1", "2 3", "0 1", "2 3"], 1),
    ):
        jobs = [
            job_of(controls={"control_image": str(tmp_path), "nets": nets}, model={"compatibility": compatibility})
        ] * 6
        made = with_control_images(jobs)
        found = [[str(use.image or each.controls.control_image)[-5] for use in each.controls.nets] for each in made]
        assert [" ".join(dict.fromkeys(each[:2])) for each in found] == dealt and {each[2] for each in found} == {"4"}
        assert [each.code for each in unused_images(jobs)] == ["controls.left-over-images"] * left_over
        assert not list(unused_images(jobs[:1]))
    kohya = {"model": {"compatibility": "sd-scripts-0.10"}}
    with_control_images([job_of(controls={"control_image": str(tmp_path), "nets": nets[:1] * 5}, **kohya)])
    with refused("controls.too-few-images"):
        with_control_images([job_of(controls={"control_image": str(tmp_path), "nets": nets[:1] * 6}, **kohya)])
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(bytes(number + 1))
    with refused("image.unreadable", "0.png", "1.png"):
        with_control_images([job_of(controls={"control_image": str(tmp_path), "nets": nets[:1]})] * 6)


# -- how many images, and their seeds


def test_a_job_has_a_limited_number_of_images(monkeypatch):
    monkeypatch.setattr("core.generation.plan.requests.MAX_IMAGES", 3)
    for count, repeats, refuses in ((3, 1, False), (4, 1, True), (1, 3, False), (2, 2, True)):
        job = job_of(generate={"count": count}, prompts={"n_iter": repeats})
        if refuses:
            with refused("generate.too-many-images"):
                requests_of(job, no_files)
        else:
            assert len(requests_of(job, no_files)[0]) == 3


def test_seeds_count_up_and_begin_again_after_the_last():
    found, _ = requests_of(job_of(generate={"count": 3, "seed": 2**64 - 2}), no_files)
    assert [each.seed for each in found] == [2**64 - 2, 2**64 - 1, 0]
    found, _ = requests_of(job_of("a --d 7,9", generate={"count": 3}), no_files)
    assert [each.seed for each in found] == [7, 9, 9]
    found, _ = requests_of(job_of(generate={"count": 2}, prompts={"n_iter": 2, "iter_same_seed": True}), no_files)
    assert [each.seed for each in found] == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("settings", "first", "with_tag"),
    [({}, 0, 0), ({"network_merge": True}, 2, 2), ({"network_merge_n_models": 1}, 1, 1), ({"network_pre_calc": True}, 0, 3)]
    + [({"network_merge_n_models": 5}, 2, 2), ({"network_merge_n_models": 0, "network_merge": True}, 0, 0)],
)  # fmt: skip
def test_how_many_loras_are_merged(settings, first, with_tag):
    job = job_of(generate={"loras": [{"file": "a"}, {"file": "b"}], **settings})
    assert (count_merged_for_job(job), count_merged(job, 3)) == (first, with_tag)
    found, _ = asked("a --am 0.5", generate={"loras": [{"file": "a"}, {"file": "b"}], **settings})
    assert [use.strength for use in found.generate.loras] == [1.0] * first + [0.5] * (2 - first)


def test_a_merged_lora_acts_at_every_step():
    for end, refuses in ((1, False), (0.9, True)):
        job = job_of(generate={"loras": [{"file": "a", "end_at": end}], "network_merge": True})
        if refuses:
            with refused("lora.merged-range"):
                requests_of(job, no_files)
        else:
            requests_of(job, no_files)


def test_a_lora_in_the_prompt_is_not_merged_in_the_job_and_from_its_image():
    a = {"loras": [{"file": "a"}], "network_merge": True}
    found, _ = asked("x <lora:b:1:step=0-1>", generate=a)
    assert count_merged(found, 2) == count_merged_for_job(found) == 1
    (again,), _ = requests_of(found, no_files)
    assert count_merged(again.job, 2) == 1


# -- grids


def grid_job(prompt="a fox", generate=None, prompts=None, **grid):
    given = {"prompt": prompt, "seed": 5, **(generate or {})}
    return build(GridJob, {"generate": given, "prompts": prompts or {}, "grid": grid})


@pytest.mark.parametrize(
    ("vary", "seeds"),
    [("", [5, 5, 5]), ("x", [5, 6, 5]), ("y", [5, 5, 7]), ("xy", [5, 6, 9]), ("z", [5, 5, 5])],
)
def test_seeds_vary_along_the_axes_that_say_so(vary, seeds):
    axes = {"x_axis": "steps", "x_values": "1,2", "y_axis": "cfg scale", "y_values": "1,2,3"}
    job = grid_job(**axes, **{f"vary_seeds_{letter}": True for letter in vary})
    assert [_seed(job, axes_of(job), at) for at in ((0, 0, 0), (1, 0, 0), (0, 2, 0))] == seeds


def test_a_grid_refuses_lists_of_prompts_and_ignores_the_number_of_images():
    for generate, prompts, codes in (
        ({}, {}, []),
        ({"count": 2}, {}, ["grid.count-ignored"]),
        ({}, {"from_file": "a"}, ["grid.prompt-file"]),
        ({"count": 2}, {"from_module": "a"}, ["grid.count-ignored", "grid.prompt-file"]),
    ):
        job = job_of(generate=generate, prompts=prompts)
        assert [each.code for each in _unsupported_settings(job)] == codes


def test_a_grid_has_at_most_a_thousand_images():
    axes = {"x_axis": "steps", "x_values": "1-100", "y_axis": "cfg scale"}
    assert len(axes_of(grid_job(**axes, y_values="1-10"))) == 2
    with refused("grid.too-many-cells", "1,100"):
        axes_of(grid_job(**axes, y_values="1-11"))


def test_the_steps_of_a_grid_are_those_of_its_cells():
    axes = {"x_axis": "steps", "x_values": "1,2", "y_axis": "cfg scale", "y_values": "1,2,3"}
    job = grid_job(**axes)
    assert expected_steps(job, axes_of(job)) == 9
    job = grid_job(**axes, z_axis="hires upscale", z_values="none, 2")
    assert expected_steps(job, axes_of(job)) == 3 * (1 + 2 + 2 + 4)


@pytest.mark.parametrize(
    ("text", "stem"),
    [("a/b.safetensors", "b"), ("a\\b.CKPT", "b"), ("b.v1.5", "b.v1.5"), ("b.pt", "b"), ("b.bin", "b"), ("", ""), ("a/", "a")]
    + [("/", "/"), (".pt", "")],
)  # fmt: skip
def test_the_name_of_a_file_on_an_axis(text, stem):
    assert file_stem(text) == stem


@pytest.mark.parametrize(
    ("setting", "text", "labels"),
    [
        ("generate.prompt_weights", "yes, no, TRUE", ["on", "off", "on"]), ("generate.guidance_scale", "none, 7.50", ["none", "7.5"]),
        ("generate.embeddings", "w=a.pt;x/b.pt, none", ["w, b", "none"]), ("size", "64x128", ["64 × 128"]),
        ("lora_strength", "1.0, -10", ["1", "-10"]), ("generate.prompt", "a --s 5, b --s 5", ["a", "b"]),
        ("generate.prompt", "a --s 5, a --s 6", ["a --s 5", "a --s 6"]), ("lora", "none", ["none"]),
        ("generate.steps", "1-10 [1], 3-3", ["1", "3"]),
    ],
)  # fmt: skip
def test_labels_of_an_axis(setting, text, labels):
    assert [each.text for each in read_values(setting, text)] == labels


def test_parts_of_a_grid_load_each_model_once_and_put_alike_images_together():
    def cell(number, model="m", lora="l", steps=1, seed=1):
        generate = {"loras": [{"file": lora}], "steps": steps, "seed": seed}
        return Cell((number, 0, 0), Request(job_of(generate=generate, model={"base_model": model})))

    cells = [cell(0), cell(1, model="n"), cell(2, lora="k"), cell(3, steps=2), cell(4, seed=2), cell(5, model="n")]
    parts = parts_of(cells)
    assert [[each.position[0] for each in part.cells] for part in parts] == [[0, 4, 3], [2], [1, 5]]
    assert [part.loads for part in parts] == [True, False, True]


# -- the forecast of memory

NEEDS = Needs(denoiser=100, layer=10, vae=7, texts=20, reading=15, evaluation=30, decoding=50, in_strips=9, loras=3)


@pytest.mark.parametrize(
    ("needs", "peaks"),
    [  # off, parts, layers; then with the VAE in strips
        (NEEDS, [180, 160, 60, 160, 133, 53]),
        (replace(NEEDS, evaluation=80), [210, 183, 103, 210, 183, 103]),
        (replace(NEEDS, upscaling=300), [430, 403, 303, 430, 403, 303]),
        (replace(NEEDS, gradient=90), [220, 200, 100, 220, 200, 100]),
        (replace(NEEDS, reading=500), [180, 603, 503, 160, 603, 503]),
    ],
)
def test_what_a_generation_takes_by_what_rests_in_ram(needs, peaks):
    found = [needs.peak(offload, sliced) for sliced in (False, True) for offload in ("off", "parts", "layers")]
    assert found == peaks


def test_a_refiner_is_on_the_device_with_the_model_or_alone():
    refiner = replace(NEEDS, denoiser=400, texts=1, evaluation=60, loras=0)
    assert peak_of(NEEDS, [], "parts") == 160 == NEEDS.peak("parts")
    assert peak_of(NEEDS, [refiner], "off") == 3 + 500 + 7 + 21 + 60
    assert peak_of(NEEDS, [refiner], "parts") == 3 + 400 + 60
    assert peak_of(NEEDS, [replace(refiner, denoiser=1)], "parts") == 160


@pytest.mark.parametrize(
    ("groups", "device", "sides", "images"),
    [
        ({"generate": {"count": 9}}, "cpu", (256, 256), 4), ({"generate": {"count": 9}}, "cpu", (256, 512), 2),
        ({"generate": {"count": 1}}, "cpu", (64, 64), 1), ({"generate": {"count": 9}}, "cpu", (64, 64), 4),
        ({"generate": {"count": 9}}, "cpu", (1024, 1024), 1),
        ({"generate": {"count": 9}}, "cuda", (64, 64), 1), ({"generate": {"count": 9, "batch_size": 3}}, "cuda", (64, 64), 3),
        ({"generate": {"count": 2, "batch_size": 3}}, "cpu", (64, 64), 2),
        ({"generate": {"count": 9}, "perceptual": {"clip_guidance_scale": 1}}, "cpu", (64, 64), 1),
    ],
)  # fmt: skip
def test_the_smallest_batch_of_a_generation(groups, device, sides, images):
    assert forecast_batch_size(job_of(**groups), device, sides, 8) == images


def test_the_strength_that_is_proposed_runs_a_step():
    assert all(int(steps * float(f"{least_strength(steps):g}")) >= 1 for steps in range(1, 1001))


@pytest.mark.parametrize(
    ("needs", "offload"),
    [((100, 0, 0), "off"), ((700, 0, 0), "off"), ((650, 150, 0), "parts"), ((900, 0, 5), "layers")],
)
def test_the_fastest_offload_that_fits_is_chosen(monkeypatch, needs, offload):
    """A GPU of 1,000 bytes, of which torch takes 100: nine tenths without these are 800."""
    denoiser, texts, layer = needs
    own = Needs(denoiser, layer, 0, texts, 0, 0, 0, 0)
    monkeypatch.setattr("core.generation.plan.forecast.needs_of", lambda job, parts: own)
    monkeypatch.setattr("core.generation.plan.forecast.machine.memory", lambda device: (0, 1000))
    monkeypatch.setitem(forecast.machine.RUNTIME_BYTES, "cuda", 100)
    parts = SimpleNamespace(device="cuda:0")
    assert forecast.offload_of(job_of(), parts) == offload
    chosen = job_of(generation_memory={"offload": "layers"})
    assert forecast.offload_of(chosen, parts) == "layers"
    assert forecast.offload_of(chosen, SimpleNamespace(device="cpu")) == "off"
    gradient = job_of(perceptual={"clip_guidance_scale": 1})
    assert forecast.offload_of(gradient, parts) == ("parts" if offload == "layers" else offload)


# -- steps of hooks


@pytest.mark.parametrize(
    ("compatibility", "use", "acting"),
    [
        ("none", {"end_at": 0.5}, "1100"), ("none", {"end_at": 0.6}, "1100"), ("none", {"start_at": 0.25}, "0111"),
        ("none", {"start_at": 0.26}, "0011"), ("sd-scripts-0.10", {"end_at": 0.5}, "1110"), ("none", {}, "1111"),
        ("sd-scripts-0.10", {"end_at": 0.49}, "1100"),
    ],
)  # fmt: skip
def test_the_steps_at_which_a_controlnet_acts(compatibility, use, acting):
    nets = [{"file": "a", "image": "i", **use}]
    job = job_of(controls={"nets": nets}, model={"compatibility": compatibility})
    hook = Controls.__new__(Controls)
    hook._inputs = SimpleNamespace(job=job, family=SimpleNamespace(name="sdxl"))
    hook._uses, hook._nets = job.controls.nets, [None]
    found = [hook._acting(SimpleNamespace(index=index, steps=4))[0] for index in range(4)]
    assert "".join(str(int(on)) for on in found) == acting


def test_the_newest_grid_is_listed_first(tmp_path):
    space = Workspace(tmp_path)
    for name in ("20260102-000000_b", "20260103-000000_a", "20260101-000000_c", "no grid"):
        (space.grids / name).mkdir(parents=True)
        if name != "no grid":
            (space.grids / name / "grid.json").write_text("{}")
    assert [each.name[7] for each in list_grids(space)] == ["3", "2", "1"]
