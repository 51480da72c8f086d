"""Everything wrong is listed at once, with the fix."""

import pytest

from core.record.problems import ProblemsError
from core.settings.base import declared
from core.settings.check import build
from core.settings.flags import read_flags
from core.settings.job import GenerateJob, TrainJob
from core.settings.names import bad_name
from core.settings.rules import ineffective, set_without_effect, training_problems
from tests.refusals import problems_of


def test_unknown_names_wrong_types_and_ranges_are_listed_together_with_fixes():
    found = problems_of(
        TrainJob,
        {
            "noise": {"max_timestep": 5000, "max_timestp": 3, "min_snr_gamma": "5"},
            "optimizer": {"learning_rate": float("nan")},
            "nois": {},
            "network": {"network_dim": 4, "rank": True},
        },
        "presets/x.json",
    )
    by_path = {problem.where.removeprefix("presets/x.json, "): problem for problem in found}
    assert {path: problem.code for path, problem in by_path.items()} == {
        "noise.max_timestep": "settings.bad-value",
        "noise.max_timestp": "settings.unknown-name",
        "noise.min_snr_gamma": "settings.bad-value",
        "optimizer.learning_rate": "settings.bad-value",
        "nois": "settings.unknown-name",
        "network.network_dim": "settings.unknown-name",
        "network.rank": "settings.bad-value",
    }
    assert len(found) == 7 and all(problem.where.startswith("presets/x.json, ") for problem in found)
    for path, value in (
        ("noise.max_timestep", "5000"),
        ("noise.min_snr_gamma", '"5"'),
        ("optimizer.learning_rate", "not a number"),
        ("network.rank", "true"),
    ):
        title = next(entry.title for entry in declared(TrainJob) if entry.path == path)
        assert by_path[path].what == f"{title} is {value}"
    for path, meant in (("noise.max_timestp", "noise.max_timestep"), ("network.network_dim", "network.rank")):
        assert f"'{path}'" in by_path[path].what and f"'{meant}'" in by_path[path].fix
    assert "'noise'" in by_path["nois"].fix
    assert by_path["noise.max_timestep"].fix == "use a whole number, 1 to 1000 (timesteps)"


def test_a_text_too_short_or_too_long_is_told_with_its_bound():
    (found,) = problems_of(TrainJob, {"saving": {"output_name": ""}})
    assert (found.code, found.where) == ("settings.bad-value", "saving.output_name")
    assert found.what == "Output name is empty" and "one" in found.fix
    (found,) = problems_of(TrainJob, {"saving": {"output_name": "x" * 300}})
    assert (found.code, found.where) == ("settings.bad-value", "saving.output_name")
    assert "300" in found.what and "100" in found.fix


def test_a_name_like_no_other_is_not_guessed():
    assert [problem.fix for problem in problems_of(TrainJob, {"dataset": {"banana": 1}})] == ["remove it"]


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), "fast"])
def test_a_rate_that_is_no_number_or_infinite_is_refused(rate):
    assert len(problems_of(TrainJob, {"optimizer": {"learning_rate": rate}})) == 1


def test_a_union_is_reported_once():
    assert [problem.where for problem in problems_of(TrainJob, {"dataset": {"resolution": "big"}})] == [
        "dataset.resolution"
    ]


def test_a_bad_source_is_named_by_its_place():
    found = problems_of(TrainJob, {"dataset": {"sources": [{"folder": "a"}, {"foldr": "b"}]}})
    assert {problem.where for problem in found} == {"dataset.sources.1.folder", "dataset.sources.1.foldr"}


def test_flags_become_nested_values():
    words = (
        "--optimizer.learning_rate 2e-4 --dataset.folder=/a/b --dataset.resolution 512,768 --network.train_text_encoder "
        "--no-dataset.enable_bucket --noise.min_snr_gamma null --schedule.max_train_steps 4"
    ).split()
    values, problems = read_flags(TrainJob, words)
    assert not problems
    job = build(TrainJob, values)
    assert job.optimizer.learning_rate == 2e-4 and job.dataset.folder == "/a/b" and job.dataset.resolution == (512, 768)
    assert job.network.train_text_encoder and not job.dataset.enable_bucket and job.noise.min_snr_gamma is None


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("768;512", [768, 512]),
        ("768 512 x 640", [768, (512, 640)]),
        ('["768", "512x640"]', [768, (512, 640)]),
        ("768", [768]),
        ("768,512x640", [768, (512, 640)]),
        ("[768, [512, 640]]", [768, (512, 640)]),
        ("[]", []),
    ],
)
def test_further_resolutions_are_sizes_divided_by_commas_or_json(text, sizes):
    values, _ = read_flags(TrainJob, ["--dataset.more_resolutions", text])
    assert build(TrainJob, values).dataset.more_resolutions == sizes


def test_a_boolean_flag_takes_true_or_false_too():
    assert read_flags(TrainJob, ["--network.train_unet", "false"])[0] == {"network": {"train_unet": False}}


def test_wrong_flags_are_all_listed_with_the_nearest_name():
    _, problems = read_flags(
        TrainJob, "--network.network_dim 4 --optimizer.learning_rat 1 stray --dataset.folder".split()
    )
    assert [(problem.code, problem.where) for problem in problems] == [
        ("settings.unknown-name", "command line"),
        ("settings.unknown-name", "command line"),
        ("flags.stray-word", "command line"),
        ("flags.no-value", "command line"),
    ]
    facts = ("--network.rank", "--optimizer.learning_rate", "--group.name value", "--dataset.folder VALUE")
    assert all(fact in problem.fix for fact, problem in zip(facts, problems, strict=True))


@pytest.mark.parametrize(
    ("name", "of_lora", "of_lllite"),
    [
        ("network_dim", "network.rank", "lllite.hidden_dim"),
        ("network_dropout", "network.network_dropout", "lllite.dropout"),
        ("network_weights", "network.network_weights", "lllite.weights"),
    ],
)
def test_an_option_of_sd_scripts_leads_to_the_settings_of_the_method(name, of_lora, of_lllite):
    def meant(*words, method=""):
        (problem,) = read_flags(TrainJob, [*words, f"--{name}", "4"], method)[1]
        return problem.fix.partition("--")[2].rstrip("?")

    assert meant() == of_lora and meant("--method.kind", "lora", method="lllite") == of_lora
    assert meant("--method.kind", "lllite") == meant("--method.kind=lllite") == meant(method="lllite") == of_lllite


def test_loras_come_as_json_on_the_command_line():
    values, problems = read_flags(GenerateJob, ["--generate.loras", '[{"file": "a", "strength": 0.5}]'])
    assert not problems and build(GenerateJob, values).generate.loras[0].strength == 0.5


def test_negative_periods_are_said_and_treated_as_off():
    job = build(TrainJob, {"saving": {"save_every_n_steps": -5, "save_last_n": -1}})
    found = [problem for problem in training_problems(job) if problem.code == "saving.negative-interval"]
    assert [(problem.where, problem.level) for problem in found] == [
        ("saving.save_every_n_steps", "advice"),
        ("saving.save_last_n", "advice"),
    ]
    assert "-5" in found[0].what and "-1" in found[1].what


def test_nothing_to_train_is_an_error():
    off = build(TrainJob, {"network": {"train_unet": False}})
    zero = build(TrainJob, {"optimizer": {"learning_rate": 0}})
    for job, code in ((off, "training.nothing-to-train"), (zero, "learning-rate.all-zero")):
        assert [problem.level for problem in training_problems(job) if problem.code == code] == ["error"]


def test_settings_without_effect_say_why():
    reasons = ineffective(build(TrainJob, {"schedule": {"max_train_steps": 4, "max_train_epochs": 3}}))
    assert reasons["schedule.max_train_epochs"] == "ignored: steps are set"
    assert "network.conv_alpha" in reasons and "network.rank" not in reasons
    assert "optimizer.learning_rate" not in reasons and "memory.text_cache_bytes" not in reasons


def test_a_rate_that_no_part_takes_is_without_effect():
    job = build(TrainJob, {"optimizer": {"unet_lr": 1e-4, "learning_rate": 3e-4}})
    assert "optimizer.learning_rate" in ineffective(job)
    both = {"unet_lr": 1e-4, "text_encoder_lr": None}
    job = build(TrainJob, {"optimizer": both, "network": {"train_text_encoder": True}})
    assert "optimizer.learning_rate" not in ineffective(job), "the text encoder takes it"


def test_what_was_set_and_has_no_effect_is_named():
    job = build(TrainJob, {"schedule": {"max_train_steps": 4, "max_train_epochs": 3}})
    assert [problem.where for problem in set_without_effect(job)] == ["schedule.max_train_epochs"]
    assert set_without_effect(build(TrainJob, {})) == []
    job = build(TrainJob, {"network": {"kind": "lokr"}, "lokr": {"factor": 8}, "loha": {"use_tucker": True}})
    assert [problem.where for problem in set_without_effect(job)] == ["loha.use_tucker"]


@pytest.mark.parametrize("name", ["a/b", "..", "nul", "a\\b", "x:y", "", " a", "a.", "con.txt", "\x00"])
def test_names_that_some_system_refuses_are_refused(name):
    assert bad_name(name)


@pytest.mark.parametrize("name", ["glyph_style", "狐-2", "ü b", "a.b"])
def test_names_in_any_script_are_fine(name):
    assert bad_name(name) is None


def test_build_raises_with_every_problem():
    with pytest.raises(ProblemsError) as caught:
        build(TrainJob, {"network": {"rank": 0}, "noise": {"noise_offset": 2}})
    assert len(caught.value.problems) == 2


def test_what_has_no_effect_is_named_by_settings_that_exist_with_a_reason():
    known = {entry.path for entry in declared(TrainJob)}
    for job in (TrainJob(), build(TrainJob, {"dataset": {"enable_bucket": False, "dataset_class": "a.b.C"}})):
        reasons = ineffective(job)
        assert set(reasons) <= known and all(reason.startswith("ignored: ") for reason in reasons.values())


def test_a_setting_that_one_folder_uses_has_an_effect():
    off = {"validation": {"best_checkpoint": "off"}}
    quiet = ineffective(build(TrainJob, off | {"dataset": {"folder": "a"}}))
    folder = {
        "folder": "b",
        "role": "regularization",
        "train_batch_size": 2,
        "shuffle_caption": True,
        "enable_bucket": False,
        "validation_split": 0.1,
        "masked_loss": True,
        "conditioning_data_dir": "masks",
        "token_warmup_step": 5,
        "sidecars": "drawn",
    }
    used = ineffective(build(TrainJob, off | {"dataset": {"folder": "a", "sources": [folder]}}))
    freed = {
        "dataset.short_batches",
        "captions.keep_tokens",
        "captions.caption_separator",
        "captions.token_warmup_min",
        "captions.sentence_share",
        "dataset.face_crop_aug_range",
        "dataset.prior_loss_weight",
        "validation.validation_seed",
        "validation.validate_every_n_steps",
        "validation.validate_every_n_epochs",
        "validation.max_validation_steps",
        "noise.mask_mean",
        "noise.unmasked_weight",
        "noise.unmasked_probability",
        "noise.masked_prior_preservation_weight",
    }
    assert set(quiet) - set(used) == freed


@pytest.mark.parametrize(
    ("given", "facts", "fix"),
    [
        ({"weight": -1}, "item 1: Weight is -1", "use a number, 0 to 5"),
        ({"mode": "strict"}, 'item 1: Control mode is "strict"', "use one of balanced"),
        ({"file": None}, "item 1: ControlNet is null", "use text"),
        ({"weigth": 1}, "There is no setting 'controls.nets.0.weigth'", "did you mean 'controls.nets.0.weight'"),
    ],
)
def test_settings_of_list_items_are_named_with_what_they_take(given, facts, fix):
    (problem,) = problems_of(GenerateJob, {"controls": {"nets": [{"file": "a", **given}]}})
    assert facts in problem.what and problem.fix.startswith(fix) and problem.where.startswith("controls.nets")


@pytest.mark.parametrize(
    "path, value, facts, fix",
    [
        ("dataset.more_resolutions", [512, 7], " 2 is 7", "use 64 or more"),
        ("dataset.more_resolutions", [[7, 512]], " 1 is [7, 512]", "use"),
        ("samples.sample_prompts", [5], " 1 is 5", "use text"),
        ("optimizer.betas", 0.9, " is 0.9", "use two numbers"),
        ("optimizer.betas", [0.9], " is [0.9]", "use two numbers"),
        ("optimizer.betas", [0.9, 5], " is 5", "use numbers of less than 1"),
    ],
)
def test_values_of_lists_and_pairs_are_refused_in_words(path, value, facts, fix):
    group, name = path.split(".")
    (problem,) = problems_of(TrainJob, {group: {name: value}})
    title = next(entry.title for entry in declared(TrainJob) if entry.path == path)
    assert (problem.code, problem.where) == ("settings.bad-value", path)
    assert problem.what.startswith(title) and problem.what.endswith(facts) and problem.fix.startswith(fix)
    assert "constrained" not in f"{problem.what}{problem.fix}"


@pytest.mark.parametrize(
    ("item", "where", "fix"),
    [
        ({"folder": "a", "num_repeats": "x"}, "0.num_repeats", "use a whole number"),
        ({"folder": "a", "resolution": "x"}, "0.resolution", "use one number or two"),
        ({"folder": 5}, "0.folder", "use text"),
        ("a", "0", "use a JSON object"),
    ],
)
def test_dataset_folders_are_refused_in_words_at_their_place(item, where, fix):
    (problem,) = problems_of(TrainJob, {"dataset": {"sources": [item]}})
    assert problem.where == f"dataset.sources.{where}" and problem.fix.startswith(fix)
