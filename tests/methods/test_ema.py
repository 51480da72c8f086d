"""The average of trained weights."""

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from core.methods.ema import WeightAverage
from core.settings.method import MethodSettings


def averaging(value=0.0, dtype=torch.float32, **settings):
    weight = nn.Parameter(torch.full((3,), value, dtype=dtype))
    plain = {"ema": True, "ema_decay": 0.9, "ema_warmup": False}
    return weight, WeightAverage({"w": weight}, MethodSettings(**{**plain, **settings}))


def follow(weight, average, values):
    for value in values:
        with torch.no_grad():
            weight.fill_(value)
        average.after_step()
    return average.average["w"][0].item()


@pytest.mark.parametrize("device", ["device", "cpu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_step_counts_less_by_the_decay(device, dtype):
    weight, average = averaging(dtype=dtype, ema_device=device)
    assert follow(weight, average, [1.0, 2.0, 4.0]) == pytest.approx(0.1 * (4 + 0.9 * 2 + 0.81 * 1), rel=1e-6)
    assert average.average["w"].dtype == torch.float32


def test_an_average_taken_less_often_looks_back_as_far():
    """A jump from 0 to 1 has arrived to the same share after 12 steps, however often the average was taken."""
    for every in (1, 2, 3, 4):
        weight, average = averaging(ema_update_every=every)
        assert follow(weight, average, [1.0] * 12) == pytest.approx(1 - 0.9**12, rel=1e-5)


def test_at_first_it_looks_back_only_as_far_as_there_are_steps():
    _, average = averaging(ema_decay=0.9999, ema_warmup=True)
    kept = []
    for _ in range(3):
        average.after_step()
        kept.append(average.old_weight())
    assert kept == pytest.approx([2 / 11, 3 / 12, 4 / 13])
    average.steps = 10**6
    assert average.old_weight() == 0.9999


def test_the_weights_come_back_to_the_bit_also_after_an_error():
    weight, average = averaging(value=0.1, dtype=torch.bfloat16)
    follow(weight, average, [0.3])
    before = weight.detach().clone()
    with pytest.raises(OSError), average.in_place():
        assert not torch.equal(weight, before)
        raise OSError
    assert torch.equal(weight, before)


def test_a_state_goes_on_where_it_was():
    weight, average = averaging(ema_update_every=2)
    follow(weight, average, [1.0, 2.0, 3.0])
    other_weight, other = averaging(ema_update_every=2)
    other.load_state_dict(average.state_dict())
    assert follow(weight, average, [5.0]) == follow(other_weight, other, [5.0])


def test_between_two_takings_the_average_stays():
    weight, average = averaging(ema_update_every=3)
    assert [follow(weight, average, [1.0]) for _ in range(4)] == pytest.approx([0, 0, 1 - 0.9**3, 1 - 0.9**3], rel=1e-5)


@pytest.mark.parametrize(("wanted", "place"), [("device", "cuda"), ("cpu", "cpu")])
def test_the_average_of_weights_on_a_card_lies_where_it_was_asked_to(wanted, place):
    with FakeTensorMode():  # tensors that have a device and no numbers
        average = WeightAverage({"w": torch.empty(3, device="cuda")}, MethodSettings(ema=True, ema_device=wanted))
        assert average.average["w"].device.type == place


@pytest.mark.parametrize(
    ("wanted", "shown"), [("all", ["files", "samples"]), ("files", ["files"]), ("samples", ["samples"])]
)
def test_the_average_takes_the_weights_place_for_what_was_asked(wanted, shown):
    _, average = averaging(ema_use=wanted)
    assert [use for use in ("files", "samples") if average.replaces(use)] == shown


def test_the_state_of_a_run_without_an_average_starts_one_at_its_weights():
    weight, average = averaging()
    follow(weight, average, [1.0, 2.0])
    average.load_state_dict({})
    assert average.steps == 0 and torch.equal(average.average["w"], weight.detach())
