"""The plain trainer trains what it says, and ours is held against it in the right direction; how fast either is belongs to no test."""

import math

import pytest
import torch

from core.families.targets import one_encoder_targets
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.optimization.rates import trains_text
from core.settings.rules import training_problems
from workshop.bench.compare import CASES, QUICK, STARTER, Spec, compare_rows, our_values, plain_specs, summary
from workshop.bench.plain_trainer import NEW_ID, PlainTrainer
from workshop.bench.run import known_part


def trainer(method, **more):
    return PlainTrainer(Spec(method, str(STARTER), 64, 2, rate=1e-3, **more))


@pytest.mark.slow
@pytest.mark.parametrize("method, text", [("lora", True), ("dreambooth", True), ("fine_tune", False)])
def test_what_trains_moves_and_losses_are_numbers(method, text):
    plain = trainer(method, text=text)
    before = [parameter.detach().clone() for parameter in plain.trainable]
    frozen = [part.clone() for part in plain.texts[0].parameters() if not part.requires_grad]
    batches = plain.batches()
    losses = [plain.step(*next(batches)) for _ in range(2)]
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    moved = [not torch.equal(a, b) for a, b in zip(before, plain.trainable, strict=True)]
    assert sum(moved) > 0.9 * len(moved)  # a frozen last layer of the text encoder's may have no gradient
    after = [part for part in plain.texts[0].parameters() if not part.requires_grad]
    assert all(torch.equal(a, b) for a, b in zip(frozen, after, strict=True))
    assert all(parameter.dtype == torch.float32 for parameter in plain.trainable)


@pytest.mark.slow
def test_only_the_new_word_of_the_table_moves():
    plain = trainer("embedding")
    before = plain.trainable[0].detach().clone()
    plain.step(*next(plain.batches()))
    changed = (before != plain.trainable[0]).any(1).nonzero().flatten().tolist()
    assert changed == [NEW_ID]


def test_its_lora_stands_beside_as_many_layers_as_ours():
    from diffusers import UNet2DConditionModel

    plain = trainer("lora")
    unet = UNet2DConditionModel.from_pretrained(STARTER / "unet")
    assert len(plain.trainable) == 2 * len(list(one_encoder_targets(unet)))


@pytest.mark.parametrize("case", [*CASES.values(), *QUICK.values()], ids=[*CASES, *QUICK])
def test_every_case_is_a_training_that_may_start_and_both_train_the_same(case):
    job = build(TrainJob, our_values(case, STARTER, STARTER / "images", 10))
    assert not [problem for problem in training_problems(job) if problem.level == "error"]
    for spec in plain_specs(case, STARTER, 10, "cpu").values():
        assert (spec.method, spec.size, spec.steps) == (job.method.kind, case.size, job.schedule.max_train_steps)
        assert spec.batch == job.dataset.train_batch_size and spec.rate == job.optimizer.learning_rate
        if case.method == "lora":
            assert (spec.text, spec.rank) == (job.network.train_text_encoder, job.network.rank)
        elif case.method != "embedding":
            assert (spec.text, spec.trainable) == (trains_text(job), job.memory.full_precision)


def test_ratios_are_ours_by_the_plain_trainers_from_the_better_rounds():
    case = CASES["sd15_lora"]
    found = summary(case, "cpu", [(3.0, 40), (2.0, 50)], {"model in fp32": [(4.0, 80), (5.0, 100)]})
    plain = found["plain"]["model in fp32"]
    assert (plain["time_ratio"], plain["memory_ratio"]) == (0.5, 0.5)
    rows = compare_rows({"sd15_lora": found})
    assert "goal: at most 0.7 of the time, 0.6 of the memory" in rows[0][1]
    assert "ours takes 0.50 of its time, 0.50 of its memory" in rows[1][1]
    card = summary(case, "cuda", [(3.0, 40)], {"as usual": [(4.0, 80)]})
    assert card["plain"]["as usual"]["memory_ratio"] is None  # resident memory says nothing of a card's


def test_one_case_can_be_asked_for_by_name():
    assert known_part("baseline") and known_part("baseline:sdxl_lora") and known_part("baseline:starter_lora")
    assert not known_part("baseline:sd16") and not known_part("sd15_lora")
