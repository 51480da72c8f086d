"""What a training will take is known before it starts, and which switches would make it fit."""

from collections import Counter
from dataclasses import replace
from functools import cache
from math import prod

import pytest

from core.engine.execute import execute
from core.optimization.rounding import LARGEST
from core.record.problems import ProblemsError
from core.record.run_folder import RunFolder
from core.settings.check import build
from core.settings.flags import merge
from core.settings.job import TrainJob
from core.settings.methods import spec_of
from core.settings.presets.files import dump
from core.training.memory import activations
from core.training.memory.advice import advise, level_plans, switch_savings
from core.training.memory.plan import MemoryFacts, PartSize, facts_of, memory_plan
from tests.options import ADAFACTOR

GB = 1e9


@cache
def sizes(family: str) -> dict[str, PartSize]:
    """Of the published model: it is built once for all tests."""
    from core.families import family as module
    from core.families.part_shapes import make_empty

    parts = {}
    layout = module(family).layout
    for name in ("unet", "vae", *layout.text_encoders):
        config = layout.config(name)
        shapes = {key: tuple(value.shape) for key, value in make_empty(name, config).state_dict().items()}
        numbers = {key: prod(shape) for key, shape in shapes.items()}
        plain = sum(numbers[key] for key, shape in shapes.items() if len(shape) < 2 or "embedding" in key)
        counted = Counter(shapes.values())
        parts[name] = PartSize(sum(numbers.values()), plain, 0, max(numbers.values()), config, counted)
    return parts


def published(family: str, side: int, batch: int = 1) -> MemoryFacts:
    """The published model at this size on a GPU."""
    parts = sizes(family)
    return MemoryFacts(family, "cuda", parts, 2 * parts["unet"].numbers, (side, side), batch)


def short(facts: MemoryFacts) -> MemoryFacts:
    """With the numbers of the published model, and a pass through one block of its U-Net, which takes a tenth of the time."""
    blocks = {"down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"]}
    unet = facts.parts["unet"]
    unet = replace(unet, config=dict(unet.config) | blocks | {"block_out_channels": [320], "layers_per_block": 1})
    return replace(facts, parts=facts.parts | {"unet": unet})


def job_of(**groups) -> TrainJob:
    return build(TrainJob, {"memory": {"mixed_precision": "bf16"}, **groups})


def test_sd15_lora_at_512_fits_four_gigabytes():
    plan = memory_plan(job_of(), published("sd1", 512))
    assert plan.weights == pytest.approx(1.75 * GB, rel=0.1)
    assert 2.8 * GB < plan.total < 4 * GB


@pytest.mark.parametrize(
    ("groups", "trains"),
    [
        ({}, "network"),
        ({"network": {"train_unet": False}}, "text"),
        ({"method": {"kind": "fine_tune"}}, "weights"),
        ({"method": {"kind": "embedding"}}, "text"),
    ],
)
def test_the_pass_is_counted_for_what_trains(monkeypatch, groups, trains):
    passes = []
    monkeypatch.setattr(activations, "peak_bytes", lambda one, *more: passes.append(one) or 0)
    memory_plan(job_of(**groups), short(published("sd1", 512)))
    assert {one.trains for one in passes} == {trains}


def test_a_unet_whose_layers_do_not_fit_one_another_is_refused_in_words():
    """Each weight has the shape that its config says, so loading passes it."""
    facts = published("sd1", 64)
    unet = facts.parts["unet"]
    odd = replace(unet, config=dict(unet.config) | {"class_embeddings_concat": True})
    with pytest.raises(ProblemsError) as refused:
        memory_plan(job_of(), replace(facts, parts=facts.parts | {"unet": odd}))
    assert [problem.where for problem in refused.value.problems] == ["model.base_model"]


def test_a_whole_model_takes_sixteen_bytes_a_number_in_fp32():
    facts = short(published("sd1", 512))
    plan = memory_plan(job_of(method={"kind": "fine_tune"}), facts)
    numbers = facts.parts["unet"].numbers
    assert (plan.gradients, plan.optimizer) == (4 * numbers, 8 * numbers)
    assert plan.weights == 4 * numbers  # what autocast casts is given up while gradients come
    longer = memory_plan(job_of(method={"kind": "fine_tune"}, schedule={"gradient_accumulation_steps": 2}), facts)
    assert (longer.gradients, longer.weights) == (4 * numbers, 6 * numbers)  # and is cast again next to them


MASKED = {"dataset": {"alpha_mask": True}, "noise": {"masked_prior_preservation_weight": 1.0}}


@pytest.mark.parametrize(
    ("groups", "more", "device", "extra"),
    [
        ({}, {"method": {"ema": True}}, "cuda", 4),
        ({}, {"method": {"ema": True, "ema_device": "cpu"}}, "cuda", 0),
        ({}, {"method": {"ema": True, "ema_device": "cpu"}}, "cpu", 4),
        ({}, MASKED, "cuda", 0),
        ({"method": {"kind": "fine_tune"}}, {"method": {"ema": True}}, "cuda", 4),
        ({"method": {"kind": "fine_tune"}}, MASKED, "cuda", 2),
        ({"method": {"kind": "fine_tune"}}, {"noise": MASKED["noise"]}, "cuda", 0),
        (
            {"method": {"kind": "fine_tune"}},
            {"dataset": {"sources": [{"folder": "x", "custom_attributes": {"diff_output_preservation": True}}]}},
            "cuda",
            2,
        ),
    ],
)
def test_an_average_and_an_untrained_unet_are_counted(monkeypatch, groups, more, device, extra):
    """extra: bytes for each trained number, of the U-Net or of the LoRA in it"""
    monkeypatch.setattr(activations, "peak_bytes", lambda *more: 0)
    facts = replace(short(published("sd1", 512)), device=device)
    plain, job = job_of(**groups), job_of(**merge(groups, more))
    trained = sum(spec_of(job).trained_numbers(job, "sd1", facts.parts).values())
    assert memory_plan(job, facts).weights - memory_plan(plain, facts).weights == extra * trained


@pytest.mark.parametrize(
    ("method", "name", "low", "high"),
    [
        ("lora", "AdamW", 8, 8),
        ("lora", "SOAP", 100, 2000),  # two square matrices for each side: 8 * 320**2 / (320 * 16) of the smallest
        ("lora", "AdaFactor", 0.2, 4),
        ("fine_tune", "AdaFactor", 1, 2.67),  # 2.67 of a 3x3 convolution
        ("fine_tune", "Muon", 4, 4.01),
        ("controlnet", "AdaFactor", 1, 2.67),
    ],
)
def test_an_optimizers_state_is_counted_by_the_shapes_of_the_weights(monkeypatch, method, name, low, high):
    monkeypatch.setattr(activations, "peak_bytes", lambda *more: 0)
    facts = published("sd1", 512)
    job = job_of(method={"kind": method}, optimizer={"optimizer_type": name})
    numbers = sum(spec_of(job).trained_numbers(job, "sd1", facts.parts).values())
    assert low <= memory_plan(job, facts).optimizer / numbers <= high


def test_16_bit_weights_are_fp32_a_piece_at_a_time_while_they_step(monkeypatch):
    """Of a larger model LARGEST numbers at once, each with its gradient; the pass itself counts nothing here."""
    monkeypatch.setattr(activations, "peak_bytes", lambda *more: 0)
    facts = short(published("sd1", 512))
    narrow = {"mixed_precision": "bf16", "full_precision": "bf16"}
    assert facts.parts["unet"].numbers > LARGEST
    assert memory_plan(job_of(method={"kind": "fine_tune"}, memory=narrow), facts).activations == LARGEST * 2 * 4
    assert memory_plan(job_of(method={"kind": "fine_tune"}), facts).activations == 0
    came = job_of(method={"kind": "fine_tune"}, memory=narrow, optimizer={"optimizer_type": "CAME"})
    assert memory_plan(came, facts).activations == facts.parts["unet"].numbers * 2 * 4, "not stepped by parts"
    for kept, each in (({"mixed_precision": "bf16"}, 0), (narrow, 2)):  # bytes of a number that Kahan summation keeps
        plain, kahan = (
            memory_plan(job_of(method={"kind": "fine_tune"}, memory=kept | {"kahan_summation": on}), facts)
            for on in (False, True)
        )
        assert kahan.optimizer - plain.optimizer == each * facts.parts["unet"].numbers


@pytest.mark.slow
def test_a_step_within_the_backward_pass_takes_what_the_largest_tensor_takes():
    """Counted on a card that computes nothing (tests/card/sizes.py), 1024 px with checkpointing: 15.9 and 6.6 GB of 2**30 bytes."""
    facts = published("sdxl", 1024)
    small = {"mixed_precision": "bf16", "gradient_checkpointing": True, "fused_backward_pass": True}
    for memory, counted in ((small, 15.92), ({**small, "full_precision": "bf16"}, 6.63)):
        plan = memory_plan(job_of(method={"kind": "fine_tune"}, memory=memory, optimizer=ADAFACTOR), facts)
        assert plan.total - plan.spare == pytest.approx(counted * 2**30, rel=0.06)


@pytest.mark.slow
def test_each_switch_saves_where_it_acts():
    facts = published("sd1", 512, batch=2)
    plain = memory_plan(job_of(), facts)
    twice = memory_plan(job_of(memory={"mixed_precision": "bf16", "gradient_checkpointing": True}), facts)
    assert twice.activations < plain.activations / 2 and twice.weights == plain.weights
    facts = short(facts)
    plain = memory_plan(job_of(), facts)
    narrow = memory_plan(job_of(memory={"mixed_precision": "bf16", "fp8_base_unet": True}), facts)
    assert narrow.weights < 0.6 * plain.weights and narrow.activations == plain.activations
    products = memory_plan(job_of(memory={"mixed_precision": "bf16", "attention": "plain"}), facts)
    assert products.activations > 1.5 * plain.activations
    slim = memory_plan(job_of(method={"kind": "fine_tune"}, optimizer={"optimizer_type": "AdamW8bit"}), facts)
    each = 2 * (1 + 4 / 256)  # bytes of a weight's two moments, with the fp32 scale of each 256 numbers
    assert slim.optimizer == pytest.approx(facts.parts["unet"].numbers * each, rel=0.001)


@pytest.mark.slow
def test_three_switches_with_what_they_save_for_this_job():
    facts = published("sd1", 512, batch=4)
    job = job_of(dataset={"train_batch_size": 4, "folder": "x"}, memory={"mixed_precision": "no"})
    found = advise(job, facts)
    paths = [saving.path for saving in found]
    assert paths == ["memory.mixed_precision", "memory.gradient_checkpointing", "memory.fp8_base_unet"]
    assert found[0].bytes > 2 * GB and all(saving.bytes > 0 for saving in found)
    every = {saving.path: saving for saving in advise(job, facts, None)}
    assert every["dataset.train_batch_size"].also == (("schedule.gradient_accumulation_steps", 2),)


@pytest.mark.slow
def test_out_of_memory_names_the_switches_and_what_they_save(workspace, make_job, monkeypatch):
    import core.training.loop.passes as passes

    def fail(*given, **named):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(passes, "training_loss", fail)
    job = make_job(network={"rank": 64})
    state, words = execute("train", job, RunFolder.create(workspace.runs, "m", dump(job)), workspace, "cpu")
    assert state == "failed" and words.what == "The device ran out of memory"
    assert "saves about" in words.fix


@pytest.mark.slow
def test_the_plan_of_a_real_file_counts_its_weights(workspace, make_job):
    job = make_job()
    facts = facts_of(job, workspace, "cpu")
    from core.families import family

    assert facts.parts["unet"].numbers == sum(
        value.numel()
        for value in family(facts.family).load(job.model.base_model, parts=("denoiser",)).denoiser.state_dict().values()
    )
    plan = memory_plan(job, facts)
    assert set(plan.parts()) == {"weights", "optimizer", "gradients", "activations", "cache", "spare"}
    assert plan.total == sum(plan.parts().values())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "fine_tune"])
def test_each_place_of_the_slider_takes_no_more_than_the_one_before(kind):
    job = job_of(method={"kind": kind}, optimizer={"optimizer_type": "AdaFactor"})
    places = level_plans(job, published("sd1", 512))
    totals = [place.plan.total for place in places]
    assert totals == sorted(totals, reverse=True) and totals[-1] < 0.6 * totals[1]
    assert next(place.saved for place in places if place.level.number == 1) == 0


def test_each_switch_says_what_it_saves_whether_it_is_on_or_off():
    facts = short(published("sd1", 512, batch=8))
    off = switch_savings(job_of(), facts)
    on = switch_savings(job_of(memory={"mixed_precision": "bf16", "gradient_checkpointing": True}), facts)
    assert off["memory.gradient_checkpointing"] == on["memory.gradient_checkpointing"] > 0.5 * GB
    assert {"memory.fp8_base_unet", "memory.mixed_precision"} <= off.keys()
    assert "memory.full_precision" not in off


@pytest.mark.slow
def test_a_model_in_fp8_is_told_with_what_it_takes_while_it_is_loaded():
    """Where RAM is scarce it comes to the card in 16 bits and is made narrow there."""
    facts, small = published("sdxl", 512), {"mixed_precision": "bf16", "fp8_base_unet": True}
    small["gradient_checkpointing"] = True
    plan, scarce = (
        memory_plan(job_of(memory=small), facts),
        memory_plan(job_of(memory={**small, "lowram": True}), facts),
    )
    assert plan.total < 2 * facts.parts["unet"].numbers < scarce.total - scarce.spare
