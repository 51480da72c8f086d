"""Weights that come to the device and go: what is computed is the same, and afterwards they are the same tensors."""

import pytest
import torch
from torch import nn

from core.families import family
from core.families.offload import layers_temporarily_on, offload_permanently, temporarily_on, vae_temporarily_on
from core.generation.plan.forecast import Needs
from core.generation.prompt.states import encode_texts
from core.methods.tokens import TokenTable
from tests.models import tiny_folder


class Vae:
    """Says where its weights are."""

    def __init__(self):
        self.module = nn.Linear(2, 2)

    def __getattr__(self, name):
        return getattr(self.module, name)

    def encode(self, x):
        return next(self.module.parameters()).device, x.device

    decode = encode


def test_layers_come_one_at_a_time_and_go_also_after_an_error():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)).eval()
    before = dict(model.named_parameters()) | dict(model.named_buffers())
    x = torch.ones(2, 4)
    whole, seen = model(x), []
    offload_permanently(model, "cpu")
    for layer in model:
        layer.register_forward_pre_hook(lambda module, given: seen.append([module is each for each in model]))
    assert torch.equal(model(x), whole)
    assert all(own is before[name] for name, own in (*model.named_parameters(), *model.named_buffers()))
    offload_permanently(model, "meta")  # where they are while they compute
    model[0].register_forward_pre_hook(lambda module, given: seen.append([each.weight.device.type for each in model]))
    with pytest.raises(RuntimeError):
        model(torch.ones(2, 5, device="meta"))
    assert seen[-1] == ["meta", "cpu", "cpu"]
    assert all(own is before[name] for name, own in (*model.named_parameters(), *model.named_buffers()))


def test_a_vae_is_on_the_device_only_while_it_works():
    vae = Vae()
    vae.module.to = lambda device: moved.append(str(device)) or vae.module
    moved = []
    with vae_temporarily_on(vae, "meta"):
        _, where = vae.encode(torch.ones(1))
        assert where.type == "meta" and moved == ["meta", "cpu"]
        vae.decode(torch.ones(1))
    assert moved == ["meta", "cpu"] * 2
    vae.encode(torch.ones(1))
    assert len(moved) == 4, "afterwards it stays where it is"


def test_what_is_there_already_is_not_moved():
    module = nn.Linear(2, 2)
    weight = module.weight
    with temporarily_on([module], "cpu"):
        assert module.weight is weight


class Stacked(nn.Module):
    """A table and two layers; says where their weights are while the second layer computes."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(4, 4)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, ids):
        return self.layers[1](self.layers[0](self.table(ids)))


def test_of_a_stack_of_layers_one_is_there_at_a_time_and_all_are_the_same_tensors_afterwards():
    model, ids, seen = Stacked(), torch.arange(3), []
    whole, before = model(ids), dict(model.named_parameters())
    with layers_temporarily_on([model], "meta"), layers_temporarily_on([model], "meta"):
        watch = model.layers[1].register_forward_pre_hook(
            lambda *_: seen.extend(each.device.type for each in model.parameters())
        )
        assert model(ids.to("meta")).device.type == "meta"
    watch.remove()
    assert seen == ["meta", "cpu", "cpu", "meta", "meta"]
    assert all(own is before[name] for name, own in model.named_parameters())
    assert torch.equal(model(ids), whole), "no hook is left"


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_prompts_are_read_by_encoders_whose_layers_visit(tmp_path, name):
    components = family(name).load(tiny_folder(name, tmp_path), parts=("text_encoders", "tokenizers"))
    for encoder in components.text_encoders:  # an embedding visits with its table
        table = encoder.get_input_embeddings()
        encoder.set_input_embeddings(TokenTable(table, torch.zeros(2, table.embedding_dim)))
    before = [weight for encoder in components.text_encoders for weight in encoder.parameters()]
    with torch.no_grad(), layers_temporarily_on(components.text_encoders, "meta"):
        states = encode_texts(components, ["a (fox:1.2)", "red"])
    assert {tensor.device.type for tensor in states.tensors.values()} == {"meta"}
    after = [weight for encoder in components.text_encoders for weight in encoder.parameters()]
    assert all(one is other for one, other in zip(before, after, strict=True))


def test_the_more_rests_in_ram_the_less_is_needed():
    needs = Needs(denoiser=50, layer=1, vae=3, texts=16, reading=4, evaluation=3, decoding=30, in_strips=5)
    assert [needs.peak(way) for way in ("off", "parts", "layers")] == [99, 83, 33]
    assert [needs.peak(way, sliced=True) for way in ("off", "parts", "layers")] == [74, 58, 8]
