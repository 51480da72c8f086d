"""What the losses say besides their mean."""

import json
from types import SimpleNamespace

import pytest
import torch

from core.engine.view import RunView, read_watch
from core.settings.job import TrainJob
from core.training.loop.loss_readback import LossBuffer, ReadBack, StepImage, StepRecord
from core.training.loop.reports import Reports
from core.training.loop.watching import Watch


def read_back(step, entries):
    """entries: (image, timestep, loss, weight)."""
    seen = [StepImage(("s", name), timestep, weight) for name, timestep, _, weight in entries]
    losses = [loss for _, _, loss, _ in entries]
    return ReadBack([step], [sum(losses) / len(losses)], 1.0, [seen], [losses])


def test_losses_that_differ_by_their_timestep_alone_are_all_as_expected():
    watch = Watch()
    corrected = [watch.add(read_back(step, [("a", step * 50 % 1000, 1 / (1 + step % 20), 1.0)])) for step in range(60)]
    assert [value for (value,) in corrected] == pytest.approx([1.0] * 60)


def test_a_loss_is_divided_by_the_mean_of_its_band_and_by_the_weight_of_its_image():
    watch = Watch()
    watch.add(read_back(1, [("a", 10, 2.0, 1.0)]))
    assert watch.add(read_back(2, [("b", 49, 1.0, 0.5)])) == [1.0], "half the weight of a loss of 2"
    assert watch.add(read_back(3, [("b", 0, 5.0, 1.0)])) == pytest.approx([5 / 3])
    assert watch.add(read_back(4, [("reg", 0, 0.0, 0.0)])) == [1.0], "what does not count tells nothing"
    assert [band["count"] for band in watch.snapshot()["bands"]] == [3]


def test_an_image_whose_mask_is_zero_everywhere_has_no_loss_to_list():
    watch = Watch()
    watch.add(read_back(1, [("clear", 10, 0.0, 1.0), ("whole", 20, 2.0, 1.0)]))
    assert [entry["name"] for entry in watch.snapshot()["images"]] == ["whole"]
    assert [band["mean"] for band in watch.snapshot()["bands"]] == [2.0]


def test_the_worst_image_comes_first_and_the_state_brings_all_back():
    watch = Watch(steps_per_epoch=3)
    for step in range(1, 10):
        watch.add(read_back(step, [("good", 500, 1.0, 1.0), ("bad", 500, 3.0, 1.0)]))
    assert [entry["name"] for entry in watch.snapshot()["images"]] == ["bad", "good"]
    assert watch.average == pytest.approx(2.0)
    again = Watch(steps_per_epoch=3)
    again.load_state_dict(json.loads(json.dumps(watch.state_dict())))
    assert again.snapshot() == watch.snapshot() and again.average == watch.average


def test_one_reading_brings_every_number_of_several_steps(monkeypatch):
    reads = []
    real = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: reads.append(1) or real(tensor))
    buffer = LossBuffer()
    one = torch.tensor
    buffer.put(StepRecord(1, one(0.5), one(2.0), [], [], [StepImage(("a",), 1)] * 2, one([0.25, 0.75]), one(9.0)))
    buffer.put(StepRecord(2, one(0.125), one(3.0), [], [], [StepImage(("b",), 2)], one([0.125])))
    read = buffer.read()
    assert reads == [1], "the device is waited for once"
    assert read.losses == [0.5, 0.125] and read.by_image == [[0.25, 0.75], [0.125]]
    assert (read.norm, read.weight_norm) == (3.0, 9.0)


def test_what_was_read_before_the_step_that_ends_a_run_is_told():
    buffer = LossBuffer(allowed=1)
    for step, loss in enumerate((0.5, float("nan"), 0.25, float("nan"), 0.125), 1):
        buffer.put(StepRecord(step, torch.tensor(loss), torch.tensor(1.0), ["a.png"], [5]))
    read = buffer.read()
    assert read.steps == [1, 3] and read.losses == [0.5, 0.25]
    assert ["step 2" in problem.what for problem in read.skipped] == [True]
    assert "step 4" in str(read.end)


@pytest.mark.slow
def test_a_run_leaves_its_curves_norms_and_table_and_goes_on_with_them(train):
    groups = {"schedule": {"max_train_steps": 4, "seed": 7}, "validation": {"validation_split": 0.2}}
    whole, broken = train(**groups), train(**groups)
    whole.start()
    broken.on_line = lambda line: broken.token.cancel() if line["kind"] == "steps" else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("core.training.loop.loss_readback.EVENT_SECONDS", 0.0)
        assert broken.start() == "stopped"
    broken.again().start()
    found = read_watch(whole.folder)
    assert found == read_watch(broken.folder) and found["step"] == 4
    assert found["images_seen"] == 4 and sum(band["count"] for band in found["bands"]) >= 4
    shot = RunView.read(whole.folder).snapshot(False)
    assert len(shot["corrected"]) == len(shot["loss"]) == 4
    assert shot["norms"][0][1] > 0 and any(norm[2] for norm in shot["norms"])
    assert next(entry["step"] for entry in shot["validation"]) == 0


def test_the_trackers_get_every_number_of_each_step_also_of_steps_that_are_read_back_together():
    losses, logged = LossBuffer(), {}
    for step in range(1, 5):
        seen, weights = [StepImage(("s", "a"), 100.0)], torch.tensor(7.0) if step == 1 else None
        numbers = {"norm/of_method": torch.tensor(step / 2)}
        loss, norm = torch.tensor(float(step)), torch.tensor(10.0 * step)
        losses.put(StepRecord(step, loss, norm, ["a"], [100.0], seen, loss.reshape(1), weights, numbers))
    reports = Reports(
        job=TrainJob(),
        context=SimpleNamespace(),
        plan=SimpleNamespace(ends_epoch=lambda step: step == 2, total=4),
        stepper=SimpleNamespace(optimizer=SimpleNamespace(param_groups=[]), overflow_steps=0),
        rates=SimpleNamespace(for_optimizer=lambda optimizer, step: {"unet": step / 10}),
        components=None,
        tracker=SimpleNamespace(add=lambda name, value, step: logged.setdefault(name, []).append((step, value))),
        watch=Watch(steps_per_epoch=2),
        losses=losses,
    )
    read = losses.read()
    reports._track(read, reports.watch.add(read))
    assert logged["loss/average"] == [(1, 1.0), (2, 1.5), (3, 2.5), (4, 3.5)]
    assert logged["loss/epoch_average"] == [(2, 1.5), (4, 3.5)]
    assert logged["lr/unet"] == [(1, 0.0), (2, 0.1), (3, 0.2), (4, 0.3)]
    assert logged["norm/gradient"] == [(step, 10.0 * step) for step in range(1, 5)]
    assert logged["norm/of_method"] == [(step, step / 2) for step in range(1, 5)]
    assert logged["norm/weights"] == [(1, 7.0)], "at the step that it was measured after"
