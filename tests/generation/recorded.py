"""The recorded runs of sd-scripts' generator: their tiny models, their options as settings, and what they computed."""

from __future__ import annotations

import zlib
from contextlib import ExitStack
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from random import Random
from types import SimpleNamespace

import torch
from safetensors.torch import save_file

from core.families import family
from core.generation.making import ImageMaker
from core.generation.model.embeddings import Embedding, embeddings_attached
from core.generation.model.loras import loras_attached, loras_to_attach
from core.generation.model.store import ModelTextCache
from core.generation.model.wildcard_files import wildcard_lines
from core.generation.plan import stages
from core.generation.plan.requests import count_merged, requests_of
from core.networks.frozen import can_pack, install
from core.settings.job import GenerateJob
from tests.models import shipped_config, write_folder
from tests.recorded_json import recorded_json
from tests.recorded_tensors import recorded_tensors

FOLDER = Path(__file__).parents[1] / "vectors" / "generation"
CLIP = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
VAE = {"block_out_channels": [32, 32, 64, 64], "norm_num_groups": 32, "sample_size": 128}
CHANGES = {
    "sd1": {
        "unet": {"block_out_channels": [32, 64, 128, 128], "attention_head_dim": 8, "cross_attention_dim": 64},
        "vae": VAE,
        "text_encoder": {**CLIP, "projection_dim": 64},
    },
    "sdxl": {
        "unet": {
            "block_out_channels": [32, 64, 128],
            "attention_head_dim": [1, 1, 2],
            "transformer_layers_per_block": [1, 1, 2],
            "cross_attention_dim": 96,
            "projection_class_embeddings_input_dim": 32 + 1536,
        },
        "vae": VAE,
        "text_encoder": {**CLIP, "projection_dim": 64},
        "text_encoder_2": {
            **CLIP,
            "hidden_size": 32,
            "intermediate_size": 128,
            "num_attention_heads": 2,
            "projection_dim": 32,
        },
    },
}
# option -> setting
SETTINGS = {
    "scale": "generate.guidance_scale",
    "steps": "generate.steps",
    "W": "generate.width",
    "H": "generate.height",
    "sampler": "generate.sampler",
    "seed": "generate.seed",
    "prompt": "generate.prompt",
    "clip_skip": "model.clip_skip",
    "images_per_prompt": "generate.count",
    "batch_size": "generate.batch_size",
    "network_mul": "",
    "network_weights": "",
    "strength": "image_to_image.strength",
    "image_path": "image_to_image.image_path",
    "mask_path": "image_to_image.mask_path",
    "network_regional_mask_max_color_codes": "regions.network_regional_mask_max_color_codes",
    "emb_normalize_mode": "generate.emb_normalize_mode",
    "max_embeddings_multiples": "generate.max_embeddings_multiples",
    "force_scheduler_zero_steps_offset": "generate.force_scheduler_zero_steps_offset",
    "network_merge": "generate.network_merge",
    "network_merge_n_models": "generate.network_merge_n_models",
    "network_pre_calc": "generate.network_pre_calc",
    "zero_terminal_snr": "generate.zero_terminal_snr",
    "v_parameterization": "model.prediction",
    "n_iter": "prompts.n_iter",
    "iter_same_seed": "prompts.iter_same_seed",
}
GROUPS = {
    "highres_": "hires",
    "ds_": "deep_shrink",
    "gradual_": "gradual_latent",
    "original_": "sizes",
    "crop_": "sizes",
}
GROUPS |= {"pyramid_": "start_noise", "noise_": "start_noise"}


@cache
def recorded():
    return recorded_json("generation/cases")["cases"], recorded_tensors(FOLDER / "latents.safetensors")


def by_formula(key, shape):
    r = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())), dtype=torch.float32)
    module, _, kind = key.rpartition(".")
    name = module.rpartition(".")[2]
    if kind == "bias" or name in ("token_embedding", "position_embedding"):
        return 0.02 * r
    return 1 + 0.1 * r if "norm" in name else r / (r.numel() / r.shape[0]) ** 0.5


def model(name, folder, dtype=torch.float32):
    """The tiny model of the recording, laid out as the product does. dtype: of the denoiser"""
    configs = {part: {**shipped_config(part, name), **change} for part, change in CHANGES[name].items()}
    components = family(name).load(write_folder(folder, configs, torch.float32, 0, name))
    with torch.no_grad():
        for part in (components.denoiser, components.vae):
            for key, parameter in part.named_parameters():
                parameter.copy_(by_formula(key, tuple(parameter.shape)))
        for encoder in components.text_encoders:
            for key, parameter in encoder.named_parameters():
                own = key if key.startswith(("text_model.", "text_projection")) else f"text_model.{key}"
                parameter.copy_(by_formula(own, tuple(parameter.shape)))
    torch.nn.Module.to(components.denoiser, dtype, memory_format=torch.channels_last)  # as on a GPU
    assert install(components.denoiser) or not can_pack(dtype)  # as on a CPU
    return components


def loras(folder):
    """The LoRA files and embeddings of the recording."""
    found = recorded_json("generation/lora_keys")
    for name, shapes in found["keys"].items():
        tensors = {}
        for key, shape in shapes.items():
            if key.endswith(".alpha"):
                tensors[key] = torch.tensor(float(found["files"][name]["alpha"]))
                continue
            seed = torch.Generator().manual_seed(zlib.crc32(f"{name}.{key}".encode()))
            value = torch.randn(shape, generator=seed)
            tensors[key] = value / (value.numel() / value.shape[0]) ** 0.5 * (0.5 if "lora_up" in key else 1)
        xl = found["files"][name].get("sdxl")
        save_file(
            tensors, folder / f"{name}.safetensors", {"ss_base_model_version": "sdxl_base_v1-0" if xl else "sd_v1"}
        )
    for name, parts in {
        "zorbcat": {"emb_params": (2, 64)},
        "zorbdog": {"emb_params": (3, 64)},
        "zorbxl": {"clip_l": (2, 64), "clip_g": (2, 32)},
    }.items():
        vectors = {}
        for key, shape in parts.items():
            seed = torch.Generator().manual_seed(zlib.crc32(f"{name}.{key}".encode()))
            vectors[key] = 0.05 * torch.randn(shape, generator=seed)
        save_file(vectors, folder / f"{name}.safetensors")


def options_of(case, work):
    """{option: its values}"""
    found, last = {}, ""
    for word in map(str, case["options"]):
        if word.startswith("--"):
            last = word[2:]
            found[last] = []
        else:
            found[last].append(word.replace("{inputs}", str(FOLDER / "inputs")).replace("{work}", str(work)))
    return found


def job_of(case, work):
    """A recorded run as a job."""
    groups = {
        "model": {"compatibility": "sd-scripts-0.10"},
        "generate": {"emb_normalize_mode": "original", "steps": 50, "guidance_scale": 7.5},
    }
    groups["generate"]["sampler"] = "ddim"

    def put(place, value):
        group, _, name = place.partition(".")
        groups.setdefault(group, {})[name] = value

    given = options_of(case, work)
    for option, values in given.items():
        place = SETTINGS.get(option)
        if option == "mask_path" and "AND" in case["lines"][0]:
            place = "regions.region_map"
        value = values[0] if len(values) == 1 else values if values else True
        value = {"v_parameterization": "v", "zero_terminal_snr": "on"}.get(option, value)
        if place:
            put(place, value)
        for prefix, group in GROUPS.items():
            if option.startswith(prefix) and place is None:
                put(f"{group}.{option}", value)
    if case["lines"]:
        file = work / "prompts.txt"
        file.write_text("\n".join(case["lines"]), "utf-8")
        put("prompts.from_file", str(file))
    strengths = [float(each) for each in given.get("network_mul", [])]
    files = given.get("network_weights", [])
    strengths += [1.0] * (len(files) - len(strengths))
    put("generate.loras", [{"file": file, "strength": own} for file, own in zip(files, strengths, strict=True)])
    words = given.get("textual_inversion_embeddings", [])
    return GenerateJob.model_validate(groups), [Embedding(Path(word).stem, Path(word)) for word in words]


def run(case, components, work, monkeypatch):
    """[(states of one batch, the latents after each stage)] for every batch of a recorded run."""
    monkeypatch.setattr(stages, "Random", lambda seed: own)
    job, words = job_of(case, work)
    own = Random(1234)
    workspace = SimpleNamespace(models=work)
    requests, _ = requests_of(job, partial(wildcard_lines, workspace))
    from core.generation.plan.initial import with_initial_images
    from core.generation.plan.plan import with_size

    requests = [replace(each, job=with_size(each.job, (128, 128), 8)) for each in with_initial_images(requests)]
    uses = loras_to_attach([request.job.generate.loras for request in requests])
    found = []
    with ExitStack() as stack:
        attached = stack.enter_context(loras_attached(components, uses, Path, count_merged(job, len(uses))))
        texts = ModelTextCache(changes=attached.text_state_key)
        known = stack.enter_context(embeddings_attached(components, words, texts))
        maker = ImageMaker(components, known, attached)
        left = list(requests)
        while left:
            batch = next(maker.batches(left, job.generate.batch_size or 1))
            found.append((batch, maker._states_of(known, batch, None), maker.make(batch, decoded=False)))
            left = left[len(batch) :]
    return found
