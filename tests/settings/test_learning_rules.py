"""Optimizers, learning rates and schedulers: every combination that sd-scripts refuses or warns of, with the fix."""

import re

import pytest

from core.settings.check import build
from core.settings.flags import merge, read_flags
from core.settings.job import TrainJob
from core.settings.optimization.optimizers import catalog
from core.settings.optimization.rates import effective_rates, scale_factor, scale_sentence
from core.settings.optimization.schedule import MINIMUM
from core.settings.presets.recipes import HUBER, changes, recipes
from core.settings.rules import ineffective, training_problems
from workshop import optimizer_docs


def job(optimizer=None, schedule=None, **groups):
    return build(TrainJob, {"optimizer": optimizer or {}, "schedule": schedule or {}, **groups})


def about(job, where):
    """(level, code) of the problems of the settings under `where`."""
    return [(p.level, p.code) for p in training_problems(job) if where in p.where]


def only(job, where, level, code, *facts):
    """The one problem of the settings under `where`: of this code, with these names and numbers in its message."""
    assert about(job, where) == [(level, code)]
    (problem,) = [p for p in training_problems(job) if where in p.where]
    assert problem.fix and all(fact in problem.what for fact in facts), problem
    return problem


TEXT = {"train_text_encoder": True}
PLAIN_ADAFACTOR = {"optimizer_type": "AdaFactor", "max_grad_norm": 0.0}
RELATIVE_WARMUP = "optimizer.adafactor-relative-warmup"


def test_the_defaults_need_no_word_about_training():
    assert [p for p in training_problems(job()) if p.where.startswith(("optimizer", "schedule"))] == []


def test_an_unknown_optimizer_and_unknown_arguments_are_named_with_the_nearest():
    near = only(job({"optimizer_type": "AdamW8bits"}), "optimizer_type", "error", "optimizer.unknown", "AdamW8bits")
    assert "'AdamW8bit'" in near.fix
    found = job({"optimizer_type": "Prodigy", "learning_rate": 1.0, "optimizer_args": {"d_coeff": 2.0}})
    assert "'d_coef'" in only(found, "optimizer_args", "error", "arguments.unknown", "d_coeff").fix
    own = job({"optimizer_type": "Lion", "eps": 1e-8})
    problem = only(own, "optimizer.eps", "error", "arguments.unknown", "Lion", "'eps'")
    assert "(null)" in problem.fix
    wrong = job({**PLAIN_ADAFACTOR, "eps": 1e-8})
    adafactor = only(wrong, "optimizer.eps", "error", "arguments.bad-value", "eps", "AdaFactor", "1e-08")
    assert "(null)" in adafactor.fix and "(1e-30, 0.001)" in adafactor.fix


def test_an_argument_given_twice_is_a_problem():
    both = job({"weight_decay": 0.1, "optimizer_args": {"weight_decay": 0.2}})
    only(both, "optimizer.weight_decay", "error", "optimizer.argument-twice", "weight_decay", "0.1", "0.2")


def test_adafactor_that_finds_its_rate_ignores_rates_and_curve_and_refuses_a_warm_up():
    found = job({**PLAIN_ADAFACTOR, "learning_rate": 0.5}, {"lr_scheduler": "cosine"})
    assert [p for p in training_problems(found) if p.where.startswith(("optimizer", "schedule"))] == []
    assert {"optimizer.learning_rate", "optimizer.unet_lr", "schedule.lr_scheduler"} <= set(ineffective(found))
    only(job(PLAIN_ADAFACTOR, {"lr_warmup_steps": 10}), "lr_warmup_steps", "error", RELATIVE_WARMUP)


def test_adafactor_with_a_given_rate_is_advised_its_curve_and_no_clipping():
    given = {"optimizer_type": "AdaFactor", "optimizer_args": {"relative_step": False, "clip_threshold": 2.0}}
    found = job(given, {"lr_scheduler": "cosine"})
    only(found, "max_grad_norm", "advice", "optimizer.adafactor-clipping")
    only(found, "lr_scheduler", "advice", "optimizer.adafactor-scheduler")
    only(found, "optimizer_args", "advice", "optimizer.adafactor-clip-threshold", "clip_threshold", "2.0")
    both = {"relative_step": False, "warmup_init": True}
    only(
        job({**PLAIN_ADAFACTOR, "optimizer_args": both}, {"lr_scheduler": "constant_with_warmup"}),
        "optimizer_args",
        "error",
        "optimizer.adafactor-warmup-init",
        "warmup_init",
    )


@pytest.mark.parametrize("arguments", [{}, {"relative_step": False}])
def test_adafactors_curve_is_for_adafactor_that_finds_its_rate(arguments):
    other = job({"optimizer_type": "AdamW"}, {"lr_scheduler": "adafactor"})
    only(other, "lr_scheduler", "error", "schedule.adafactor-without-optimizer", "AdaFactor")
    kept = job({**PLAIN_ADAFACTOR, "optimizer_args": arguments}, {"lr_scheduler": "adafactor"})
    assert ("error" in [level for level, _ in about(kept, "schedule.lr_scheduler")]) == bool(arguments)


@pytest.mark.parametrize(
    "name", ["DAdaptation", "DAdaptAdam", "DAdaptAdan", "DAdaptLion", "Prodigy", "pytorch_optimizer.Prodigy"]
)
def test_a_small_rate_for_one_that_finds_the_step_size_is_advised_against(name):
    small = job({"optimizer_type": name, "learning_rate": 0.1})
    advice = only(small, "optimizer.learning_rate", "advice", "learning-rate.unusual", "0.1")
    assert re.search(r"\b1\b", advice.fix) and name.rpartition(".")[2] in advice.what
    assert "adapts its learning rate" in advice.what
    assert about(job({"optimizer_type": name, "learning_rate": 1.0}), "optimizer") == []


def test_several_rates_are_an_error_where_the_library_refuses_them_and_else_advice():
    rates = {"learning_rate": 1.0, "text_encoder_lr": 0.5}
    only(
        job({"optimizer_type": "Prodigy", **rates}, network=TEXT),
        "unet_lr",
        "error",
        "learning-rate.one-for-all",
        "0.5 and 1",
    )
    only(
        job({"optimizer_type": "DAdaptAdaGrad", **rates}, network=TEXT),
        "unet_lr",
        "advice",
        "learning-rate.ratio-only",
        "0.5 and 1",
    )
    plus = {"optimizer_type": "Prodigy", "learning_rate": 1.0, "loraplus_lr_ratio": 16.0}
    only(job(plus), "loraplus_lr_ratio", "error", "learning-rate.one-for-all", "1 and 16")


@pytest.mark.parametrize(("family", "told"), [("sd1", True), ("sd2", True), ("sdxl", False), ("auto", False)])
def test_a_rate_of_a_second_text_encoder_trains_nothing_where_there_is_one(family, told):
    rates = {"unet_lr": 0.0, "text_encoder_lr": [0.0, 1e-4]}
    found = training_problems(job(rates, network=TEXT, model={"family": family}))
    assert ("learning-rate.all-zero" in [each.code for each in found]) is told


def test_a_schedule_free_optimizer_grays_the_curve_and_names_its_own_warm_up():
    found = job({"optimizer_type": "AdamWScheduleFree"}, {"lr_scheduler": "cosine", "lr_warmup_steps": "10%"})
    assert "warmup_steps=" in only(found, "lr_warmup_steps", "advice", "optimizer.schedule-free-warmup").fix
    assert {"schedule.lr_scheduler", "schedule.lr_warmup_steps", "schedule.lr_scheduler_args"} <= set(
        ineffective(found)
    )


def test_a_negative_rate_is_for_whole_models_only():
    only(job({"unet_lr": -1e-6}), "optimizer.unet_lr", "error", "learning-rate.negative")
    whole = job({"learning_rate": -1e-7}, method={"kind": "fine_tune"})
    codes = ("learning-rate.negative", "learning-rate.unlearning")
    found = [(p.code, p.level, p.where) for p in training_problems(whole) if p.code in codes]
    assert found == [("learning-rate.unlearning", "advice", "optimizer.learning_rate")]
    other = {"optimizer_type": "Lion", "learning_rate": 0.0, "unet_lr": -1e-6}
    assert about(job(other), "optimizer.unet_lr")[0] == ("error", "learning-rate.negative")


def test_a_warm_up_is_refused_or_explained_where_sd_scripts_raises_does_not_require_num_warmup_steps():
    only(job(schedule={"lr_warmup_steps": 5}), "lr_warmup_steps", "advice", "schedule.constant-warmup")
    assert about(job(schedule={"lr_warmup_steps": 5, "lr_scheduler": "constant_with_warmup"}), "lr_warmup") == []
    torch_curve = {"lr_scheduler_type": "StepLR", "lr_scheduler_args": {"step_size": 10}}
    assert about(job(schedule=torch_curve), "schedule") == []
    only(
        job(schedule={**torch_curve, "lr_warmup_steps": 5}),
        "lr_warmup_steps",
        "error",
        "schedule.torch-warmup",
        "StepLR does not require num_warmup_steps",
    )


def test_curves_say_what_they_lack():
    only(job(schedule={"lr_scheduler": "cosine_with_min_lr"}), "min_lr_ratio", "error", "schedule.no-min-lr")
    only(job(schedule={"lr_scheduler": "piecewise_constant"}), "lr_scheduler_args", "error", "schedule.no-step-rules")
    wrong = {"lr_scheduler": "piecewise_constant", "lr_scheduler_args": {"step_rules": "1:20,0.1:10,0.01"}}
    only(job(schedule=wrong), "lr_scheduler_args", "error", "schedule.step-rules", "1:20,0.1:10,0.01", "increase")
    only(job(schedule={"lr_scheduler": "warmup_stable_decay"}), "lr_decay_steps", "advice", "schedule.no-decay")
    long = {
        "lr_scheduler": "warmup_stable_decay",
        "lr_decay_steps": "60%",
        "lr_warmup_steps": 0.5,
        "max_train_steps": 100,
    }
    only(job(schedule=long), "lr_decay_steps", "advice", "schedule.long-decay", "50", "60", "100")
    whole = {"lr_scheduler": "linear", "lr_warmup_steps": "100%", "max_train_steps": 100}
    only(job(schedule=whole), "lr_warmup_steps", "advice", "schedule.long-warmup", "100")


def test_further_arguments_of_a_curve_are_checked():
    near = {"lr_scheduler": "polynomial", "lr_scheduler_args": {"lr_ends": 1e-6}}
    assert "'lr_end'" in only(job(schedule=near), "lr_scheduler_args", "error", "arguments.unknown", "'lr_ends'").fix
    shape = {"lr_scheduler": "warmup_stable_decay", "lr_decay_steps": 5, "lr_scheduler_args": {"decay_type": "sqrt"}}
    assert "1-sqrt" in only(job(schedule=shape), "lr_scheduler_args", "error", "arguments.bad-value", "decay_type").fix
    lowest = {"lr_scheduler": "cosine_with_min_lr", "lr_scheduler_args": {"min_lr": 1e-6}}
    assert not about(job(schedule=lowest), "lr_scheduler")
    twice = {**lowest, "lr_scheduler_min_lr_ratio": 0.1}
    only(job(schedule=twice), "lr_scheduler_min_lr_ratio", "error", "schedule.min-lr-twice")


def test_a_curve_of_torch_is_one_of_a_list():
    near = only(
        job(schedule={"lr_scheduler_type": "StepLr"}), "lr_scheduler_type", "error", "scheduler.unknown", "'StepLr'"
    )
    assert "StepLR" in near.fix
    code = only(
        job(schedule={"lr_scheduler_type": "os.system"}),
        "lr_scheduler_type",
        "error",
        "scheduler.not-listed",
        "'os.system'",
    )
    assert "--allow-module os" in code.fix
    lacking = job(schedule={"lr_scheduler_type": "StepLR"})
    only(lacking, "lr_scheduler_args", "error", "arguments.missing", "StepLR", "'step_size'")
    unknown = {"lr_scheduler_type": "StepLR", "lr_scheduler_args": {"step_size": 1, "gama": 0.5}}
    assert "'gamma'" in only(job(schedule=unknown), "lr_scheduler_args", "error", "arguments.unknown", "gama").fix


@pytest.mark.parametrize(
    ("curve", "used"),
    [
        ("linear", {"lr_scheduler_min_lr_ratio"}),
        ("cosine", {"lr_scheduler_min_lr_ratio", "lr_scheduler_args"}),
        ("cosine_with_restarts", {"lr_scheduler_min_lr_ratio", "lr_scheduler_num_cycles"}),
        ("polynomial", {"lr_scheduler_min_lr_ratio", "lr_scheduler_power", "lr_scheduler_args"}),
        ("inverse_sqrt", {"lr_scheduler_min_lr_ratio", "lr_scheduler_timescale"}),
        ("rex", {"lr_scheduler_min_lr_ratio", "rex_d"}),
        ("cosine_with_min_lr", {"lr_scheduler_num_cycles", "lr_scheduler_min_lr_ratio", "lr_scheduler_args"}),
        (
            "warmup_stable_decay",
            {"lr_scheduler_num_cycles", "lr_scheduler_min_lr_ratio", "lr_decay_steps", "lr_scheduler_args"},
        ),
        ("piecewise_constant", {"lr_scheduler_args"}),
    ],
)
def test_options_of_other_curves_are_grayed(curve, used):
    options = {"lr_scheduler_num_cycles", "lr_scheduler_power", "lr_scheduler_timescale", "lr_scheduler_min_lr_ratio"}
    options |= {"lr_decay_steps", "lr_scheduler_args", "rex_d"}
    grayed = ineffective(job(schedule={"lr_scheduler": curve}))
    assert {name for name in options if f"schedule.{name}" not in grayed} == used
    kohya = ineffective(job(schedule={"lr_scheduler": curve}, model={"compatibility": "sd-scripts-0.10"}))
    assert ("schedule.lr_scheduler_min_lr_ratio" in kohya) == (curve not in MINIMUM)


def test_scale_lr_multiplies_by_batch_accumulation_and_processes_and_shows_the_product():
    scaled = job(
        {"scale_lr": True, "text_encoder_lr": 5e-5},
        {"gradient_accumulation_steps": 2},
        dataset={"train_batch_size": 4},
        network=TEXT,
    )
    assert scale_factor(scaled, 3) == 24
    assert effective_rates(scaled, 3) == pytest.approx({"unet": 2.4e-3, "text_encoder": 1.2e-3})
    sentence = scale_sentence(scaled, 3)
    assert re.findall(r"[\d.]+", sentence) == ["0.0001", "4", "2", "3", "0.0024"]
    assert "accumulation 2" in sentence and "processes 3" in sentence
    assert scale_sentence(job(), 3) == "" and effective_rates(job(), 3) == {"unet": 1e-4}


def test_rates_of_two_text_encoders_and_of_lora_plus_are_listed_apart():
    own = job({"text_encoder_lr": [1e-5, 0.0], "loraplus_unet_lr_ratio": 16.0}, network=TEXT)
    assert effective_rates(own) == pytest.approx({"text_encoder": 1e-5, "unet": 1e-4, "unet plus": 1.6e-3})


@pytest.mark.parametrize("name", [entry.name for entry in catalog().values() if entry.offered and recipes(entry.name)])
def test_a_recipe_leads_to_a_job_without_a_word_about_its_optimizer_or_curve(name):
    for found in recipes(name):
        values = {"optimizer": {"optimizer_type": name}}
        for path, value in found.settings.items():
            group, setting = path.split(".")
            values = merge(values, {group: {setting: value}})
        made = build(TrainJob, values)
        assert [p for p in training_problems(made) if p.where.startswith(("optimizer", "schedule"))] == []
        assert changes(made, found) == {}
        assert found.why and found.title


def test_recipes_are_offered_where_the_defaults_do_not_fit():
    assert recipes("AdamW") == [] == recipes("torch.optim.RMSprop") == recipes("nothing")
    assert recipes("prodigy")[0].settings["optimizer.learning_rate"] == 1.0
    assert recipes("prodigy")[0].settings["optimizer.optimizer_args"]["d_coef"] == 2.0
    assert recipes("Lion")[0].settings["optimizer.learning_rate"] < 1e-4
    relative = [each.settings["optimizer.optimizer_args"]["relative_step"] for each in recipes("adafactor")]
    assert relative == [False, True]
    assert changes(TrainJob(), HUBER)["noise.loss_type"] == "smooth_l1"


def test_the_command_line_takes_arguments_as_sd_scripts_writes_them_and_as_json():
    words = "--optimizer.optimizer_args|betas=0.9,0.99 decouple=True|--schedule.lr_warmup_steps|10%|--optimizer.text_encoder_lr|1e-5,2e-5"
    values, problems = read_flags(TrainJob, words.split("|"))
    made = build(TrainJob, values)
    assert problems == [] and made.optimizer.optimizer_args == {"betas": [0.9, 0.99], "decouple": True}
    assert made.schedule.lr_warmup_steps == "10%" and made.optimizer.text_encoder_lr == (1e-5, 2e-5)
    values, _ = read_flags(
        TrainJob, ["--optimizer.optimizer_args", '{"d_coef": 2}', "--schedule.lr_warmup_steps", "0.1"]
    )
    made = build(TrainJob, values)
    assert made.optimizer.optimizer_args == {"d_coef": 2} and made.schedule.lr_warmup_steps == 0.1


def test_the_docs_list_the_optimizers_that_are_offered_and_why_others_are_not():
    assert dict(optimizer_docs.refused())["torch.optim.LBFGS"].endswith("(a closure)")
    assert optimizer_docs.TARGET.read_text("utf-8") == optimizer_docs.render(), "run ./launch.sh docs"
