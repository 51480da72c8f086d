"""Images of other programs are understood as far as they say, and harmful ones are answered at once."""

from __future__ import annotations

import json
import time

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from core.generation.image_metadata import read_image_metadata


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


def test_a_sampler_that_is_not_known_is_said(tmp_path):
    nodes = comfy()
    nodes["3"]["inputs"]["sampler_name"] = "res_multistep"
    record = read(tmp_path, prompt=nodes)
    assert "image-settings.no-sampler" in [note.code for note in record.notes]


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
    begun = time.process_time()
    for name in ("prompt", "parameters", "invokeai_metadata"):
        assert read(tmp_path, **{name: text}).job is None
    assert time.process_time() - begun < 2


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
    assert asked(record) == ("1girl, {fox}", "bad", 28, 5.0, 9, "euler_a") and record.source == "novelai"
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
