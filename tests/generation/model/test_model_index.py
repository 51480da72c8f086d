"""The index of model files: what is kept, when a file is read anew, and that nothing damaged breaks a list."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import save_file

from core.generation.model import index as model_index
from core.generation.model.library import Scan, find
from core.record.problems import ProblemsError
from core.record.workspace import Workspace

LAYER = "lora_unet_mid_block_attentions_0_proj_in"
UP, DOWN = f"{LAYER}.lora_up.weight", f"{LAYER}.lora_down.weight"


@pytest.fixture
def space(tmp_path):
    space = Workspace(tmp_path / "outputs", tmp_path / "models")
    for folder in (space.outputs, space.models / "loras"):
        folder.mkdir(parents=True)
    return space


@pytest.fixture
def read(monkeypatch):
    """The files whose headers were read."""
    files, own = [], model_index.read_header

    def noted(path):
        files.append(path.name)
        return own(path)

    monkeypatch.setattr(model_index, "read_header", noted)
    return files


def lora(path):
    save_file({UP: torch.zeros(8, 4), DOWN: torch.zeros(4, 8)}, path)


def restart():
    for kept in (model_index._cache, model_index._loaded, model_index._unsaved):
        kept.clear()


def test_a_header_is_read_once_also_after_a_restart_and_again_when_the_file_has_changed(space, read):
    path = space.models / "loras" / "a.safetensors"
    lora(path)
    assert [label for label, _ in Scan(space).loras()] == ["loras/a"] and read == ["a.safetensors"]
    restart()
    assert Scan(space).loras() and Scan(space).checkpoints() == Scan(space).vaes() == [] and read == ["a.safetensors"]
    os.utime(path, ns=(1, 1))
    assert Scan(space).loras() and read == ["a.safetensors"] * 2
    path.unlink()
    assert Scan(space).loras() == [] and model_index.facts_of_file(path).problem


def test_a_file_that_another_program_has_open_is_read_again(space, monkeypatch):
    path = space.models / "loras" / "a.safetensors"
    lora(path)

    def in_use(path):
        raise ProblemsError.one("The file cannot be read: Permission denied", str(path), code="file.unreadable")

    with monkeypatch.context() as held:
        held.setattr(model_index, "read_header", in_use)
        assert model_index.facts_of_file(path).problem == "The file cannot be read: Permission denied"
    assert model_index.facts_of_file(path).kind == "lora"


def test_a_damaged_file_is_listed_with_its_fault_and_read_anew_after_a_restart(space, read):
    path = space.models / "loras" / "torn.safetensors"
    path.write_bytes(b"no")
    lora(space.models / "loras" / "whole.safetensors")
    labels = [label for label, _ in Scan(space).loras()]
    assert labels[0] == "loras/whole" and labels[1].startswith("loras/torn (unreadable: ")
    restart()
    assert (
        len(Scan(space).loras()) == 2 and read.count("torn.safetensors") == 2 and read.count("whole.safetensors") == 1
    )


@pytest.mark.parametrize(
    "kept", ["[", "[]", '{"files": 3}', '{"files": {"a": 1, "b": {"state": [1, 2], "facts": {"kind": []}}}}']
)
def test_a_damaged_index_is_found_anew(space, read, kept):
    lora(space.models / "loras" / "a.safetensors")
    Scan(space).loras()
    file = space.private / model_index.FILE
    whole = json.loads(file.read_text())
    file.write_text(kept.replace('{"files"', f'{{"detection": {json.dumps(whole["detection"])}, "files"'))
    restart()
    assert len(Scan(space).loras()) == 1 and len(read) == 2 and json.loads(file.read_text()) == whole


def test_what_an_older_program_found_is_found_anew(space, read):
    lora(space.models / "loras" / "a.safetensors")
    Scan(space).loras()
    file = space.private / model_index.FILE
    file.write_text(json.dumps(json.loads(file.read_text()) | {"detection": [0, 0, []]}))
    restart()
    assert Scan(space).loras() and len(read) == 2


CONV = "lora_unet_mid_block_resnets_0_conv1.lora_down.weight"
NETWORKS = {  # the tensors of one layer, the metadata -> network kind, rank
    "convolutions": ({UP: (8, 4), DOWN: (4, 8), CONV: (16, 8, 3, 3)}, {}, "LoRA", (4, 16)),
    "by shapes": ({UP: (8, 4), DOWN: (4, 8)}, {"ss_network_dim": "64"}, "LoRA", 4),
    "largest": (
        {UP: (8, 4), DOWN: (4, 8), UP.replace("in", "out"): (8, 6), DOWN.replace("in", "out"): (6, 8)},
        {},
        "LoRA",
        6,
    ),
    "PEFT": ({f"unet.mid_block.attentions.0.proj_in.lora_{side}.weight": (2, 2) for side in "AB"}, {}, "LoRA", 2),
    "LoHa": (
        {f"{LAYER}.hada_w{n}_{side}": (8, 3) if side == "a" else (3, 8) for n in "12" for side in "ab"},
        {},
        "LoHa",
        3,
    ),
    "LoKr": ({f"{LAYER}.lokr_w1": (2, 2), f"{LAYER}.lokr_w2_a": (4, 3), f"{LAYER}.lokr_w2_b": (3, 4)}, {}, "LoKr", 3),
    "LoHa, flat kernels": (
        {
            f"{layer}.hada_w{n}_{side}": (8, rank) if side == "a" else (rank, 8 * size)
            for layer, rank, size in ((LAYER, 3, 1), (CONV.partition(".")[0], 2, 9))
            for n in "12"
            for side in "ab"
        },
        {},
        "LoHa",
        (3, 2),
    ),
    "LoHa, Tucker": (
        {
            f"{layer}.hada_{key}": shape
            for layer, rank in ((LAYER, 3), (CONV.partition(".")[0], 2))
            for n in "12"
            for key, shape in ((f"w{n}_a", (rank, 8)), (f"w{n}_b", (rank, 8)), (f"t{n}", (rank, rank, 3, 3)))
        },
        {},
        "LoHa",
        (3, 2),
    ),
    "LoKr, flat kernels": (
        {
            f"{layer}.lokr_{key}": shape
            for layer, rank, size in (
                (LAYER, 3, 1),
                ("lycoris_conv_in", 2, 9),
                ("diffusion_model.input_blocks.3.0.op", 4, 9),
            )
            for key, shape in (("w1", (2, 2)), ("w2_a", (4, rank)), ("w2_b", (rank, 4 * size)))
        },
        {},
        "LoKr",
        (3, 4),
    ),
    "LoCon, Tucker": (
        {
            UP: (8, 4),
            DOWN: (4, 8),
            CONV: (2, 8, 1, 1),
            CONV.replace("down", "mid"): (2, 2, 3, 3),
            CONV.replace("down", "up"): (8, 2, 1, 1),
        },
        {},
        "LoCon",
        (4, 2),
    ),
    "whole LoKr": ({f"{LAYER}.lokr_w1": (2, 2), f"{LAYER}.lokr_w2": (4, 4)}, {}, "LoKr", None),
    "OFT": ({"oft_unet_mid_block_attentions_0_proj_in.oft_blocks": (4, 2, 2)}, {"ss_network_dim": "4"}, "OFT", 4),
    "no rank": ({f"{LAYER}.diff": (8, 8)}, {"ss_network_dim": "4"}, "Full difference", None),
    "no number": (
        {f"{LAYER}.lokr_w1": (2, 2), f"{LAYER}.lokr_w2": (4, 4)},
        {"ss_network_dim": "Dynamic"},
        "LoKr",
        None,
    ),
}


@pytest.mark.parametrize("case", NETWORKS)
def test_kind_and_rank_of_a_network_are_known_and_kept(space, read, case):
    shapes, metadata, network, rank = NETWORKS[case]
    path = space.models / "loras" / "a.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path, metadata)
    Scan(space).loras()
    restart()
    assert Scan(space).loras() and read == ["a.safetensors"]
    found = model_index.facts_of_file(path)
    rank, conv_rank = rank if isinstance(rank, tuple) else (rank, None)
    assert (found.kind, found.network, found.rank, found.conv_rank) == ("lora", network, rank, conv_rank)


def test_trigger_words_are_kept_with_the_rest(space, read):
    path = space.models / "loras" / "a.safetensors"
    save_file({UP: torch.zeros(8, 4), DOWN: torch.zeros(4, 8)}, path, {"modelspec.trigger_phrase": "zfx, fox"})
    for _ in range(2):
        Scan(space).loras()
        assert model_index.facts_of_file(path).words == ("zfx", "fox") and read == ["a.safetensors"]
        restart()


def test_a_folder_of_one_part_is_what_its_config_names(space):
    folder = space.models / "controlnet" / "canny"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"_class_name": "ControlNetModel", "cross_attention_dim": 768}', "utf-8")
    found = model_index.facts_of_file(folder)
    assert (found.kind, found.family, found.problem) == ("controlnet", "sd1", "")
    assert model_index.facts_of_file(folder.parent).problem


def test_a_control_net_of_diffusers_is_listed_as_its_folder_and_found_by_its_name(space):
    """Its weight files alone lack the config, and one of several shards the other layers."""
    folder, hint = (
        space.models / "controlnet" / "canny-1.1",
        {"controlnet_cond_embedding.conv_in.weight": torch.zeros(1)},
    )
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"_class_name": "ControlNetModel", "cross_attention_dim": 768}', "utf-8")
    for name in ("diffusion_pytorch_model.fp16", "diffusion_pytorch_model-00001-of-00002"):
        save_file(hint, folder / f"{name}.safetensors")
    save_file(hint, folder.parent / "alone.safetensors")
    listed = dict(Scan(space).control("controlnet"))
    assert listed == {"controlnet/canny-1.1": folder, "controlnet/alone": folder.parent / "alone.safetensors"}
    assert find("controlnet", "canny-1.1", space) == folder


def test_a_file_of_any_kind_is_found_by_its_name_and_near_names_are_offered_for_another(space):
    net, upscaler = space.models / "controlnet" / "canny.safetensors", space.models / "upscalers" / "deep" / "Sharp.pth"
    for path in (net, upscaler):
        path.parent.mkdir(parents=True)
    save_file({"controlnet_cond_embedding.conv_in.weight": torch.zeros(1)}, net)
    upscaler.write_bytes(b"of no kind that is known")
    cases = (("controlnet", net, "cannny", "controls.not-found"), ("upscaler", upscaler, "shap", "upscaler.not-found"))
    for kind, path, misspelled, code in cases:
        for name in (path.stem, path.name.upper(), f"{path.parent.name}/{path.stem}", str(path)):
            assert find(kind, name, space) == path, name
        with pytest.raises(ProblemsError) as refused:
            find(kind, misspelled, space, where="here")
        (problem,) = refused.value.problems
        assert (problem.code, problem.where) == (code, "here") and path.stem in problem.fix
    path.unlink()
    with pytest.raises(ProblemsError) as refused:
        find("upscaler", "sharp", space)
    assert "models/upscalers" in refused.value.problems[0].fix


def test_a_lora_in_the_embeddings_folder_is_a_lora_and_is_named_where_an_embedding_is_chosen(space):
    path = space.models / "embeddings" / "ink.safetensors"
    path.parent.mkdir()
    lora(path)
    assert find("lora", "ink", space) == path
    with pytest.raises(ProblemsError) as refused:
        find("embedding", "ink", space)
    assert "ink.safetensors is a LoRA" in refused.value.problems[0].fix
