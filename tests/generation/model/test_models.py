"""The memory settings hold for generated images: each is seen by what it does to the model in use."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor
from PIL import Image
from safetensors.torch import load_file, save_file

from core.families import family
from core.families.vae_strips import Strips
from core.generation import making
from core.generation.model.leases import leased
from core.generation.model.parts import Parts
from core.generation.model.store import ModelStore
from core.generation.model.upscaling_networks import upscaling_bytes
from core.generation.plan.forecast import Needs, forecast, needs_of, offload_of
from core.generation.plan.plan import plan_of
from core.generation.run import run_generate
from core.networks.fp8 import FP8
from core.record.context import NO_REPORTS
from core.record.workspace import PROJECT, Workspace
from core.settings.check import build
from core.settings.job import GenerateJob
from core.settings.presets.files import to_values
from tests.generation.esrgan import esrgan
from tests.models import tiny_lora
from tests.refusals import refused
from tests.reports import Heard


@pytest.fixture
def workspace(tmp_path):
    return Workspace(outputs=tmp_path / "outputs", models=PROJECT / "models")


@pytest.fixture(scope="module")
def store():
    return ModelStore()


def job_of(memory=(), generation_memory=(), **asked):
    asked = {"prompt": "a fox", "seed": 1, "steps": 1, "width": 64, "height": 64} | asked
    values = {"generate": asked, "model": {"base_model": "models/starter"}, "memory": dict(memory)}
    return build(GenerateJob, values | {"generation_memory": dict(generation_memory)})


def image(job, workspace, store, **how):
    with Image.open(run_generate(job, workspace, store=store, **how)[0]) as opened:
        return np.asarray(opened).astype(int)


def in_use(job, workspace, store, offload="off"):
    return leased(job, plan_of(job, workspace).sources, store, "cpu", NO_REPORTS, offload)


@pytest.mark.parametrize(
    ("attention", "kind"),
    [("auto", AttnProcessor2_0), ("sdpa", AttnProcessor2_0), ("plain", AttnProcessor), ("sliced", SlicedAttnProcessor)],
)
def test_attention_is_computed_as_set_also_after_another(workspace, store, attention, kind):
    with in_use(job_of({"attention": attention}), workspace, store) as model:
        assert {type(each) for each in model.denoiser.attn_processors.values()} == {kind}


@pytest.mark.parametrize(("gigabytes", "bytes_"), [(None, None), (0.0, 0), (1.5, 3 * 2**29)])
def test_the_store_gets_the_gigabytes_of_the_job(workspace, store, gigabytes, bytes_):
    before = store.budget
    try:
        with in_use(job_of(generation_memory={"keep_models_gb": gigabytes}), workspace, store):
            assert store.budget == bytes_
    finally:
        store.budget = before


def test_fp8_weights_are_stored_in_fp8_and_the_image_is_nearly_the_same(workspace, store):
    with in_use(job_of({"fp8_base": True}), workspace, store) as model:
        assert model.denoiser.mid_block.resnets[0].conv1.weight.dtype == FP8
        assert model.text_encoders[0].get_parameter(_layer(model.text_encoders[0])).dtype == FP8
    with in_use(job_of({"fp8_base_unet": True}), workspace, store) as model:
        assert model.denoiser.mid_block.resnets[0].conv1.weight.dtype == FP8
        assert model.text_encoders[0].dtype == torch.float32
    narrow = image(job_of({"fp8_base": True}, steps=4), workspace, store)
    plain = image(job_of(steps=4), workspace, store)
    assert 0 < np.abs(narrow - plain).mean() < 8


def _layer(encoder):
    return next(name for name, _ in encoder.named_parameters() if name.endswith("layers.0.mlp.fc1.weight"))


@pytest.mark.parametrize(("name", "dtype"), [("auto", torch.float32), ("bf16", torch.bfloat16)])
def test_the_vae_has_its_own_dtype(workspace, store, name, dtype):
    with in_use(job_of({"vae_precision": name}), workspace, store) as model:
        assert model.vae.dtype == dtype and model.denoiser.dtype == torch.float32


def test_what_the_device_has_no_use_for_is_refused_before_anything_is_loaded(workspace):
    store = ModelStore()
    with refused("memory.xformers-device" if find_spec("xformers") else "memory.no-xformers"):
        run_generate(job_of({"attention": "xformers"}), workspace, store=store)
    assert not store.loaded()


def test_vae_slices_hold_for_decoding_and_encoding_and_change_nothing(workspace, store, tmp_path, monkeypatch):
    seen, strips = [], Strips.__init__
    monkeypatch.setattr(Strips, "__init__", lambda self, slices: seen.append(slices) or strips(self, slices))
    plain = image(job_of(), workspace, store)
    assert not seen
    assert np.abs(image(job_of(generation_memory={"vae_slices": 4}), workspace, store) - plain).max() <= 1
    assert seen == [4]
    Image.fromarray(plain.astype(np.uint8)).save(tmp_path / "first.png")
    values = to_values(job_of(steps=2, generation_memory={"vae_slices": 2}))
    again = build(GenerateJob, values | {"image_to_image": {"image_path": str(tmp_path / "first.png")}})
    run_generate(again, workspace, store=store)
    assert seen == [4, 2, 2]


def test_an_image_that_does_not_fit_is_decoded_in_strips(workspace, store, monkeypatch):
    seen, strips = [], Strips.__init__
    monkeypatch.setattr(Strips, "__init__", lambda self, slices: seen.append(slices) or strips(self, slices))
    monkeypatch.setattr("core.record.machine.available_memory", lambda device: 1 << 20)
    image(job_of(), workspace, store)
    assert seen == [8]


def test_a_batch_that_does_not_fit_is_halved_until_it_does(workspace, store, monkeypatch):
    sizes, denoise = [], making.denoise

    def small(*given, **how):
        sizes.append(len(given[3]))
        if len(given[3]) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return denoise(*given, **how)

    monkeypatch.setattr(making, "denoise", small)
    heard = Heard()
    assert len(run_generate(job_of(count=4, batch_size=4), workspace, store=store, reports=heard)) == 4
    assert sizes == [4, 2, 1, 1, 1, 1] and sum("do not fit" in text for text in heard.said) == 2


@pytest.mark.slow
def test_the_model_is_asked_as_often_as_the_sampler_says_and_once_for_all_sides(workspace, store):
    with in_use(job_of(), workspace, store) as model:
        asked = []
        hook = model.denoiser.register_forward_pre_hook(lambda module, given: asked.append(len(given[0])))
        try:
            run_generate(job_of(steps=5, sampler="ddim"), workspace, store=store)
            assert asked == [2] * 5
            asked.clear()
            run_generate(job_of(steps=5, sampler="heun"), workspace, store=store)
            assert asked == [2] * 9, "Heun asks twice in each step but the last"
            asked.clear()
            run_generate(
                job_of(steps=5, sampler="ddim", guidance_scale=1.0, count=2, batch_size=2), workspace, store=store
            )
            assert asked == [2] * 5, "without guidance one row for each image"
        finally:
            hook.remove()


def test_parts_that_rest_elsewhere_make_the_same_image(workspace, store, monkeypatch):
    plain = image(job_of(prompt="a cup"), workspace, store)
    with in_use(job_of(), workspace, store) as model:
        assert not model.denoiser._forward_pre_hooks
    monkeypatch.setattr("core.generation.run.offload_for", lambda *given: "layers")
    with in_use(job_of(), workspace, store, "layers") as model:
        assert model.denoiser.conv_in._forward_pre_hooks, "each layer calls its weights"
    np.testing.assert_array_equal(image(job_of(prompt="a cup"), workspace, store), plain)


@pytest.mark.parametrize(("gigabytes", "way"), [(24, "off"), (1.15, "parts"), (0.7, "layers")])
def test_auto_offloads_as_little_as_fits(workspace, monkeypatch, gigabytes, way):
    needs = Needs(300 << 20, 10 << 20, 100 << 20, 100 << 20, 100 << 20, 20 << 20, 0, 10 << 20)
    monkeypatch.setattr("core.generation.plan.forecast.needs_of", lambda job, parts: needs)
    monkeypatch.setattr("core.record.machine.memory", lambda device: (0, int(gigabytes * 2**30)))
    parts = Parts(job_of().memory, plan_of(job_of(), workspace).sources, "cuda")
    assert offload_of(job_of(), parts) == way
    assert offload_of(job_of(generation_memory={"offload": "off"}), parts) == "off"
    parts.device = "cpu"
    assert offload_of(job_of(generation_memory={"offload": "layers"}), parts) == "off", (
        "without a GPU there is no other RAM"
    )


def test_loras_stay_on_the_device_in_fp32_whatever_is_offloaded(workspace, tmp_path):
    file = tiny_lora(family("sd1").load(PROJECT / "models" / "starter"), tmp_path / "lora.safetensors")
    job = job_of(loras=[{"file": str(file)}])
    parts = Parts(job.memory, plan_of(job, workspace).sources, "cpu")
    needs, size = needs_of(job, parts), sum(4 * tensor.numel() for tensor in load_file(file).values())
    for way in ("off", "parts", "layers"):
        assert needs.peak(way) == replace(needs, loras=0).peak(way) + size


def test_an_upscaler_counts_with_its_weights_and_what_it_computes(workspace, tmp_path):
    save_file(esrgan(), tmp_path / "net.safetensors")
    plain, file = job_of(width=512, height=512), str(tmp_path / "net.safetensors")
    job = plain.with_settings(hires={"highres_fix_scale": 2, "highres_fix_upscaler_file": file})
    needs = needs_of(job, Parts(job.memory, plan_of(job, workspace).sources, "cuda"))
    assert needs.upscaling == upscaling_bytes((512, 512), sum(value.nbytes for value in esrgan().values()))
    without = needs_of(plain, Parts(plain.memory, plan_of(plain, workspace).sources, "cuda"))
    assert without.upscaling == 0 and needs.peak("layers", sliced=True) >= needs.upscaling


def test_a_detection_counts_as_one_image_of_its_size_where_it_is_larger(workspace):
    plain, large, larger = job_of(width=64, height=64), job_of(width=256, height=128), job_of(width=256, height=256)
    parts = Parts(plain.memory, plan_of(plain, workspace).sources, "cuda")
    detailer = plain.detailer.model_copy(update={"ad_model": "face", "ad_inpaint_width": 256, "ad_inpaint_height": 128})
    detailed, whole = needs_of(plain.model_copy(update={"detailer": detailer}), parts), needs_of(large, parts)
    assert detailed == whole and detailed.evaluation > needs_of(plain, parts).evaluation
    assert needs_of(larger.model_copy(update={"detailer": detailer}), parts) == needs_of(larger, parts)


def test_text_encoders_in_fp8_are_converted_in_ram(workspace, store, monkeypatch):
    seen, load = [], Parts._load
    monkeypatch.setattr(
        Parts, "_load", lambda self, parts, **how: seen.append(how["device"]) or load(self, parts, **how)
    )
    parts = Parts(job_of({"fp8_base": True}).memory, plan_of(job_of(), workspace).sources, "meta")
    parts.text_encoders()
    assert seen == ["cpu"]


@pytest.mark.slow
def test_the_forecast_grows_with_size_and_batch_and_strips_lower_it(workspace):
    def peak(memory=(), **how):
        return forecast(job_of(memory, **how), workspace, "cpu").peak

    small, large = peak(), peak(width=1024, height=1024)
    assert small < large and peak(width=1024, height=1024, generation_memory={"vae_slices": 16}) < large
    wide = peak(width=1024, height=1024, count=4, batch_size=4, generation_memory={"vae_slices": 64})
    assert wide > peak(width=1024, height=1024, generation_memory={"vae_slices": 64})
    assert peak({"mixed_precision": "bf16"}) < small
