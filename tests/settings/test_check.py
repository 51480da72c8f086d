"""Everything wrong is listed at once, with the fix."""

import pytest

from core.record.problems import ProblemsError
from core.settings.base import declared
from core.settings.check import build, problems_of
from core.settings.flags import read_flags
from core.settings.job import GenerateJob, TrainJob
from core.settings.names import bad_name
from core.settings.rules import ineffective, set_without_effect, training_problems


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
    by_what = {problem.what: problem.fix for problem in found}
    assert by_what["Highest timestep is 5000"] == "use a whole number, 1 to 1000 (timesteps)"
    assert by_what["There is no setting 'noise.max_timestp'"] == "did you mean 'noise.max_timestep'?"
    assert 'Min-SNR gamma is "5"' in by_what
    assert "Trained rate is not a number" in by_what
    assert by_what["There is no setting 'nois'"] == "did you mean the group 'noise'?"
    assert by_what["There is no setting 'network.network_dim'"] == "did you mean 'network.rank'?"
    assert "Rank is true" in by_what
    assert len(found) == 7 and all("presets/x.json" in problem.where for problem in found)


def test_a_text_too_short_or_too_long_is_told_with_its_bound():
    (found,) = problems_of(TrainJob, {"saving": {"output_name": ""}})
    assert (found.what, found.fix) == ("Output name is empty", "write at least one letter")
    (found,) = problems_of(TrainJob, {"saving": {"output_name": "x" * 300}})
    assert found.what.startswith("Output name has 300 letters") and found.fix == "use 100 letters at most"


def test_a_name_like_no_other_is_not_guessed():
    assert [problem.fix for problem in problems_of(TrainJob, {"dataset": {"banana": 1}})] == ["remove it"]


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), -11])
def test_a_rate_that_is_no_number_infinite_or_out_of_range_is_refused(rate):
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
    [("768", [768]), ("768,512x640", [768, (512, 640)]), ("[768, [512, 640]]", [768, (512, 640)]), ("[]", [])],
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
    assert [problem.fix for problem in problems] == [
        "did you mean --network.rank?",
        "did you mean --optimizer.learning_rate?",
        "write settings as --group.name value",
        "write --dataset.folder VALUE",
    ]


def test_loras_come_as_json_on_the_command_line():
    values, problems = read_flags(GenerateJob, ["--generate.loras", '[{"file": "a", "strength": 0.5}]'])
    assert not problems and build(GenerateJob, values).generate.loras[0].strength == 0.5


def test_negative_periods_are_said_and_treated_as_off():
    job = build(TrainJob, {"saving": {"save_every_n_steps": -5, "save_last_n": -1}})
    said = [problem for problem in training_problems(job) if "treated as off" in problem.what]
    assert len(said) == 2 and all(problem.level == "advice" for problem in said)


def test_nothing_to_train_is_an_error():
    off = build(TrainJob, {"network": {"train_unet": False}})
    zero = build(TrainJob, {"optimizer": {"learning_rate": 0}})
    assert any(problem.what == "Nothing would be trained" for problem in training_problems(off))
    assert any("learning rate is 0" in problem.what for problem in training_problems(zero))


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
        "dataset.masked_loss",
        "noise.mask_mean",
    }
    assert set(quiet) - set(used) == freed


@pytest.mark.parametrize(
    "path, value, what, fix",
    [
        ("dataset.more_resolutions", [512, 7], "Further resolutions: number 2 is 7", "use 64 or more"),
        ("dataset.more_resolutions", [[7, 512]], "Further resolutions: number 1 is", "use"),
        ("optimizer.betas", 0.9, "Betas is 0.9", "use two numbers"),
        ("optimizer.betas", [0.9, 5], "Betas is 5", "use numbers of less than 1"),
    ],
)
def test_values_of_lists_and_pairs_are_refused_in_words(path, value, what, fix):
    group, name = path.split(".")
    (problem,) = problems_of(TrainJob, {group: {name: value}})
    assert problem.what.startswith(what) and problem.fix.startswith(fix)
    assert problem.where == path and "constrained" not in f"{problem.what}{problem.fix}"
