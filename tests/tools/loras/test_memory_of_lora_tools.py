"""Tools that make LoRAs hold one layer: what is in memory does not grow with the number of layers."""

from __future__ import annotations

import gc

import pytest
import torch
from safetensors.torch import save_file

from core.formats.tensors import chunks, writer
from core.formats.tensors.header import read_header
from core.formats.tensors.spill import Spill
from core.record.draws import normal
from tests.models import tiny_file
from tests.tools.test_tools import use

NAME = "lora_unet_down_blocks_{}_attentions_0_transformer_blocks_0_attn1_to_q"
WIDTH, RANK = 96, 8
LORA = {"lora_up.weight": (WIDTH, RANK), "lora_down.weight": (RANK, WIDTH)}
LOHA = {f"hada_w{n}_{side}": shape for n in (1, 2) for side, shape in (("a", (WIDTH, RANK)), ("b", (RANK, WIDTH)))}


@pytest.fixture
def held(monkeypatch):
    """The most bytes of tensors that were in memory together, when a layer was put away and when one was written."""
    gc.freeze()  # what is there now is not listed
    monkeypatch.setattr(chunks, "CHUNK_BYTES", chunks.BLOCK_BYTES)  # its buffer is no larger for a larger file
    most = [0]

    def look(do):
        def looking(*given):
            most[0] = max(most[0], sum(_open().values()))
            return do(*given)

        return looking

    monkeypatch.setattr(Spill, "put", look(Spill.put))
    monkeypatch.setattr(writer._Hashes, "add", look(writer._Hashes.add))
    return most


def _open():
    """{place in memory: bytes} of all tensors that are new."""
    tensors = (each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter))
    storages = (each.untyped_storage() for each in tensors if each.device.type == "cpu")
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def lora(path, layers, shapes):
    tensors = {
        f"{NAME.format(number)}.{key}": normal(shape, number, key)
        for number in range(layers)
        for key, shape in shapes.items()
    }
    alphas = {f"{NAME.format(number)}.alpha": torch.tensor(4.0) for number in range(layers)}
    save_file(tensors | alphas, path, {"ss_base_model_version": "sd_v1"})
    return str(path)


CASES = {
    "resize": (LORA, {"name": "resize_lora", "new_rank": 4}),
    "dynamic": (LOHA, {"name": "resize_lora", "new_rank": 4, "dynamic_method": "sv_fro", "dynamic_param": 0.5}),
    "concat": (LORA, {"name": "merge_loras", "method": "concat"}),
    "svd": (LORA, {"name": "merge_loras", "method": "svd", "shuffle": True}),
    "plain": (LORA, {"name": "merge_loras", "method": "plain", "compatibility": "sd-scripts"}),
    "lora": (LOHA, {"name": "convert_lora", "network_type": "lora", "new_rank": 4}),
    "full": (LORA, {"name": "convert_lora", "network_type": "full"}),
    "full of LoHa": (LOHA, {"name": "convert_lora", "network_type": "full"}),
}


@pytest.mark.slow(but=("resize", "svd"))
@pytest.mark.parametrize(("shapes", "asked"), CASES.values(), ids=CASES)
def test_more_layers_take_no_more_memory(shapes, asked, held, tmp_path):
    found = []
    for layers in (3, 9):
        folder = tmp_path / str(layers)
        folder.mkdir()
        file = lora(folder / "given.safetensors", layers, shapes)
        files = {"models": [file, file]} if asked["name"] == "merge_loras" else {"file": file}
        use(**asked, **files, output=str(folder / "made.safetensors"))
        found.append(held[0])
        held[0] = 0
    assert 0 < found[1] <= found[0]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    files = (tiny_file("sd1", folder / f"{seed}.safetensors", seed=seed) for seed in (0, 1))
    return dict(zip(("model_org", "model_tuned"), map(str, files), strict=True))


@pytest.mark.slow
def test_of_two_models_the_layers_are_held_one_by_one(models, held, tmp_path):
    use(name="extract_lora", **models, dim=4, min_diff=0.0, output=str(tmp_path / "made.safetensors"))
    largest = max(entry.stop - entry.start for entry in read_header(models["model_org"])[0].values())
    assert 0 < held[0] <= 8 * largest  # both weights, their difference, and its parts in two precisions
