"""Device operations of optimizer steps, with clipping and the guard, on the card that computes nothing:

    python -m tests.card.optimizers [NAME ...]

Prints for each optimizer that is offered, or for these, as a line of JSON, the operations of its third step with 4 weights
and with 12: where both are the same, one operation moves all weights.
"""

import json
import sys

from tests.card.library import load_library

if __name__ == "__main__":
    load_library()

import torch
from torch import nn

from core.optimization.clipping import NonFiniteGuard, clip_grad_norm
from core.optimization.optimizers import build_optimizer
from core.settings.optimization.optimizer import OptimizerSettings
from core.settings.optimization.optimizers import catalog
from tests.card.operations import Operations
from tests.card.watched import card
from tests.options import ADAFACTOR

ARGUMENTS = {ADAFACTOR["optimizer_type"]: ADAFACTOR["optimizer_args"]}


def operations_of(name: str, count: int) -> int:
    operations = Operations()
    settings = OptimizerSettings(optimizer_type=name, learning_rate=1e-3, optimizer_args=ARGUMENTS.get(name, {}))
    with card(listener=operations):
        weights = [nn.Parameter(torch.empty(16, 32, device="cuda")) for _ in range(count)]
        optimizer = build_optimizer(settings, [{"name": "unet", "params": weights, "lr": 1e-3}])
        guard = NonFiniteGuard("cuda")
        for step in range(3):
            for weight in weights:
                weight.grad = torch.empty_like(weight)
            if step == 2:
                operations.begin(None)
            guard.begin()
            guard.watch(clip_grad_norm(weights, 1.0))
            guard.step(optimizer)
    return sum(operations.counts.values())


def main(names: list[str]) -> None:
    for name in names or [entry.name for entry in catalog().values() if entry.offered]:
        try:
            found = {"operations": [operations_of(name, count) for count in (4, 12)]}
        except Exception as error:
            found = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
        print(json.dumps({"name": name} | found), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(sys.argv[1:])
