"""What the form says beyond its fields: methods, recipes, optimizers, the curve of the rate."""

from __future__ import annotations

import pytest

from core.optimization.schedules import curve
from core.record.problems import ProblemsError
from core.settings.check import build
from core.settings.job import TrainJob
from core.settings.noise import NoiseSettings
from core.settings.optimization.optimizers import catalog
from core.settings.rules import ineffective, training_problems
from tabs.train import method_needs as needs
from tabs.train.sketches import GUESSED_STEPS, RateSketch, timestep_facts


def job(**groups) -> TrainJob:
    return build(TrainJob, groups)


def test_groups_without_use_for_the_method_are_folded_with_the_reason():
    lora, model, word = (job(method={"kind": kind}) for kind in ("lora", "fine_tune", "embedding"))
    assert needs.idle_group("embedding", needs.idle_fields(lora)).endswith("textual inversion")
    assert needs.idle_group("network", needs.idle_fields(lora)) == ""
    assert "a LoRA" in needs.idle_group("network", needs.idle_fields(model))
    assert "a LoRA" in needs.idle_group("network", needs.idle_fields(word))
    assert needs.idle_group("embedding", needs.idle_fields(word)) == ""
    assert "method.ema_decay" in needs.idle_fields(lora)
    assert "sharding.zero_stage" in needs.idle_fields(lora) and "sharding.deepspeed" not in needs.idle_fields(lora)
    assert "sharding.zero_stage" not in needs.idle_fields(job(sharding={"deepspeed": True}))
    assert "schedule.max_train_epochs" not in needs.idle_fields(job(schedule={"max_train_steps": 5}))  # stays, grayed


def test_what_only_another_family_has_is_grayed_by_the_family_of_the_file():
    found, given = job(), job(model={"family": "sd2"})
    assert needs.with_family(found, known("SD 1.x")).model.family == "sd1"
    assert needs.with_family(given, known("SDXL")) is given  # as the job says
    assert needs.with_family(found, known()) is found  # not known yet
    assert "model.clip_skip" not in ineffective(needs.with_family(found, known("SD 1.x")))
    assert "SDXL" in ineffective(needs.with_family(found, known("SDXL")))["model.clip_skip"]


def known(family: str = "", numbers: int = 0) -> dict:
    return {"family": family, "numbers": numbers}


def test_each_method_says_what_it_needs_first():
    assert needs.needs(job(), known("SD 1.x")) == {"text": "", "fields": []}
    without = needs.needs(job(method={"kind": "dreambooth"}), known("SDXL"))
    assert "Without regularization images" in without["text"]
    assert ["Add regularization images", "dataset.sources"] in without["fields"]
    held = job(method={"kind": "dreambooth"}, dataset={"sources": [{"folder": "a", "role": "regularization"}]})
    assert "Regularization images from 1 folder" in needs.needs(held, known("SD 1.x"))["text"]
    word = {"kind": "embedding"}
    assert "both text encoders" in needs.needs(job(method=word), known("SDXL"))["text"]
    assert "both text encoders" in needs.needs(job(method=word, model={"family": "sdxl"}), known())["text"]
    assert "both text encoders" not in needs.needs(job(method=word), known("SD 2.x"))["text"]
    assert "own caption" in needs.needs(job(method={"kind": "fine_tune"}), known())["text"]


@pytest.mark.parametrize(
    ("model", "precision", "size"),
    [
        # 859,520,964 numbers of the U-Net, 123,060,480 of the text encoder and 83,653,863 of the VAE
        (known("SD 1.x"), "fp16", "about 2.1 GB in fp16"),
        (known("SD 2.x"), "bf16", "about 2.6 GB in bf16"),
        (known("SDXL"), "fp16", "about 6.9 GB in fp16"),
        (known("SDXL"), "fp32", "about 13.9 GB in fp32"),
        (known("SD 1.x", 6_000_000), "fp32", "about 24.0 MB in fp32"),
        (known(), "fp16", "takes several GB"),
    ],
)
def test_the_size_of_a_saved_model_is_that_of_its_numbers(model, precision, size):
    for kind in ("dreambooth", "fine_tune"):
        assert size in needs.needs(job(method={"kind": kind}, saving={"save_precision": precision}), model)["text"]


def test_the_list_of_optimizers_holds_every_one_and_says_why_some_cannot_be_used():
    listed = [each for _, choices in needs.optimizer_choices() for each in choices]
    assert sorted(name for _, name in listed) == sorted(catalog())
    words = {name: said for said, name in listed}
    assert words["Prodigy"].startswith("Prodigy (prodigyopt, sets its own learning rate")
    refused = [entry for entry in catalog().values() if not entry.offered]
    assert refused and all(entry.reason in words[entry.name] for entry in refused)


def test_optimizers_stand_in_groups_and_what_cannot_run_here_stands_last():
    for device, place in (("cpu", "Usual"), ("mps", "Cannot be used here")):
        groups = {group: [name for _, name in choices] for group, choices in needs.optimizer_choices(device)}
        assert next(iter(groups)) == "Usual" and groups["Usual"][0] == "AdamW"
        assert list(groups)[-1] == "Cannot be used here"
        assert "AdamW8bit" in groups[place], f"bitsandbytes' 8-bit step has a kernel for {device} or not"


def test_a_recipe_is_offered_until_it_is_followed():
    before = job(optimizer={"optimizer_type": "Prodigy"})
    (offer,) = needs.recipe_offers(before)["optimizer.optimizer_type"]
    assert "Learning rate 1" in offer["sets"]
    after = needs.with_recipe(before, "optimizer.optimizer_type", offer["title"])
    assert after.optimizer.learning_rate == 1 and after.optimizer.optimizer_args["decouple"] is True
    assert needs.recipe_offers(after) == {}
    with pytest.raises(ProblemsError):
        needs.with_recipe(after, "optimizer.optimizer_type", offer["title"])


@pytest.mark.parametrize(("kind", "usual"), [("dreambooth", 2e-6), ("fine_tune", 5e-6), ("embedding", 5e-3)])
def test_a_rate_of_another_method_is_set_right_in_one_click(kind, usual):
    before = job(method={"kind": kind}, optimizer={"learning_rate": 1e-4})  # a LoRA's
    assert ["Learning rate", "optimizer.learning_rate"] in needs.needs(before, known("SD 1.x"))["fields"]
    (offer,) = needs.recipe_offers(before)["optimizer.learning_rate"]
    after = needs.with_recipe(before, "optimizer.learning_rate", offer["title"])
    assert after.optimizer.learning_rate == usual and needs.recipe_offers(after) == {}
    prodigy = job(method={"kind": kind}, optimizer={"optimizer_type": "Prodigy", "learning_rate": 1})
    assert "optimizer.learning_rate" not in needs.recipe_offers(prodigy)


def test_what_would_be_refused_is_folded_away_while_it_is_off():
    whole, sdxl = job(method={"kind": "fine_tune"}), job(method={"kind": "embedding"}, model={"family": "sdxl"})
    assert "memory.fp8_base" in needs.idle_fields(whole) and "memory.fp8_base" not in needs.idle_fields(job())
    assert "memory.fp8_base" not in needs.idle_fields(job(method={"kind": "fine_tune"}, memory={"fp8_base": True}))
    assert "embedding.extended" in needs.idle_fields(sdxl)
    assert {"optimizer.loraplus_lr_ratio", "dataset.network_multiplier"} <= set(needs.idle_fields(whole))
    assert "embedding.extended" not in needs.idle_fields(job(method={"kind": "embedding"}))


def test_arguments_and_the_product_of_rates_stand_below_their_fields():
    said = needs.hints(job(optimizer={"scale_lr": True}, dataset={"train_batch_size": 4}))
    assert "weight_decay=0.01" in said["optimizer.optimizer_args"]
    assert said["optimizer.scale_lr"] == "Learning rate 0.0001 x batch size 4 = 0.0004."


def test_folders_of_cards_are_named_below_the_empty_field():
    assert "dataset.folder" not in needs.hints(job())
    cards = [{"folder": f"set{number}", "enabled": number != 1} for number in range(6)]
    assert needs.hints(job(dataset={"sources": cards}))["dataset.folder"] == (
        "Trains on 5 folders of the Dataset tab: set0, set2, set3 and 2 more."
    )


NO_LANE = None  # in place of an engine whose light lane must not be needed


def test_a_field_names_the_values_that_folders_have_of_their_own():
    own = [
        {"folder": "a", "masked_loss": True, "keep_tokens": 2},
        {"folder": "b", "masked_loss": True, "train_batch_size": 3},
    ]
    off = {"folder": "c", "shuffle_caption": True, "enabled": False}
    said = needs.hints(job(dataset={"sources": [*own, off]}))
    assert said["dataset.masked_loss"] == "Set for 2 folders of the Dataset tab: on."
    assert said["captions.keep_tokens"] == "Set for 1 folder of the Dataset tab: 2."
    assert "3" in said["dataset.train_batch_size"] and "captions.shuffle_caption" not in said


def test_the_sketch_draws_the_numbers_that_train():
    trained = job(schedule={"lr_scheduler": "cosine", "lr_warmup_steps": 10}, network={"train_text_encoder": False})
    drawn = RateSketch(NO_LANE).facts(trained, 100)
    wanted = {step + 1: rates["unet"] for step, rates in curve(trained, 100, points=120)}
    assert drawn["total"] == 100 and drawn["steps"] == list(wanted)
    (line,) = drawn["lines"]
    assert line["name"] == "U-Net" and line["values"] == pytest.approx(list(wanted.values()), rel=1e-4)


def test_the_sketch_says_why_it_shows_nothing():
    sketch = RateSketch(NO_LANE)
    wrong = sketch.facts(job(schedule={"lr_scheduler": "piecewise_constant"}), 100)
    assert wrong["steps"] == [] and wrong["about"]
    assert f"{GUESSED_STEPS} steps" in sketch.facts(job(), 0)["about"]
    assert "no effect" in sketch.facts(job(optimizer={"optimizer_type": "AdamWScheduleFree"}), 100)["about"]


def test_the_timesteps_that_are_trained_are_drawn_unless_they_are_uniform():
    assert timestep_facts(NoiseSettings())["steps"] == []
    assert timestep_facts(NoiseSettings(timestep_sampling="beta", min_timestep=5, max_timestep=5))["steps"] == []
    facts = timestep_facts(NoiseSettings(timestep_sampling="low_noise", max_timestep=500))
    (line,) = facts["lines"]
    assert len(facts["steps"]) == len(line["values"]) == 50 and line["values"][-1] == 0
    assert line["values"][0] == pytest.approx(50 * (20 / 500) ** (1 / 3), rel=1e-2)  # of timesteps below 20


@pytest.mark.parametrize("place", [0, 1])
def test_a_constant_scheduler_with_warmup_offers_both_things_it_can_mean(place):
    before = build(TrainJob, {"schedule": {"lr_scheduler": "constant", "lr_warmup_steps": 100}})
    offers = needs.recipe_offers(before)["schedule.lr_scheduler"]
    assert len(offers) == 2
    after = needs.with_recipe(before, "schedule.lr_scheduler", offers[place]["title"])
    assert training_problems(before) != [] and "schedule.lr_scheduler" not in needs.recipe_offers(after)
    assert [each for each in training_problems(after) if each.where.startswith("schedule")] == []
    kept = (after.schedule.lr_scheduler, after.schedule.lr_warmup_steps)
    assert kept == (("constant_with_warmup", 100), ("constant", 0))[place]
