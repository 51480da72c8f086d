"""Images of other programs are understood as far as they say, and harmful ones are answered at once."""

from __future__ import annotations

import gzip
import json
import time
from itertools import groupby

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from core.families.prompt_weights import runs_of
from core.generation.images.foreign_weights import from_invokeai, from_novelai
from core.generation.images.metadata import read_image_metadata


def read(tmp_path, **texts):
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name.replace("_dash_", "-"), text if isinstance(text, str) else json.dumps(text))
    Image.new("RGB", (64, 72)).save(tmp_path / "x.png", pnginfo=info)
    return read_image_metadata(tmp_path / "x.png")


def asked(record):
    found = record.job.generate
    return (found.prompt, found.negative_prompt, found.steps, found.guidance_scale, found.seed, found.sampler)


def comfy():
    """As ComfyUI's API format: text to image with a LoRA, seed and prompt from other nodes, and a second stage."""
    sampler = {
        "seed": ["9", 0],
        "steps": 25,
        "cfg": 6.5,
        "sampler_name": "dpmpp_2m",
        "scheduler": "karras",
        "denoise": 1,
    }
    links = {"model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]}
    nodes = {
        "20": ("KSampler", {**sampler, **links, "latent_image": ["3", 0], "denoise": 0.5}),
        "3": ("KSampler", sampler | links),
        "1": ("CheckpointLoaderSimple", {"ckpt_name": "sd/foxes.safetensors"}),
        "4": (
            "LoraLoader",
            {"lora_name": "a/ink.safetensors", "strength_model": 0.8, "strength_clip": 0.5, "model": ["1", 0]},
        ),
        "5": ("EmptyLatentImage", {"width": 640, "height": 512, "batch_size": 1}),
        "6": ("CLIPTextEncode", {"text": ["8", 0], "clip": ["4", 1]}),
        "7": ("CLIPTextEncode", {"text": "blurry", "clip": ["4", 1]}),
        "8": ("PrimitiveString", {"value": "a (fox:1.2)"}),
        "9": ("PrimitiveInt", {"value": 77}),
    }
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def test_comfyui(tmp_path):
    record = read(tmp_path, prompt=comfy(), workflow={"nodes": []})
    assert asked(record) == ("a (fox:1.2)", "blurry", 25, 6.5, 77, "dpmsolver++") and record.source == "comfyui"
    job = record.job.generate
    assert (job.width, job.height, job.schedule_type) == (640, 512, "karras")
    (use,) = job.loras
    assert (use.file, use.strength, use.text_encoder_strength) == ("ink", 0.8, 0.5)
    assert any("foxes" in note.what for note in record.notes)


@pytest.mark.parametrize(("given", "strength"), [(12, 10.0), (-100.0, -10.0), (10, 10.0), (float("nan"), None)])
def test_a_strength_beyond_ours_is_limited_and_said(tmp_path, given, strength):
    nodes = comfy()
    nodes["4"]["inputs"]["strength_model"] = given
    record = read(tmp_path, prompt=nodes)
    assert [use.strength for use in record.job.generate.loras] == ([] if strength is None else [strength])
    assert ("lora-strength" in notes_of(record)) == (given != 10)


def test_a_sampler_that_is_not_known_is_said(tmp_path):
    nodes = comfy()
    nodes["3"]["inputs"]["sampler_name"] = "res_multistep"
    record = read(tmp_path, prompt=nodes)
    assert "image-settings.no-sampler" in [note.code for note in record.notes]


def notes_of(record):
    return {note.code.removeprefix("image-settings."): note.what for note in record.notes}


def custom():
    """As ComfyUI's templates for custom sampling."""
    inputs = {"noise": ["2", 0], "guider": ["3", 0], "sampler": ["4", 0], "sigmas": ["5", 0], "latent_image": ["6", 0]}
    nodes = {
        "1": ("SamplerCustomAdvanced", inputs),
        "2": ("RandomNoise", {"noise_seed": 2**64 - 1}),
        "3": ("CFGGuider", {"model": ["7", 0], "positive": ["8", 0], "negative": ["9", 0], "cfg": 5.5}),
        "4": ("KSamplerSelect", {"sampler_name": "euler"}),
        "5": ("BasicScheduler", {"scheduler": "karras", "steps": 22, "denoise": 1.0, "model": ["7", 0]}),
        "6": ("EmptyLatentImage", {"width": 640, "height": 512}),
        "7": ("CheckpointLoaderSimple", {"ckpt_name": "d.safetensors"}),
        "8": ("CLIPTextEncode", {"text": ["10", 0], "clip": ["11", 0]}),
        "9": ("CLIPTextEncode", {"text": "blur", "clip": ["11", 0]}),
        "10": ("StringConcatenate", {"string_a": ["12", 0], "string_b": "hat", "delimiter": " "}),
        "11": ("CLIPSetLastLayer", {"stop_at_clip_layer": -2, "clip": ["7", 1]}),
        "12": ("PrimitiveString", {"value": "a red"}),
    }
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def test_comfyui_with_a_custom_sampler_joined_strings_and_a_seed_of_64_bits(tmp_path):
    record = read(tmp_path, prompt=custom())
    assert asked(record) == ("a red hat", "blur", 22, 5.5, 2**64 - 1, "euler")
    assert (record.job.generate.schedule_type, record.job.generate.width, record.job.model.clip_skip) == (
        "karras",
        640,
        2,
    )
    assert notes_of(record).keys() == {"other-program", "other-model"}


def test_comfyui_samplers_that_hold_all_but_the_levels_and_guiders_without_a_negative_prompt(tmp_path):
    nodes = custom()
    own = {"noise_seed": 3, "cfg": 4, "positive": ["8", 0], "negative": ["9", 0], "model": ["7", 0]}
    links = {name: nodes["1"]["inputs"][name] for name in ("sampler", "sigmas", "latent_image")}
    nodes["1"] = {"class_type": "SamplerCustom", "inputs": own | links}
    assert asked(read(tmp_path, prompt=nodes)) == ("a red hat", "blur", 22, 4, 3, "euler")
    nodes = custom()
    nodes["3"] = {"class_type": "BasicGuider", "inputs": {"model": ["7", 0], "conditioning": ["8", 0]}}
    assert asked(read(tmp_path, prompt=nodes))[:4] == ("a red hat", "", 22, 1)


def test_comfyui_nodes_that_are_a_sampler_or_scheduler_by_their_kind_and_switches_of_conditionings(tmp_path):
    nodes = custom()
    nodes["4"] = {"class_type": "SamplerDPMPP_2M_SDE", "inputs": {"solver_type": "midpoint", "eta": 1.0}}
    nodes["5"] = {"class_type": "ExponentialScheduler", "inputs": {"steps": 12, "sigma_max": 14.6, "sigma_min": 0.03}}
    nodes["3"]["inputs"]["positive"] = ["20", 0]
    nodes["20"] = {"class_type": "A Switch", "inputs": {"on_true": ["8", 0], "boolean": True}}
    record = read(tmp_path, prompt=nodes)
    assert asked(record) == ("a red hat", "blur", 12, 5.5, 2**64 - 1, "dpmsolver++_2m_sde")
    assert record.job.generate.schedule_type == "exponential"
    assert notes_of(record)["not-read"].endswith(": A Switch")


def test_nodes_of_comfyui_that_are_not_read_are_named(tmp_path):
    nodes = comfy() | {"30": {"class_type": "FreeU_V2", "inputs": {"model": ["4", 0]}}}
    nodes["40"] = {
        "class_type": "ConditioningCombine",
        "inputs": {"conditioning_1": ["6", 0], "conditioning_2": ["41", 0]},
    }
    nodes["41"] = {"class_type": "CLIPTextEncode", "inputs": {"text": "snow"}}
    passed = {"positive": ["40", 0], "negative": ["7", 0], "strength": 0.5}
    nodes["42"] = {"class_type": "ControlNetApplyAdvanced", "inputs": passed}
    nodes["3"]["inputs"] |= {"positive": ["42", 0], "negative": ["42", 1]}
    record = read(tmp_path, prompt=nodes)
    assert asked(record)[:2] == ("a (fox:1.2), snow", "blurry")
    for name in ("FreeU_V2", "ControlNetApplyAdvanced", "ConditioningCombine", "joined prompts", "1 further sampler"):
        assert name in notes_of(record)["not-read"]
    assert "KSampler" not in notes_of(record)["not-read"] and "branch" not in notes_of(record)["not-read"]
    nodes["43"] = {"class_type": "KSampler", "inputs": nodes["3"]["inputs"] | {"seed": 5}}
    assert "1 other branch," in notes_of(read(tmp_path, prompt=nodes))["not-read"]


def test_a_prompt_that_is_not_found_is_said_and_a_prompt_alone_is_offered(tmp_path):
    nodes = comfy()
    nodes["8"] = {"class_type": "Oracle", "inputs": {"topic": "foxes"}}
    record = read(tmp_path, prompt=nodes)
    assert record.job.generate.prompt == "" and {"no-prompt", "not-read"} <= notes_of(record).keys()
    nodes = {"1": {"class_type": "OddSampler", "inputs": {"positive": ["2", 0]}}, "2": comfy()["7"]}
    record = read(tmp_path, prompt=nodes)
    assert record.job.generate.prompt == "blurry" and {"prompt-alone", "not-read"} <= notes_of(record).keys()
    page = {
        "nodes": [{"id": 1, "type": "KSampler", "inputs": [{"name": "positive", "link": 1}]}, *PAGE],
        "links": LINKS,
    }
    assert read(tmp_path, workflow=page).job.generate.prompt == "a hat"
    for indent in (None, 2):  # no prompt, however it is written
        odd = json.dumps({"1": {"class_type": "Odd", "inputs": {"x": 1}}}, indent=indent)
        assert read(tmp_path, prompt=odd).reason and read(tmp_path, parameters=odd).reason


PAGE, LINKS = [{"id": 2, "type": "CLIPTextEncode", "widgets_values": ["a hat"], "inputs": []}], [[1, 2, 0, 1, 1, "C"]]


def test_webp_of_comfyui(tmp_path):
    image = Image.new("RGB", (64, 64))
    exif = image.getexif()
    exif[0x0110], exif[0x010F] = "prompt:" + json.dumps(custom()), "workflow:{}"
    image.save(tmp_path / "x.webp", exif=exif)
    assert asked(read_image_metadata(tmp_path / "x.webp"))[0] == "a red hat"


def test_graphs_made_to_be_slow_or_large_are_answered_at_once(tmp_path):
    begun = time.thread_time()
    join = "StringConcatenate"
    nodes = {
        str(n): {"class_type": join, "inputs": {"string_a": [str(n + 1), 0], "string_b": [str(n + 2), 0]}}
        for n in range(5000)
    }
    nodes["5000"] = {"class_type": "PrimitiveString", "inputs": {"value": "x" * 1000}}
    links = {"positive": ["0", 0], "negative": ["0", 0], "steps": 3}
    nodes |= {
        f"s{n}": {"class_type": "KSampler", "inputs": links | {"latent_image": [f"s{n + 1}", 0]}} for n in range(5000)
    }
    read(tmp_path, prompt=nodes)
    assert time.thread_time() - begun < 2


def test_graphs_that_go_in_circles_or_are_no_graphs_are_answered(tmp_path):
    nodes = comfy()
    nodes["6"]["inputs"] = {"text": ["8", 0]}
    nodes["8"]["inputs"] = {"value": ["6", 0]}
    nodes["5"]["inputs"] = {"samples": ["5", 0]}
    nodes["1"]["inputs"] = {"model": ["4", 0]}
    record = read(tmp_path, prompt=nodes)
    assert record.job.generate.prompt == "" and record.job.generate.width is None
    for wrong in (
        {"1": 3},
        {"1": {"inputs": [1]}},
        {"1": {"inputs": {"positive": 1, "negative": 2, "latent_image": 3, "steps": "x"}}},
    ):
        read(tmp_path, prompt=wrong)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 50_000, "{" + '"x":1,' * 150_000 + '"y":1}'])
def test_json_made_to_do_harm_is_answered_at_once(tmp_path, text):
    begun = time.thread_time()
    for name in ("prompt", "parameters", "invokeai_metadata"):
        assert read(tmp_path, **{name: text}).job is None
    assert time.thread_time() - begun < 2


def test_fooocus(tmp_path):
    said = {"prompt": "a fox", "negative_prompt": "bad", "steps": 30, "guidance_scale": 4, "seed": "123"}
    said |= {"resolution": "(1152, 896)", "base_model": "jug", "sampler": "dpmpp_2m_sde_gpu", "scheduler": "karras"}
    record = read(tmp_path, fooocus_scheme="fooocus", parameters=said | {"loras": [["offset.safetensors", 0.1, "ab"]]})
    assert asked(record) == ("a fox", "bad", 30, 4, 123, "dpmsolver++_2m_sde") and record.source == "fooocus"
    job = record.job.generate
    assert (job.width, job.height, job.loras[0].file, job.loras[0].strength) == (1152, 896, "offset", 0.1)


def test_novelai(tmp_path):
    said = {"prompt": "1girl, {fox}", "steps": 28, "height": 1216, "width": 832, "scale": 5.0, "uc": "bad", "seed": 9}
    said |= {"sampler": "k_euler_ancestral", "noise_schedule": "karras"}
    record = read(tmp_path, Software="NovelAI", Description="1girl", Comment=said)
    assert asked(record) == ("1girl, (fox:1.05)", "bad", 28, 5.0, 9, "euler_a") and record.source == "novelai"
    assert record.job.generate.height == 1216


def test_invokeai(tmp_path):
    said = {"positive_prompt": "a fox", "negative_prompt": "bad", "width": 512, "height": 768, "seed": 4, "steps": 20}
    said |= {"cfg_scale": 7.5, "scheduler": "dpmpp_2m_k", "model": {"name": "sd"}}
    record = read(tmp_path, invokeai_metadata=said | {"loras": [{"model": {"name": "ink"}, "weight": 0.6}]})
    assert (
        asked(record) == ("a fox", "bad", 20, 7.5, 4, "dpmsolver++") and record.job.generate.schedule_type == "karras"
    )
    assert record.job.generate.loras[0].strength == 0.6


def test_sd_scripts(tmp_path):
    texts = {"prompt": "a fox", "seed": "5", "sampler": "euler_a", "steps": "12", "scale": "7.5"}
    record = read(tmp_path, **texts, negative_dash_prompt="bad")
    assert asked(record) == ("a fox", "bad", 12, 7.5, 5, "euler_a") and record.source == "sd-scripts"
    assert (record.job.generate.width, record.job.generate.height) == (64, 72)


def test_invokeai_2(tmp_path):
    own = {"prompt": [{"prompt": "a hat [blur] on a mat", "weight": 1.0}], "steps": 50, "cfg_scale": 7.5, "height": 512}
    own |= {"width": 640, "seed": 2**40, "sampler": "k_euler_a", "type": "txt2img", "seamless": True, "perlin": 0}
    record = read(tmp_path, **{"sd-metadata": {"model_weights": "sd-1.5", "app_version": "2.3.0", "image": own}})
    assert asked(record) == ("a hat on a mat", "blur", 50, 7.5, 2**40, "euler_a") and record.source == "invokeai"
    assert record.job.generate.width == 640 and "sd-1.5" in notes_of(record)["other-model"]
    assert notes_of(record)["not-read"].endswith(": seamless")


def test_swarmui(tmp_path):
    own = {"prompt": "a hat", "negativeprompt": "blur", "model": "m", "seed": 3, "steps": 9, "cfgscale": 4.5}
    own |= {
        "width": 640,
        "height": 512,
        "sampler": "dpmpp_2m",
        "scheduler": "karras",
        "loras": ["a/ink"],
        "loraweights": ["0.5"],
    }
    record = read(tmp_path, parameters={"sui_image_params": own | {"refinerupscale": 2}})
    assert asked(record) == ("a hat", "blur", 9, 4.5, 3, "dpmsolver++") and record.job.generate.loras[0].strength == 0.5
    assert notes_of(record)["not-read"].endswith(": refinerupscale")


def test_what_other_programs_wrote_and_is_not_read_is_named(tmp_path):
    fooocus = {
        "prompt": "a",
        "guidance_scale": 4,
        "sharpness": 2.0,
        "vae": "v",
        "refiner_model": "None",
        "version": "x",
    }
    record = read(tmp_path, parameters=fooocus)
    assert notes_of(record)["not-read"].endswith(": sharpness") and record.job.model.vae == "v"
    record = read(
        tmp_path, invokeai_metadata={"positive_prompt": "a", "hrf_enabled": True, "cfg_rescale_multiplier": 0.7}
    )
    assert notes_of(record)["not-read"].endswith(": hrf_enabled") and record.job.generate.guidance_rescale == 0.7
    record = read(
        tmp_path, Software="NovelAI", Comment={"prompt": "a", "sm": True, "sm_dyn": False, "cfg_rescale": 0.2}
    )
    assert notes_of(record)["not-read"].endswith(": sm") and record.job.generate.guidance_rescale == 0.2
    texts = {"prompt": "a", "seed": "5", "steps": "12", "scale": "7.5", "negative-scale": "3", "crop-top": "8"}
    record = read(tmp_path, **texts, **{"original-width": "None", "clip-prompt": "None"})
    assert (record.job.generate.negative_scale, record.job.sizes.crop_top, record.job.sizes.original_width) == (
        3,
        8,
        None,
    )
    assert record.job.perceptual.clip_prompt is None and "not-read" not in notes_of(record)


@pytest.mark.parametrize(
    ("convert", "text", "expected"),
    [
        (from_novelai, "{{fox}}, [red] hat", [("fox", 1.05**2), (", ", 1), ("red", 1 / 1.05), (" hat", 1)]),
        (from_novelai, "{a [b]} (c)", [("a ", 1.05), ("b (c)", 1)]),
        (from_novelai, "1.5::rain, wind:: a, -1::hat", [("rain, wind", 1.5), (" a, ", 1), ("hat", -1)]),
        (from_novelai, "a {b, c] d :)", [("a {b, c] d :)", 1)]),
        (
            from_invokeai,
            "fox++ (red hat)-- a+b sci-fi",
            [("fox", 1.21), (" ", 1), ("red hat", 0.81), (" a+b sci-fi", 1)],
        ),
        (from_invokeai, "(a (b)+)0.5, (plain)", [("a ", 0.5), ("b", 0.55), (", plain", 1)]),
        (from_invokeai, "(a \\(b\\) [c] :)", [("a (b) [c] :", 1)]),
        (
            from_invokeai,
            '(("a (red)+ fox", "a hat").blend(0.7,0.3) (red)+)0.5',
            [('("a (red)+ fox", "a hat").blend(0.7,0.3) ', 0.5), ("red", 0.55)],
        ),
        (
            from_invokeai,
            '"a cat".swap(dog), ("a", b++).and() c-d.attend(1), withLora(ink,0.5)',
            [('"a cat".swap(dog), ("a", b++).and() c-d.attend(1), withLora(ink,0.5)', 1)],
        ),
        (from_invokeai, "(a.swap(b, \3c", [("(a.swap(b, c", 1)]),
        (from_invokeai, "(a, b - x", [("(a, b - x", 1)]),
        (from_invokeai, '"red, hat"1.3 "plain" "a-b+"--', [("red, hat", 1.3), (" plain ", 1), ("a-b", 0.891)]),
        (
            from_invokeai,
            "<old>++ 50%-, end--! c.d++",
            [("<old>", 1.21), (" ", 1), ("50%", 0.9), (", ", 1), ("end", 0.81), ("! c.d++", 1)],
        ),
    ],
)
def test_weights_of_another_program_are_the_same_here(convert, text, expected):
    runs = runs_of(convert(text))
    joined = {
        "".join(part for part, _ in group): weight for weight, group in groupby(runs, lambda run: round(run[1], 3))
    }
    assert joined == pytest.approx(dict(expected), rel=1e-3) and list(joined) == [part for part, _ in expected]


def test_prompt_functions_of_invokeai_are_named(tmp_path):
    record = read(tmp_path, invokeai_metadata={"positive_prompt": '("a fox", "a hat").blend(1,1) cat.swap(dog)'})
    assert notes_of(record)["not-read"].endswith(": .blend(, .swap(")
    record = read(tmp_path, invokeai_metadata={"positive_prompt": "a cat.attend(1.2), withLora(ink,0.5)"})
    assert notes_of(record)["not-read"].endswith(": .attend(, withLora(ink,0.5)")


def test_what_novelai_always_writes_is_not_noted(tmp_path):
    always = {"controlnet_strength": 1.0, "dynamic_thresholding": False, "dynamic_thresholding_percentile": 0.999}
    record = read(tmp_path, Software="NovelAI", Comment={"prompt": "a fox"} | always)
    assert "not-read" not in notes_of(record)


@pytest.mark.parametrize("mode", ["RGBA", "RGB"])
@pytest.mark.parametrize("ending", [b"comp", b"info"])
def test_settings_in_the_lowest_bits_of_the_pixels(tmp_path, mode, ending):
    """As NovelAI (a JSON of its chunks) and A1111's extension (its text) write them, in alpha or in the colors, by columns."""
    novelai = {"Software": "NovelAI", "Description": "a fox", "Comment": json.dumps({"steps": 7, "seed": 9})}
    text = (json.dumps(novelai) if ending == b"comp" else "a fox\nSteps: 7, Seed: 9").encode()
    payload = gzip.compress(text) if ending == b"comp" else text
    data = (b"stealth_png" if mode == "RGBA" else b"stealth_rgb") + ending + (8 * len(payload)).to_bytes(4) + payload
    bits, channels = np.unpackbits(np.frombuffer(data, np.uint8)), 1 if mode == "RGBA" else 3
    pixels = np.full((48, 64, channels), 254, np.uint8)
    columns = np.zeros(pixels.size, np.uint8)
    columns[: len(bits)] = bits
    pixels |= columns.reshape(64, 48, channels).transpose(1, 0, 2)
    image = Image.new("RGB", (64, 48)) if mode == "RGBA" else Image.fromarray(pixels)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(pixels[..., 0]))
    image.save(tmp_path / "a.png")
    job = read_image_metadata(tmp_path / "a.png").job
    assert (job.generate.prompt, job.generate.steps, job.generate.seed) == ("a fox", 7, 9)
    image.crop((1, 0, 64, 48)).save(tmp_path / "a.png")
    assert read_image_metadata(tmp_path / "a.png").job is None
