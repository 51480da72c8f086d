"""Images of other programs that are dropped on Generate: what they leave out is not that of the image before."""

from __future__ import annotations

import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from generate_parts import embedding, lora, made, make_desk, said_codes
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save_file

from core.formats.hashes import HashMemo, file_sha256
from core.formats.tensors.writer import WEIGHTS_HASH
from core.generation.images.record import ImageRecord
from core.generation.model import sources
from core.generation.model.embeddings import find_embeddings
from core.generation.model.sources import HashComparison, Hashes, model_hash, tensors_sha256
from core.record.workspace import PROJECT, Workspace
from core.settings.check import build
from core.settings.job import TrainJob
from tabs.generate import form, image_values
from tests.refusals import refused

A1111 = "a fox\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 64x64"
GRAPH = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd.safetensors"}},
    "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a fox", "clip": ["1", 1]}},
    "3": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
    "4": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 5, "steps": 20, "cfg": 7, "sampler_name": "euler", "scheduler": "normal", "denoise": 1,
            "model": ["1", 0], "positive": ["2", 0], "negative": ["2", 0], "latent_image": ["3", 0],
        },
    },
}  # fmt: skip
FOOOCUS = {"prompt": "a fox", "guidance_scale": 4, "steps": 20, "seed": "5", "resolution": "(64, 64)"}
INVOKEAI = {"positive_prompt": "a fox", "steps": 20, "cfg_scale": 7, "seed": 5, "width": 64, "height": 64}
NOVELAI = {"prompt": "a fox", "uc": "", "steps": 20, "scale": 5, "seed": 5, "width": 64, "height": 64}
# program -> (its texts in a PNG, clip skip with that of Train at 2)
MINIMAL = {
    "A1111": ({"parameters": A1111}, 1),
    "Forge": ({"parameters": f"{A1111}, Version: f2.0.1v1.10.1"}, 1),
    "ComfyUI": ({"prompt": json.dumps(GRAPH)}, 1),
    "Fooocus": ({"parameters": json.dumps(FOOOCUS)}, 1),
    "InvokeAI": ({"invokeai_metadata": json.dumps(INVOKEAI)}, 1),
    "NovelAI": ({"Software": "NovelAI", "Comment": json.dumps(NOVELAI)}, None),
    "sd-scripts": ({"prompt": "a fox", "seed": "5", "steps": "20", "scale": "7", "sampler": "ddim"}, None),
}
# What an image of another program does not determine: the model, with the prediction type, names of files, and two switches of the page.
OF_USER = {"base_model", "model", "prediction", "control_net", "compare"}
OF_USER |= {name for name in form.FIELDS if form.OF_JOB[name].group == "output"}


@pytest.fixture
def desk(tmp_path):
    return make_desk(tmp_path)


def drop(desk, tmp_path, texts):
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    Image.new("RGB", (64, 64)).save(tmp_path / "in.png", pnginfo=info)
    desk.read(str(tmp_path / "in.png"))
    return {name: value for name, value in desk._values().items() if name not in OF_USER}


def changed(entry):
    """Another valid value than the default."""
    if entry.kind == "bool":
        return not entry.default
    if entry.choices:
        return next(each for each in entry.choices if each != entry.default)
    if entry.kind in ("int", "float"):
        return 1 if entry.default != 1 else entry.bounds.get("ge", 0)
    return "x" if entry.kind == "text" else entry.default


@pytest.mark.parametrize("program", MINIMAL)
def test_every_setting_is_the_same_whatever_was_set_before(desk, tmp_path, program):
    texts, _ = MINIMAL[program]
    desk.presets.put(form.start_values())
    expected = drop(desk, tmp_path, texts)
    before = {name: changed(entry) for name, entry in form.ENTRIES.items() if name not in OF_USER}
    lists = {"loras": [{"file": "a"}], "nets": [{"file": "b"}], "embeddings": ["c"], "styles": ["d"]}
    desk.presets.put(form.start_values() | before | lists)
    assert sum(form.is_set(name, desk._values()) for name in form.ENTRIES if name not in OF_USER) > 100
    assert drop(desk, tmp_path, texts) == expected


@pytest.mark.parametrize("program", MINIMAL)
def test_no_clip_skip_is_1_where_the_program_leaves_it_out_and_trains_where_it_never_states_it(desk, tmp_path, program):
    texts, skip = MINIMAL[program]
    desk.page.project.job = build(TrainJob, {"model": {"base_model": "models/starter", "clip_skip": 2}})
    desk.presets.put(form.start_values() | {"clip_skip": 3})
    assert drop(desk, tmp_path, texts)["clip_skip"] == skip


def test_an_image_of_a_model_that_is_not_here_brings_its_clip_skip(desk, tmp_path):
    desk.presets.put(form.start_values() | {"clip_skip": 3})
    job = made()
    job = job.with_settings(model={"base_model": "gone", "clip_skip": 2})
    values, _ = desk.sending._values_of(ImageRecord(job=job, source="atelier"))
    assert values["clip_skip"] == 2


@pytest.mark.parametrize(
    ("named", "codes"),
    [
        ("Model: starter", []),
        ("Model: other", ["image-settings.other-model"]),
        ("Model hash: 0123456789, Model: starter", ["image-settings.other-model"]),
        ("Model hash: 0123456789", ["image-settings.other-model"]),
    ],
)
def test_the_chosen_model_is_not_asked_for_unless_its_hash_is_another(desk, tmp_path, named, codes):
    drop(desk, tmp_path, {"parameters": f"{A1111}, {named}"})
    assert said_codes(desk) == codes


@pytest.mark.parametrize("folder", [False, True])
def test_a_large_model_is_not_hashed_while_the_page_waits(tmp_path, monkeypatch, folder):
    space = Workspace(tmp_path / "outputs", tmp_path / "models")
    path, name, memo = PROJECT / "models" / "starter", "models/starter", HashMemo.of(space)
    if not folder:
        path, name = space.models / "starter.safetensors", "starter.safetensors"
        space.models.mkdir()
        path.write_bytes(bytes(11))
        monkeypatch.setattr(image_values, "facts_of_file", lambda path: SimpleNamespace(family="sd1"))
    for left, codes in ((10, ["generate.hash-unknown"]), (1 << 30, [])):
        notes, comparison = [], HashComparison(memo, left)
        assert image_values.is_model(name, "starter", "0123456789", space, comparison, notes) == bool(codes)
        assert [each.code for each in notes] == codes
    comparison = HashComparison(memo, 0)
    assert not image_values.is_model(name, "starter", "0123456789", space, comparison, notes), "its hash is known now"
    digest = model_hash(path, "sd1", memo, None)
    assert image_values.is_model(name, "starter", digest[:10], space, comparison, notes) and not notes


@pytest.mark.parametrize(
    ("digest", "codes"), [("", []), ("tensors", []), ("file", []), ("0123456789ab", ["generate.other-hash"])]
)
def test_a_lora_or_embedding_of_the_name_but_another_hash_is_noted(desk, tmp_path, digest, codes):
    folder = desk.page.workspace.runs / "r" / "checkpoints"
    files = lora(folder / "ink.safetensors"), embedding(folder / "glyph.safetensors")
    of_file = {"tensors": tensors_sha256, "file": file_sha256}
    of_lora, of_embedding = (of_file[digest](path)[:12].upper() if digest in of_file else digest for path in files)
    for pairs in (f'Lora hashes: "ink: {of_lora}"', f'TI hashes: "glyph: {of_embedding}"'):
        text = A1111.replace("a fox", "a glyph fox <lora:ink:0.5>") + (f", {pairs}" if digest else "")
        drop(desk, tmp_path, {"parameters": text})
        assert said_codes(desk) == codes and [each["file"] for each in desk._values()["loras"]] == [
            "outputs/runs/r/checkpoints/ink.safetensors"
        ]


@pytest.mark.parametrize("named", ["moved", "renamed", "moved, without a hash", "with another in its place"])
def test_a_lora_and_an_embedding_of_an_image_are_found_where_they_are_now(desk, tmp_path, named):
    workspace = Workspace(tmp_path / "out", tmp_path / "models")
    name = "bear" if "moved" in named else "renamed"
    files = (
        lora(workspace.models / f"loras/sub/{name}.safetensors"),
        embedding(workspace.models / f"embeddings/sub/{name}.pt"),
    )
    if named == "with another in its place":
        others = lora(workspace.models / "loras/bear.safetensors"), embedding(workspace.models / "embeddings/bear.pt")
        for each in others:
            each.write_bytes(each.read_bytes()[:-1] + b"1")
    stored = {"loras": [{"file": "models/loras/bear.safetensors"}], "embeddings": ["models/embeddings/bear.pt"]}
    hashes = Hashes(
        loras={stored["loras"][0]["file"]: tensors_sha256(files[0])}, embeddings={"bear": file_sha256(files[1])}
    )
    hashes = Hashes() if "without" in named else hashes
    values, notes = image_values.values_of(
        made(**stored), form.start_values(), workspace, desk.page.project.job.model, hashes
    )
    assert [each["file"] for each in values["loras"]] == [f"models/loras/sub/{name}.safetensors"]
    token = "" if name == "bear" else "bear="
    assert values["embeddings"] == [f"{token}models/embeddings/sub/{name}.pt"]
    found = [note.what for note in notes if note.code == "generate.file-elsewhere"]
    assert len(found) == 2 and all(f"sub/{name}" in each for each in found)
    assert "generate.other-hash" not in [note.code for note in notes]


RENAMED = {  # (token of the file's metadata, prompt): names under which the renamed file is used
    ("vtok", "a fox, glyphemb"): {"glyphemb"},
    ("vtok", "a fox, vtok"): {"xyz", "vtok"},
    ("vtok", "a vtok, (Glyphemb:1.2)"): {"glyphemb", "xyz", "vtok"},
    ("", "a fox, glyphemb"): {"glyphemb"},
    ("", "a fox"): {"glyphemb"},
}


@pytest.mark.parametrize("program", ["atelier", "a1111"])
@pytest.mark.parametrize(("token", "prompt"), RENAMED)
def test_a_renamed_embedding_is_used_under_the_name_in_the_prompt(desk, tmp_path, token, prompt, program):
    path = desk.page.workspace.runs / "r" / "checkpoints" / "xyz.safetensors"
    path.parent.mkdir(parents=True)
    save_file({"emb_params": torch.zeros(1, 64)}, path, {"atelier_token": token} if token else None)
    if program == "atelier":
        text = "models/embeddings/glyphemb.safetensors"
        record = ImageRecord(
            made(prompt=prompt, embeddings=[text]), "atelier", hashes=Hashes(embeddings={"glyphemb": file_sha256(path)})
        )
        values = desk.sending._values_of(record)[0]
    else:
        line = f'{A1111.replace("a fox", prompt)}, TI hashes: "glyphemb: {file_sha256(path)[:12]}"'
        values = drop(desk, tmp_path, {"parameters": line})
    found = [word for text in values["embeddings"] for word in find_embeddings(text, desk.page.workspace)]
    assert {name for word in found for name in word.names} == RENAMED[token, prompt]


def test_a_renamed_file_of_several_embeddings_is_used_under_its_tokens(desk, tmp_path):
    path = desk.page.workspace.runs / "r" / "checkpoints" / "xyz.safetensors"
    path.parent.mkdir(parents=True)
    save_file({"zunkel": torch.zeros(1, 768), "brabol": torch.zeros(1, 768)}, path)
    digest = file_sha256(path)[:12]
    line = f'{A1111.replace("a fox", "zunkel brabol")}, TI hashes: "zunkel: {digest}, brabol: {digest}"'
    values = drop(desk, tmp_path, {"parameters": line})
    assert values["embeddings"] == [
        f"{token}=outputs/runs/r/checkpoints/xyz.safetensors" for token in ("zunkel", "brabol")
    ]


def test_civitais_hashes_find_a_renamed_lora_and_embedding(desk, tmp_path):
    folder = desk.page.workspace.runs / "r" / "checkpoints"
    files = lora(folder / "ink2.safetensors"), embedding(folder / "glyph2.safetensors")
    hashes = {"model": "6ce0161689", "vae": "c6a580b13a"}
    hashes |= {name: file_sha256(path)[:10] for name, path in zip(("lora:ink", "embed:glyph"), files, strict=True)}
    text = A1111.replace("a fox", "a glyph fox <lora:ink:0.5>")
    values = drop(desk, tmp_path, {"parameters": f"{text}, Hashes: {json.dumps(hashes)}, Version: v1.10.1"})
    assert [each["file"] for each in values["loras"]] == ["outputs/runs/r/checkpoints/ink2.safetensors"]
    assert values["embeddings"] == ["glyph=outputs/runs/r/checkpoints/glyph2.safetensors"]
    assert said_codes(desk) == ["generate.file-elsewhere"] * 2 + ["image-settings.other-model"]


def test_loras_are_compared_by_hashes_that_are_known_or_read_within_a_limit(tmp_path):
    space, memo = Workspace(tmp_path / "out", tmp_path / "models"), HashMemo()
    path = lora(space.models / "loras" / "fox.safetensors")
    digest, size = tensors_sha256(path), path.stat().st_size

    def found(name, digest, left):
        return sources.file_of_image("lora", name, digest, space, HashComparison(memo, left))

    with refused("lora.not-found", "1 file not compared"):
        found("bear", digest, size - 1)
    assert found("fox", digest, size - 1) == (path, None)
    assert found("fox", digest, size) == (path, True) and found("bear", digest, 0) == (path, True), "its hash is known"
    assert found("fox", "0123456789", 0) == (path, None) and found("fox", "0123456789", size) == (path, False)
    stating = space.models / "loras" / "stating.safetensors"
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(1, 4)}, stating, {WEIGHTS_HASH: "abcdef0123"})
    assert found("bear", "abcdef0123", 0) == (stating, True), "a large file is compared with the hash that it states"


def test_what_is_not_compared_with_an_image_is_said(desk, tmp_path, monkeypatch):
    folder = desk.page.workspace.runs / "r" / "checkpoints"
    lora(folder / "ink.safetensors"), embedding(folder / "glyph.safetensors")
    monkeypatch.setattr("tabs.generate.sending.HashComparison", partial(HashComparison, left=0))
    text = A1111.replace("a fox", "a glyph fox <lora:ink:0.5>") + ', Lora hashes: "ink: 0123456789ab", '
    drop(desk, tmp_path, {"parameters": text + 'TI hashes: "glyph: 0123456789ab", Model hash: 0123456789'})
    assert said_codes(desk) == ["generate.hash-unknown"] * 3
