"""Whole models converted between files and folders: every tensor kept, diffusers' loaders as the oracle, bad input refused."""

from __future__ import annotations

import gzip
import json
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from core import tasks
from core.families import family
from core.families.published_shapes import FILE, published_shapes
from core.families.trained_size import STATED, USUAL_GUIDANCE, default_guidance, trained_size
from core.formats.detect import identify
from core.formats.models.checkpoint import open_checkpoint, open_vae, read_part
from core.formats.models.extra import EXTRA_FILE, ema_names
from core.formats.models.single_file import file_tensors
from core.formats.tensors.header import read_header
from core.formats.tensors.lazy import in_memory
from core.formats.tensors.reading import TensorFile
from core.record.cancel import Cancelled, CancelToken
from core.record.workspace import PROJECT, Workspace, display_path
from core.settings.check import build
from core.settings.needs import without_effect
from core.settings.tools.convert_model import ConvertModelSettings
from core.tools.models.inspect import weights_hash
from tests.models import tiny_folder, tiny_inpainting_folder
from tests.offline import no_network
from tests.refusals import refused
from tests.tasks import surroundings
from workshop.published_shapes import shapes

UNET = "model.diffusion_model."
PIPELINES = {"sd1": StableDiffusionPipeline, "sd2": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}
FAMILIES = ("sd1", "sd2", "sdxl", "sdxl_refiner")
TOKEN = "cond_stage_model.transformer.text_model.embeddings.position_ids"


def use(name, file, cancel=None, **asked):
    """(the file or folder that a tool wrote, codes of its advice)"""
    task = tasks.named(name)
    outcome = task.start(build(task.job, {name: {"file": str(file), **asked}}), surroundings(Workspace(), cancel))
    return Path(outcome.facts["file"]), outcome.facts["advice"]


def convert(file, output=None, **asked):
    return use("convert_model", file, **asked, **({"output": str(output)} if output else {}))[0]


def to_folder(file, output, **asked):
    return convert(file, output, save_model_as="diffusers_safetensors", **asked)


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert ours[key].dtype == value.dtype and ours[key].shape == value.shape, key
        assert ours[key].numpy(force=True).tobytes() == value.numpy(force=True).tobytes(), key


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("folders")
    return cache(lambda name: tiny_folder(name, root / f"{name}.v1"))


@pytest.fixture(scope="module")
def files(folders, tmp_path_factory):
    """files(family): a single file made of the folder, with what published files hold besides the parts."""
    root = tmp_path_factory.mktemp("files")

    @cache
    def file(name):
        made = convert(folders(name), root / f"{name}.safetensors")
        tensors, metadata = load_file(made), read_header(made)[1]
        unet = {key: value for key, value in tensors.items() if key.startswith(UNET)}
        ema = {f"model_ema.{key.removeprefix('model.').replace('.', '')}": value + 1 for key, value in unet.items()}
        tensors |= ema | {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
        tensors |= {"alphas_cumprod": torch.linspace(1, 0, 1000), f"{UNET}somebody.elses": torch.arange(5)}
        if name == "sd1":
            tensors[TOKEN] = torch.arange(77)[None]
        if name == "sdxl":
            tensors["conditioner.embedders.1.model.logit_scale"] = torch.tensor(4.6)
        if name == "sd2":
            tensors["cond_stage_model.model.text_projection"] = torch.rand(32, 32)
        save_file(tensors, root / f"{name}-full.safetensors", metadata)
        return root / f"{name}-full.safetensors"

    return file


# ---- from one form to another and back


@pytest.mark.slow(
    but=(
        "sd1",
        "sdxl_refiner",
    )
)
@pytest.mark.parametrize("name", [*FAMILIES[:3], pytest.param(FAMILIES[3], marks=pytest.mark.slow)])
def test_a_file_that_became_a_folder_becomes_the_same_file_again(tmp_path, files, name):
    folder = to_folder(files(name), tmp_path / "folder.v2", family=name)
    assert identify(folder).kind == "checkpoint" and folder.name == "folder.v2"
    assert_same(load_file(convert(folder, tmp_path / "back.safetensors")), load_file(files(name)))


@pytest.mark.slow(only=("sd1",))
@pytest.mark.parametrize("name", [FAMILIES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES[1:])])
def test_a_folder_that_became_a_file_becomes_the_same_folder_again(tmp_path, folders, name):
    file = convert(folders(name), tmp_path / "m.safetensors")
    again = to_folder(file, tmp_path / "again", family=name)
    for part in (path.parent for path in folders(name).glob("*/config.json")):
        ours, theirs = (next((root / part.name).glob("*.safetensors")) for root in (again, folders(name)))
        stated = {key.removeprefix("text_model."): value for key, value in load_file(ours).items()}
        assert_same(stated, {key.removeprefix("text_model."): value for key, value in load_file(theirs).items()})
        config = json.loads((again / part.name / "config.json").read_text("utf-8"))
        assert config["_class_name" if "_class_name" in config else "architectures"]
    assert identify(again).family == name


@pytest.mark.slow
def test_a_ckpt_keeps_epoch_and_step_through_a_folder_and_a_safetensors_file(tmp_path, files):
    ckpt = convert(files("sd1"), tmp_path / "sized.ckpt", save_model_as="ckpt")
    content = torch.load(ckpt, weights_only=True) | {"epoch": 3, "global_step": 1000}
    torch.save(content, tmp_path / "old.ckpt")
    assert_same(content["state_dict"], load_file(files("sd1")))
    folder = to_folder(tmp_path / "old.ckpt", tmp_path / "folder")
    file = convert(folder, tmp_path / "m.safetensors")
    assert read_header(file)[1]["global_step"] == "1000"
    again = torch.load(convert(file, tmp_path / "again.ckpt", save_model_as="ckpt"), weights_only=True)
    assert (again["epoch"], again["global_step"]) == (3, 1000)
    assert_same(again["state_dict"], load_file(files("sd1")))
    pickled = convert(files("sd1"), tmp_path / "bins", save_model_as="diffusers")
    assert (pickled / "unet" / "diffusion_pytorch_model.bin").is_file()
    assert_same(load_file(convert(pickled, tmp_path / "unpickled.safetensors")), load_file(files("sd1")))


@pytest.mark.slow
def test_an_inpainting_model_stays_one(tmp_path):
    folder = tiny_inpainting_folder("sd1", tmp_path / "folder")
    file = convert(folder, tmp_path / "m.safetensors")
    assert identify(file).variant == "inpainting"
    again = to_folder(file, tmp_path / "again")
    assert json.loads((again / "unet" / "config.json").read_text("utf-8"))["in_channels"] == 9
    with no_network():
        pipeline = DiffusionPipeline.from_pretrained(again, local_files_only=True)
    assert type(pipeline).__name__ == "StableDiffusionInpaintPipeline"


# ---- what diffusers computes


@pytest.mark.slow(only=("sdxl",))
@pytest.mark.parametrize("name", ["sdxl", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sd1", "sd2"))])
def test_diffusers_loads_what_was_converted_and_computes_the_same(tmp_path, folders, files, name):
    folder = to_folder(files(name), tmp_path / "folder", ema="drop")
    file = convert(folders(name), tmp_path / "m.safetensors")
    with no_network(), torch.no_grad():
        expected = computed(DiffusionPipeline.from_pretrained(folders(name), local_files_only=True), name)
        from_folder = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
        for got, wanted in zip(computed(from_folder, name), expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
        from_file = PIPELINES[name].from_single_file(file, config=str(folders(name)), local_files_only=True)
        for got, wanted in zip(computed(from_file, name), expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def computed(pipeline, name):
    """A step of the U-Net with the embedding of a prompt, and a decoded latent."""
    draw = torch.Generator().manual_seed(0)
    embedded = pipeline.encode_prompt("a fox", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    latents = torch.randn(1, 4, 16, 16, generator=draw)
    sizes = {"text_embeds": embedded[2], "time_ids": torch.zeros(1, 6)} if name == "sdxl" else None
    predicted = pipeline.unet(latents, 500, encoder_hidden_states=embedded[0], added_cond_kwargs=sizes).sample
    return predicted, pipeline.vae.decode(latents).sample


# ---- what can be changed on the way


def test_the_precision_holds_for_weights_and_ema_and_leaves_the_rest(tmp_path, files):
    half = load_file(convert(files("sd1"), tmp_path / "half.safetensors", save_precision="fp16"))
    kinds = {key: value.dtype for key, value in half.items()}
    assert kinds.pop("alphas_cumprod") == kinds.pop("model_ema.decay") == torch.float32
    assert kinds.pop(TOKEN) == kinds.pop(f"{UNET}somebody.elses") == kinds.pop("model_ema.num_updates") == torch.int64
    assert set(kinds.values()) == {torch.float16}
    assert torch.equal(half[f"{UNET}out.2.bias"], load_file(files("sd1"))[f"{UNET}out.2.bias"].half())


@pytest.mark.slow
def test_fp8_is_kept_as_it_is_or_widened(tmp_path, files):
    small = {key: value.to(torch.float8_e4m3fn) if key.startswith(UNET) and value.is_floating_point() else value
             for key, value in load_file(files("sd1")).items()}  # fmt: skip
    save_file(small, tmp_path / "fp8.safetensors", read_header(files("sd1"))[1])
    assert_same_bytes(load_file(convert(tmp_path / "fp8.safetensors", tmp_path / "kept.safetensors")), small)
    wide = load_file(convert(tmp_path / "fp8.safetensors", tmp_path / "wide.safetensors", save_precision="bf16"))
    assert torch.equal(wide[f"{UNET}out.2.bias"], small[f"{UNET}out.2.bias"].bfloat16())


def assert_same_bytes(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert all(
        torch.equal(ours[key].view(-1).view(torch.uint8), theirs[key].view(-1).view(torch.uint8)) for key in ours
    )


@pytest.mark.slow
def test_ema_weights_are_used_or_dropped(tmp_path, files):
    source = load_file(files("sd1"))
    used = load_file(convert(files("sd1"), tmp_path / "used.safetensors", ema="use"))
    dropped = load_file(convert(files("sd1"), tmp_path / "dropped.safetensors", ema="drop"))
    assert torch.equal(used[f"{UNET}out.2.weight"], source[f"{UNET}out.2.weight"] + 1)
    assert torch.equal(dropped[f"{UNET}out.2.weight"], source[f"{UNET}out.2.weight"])
    for found in (used, dropped):
        assert found.keys() == {key for key in source if not key.startswith("model_ema")}
    folder = to_folder(files("sd1"), tmp_path / "folder")
    assert_same(load_file(convert(folder, tmp_path / "later.safetensors", ema="use")), used)
    dotted = {f"model_ema.{key.removeprefix('model.')}": used[key] for key in used if key.startswith(UNET)} | dropped
    save_file(dotted, tmp_path / "dotted.safetensors", read_header(files("sd1"))[1])
    assert_same(load_file(convert(tmp_path / "dotted.safetensors", tmp_path / "same.safetensors", ema="use")), used)
    name, _ = ema_names("up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0.bias", "sd1")
    assert name == "model_ema.diffusion_modeloutput_blocks31transformer_blocks0attn1to_out0bias"
    with refused("model.no-ema"):
        convert(tmp_path / "dropped.safetensors", tmp_path / "none.safetensors", ema="use")
    del source["model_ema.diffusion_modelout2bias"]
    save_file(source, tmp_path / "holes.safetensors", read_header(files("sd1"))[1])
    with refused("model.incomplete-ema", "conv_out.bias"):
        convert(tmp_path / "holes.safetensors", tmp_path / "none.safetensors", ema="use")


@pytest.mark.parametrize("layout", ["single_file", "diffusers"])
def test_a_vae_with_a_damaged_tensor_is_written_and_named_and_a_good_one_says_nothing(tmp_path, layout):
    name = "decoder.conv_out.bias"
    shutil.copytree(PROJECT / "models" / "starter" / "vae", tmp_path / "vae")
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    options = {"layout": layout, "family": "sd1"}
    assert use("extract_vae", tmp_path / "vae", **options, output=str(tmp_path / "good"))[1] == []
    tensors = load_file(file)
    tensors[name][0] = float("nan")
    save_file(tensors, file)
    damaged, advice = use("extract_vae", tmp_path / "vae", **options, output=str(tmp_path / "damaged"))
    assert advice == ["weights.not-finite"]
    stored = read_part(open_vae(damaged))
    assert [key for key in stored if stored[key].isnan().any()] == [name]
    settings = {"file": "models/starter", "vae": str(tmp_path / "vae"), "output": str(tmp_path / "baked.safetensors")}
    bake = tasks.named("bake_vae")
    outcome = bake.start(build(bake.job, {"bake_vae": settings}), surroundings(Workspace()))
    assert display_path(tmp_path / "vae") in "\n".join(outcome.lines), "the VAE is damaged, not the model"


@pytest.mark.slow
def test_a_vae_is_extracted_baked_in_and_left_out(tmp_path, files, folders):
    other = tiny_folder("sd1", tmp_path / "other", seed=3)
    vae, _ = use("extract_vae", other, output=str(tmp_path / "vae.safetensors"))
    assert "decoder.up.3.block.0.norm1.weight" in load_file(vae)
    baked, _ = use("bake_vae", files("sd1"), vae=str(vae), output=str(tmp_path / "baked.safetensors"))
    ours, theirs = load_file(baked), load_file(files("sd1"))
    own = {key for key in ours if not torch.equal(ours[key], theirs[key])}
    assert own and all(key.startswith("first_stage_model.") for key in own) and ours.keys() == theirs.keys()
    wanted = read_part(open_vae(other))
    assert_same(read_part(open_checkpoint(baked).parts["vae"]), stored_like(wanted, ours))
    folder, _ = use("extract_vae", baked, output=str(tmp_path / "vae"), layout="diffusers")
    with no_network():
        found = AutoencoderKL.from_pretrained(folder, local_files_only=True).state_dict()
    assert all(torch.equal(found[key], value) for key, value in wanted.items())
    with refused("convert.unknown-family"):
        use("extract_vae", vae, layout="diffusers", output=str(tmp_path / "unsaid"))
    sdxl, _ = use("extract_vae", vae, layout="diffusers", family="sdxl", output=str(tmp_path / "sdxl"))
    assert json.loads((sdxl / "config.json").read_text("utf-8"))["scaling_factor"] == 0.13025
    none = convert(files("sd1"), tmp_path / "none.safetensors", no_vae=True)
    assert not any(key.startswith("first_stage_model") for key in load_file(none))
    without = to_folder(files("sd1"), tmp_path / "without", no_vae=True)
    assert json.loads((without / "model_index.json").read_text("utf-8"))["vae"] == [None, None]
    with refused("model.missing-part"):
        convert(none, tmp_path / "still.safetensors")
    convert(none, tmp_path / "again.safetensors", vae=str(vae))
    _, advice = use("bake_vae", files("sd1"), vae=str(folders("sdxl")), output=str(tmp_path / "wrong.safetensors"))
    assert "vae.other-family" in advice


def stored_like(state, tensors):
    """With the shapes of a single file: 1x1 convolutions in the VAE's attention."""
    names = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight")
    return {key: value[..., None, None] if key.endswith(names) else value for key, value in state.items()}


@pytest.mark.slow
def test_the_text_projection_is_transposed_unless_it_is_to_be_as_in_sd_scripts(tmp_path, files, folders):
    key = "conditioner.embedders.1.model.text_projection"
    weight = load_file(folders("sdxl") / "text_encoder_2" / "model.safetensors")["text_projection.weight"]
    assert torch.equal(load_file(files("sdxl"))[key], weight.T)
    theirs = convert(folders("sdxl"), tmp_path / "theirs.safetensors", text_projection="kohya")
    assert torch.equal(load_file(theirs)[key], weight)
    assert read_header(theirs)[1]["atelier_text_projection"] == "kohya"
    repaired = to_folder(theirs, tmp_path / "repaired", text_projection="kohya")
    assert torch.equal(load_file(repaired / "text_encoder_2" / "model.safetensors")["text_projection.weight"], weight)
    same = convert(theirs, tmp_path / "same.safetensors", text_projection="kohya")
    assert torch.equal(load_file(same)[key], weight)


@pytest.mark.slow
def test_a_variant_stands_in_the_names_and_is_read_again(tmp_path, files):
    folder = to_folder(files("sd1"), tmp_path / "folder", save_precision="fp16", variant="fp16", ema="drop")
    assert (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    with no_network():
        pipeline = StableDiffusionPipeline.from_pretrained(folder, variant="fp16", local_files_only=True)
    back = load_file(convert(folder, tmp_path / "back.safetensors"))
    assert torch.equal(pipeline.unet.state_dict()["conv_out.bias"].half(), back[f"{UNET}out.2.bias"])


@pytest.mark.slow
def test_shards_of_a_variant_are_found_by_diffusers_and_read_again(tmp_path, monkeypatch, files):
    monkeypatch.setattr("core.formats.models.diffusers_folder.SHARD_BYTES", 2_000_000)
    folder = to_folder(files("sd1"), tmp_path / "folder", variant="fp16")
    assert (folder / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json").is_file()
    with no_network():
        StableDiffusionPipeline.from_pretrained(folder, variant="fp16", local_files_only=True)
    assert_same(load_file(convert(folder, tmp_path / "back.safetensors")), load_file(files("sd1")))


@pytest.mark.slow
def test_metadata_are_kept_completed_and_left_out(tmp_path, files, folders):
    file = convert(folders("sd2"), tmp_path / "fox.safetensors", weights_hash=True)
    metadata = read_header(file)[1]
    assert metadata["modelspec.architecture"] == "stable-diffusion-v2-768-v"
    assert metadata["modelspec.prediction_type"] == "v" and metadata["modelspec.title"] == "fox"
    assert metadata["modelspec.resolution"] == "128x128"
    assert weights_hash(file, metadata)["as_in_metadata"] is True
    source, zeros = load_file(files("sd1")), {"a": "0" * 64, "b": f'"sshs_model_hash":"{"0" * 64}"'}
    save_file(source, tmp_path / "zeros.safetensors", {**read_header(files("sd1"))[1], **zeros})
    file = convert(tmp_path / "zeros.safetensors", tmp_path / "hashed.safetensors", weights_hash=True)
    metadata = read_header(file)[1]
    assert weights_hash(file, metadata)["as_in_metadata"] is True and zeros.items() <= metadata.items()
    save_file(
        source, tmp_path / "own.safetensors", {**read_header(files("sd1"))[1], "modelspec.title": "Mine", "a": "b"}
    )
    folder = to_folder(tmp_path / "own.safetensors", tmp_path / "folder")
    again = read_header(convert(folder, tmp_path / "again.safetensors"))[1]
    assert (again["modelspec.title"], again["a"]) == ("Mine", "b")
    bare = read_header(convert(folder, tmp_path / "bare.safetensors", no_metadata=True))[1]
    assert set(bare) == {"format", "atelier_sizes"}, "the sizes of a model that has not the published ones are needed"


@pytest.mark.slow
def test_the_size_that_a_model_is_made_for_goes_along_into_a_file_and_back(tmp_path, folders):
    sizes = {name: (trained_size(folders(name), name), trained_size(convert(folders(name), tmp_path / f"{name}.safetensors")))
             for name in ("sd1", "sdxl")}  # fmt: skip
    assert sizes == dict.fromkeys(("sd1", "sdxl"), ((128, 128), (128, 128)))
    assert trained_size(to_folder(tmp_path / "sd1.safetensors", tmp_path / "again")) == (128, 128)


@pytest.mark.slow
def test_an_sd2_file_that_does_not_say_its_prediction_is_said_to_be_asked_for(tmp_path, files):
    asked = {"save_model_as": "diffusers_safetensors", "ema": "drop"}
    source = load_file(files("sd2"))
    del source["v_pred"]  # which the file of a folder has; published files say nothing
    metadata = {"atelier_sizes": read_header(files("sd2"))[1]["atelier_sizes"]}
    save_file(source, tmp_path / "m.safetensors", metadata)
    _, advice = use("convert_model", tmp_path / "m.safetensors", output=str(tmp_path / "auto"), **asked)
    assert advice == ["convert.unknown-prediction"]
    folder, advice = use(
        "convert_model", tmp_path / "m.safetensors", output=str(tmp_path / "said"), prediction="epsilon", **asked
    )
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text("utf-8"))
    assert (scheduler["prediction_type"], advice) == ("epsilon", [])


# ---- what is refused, and accidents


@pytest.mark.slow
def test_weights_that_are_no_numbers_or_too_large_are_said(tmp_path, files):
    source, metadata = load_file(files("sd1")), read_header(files("sd1"))[1]
    source[f"{UNET}out.2.bias"][0] = float("nan")
    save_file(source, tmp_path / "nan.safetensors", metadata)
    _, advice = use("convert_model", tmp_path / "nan.safetensors")
    assert advice == ["weights.not-finite"]
    source[f"{UNET}out.2.bias"][0] = 70_000.0
    save_file(source, tmp_path / "large.safetensors", metadata)
    file, advice = use("convert_model", tmp_path / "large.safetensors", save_precision="fp16")
    assert advice == ["weights.overflow"] and load_file(file)[f"{UNET}out.2.bias"].dtype == torch.float32


def test_each_weight_is_read_once_also_where_it_becomes_narrower(tmp_path, files, monkeypatch):
    counts, read_at = [], TensorFile._read_at
    monkeypatch.setattr(TensorFile, "_read_at", lambda *given: counts.append(read_at(*given)) or counts[-1])
    monkeypatch.setattr("core.formats.tensors.reading.is_cached", lambda handle: True)
    convert(files("sd1"), tmp_path / "half.safetensors", save_precision="fp16")
    assert 0 < sum(counts) <= files("sd1").stat().st_size


@pytest.mark.slow
def test_what_is_wrong_with_a_model_is_said_before_anything_is_written(tmp_path, files, folders, monkeypatch):
    target, source, metadata = tmp_path / "out.safetensors", load_file(files("sd1")), read_header(files("sd1"))[1]

    def asked(tensors, **more):
        save_file(tensors, tmp_path / "m.safetensors", metadata)
        convert(tmp_path / "m.safetensors", target, **more)

    with refused("model.other-tensors", "U-Net", "conv_out.weight"):
        asked({key: value for key, value in source.items() if key != f"{UNET}out.2.weight"})
    with refused("model.other-sizes", "conv_out.bias"):
        asked(source | {f"{UNET}out.2.bias": torch.zeros(5)})
    with refused("model.missing-part", "text encoder"):
        asked({key: value for key, value in source.items() if not key.startswith("cond_stage_model")}, family="sd1")
    other = {key: value for key, value in load_file(files("sdxl")).items() if key.startswith(UNET)}
    with refused("model.other-tensors"):
        asked({key: value for key, value in source.items() if not key.startswith(UNET)} | other)
    with refused("model.not-a-checkpoint"):
        asked({"emb_params": torch.ones(1, 768)})
    content = files("sd1").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[:-100])
    with refused("model.truncated"):
        convert(tmp_path / "cut.safetensors", target)
    with refused("model.not-downloaded"):
        convert("no/such-model", target)
    with refused("tools.output-is-input"):
        convert(files("sd1"), files("sd1"))
    with refused("tools.output-exists"):
        to_folder(files("sd1"), folders("sd2"))
    with refused("convert.output-format"):
        convert(files("sd1"), tmp_path / "m.ckpt")
    with refused("convert.output-format"):
        to_folder(files("sd1"), tmp_path / "new.safetensors")
    monkeypatch.setattr("core.tools.output.free_disk", lambda folder: 1000)
    with refused("tools.no-room"):
        convert(files("sd1"), target)
    assert not target.exists()


def test_a_wrong_vae_and_a_wrong_model_are_said_at_the_field_that_names_them(tmp_path, files, folders):
    word, target = tmp_path / "word.safetensors", str(tmp_path / "out.safetensors")
    save_file({"emb_params": torch.ones(1, 768)}, word)
    (tmp_path / "cut.safetensors").write_bytes(files("sd1").read_bytes()[:-100])
    incomplete = tmp_path / "incomplete.safetensors"
    vae = load_file(folders("sd1") / "vae" / "diffusion_pytorch_model.safetensors")
    save_file({name: value for name, value in vae.items() if name != "decoder.conv_out.bias"}, incomplete)
    model, metadata = load_file(files("sd1")), read_header(files("sd1"))[1]
    lacking = tmp_path / "lacking.safetensors"
    save_file({key: value for key, value in model.items() if key != f"{UNET}out.2.weight"}, lacking, metadata)
    for code, name, file, asked in (
        ("model.not-a-vae", "bake_vae.vae", files("sd1"), {"vae": word}),
        ("model.truncated", "bake_vae.vae", files("sd1"), {"vae": tmp_path / "cut.safetensors"}),
        ("model.no-vae", "bake_vae.vae", files("sd1"), {"vae": folders("sd1") / "unet"}),
        ("model.other-tensors", "bake_vae.vae", files("sd1"), {"vae": incomplete}),
        ("model.not-downloaded", "bake_vae.vae", files("sd1"), {"vae": "no/such-vae"}),
        ("model.other-tensors", "bake_vae.file", lacking, {"vae": folders("sd1")}),
        ("model.not-a-vae", "extract_vae.file", word, {}),
        ("model.no-vae", "extract_vae.file", folders("sd1") / "unet", {}),
        ("model.other-tensors", "extract_vae.file", incomplete, {}),
    ):
        with refused(code) as caught:
            use(name.partition(".")[0], file, output=target, **{key: str(value) for key, value in asked.items()})
        for problem in caught.value.problems:
            assert problem.where == name and "setting" not in problem.fix
            assert str(next(iter(asked.values()), file)) in problem.what or name == "bake_vae.file"


@pytest.mark.parametrize(
    "form", ["diffusers_safetensors", *(pytest.param(form, marks=pytest.mark.slow) for form in ("safetensors", "ckpt"))]
)
def test_a_cancelled_conversion_leaves_nothing(tmp_path, files, form):
    class Later(CancelToken):
        asked = 0

        def check(self):
            self.asked += 1
            if self.asked > 300:
                raise Cancelled

    source = shutil.copy(files("sd1"), tmp_path / "m.safetensors")
    with pytest.raises(Cancelled):
        use("convert_model", source, Later(), save_model_as=form, output=str(tmp_path / "out" / "new"))
    assert list((tmp_path / "out").rglob("*")) == [path for path in (tmp_path / "out" / "new",) if path.exists()]


@pytest.mark.slow
def test_the_extra_file_is_not_read_as_a_part_of_the_pipeline(tmp_path, files):
    folder = to_folder(files("sd1"), tmp_path / "folder")
    held = load_file(folder / EXTRA_FILE)
    assert f"{UNET}somebody.elses" in held and "alphas_cumprod" in held and "model_ema.decay" in held
    with no_network():
        assert DiffusionPipeline.from_pretrained(folder, local_files_only=True).unet is not None
    assert family("sd1").load(folder).denoiser is not None


@pytest.mark.slow
def test_the_recorded_shapes_are_those_of_the_libraries_modules():
    recorded = json.loads(gzip.decompress(FILE.read_bytes()))
    assert recorded == shapes(), "run python -m workshop.published_shapes"


def test_a_model_of_the_published_sizes_is_checked_by_recorded_shapes(tmp_path):
    """The sizes are told by the header: a sparse file of the right shapes lacks nothing."""
    layout = family("sd1").layout
    states = json.loads(gzip.decompress(FILE.read_bytes()))["sd1"]
    listing, place = {}, 0
    for part, tensors in states.items():
        lazies = {key: in_memory(torch.empty(tuple(shape), device="meta")) for key, shape in tensors.items()}
        for key, tensor in file_tensors({part: lazies}, "sd1").items():
            listing[key] = {
                "dtype": "F16",
                "shape": tensor.shape,
                "data_offsets": [place, place + tensor.byte_count // 2],
            }
            place += tensor.byte_count // 2
    del listing[f"{UNET}out.2.bias"]
    header = json.dumps(listing).encode()
    with open(tmp_path / "m.safetensors", "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + place)
    assert published_shapes(layout, open_checkpoint(tmp_path / "m.safetensors").parts["unet"])
    with refused("model.other-tensors", "conv_out.bias"):
        convert(tmp_path / "m.safetensors", tmp_path / "out.safetensors")


@pytest.mark.slow
def test_the_guidance_that_a_folder_states_goes_along(folders, tmp_path):
    source = Path(shutil.copytree(folders("sd1"), tmp_path / "source"))
    (source / STATED).write_text('{"guidance_scale": 4.0}', "utf-8")
    file = convert(source, tmp_path / "one.safetensors", save_model_as="safetensors")
    assert default_guidance(file) == default_guidance(to_folder(file, tmp_path / "back")) == 4.0
    assert (
        default_guidance(convert(folders("sd1"), tmp_path / "two.safetensors", save_model_as="safetensors"))
        == USUAL_GUIDANCE
    )


def test_settings_without_effect_are_said_and_left_out_of_the_form(files):
    def said(**asked):
        settings = ConvertModelSettings(file=str(files("sd1")), output="nowhere/new", **asked)
        return {each.where.rpartition(".")[2] for each in without_effect(settings, "convert_model")}

    assert said() == said(save_model_as="diffusers_safetensors", variant="fp16") == said(weights_hash=True) == set()
    assert said(variant="fp16") == {"variant"}
    assert said(no_vae=True, vae=str(files("sd1"))) == {"vae"}
    for other in ({"no_metadata": True}, {"save_model_as": "ckpt"}, {"save_model_as": "diffusers_safetensors"}):
        assert said(weights_hash=True, **other) == {"weights_hash"}
    assert tasks.named("convert_model").unused({"no_vae": True}) == {"vae", "variant"}
