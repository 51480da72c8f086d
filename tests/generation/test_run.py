"""A generate job from settings to files."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from core.engine.execute import execute
from core.families import family
from core.families.trained_size import stated_size
from core.generation import making
from core.generation.images.metadata import read_image_metadata
from core.generation.images.output import save_image
from core.generation.model.sources import tensors_sha256
from core.generation.model.store import ModelStore
from core.generation.plan.files import find_sources
from core.generation.plan.plan import plan_of
from core.generation.run import run_generate
from core.networks.adapter_file import load_lora, save_lora
from core.record import atomic
from core.record.cancel import Cancelled, CancelToken
from core.record.problems import ProblemsError
from core.record.run_folder import RunFolder
from core.record.workspace import PROJECT, Workspace
from core.settings.generation.generate import GenerateSettings, LoraUse
from core.settings.job import GenerateJob
from core.settings.memory import MemorySettings
from core.settings.model import ModelSettings
from tests.refusals import refused
from tests.reports import Heard
from tests.style_distance import colorfulness, style_distance

STARTER = PROJECT / "models" / "starter"
STYLE = sorted((STARTER / "images").glob("*.png"))


@pytest.fixture
def workspace(tmp_path):
    return Workspace(outputs=tmp_path / "outputs", models=PROJECT / "models")


def slots(store):
    return {held.slot for held in store.loaded()}


def job_of(memory=None, model=None, **asked) -> GenerateJob:
    asked = {"prompt": "a fox, flat icon", "steps": 3, "guidance_scale": 4.0, "width": 64, "height": 64} | asked
    return GenerateJob(
        generate=GenerateSettings(**asked),
        model=model or ModelSettings(base_model="models/starter"),
        memory=memory or MemorySettings(),
    )


@cache
def _starters_unet():
    return family("sd1").load(STARTER, parts=("denoiser",)).denoiser


def small_lora(path: Path) -> Path:
    """A random LoRA on the last layer of every transformer of the U-Net, strong enough to be seen."""
    made = torch.Generator().manual_seed(0)
    tensors = {}
    for target in family("sd1").lora_targets(_starters_unet()):
        if target.name.endswith("proj_out"):
            shape = target.module.weight.shape
            tensors[f"{target.name}.lora_down.weight"] = torch.randn(2, *shape[1:], generator=made) / shape[1] ** 0.5
            tensors[f"{target.name}.lora_up.weight"] = torch.randn(shape[0], 2, *shape[2:], generator=made)
    return save_lora(path, tensors, {"ss_base_model_version": "sd_v1"})


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def test_a_job_writes_its_images_with_everything_needed_to_draw_them_again(workspace, store):
    lora = small_lora(workspace.runs / "2026-01-01_a" / "checkpoints" / "odd.safetensors")
    heard = Heard()
    job = job_of(
        count=3, seed=2**32 - 2, sampler="euler_a", negative_prompt="red", loras=[LoraUse(file="odd", strength=0.5)]
    )
    files = run_generate(job, workspace, store=store, reports=heard)

    seeds = [2**32 - 2, 2**32 - 1, 2**32]  # counted up
    assert heard.images == list(zip(files, seeds, strict=True))
    steps = [(done, total) for _, done, total in heard.stages if total]
    assert (steps[0][0], *steps[-1]) == (0, 9, 9) and steps == sorted(steps)
    for path, seed in zip(files, seeds, strict=True):
        assert re.fullmatch(
            rf"images/\d{{4}}-\d\d-\d\d/\d{{6}}_{seed}\.png", path.relative_to(workspace.outputs).as_posix()
        )
        record = read_image_metadata(path)
        assert record.job is not None and record.job.generate.seed == seed and record.job.generate.count == 1
        assert record.hashes.loras == {"outputs/runs/2026-01-01_a/checkpoints/odd.safetensors": tensors_sha256(lora)}
        assert record.hashes.model == family("sd1").digest(STARTER, "denoiser") != hashlib.sha256().hexdigest()
        assert str(workspace.outputs) not in path.read_bytes().decode("latin-1")

    again = run_generate(read_image_metadata(files[1]).job, workspace, store=store)
    assert again[0] not in files
    assert np.abs(pixels(again[0]) - pixels(files[1])).max() <= 1  # alone now, in a batch of three before
    plain = run_generate(job_of(seed=seeds[1], sampler="euler_a", negative_prompt="red"), workspace, store=store)
    assert np.abs(pixels(plain[0]) - pixels(files[1])).mean() > 5


def test_the_hash_of_a_lora_is_the_one_its_metadata_name(workspace):
    lora = small_lora(workspace.models.parent / workspace.outputs / "x.safetensors")
    assert load_lora(lora).metadata["sshs_model_hash"] == tensors_sha256(lora)


def test_an_empty_size_is_the_models_own_and_an_empty_seed_is_drawn_and_recorded(workspace, store):
    job = job_of(width=None, height=None, steps=1)
    records = [read_image_metadata(run_generate(job, workspace, store=store)[0]).job for _ in range(2)]
    assert all((record.generate.width, record.generate.height) == (128, 128) for record in records)
    first, second = (record.generate.seed for record in records)
    assert first is not None and second is not None and first != second


def test_no_image_is_ever_written_over(workspace):
    from core.generation.model.sources import Hashes

    job = job_of(seed=5)
    files = [save_image(Image.new("RGB", (8, 8)), job, Hashes(), workspace) for _ in range(12)]
    assert len(set(files)) == 12
    assert all(path.stat().st_size > 0 for path in files)
    assert not [path for path in files[0].parent.iterdir() if path not in files]


def test_an_image_that_cannot_be_written_leaves_nothing_behind(workspace, monkeypatch):
    from core.generation.model.sources import Hashes

    def full_disk(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_image(Image.new("RGB", (8, 8)), job_of(seed=5), Hashes(), workspace)
    assert not [path for path in workspace.images.rglob("*") if path.is_file()]


def test_a_cancelled_job_keeps_the_images_that_were_finished(workspace, store):
    heard = Heard(stop_after=1)
    with pytest.raises(Cancelled, match="4 of 5"):  # four are drawn together, the fifth alone
        run_generate(job_of(count=5, seed=1, steps=1), workspace, store=store, reports=heard)
    assert sorted(workspace.images.rglob("*.png")) == sorted(path for path, _ in heard.images)
    assert len(heard.images) == 4


def test_the_journal_of_a_cancelled_job_says_how_many_images_there_are(tmp_path):
    token, heard = CancelToken(), []
    token.cancel()
    folder = RunFolder.create(tmp_path / "jobs", "fox", {})
    space = Workspace(tmp_path, PROJECT / "models")
    state, _ = execute("generate", job_of(count=8), folder, space, "cpu", token=token, listener=heard.append)
    assert state == "stopped" and "0 of 8" in heard[-1]["message"]


def test_images_that_do_not_fit_together_are_drawn_one_by_one(workspace, store, monkeypatch):
    denoise, sizes, heard = making.denoise, [], Heard()

    def little_memory(model, states, stage, noises, sampling, **how):
        sizes.append(len(noises))
        if len(noises) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return denoise(model, states, stage, noises, sampling, **how)

    monkeypatch.setattr(making, "denoise", little_memory)
    job = job_of(count=3, seed=1, steps=1)
    files = run_generate(job, workspace, store=store, reports=heard)
    assert sizes == [3, 1, 1, 1] and len(heard.said) == 1
    assert [int(path.stem.rpartition("_")[2]) for path in files] == [1, 2, 3]

    def no_memory(*given, **how):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(making, "denoise", no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        run_generate(job, workspace, store=store)
    held = {(each.slot, each.name) for each in store.loaded()}
    assert ("base", "starter") not in held  # a model in an unknown state is not used again


def test_everything_missing_is_said_at_once_before_a_model_is_loaded(workspace, tmp_path):
    save_file({"encoder.conv_in.weight": torch.zeros(1)}, tmp_path / "vae_like.safetensors")
    job = job_of(
        model=ModelSettings(base_model=str(tmp_path / "vae_like.safetensors"), vae="models/no_such_vae.safetensors"),
        loras=[LoraUse(file="nowhere"), LoraUse(file=str(tmp_path / "vae_like.safetensors"))],
    )

    store = ModelStore()
    with pytest.raises(ProblemsError) as caught:
        run_generate(job, workspace, store=store)
    assert not store.loaded()
    said = " | ".join(problem.what for problem in caught.value.problems)
    assert len(caught.value.problems) == 4
    assert caught.value.codes[0] == "model.not-a-checkpoint"
    for words in ("no_such_vae", "'nowhere'", "is not a LoRA"):
        assert words in said
    with pytest.raises(ProblemsError, match="not on this machine"):
        find_sources(job_of(model=ModelSettings(base_model="someone/some-model")), workspace)


IN_PROMPT, IN_LIST = {"prompt": "a fox <lora:bad:1>"}, {"loras": [LoraUse(file="bad")]}
LAYER = "lora_unet_mid_block_attentions_0_proj_in"
PAIR = {f"{LAYER}.lora_down.weight": torch.ones(2, 96, 1, 1), f"{LAYER}.lora_up.weight": torch.ones(96, 2, 1, 1)}


@pytest.mark.parametrize(
    ("tensors", "code"),
    [
        (PAIR | {f"{LAYER}.alpha": torch.tensor(float("nan"))}, "weights.not-finite"),
        (PAIR | {f"{LAYER}.alpha": torch.tensor([float("inf")])}, "weights.not-finite"),
        (PAIR | {f"{LAYER}.alpha": torch.ones(2)}, "lora.incomplete"),
        (PAIR | {f"{LAYER}.lora_up.weight": torch.ones(96, 3, 1, 1)}, "lora.incomplete"),
        ({f"{LAYER}.lora_down.weight": torch.ones(2, 96, 1, 1)}, "lora.incomplete"),
    ],
)
@pytest.mark.parametrize("asked", [IN_PROMPT, IN_LIST], ids=["prompt", "list"])
def test_a_loras_bad_alpha_or_layer_is_refused_at_its_field_before_anything_loads(tmp_path, tensors, code, asked):
    folder = tmp_path / "models" / "loras"
    folder.mkdir(parents=True)
    (tmp_path / "models" / "starter").symlink_to(STARTER)
    save_file(tensors, folder / "bad.safetensors")
    workspace = Workspace(outputs=tmp_path / "outputs", models=tmp_path / "models")
    with pytest.raises(ProblemsError) as caught:
        find_sources(job_of(**asked), workspace)
    (problem,) = caught.value.problems
    assert (problem.code, problem.where) == (code, "generate.loras") and "bad.safetensors" in problem.what
    with pytest.raises(ProblemsError) as loaded:
        load_lora(folder / "bad.safetensors")
    assert loaded.value.codes == [code], "as loading says it"


def counting_loads(monkeypatch):
    """The parts that are loaded from now on, each as a tuple."""
    loads, kind = [], family("sd1")
    load = kind.load
    monkeypatch.setattr(kind, "load", lambda path, **how: loads.append(how["parts"]) or load(path, **how))
    return loads


@pytest.mark.slow
def test_one_model_is_loaded_for_many_jobs_and_another_vae_alone(workspace, monkeypatch):
    loads, store = counting_loads(monkeypatch), ModelStore()
    for _ in range(2):
        run_generate(job_of(steps=1), workspace, store=store)
    assert loads == [("denoiser", "tokenizers"), ("vae",), ("text_encoders",)]
    run_generate(
        job_of(steps=1, model=ModelSettings(base_model="models/starter", vae="models/starter/vae")),
        workspace,
        store=store,
    )
    assert loads[3:] == [("vae",)]
    store.release()
    assert "base" not in slots(store)


@pytest.mark.slow
def test_a_refused_job_and_an_image_of_nan_keep_the_loaded_model(workspace, monkeypatch, tmp_path):
    loads, store = counting_loads(monkeypatch), ModelStore()
    run_generate(job_of(steps=1), workspace, store=store)
    for name in ("prompt", "negative_prompt"):
        with refused("prompt.bad-weight"):
            run_generate(job_of(steps=1, **{name: "a (fox:1.2.3)"}), workspace, store=store)
    damaged = small_lora(tmp_path / "damaged.safetensors")
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with pytest.raises(ProblemsError):
        run_generate(job_of(steps=1, loras=[LoraUse(file=str(damaged))]), workspace, store=store)
    with monkeypatch.context() as patch:
        nan = torch.full((1, 3, 64, 64), float("nan"))
        patch.setattr(family("sd1"), "decode_latents", lambda vae, latents: nan)
        with refused("image.nan"):
            run_generate(job_of(steps=1), workspace, store=store)
    run_generate(job_of(steps=1, prompt="a (fox:1.2.3)", prompt_weights=False), workspace, store=store)
    assert loads.count(("vae",)) == 1 and "base" in slots(store)


@pytest.mark.slow
def test_weighted_words_change_the_image_and_escaped_brackets_are_text(workspace, store):
    def image(prompt, **how):
        return pixels(run_generate(job_of(prompt=prompt, seed=1, **how), workspace, store=store)[0])

    plain, weighted = image("a (fox:1.5)"), image("a (fox:1.5)", prompt_weights=False)
    assert (plain != weighted).any()
    np.testing.assert_array_equal(image(r"a \(fox\)"), image("a (fox)", prompt_weights=False))


def test_the_advice_of_the_check_is_reported_before_a_model_is_loaded(workspace, store, monkeypatch):
    def cancelled(*_):
        raise Cancelled

    monkeypatch.setattr("core.generation.run.leased", cancelled)
    heard, job = Heard(), job_of(prompt="a (fox:9)")
    with pytest.raises(Cancelled):
        run_generate(job, workspace, store=store, reports=heard)
    assert heard.said == [note.what for note in plan_of(job, workspace).notes] != []


@pytest.mark.slow
def test_zero_terminal_snr_is_read_from_the_files_and_recorded(workspace, store, tmp_path):
    lora = small_lora(tmp_path / "plain.safetensors")
    marked = save_lora(tmp_path / "marked.safetensors", load_lora(lora).tensors, {"ss_zero_terminal_snr": "True"})

    def made(file, asked="auto"):
        heard = Heard()
        job = job_of(
            seed=1, loras=[LoraUse(file=str(file))], zero_terminal_snr=asked, model=ModelSettings(prediction="v")
        )
        (path,) = run_generate(job, workspace, store=store, reports=heard)
        return pixels(path), read_image_metadata(path).job.generate.zero_terminal_snr, heard.said

    plain, found = made(lora), made(marked)
    assert (plain[1], found[1]) == ("off", "on") and not plain[2] and "marked.safetensors" in found[2][0]
    assert (plain[0] != found[0]).any()
    np.testing.assert_array_equal(made(marked, "off")[0], plain[0])
    np.testing.assert_array_equal(made(lora, "on")[0], found[0])


@pytest.mark.slow
def test_bf16_draws_nearly_the_same_image(workspace, store):
    full, half = (
        run_generate(
            job_of(seed=3, steps=8, width=128, height=128, memory=MemorySettings(mixed_precision=name)),
            workspace,
            store=store,
        )
        for name in ("no", "bf16")
    )
    assert 0 < np.abs(pixels(full[0]) - pixels(half[0])).mean() < 8


@pytest.mark.slow
def test_the_starters_own_images_are_far_from_the_glyph_style(workspace, store):
    """What the end-to-end test leans on: before any training the distance is far above what it is within the style."""
    style = [Image.open(path) for path in STYLE]
    within = style_distance(style[::2], style[1::2])
    assert within < 15
    drawn = []
    for thing in ("a fox", "a tree"):
        job = job_of(prompt=f"{thing}, glyph style", seed=1, steps=10, width=128, height=128)
        drawn.append(Image.open(run_generate(job, workspace, store=store)[0]))
    assert style_distance(drawn, style) > 50
    assert colorfulness(drawn) > 30 > 1 > colorfulness(style)


@pytest.mark.parametrize(
    ("stated", "size"), [("128x192", (128, 192)), ("100x100", None), ("8x8", None), ("large", None), (None, None)]
)
def test_a_model_in_one_file_is_drawn_at_the_size_that_it_says(tmp_path, stated, size):
    path = tmp_path / "own.safetensors"
    metadata = {"modelspec.resolution": stated} if stated else {}
    save_file({"weight": torch.zeros(1)}, path, metadata=metadata)
    assert stated_size(path) == size
    assert stated_size(tmp_path) is None  # a folder's configuration has it
