"""Limits of a training at their edges: what still counts, what does not any more, and which of many stay."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from core.dataset.buckets.validation_split import automatic_count
from core.dataset.images.views import View
from core.record.run_folder import state_step
from core.settings.check import build
from core.settings.dataset.concepts import Concept
from core.settings.job import TrainJob
from core.settings.noise import NoiseSettings
from core.settings.saving import SavingSettings
from core.training.building.latents import MOST_DECODERS, decode_threads
from core.training.loop import loss_readback, sources, validation
from core.training.loop.batch import Batch
from core.training.loop.loss_readback import (
    MOST_OVERFLOWS,
    MOST_WAITING,
    LossBuffer,
    ReadBack,
    StepImage,
    StepRecord,
    not_finite,
)
from core.training.loop.reports import AVERAGED_STEPS, StepClock
from core.training.loop.sources import DecodedView, Latents, ViewLoader, sample_latent
from core.training.loop.stepper import Stepper
from core.training.loop.update import WEIGHT_NORM_STEPS, loss_divisor
from core.training.loop.validation import MOST_PAIRS, Budget, pairs_within, pick_evenly, thinned
from core.training.loop.watching import BAND, MEMORY, RECENT, WORST, Mean, Watch
from core.training.memory.advice import smaller_resolution
from core.training.probe import duration
from core.training.saving import facts
from core.training.saving.checkpoints import Intermediate, expired_checkpoints
from core.training.saving.facts import THUMBNAILS, FileFacts, thumbnail_url, trigger_words
from core.training.saving.states import expired_states

# ---- which files stay


def intermediate(*steps, epochs=False):
    return [Intermediate(Path(f"t-{step}"), step, step // 10 if epochs else None) for step in steps]


@pytest.mark.parametrize(
    ("saving", "at", "left"),
    [
        ({"save_last_n": 4}, 30, [10, 20, 30]),
        ({"save_last_n": 3}, 30, [10, 20, 30]),
        ({"save_last_n": 2}, 30, [20, 30]),
        ({"save_last_n": 1}, 30, [30]),
        ({"save_every_n_steps": 10, "save_last_n_steps": 21}, 30, [10, 20, 30]),
        ({"save_every_n_steps": 10, "save_last_n_steps": 20}, 30, [10, 20, 30]),
        ({"save_every_n_steps": 10, "save_last_n_steps": 19}, 30, [20, 30]),
        ({}, 30, [10, 20, 30]),
    ],
)
def test_of_the_step_files_the_newest_stay(saving, at, left):
    found = intermediate(10, 20, 30)
    gone = expired_checkpoints(SavingSettings(**saving), found, at)
    assert [each.step for each in found if each not in gone] == left


@pytest.mark.parametrize(("count", "left"), [(4, [10, 20, 30]), (3, [10, 20, 30]), (2, [20, 30]), (1, [30])])
def test_of_the_epoch_files_the_newest_stay(count, left):
    found = intermediate(10, 20, 30, epochs=True)
    gone = expired_checkpoints(SavingSettings(save_last_n_epochs=count), found, 30)
    assert [each.step for each in found if each not in gone] == left


@pytest.mark.parametrize(
    ("saving", "left"),
    [
        ({"save_last_n_states": 4}, [10, 20, 30]),
        ({"save_last_n_states": 3}, [10, 20, 30]),
        ({"save_last_n_states": 2}, [20, 30]),
        ({"save_last_n_states": 1}, [30]),
        ({"save_last_n_steps_state": 20}, [10, 20, 30]),
        ({"save_last_n_steps_state": 19}, [20, 30]),
        ({"save_last_n_steps_state": 9}, [30]),
        ({"save_last_n_epochs_state": 1, "save_every_n_epochs": 1}, [30]),
        ({"save_last_n_epochs_state": 2, "save_every_n_epochs": 1}, [20, 30]),
    ],
)
def test_of_the_training_states_the_newest_stay(saving, left):
    epochs = SimpleNamespace(first_step=lambda epoch: epoch * 10)
    plan = SimpleNamespace(total=50, epochs=epochs, epoch_of=lambda step: step // 10)
    found = [Path(f"step{step:08d}") for step in (10, 20, 30)]
    gone = expired_states(SavingSettings(**saving), plan, 30, found)
    assert [state_step(path) for path in found if path not in gone] == left


# ---- losses


def record(step, loss=1.0, norm=1.0, names=("a.png",), **more):
    return StepRecord(step, torch.tensor(loss), torch.tensor(norm), list(names), [5] * len(names), **more)


@pytest.mark.parametrize("allowed", [0, 1, 2])
def test_so_many_steps_may_be_not_finite_and_the_next_one_ends_the_run(allowed):
    buffer = LossBuffer(allowed=allowed)
    for step in range(1, allowed + 1):
        buffer.put(record(step, float("nan")))
    buffer.put(record(allowed + 1))
    read = buffer.read()
    assert (read.steps, len(read.skipped), read.end) == ([allowed + 1], allowed, None)
    buffer.put(record(allowed + 2, norm=float("inf")))
    read = buffer.read()
    assert read.steps == [] and [problem.code for problem in read.end.problems] == ["training.not-finite"]


def test_of_scaled_losses_only_overflows_in_a_row_are_counted():
    buffer = LossBuffer(scaled=True)
    rows = [float("inf")] * MOST_OVERFLOWS + [1.0] + [float("inf")] * MOST_OVERFLOWS
    for step, norm in enumerate(rows, 1):
        buffer.put(record(step, norm=norm))
    assert buffer.read().end is None
    buffer.put(record(len(rows) + 1, norm=float("inf")))
    assert buffer.read().end is not None


def test_losses_are_read_when_enough_steps_wait_or_after_a_while(monkeypatch):
    now = SimpleNamespace(monotonic=lambda: clock[0])
    clock = [0.0]
    monkeypatch.setattr(loss_readback, "time", now)
    buffer = LossBuffer()
    for step in range(1, MOST_WAITING):
        buffer.put(record(step))
        assert buffer.read_if_due() is None
    buffer.put(record(MOST_WAITING))
    assert len(buffer.read_if_due().steps) == MOST_WAITING
    buffer.put(record(11))
    clock[0] += loss_readback.EVENT_SECONDS
    assert buffer.read_if_due().steps == [11] and buffer.read() is None


@pytest.mark.parametrize(("count", "named"), [(8, 8), (9, 8)])
def test_at_most_eight_images_of_a_bad_step_are_named_and_only_those_that_are_bad(count, named):
    names = [f"{number}.png" for number in range(count + 1)]
    (problem,) = not_finite(record(3, names=names), "loss", [1.0] + [float("nan")] * count).problems
    assert "0.png" not in problem.where and problem.where.count(".png") == named
    assert ("and 1 more" in problem.where) is (count > named)


def test_each_image_of_a_step_counts_the_same_and_with_compatibility_each_batch():
    whole = SimpleNamespace(items=[1, 2])
    for which, expected in (("none", 5), ("sd-scripts-0.10", 6)):
        job = build(TrainJob, {"model": {"compatibility": which}, "schedule": {"gradient_accumulation_steps": 3}})
        assert loss_divisor(SimpleNamespace(job=job), whole, 5) == expected


@pytest.mark.parametrize(
    ("timestep", "band"),
    [(0, 0), (49, 0), (49.9, 0), (50, 1), (949, 18), (950, 19), (999, 19), (999.9, 19), (1000, 19)],
)
def test_a_timestep_is_in_the_band_that_begins_at_or_below_it(timestep, band):
    watch = Watch()
    watch.add(ReadBack([1], [1.0], 1.0, [[StepImage(("a",), timestep)]], [[1.0]]))
    (found,) = watch.snapshot()["bands"]
    assert (found["from"], found["to"], found["count"]) == (band * BAND, (band + 1) * BAND, 1)


def test_the_table_of_images_holds_the_worst_and_counts_all():
    watch = Watch()
    for number in range(WORST + 1):
        watch.add(ReadBack([number], [1.0], 1.0, [[StepImage((f"{number:03}",), 5)]], [[1.0 + number]]))
    found = watch.snapshot()
    assert found["images_seen"] == WORST + 1 and len(found["images"]) == WORST
    assert "000" not in {entry["source"] for entry in found["images"]}
    values = [entry["corrected"] for entry in found["images"]]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("memory", [MEMORY, RECENT])
def test_a_running_mean_is_the_plain_one_until_its_memory_is_full(memory):
    mean = Mean()
    for value in range(int(memory)):
        mean.add(float(value), memory)
    assert mean.recent == pytest.approx(mean.mean) == pytest.approx((memory - 1) / 2)
    before = mean.recent
    mean.add(1000.0, memory)
    assert mean.recent == pytest.approx(before + (1000 - before) / memory)
    assert mean.mean == pytest.approx((memory * (memory - 1) / 2 + 1000) / (memory + 1))


@pytest.mark.parametrize(("steps", "average"), [(2, 1.5), (3, 2.0), (4, 3.0)])
def test_the_average_loss_is_of_the_last_epoch(steps, average):
    watch = Watch(steps_per_epoch=3)
    for step in range(1, steps + 1):
        watch.add(ReadBack([step], [float(step)], 1.0, [[]], [[]]))
    assert watch.average == average


def test_the_first_step_which_warms_up_leaves_the_pace_at_the_second():
    clock = StepClock()
    clock.add(30.0)
    assert clock.per_step == 30.0
    clock.add(2.0)
    assert clock.per_step == 2.0 and clock.total == 32.0
    clock.add(5.0)
    assert clock.per_step == pytest.approx(3.0), "a third of the way"
    for _ in range(30):
        clock.add(3.0)
    clock.add(3.0 + AVERAGED_STEPS)
    assert clock.per_step == pytest.approx(4.0)


# ---- validation


@pytest.mark.parametrize(
    ("images", "count"),
    [(0, 0), (39, 0), (40, 2), (41, 2), (83, 2), (84, 3), (516, 15), (517, 16), (10_000, 16)],
)
def test_three_percent_of_forty_images_and_more_are_held_out_two_to_sixteen(images, count):
    assert automatic_count(images) == count


def test_measuring_takes_four_pairs_at_least_and_sixty_four_at_most():
    """Two percent of the forward passes, of which each image that trains takes two: saves + 1 measurements."""
    assert [pairs_within(shown, 1) for shown in (1, 399, 400, 401, 3199, 3200, 10**6)] == [
        4,
        4,
        8,
        8,
        60,
        64,
        MOST_PAIRS,
    ]
    assert pairs_within(800, 3) == pairs_within(400, 1) == 8


@pytest.mark.parametrize(
    ("pairs", "left_out"),
    [(10, set()), (11, {0}), (12, {0}), (13, {0, 30}), (16, {0, 30}), (17, {0, 10, 30}), (25, {0, 10, 30})],
)
def test_measurements_that_cost_too_much_are_left_out_evenly_and_the_last_stays(pairs, left_out):
    """50 pairs are two percent of the passes; four saves and the base model are planned. One alone would name no best."""
    budget = Budget(1250, [10, 20, 30, 40], 4)
    assert budget.unmeasured_saves(pairs) == left_out
    assert budget.unmeasured_saves(26) == {0, 10, 20, 30, 40}


@pytest.mark.parametrize(
    ("count", "kept"), [(5, [0, 1, 2, 3, 4]), (6, [0, 2, 4]), (10, [0, 2, 4, 6, 8]), (11, [0, 3, 6, 9])]
)
def test_at_most_so_many_are_picked_evenly_and_the_first_is_one(count, kept):
    assert thinned(range(count), 5) == kept


def test_the_images_that_are_compared_are_picked_evenly_and_are_those_that_train():
    def placed(key, role="train"):
        images = SimpleNamespace(model_copy=lambda update: None)
        return SimpleNamespace(key=key, concept=SimpleNamespace(role=role, images=images))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "is_varied", lambda images: True)
        found = [placed("r", "regularization"), *map(placed, "abcdef"), placed("a")]
        assert [each.key for each in pick_evenly(found, 3)] == ["a", "c", "e"]
        assert [each.key for each in pick_evenly(found, 7)] == list("abcdef")


# ---- what is read and decoded


def test_so_many_views_are_decoded_ahead_and_no_more_and_each_once():
    loaded = []

    def load(placed, epoch, repeat):
        loaded.append(placed.key)
        return DecodedView()

    fresh = ViewLoader(load, 1, ahead=2)
    items = [(SimpleNamespace(key=key), 0) for key in "abc"]
    fresh.decode_ahead(0, items)
    fresh.decode_ahead(0, items)
    fresh._pool.submit(int).result()  # what was begun before it is done
    assert loaded == ["a", "b"]
    for placed, repeat in items:
        fresh.take(placed, 0, repeat)
    fresh.close()
    assert sorted(loaded) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("logvar", "clamped"), [(-40.0, -30.0), (-30.0, -30.0), (20.0, 20.0), (25.0, 20.0), (1.0, 1.0)]
)
def test_the_variance_of_a_latent_is_clamped_as_in_the_vae(logvar, clamped):
    mean, wide = torch.zeros(4, 2, 2), torch.full((4, 2, 2), logvar)
    noise = sample_latent(mean, torch.zeros_like(wide), 1, 0, ("a",), 0)
    torch.testing.assert_close(sample_latent(mean, wide, 1, 0, ("a",), 0), noise * torch.tensor(clamped / 2).exp())


def test_a_mask_is_mirrored_with_its_image_and_an_image_without_one_counts_whole(monkeypatch):
    views = iter([View((0, 0), flip=True), View((0, 0), flip=False), View((0, 0), flip=False)])
    monkeypatch.setattr(sources, "draw_view", lambda *given: next(views))
    posterior = torch.zeros(4, 1, 2), torch.zeros(4, 1, 2)
    monkeypatch.setattr(sources, "Side", lambda placed, flipped: SimpleNamespace(key=(placed.key, flipped)))
    held = {("a", True): posterior, ("a", False): posterior, ("b", False): posterior}
    own = Latents(lambda side: held[side.key], 1, mode="mean", masks={"a": torch.tensor([[[0.0, 1.0]]])})
    items = [(SimpleNamespace(key=key, image=SimpleNamespace(control=None)), 0) for key in "aab"]
    assert own.batch(0, items).masks.flatten(1).tolist() == [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]


def test_a_cpu_decodes_with_two_threads_and_a_gpu_waits_for_as_many_as_there_are(monkeypatch):
    for cores, threads in ((1, 2), (4, 4), (64, MOST_DECODERS)):
        monkeypatch.setattr("core.record.machine.cores", lambda cores=cores: cores)
        assert decode_threads("cpu") == 2 and decode_threads("cuda:0") == threads


def test_a_batch_says_what_differs_from_the_usual_and_nothing_else():
    def item(weight=1.0, strength=0.5, kept=False):
        concept = SimpleNamespace(
            images=SimpleNamespace(network_multiplier=strength), source=SimpleNamespace(diff_output_preservation=kept)
        )
        return SimpleNamespace(concept=concept, loss_weight=lambda settings: weight), 0

    usual = Batch([item(), item()], [], [], [], torch.zeros(2, 4, 1, 1))
    assert usual.weights(None) is None and usual.strength == 0.5 and usual.preserved == [False, False]
    other = Batch([item(), item(0.25, kept=True)], [], [], [], torch.zeros(2, 4, 1, 1))
    assert other.weights(None).tolist() == [1.0, 0.25] and other.preserved == [False, True]


# ---- words and tables


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (89, "89 s"), (90, "2 min"), (3569, "59 min"), (3570, "1 h 00 min"), (7500, "2 h 05 min")],
)
def test_a_duration_is_in_seconds_minutes_or_hours(seconds, words):
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("resolution", "less"), [(1024, 768), (512, 384), (128, 64), (85, None), (86, 64), ((768, 512), 384)]
)
def test_a_smaller_resolution_is_three_quarters_in_steps_of_64(resolution, less):
    assert smaller_resolution(build(TrainJob, {"dataset": {"resolution": resolution}})) == less


def test_a_thumbnail_says_its_type_by_the_registered_name(tmp_path):
    """https://www.iana.org/assignments/media-types: there is no image/jpg."""
    said = {}
    for ending in (*THUMBNAILS, ".PNG"):
        (tmp_path / f"a{ending}").write_bytes(b"x" * (1 << 20))
        said[ending] = thumbnail_url(str(tmp_path / f"a{ending}")).split(";")[0].removeprefix("data:image/")
    assert said == {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp", ".gif": "gif", ".PNG": "png"}


def test_the_trigger_phrase_is_of_what_trains():
    def placed(role, word, identifier, class_word):
        source = SimpleNamespace(identifier=identifier, class_word=class_word)
        concept = SimpleNamespace(role=role, source=source, captions=SimpleNamespace(trigger_word=word))
        concept.triggers = Concept.triggers.fget(concept)
        return SimpleNamespace(concept=concept)

    rows = [placed("train", "zkw", "sks", "dog"), placed("regularization", "no", "no", "dog")]
    rows += [placed("train", "zkw", None, "cat"), placed("validation", "never", None, None)]
    assert trigger_words(rows) == "zkw, sks dog"


def test_the_norm_of_what_trains_is_measured_at_the_first_step_and_now_and_then():
    weights = [torch.nn.Parameter(torch.full((4,), 3.0)), torch.nn.Parameter(torch.tensor([8.0]))]
    own = Stepper.__new__(Stepper)
    own._parameters = weights
    assert float(own.weight_norm()) == pytest.approx(10.0)
    assert [step for step in range(1, 60) if step % WEIGHT_NORM_STEPS == 0 or step == 1] == [1, 25, 50]


def test_the_timesteps_that_are_measured_are_within_the_range_that_trains():
    assert validation.timesteps_of(NoiseSettings(min_timestep=0, max_timestep=1000)) == [200, 400, 600, 800]
    assert validation.timesteps_of(NoiseSettings(min_timestep=999, max_timestep=1000)) == [999] * 4


@pytest.mark.parametrize(("step", "epoch"), [(0, 1), (1, 1), (3, 1), (4, 2), (6, 2), (7, 3)])
def test_a_file_says_the_epoch_that_its_last_step_is_in(tmp_path, monkeypatch, step, epoch):
    epochs = SimpleNamespace(views_of=lambda epoch: [], batches_in=lambda epoch: 3, never_used=list)
    plan = SimpleNamespace(epochs=epochs, epoch_of=lambda step: step // 3, total=7, seed=7, placed=[])
    components = SimpleNamespace(origin=tmp_path / "model.safetensors", family="sd1")
    method = SimpleNamespace(metadata=dict)
    folder = SimpleNamespace(name="t", journal_file=tmp_path / "journal.jsonl")
    monkeypatch.setattr(facts, "model_hashes", lambda path, memo: (None, None))
    monkeypatch.setattr(facts, "lora_metadata", lambda job, said: said)
    own = FileFacts(TrainJob(), folder, plan, components, method, "epsilon", "no", 2, None, None)
    said = own.metadata(step)
    assert (said.epoch, said.step, said.num_epochs, said.max_train_steps) == (epoch, step, 3, 7)
    assert said.num_batches_per_epoch == 3 and said.extra["ss_num_validation_images"] == "2"
