"""Texts of many programs and their extensions: what is there is read or named, and nothing else is said."""

from __future__ import annotations

import html
import json
import math
import time
import zlib

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from core.captioning.source.metadata import ImageTexts
from core.diffusion.noise_levels import LEVELS
from core.generation.images.a1111 import a1111_text, from_a1111_text
from core.generation.images.metadata import read_image_metadata
from core.generation.model.sources import Hashes
from tests.generation.images.test_foreign_metadata import comfy, notes_of, read

LINE = "Steps: 9, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 5, Size: 512x640"


def settings(record):
    found = record.job.generate
    return (found.prompt, found.negative_prompt, found.seed, found.sampler, f"{found.width}x{found.height}")


def loras(record):
    return [(use.file, use.strength) for use in record.job.generate.loras]


# -- A1111's text


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (', Hashes: {"model":"6ce0161689","lora:ink":"a1b2c3d4e5","embed:bad":"f0"}, Tiling: True', "Tiling"),
        (', Civitai resources: [{"type":"lora","weight":0.8,"modelName":"a,b: c"}], NGMS: 2', "NGMS, Civitai resources (lora a,b: c 0.8)"),
        (
            ', Civitai resources: [{"type":"lora","modelName":"a"},{"type":"embed","weight":1}]',
            "Civitai resources (lora a), Civitai resources (embed 1)",
        ),
        (', Civitai resources: [{"type":"checkpoint","modelName":"x"}], Civitai metadata: {"a": {"b": 1}}', ""),
        (', Cutoff targets: ["red", "blue"], Cutoff weight: 0.5', "Cutoff targets, Cutoff weight"),
        (', Broken: {"a": , FreeU Version: 2', "Broken, FreeU Version"),
        ("\nPostprocess upscale by: 2, Postprocess upscaler: 4x", "Postprocess upscale by, Postprocess upscaler"),
    ],
)  # fmt: skip
def test_values_that_are_json_and_lines_of_the_extras_tab_hide_nothing(more, named):
    record = from_a1111_text(f"a hat\nNegative prompt: blur\n{LINE}{more}")
    assert settings(record) == ("a hat", "blur", 5, "dpmsolver++", "512x640")
    assert notes_of(record).get("not-read", "").partition(": ")[2] == named


@pytest.mark.parametrize(
    "prompt",
    ["Subject: a cat, Style: oil, Light: soft", "a cat\nhair: red, dress: blue, pose: sitting", "Steps: to the house, up: high, on: it"],
)  # fmt: skip
def test_a_prompt_of_named_parts_is_no_line_of_settings(prompt):
    record = from_a1111_text(prompt)
    assert record.job.generate.prompt == prompt and notes_of(record).keys() == {"prompt-alone"}


def test_sd_next_and_fooocus_write_a1111s_text_with_names_of_their_own():
    more = "CFG rescale: 0.7, Variation seed: 3, Variation strength: 0.5, App: SD.Next, Version: 8d1bd7f, Operations: txt2img"
    record = from_a1111_text(f"a hat\n{LINE}, {more}")
    assert record.job.generate.guidance_rescale == 0.7 and record.job.generate.variation_strength == 0.5
    assert record.job.start_noise.noise_source == "cpu" and not record.notes  # not the GPU's, as A1111's would be
    line = "Steps: 9, Sampler: DPM++ 2M SDE, Scheduler: karras, Seed: 5, Size: 512x640, Base Model: jug, VAE: Default (model)"
    record = from_a1111_text(
        f'a hat\n{line}, Lora hashes: "ink: a1b2", Lora weights: "ink: 0.1, b: -2", Version: Fooocus v2.5.5'
    )
    assert loras(record) == [("ink", 0.1), ("b", -2)] and record.job.model.vae is None
    assert record.job.generate.schedule_type == "karras" and notes_of(record).keys() == {"other-model"}


@pytest.mark.parametrize(
    ("name", "sampler", "schedule"),
    [
        ("euler_ancestral_karras", "euler_a", "karras"),
        ("dpmpp_2m_sde_gpu_sgm_uniform", "dpmsolver++_2m_sde", "sgm"),
        ("uni_pc_bh2_simple", "unipc", "simple"),
        ("ddim", "ddim", "own"),
    ],
)
def test_nodes_of_comfyui_that_write_a1111s_text_use_comfyuis_names(name, sampler, schedule):
    record = from_a1111_text(
        f"a hat\nSteps: 9, Sampler: {name}, CFG scale: 7, Seed: 5, Size: 512x640, Version: ComfyUI"
    )
    assert (record.job.generate.sampler, record.job.generate.schedule_type) == (sampler, schedule) and not record.notes


@pytest.mark.parametrize(
    "text",
    [
        f"a hat, red\nNegative prompt: blur\n{LINE}, ADetailer prompt: a face\nred lips\nVersion: v1.6",
        f"a hat, red Negative prompt: blur {LINE}",
        f"a hat, red\n\nNegative Prompt: blur\n\n{LINE}\n\nUsed embeddings: x [ab12]",
    ],
)
def test_texts_that_lost_or_gained_line_breaks_are_read(text):
    assert settings(from_a1111_text(text)) == ("a hat, red", "blur", 5, "dpmsolver++", "512x640")


def test_passes_and_regions_of_a_control_net_are_named():
    unit = "Module: canny, Model: c [0123abcd], Weight: 1, Hr Option: {}, Effective Region Mask: None"
    for option, named in (("Both", ""), ("Low res only", "ControlNet 0 hr option")):
        record = from_a1111_text(f'a hat\n{LINE}, ControlNet 0: "{unit.format(option)}"')
        assert notes_of(record).get("not-read", "").partition(": ")[2] == named


def test_hires_fix_of_sd_next_is_read():
    record = from_a1111_text(
        f"a hat\n{LINE}, Hires scale: 2, Hires steps: 6, Hires upscaler: Latent, Hires strength: 0.4, App: SD.Next"
    )
    assert (record.job.hires.highres_fix_scale, record.job.image_to_image.strength) == (2, 0.4) and not record.notes


def test_a_sampler_that_works_otherwise_is_not_taken_for_one_of_a_like_name():
    assert "no-sampler" in notes_of(
        from_a1111_text("a hat\nSteps: 9, Sampler: dpmpp_2m_cfg_pp, Seed: 5, Size: 512x640")
    )


@pytest.mark.parametrize(
    ("label", "sampler"),
    [
        ("Restart, Schedule type: Karras", "ddim"),
        ("DPM++ 2M SDE Heun, Schedule type: Karras", "dpmsolver++_2m_sde"),
        ("DPM++ 2M SDE Heun Karras", "dpmsolver++_2m_sde"),
        ("dpmpp_2m_sde_heun_gpu_karras", "dpmsolver++_2m_sde"),
    ],
)
def test_an_unknown_sampler_is_replaced_by_its_nearest_relative_with_its_schedule(label, sampler):
    record = from_a1111_text(f"a hat\nSteps: 9, Sampler: {label}, Seed: 5, Size: 512x640, Version: v1.10.1")
    assert (record.job.generate.sampler, record.job.generate.schedule_type) == (sampler, "karras")
    assert set(notes_of(record)) == {"no-sampler"}
    record = from_a1111_text("a hat\nSteps: 9, Sampler: DPM fast, Schedule type: Turbo, Seed: 5, Size: 512x640")
    note = notes_of(record)["noise-schedule"]
    assert "Turbo" in note and "the sampler's own is used" in note and "slightly" not in note


def test_polyexponential_of_k_diffusion_with_its_rho_of_1_is_our_exponential():
    line = "Steps: 9, Sampler: DPM++ 2M, Schedule type: Polyexponential, Seed: 5, Size: 512x640, Version: v1.10.1"
    record = from_a1111_text(f"a hat\n{line}")
    assert record.job.generate.schedule_type == "exponential" and not record.notes
    assert "Schedule type: Exponential" in a1111_text(record.job, Hashes())
    low, high = math.log(0.0292), math.log(14.6146)
    # get_sigmas_polyexponential
    published = [math.exp((1 - step / 8) ** 1.0 * (high - low) + low) for step in range(9)]
    levels = LEVELS["exponential"](torch.tensor([0.0292, 14.6146], dtype=torch.float64), 9)
    assert levels[:-1].tolist() == pytest.approx(published)


def test_steps_of_loras_are_read_by_both_notations():
    record = from_a1111_text(f"a <lora:ink:1:start=3:stop=6> <lora:b:1:step=3-6>\n{LINE}")
    assert [(use.start_at, use.end_at) for use in record.job.generate.loras] == [(3 / 9, 6 / 9)] * 2


def test_what_the_extras_tab_did_is_named(tmp_path):
    block, done = f"a hat\n{LINE}", "Postprocess upscale by: 4, Postprocess upscaler: R-ESRGAN 4x+"
    for name in ("postprocessing", "extras"):
        record = read(tmp_path, parameters=block, **{name: done})
        assert settings(record)[0] == "a hat" and "Postprocess upscaler" in notes_of(record)["not-read"]
        assert read(tmp_path, **{name: done}).job is None


@pytest.mark.parametrize("ending", ["gif", "jpg"])
def test_a_files_own_comment_is_read(tmp_path, ending):
    Image.new("RGB", (64, 64)).save(tmp_path / f"x.{ending}", comment=f"a hat\n{LINE}".encode())
    assert settings(read_image_metadata(tmp_path / f"x.{ending}"))[0] == "a hat"


@pytest.mark.parametrize("name", ["Parameters", "Comment", "Description"])
def test_a1111s_text_is_read_wherever_it_is(tmp_path, name):
    assert settings(read(tmp_path, **{name: f"a hat\n{LINE}"}))[0] == "a hat"
    assert read(tmp_path, **{name: "a hat. Steps: many"}).job is None
    exif = Image.Exif()
    exif[0x010E] = f"a hat\n{LINE}"
    Image.new("RGB", (64, 64)).save(tmp_path / "x.jpg", exif=exif)
    assert settings(read_image_metadata(tmp_path / "x.jpg"))[0] == "a hat"


# -- other programs


EASY = {
    "prompt": "a hat", "negative_prompt": "blur", "seed": "5", "num_inference_steps": "9", "guidance_scale": "7", "width": "512",
    "height": "640", "sampler_name": "dpmpp_2m", "use_stable_diffusion_model": "sd", "clip_skip": "True", "use_lora_model": "['ink']",
    "lora_alpha": "[0.5]", "used_random_seed": "True", "tiling": "xy",
}  # fmt: skip
DRAW = {
    "c": "a hat", "uc": "blur", "sampler": "DPM++ 2M Karras", "scale": 7, "seed": 5, "size": "512x640", "steps": 9, "strength": 1,
    "model": "sd.ckpt", "lora": [{"model": "ink.ckpt", "weight": 0.5}], "v2": {"clipSkip": 1}, "sharpness": 2,
}  # fmt: skip
FOOOCUS = {
    "Prompt": "a hat", "Negative Prompt": "blur", "Resolution": "(512, 640)", "Guidance Scale": 7, "Base Model": "sd",
    "Sampler": "dpmpp_2m", "Scheduler": "karras", "Seed": "5", "LoRA 1": "ink.safetensors : 0.5", "Sharpness": 2.0, "Version": "v2.1",
}  # fmt: skip
XMP = '<exif:UserComment><rdf:Alt><rdf:li xml:lang="x-default">{}</rdf:li></rdf:Alt></exif:UserComment>'
NOVELAI = {"steps": 9, "sampler": "k_dpmpp_2m", "seed": 5, "scale": 7, "uc": "blur", "width": 512, "height": 640}


@pytest.mark.parametrize(
    ("texts", "source", "left"),
    [
        (EASY, "easy diffusion", "tiling"),
        ({"parameters": EASY}, "easy diffusion", "tiling"),
        ({"XML:com.adobe.xmp": XMP.format(html.escape(json.dumps(DRAW)))}, "draw things", "sharpness"),
        ({"parameters": DRAW}, "draw things", "sharpness"),
        ({"Comment": FOOOCUS}, "fooocus", "Sharpness"),
        ({"parameters": FOOOCUS}, "fooocus", "Sharpness"),
    ],
)
def test_programs_are_known_by_what_they_write_wherever_it_is(tmp_path, texts, source, left):
    record = read(tmp_path, **texts)
    assert settings(record) == ("a hat", "blur", 5, "dpmsolver++", "512x640") and record.source == source
    assert loras(record) == [("ink", 0.5)] and notes_of(record)["not-read"].endswith(f": {left}")
    assert notes_of(record).keys() == {"other-program", "other-model", "not-read"}


def test_json_of_a_program_that_is_not_known_gives_what_has_a_common_name(tmp_path):
    said = {"Prompt": "a hat", "negative_prompt": "blur", "seed": 5, "width": 512, "height": 640, "cfg": 3, "odd": 1}
    record = read(tmp_path, parameters=said | {"sampler": "dpmpp_2m"})
    assert (
        settings(record) == ("a hat", "blur", 5, "dpmsolver++", "512x640") and record.job.generate.guidance_scale == 3
    )
    assert notes_of(record)["not-read"].endswith(": odd")


def test_novelai_has_its_prompt_next_to_its_settings_and_all_in_one_text_in_webp(tmp_path):
    record = read(tmp_path, Software="NovelAI", Description="a hat", Comment=NOVELAI)
    assert settings(record) == ("a hat", "blur", 5, "dpmsolver++", "512x640") and record.source == "novelai"
    inner = {"Software": "NovelAI", "Description": "a hat", "Comment": json.dumps(NOVELAI)}
    assert settings(read(tmp_path, parameters=inner)) == settings(record)


def test_the_command_line_of_invokeai(tmp_path):
    record = read(tmp_path, Dream='"a hat [blur]" -s 9 -S5 -W 512 -H 640 -C 7 -A k_dpm_2 -G 0.8')
    assert settings(record) == ("a hat", "blur", 5, "dpm_2", "512x640") and record.job.generate.steps == 9
    assert notes_of(record)["not-read"].endswith(": gfpgan strength")


@pytest.mark.parametrize(
    "text", ['"' + "a" * 1_900_000 + '" -s 3', "<rdf:li>{" * 200_000, ">{&quot;" * 200_000, "Steps: 1, a: [{" * 12_000]
)
def test_texts_made_to_be_slow_are_answered_at_once(tmp_path, text):
    begun = time.thread_time()
    for name in ("Dream", "XML:com.adobe.xmp", "parameters"):
        read(tmp_path, **{name: text})
    assert time.thread_time() - begun < 3


def test_layers_that_are_skipped_are_counted_as_a1111_does(tmp_path):
    record = read(
        tmp_path,
        invokeai_metadata={"positive_prompt": "a", "clip_skip": 1, "rand_device": "cuda", "scheduler": "kdpm_2_a"},
    )
    assert record.job.model.clip_skip == 2 and record.job.start_noise.noise_source == "device"
    assert record.job.generate.sampler == "dpm_2_a" and notes_of(record).keys() == {"other-program"}
    own = {"prompt": "a", "clipstopatlayer": -2, "variationseed": 4, "variationseedstrength": 0.2, "date": "2025-01-01"}
    record = read(tmp_path, parameters={"sui_image_params": own})
    assert (record.job.model.clip_skip, record.job.generate.variation_seed) == (2, 4)
    assert notes_of(record).keys() == {"other-program"}


# -- ComfyUI


TAKES = {"positive": ["2", 0], "negative": ["3", 0], "model": ["1", 0], "latent_image": ["4", 0]}
SAMPLED = {"seed": 5, "steps": 9, "cfg": 7.0, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1.0}
LOADED = {
    "ckpt_name": "m.safetensors", "vae_name": "Baked VAE", "clip_skip": -2, "positive": "a hat", "negative": "blur",
    "empty_latent_width": 512, "empty_latent_height": 640,
}  # fmt: skip
PLAIN = {
    "1": ("CheckpointLoaderSimple", {"ckpt_name": "m.safetensors"}),
    "2": ("CLIPTextEncode", {"text": "a hat"}),
    "3": ("CLIPTextEncode", {"text": "blur"}),
    "4": ("EmptyLatentImage", {"width": 512, "height": 640}),
    "5": ("KSampler", SAMPLED | TAKES),
}


def nodes(*more, **changed):
    """The plain graph with these nodes: n2=(kind, inputs); more: whole graphs over it"""
    graph = {**PLAIN, **{name[1:]: each for name, each in changed.items()}} if not more else dict(*more)
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in graph.items()}


def text_of(*chain):
    """The plain graph with the prompt from a chain of nodes."""
    linked = {f"n{number}": node for number, node in enumerate(chain, 8)}
    return nodes(n2=("CLIPTextEncode", {"text": ["8", 0]}), **linked)


STACK = {
    "switch_1": "On",
    "lora_name_1": "ink.safetensors",
    "model_weight_1": 0.5,
    "clip_weight_1": 0.5,
    "switch_2": "Off",
    "lora_name_2": "x",
}
EFFICIENT = {
    "input_mode": "simple",
    "lora_count": 1,
    "lora_name_1": "ink",
    "lora_wt_1": 0.5,
    "model_str_1": 1.0,
    "lora_name_2": "x",
    "lora_wt_2": 1,
}
BY_PIPE = TAKES | {"positive": ["1", 1], "negative": ["1", 2], "latent_image": ["1", 3]}
LOADED_LORA = LOADED | {"lora_name": "ink", "lora_model_strength": 0.5}
MANAGED = [{"name": "ink", "strength": 0.5, "active": True}, {"name": "x", "strength": 1, "active": False}]
PIPED = {
    "efficient": {"1": ("Efficient Loader", LOADED_LORA), "2": ("KSampler (Efficient)", SAMPLED | BY_PIPE)},
    "stacked": {
        "1": ("Efficient Loader", LOADED | {"lora_stack": ["9", 0]}),
        "2": ("KSampler (Efficient)", SAMPLED | BY_PIPE),
        "9": ("LoRA Stacker", EFFICIENT),
    },
    "easy": {
        "1": ("easy fullLoader", LOADED_LORA),
        "2": ("easy preSampling", SAMPLED | {"pipe": ["1", 0]}),
        "3": ("easy kSampler", {"pipe": ["2", 0]}),
    },
    "tiny": {
        "1": ("ttN pipeLoader_v2", LOADED | {"loras": "<lora:ink:0.5>"}),
        "2": ("ttN pipeKSampler_v2", SAMPLED | {"pipe": ["1", 0]}),
    },
    "impact": PLAIN
    | {
        "5": ("ImpactKSamplerBasicPipe", SAMPLED | {"basic_pipe": ["6", 0], "latent_image": ["4", 0]}),
        "6": ("ToBasicPipe", TAKES | {"model": ["7", 0]}),
        "7": ("CR Apply LoRA Stack", {"model": ["1", 0], "lora_stack": ["8", 0]}),
        "8": ("CR LoRA Stack", STACK),
    },
    "manager": PLAIN
    | {
        "5": ("KSampler", SAMPLED | TAKES | {"model": ["7", 0]}),
        "7": ("Lora Loader (LoraManager)", {"loras": {"__value__": MANAGED}, "model": ["1", 0]}),
    },
}


@pytest.mark.parametrize("graph", PIPED)
def test_loaders_pipes_and_stacks_of_common_nodes_are_read(tmp_path, graph):
    record = read(tmp_path, prompt=nodes(PIPED[graph]))
    assert settings(record) == ("a hat", "blur", 5, "dpmsolver++", "512x640") and record.job.model.vae is None
    assert loras(record) == [("ink", 0.5)] and notes_of(record).keys() == {"other-program", "other-model"}
    assert record.job.model.clip_skip == (2 if PIPED[graph]["1"][1] is not PLAIN["1"][1] else None)


def test_a_graph_in_exif_is_read_as_websites_write_it(tmp_path):
    graph = json.dumps(nodes() | {"extra": {"airs": []}, "extraMetadata": "{}"})
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + graph.encode("utf-16-be")
    Image.new("RGB", (64, 64)).save(tmp_path / "x.jpg", exif=exif)
    assert settings(read_image_metadata(tmp_path / "x.jpg")) == ("a hat", "blur", 5, "dpmsolver++", "512x640")


CONST = ("PrimitiveString", {"value": "a hat"})


@pytest.mark.parametrize(
    ("graph", "prompt", "named"),
    [
        (text_of(("StringReplace", {"string": "a cat", "find": "cat", "replace": "hat"})), "a hat", ""),
        (text_of(("SDXLPromptStyler", {"text_positive": "a hat", "style": "x"})), "a hat", "SDXLPromptStyler"),
        (text_of(("DPRandomGenerator", {"text": "a {hat|cat}"})), "a {hat|cat}", "DPRandomGenerator"),
        (text_of(("ImpactSwitch", {"select": 2, "input1": ["3", 0], "input2": ["9", 0]}), CONST), "a hat", "ImpactSwitch"),
        (text_of(("Any Switch (rgthree)", {"any_01": ["9", 0], "any_02": ["3", 0]}), CONST), "a hat", "Any Switch (rgthree)"),
        (nodes(n4=("VAEEncodeForInpaint", {"pixels": ["9", 0]}), n9=("LoadImage", {})), "a hat", "VAEEncodeForInpaint, LoadImage"),
        (nodes(n9=("FrameInterpolation", {})), "a hat", "FrameInterpolation"),
    ],
)  # fmt: skip
def test_nodes_that_change_a_text_are_followed_or_named(tmp_path, graph, prompt, named):
    record = read(tmp_path, prompt=graph)
    assert record.job.generate.prompt == prompt
    assert notes_of(record).get("not-read", "").partition(": ")[2] == named


def test_values_come_from_nodes_that_call_them_the_same(tmp_path):
    given = (
        SAMPLED
        | TAKES
        | {"sampler_name": ["8", 0], "scheduler": ["8", 1], "steps": ["8", 2], "cfg": ["8", 3], "seed": "5"}
    )
    config = {"sampler_name": "euler", "scheduler": "simple", "steps_total": 12, "cfg": 3.5}
    record = read(tmp_path, prompt=nodes(n5=("KSampler", given), n8=("KSampler Config (rgthree)", config)))
    found = record.job.generate
    assert (found.sampler, found.schedule_type, found.steps, found.guidance_scale, found.seed) == (
        "euler",
        "simple",
        12,
        3.5,
        5,
    )


def test_values_of_any_node_that_holds_one_are_read_and_those_that_are_not_found_are_named(tmp_path):
    lora = (
        "LoraLoader",
        {"lora_name": ["11", 0], "strength_model": ["10", 0], "strength_clip": 1.0, "model": ["1", 0]},
    )
    held = {
        "n7": lora,
        "n9": ("An Int", {"Number": 12}),
        "n10": ("Float", {"Strength": 0.5}),
        "n11": ("Text", {"name": "ink"}),
    }
    given = SAMPLED | TAKES | {"steps": ["9", 0], "model": ["7", 0]}
    record = read(tmp_path, prompt=nodes(n5=("KSampler", given), **held))
    assert record.job.generate.steps == 12 and loras(record) == [("ink", 0.5)]
    assert notes_of(record).keys() == {"other-program", "other-model"}
    held["n9"] = ("Int Range", {"from": 5, "to": 12})
    record = read(tmp_path, prompt=nodes(n5=("KSampler", given), **held))
    assert notes_of(record)["not-read"].partition(": ")[2] == "steps"


def test_a_negative_prompt_of_zeros_is_none_and_a_vae_that_nothing_takes_is_none(tmp_path):
    zeros = nodes(n3=("ConditioningZeroOut", {"conditioning": ["2", 0]}), n8=("VAELoader", {"vae_name": "x.pt"}))
    record = read(tmp_path, prompt=zeros)
    assert record.job.generate.negative_prompt == "" and record.job.model.vae is None
    decoded = zeros | nodes(n6=("VAEDecode", {"vae": ["8", 0]}))
    assert read(tmp_path, prompt=zeros | {"6": decoded["6"]}).job.model.vae == "x.pt"


def test_a_size_that_no_node_says_is_the_images_unless_it_was_enlarged(tmp_path):
    picker = nodes(n4=("SDXLEmptyLatentSizePicker+", {"resolution": "1x"}))
    assert settings(read(tmp_path, prompt=picker))[4] == "64x72"
    large = picker | nodes(n9=("ImageScaleBy", {}))
    assert settings(read(tmp_path, prompt=large | {"4": picker["4"]}))[4] == "NonexNone"


def test_utf8_in_text_chunks_that_png_has_in_latin1_is_read_as_it_was_meant(tmp_path):
    Image.new("RGB", (8, 8)).save(path := tmp_path / "a.png")
    data = path.read_bytes()
    block = f"テスト café\nNegative prompt: плохо\n{LINE}".encode()
    kind = b"tEXtparameters\0" + block
    chunk = (len(kind) - 4).to_bytes(4, "big") + kind + zlib.crc32(kind).to_bytes(4, "big")
    path.write_bytes(data[:33] + chunk + data[33:])
    assert settings(read_image_metadata(path))[:2] == ("テスト café", "плохо")
    with Image.open(path) as image:
        assert ImageTexts(image).png["parameters"] == block.decode()
    latin = read(tmp_path, parameters=f"café\n{LINE}")  # as Pillow writes it, in Latin-1
    assert settings(latin)[0] == "café"


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_settings_in_the_description_of_xmp_are_read_without_its_markup(tmp_path, ending):
    block = html.escape(f"a 'hat' <lora:ink:0.5>\nNegative prompt: blur\n{LINE}")
    packet = f"<x:xmpmeta><dc:description><rdf:Alt><rdf:li xml:lang='x-default'>{block}</rdf:li></rdf:Alt></dc:description></x:xmpmeta>"
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", packet)
    more = {"pnginfo": info} if ending == "png" else {"xmp": packet.encode()}
    Image.new("RGB", (8, 8)).save(path := tmp_path / f"a.{ending}", **more)
    record = read_image_metadata(path)
    assert settings(record) == ("a 'hat'", "blur", 5, "dpmsolver++", "512x640") and loras(record) == [("ink", 0.5)]


def test_hashes_belong_to_files_whose_names_contain_commas():
    record = from_a1111_text(f'a\n{LINE}, Lora hashes: "ink, wet (v1): a1b2, b: 3c", TI hashes: "bad, x: f0"')
    assert record.hashes.loras == {"ink, wet (v1)": "a1b2", "b": "3c"} and record.hashes.embeddings == {"bad, x": "f0"}


def test_a_batch_of_comfyui_is_named_since_only_its_first_image_has_the_seed(tmp_path):
    alone = notes_of(read(tmp_path, prompt=comfy()))["not-read"]
    graph = comfy()
    graph["5"]["inputs"]["batch_size"] = 4
    assert (
        notes_of(read(tmp_path, prompt=graph))["not-read"]
        == f"{alone}, a batch of 4 images, of which only the first has this seed"
    )


def test_the_batch_size_of_a_node_that_picks_a_size_is_not_a_side(tmp_path):
    graph = {name: node for name, node in comfy().items() if name != "20"}
    graph["5"]["inputs"] |= {"width": ["30", 0], "height": ["30", 1]}
    graph["30"] = {
        "class_type": "SDXLEmptyLatentSizePicker+",
        "inputs": {"resolution": "64x72 (0.89)", "batch_size": 1},
    }
    assert settings(read(tmp_path, prompt=graph))[4] == "64x72"  # the image's
