"""What a file is, told from its header: every row of the published models' marks."""

import json
import struct
from math import prod
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from core.families import family
from core.families.locate import FAMILIES, check_family, family_of
from core.formats.detect import identify, identify_header
from core.formats.tensors.entry import TensorEntry
from core.generation.model.store import fingerprint
from core.record.problems import ProblemsError
from tests.models import tiny_folder
from tests.recorded_json import recorded_json
from tests.refusals import refused

U = "model.diffusion_model."
CONTEXT = f"{U}input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
FIRST = f"{U}input_blocks.0.0.weight"
SD1 = {
    FIRST: (320, 4, 3, 3),
    CONTEXT: (320, 768),
    "cond_stage_model.transformer.text_model.final_layer_norm.bias": (768,),
}
SD2 = {FIRST: (320, 4, 3, 3), CONTEXT: (320, 1024), "cond_stage_model.model.ln_final.bias": (1024,)}
SDXL = {
    FIRST: (320, 4, 3, 3),
    f"{U}label_emb.0.0.weight": (1280, 2816),
    f"{U}input_blocks.7.1.transformer_blocks.9.attn2.to_k.weight": (1280, 2048),
    "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias": (1280,),
}
REFINER = {
    FIRST: (384, 4, 3, 3),
    f"{U}label_emb.0.0.weight": (1536, 2560),
    "conditioner.embedders.0.model.transformer.resblocks.9.mlp.c_proj.bias": (1280,),
}
SGM = "model:\n  target: sgm.models.diffusion.DiffusionEngine\n"  # of a config
VAE_LDM = {"encoder.conv_in.weight": (128, 3, 3, 3), "encoder.down.0.block.0.conv1.weight": (128, 128, 3, 3)}
VAE_DIFFUSERS = {
    "encoder.conv_in.weight": (128, 3, 3, 3),
    "encoder.down_blocks.0.resnets.0.conv1.weight": (128, 128, 3, 3),
}


def header(shapes, dtype="F16"):
    return {name: TensorEntry(dtype, tuple(shape), 0, 0) for name, shape in shapes.items()}


def known(shapes, **metadata):
    return identify_header(header(shapes), {key.replace("__", "."): value for key, value in metadata.items()})


def with_first(model, channels):
    return {**model, FIRST: (320, channels, 3, 3)}


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (SD1, "SD 1.x checkpoint"),
        (SD2, "SD 2.x checkpoint"),
        (SDXL, "SDXL checkpoint"),
        ({**SDXL, **{name: shape for name, shape in VAE_LDM.items()}}, "SDXL checkpoint"),
        (REFINER, "SDXL refiner checkpoint"),
        ({k: v for k, v in SDXL.items() if not k.startswith("cond")}, "SDXL checkpoint"),
        (with_first(SD1, 9), "SD 1.x inpainting checkpoint"),
        (with_first(SD2, 9), "SD 2.x inpainting checkpoint"),
        (with_first(SDXL, 9), "SDXL inpainting checkpoint"),
        (with_first(SD1, 8), "SD 1.x instruct-pix2pix checkpoint"),
        (with_first(SD2, 5), "SD 2.x depth checkpoint"),
        (with_first(SD2, 7), "SD 2.x upscaler checkpoint"),
        ({**SDXL, "edm_mean": (4,), "edm_std": (4,)}, "SDXL Playground 2.5 checkpoint"),
        ({**SDXL, "edm_vpred.sigma_max": ()}, "SDXL CosXL checkpoint"),
        (
            {name.replace("blocks.9.attn2", "blocks.3.attn2"): shape for name, shape in SDXL.items()},
            "SDXL pruned (SSD-1B or Vega) checkpoint",
        ),
        ({f"{U}joint_blocks.0.x_block.attn.qkv.weight": (4608, 1536)}, "Stable Diffusion 3 checkpoint"),
        ({f"{U}double_blocks.0.img_attn.qkv.weight": (9216, 3072)}, "Flux checkpoint"),
        ({FIRST: (32, 4, 3, 3), "cond_stage_model.transformer.embeddings.position_ids": (1, 77)}, "SD 1.x checkpoint"),
        (VAE_LDM, "VAE"),
        (VAE_DIFFUSERS, "VAE"),
        ({f"first_stage_model.{name}": shape for name, shape in VAE_LDM.items()}, "VAE"),
        ({"control_model.input_hint_block.0.weight": (16, 3, 3, 3), "difference": ()}, "difference ControlNet"),
        (
            {
                "control_model.input_hint_block.0.weight": (16, 3, 3, 3),
                "control_model.input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": (320, 768),
            },
            "SD 1.x ControlNet",
        ),
        ({"input_hint_block.0.weight": (16, 3, 3, 3)}, "ControlNet"),
        (
            {"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3), "add_embedding.linear_1.weight": (1280, 2816)},
            "SDXL ControlNet",
        ),
        ({"lllite_unet_input_blocks_4_1_x.conditioning1.0.weight": (4, 3, 4, 4)}, "SDXL ControlNet-LLLite"),
        ({"emb_params": (3, 768)}, "SD 1.x textual inversion embedding"),
        ({"emb_params": (3, 1024)}, "SD 2.x textual inversion embedding"),
        ({"emb_params": (3, 64)}, "textual inversion embedding"),
        ({"clip_l": (2, 768), "clip_g": (2, 1280)}, "SDXL textual inversion embedding"),
        ({"string_to_param.*": (2, 768)}, "SD 1.x textual inversion embedding"),
        ({"<my-token>": (768,)}, "SD 1.x textual inversion embedding"),
        ({"<brabol>": (2, 64), "<zunkel>": (64,)}, "textual inversion embedding"),
        ({"320.0.linear1.weight": (640, 320), "768.1.linear1.weight": (1536, 768)}, "hypernetwork"),
        ({**SD1, f"{U}time_embed.cond_proj.weight": (320, 256)}, "SD 1.x LCM checkpoint"),
        (
            {
                "conv_in.weight": (320, 4, 3, 3),
                "time_embedding.cond_proj.weight": (320, 256),
                "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight": (640, 2048),
            },
            "SDXL LCM U-Net",
        ),
        ({"image_proj.proj.weight": (3072, 1024), "ip_adapter.1.to_k_ip.weight": (320, 768)}, "SD 1.x IP-Adapter"),
        (
            {
                "image_proj.proj.0.weight": (1024, 512),
                "ip_adapter.0.to_q_lora.down.weight": (128, 640),
                "ip_adapter.1.to_k_ip.weight": (640, 2048),
            },
            "SDXL FaceID IP-Adapter",
        ),
        ({"body.0.block1.weight": (320, 320, 3, 3), "conv_in.weight": (320, 192, 3, 3)}, "SD 1.x T2I-Adapter"),
        (
            {"adapter.body.0.resnets.0.block1.weight": (320, 320, 3, 3), "adapter.conv_in.weight": (320, 768, 3, 3)},
            "SDXL T2I-Adapter",
        ),
        ({"model.0.weight": (64, 3, 3, 3), "model.1.sub.0.RDB1.conv5.0.weight": (64, 192, 3, 3)}, "ESRGAN upscaler"),
        (
            {"params_ema.conv_first.weight": (64, 3, 3, 3), "params_ema.body.0.rdb1.conv5.weight": (64, 192, 3, 3)},
            "ESRGAN upscaler",
        ),
        (
            {
                "params.conv_first.weight": (180, 3, 3, 3),
                "params.layers.0.residual_group.blocks.0.attn.qkv.weight": (540, 180),
            },
            "SwinIR upscaler",
        ),
        ({"params.body.0.weight": (64, 3, 3, 3), "params.body.1.weight": (64,)}, "Compact upscaler"),
        (
            {
                "conv1.weight": (128, 4, 3, 3),
                "resblock20.conv2.weight": (128, 128, 3, 3),
                "conv_final.weight": (4, 64, 1, 1),
            },
            "latent upscaler",
        ),
        (
            {
                "conv_in.weight": (320, 4, 3, 3),
                "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight": (640, 768),
            },
            "SD 1.x U-Net",
        ),
        ({"text_model.embeddings.token_embedding.weight": (49408, 768)}, "SD 1.x text encoder"),
        ({"something.else": (3, 3)}, "model of an unknown kind"),
        ({}, "model of an unknown kind"),
    ],
)
def test_each_kind_is_named(shapes, words):
    assert str(known(shapes)) == words


def test_what_is_recognized_and_not_used_is_told():
    for words, shapes in {
        "Control-LoRA ControlNet": {"input_hint_block.0.weight": (16, 3, 3, 3), "lora_controlnet": ()},
        "union ControlNet": {"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3), "task_embedding": (6, 4)},
        "IP-Adapter": {"image_proj.proj.weight": (1, 1), "ip_adapter.1.to_v_ip.weight": (1, 1)},
        "T2I-Adapter": {"body.0.block1.weight": (1, 1, 3, 3), "conv_in.weight": (1, 1, 3, 3)},
        "hypernetwork": {"320.0.linear1.weight": (640, 320)},
        "SD 1.x LCM checkpoint": {**SD1, f"{U}time_embed.cond_proj.weight": (320, 256)},
    }.items():
        assert (str(known(shapes)), known(shapes).offered) == (words, False)
    control = {"control_model.input_hint_block.0.weight": (16, 3, 3, 3)}
    for shapes in (control, SD1, SDXL, VAE_LDM, {"emb_params": (3, 768)}, {"lora_unet_x.lora_down.weight": (1, 1)}):
        assert known(shapes).offered
    esrgan = {"conv_first.weight": (64, 3, 3, 3), "body.0.rdb1.conv5.weight": (64, 192, 3, 3)}
    assert known(esrgan).offered


def test_a_hypernetwork_of_a1111_is_told_from_its_pickle(tmp_path):
    pair = ({"linear.0.weight": torch.ones(2, 2)}, {"linear.0.weight": torch.ones(2, 2)})
    torch.save({768: pair, 320: pair, "step": 10, "name": "fox", "layer_structure": [1, 2, 1]}, tmp_path / "fox.pt")
    assert str(identify(tmp_path / "fox.pt")) == "hypernetwork"


@pytest.mark.parametrize(
    ("names", "words", "layout"),
    [
        (
            {"lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": (4, 768)},
            "SD 1.x LoRA",
            "kohya",
        ),
        (
            {"lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": (4, 1024)},
            "SD 2.x LoRA",
            "kohya",
        ),
        (
            {"lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": (4, 2048)},
            "SDXL LoRA",
            "kohya",
        ),
        (
            {"lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_down.weight": (4, 640)},
            "SDXL LoRA",
            "kohya",
        ),
        ({"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (4, 1280)}, "SDXL LoRA", "kohya"),
        ({"lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": (4, 768)}, "SD 1.x LoRA", "kohya"),
        ({"lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": (4, 32)}, "LoRA", "kohya"),
        (
            {"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight": (4, 768)},
            "SD 1.x LoRA",
            "peft",
        ),
        (
            {"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.my_style.weight": (4, 768)},
            "SD 1.x LoRA",
            "peft",
        ),
        (
            {"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_linear_layer.down.weight": (4, 768)},
            "SD 1.x LoRA",
            "diffusers",
        ),
        ({"unet.mid_block.attentions.0.transformer_blocks.9.attn1.to_q.lora_A.weight": (4, 1280)}, "SDXL LoRA", "peft"),
        (
            {"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.processor.to_k_lora.down.weight": (4, 768)},
            "SD 1.x LoRA",
            "diffusers",
        ),
        ({"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (4, 3072)}, "Flux LoRA", "kohya"),
        (
            {
                "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (4, 768),
                "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (4, 3072),
            },
            "Flux LoRA",
            "kohya",
        ),
        (
            {
                "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (4, 1280),
                "lora_unet_joint_blocks_0_x_block_attn_qkv.lora_down.weight": (4, 1536),
            },
            "Stable Diffusion 3 LoRA",
            "kohya",
        ),
        (
            {
                f"lora_unet_x_attn2_to_k.hada_{side}": shape
                for side, shape in {"w1_b": (4, 768), "w1_a": (320, 4), "w2_b": (4, 768), "w2_a": (320, 4)}.items()
            },
            "SD 1.x LoHa",
            "kohya",
        ),
        (
            {"lora_unet_x_attn2_to_k.lokr_w1": (16, 24), "lora_unet_x_attn2_to_k.lokr_w2": (20, 32)},
            "SD 1.x LoKr",
            "kohya",
        ),
        (
            {
                f"lora_unet_x_attn2_to_k.lokr_{side}": shape
                for side, shape in {"w1_a": (4, 2), "w1_b": (2, 32), "w2_a": (80, 2), "w2_b": (2, 64)}.items()
            },
            "SDXL LoKr",
            "kohya",
        ),
        ({"lora_unet_x_attn2_to_k.diff": (320, 1024)}, "SD 2.x Full difference", "kohya"),
        ({"oft_unet_down_blocks_0_x.oft_blocks": (4, 80, 80)}, "OFT", "kohya"),
        (
            {f"unet.x.{key}": (4, 4) for key in ("q_layer.weight", "p_layer.weight", "lambda_layer")},
            "T-LoRA LoRA",
            "lycoris",
        ),
        (
            {
                f"lora_unet_x_attn2_to_k.{key}": shape
                for key, shape in {
                    "lora_down.weight": (4, 768),
                    "lora_up.weight": (320, 4),
                    "dora_scale": (1, 768),
                }.items()
            },
            "SD 1.x DoRA",
            "kohya",
        ),
    ],
)
def test_each_lora_is_told_by_its_keys(names, words, layout):
    kind = known(names)
    assert (str(kind), kind.layout, kind.kind) == (words, layout, "lora")


def test_a_lora_without_telling_keys_is_told_by_its_metadata():
    names = {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": (4, 1280, 1, 1)}
    assert known(names).family is None
    assert known(names, ss_base_model_version="sd_v1").family == "sd1"
    assert known(names, ss_base_model_version="sd_v2_v").family == "sd2"
    assert known(names, ss_base_model_version="sdxl_base_v1-0").family == "sdxl"
    assert known(names, modelspec__architecture="stable-diffusion-v1/lora").family == "sd1"


@pytest.mark.parametrize("case", ["lora_lierla", "lora_c3lier", "dylora", "oft_attn"])
def test_loras_that_sd_scripts_wrote_are_of_the_right_family(case):
    cases = recorded_json("network_keys")["cases"]
    for model, name in (("sd15", "sd1"), ("sd21", "sd2"), ("sdxl", "sdxl")):
        kind = known(cases[f"{model}/{case}"]["keys"])
        assert kind.kind == "lora"
        if case != "oft_attn":  # its blocks have the output's width, which SD 1 and 2 share
            assert kind.family == name, (model, case)


def test_whole_published_headers_are_told_apart():
    models = recorded_json("checkpoint_keys")["models"]
    for model, words in (("sd15", "SD 1.x checkpoint"), ("sd21", "SD 2.x checkpoint"), ("sdxl", "SDXL checkpoint")):
        shapes = {
            name: entry["shape"]
            for part in ("unet", "text_encoder", "text_encoder_2")
            for name, entry in models[model].get(part, {}).items()
        }
        assert str(known(shapes)) == words


@pytest.mark.parametrize(
    ("shapes", "metadata", "prediction"),
    [
        (SD1, {}, "epsilon"),
        (SD1, {"modelspec__prediction_type": "v"}, "v"),
        (SD1, {"modelspec__prediction_type": "v_prediction"}, "v"),
        (SD2, {}, None),
        (SD2, {"modelspec__prediction_type": "epsilon"}, "epsilon"),
        (SD2, {"modelspec__prediction_type": "v", "modelspec__merged_from": "a, b"}, None),
        (SD2, {"global_step": "875000"}, "epsilon"),
        (SD2, {"global_step": "110000"}, "v"),
        (SD2, {"global_step": "220000"}, "epsilon"),
        (SDXL, {}, "epsilon"),
        ({**SDXL, "v_pred": (0,), "ztsnr": (0,)}, {}, "v"),
    ],
)
def test_the_prediction_type_goes_by_the_best_evidence(shapes, metadata, prediction):
    assert known(shapes, **metadata).prediction == prediction


def write_sparse(path, shapes, dtype, item):
    """A file with this header and a hole for the weights."""
    listing, place = {}, 0
    for name, shape in shapes.items():
        listing[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, place + prod(shape) * item]}
        place += prod(shape) * item
    text = json.dumps(listing).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + place)
    return path


def test_size_decides_nothing(tmp_path):
    """kohya's rule calls a file above 5.5 GiB SDXL: SD 1 in fp32 with averages is larger, SDXL in fp8 smaller."""
    large = write_sparse(tmp_path / "sd1.safetensors", {**SD1, "model_ema.all": (1_600_000_000,)}, "F32", 4)
    small = write_sparse(tmp_path / "sdxl.safetensors", SDXL, "F8_E4M3", 1)
    assert large.stat().st_size > 5.5 * 2**30 > small.stat().st_size
    assert str(identify(large)) == "SD 1.x checkpoint" and str(identify(small)) == "SDXL checkpoint"


# ---- folders ----


def folder(path, **configs):
    for name, config in configs.items():
        target = path / "model_index.json" if name == "index" else path / name / "config.json"
        if name == "scheduler":
            target = path / "scheduler" / "scheduler_config.json"
        if name == "own":
            target = path / "config.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(config))
    return path


SD_INDEX, XL_INDEX = {"_class_name": "StableDiffusionPipeline"}, {"_class_name": "StableDiffusionXLPipeline"}


@pytest.mark.parametrize(
    ("configs", "words", "prediction"),
    [
        ({"index": SD_INDEX, "unet": {"cross_attention_dim": 768}}, "SD 1.x checkpoint", "epsilon"),
        (
            {
                "index": SD_INDEX,
                "unet": {"cross_attention_dim": 1024},
                "scheduler": {"prediction_type": "v_prediction"},
            },
            "SD 2.x checkpoint",
            "v",
        ),
        (
            {"index": XL_INDEX, "unet": {"cross_attention_dim": 2048}, "scheduler": {"prediction_type": "epsilon"}},
            "SDXL checkpoint",
            "epsilon",
        ),
        ({"index": {"_class_name": "StableDiffusionXLImg2ImgPipeline"}}, "SDXL refiner checkpoint", None),
        (
            {"index": {"_class_name": "StableDiffusionXLImg2ImgPipeline"}, "unet": {"cross_attention_dim": 2048}},
            "SDXL checkpoint",
            None,
        ),
        (
            {
                "index": {"_class_name": "StableDiffusionInpaintPipeline"},
                "unet": {"cross_attention_dim": 768, "in_channels": 9},
            },
            "SD 1.x inpainting checkpoint",
            "epsilon",
        ),
        ({"index": {"_class_name": "StableDiffusion3Pipeline"}}, "Stable Diffusion 3 checkpoint", None),
        ({"unet": {"cross_attention_dim": 768}}, "SD 1.x checkpoint", "epsilon"),
        ({"own": {"_class_name": "AutoencoderKL"}}, "VAE", None),
        ({"own": {"_class_name": "UNet2DConditionModel", "cross_attention_dim": 768}}, "SD 1.x U-Net", None),
        ({"own": {"architectures": ["CLIPTextModel"]}}, "text encoder", None),
        (
            {"index": SD_INDEX, "unet": {"cross_attention_dim": 768, "time_cond_proj_dim": 256}},
            "SD 1.x LCM checkpoint",
            "epsilon",
        ),
    ],
)
def test_each_folder_is_named(tmp_path, configs, words, prediction):
    kind = identify(folder(tmp_path, **configs))
    assert (str(kind), kind.prediction, kind.layout) == (words, prediction, "diffusers")


def test_a_folder_without_a_model_or_with_a_broken_config_is_a_problem(tmp_path):
    with refused("model.empty-folder"):
        identify(tmp_path)
    (tmp_path / "model_index.json").write_text("{ not json")
    with refused("file.not-json"):
        identify(tmp_path)


# ---- what a job is told ----


def message(shapes, code, wanted="auto"):
    with pytest.raises(ProblemsError) as caught:
        check_family(known(shapes), "model.safetensors", wanted)
    (problem,) = caught.value.problems
    assert problem.code == code and problem.where == "model.safetensors" and problem.fix
    return problem.what


def test_a_model_of_another_family_is_refused_by_its_name():
    other = "model.other-family"
    assert message(SDXL, other, "sd1") == "This is an SDXL checkpoint; this job works with SD 1.x"
    assert message(SD2, other, "sd1") == "This is an SD 2.x checkpoint; this job works with SD 1.x"
    assert message({f"{U}double_blocks.0.img_attn.qkv.weight": (1, 1)}, other).startswith(
        "This is a Flux checkpoint; this job works with SD 1.x or SD 2.x or SDXL"
    )


def test_a_file_that_is_no_whole_model_is_refused_by_its_name():
    lora = {"lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": (4, 768)}
    assert "but: SD 1.x LoRA" in message(lora, "model.not-a-checkpoint")
    assert "but: VAE" in message(VAE_LDM, "model.not-a-checkpoint")
    assert "SD 1.x inpainting checkpoint" in message(with_first(SD1, 9), "model.unsupported-variant")


def test_the_family_setting_decides_where_the_file_tells_nothing():
    silent = {FIRST: (32, 4, 3, 3)}
    assert message(silent, "model.undetected-family")
    assert check_family(known(silent), "x", "sd1") == "sd1"
    assert check_family(known(SD1), "x") == "sd1"


def test_the_starter_is_sd1_although_narrower():
    starter = Path(__file__).parents[2] / "models" / "starter"
    assert family_of(starter) == "sd1"
    assert identify(starter).prediction == "epsilon"


def test_every_family_has_the_same_functions():
    names = (
        "load",
        "make_empty",
        "digest",
        "weight_bytes",
        "tokenize",
        "encode_ids",
        "encode_captions",
        "count_tokens",
        "encode_image_latents",
        "decode_latents",
        "predict",
        "lora_targets",
    )
    for name in FAMILIES:
        assert all(callable(getattr(family(name), function)) for function in names)
    with refused("model.unknown-family", "sd9"):
        family("sd9")


def test_a_pickled_checkpoint_is_identified_without_its_weights(tmp_path):
    torch.save({"state_dict": {name: torch.zeros(shape) for name, shape in SD1.items()}}, tmp_path / "old.ckpt")
    assert str(identify(tmp_path / "old.ckpt")) == "SD 1.x checkpoint"


def test_zero_terminal_snr_is_told_by_markers_metadata_and_schedulers(tmp_path):
    assert known({**SDXL, "ztsnr": (0,)}).zero_terminal_snr and not known(SDXL).zero_terminal_snr
    assert known(SD1, ss_zero_terminal_snr="True").zero_terminal_snr
    assert not known(SD1, ss_zero_terminal_snr="False").zero_terminal_snr
    folder = tiny_folder("sd1", tmp_path / "model")
    assert not identify(folder).zero_terminal_snr
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text('{"rescale_betas_zero_snr": true}')
    assert identify(folder).zero_terminal_snr


def test_a_file_is_read_again_only_after_it_changed(tmp_path, monkeypatch):
    from core.formats import detect

    reads = []
    there = detect.read_header
    monkeypatch.setattr(detect, "read_header", lambda path: reads.append(path) or there(path))
    path = tmp_path / "a.safetensors"
    save_file(
        {"lora_unet_x.lora_down.weight": torch.zeros(4, 4), "lora_unet_x.lora_up.weight": torch.zeros(4, 4)}, path
    )
    assert [identify(path).kind for _ in range(3)] == ["lora"] * 3 and len(reads) == 1
    save_file({"emb_params": torch.zeros(1, 768)}, path)
    assert identify(path).kind == "embedding" and len(reads) == 2
    path.write_bytes(path.read_bytes()[:-9])
    for _ in range(2):
        with refused("model.truncated"):
            identify(path)
    assert len(reads) == 3
    path.unlink()
    with pytest.raises(ProblemsError):
        identify(path)


@pytest.mark.parametrize(
    ("model", "config", "prediction"),
    [
        (SD1, 'model:\n  target: ldm.models.diffusion.ddpm.LatentDiffusion\n  params:\n    parameterization: "v"\n', "v"),
        (SD2, "model:\n  target: ldm.models.diffusion.ddpm.LatentDiffusion\n  params: {}\n", "epsilon"),
        (SDXL, f"{SGM}  x: sgm.modules.diffusionmodules.denoiser_scaling.VScaling\n", "v"),
        ({**SDXL, "v_pred": (0,)}, SGM, "v"),
        (SDXL, "note: parameterization v\n", "epsilon"),
    ],
)  # fmt: skip
def test_the_config_next_to_a_checkpoint_states_its_prediction_type(tmp_path, model, config, prediction):
    path = tmp_path / "a.b.safetensors"
    save_file({name: torch.zeros(shape, dtype=torch.float16) for name, shape in model.items()}, path)
    before = fingerprint(path)
    (tmp_path / "a.b.yaml").write_text(config)
    assert identify(path).prediction == prediction
    assert fingerprint(path) != before  # a loaded model is loaded again


def test_metadata_may_state_the_prediction_type_without_modelspec():
    assert known(SDXL, prediction_type="v_prediction").prediction == "v"
