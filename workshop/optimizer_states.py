"""Writes core/settings/optimization/optimizer_states.json: `python -m workshop.optimizer_states`.

Each optimizer that runs on a CPU takes two steps on weights of several shapes; the bytes of its state are fitted by the
terms of core/settings/optimization/states.py, class by class. Optimizers with the same state share an entry. Takes a few
minutes, most of them for Kron.
"""

import contextlib
import io
import json
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from core.optimization.optimizers import build_optimizer
from core.settings.optimization.optimizer import OptimizerSettings
from core.settings.optimization.optimizers import Entry, catalog
from core.settings.optimization.states import FILE, Shape, shape_class, terms
from workshop.optimizer_catalog import GIVEN_BY_PERSON

SIDES = ((64, 64), (128, 32), (32, 128), (96, 48), (48, 96), (256, 16), (16, 256))
CONV_SIDES = ((32, 16), (48, 10), (10, 48), (64, 8), (8, 64), (40, 20), (20, 40))
VECTORS = ((32,), (64,), (160,))
LONG = ((4096,), (5120,), (8192,))  # of 8-bit optimizers, which keep the state of short ones in 32 bits
SMALL = (16, 64)
MOST_OFF = 0.006  # of the measured bytes; a worse fit is replaced by the most bytes of a number


def settings_of(entry: Entry) -> OptimizerSettings:
    arguments = dict(GIVEN_BY_PERSON.get(entry.path, {}))
    if "relative_step" in entry.arguments:
        arguments["relative_step"] = False
    rate = 1.0 if "adapts" in entry.traits else 1e-3
    return OptimizerSettings(optimizer_type=entry.name, learning_rate=rate, optimizer_args=arguments)


def measured(settings: OptimizerSettings, shapes: Sequence[Shape]) -> int:
    """Bytes of the tensors of an optimizer's state after two steps on weights of these shapes."""
    import torch

    draw = torch.Generator().manual_seed(1)
    weights = [torch.nn.Parameter(torch.randn(shape, generator=draw) * 0.1) for shape in shapes]
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = build_optimizer(settings, [{"name": "unet", "params": list(weights), "lr": settings.learning_rate}])
        for _ in range(2):
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=draw) * 0.01
            optimizer.step()
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    storages = {each.data_ptr(): each for each in _storages([list(optimizer.state.values()), groups])}
    return sum(each.nbytes() for each in storages.values())


def _storages(value: Any) -> Iterator[Any]:
    import torch

    if isinstance(value, torch.Tensor):
        yield value.untyped_storage()
    elif isinstance(value, dict):
        yield from _storages(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _storages(each)
    elif hasattr(value, "__dict__"):
        yield from _storages(vars(value))


def fitted(settings: OptimizerSettings, shapes: Sequence[Shape]) -> list[float]:
    """Bytes for each term of these shapes, which are of one class, fitted to measurements; only for the first term, the number
    of weights, if no fit is good."""
    import numpy

    # one weight more: what all weights share is not counted
    measurements = numpy.array(
        [measured(settings, [shape] * 2) - measured(settings, [shape]) for shape in shapes], float
    )
    rows = numpy.array([[*terms(shape), 1.0] for shape in shapes])
    weight = 1 / numpy.maximum(measurements, 64)[:, None]
    last = rows.shape[1] - 1
    for columns in ([0], [0, *range(1, last // 2 + 1)], [0, *range(last // 2 + 1, last)]):  # numbers, sides or squares
        few = rows[:, [*columns, last]]
        solved, *_ = numpy.linalg.lstsq(few * weight, measurements * weight[:, 0], rcond=None)
        of_terms = numpy.zeros(last)
        of_terms[columns] = solved[:-1].round(2)
        off = abs(rows[:, :-1] @ of_terms + solved[-1] - measurements) * weight[:, 0]
        if off.max() <= MOST_OFF and of_terms.min() >= 0:
            return [float(each) + 0.0 for each in numpy.trim_zeros(of_terms, "b")] or [0.0]
    return [round(float((measurements / rows[:, 0]).max()), 2)]


def described(entry: Entry) -> dict[str, list[float]]:
    """{class of shapes: bytes for each term} of an optimizer, without classes that equal "matrix"; "small": for the few weights
    whose state is in 32 bits."""
    settings, eight_bit = settings_of(entry), "eight_bit" in entry.traits
    sets = (
        LONG if eight_bit else VECTORS,
        SIDES,
        [(*sides, 3, 3) for sides in CONV_SIDES],
        [(*sides, 1, 1) for sides in SIDES],
    )
    states = {shape_class(shapes[0]): fitted(settings, shapes) for shapes in sets}
    states = {name: each for name, each in states.items() if name == "matrix" or each != states["matrix"]}
    if eight_bit:
        states["small"] = [round((measured(settings, [SMALL] * 2) - measured(settings, [SMALL])) / 1024, 2)]
    return states


def render() -> str:
    """The file's text: a line for all optimizers with the same state."""
    names: dict[str, list[str]] = {}
    for name, entry in catalog().items():
        if entry.offered and "cpu" in (entry.only_on or ("cpu",)):
            names.setdefault(json.dumps(described(entry)), []).append(name)
    lines = [f'  {{"state": {state}, "names": {json.dumps(each)}}}' for state, each in names.items()]
    return "[\n" + ",\n".join(lines) + "\n]\n"


if __name__ == "__main__":
    from core.record.atomic import write_text

    write_text(FILE, render())
    print(f"wrote {FILE.name}")
