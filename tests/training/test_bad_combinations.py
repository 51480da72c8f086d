"""What sd-scripts ends with an AssertionError or a ValueError is told here with its fix, before anything is loaded."""

import pytest

from core.dataset.preflight import preflight
from core.families.locate import model_problems
from core.record.problems import ProblemsError
from core.training.checks.before_start import problems_with_model, problems_without_model

WHOLE = {"kind": "fine_tune"}
FACTOR = "AdaFactor"
ROWS = [
    # settings, where it is told, level
    ({"memory": {"cache_latents": "disk"}, "dataset": {"color_aug": True}}, "memory.cache_latents", "error"),
    ({"memory": {"cache_latents": "memory"}, "dataset": {"random_crop": True}}, "memory.cache_latents", "error"),
    (
        {"method": WHOLE, "memory": {"full_precision": "fp16", "mixed_precision": "no"}},
        "memory.full_precision, mixed_precision",
        "error",
    ),
    (
        {"method": WHOLE, "memory": {"full_precision": "bf16", "mixed_precision": "fp16"}},
        "memory.full_precision, mixed_precision",
        "error",
    ),
    ({"memory": {"mixed_precision": "fp16"}}, "memory.mixed_precision", "advice"),
    ({"noise": {"adaptive_noise_scale": 0.1}}, "noise.adaptive_noise_scale", "error"),
    ({"noise": {"scale_v_pred_loss_like_noise_pred": True}}, "noise.scale_v_pred_loss_like_noise_pred", "error"),
    ({"noise": {"v_pred_like_loss": 0.1}, "model": {"prediction": "v"}}, "noise.v_pred_like_loss", "error"),
    ({"noise": {"zero_terminal_snr": True}}, "noise.zero_terminal_snr", "advice"),
    ({"schedule": {"lr_warmup_steps": 2}}, "schedule.lr_warmup_steps", "advice"),
    (
        {"schedule": {"lr_warmup_steps": 2}, "optimizer": {"optimizer_type": FACTOR}},
        "schedule.lr_warmup_steps",
        "error",
    ),
    (
        {"schedule": {"lr_warmup_steps": 2, "lr_scheduler_type": "StepLR", "lr_scheduler_args": {"step_size": 2}}},
        "schedule.lr_warmup_steps",
        "error",
    ),
    ({"schedule": {"lr_scheduler": "adafactor"}}, "schedule.lr_scheduler", "error"),
    ({"method": WHOLE, "memory": {"fused_backward_pass": True}}, "memory.fused_backward_pass", "error"),
    (
        {
            "method": WHOLE,
            "memory": {"fused_backward_pass": True},
            "optimizer": {"optimizer_type": FACTOR},
            "schedule": {"gradient_accumulation_steps": 2},
        },
        "schedule.gradient_accumulation_steps",
        "error",
    ),
    (
        {
            "method": WHOLE,
            "memory": {"fused_optimizer_groups": 4},
            "optimizer": {"optimizer_type": "Prodigy", "learning_rate": 1.0},
        },
        "memory.fused_optimizer_groups",
        "error",
    ),
    ({"model": {"family": "sdxl"}}, "starter", "error"),
    ({"model": {"family": "sd2"}}, "starter", "error"),
    (
        {"dataset": {"enable_bucket": False, "face_crop_aug_range": (3.0, 1.0)}},
        "dataset.face_crop_aug_range",
        "error",
    ),
]


@pytest.mark.parametrize(("groups", "where", "level"), ROWS)
def test_each_is_told_where_it_is_with_its_fix(make_job, workspace, groups, where, level):
    job = make_job(**groups)
    found = problems_without_model(job, workspace, preflight(job, workspace), "cpu")
    found += [*model_problems(job.model, workspace), *problems_with_model(job, workspace)]
    (told,) = [problem for problem in found if problem.where.endswith(where)]
    assert told.level == level and told.fix and len(told.what) > 20
    assert [problem.where for problem in found if problem.level == "error"] == [told.where] * (level == "error")


def test_bucket_steps_and_a_folder_without_images_are_refused(make_job, workspace, tmp_path):
    with pytest.raises(ProblemsError, match="a multiple of 8"):
        make_job(dataset={"bucket_reso_steps": 20})
    report = preflight(make_job(dataset={"folder": str(tmp_path)}), workspace)
    assert [problem.where for problem in report.problems if problem.level == "error"] == [str(tmp_path)]


def test_texts_that_change_by_chance_are_cached_all_the_same(make_job, workspace):
    """sd-scripts refuses a cache of texts with shuffling, dropout and warm-up; here each variant is kept."""
    chance = {"shuffle_caption": True, "caption_dropout_rate": 0.1, "token_warmup_step": 2.0}
    job = make_job(captions=chance | {"caption_tag_dropout_rate": 0.1})
    found = problems_without_model(job, workspace, preflight(job, workspace), "cpu")
    assert [problem for problem in found if problem.level == "error"] == []
