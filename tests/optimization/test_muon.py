"""Muon trains every weight of a network: matrices and flattened convolutions its own way, vectors as AdamW does."""

import pytest
import torch

from core.methods.tokens import TokenTable, embeddings_of
from core.optimization.optimizers import build_optimizer
from core.settings.optimization.optimizer import OptimizerSettings


@pytest.mark.parametrize("name", ["Muon", "pytorch_optimizer.Muon", "pytorch_optimizer.AdaMuon"])
def test_muon_takes_matrices_convolutions_and_vectors(name):
    shapes = {"matrix": (8, 4), "convolution": (4, 3, 3, 3), "bias": (8,)}
    weights = {each: torch.nn.Parameter(torch.ones(shape)) for each, shape in shapes.items()}
    groups = [{"name": "unet", "params": list(weights.values()), "lr": 1e-3}]
    optimizer = build_optimizer(OptimizerSettings(optimizer_type=name), groups)
    assert [(group["name"], group["initial_lr"], len(group["params"])) for group in optimizer.param_groups] == [
        ("unet", 1e-3, 2),
        ("unet", 1e-3, 1),
    ]
    for weight in weights.values():
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    optimizer.step()
    assert all(bool((weight != 1).any() and torch.isfinite(weight).all()) for weight in weights.values())


@pytest.mark.parametrize("name", ["Muon", "pytorch_optimizer.AdaMuon"])
def test_embeddings_and_what_has_one_row_or_column_train_as_with_adamw(name):
    table, encoder = torch.nn.Embedding(6, 4), torch.nn.Linear(4, 4, bias=False)
    rows = TokenTable(torch.nn.Embedding(3, 4), torch.ones(2, 4))
    down, magnitude = (torch.nn.Parameter(torch.ones(shape)) for shape in ((1, 4, 1, 1), (8, 1)))
    weights = [table.weight, encoder.weight, rows.rows, down, magnitude]
    embeddings = embeddings_of([torch.nn.ModuleList([table, encoder]), rows])
    groups = [{"name": "text_encoder", "params": weights, "lr": 1e-3}]
    optimizer = build_optimizer(OptimizerSettings(optimizer_type=name), groups, embeddings=embeddings)
    ways = {id(each): group["use_muon"] for group in optimizer.param_groups for each in group["params"]}
    assert [ways[id(weight)] for weight in weights] == [False, True, False, False, False]
