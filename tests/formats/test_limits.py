"""Limits of files at their edges, and tables row by row against what others publish."""

from __future__ import annotations

import json
import struct

import pytest
import torch
from safetensors.torch import save_file

from core.formats.detect import identify, identify_header
from core.formats.tensors.header import read_header, sniff
from core.formats.tensors.reading import TensorFile
from tests.refusals import refused


def file_of(path, shapes, dtype="F32", size=4):
    """A file with tensors of these names and shapes, holes in place of their numbers."""
    listing, end = {}, 0
    for name, shape in shapes.items():
        begin, count = end, size
        for side in shape:
            count *= side
        end = begin + count
        listing[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(listing).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


@pytest.mark.parametrize(
    ("within", "beyond"),
    [
        ({"a": (1,) * 8}, {"a": (1,) * 9}),
        ({"x" * 300: (1,)}, {"x" * 301: (1,)}),
        ({f"{n}": () for n in range(20_000)}, {f"{n}": () for n in range(20_001)}),
    ],
    ids=["axes", "name", "tensors"],
)
def test_a_file_may_have_8_axes_names_of_300_characters_and_20000_tensors(tmp_path, within, beyond):
    entries, _ = read_header(file_of(tmp_path / "a.safetensors", within))
    assert entries.keys() == within.keys()
    with refused("model.bad-header"):
        read_header(file_of(tmp_path / "b.safetensors", beyond))


DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type_of_numbers_is_read_as_it_was_written(tmp_path, dtype):
    values = torch.tensor([1, 0, 1, 1, 0, 1]).to(dtype).view(2, 3)
    number = torch.tensor(-2.5 if dtype.is_floating_point else 1).to(dtype)
    save_file({"a": values, "number": number}, tmp_path / "a.safetensors")
    with TensorFile(tmp_path / "a.safetensors") as file:
        found, outline = file.read("a"), file.outline("number")
    assert found.dtype == dtype and torch.equal(found.float(), values.float())
    assert float(outline) == float(number), "read without torch"


@pytest.mark.parametrize(
    ("channels", "variant"), [(4, None), (5, "depth"), (7, "upscaler"), (8, "instruct-pix2pix"), (9, "inpainting")]
)
def test_what_a_unet_is_for_is_told_by_its_input_channels(tmp_path, channels, variant):
    key = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    shapes = {"conv_in.weight": (320, channels, 3, 3), key: (640, 768)}
    found = identify(file_of(tmp_path / "a.safetensors", shapes))
    assert (found.kind, found.family, found.variant) == ("unet", "sd1", variant)


@pytest.mark.parametrize(("width", "family"), [(768, "sd1"), (1024, "sd2"), (2048, "sdxl"), (1280, "sdxl_refiner")])
def test_the_family_of_a_unet_is_told_by_the_text_states_that_it_reads(tmp_path, width, family):
    key = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight"
    found = identify(file_of(tmp_path / "a.safetensors", {"conv_in.weight": (320, 4, 3, 3), key: (640, width)}))
    assert found.family == family


@pytest.mark.parametrize(("channels", "family"), [(64, "sd1"), (192, "sd1"), (256, "sdxl"), (768, "sdxl"), (3, None)])
def test_the_family_of_a_t2i_adapter_is_told_by_its_unshuffled_hint(tmp_path, channels, family):
    shapes = {"body.0.block1.weight": (8, 8, 3, 3), "conv_in.weight": (8, channels, 3, 3)}
    found = identify(file_of(tmp_path / "a.safetensors", shapes))
    assert (found.kind, found.family) == ("t2i_adapter", family)


@pytest.mark.parametrize(("width", "family"), [(768, "sd1"), (1024, "sd2"), (2048, "sdxl")])
def test_the_family_of_an_ip_adapter_is_told_by_what_its_keys_read(tmp_path, width, family):
    shapes = {"image_proj.proj.weight": (8, 1024), "ip_adapter.1.to_k_ip.weight": (320, width)}
    found = identify(file_of(tmp_path / "a.safetensors", shapes))
    assert (found.kind, found.family) == ("ip_adapter", family)


@pytest.mark.parametrize(
    ("content", "form"),
    [(b"", "empty"), (struct.pack("<Q", 100_000_000) + b"{", "safetensors"), (struct.pack("<Q", 2) + b"[", "unknown")]
    + [(struct.pack("<Q", 100_000_001) + b"{", "unknown"), (b"PK\3\4", "zip"), (b"PK\3\5", "unknown")]
    + [
        (b"\x80", "pickle"),
        (b"\x81", "unknown"),
        (b" \n<!DOCTYPE html>", "page"),
        (b"<HTML>", "page"),
        (b"<htm", "unknown"),
    ]
    + [(b"version https://git-lfs.github.com", "pointer"), (b" version https://git-lfs", "unknown")]
    + [(b'{"error":"Unauthorized"}', "page"), (b'<?xml version="1.0"?><Error>', "page"), (b"Entry not found", "page")]
    + [
        (b"\x1f\x8b\x08", "packed"),
        (b"Rar!\x1a\x07", "packed"),
        (b"GGUF\3", "gguf"),
        (b"\0" * 600, "zeros"),
        (b"\0", "unknown"),
    ],
)
def test_the_form_of_a_file_is_told_by_its_first_bytes(tmp_path, content, form):
    (tmp_path / "a.safetensors").write_bytes(content)
    assert sniff(tmp_path / "a.safetensors") == form


def test_an_axis_may_have_2_to_the_48_elements_even_if_another_has_none(tmp_path):
    assert read_header(file_of(tmp_path / "a.safetensors", {"a": (0, 1 << 48)}))[0]["a"].shape == (0, 1 << 48)
    with refused("model.bad-header"):
        read_header(file_of(tmp_path / "b.safetensors", {"a": (0, (1 << 48) + 1)}))


UNET = "model.diffusion_model."


@pytest.mark.parametrize(
    ("deepest", "label", "variant"), [(8, 2816, "pruned (SSD-1B or Vega)"), (9, 2816, None), (8, 2560, None)]
)
def test_an_sdxl_with_fewer_than_10_transformers_is_pruned(tmp_path, deepest, label, variant):
    shapes = {f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3), f"{UNET}label_emb.0.0.weight": (1280, label)}
    shapes |= {f"{UNET}input_blocks.7.1.transformer_blocks.{n}.norm1.weight": (1,) for n in (0, deepest)}
    found = identify(file_of(tmp_path / "a.safetensors", shapes))
    assert (found.family, found.variant) == ({2816: "sdxl", 2560: "sdxl_refiner"}[label], variant)


@pytest.mark.parametrize(
    ("step", "prediction"),
    [("875000", "epsilon"), ("220000", "epsilon"), ("110000", "v"), ("110001", None), ("", None)],
)
def test_the_published_sd_2_are_told_by_their_number_of_steps(tmp_path, step, prediction):
    key = f"{UNET}input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight"
    tensors, _ = read_header(file_of(tmp_path / "a.safetensors", {key: (320, 1024)}))
    found = identify_header(tensors, {"global_step": step})
    assert (found.family, found.prediction) == ("sd2", prediction)


@pytest.mark.parametrize(("tokens", "kind"), [(200, "embedding"), (201, "unknown")])
def test_an_embedding_has_200_tokens_at_most(tmp_path, tokens, kind):
    shapes = {f"<t{number}>": (2, 768) for number in range(tokens)}
    assert identify(file_of(tmp_path / "a.safetensors", shapes)).kind == kind
