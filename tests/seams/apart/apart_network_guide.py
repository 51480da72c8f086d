"""The example of docs/extending_networks.md works as it stands."""

import sys

import pytest
import torch
from safetensors.torch import load_file

from core.formats.detect import identify
from core.networks.adapter_file import load_lora
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.rules import ineffective
from tests.docs.guide import DOCS, blocks_of
from tests.tools.test_tools import use

(BLOCK,) = (block for block in blocks_of(DOCS / "extending_networks.md") if block.kind == "python")
KIND = {"network": {"kind": "rank_one"}, "optimizer": {"learning_rate": 1e-2}}


@pytest.fixture(scope="module", autouse=True)
def registered(tmp_path_factory):
    place = tmp_path_factory.mktemp("guide")
    sys.path.insert(0, str(place))
    (place / BLOCK.file).write_text("\n".join(BLOCK.lines) + "\n", "utf-8")
    __import__(BLOCK.file.removesuffix(".py"))


def test_it_trains_resumes_exactly_and_its_file_is_known_also_to_the_tools(train, tmp_path):
    whole, parted = train(**KIND), train(**KIND)
    assert whole.start() == "done"
    assert parted.start(stop_at=2) == "stopped" and parted.again().start() == "done"
    tensors = load_file(whole.file())
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in load_file(parted.file()).items())
    assert {name.partition(".")[2] for name in tensors} == {"rank_one_column", "rank_one_row"}
    assert any(tensor.any() for name, tensor in tensors.items() if name.endswith("column"))
    assert identify(whole.file()).network == "Rank one" and load_lora(whole.file())
    tools_take(str(whole.file()), tmp_path)


def tools_take(file, tmp_path):
    small, _ = use(name="resize_lora", file=file, new_rank=1, output=str(tmp_path / "small.safetensors"))
    assert small.is_file()
    whole, _ = use(
        name="merge_loras", models=[file, file], method="svd", new_rank=1, output=str(tmp_path / "sum.safetensors")
    )
    assert whole.is_file()
    found, _ = use(name="compare_loras", file=file, other=str(small))
    assert min(layer["cosine"] for layer in found["layers"].values()) > 0.999
    assert use(name="singular_values", file=file)[0]
    plain, _ = use(name="convert_lora", file=file, network_type="lora", output=str(tmp_path / "plain.safetensors"))
    assert identify(plain).network == "LoRA"


def test_the_sizes_have_no_effect_and_the_dropouts_do():
    told = ineffective(build(TrainJob, {"network": {"kind": "rank_one"}})).keys()
    assert {"network.rank", "network.alpha"} <= told and "network.network_dropout" not in told
