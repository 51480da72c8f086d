"""What a training takes, what would make it fit and what its files say, in small numbers and each at its edge."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from core.record.problems import ProblemsError
from core.settings.check import build
from core.settings.dataset.captions import CaptionSettings
from core.settings.job import TrainJob
from core.settings.methods import spec_of
from core.settings.sharding import ShardingSettings
from core.training.checks import embedding_file
from core.training.loop.prior import class_caption, has_prior, needs_untrained_model
from core.training.loop.timetable import Timer, _is_due
from core.training.memory import activations, advice, shares
from core.training.memory import plan as memory
from core.training.memory.plan import CAPTIONS, IMAGES, MemoryFacts, MemoryPlan, PartSize
from core.training.memory.shares import TrainedSizes, process_sizes
from core.training.prove import Proof, _hashes, _largest_difference
from core.training.saving import facts as saved

TEXT = {"hidden_size": 8, "num_hidden_layers": 3, "vocab_size": 20}
PARTS = {
    "unet": PartSize(1000, 100, 300, 200),
    "vae": PartSize(50, 5, 20, 10),
    "text_encoder": PartSize(60, 6, 0, 30, TEXT),
}
FACTS = MemoryFacts("sd1", "cuda", PARTS, 2000, (64, 64), 1, images=10)
TUNE = {"method": {"kind": "fine_tune"}}


def job_of(**groups) -> TrainJob:
    return build(TrainJob, {"memory": {"mixed_precision": "bf16"}, **groups})


@pytest.fixture
def ten(monkeypatch):
    """A LoRA or ControlNet of ten numbers, and passes that hold nothing."""
    monkeypatch.setattr(activations, "peak_bytes", lambda *given: 0)
    counted = {"lora": {"unet": 10}, "controlnet": {"unet": 200}, "embedding": {"text_encoder": 10}}
    plain = memory._trained_numbers
    monkeypatch.setattr(memory, "_trained_shapes", lambda job, facts: {})
    monkeypatch.setattr(
        memory, "_trained_numbers", lambda job, facts: counted.get(job.method.kind) or plain(job, facts)
    )


@pytest.mark.parametrize(
    ("dataset", "largest"),
    [
        ({}, ((512, 512), 1)), ({"resolution": [512, 776], "train_batch_size": 3}, ((512, 776), 3)),
        ({"folder": "a", "resolution": 100}, ((96, 96), 1)), ({"folder": "a", "resolution": 64}, ((64, 64), 1)),
        ({"folder": "a", "more_resolutions": [256, [512, 1024]]}, ((512, 1024), 1)),
        ({"sources": [{"folder": "a", "resolution": 256, "train_batch_size": 5}, {"folder": "b"}]}, ((256, 256), 5)),
        ({"sources": [{"folder": "a", "resolution": 256, "train_batch_size": 3}, {"folder": "b"}]}, ((512, 512), 1)),
    ],
)  # fmt: skip
def test_the_largest_batch_has_the_most_pixels(dataset, largest):
    given = {"train_batch_size": 1} | dataset
    expected = (largest[0], given["train_batch_size"]) if "sources" not in dataset else largest
    assert memory.largest_batch(job_of(dataset=given)) == expected
    images = SimpleNamespace(train_batch_size=7)
    one = SimpleNamespace(placement=SimpleNamespace(bucket=(64, 60)), concept=SimpleNamespace(images=images))
    assert memory.largest_batch(job_of(dataset=given), SimpleNamespace(placed=[one])) == ((64, 64), 7)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("AdamW", 2), ("AdamW8bit", 0.508), ("Lion", 1), ("Lion8bit", 0.255), ("Prodigy", 4), ("SGD", 0), ("SGDNesterov", 1),
        ("AdamWScheduleFree", 2), ("a.Unknown", 2), ("AdaFactor", 2 / 1280), ("SOAP", 6), ("Muon", 1),
        ("bitsandbytes.optim.PagedAdEMAMix32bit", 3),
    ],
)  # fmt: skip
def test_the_state_of_an_optimizer(name, numbers):
    assert memory.state_numbers(job_of(optimizer={"optimizer_type": name})) == pytest.approx(numbers, rel=5e-3)
    momentum = {"optimizer_type": "AdaFactor", "optimizer_args": {"beta1": 0.9}}
    assert memory.state_numbers(job_of(optimizer=momentum)) == pytest.approx(1 + 2 / 1280)


NARROW = {"mixed_precision": "bf16", "full_precision": "bf16"}


@pytest.mark.parametrize(
    ("groups", "device", "plan"),
    [  # weights, optimizer, gradients, activations
        ({}, "cuda", (10 * 4 + 1000 * 2, 80, 40, 0)),
        ({}, "cpu", (10 * 4 + 1000 * 2 + 300 * 2, 80, 40, 0)),
        ({"memory": {"mixed_precision": "no"}}, "cuda", (10 * 4 + 1000 * 4, 80, 40, 0)),
        ({"memory": {"mixed_precision": "bf16", "fp8_base_unet": True}}, "cuda", (40 + 200 + 900, 80, 40, 0)),
        ({"memory": {"mixed_precision": "bf16", "fp8_base_unet": True}}, "cpu", (40 + 200 + 900, 80, 40, 900)),
        ({"memory": {"mixed_precision": "bf16", "fp8_base_unet": True, "lowram": True}}, "cuda", (1140, 80, 40, 900)),
        ({"memory": {"mixed_precision": "bf16", "lowram": True}}, "cuda", (2040, 80, 40, 0)),
        ({"network": {"train_text_encoder": True}}, "cuda", (40 + 2000 + 120, 80, 40, 77 * 8 * 3 * 34)),
        (
            {"network": {"train_text_encoder": True}, "memory": {"mixed_precision": "bf16", "fp8_base": True}},
            "cuda",
            (40 + 1100 + 6 * 2 + 54, 80, 40, 77 * 8 * 3 * 34),
        ),
        (
            {"network": {"train_text_encoder": True}, "captions": {"max_token_length": 150},
             "memory": {"mixed_precision": "bf16", "gradient_checkpointing": True}},
            "cuda",
            (2160, 80, 40, 152 * 8 * 2 * 34),
        ),
        (TUNE, "cuda", (4000, 8000, 4000, 0)),
        (TUNE | {"memory": {"mixed_precision": "no"}}, "cuda", (4000, 8000, 4000, 0)),
        (TUNE | {"memory": NARROW}, "cuda", (2000, 8000, 2000, 8000)),
        (TUNE | {"memory": NARROW | {"kahan_summation": True}}, "cuda", (2000, 10000, 2000, 8000)),
        (TUNE | {"memory": {"mixed_precision": "bf16", "kahan_summation": True}}, "cuda", (4000, 8000, 4000, 0)),
        (TUNE | {"memory": NARROW | {"fused_optimizer_groups": 4}}, "cuda",
         (2000, 8000, 250 * 2 + 250 * 8 + 200 * 12, 250 * 8)),
        (TUNE | {"memory": {"mixed_precision": "bf16", "fused_optimizer_groups": 4}}, "cuda",
         (4000 + 2000, 8000, 250 * 4 + 200 * 12, 0)),
        (TUNE | {"memory": NARROW | {"fused_backward_pass": True}}, "cuda",
         (2000, 8000, 200 * 2 + 200 * 8 + 200 * 12, 200 * 8)),
        (TUNE | {"schedule": {"gradient_accumulation_steps": 2}}, "cuda", (6000, 8000, 4000, 0)),
        (TUNE | {"memory": {"mixed_precision": "bf16", "num_processes": 2}}, "cuda", (4000, 8000, 4000, 4000)),
        ({"method": {"kind": "dreambooth"}}, "cuda", (4240, 8480, 4240, 77 * 8 * 3 * 34)),
        ({"method": {"kind": "dreambooth", "prior": "model", "train_text_encoder": "no"}}, "cuda", (6000, 8000, 4000, 0)),
        ({"method": {"kind": "controlnet"}}, "cuda", (200 * 4 + 2000, 1600, 800, 0)),
        ({"method": {"kind": "embedding"}}, "cuda", (40 + 2000 + 60 * 4, 80, 40, 77 * 8 * 3 * 34)),
        ({"method": {"kind": "embedding"}, "model": {"compatibility": "sd-scripts-0.10"}}, "cuda",
         (2280, 80, (10 + 20 * 8) * 4, 77 * 8 * 3 * 34)),
    ],
)  # fmt: skip
def test_what_a_model_of_a_thousand_numbers_takes(ten, groups, device, plan):
    found = memory.memory_plan(job_of(**groups), replace(FACTS, device=device))
    processes = 1
    assert (found.weights, found.optimizer, found.gradients, found.activations) == tuple(
        each * processes for each in plan
    )


@pytest.mark.parametrize(
    ("groups", "late", "more"),
    [  # of weights and activations
        ({}, (), (0, 0)), ({}, (IMAGES,), (50 * 4, 4 * 128 * 64 * 64 * 4)), ({}, (CAPTIONS,), (60 * 2, 0)),
        ({"memory": {"mixed_precision": "bf16", "vae_precision": "bf16"}}, (IMAGES,), (100, 4 * 128 * 64 * 64 * 2)),
        ({"memory": {"mixed_precision": "bf16", "vae_precision": "fp32"}}, (IMAGES,), (200, 4 * 128 * 64 * 64 * 4)),
        ({"memory": {"mixed_precision": "bf16", "vae_batch_size": 3}}, (IMAGES,), (200, 3 * 4 * 128 * 64 * 64 * 4)),
        ({"memory": {"mixed_precision": "bf16", "vae_batch_size": 3, "cache_latents": "off"}}, (), (200, 4 * 128 * 64 * 64 * 4)),
        ({"dataset": {"folder": "a", "color_aug": True}}, (), (200, 4 * 128 * 64 * 64 * 4)),
        ({"dataset": {"folder": "a", "flip_aug": True}}, (), (0, 0)),
    ],
)  # fmt: skip
def test_what_encoding_takes_next_to_a_step(ten, groups, late, more):
    plain, found = (
        memory.memory_plan(job_of(**each), FACTS, encoded_in_steps=names) for each, names in (({}, ()), (groups, late))
    )
    assert (found.weights - plain.weights, found.activations - plain.activations) == more


@pytest.mark.parametrize(
    ("groups", "device", "images", "cache"),
    [  # 8 x 8 latents of 4 channels, mean and deviation in fp32: 2048 bytes
        ({}, "cuda", 10, 20480), ({"memory": {"cache_latents": "memory"}}, "cuda", 10, 0),
        ({"memory": {"cache_latents": "off"}}, "cuda", 10, 0), ({}, "cuda", (2 << 30) // 2048, 2 << 30),
        ({}, "cuda", (2 << 30) // 2048 + 1, 0), ({"memory": {"cache_latents": "device"}}, "cuda", 1 << 21, 1 << 32),
        ({"method": {"kind": "controlnet"}}, "cuda", 10, 20480),
        ({"method": {"kind": "controlnet"}}, "cpu", 10, 20480 + 10 * 3 * 64 * 64 // 6),
        ({"method": {"kind": "controlnet"}, "memory": {"cache_latents": "off"}}, "cpu", 10, 0),
    ],
)  # fmt: skip
def test_latents_on_the_device_are_counted_up_to_two_gibibytes(groups, device, images, cache):
    assert memory._cache_bytes(job_of(**groups), replace(FACTS, device=device, images=images)) == cache


def test_an_average_is_counted_where_it_lies(ten):
    plain = memory.memory_plan(job_of(**TUNE), FACTS).weights
    for method, more in (({}, 4000), ({"ema_device": "cpu"}, 0)):
        job = job_of(method={"kind": "fine_tune", "ema": True, **method})
        assert memory.memory_plan(job, FACTS).weights - plain == more


@pytest.mark.parametrize(("free", "device", "counts", "fits"), [(100_000, "cpu", False, True), (1_000, "cpu", True, False)]
                         + [(100_000, "cuda", True, False), (1 << 40, "cuda", True, True)])  # fmt: skip
def test_on_a_cpu_small_encoders_fit_without_counting(monkeypatch, free, device, counts, fits):
    passes = []
    plan = MemoryPlan(1 << 30, 0, 0, 0, 0, 0)
    monkeypatch.setattr(memory, "memory_plan", lambda *given, **more: passes.append(1) or plan)
    facts = replace(FACTS, device=device)
    assert memory.fits_with_encoders(job_of(), facts, free, (CAPTIONS,)) is fits and bool(passes) is counts
    edge = math.ceil(120 / 0.03)  # 120 bytes of encoders are within 3 percent
    passes.clear()
    for room, counted in ((edge, False), (edge - 1, True)):
        passes.clear()
        memory.fits_with_encoders(job_of(), replace(FACTS, device="cpu"), room, (CAPTIONS,))
        assert bool(passes) is counted


SIZES = TrainedSizes(trained=1000, item=2, model=3000, states=2)


@pytest.mark.parametrize(
    ("settings", "processes", "sizes"),
    [  # weights, gradients, optimizer, gathered, between_passes, memory, disk
        ({"zero_stage": 1}, 4, (3000, 2000 + 1000 + 2000, 3000, 0, 0, 0, 0)),
        ({"zero_stage": 2}, 4, (3000, 500 + 1000 + 2000, 3000, 0, 0, 0, 0)),
        ({"zero_stage": 3}, 4, (750, 3500, 3000, 3000, 3000, 0, 0)),
        ({"zero_stage": 2, "offload_optimizer_device": "cpu"}, 4, (3000, 2000, 0, 0, 0, 4 * (3000 + 1500), 0)),
        ({"zero_stage": 1, "offload_optimizer_device": "cpu"}, 4, (3000, 4000, 0, 0, 0, 4 * 4500, 0)),
        ({"zero_stage": 2, "offload_optimizer_device": "cpu", "fp16_master_weights_and_gradients": True}, 4,
         (3000, 2000, 0, 0, 0, 4 * (2500 + 1000), 0)),
        ({"zero_stage": 3, "offload_optimizer_device": "nvme"}, 4,
         (750, 2000, 0, 3000, 3000, 4 * (500 + 5 * 4 * 250), 4 * (3000 + 1000))),
        ({"zero_stage": 3, "offload_param_device": "cpu"}, 4, (0, 3500, 3000, 3000, 3000, 4 * 750, 0)),
        ({"zero_stage": 3, "offload_param_device": "nvme"}, 4,
         (0, 3500, 3000, 3000, 3000, 4 * 5 * 100_000_000 * 2, 4 * 750)),
    ],
)  # fmt: skip
def test_what_a_process_takes_with_deepspeed(settings, processes, sizes):
    found = process_sizes(ShardingSettings(deepspeed=True, **settings), SIZES, processes, processes)
    names = ("weights", "gradients", "optimizer", "gathered", "between_passes", "memory", "disk")
    assert tuple(getattr(found, name) for name in names) == sizes


def test_stage_3_updates_fp32_weights_in_place_and_buffers_have_limits(monkeypatch):
    wide = replace(SIZES, item=4)
    for settings, optimizer in (({"zero_stage": 3}, 2000), ({"zero_stage": 2}, 3000)):
        assert process_sizes(ShardingSettings(deepspeed=True, **settings), wide, 4, 4).optimizer == optimizer
    large = TrainedSizes(10**9, 2, 2 * 10**9, 2)
    found = process_sizes(ShardingSettings(deepspeed=True, zero_stage=3), large, 10**9, 1)
    assert (found.gathered, found.gradients) == (160_000_000, 2 + 4 + 100_000_000)
    for launched, local, here in ((1, "3", 5), (2, "3", 3), (2, "", 5)):
        monkeypatch.setattr(shares, "launched_processes", lambda launched=launched: launched)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
        assert shares.processes_here(job_of(memory={"num_processes": 5})) == here


def test_the_parts_of_a_plan_are_those_on_the_device(ten):
    plan = MemoryPlan(1, 2, 4, 8, 16, 32, memory=64, disk=128)
    assert plan.total == 63 and sum(plan.parts().values()) == 63
    one, two = (
        memory.memory_plan(
            job_of(memory={"mixed_precision": "bf16", "num_processes": count}), replace(FACTS, device="cpu")
        )
        for count in (1, 2)
    )
    assert two.weights == 2 * one.weights and two.optimizer == 2 * one.optimizer


# ---- advice


@pytest.mark.parametrize(
    ("groups", "facts", "paths"),
    [
        ({}, {}, "gradient_checkpointing fp8_base_unet rank resolution"),
        ({"memory": {"mixed_precision": "auto"}}, {}, "mixed_precision gradient_checkpointing fp8_base_unet rank resolution"),
        ({"memory": {"mixed_precision": "fp16"}}, {}, "gradient_checkpointing fp8_base_unet rank resolution"),
        ({"memory": {"mixed_precision": "bf16", "fp8_base": True, "cache_latents": "off", "attention": "sliced"}}, {},
         "cache_latents attention gradient_checkpointing rank resolution"),
        ({"memory": {"mixed_precision": "bf16", "cache_latents": "device", "gradient_checkpointing": True,
                     "checkpoint_blocks": "outer"}, "network": {"rank": 8}}, {},
         "cache_latents checkpoint_blocks fp8_base_unet resolution"),
        ({"network": {"rank": 9, "train_text_encoder": True}, "dataset": {"resolution": 64}}, {},
         "gradient_checkpointing fp8_base_unet train_text_encoder rank"),
        ({"dataset": {"train_batch_size": 3}}, {"batch": 2},
         "gradient_checkpointing fp8_base_unet train_batch_size+gradient_accumulation_steps rank resolution"),
        ({"dataset": {"train_batch_size": 3}}, {"batch": 1}, "gradient_checkpointing fp8_base_unet rank resolution"),
        (TUNE, {}, "gradient_checkpointing full_precision+mixed_precision resolution"),
        (TUNE | {"memory": NARROW}, {}, "gradient_checkpointing resolution"),
        (TUNE | {"optimizer": {"optimizer_type": "AdaFactor"}}, {},
         "fused_backward_pass gradient_checkpointing full_precision+mixed_precision resolution"),
        (TUNE | {"optimizer": {"optimizer_type": "AdaFactor"}, "memory": NARROW | {"fused_optimizer_groups": 2}}, {},
         "gradient_checkpointing resolution"),
        ({"method": {"kind": "dreambooth"}, "memory": NARROW}, {}, "gradient_checkpointing train_text_encoder resolution"),
        ({"method": {"kind": "embedding"}}, {}, "gradient_checkpointing fp8_base_unet resolution"),
        (TUNE | {"sharding": {"deepspeed": True}, "memory": NARROW | {"num_processes": 2}}, {},
         "gradient_checkpointing offload_optimizer_device zero_stage resolution"),
        (TUNE | {"sharding": {"deepspeed": True, "zero_stage": 3, "offload_optimizer_device": "cpu"},
                 "memory": NARROW | {"num_processes": 2}}, {}, "gradient_checkpointing resolution"),
        (TUNE | {"sharding": {"deepspeed": True}, "memory": NARROW}, {},
         "gradient_checkpointing offload_optimizer_device resolution"),
    ],
)  # fmt: skip
def test_what_could_save_memory_cheapest_first(monkeypatch, groups, facts, paths):
    monkeypatch.setattr(advice, "find_spec", lambda name: None)
    found = advice.candidates(job_of(**groups), replace(FACTS, **facts))
    assert " ".join("+".join(path.split(".")[1] for path in change) for _, change in found) == paths


def test_eight_bits_are_offered_where_the_package_is(monkeypatch):
    def offered(name, device):
        job = job_of(optimizer={"optimizer_type": name})
        return [
            change for _, change in advice.candidates(job, replace(FACTS, device=device)) if "optimizer" in str(change)
        ]

    monkeypatch.setattr(advice, "find_spec", lambda name: name == "bitsandbytes")
    assert offered("AdamW", "cuda:0") == [{"optimizer.optimizer_type": "AdamW8bit"}]
    assert offered("AdamW", "cpu") == offered("AdamW8bit", "cuda") == []


def test_another_resolution_moves_the_largest_bucket_with_it():
    facts = replace(FACTS, sides=(768, 384), batch=4)
    before = job_of(dataset={"resolution": 512, "train_batch_size": 4})
    for dataset, sides, batch in (
        ({"resolution": 256, "train_batch_size": 4}, (384, 192), 4),
        ({"resolution": 512, "train_batch_size": 2}, (768, 384), 2),
        ({"resolution": 512, "train_batch_size": 1}, (768, 384), 1),
        ({"resolution": 64, "train_batch_size": 4}, (96, 64), 4),
    ):
        found = advice.scaled_facts(facts, before, job_of(dataset=dataset))
        assert (found.sides, found.batch) == (sides, batch)
    assert advice.scaled_facts(replace(facts, batch=1), before, job_of(dataset={"train_batch_size": 1})).batch == 1


@pytest.mark.parametrize(
    ("groups", "paths"),
    [
        ({}, "fp8_base fp8_base_unet"), (TUNE, "full_precision fused_optimizer_groups"),
        (TUNE | {"optimizer": {"optimizer_type": "AdaFactor"}}, "full_precision fused_backward_pass"),
        (TUNE | {"optimizer": {"optimizer_type": "Prodigy"}}, "full_precision"),
        ({"memory": {"attention": "sdpa", "cache_latents": "off"}}, "attention cache_latents fp8_base fp8_base_unet vae_precision"),
    ],
)  # fmt: skip
def test_the_switches_of_a_job(groups, paths):
    always = {"memory.gradient_checkpointing", "memory.mixed_precision"}
    found = advice.switches(job_of(**groups))
    assert found.keys() - always == {f"memory.{name}" for name in paths.split()} and always <= found.keys()


def test_only_what_saves_three_percent_is_advised(monkeypatch):
    totals = {False: 1000, True: 970}
    monkeypatch.setattr(
        advice, "candidates", lambda job, facts: [("words", {"memory.gradient_checkpointing": True})] * 2
    )
    monkeypatch.setattr(
        advice, "memory_plan", lambda job, facts: SimpleNamespace(total=totals[job.memory.gradient_checkpointing])
    )
    assert [each.bytes for each in advice.advise(job_of(), FACTS)] == [30, 30]
    assert len(advice.advise(job_of(), FACTS, 1)) == 1
    totals[True] = 971
    assert advice.advise(job_of(), FACTS) == []


# ---- files, priors and proofs


@pytest.mark.parametrize(
    ("groups", "prior", "untrained"),
    [
        ({}, False, False), ({"method": {"prior": "model"}}, True, True),
        ({"method": {"prior": "model"}, "dataset": {"prior_loss_weight": 0}}, False, False),
        ({"method": {"prior": "model", "kind": "controlnet"}}, False, False),
        ({"dataset": {"sources": [{"folder": "a"}, {"folder": "b", "diff_output_preservation": True}]}}, False, True),
        ({"dataset": {"alpha_mask": True}, "noise": {"masked_prior_preservation_weight": 0.1}}, False, True),
        ({"dataset": {"alpha_mask": True}}, False, False),
    ],
)  # fmt: skip
def test_when_the_untrained_model_is_needed(groups, prior, untrained):
    job = job_of(**groups)
    assert (has_prior(job), needs_untrained_model(job)) == (prior, untrained)


@pytest.mark.parametrize(
    ("setting", "word", "caption"),
    [(None, None, ""), (" a dog ", "cat", "a dog"), (None, " cat", "cat"), ("", "cat", "cat")],
)
def test_the_class_caption_of_an_image(setting, word, caption):
    placed = SimpleNamespace(concept=SimpleNamespace(source=SimpleNamespace(class_word=word)))
    assert class_caption(job_of(method={"class_caption": setting}), placed) == caption


@pytest.mark.parametrize(
    ("step", "steps", "epoch", "epochs", "due"),
    [(6, 3, None, None, True), (7, 3, None, None, False), (6, None, 2, 1, True), (6, None, 3, 2, False), (6, None, 4, 2, True)]
    + [(6, None, None, 1, False), (6, None, None, None, False), (6, 4, 2, 2, True), (0, 3, None, None, True)],
)  # fmt: skip
def test_a_step_is_due_by_steps_or_by_the_epoch_that_ends_with_it(step, steps, epoch, epochs, due):
    assert _is_due(step, steps, epoch, epochs) is due


@pytest.mark.parametrize(
    ("minutes", "seconds", "due"),
    [(1, 60, True), (1, 59.9, False), (0, 1e9, False), (None, 1e9, False), (-1, 1e9, False)],
)
def test_a_timer_is_due_after_exactly_its_minutes(monkeypatch, minutes, seconds, due):
    clock = [100.0]
    monkeypatch.setattr("core.training.loop.timetable.time.monotonic", lambda: clock[0])
    timer = Timer(minutes)
    clock[0] += seconds
    assert timer.due is due
    timer.restart()
    assert not timer.due


def test_a_proof_says_what_differs():
    equal = Proof(10, 5, "a", "a", True)
    assert equal.equal and equal.report().splitlines()[-1] == "equal to the bit"
    for other in (replace(equal, resumed="b"), replace(equal, losses_equal=False)):
        assert not other.equal and "NOT equal" in other.report()
    named = replace(equal, resumed="b", steps=11, different=tuple("abcdefghijkl"))
    assert named.report().splitlines()[1].startswith("5 steps, stopped, 6 more steps:")
    assert named.report().endswith("different: a, b, c, d, e, f, g, h, i, j")
    assert _largest_difference({1: 2.0, 2: 4.0}, {1: 1.0, 2: 4.5}) == 0.5
    assert _largest_difference({1: 1.0}, {2: 1.0}) == _largest_difference({}, {}) == math.inf
    assert _largest_difference({1: 0.0}, {1: 1e-12}) == 1.0 and _largest_difference({1: -2.0}, {1: -1.0}) == 0.5


def test_the_content_of_a_state_is_compared_leaf_by_leaf():
    import torch

    found = dict(_hashes({"a": [torch.zeros(2), 1], "b": {"c": "x"}, "d": torch.zeros(0)}, ""))
    assert found.keys() == {"/a/0", "/a/1", "/b/c", "/d"}
    for other in ({"a": [torch.zeros(3)]}, {"a": [torch.zeros(2, dtype=torch.float64)]}, {"a": [torch.ones(2)]}):
        assert dict(_hashes(other, ""))["/a/0"] != found["/a/0"]
    assert dict(_hashes({"a": [torch.zeros(2)]}, ""))["/a/0"] == found["/a/0"]


@pytest.mark.parametrize(
    ("shapes", "family", "embedding", "code"),
    [
        ({"emb_params": (1, 8)}, "sd1", {}, None), ({"emb_params": (2, 8)}, "sd1", {}, "embedding.other-size"),
        ({"emb_params": (2, 8)}, "sd1", {"num_vectors_per_token": 2}, None), ({"emb_params": (1, 9)}, "sd1", {}, "embedding.other-size"),
        ({"x": (1, 8)}, "sd1", {}, "embedding.other-tensors"), ({"clip_l": (1, 8), "clip_g": (1, 16)}, "sdxl", {}, None),
        ({"clip_g": (1, 16)}, "sdxl", {}, None), ({"clip_g": (1, 8)}, "sdxl", {}, "embedding.other-size"),
        ({"emb_params": (1, 8)}, "sdxl", {}, "embedding.other-tensors"),
        ({"emb_params": (1, 8)}, "sd1", {"extended": True}, "embedding.other-tensors"),
        (dict.fromkeys(embedding_file.LAYERS, (1, 8)), "sd1", {"extended": True}, None),
        (dict.fromkeys(embedding_file.LAYERS[1:], (1, 8)), "sd1", {"extended": True}, "embedding.other-tensors"),
        (dict.fromkeys(embedding_file.LAYERS, (1, 16)), "sd1", {"extended": True}, "embedding.other-size"),
    ],
)  # fmt: skip
def test_the_vectors_of_an_embedding_to_start_from(monkeypatch, shapes, family, embedding, code):
    monkeypatch.setattr(embedding_file, "read_shapes", lambda path: shapes)
    monkeypatch.setattr(embedding_file, "family_of", lambda path, chosen: family)
    monkeypatch.setattr(embedding_file, "token_widths", lambda path: (8, 16))
    job = job_of(embedding=embedding)
    if code is None:
        embedding_file._check_vectors(job, None, None)
    else:
        with pytest.raises(ProblemsError) as caught:
            embedding_file._check_vectors(job, None, None)
        assert caught.value.codes == [code]


def placed(number, key, source="a", *, bucket=(64, 64), size=(64, 64), variant="", text="x", role="train", repeats=1):
    concept = SimpleNamespace(number=number, role=role, captions=CaptionSettings())
    image = SimpleNamespace(source=source, width=size[0], height=size[1])
    place = SimpleNamespace(bucket=bucket)
    return SimpleNamespace(
        concept=concept, key=key, image=image, placement=place, variant=variant, repeats=repeats,
        caption=SimpleNamespace(text=text),
    )  # fmt: skip


def test_metadata_counts_images_tags_and_buckets():
    some = [
        placed(0, "1", text="Fox, red, fox ,"), placed(0, "1", variant="768", text="other"), placed(0, "2", text="fox", repeats=1),
        placed(1, "3", "b", role="regularization", repeats=3, bucket=(64, 128), size=(64, 64)),
    ]  # fmt: skip
    one, two = {"n_repeats": 1, "img_count": 2}, {"n_repeats": 3, "img_count": 1}
    assert saved.folders_of(some) == {"a": one, "b": two}
    assert saved.folders_of(some, regularization=True) == {"b": two}
    assert saved.folders_of(some, regularization=False) == {"a": one}
    assert saved.tags_of(some) == {"a": {"fox": 2, "red": 1}, "b": {"x": 1}}
    found = saved.buckets_of([some[3], some[0], some[0], some[3]])
    assert found["buckets"] == {
        "0": {"resolution": [64, 64], "count": 2}, "1": {"resolution": [64, 128], "count": 2}
    }  # fmt: skip
    assert found["mean_img_ar_error"] == 0.25 and saved.buckets_of([])["mean_img_ar_error"] == 0


def test_metadata_without_settings_keeps_what_programs_need():
    kept = dict.fromkeys(saved.MINIMUM, "1")
    assert saved.minimal_metadata({**kept, "modelspec.title": "a", "ss_seed": "1", "x": "y"}) == {
        **kept,
        "modelspec.title": "a",
    }
    assert saved._schedule_metadata(job_of()) == {}
    assert saved._schedule_metadata(job_of(noise={"zero_terminal_snr": True})) == {"ss_zero_terminal_snr": "True"}
    about = {
        f"metadata_{name}": name
        for name in "title author description license tags usage_hint trigger_phrase merged_from preprocessor".split()
    }
    found = saved.user_metadata(job_of(saving=about | {"metadata_is_negative_embedding": True}), [])
    assert found == {f"modelspec.{name.removeprefix('metadata_')}": text for name, text in about.items()} | {
        "modelspec.is_negative_embedding": "true"
    }
    assert saved.user_metadata(job_of(), []) == {}


def test_methods_need_the_settings_of_their_group_for_the_count():
    assert memory._method_settings(job_of()).startswith('{"method": {"kind": "lora"}, "network": {')
    assert memory._method_settings(job_of(**TUNE)) == '{"method": {"kind": "fine_tune"}}'
    assert spec_of(job_of()).group == "network"
