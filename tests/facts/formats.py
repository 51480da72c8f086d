"""Names in files, detection by headers, damaged files, metadata, hub pages, copies."""

from __future__ import annotations

import json
import struct
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from core.families.published_shapes import recorded
from core.formats import detect
from core.formats.lora import names, recognition
from core.formats.models import overflow, sd_keys, text_keys
from core.formats.tensors import header, lazy, outline, reading, writer
from core.formats.tensors.entry import TensorEntry
from core.formats.tensors.pickles import load_state_file
from core.formats.tensors.spill import Spill
from tests.facts.samples import beside, figures
from tests.facts.store import Facts, digest, folder, producer, refused
from tests.recorded_json import recorded_json

VECTORS = Path(__file__).parents[1] / "vectors"


def listed(found: Iterable[Any]) -> list[Any]:
    """How many, the first, the last, and the digits of all."""
    all_ = list(found)
    return [len(all_), *all_[:1], *all_[-1:], digest(all_)]


@producer
def keys() -> Facts:
    """The names of every tensor of the published models in the other form, and of LoRAs in every program's form."""
    for family, part, shapes in ((family, *each) for family, parts in recorded().items() for each in parts.items()):
        if family != "starter":
            if part == "unet":
                ldm = [sd_keys.unet_to_ldm(name, family) for name in shapes]
                back = [sd_keys.unet_to_diffusers(name, family) for name in ldm]
            elif part == "vae":
                ldm = [sd_keys.vae_to_ldm(name) for name in shapes]
                back = [sd_keys.vae_to_diffusers(name) for name in ldm]
            elif family == "sd1" or (part == "text_encoder" and family == "sdxl"):
                ldm = [text_keys.full_name(name) for name in shapes]
                back = [text_keys.bare_name(name) for name in ldm]
            else:
                ldm = [sd_keys.open_clip_to_ldm(name) for name in shapes]
                back = [sd_keys.open_clip_to_diffusers(name) for name, _ in ldm]
            yield f"{family} {part}", [listed(ldm), listed(back), back == list(shapes)]
            layers = dict.fromkeys(name.rpartition(".")[0] for name in shapes)
            kohya = [names.kohya_name(part, layer, family) for layer in layers]
            paths = [names.module_path(name) for name in kohya if name]
            yield (
                f"{family} {part} kohya",
                [listed(kohya), listed(paths), listed(map(names.module_of_layer, filter(None, kohya)))],
            )
    found = recorded_json("network_keys")["cases"]
    for case, known in found.items():
        entries = {name: TensorEntry("F16", tuple(shape), 0, 2) for name, shape in known["keys"].items()}
        family = {"sd15": "sd1", "sd21": "sd2"}.get(case.partition("/")[0], "sdxl")
        kohya = [names.to_kohya_key(name, family) for name in entries]
        kind = detect.identify_header(entries, {"ss_network_module": known["module"]})
        yield (
            f"network {case}",
            [
                listed(kohya),
                kind,
                str(kind),
                recognition.ranks_of(entries, kind.network, {}),
                names.resembled_kind({key for _, key in kohya}),
            ],
        )
    yield (
        "texts",
        [
            [text_keys.full_name(name), text_keys.bare_name(name)]
            for name in ("encoder.layers.0", "text_model.encoder.x", "text_projection.weight")
        ],
    )


PATH = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
TE = "encoder.layers.0.self_attn.q_proj"
FOREIGN = [
    f"unet.{PATH}.lora_A.weight",
    f"unet.{PATH}.lora_B.default.weight",
    f"unet.{PATH}.lora_magnitude_vector",
    f"unet.{PATH}.lora.down.weight",
    f"unet.{PATH.replace('to_k', 'processor.to_k_lora')}.up.weight",
    f"unet.{PATH}.lora_linear_layer.up.weight",
    f"base_model.model.{PATH}.lora_A.weight",
    f"base_model.model.text_model.{TE}.lora_B.weight",
    f"text_encoder.text_model.{TE}.lora_A.weight",
    "text_encoder.text_model.encoder.layers.0.self_attn.to_out_lora.down.weight",
    f"text_encoder_2.text_model.{TE}.alpha",
    "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.lora_up.weight",
    f"text_encoders.clip_l.transformer.text_model.{TE}.lora_down.weight",
    f"text_encoders.clip_g.transformer.text_model.{TE}.lora_down.weight",
    "lycoris_down_blocks_1_attentions_0_proj_in.hada_w1_a",
    "lycoris_text_model_encoder_layers_0_mlp_fc1.lokr_w1",
    "lycoris_unet_mid_block_resnets_0_conv1.diff",
    "lora_te_encoder_layers_0_mlp_fc1.alpha",
    "lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight",
    "lora_unet_input_blocks_4_1_proj_in.lora_up.weight",
    "oft_unet_mid_block_attentions_0_proj_in.oft_blocks",
    "down_blocks.0.resnets.0.conv1.diff_b",
    "transformer.single_transformer_blocks.0.x.lora_A.weight",
    "conv_in.w_norm",
    "nothing",
]


@producer
def foreign() -> Facts:
    """Single names of other programs."""
    for name in FOREIGN:
        found = [names.to_kohya_key(name, family) for family in ("sd1", "sdxl", None)]
        layer = found[0][0]
        yield (
            name,
            [
                found,
                names.split_key(name),
                names.part_and_path(name.rpartition(".")[0], "sd1"),
                layer and names.module_path(layer),
            ],
        )
    yield "prefixes", [names.kohya_prefixes(), [names.layer_name(each) for each in ("oft_unet_x", "lora_unet_x", "x")]]
    yield (
        "extras",
        [names.module_of_extra(f"lora_unet_conv_in.{each}") for each in ("w_norm", "b_norm", "diff_b", "alpha")],
    )
    yield "groups", names.group_by_module({"a.alpha": 1, "a.x.y": 2, "b.alpha": 3})
    yield (
        "looks",
        [
            names.resembled_kind(each)
            for each in (
                ["hada_w1_a", "hada_w2_a", "x"],
                ["alpha"],
                ["lora_down.weight"],
                ["lokr_w1", "alpha", "q", "r", "s"],
            )
        ],
    )


def entries(*named: tuple[str, tuple[int, ...]] | str) -> dict[str, TensorEntry]:
    pairs = [(each, (4, 4)) if isinstance(each, str) else each for each in named]
    return {name: TensorEntry("F32", shape, 0, 4) for name, shape in pairs}


UNET = "model.diffusion_model."
ATTN = "input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
HEADERS: dict[str, tuple[dict[str, TensorEntry], dict[str, str]]] = {
    "sd1": (entries((UNET + ATTN, (320, 768)), (f"{UNET}input_blocks.0.0.weight", (320, 4, 3, 3))), {}),
    "sd1 by text": (entries(f"{UNET}x", "cond_stage_model.transformer.y"), {}),
    "sd2": (entries((UNET + ATTN, (320, 1024))), {}),
    "sd2 v": (entries((UNET + ATTN, (320, 1024))), {"global_step": "110000"}),
    "sd2 epsilon": (entries((UNET + ATTN, (320, 1024))), {"global_step": "875000"}),
    "sd2 merged": (
        entries((UNET + ATTN, (320, 1024))),
        {"modelspec.prediction_type": "v", "modelspec.merged_from": "x"},
    ),
    "sd2 stated": (entries((UNET + ATTN, (320, 1024)), "ztsnr"), {"modelspec.prediction_type": "v_prediction"}),
    "sd2 by text": (entries(f"{UNET}x", "cond_stage_model.model.y"), {}),
    "sdxl": (entries((f"{UNET}label_emb.0.0.weight", (1280, 2816)), "v_pred"), {}),
    "sdxl by text": (entries(f"{UNET}x", "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias"), {}),
    "refiner": (entries((f"{UNET}label_emb.0.0.weight", (1536, 2560))), {}),
    "refiner by text": (
        entries(f"{UNET}x", "conditioner.embedders.0.model.transformer.resblocks.9.mlp.c_proj.bias"),
        {},
    ),
    "sd3": (entries(f"{UNET}joint_blocks.0.x_block.attn.qkv.weight"), {}),
    "flux": (entries(f"{UNET}double_blocks.0.img_attn.qkv.weight"), {}),
    "unknown unet": (entries(f"{UNET}x"), {}),
    "inpainting": (entries((UNET + ATTN, (320, 768)), (f"{UNET}input_blocks.0.0.weight", (320, 9, 3, 3))), {}),
    "pix2pix": (entries((UNET + ATTN, (320, 768)), (f"{UNET}input_blocks.0.0.weight", (320, 8, 3, 3))), {}),
    "depth": (entries((UNET + ATTN, (320, 1024)), (f"{UNET}input_blocks.0.0.weight", (320, 5, 3, 3))), {}),
    "lcm": (entries((UNET + ATTN, (320, 768)), f"{UNET}time_embed.cond_proj.weight"), {}),
    "cosxl": (entries((f"{UNET}label_emb.0.0.weight", (1280, 2816)), "edm_vpred.sigma_max"), {}),
    "playground": (entries((f"{UNET}label_emb.0.0.weight", (1280, 2816)), "edm_mean"), {}),
    "pruned": (
        entries((f"{UNET}label_emb.0.0.weight", (1280, 2816)), f"{UNET}input_blocks.7.1.transformer_blocks.3.x"),
        {},
    ),
    "not pruned": (
        entries((f"{UNET}label_emb.0.0.weight", (1280, 2816)), f"{UNET}input_blocks.7.1.transformer_blocks.9.x"),
        {},
    ),
    "lllite": (entries("lllite_unet_input_blocks_4_1_transformer_blocks_1_x.down.0.weight"), {}),
    "lllite sd1": (entries("lllite_unet_input_blocks_1_1_x.down.0.weight"), {}),
    "lora stated": (
        entries("lora_unet_x.lora_down.weight", "lora_unet_x.lora_up.weight"),
        {"ss_base_model_version": "sdxl_base_v1-0"},
    ),
    "lora spec": (
        entries("lora_unet_x.lora_down.weight", "lora_unet_x.lora_up.weight"),
        {"modelspec.architecture": "stable-diffusion-v2-512/lora"},
    ),
    "lora text": (entries(("lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight", (4, 1024))), {}),
    "lora te2": (entries("lora_te2_text_model_x.lora_down.weight"), {}),
    "lora deep": (entries("lora_unet_down_blocks_1_attentions_0_transformer_blocks_1_x.lora_down.weight"), {}),
    "lora flux": (entries("lora_unet_double_blocks_0_x.lora_down.weight"), {"modelspec.prediction_type": "v"}),
    "lora sd3": (entries("transformer.transformer_blocks.0.x.lora_A.weight"), {}),
    "lora peft": (entries((f"unet.{PATH}.lora_A.weight", (4, 2048)), f"unet.{PATH}.lora_B.weight"), {}),
    "lora old": (
        entries((f"unet.{PATH}.lora.down.weight", (4, 768)), f"unet.{PATH}.lora.up.weight"),
        {"ss_zero_terminal_snr": "True"},
    ),
    "lora comfy": (entries("diffusion_model.output_blocks.1.x.lora_A.weight"), {}),
    "loha": (entries(*(f"lycoris_x.hada_w{n}_{s}" for n in "12" for s in "ab")), {}),
    "half loha": (entries("lycoris_x.hada_w1_a"), {}),
    "norms": (entries("lora_unet_x.w_norm"), {}),
    "oft old": (entries("lora_unet_x.oft_diag"), {}),
    "controlnet": (
        entries(
            "controlnet_cond_embedding.conv_in.weight",
            ("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight", (4, 1024)),
        ),
        {},
    ),
    "controlnet sdxl": (
        entries("controlnet_cond_embedding.conv_in.weight", "add_embedding.linear_1.weight", "task_embedding"),
        {},
    ),
    "controlnet ldm": (entries("control_model.x", ("control_model." + ATTN, (4, 768)), "difference"), {}),
    "controlnet bare": (entries("input_hint_block.0.weight", "label_emb.0.0.weight", "lora_controlnet"), {}),
    "embedding": (entries(("emb_params", (3, 768))), {}),
    "embedding a1111": (entries(("string_to_param.*", (3, 1024))), {}),
    "embedding sdxl": (entries(("clip_l", (1, 768)), ("clip_g", (1, 1280))), {}),
    "embedding tokens": (entries(("<a>", (7,)), ("<b>", (7,))), {}),
    "embedding one": (entries(("fox", (2, 1280))), {}),
    "embedding odd": (entries(("fox", (2, 100))), {}),
    "xti": (entries(*((key, (1, 768)) for key in detect.XTI_KEYS)), {}),
    "vae": (entries("encoder.conv_in.weight", "decoder.up_blocks.0.x"), {}),
    "vae ldm": (entries("first_stage_model.encoder.conv_in.weight"), {}),
    "unet": (
        entries(
            ("down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight", (4, 768)),
            ("conv_in.weight", (320, 9, 3, 3)),
        ),
        {},
    ),
    "text encoder": (entries(("text_model.embeddings.token_embedding.weight", (9, 1280))), {}),
    "ip adapter": (entries("image_proj.x", ("ip_adapter.1.to_k_ip.weight", (4, 2048)), "ip_adapter.1.x_lora.down"), {}),
    "t2i": (entries(("adapter.conv_in.weight", (4, 64, 3, 3)), "adapter.body.0.resnets.0.block1.x"), {}),
    "esrgan": (entries("params_ema.conv_first.weight", "params_ema.body.0.rdb1.conv5.weight"), {}),
    "latent upscaler": (entries("conv1.weight", "resblock20.conv2.weight", "conv_final.weight"), {}),
    "swinir": (entries("params.conv_first.weight", "params.layers.0.residual_group.blocks.0.attn.qkv.weight"), {}),
    "srvgg": (entries("body.0.weight", "body.1.weight"), {}),
    "hypernetwork": (entries("320.0.x", "768.1.y"), {}),
    "nothing": ({}, {}),
    "other": (entries("a.weight", "b.bias"), {}),
}


@producer
def detected() -> Facts:
    """What headers and folders are."""
    for name, (tensors, said) in HEADERS.items():
        kind = detect.identify_header(tensors, said)
        yield (
            name,
            [
                [
                    kind.kind,
                    kind.family,
                    kind.layout,
                    kind.prediction,
                    kind.variant,
                    kind.zero_terminal_snr,
                    kind.network,
                ],
                figures(kind.evidence),
                str(kind),
                kind.offered,
            ],
        )
    sd1 = {"cross_attention_dim": 64, "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"]}
    folders: dict[str, dict[str, Any]] = {
        "starter like": {"unet/config": sd1},
        "sd2 like": {
            "unet/config": sd1 | {"use_linear_projection": True},
            "scheduler/scheduler_config": {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
        },
        "sdxl": {
            "model_index": {"_class_name": "StableDiffusionXLPipeline"},
            "unet/config": {"cross_attention_dim": 2048},
        },
        "img2img": {
            "model_index": {"_class_name": "StableDiffusionXLImg2ImgPipeline"},
            "unet/config": {"cross_attention_dim": 2048},
        },
        "refiner": {
            "model_index": {"_class_name": "StableDiffusionXLImg2ImgPipeline"},
            "unet/config": {"cross_attention_dim": 1280},
        },
        "sd3": {"model_index": {"_class_name": "StableDiffusion3Pipeline"}},
        "time": {"unet/config": {"addition_embed_type": "text_time", "cross_attention_dim": 1280, "in_channels": 9}},
        "lcm": {"unet/config": {"cross_attention_dim": 768, "time_cond_proj_dim": 256}},
        "unknown": {"unet/config": {"cross_attention_dim": 5}},
        "unet": {"config": {"_class_name": "UNet2DConditionModel", "cross_attention_dim": 1024}},
        "vae": {"config": {"_class_name": "AutoencoderKL", "scaling_factor": 0.13025}},
        "controlnet": {"config": {"_class_name": "ControlNetUnionModel", "cross_attention_dim": 2048}},
        "text": {"config": {"architectures": ["CLIPTextModel"]}},
        "other": {"config": {"_class_name": "X"}},
        "empty": {},
    }
    for name, files in folders.items():
        with folder() as root:
            for file, content in files.items():
                beside(root / f"{file}.json", json.dumps(content))

            def found(root=root):
                kind = detect.identify(root)
                return [
                    kind.kind,
                    kind.family,
                    kind.prediction,
                    kind.variant,
                    kind.zero_terminal_snr,
                    figures(kind.evidence),
                ]

            yield f"folder {name}", refused(found)


def safetensors(listing: Mapping[str, Any], data: bytes = b"\0" * 64, length: int | None = None) -> bytes:
    text = json.dumps(listing).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


ENTRY = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
DAMAGED: dict[str, bytes] = {
    "good": safetensors(
        {"__metadata__": {"a": "b"}, "x": ENTRY, "y": {"dtype": "BF16", "shape": [], "data_offsets": [16, 18]}}
    ),
    "empty": b"",
    "page": b"  <!DOCTYPE html><html>",
    "pointer": b"version https://git-lfs.github.com/spec/v1",
    "unknown": b"something else entirely",
    "cut header": safetensors({"x": ENTRY})[:30],
    "long header": safetensors({"x": ENTRY}, length=1 << 40),
    "truncated": safetensors({"x": ENTRY}, b"\0" * 15),
    "wrong type": safetensors({"x": ENTRY | {"dtype": "Q4"}}),
    "wrong shape": safetensors({"x": ENTRY | {"shape": [2, 3]}}),
    "negative": safetensors({"x": ENTRY | {"shape": [-2, -2]}}),
    "backwards": safetensors({"x": ENTRY | {"data_offsets": [16, 0]}}),
    "no offsets": safetensors({"x": {"dtype": "F32", "shape": [1]}}),
    "axes": safetensors({"x": ENTRY | {"shape": [1] * 8 + [2, 2]}}),
    "most axes": safetensors({"x": ENTRY | {"shape": [1] * 6 + [2, 2]}}),
    "long name": safetensors({"n" * 300: ENTRY}),
    "longer name": safetensors({"n" * 301: ENTRY}),
    "control name": safetensors({"a\x01": ENTRY}),
    "metadata": safetensors({"__metadata__": {"a": 1}, "x": ENTRY}),
    "list": struct.pack("<Q", 2) + b"[]" + b"\0" * 8,
    "not json": struct.pack("<Q", 4) + b"{no}" + b"\0" * 8,
    "twice": struct.pack("<Q", 120)
    + b'{"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(
        120
    )
    + b"\0" * 8,
    "shared": safetensors({str(n): ENTRY for n in range(5)}, b"\0" * 16),
    "pickle": b"\x80\x02cos\nsystem\nq\x00.",
    "zip": b"PK\x03\x04" + b"\0" * 40,
}


@producer
def headers() -> Facts:
    """What is read of good and damaged files."""
    with folder() as root:
        for name, data in DAMAGED.items():
            for ending in (".safetensors", ".ckpt"):
                path = beside(root / f"model{ending}", data)
                read = refused(partial(header.read_header, path))
                yield (
                    f"{name}{ending}",
                    [
                        header.sniff(path),
                        read,
                        refused(partial(header.check_format, path, path.name)),
                        refused(lambda path=path: detect.identify(path).kind),
                    ],
                )
        axes = [TensorEntry("F32", shape, 0, 4).side(axis) for shape in ((), (3,), (3, 5)) for axis in range(-3, 3)]
        yield "sides", axes
        tables = {
            "two": ((1, 7), (2, 7)),
            "kernel": ((1, 1, 7), (1, 7)),
            "widths": ((1, 7), (1, 8)),
            "empty": ((0, 7), (1, 7)),
        }
        for name, shapes in tables.items():
            kind = detect.identify_header(entries(("<a>", shapes[0]), ("<b>", shapes[1])), {})
            yield f"tables {name}", [kind.kind, kind.family, figures(kind.evidence)]
        parts = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([7.5]).half(), "c": torch.arange(4)}
        with Spill(root / "not yet" / "target") as spill:
            stored = spill.put(parts) | spill.put({"d": parts["a"].T})
            yield (
                "spilled",
                [[name, each.shape, each.dtype, each.number, each.fetch()] for name, each in stored.items()],
            )
        good = DAMAGED["good"]
        length = struct.unpack("<Q", good[:8])[0]
        yield "with metadata", header.header_with(good[8 : 8 + length], {"new": "x"})
        base = torch.arange(24.0).reshape(4, 6)
        content = OrderedDict(
            w=base,
            half=base.half()[:2],
            turned=base.T,
            cut=base[1:3, 2:4],
            number=torch.tensor(2.5),
            none=torch.zeros(0, 4),
        )
        for zipped in (True, False):
            path = root / f"p{zipped}.ckpt"
            torch.save(
                {"state_dict": content, "global_step": 875000, "epoch": 3}, path, _use_new_zipfile_serialization=zipped
            )
            found, said = header.read_header(path)
            with reading.TensorFile(path) as file:
                values = [file.read(key) for key in found]
            yield (
                f"pickled {zipped}",
                [
                    [[key, each.dtype, each.shape, each.strides] for key, each in found.items()],
                    said,
                    values,
                    refused(lambda path=path: list(load_state_file(path))),
                ],
            )
        tensors = {key: lazy.in_memory(value.contiguous()) for key, value in content.items()}
        out = root / "out.safetensors"
        writer.write_safetensors(
            out, tensors, {"ss_a": "1", writer.WEIGHTS_HASH: writer.NO_HASH, writer.LEGACY_HASH: writer.NO_LEGACY_HASH}
        )
        written = out.read_bytes()
        writer.write_safetensors(root / "o2.safetensors", tensors, {}, order=writer.library_order, format=None)
        writer.write_pickle(root / "o3.ckpt", tensors, "state_dict", {"epoch": 3})
        yield (
            "written",
            [
                written,
                (root / "o2.safetensors").read_bytes(),
                header.read_header(out)[1],
                header.read_header(root / "o3.ckpt"),
                writer.file_bytes(tensors),
            ],
        )
        for value in (1.0, -2.5, 448.0, 0.015625):
            kinds = (
                ("F8_E4M3", torch.float8_e4m3fn),
                ("F8_E5M2", torch.float8_e5m2),
                ("BF16", torch.bfloat16),
                ("F16", torch.float16),
                ("F32", torch.float32),
            )
            raws = [
                (kind, torch.tensor([value]).to(dtype).view(torch.uint8).numpy().tobytes()) for kind, dtype in kinds
            ]
            yield f"number {value}", [outline.number_of(raw, kind) for kind, raw in raws]
        stacked = lazy.stacked([lazy.in_memory(base), lazy.in_memory(base + 1)])
        yield (
            "lazy",
            [
                stacked.read(),
                stacked.byte_count,
                lazy.in_memory(base).transposed().read(),
                lazy.in_memory(base).cast("bfloat16").read(),
                [len(piece) for piece in lazy.in_memory(base).pieces(numbers=5)],
            ],
        )
        shape = outline.Outline((2, 3), "F32", 4.0)
        yield (
            "outline",
            [
                (shape * 2).number,
                shape.reshape(-1, 2).shape,
                shape.reshape(6).shape,
                shape.numel(),
                shape.is_floating_point(),
            ],
        )
        sizes = {"a": 65504.0, "b": 65520.0, "c": float("inf"), "d": 1e39, "e": float("nan")}
        yield (
            "overflow",
            [overflow.overflowing(sizes, each) for each in (torch.float16, torch.bfloat16, torch.float32)]
            + [overflow.not_finite_names(sizes)],
        )
        values = {
            "a": torch.tensor([1e5, 1.0]),
            "b": torch.tensor([float("nan")]),
            "c": torch.tensor([-65504.0]),
            "d": torch.tensor([1], dtype=torch.int64),
        }
        yield (
            "largest",
            [
                overflow.overflowing(overflow.largest_by_name(values), torch.float16),
                overflow.not_finite(values),
                [overflow.largest(each) for each in values.values() if each.is_floating_point()],
            ],
        )
        yield (
            "said",
            [
                overflow.fp32_advice(["a", "b"], torch.float16, "x"),
                overflow.not_finite_warning(["a"] * 7, "x"),
                refused(lambda: overflow.refuse_not_finite(["a"], "x")),
            ],
        )
