"""Images of the starter with LoRAs, and with what the tools make of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from core.families import family
from core.formats.lora.names import group_by_module
from core.generation.model.store import make_store
from core.generation.run import run_generate
from core.networks.adapter_file import load_lora, save_lora
from core.record.workspace import PROJECT, Workspace
from core.settings.generation.generate import LoraUse
from core.settings.model import ModelSettings
from tests.generation.test_run import STARTER, job_of, pixels, small_lora
from tests.tools.test_tools import use

NEAR = 3  # of 255: sums in another order


@pytest.mark.slow
def test_merged_resized_and_extracted_loras_make_the_images_of_their_sources(tmp_path):
    one = small_lora(tmp_path / "one.safetensors")
    tensors = dict(load_lora(one).tensors)
    for name in group_by_module(tensors):
        key = f"{name}.lora_up.weight"
        tensors[key] = tensors[key].flip(0)
    two = save_lora(tmp_path / "two.safetensors", tensors, {"ss_base_model_version": "sd_v1"})
    given = {"models": [str(one), str(two)], "ratios": "0.5, 0.3"}
    sum_of_both, _ = use(name="merge_loras", output=str(tmp_path / "sum.safetensors"), **given)
    resized, _ = use(
        name="resize_lora", file=str(sum_of_both), new_rank=4, output=str(tmp_path / "resized.safetensors")
    )
    model, _ = use(name="merge_lora_to_model", file=str(STARTER), output=str(tmp_path / "model"), **given)
    models = {"model_org": str(STARTER), "model_tuned": str(model), "min_diff": 0.0001}
    extracted, _ = use(name="extract_lora", dim=4, output=str(tmp_path / "extracted.safetensors"), **models)

    workspace, store = Workspace(outputs=tmp_path / "outputs", models=PROJECT / "models"), make_store()

    def image(*loras, base=STARTER):
        uses = [LoraUse(file=str(path), strength=strength) for path, strength in loras]
        job = job_of(seed=1, loras=uses, model=ModelSettings(base_model=str(base)))
        return pixels(run_generate(job, workspace, store=store)[0])

    wanted, plain = image((one, 0.5), (two, 0.3)), image()
    assert np.abs(wanted - plain).max() > 10 * NEAR
    for found in (image((sum_of_both, 1.0)), image((resized, 1.0)), image((extracted, 1.0)), image(base=model)):
        assert np.abs(found - wanted).max() <= NEAR
    assert family("sd1").load(model).denoiser.conv_in.weight.dtype == torch.float32
