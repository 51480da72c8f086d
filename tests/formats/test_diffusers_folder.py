"""A whole model as a diffusers folder, opened by diffusers and transformers without a network."""

import json
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import split_torch_state_dict_into_shards

from core.families.token_count import VOCABULARY
from core.formats.models.checkpoint import open_checkpoint
from core.formats.models.diffusers_folder import scheduler_config
from core.formats.models.whole_model import ModelFacts
from core.formats.tensors.header import read_header
from core.record.workspace import PROJECT
from tests.offline import no_network
from tests.whole_models import FAMILIES, assert_texts_equal, left_in

STARTER = PROJECT / "models" / "starter"


@pytest.mark.slow(but=("diffusers-sd1",))
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("form", ["diffusers", "diffusers_safetensors"])
def test_a_folder_is_opened_by_diffusers_offline(models, written, name, form):
    model, folder = models[name], written(name, form)
    with no_network():
        pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    assert type(pipeline).__name__ == ("StableDiffusionXLPipeline" if name == "sdxl" else "StableDiffusionPipeline")
    for part in ("unet", "vae"):
        state = getattr(pipeline, part).state_dict()
        assert all(torch.equal(state[key], value) for key, value in model.trained[part].items())
    assert_texts_equal(pipeline, model)
    ids = pipeline.tokenizer(["a fox"], padding="max_length", max_length=77).input_ids[0]
    assert ids[:4] == [49406, 320, 3240, 49407] and ids[4:] == [0 if name == "sd2" else 49407] * 73
    if name == "sdxl":
        assert pipeline.tokenizer_2("a fox", padding="max_length", max_length=77).input_ids[-1] == 0
    endings = {path.suffix for path in folder.rglob("*model*") if path.suffix in (".bin", ".safetensors")}
    assert endings == {".bin" if form == "diffusers" else ".safetensors"}


@pytest.mark.slow
def test_the_tokenizer_is_also_there_for_programs_with_an_older_transformers(tmp_path, sd1, written):
    from transformers import CLIPTokenizer

    shutil.copytree(written("sd1", "diffusers_safetensors") / "tokenizer", tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "tokenizer.json").unlink()
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer", local_files_only=True)
    text = "Ein Fuchs, 北京, it's 42 über-foxes"
    assert tokenizer(text).input_ids == sd1.load(sd1.file, parts=["tokenizers"]).tokenizers[0](text).input_ids


@pytest.mark.slow
@pytest.mark.parametrize("merges_are_texts", [False, True])
def test_a_source_that_has_only_tokenizer_json_gets_the_older_files_too(tmp_path, sd1, merges_are_texts):
    from transformers import CLIPTokenizer

    source = Path(shutil.copytree(sd1.folder, tmp_path / "source"))
    written = json.loads(VOCABULARY.read_text("utf-8"))
    written["added_tokens"] += [{**written["added_tokens"][-1], "id": 49408, "content": "<fox>"}]
    if not merges_are_texts:  # as later versions of tokenizers write them
        written["model"]["merges"] = [text.split(" ") for text in written["model"]["merges"]]
    shutil.rmtree(source / "tokenizer")
    (source / "tokenizer").mkdir()
    (source / "tokenizer" / "tokenizer.json").write_text(json.dumps(written), "utf-8")
    sd1.write(tmp_path / "m", form="diffusers_safetensors", source=source)
    saved = tmp_path / "m" / "tokenizer"
    assert json.loads((saved / "added_tokens.json").read_text("utf-8")) == {"<fox>": 49408}
    (saved / "tokenizer.json").unlink()
    text = "Ein Fuchs, 北京, it's 42 über-foxes"
    expected = sd1.load(sd1.file, parts=["tokenizers"]).tokenizers[0](text).input_ids
    assert CLIPTokenizer.from_pretrained(saved, local_files_only=True)(text).input_ids == expected


def test_the_starter_is_shipped_as_every_transformers_reads_it():
    names = read_header(STARTER / "text_encoder" / "model.safetensors")[0]
    assert names and all(name.startswith("text_model.") for name in names)
    assert {"vocab.json", "merges.txt"} <= {path.name for path in (STARTER / "tokenizer").iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_the_scheduler_of_a_folder_knows_prediction_and_zero_terminal_snr(tmp_path, models, name):
    model = models[name]
    facts = ModelFacts(prediction="v", zero_terminal_snr=True)
    model.write(tmp_path / "m", {}, "diffusers_safetensors", facts=facts)
    config = json.loads((tmp_path / "m" / "scheduler" / "scheduler_config.json").read_text())
    index = json.loads((tmp_path / "m" / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", config["_class_name"]]
    scheduler = getattr(diffusers, config["_class_name"]).from_pretrained(tmp_path / "m" / "scheduler")
    assert scheduler.config.prediction_type == "v_prediction" and scheduler.config.timestep_spacing == "trailing"
    assert float(scheduler.alphas_cumprod[-1]) < 1e-6
    assert open_checkpoint(tmp_path / "m").kind.prediction == "v"
    model.write(tmp_path / "e", {}, "diffusers_safetensors", facts=ModelFacts(prediction="epsilon"))
    assert open_checkpoint(tmp_path / "e").kind.prediction == "epsilon"


@pytest.mark.slow
def test_configs_tokenizers_and_scheduler_of_a_source_folder_are_kept(tmp_path, sd1):
    source = Path(shutil.copytree(sd1.folder, tmp_path / "source"))
    config = json.loads((source / "unet" / "config.json").read_text())
    config |= {"upcast_attention": True, "_name_or_path": "/home/somebody/models/x"}
    (source / "unet" / "config.json").write_text(json.dumps(config))
    scheduler = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear", "steps_offset": 7}
    (source / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    (source / "tokenizer" / "added_tokens.json").write_text('{"<fox>": 49408}')
    sd1.write(tmp_path / "m", form="diffusers_safetensors", source=source)
    written = json.loads((tmp_path / "m" / "unet" / "config.json").read_text())
    assert written["upcast_attention"] is True and "_name_or_path" not in written
    assert json.loads((tmp_path / "m" / "scheduler" / "scheduler_config.json").read_text()) == scheduler
    assert json.loads((tmp_path / "m" / "model_index.json").read_text())["scheduler"][1] == "DDIMScheduler"
    assert (tmp_path / "m" / "tokenizer" / "added_tokens.json").is_file()


@pytest.mark.slow
def test_large_parts_are_cut_as_diffusers_cuts_them(tmp_path, monkeypatch, sd1):
    limit = 2_000_000
    monkeypatch.setattr("core.formats.models.diffusers_folder.SHARD_BYTES", limit)
    sd1.write(tmp_path / "m", form="diffusers_safetensors")
    index = json.loads((tmp_path / "m" / "unet" / "diffusion_pytorch_model.safetensors.index.json").read_text())
    pattern = "diffusion_pytorch_model{suffix}.safetensors"
    theirs = split_torch_state_dict_into_shards(sd1.trained["unet"], filename_pattern=pattern, max_shard_size=limit)
    assert index["weight_map"] == theirs.tensor_to_filename and index["metadata"] == theirs.metadata
    sd1.assert_equal(tmp_path / "m")
    with no_network():
        pipeline = DiffusionPipeline.from_pretrained(tmp_path / "m", local_files_only=True)
    state = pipeline.unet.state_dict()
    assert all(torch.equal(state[key], value) for key, value in sd1.trained["unet"].items())
    assert_texts_equal(pipeline, sd1)


@pytest.mark.slow
def test_pickles_are_not_cut_since_diffusers_would_not_find_the_pieces(tmp_path, monkeypatch, sd1):
    monkeypatch.setattr("core.formats.models.diffusers_folder.SHARD_BYTES", 2_000_000)
    sd1.write(tmp_path / "m", form="diffusers")
    with no_network():
        pipeline = DiffusionPipeline.from_pretrained(tmp_path / "m", local_files_only=True)
    assert_texts_equal(pipeline, sd1)


@pytest.mark.slow
def test_a_folder_is_replaced_whole(tmp_path, sd1):
    sd1.write(tmp_path / "m", {}, "diffusers")
    sd1.write(tmp_path / "m", form="diffusers_safetensors")
    sd1.assert_equal(tmp_path / "m")
    assert not list((tmp_path / "m").rglob("*.bin")) and left_in(tmp_path) == ["m"]


@pytest.mark.parametrize(
    ("config", "prediction", "zero", "expected"),
    [
        (
            {"_class_name": "PNDMScheduler", "skip_prk_steps": True},
            "v",
            False,
            {"_class_name": "PNDMScheduler", "skip_prk_steps": True},
        ),
        ({"_class_name": "PNDMScheduler", "skip_prk_steps": True}, "v", True, {"_class_name": "DDIMScheduler"}),
        (
            {"_class_name": "EulerDiscreteScheduler", "skip_prk_steps": True},
            "v",
            True,
            {"_class_name": "EulerDiscreteScheduler", "skip_prk_steps": True},
        ),
        ({"_class_name": "DDIMScheduler"}, "epsilon", True, {"_class_name": "DDIMScheduler"}),
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler"},
            None,
            False,
            {"_class_name": "FlowMatchEulerDiscreteScheduler"},
        ),
    ],
)
def test_a_scheduler_is_exchanged_only_where_it_cannot_have_zero_terminal_snr(
    tmp_path, config, prediction, zero, expected
):
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    if prediction:
        expected = expected | {"prediction_type": {"v": "v_prediction"}.get(prediction, prediction)}
    if zero:
        expected = expected | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    assert scheduler_config(None, tmp_path, prediction, zero) == expected
