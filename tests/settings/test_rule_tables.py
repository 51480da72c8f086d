"""Every rule of training settings at its edge: what is said and what is grayed out for which values, and what a group is called."""

import pytest

from core.settings.base import declared
from core.settings.check import build
from core.settings.flags import merge
from core.settings.job import GenerateJob, TrainJob
from core.settings.rules import ineffective, length_problems, training_problems
from core.settings.rules.network import FROM_FILE
from core.settings.rules.optimizer import SCHEDULER
from core.settings.values import summary


def nested(values):
    """{group: {name: value}} of {"group.name": value}."""
    groups = {}
    for path, value in values.items():
        group, name = path.split(".", 1)
        groups = merge(groups, {group: {name: value}})
    return groups


def job(**values):
    """A job of {"group__name": value}."""
    return build(TrainJob, nested({name.replace("__", "."): value for name, value in values.items()}))


def codes(job):
    return sorted(problem.code for problem in training_problems(job))


TUNE = {"method__kind": "fine_tune", "optimizer__learning_rate": 2e-6}
WORDS = {"method__kind": "embedding", "optimizer__learning_rate": 5e-3, "saving__output_name": "zkw"}
ADAFACTOR = {"optimizer__optimizer_type": "AdaFactor", "optimizer__max_grad_norm": 0}
TEXT_RATES = {"network__train_text_encoder": True, "optimizer__text_encoder_lr": [1e-4, 5e-5]}
FIXED = ADAFACTOR | {
    "optimizer__optimizer_args": {"relative_step": False},
    "schedule__lr_scheduler": "constant_with_warmup",
    "optimizer__learning_rate": 1e-4,
}
FOLDER = {"dataset__sources": [{"folder": "a"}]}
TWENTY_FIVE = ",".join(["4"] * 25)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, []),
        # images
        ({"dataset__folder": "a", "dataset__face_crop_aug_range": [4, 3.9]}, ["dataset.face-crop-range"]),
        ({"dataset__folder": "a", "dataset__face_crop_aug_range": [4, 4]}, []),
        ({"dataset__folder": "a", "dataset__network_multiplier": 0}, ["dataset.network-multiplier-zero"]),
        ({"dataset__folder": "a", "dataset__color_aug": True}, []),
        *[
            ({"dataset__folder": "a", "memory__cache_latents": how, f"dataset__{name}": True}, said)
            for name, said in (
                ("color_aug", ["dataset.augmentation-with-latent-cache"]),
                ("random_crop", ["dataset.augmentation-with-latent-cache"]),
                ("flip_aug", []),
            )
            for how in ("disk", "memory", "device")
        ],
        ({"dataset__folder": "a", "memory__cache_latents": "off", "dataset__color_aug": True}, []),
        (
            {"dataset__folder": "a", "memory__cache_latents": "disk", "dataset__face_crop_aug_range": [2, 4]},
            [],
        ),
        (
            {
                "dataset__folder": "a",
                "memory__cache_latents": "disk",
                "dataset__face_crop_aug_range": [2, 4],
                "dataset__enable_bucket": False,
            },
            ["dataset.augmentation-with-latent-cache"],
        ),
        # memory
        ({"memory__full_precision": "bf16", **TUNE}, []),
        ({"memory__full_precision": "bf16", "memory__mixed_precision": "bf16", **TUNE}, []),
        ({"memory__torch_compile": True}, []),
        ({"memory__torch_compile": True, "network__rank_dropout": 0.1}, ["memory.compile-with-dropout"]),
        ({"memory__torch_compile": True, "network__rank_dropout": 0.1, **TUNE}, []),
        ({"memory__fp8_base": True, **TUNE}, ["memory.fp8-full-model"]),
        ({"memory__fp8_base_unet": True, **TUNE}, ["memory.fp8-full-model"]),
        ({"memory__fp8_base_unet": True}, []),
        *[
            (
                {"memory__attention": name, "memory__gradient_checkpointing": checkpointing},
                ["memory.attention-without-checkpointing"] * (name in ("plain", "sliced") and not checkpointing),
            )
            for name in ("auto", "sdpa", "plain", "sliced")
            for checkpointing in (False, True)
        ],
        # full models
        ({**TUNE, "optimizer__learning_rate": 2e-5}, []),
        ({**TUNE, "optimizer__learning_rate": 2.1e-5}, ["learning-rate.high-full-model"]),
        ({**TUNE, "method__block_lr": [-1e-7] + [0] * 22}, ["learning-rate.unlearning"] * 2),
        ({**TUNE, "method__block_lr": [1e-6] * 23, "model__family": "sdxl"}, []),
        ({**TUNE, "method__block_lr": [1e-6] * 23, "model__family": "sd1"}, ["method.block-lr-count"]),
        ({**TUNE, "memory__fused_optimizer_groups": 4, "schedule__skip_non_finite": 1}, ["memory.fused-skip-non-finite"]),
        ({**TUNE, "memory__fused_optimizer_groups": 4, "memory__num_processes": 1}, []),
        ({**TUNE, "memory__fused_optimizer_groups": 4, "schedule__gradient_accumulation_steps": 1}, []),
        ({**TUNE, **FIXED, "optimizer__learning_rate": 1e-6, "memory__fused_backward_pass": True}, []),
        # networks
        ({"network__network_dropout": 0.5}, []),
        ({"network__network_dropout": 0.501}, ["network.dropout-high"]),
        ({"network__block_dims": ",".join(["1024"] * 25)}, []),
        ({"network__block_dims": ",".join(["1025"] * 25)}, ["network.block-not-a-rank"]),
        ({"network__block_dims": ",".join(["0"] * 24 + ["4"])}, []),
        ({"network__block_alphas": ",".join(["0.5"] * 25)}, []),
        ({"network__block_alphas": ",".join(["-0.5"] * 25)}, ["network.block-negative"]),
        ({"network__base_weights_multiplier": "1,2"}, []),
        ({"network__base_weights": ["a"], "network__base_weights_multiplier": "0"}, ["network.merge-multiplier-zero"]),
        ({"network__rank": 4, "network__alpha": 16}, []),
        ({"network__rank": 4, "network__alpha": 128}, ["network.alpha-high"]),
        ({"network__rank": 4, "network__alpha": 128, "network__block_dims": TWENTY_FIVE}, []),
        ({"network__conv_rank": 4, "network__conv_alpha": 32}, ["network.alpha-high"]),
        ({"network__mid_lr_weight": "1,1,1"}, []),
        ({"network__mid_lr_weight": "1,1"}, ["network.block-count"]),
        ({"network__mid_lr_weight": "0"}, []),
        ({"network__layer_dims": ["a=1024", "b=0"]}, []),
        ({"network__layer_dims": ["a=1025"]}, ["network.bad-layer-rank"]),
        ({"network__layer_dims": ["a=-1", "=4", "a", "a=b", "a=2.5"]}, ["network.bad-layer-rank"] * 5),
        ({"network__layers": ["a" * 500]}, []),
        ({"network__layers": ["a" * 501], "network__exclude_layers": ["("]}, ["network.bad-pattern"] * 2),
        ({"network__train_unet": False, "network__train_text_encoder": True}, []),
        # rates
        *[
            ({**TEXT_RATES, "model__family": family}, said)
            for family, said in (("sd1", ["learning-rate.one-encoder"]), ("sdxl", []), ("auto", []))
        ],
        ({"optimizer__learning_rate": 10}, ["learning-rate.unusual"]),
        ({"optimizer__optimizer_type": "Prodigy", "optimizer__learning_rate": 1, "optimizer__scale_lr": True},
         ["learning-rate.scaled-adaptive"]),
        ({"optimizer__scale_lr": True}, []),
        # AdaFactor
        (ADAFACTOR, []),
        (FIXED, []),
        (FIXED | {"optimizer__max_grad_norm": 1}, ["optimizer.adafactor-clipping"]),
        (FIXED | {"optimizer__optimizer_args": {"relative_step": False, "clip_threshold": 1.0}}, []),
        # lengths
        ({"schedule__lr_scheduler": "cosine", "schedule__lr_warmup_steps": 99, "schedule__max_train_steps": 100}, []),
        ({"schedule__lr_scheduler": "cosine", "schedule__lr_warmup_steps": 100, "schedule__max_train_steps": 100},
         ["schedule.long-warmup"]),
        *[
            (
                {
                    "schedule__lr_scheduler": "warmup_stable_decay",
                    "schedule__lr_warmup_steps": 40,
                    "schedule__lr_decay_steps": decay,
                    "schedule__max_train_steps": 100,
                },
                said,
            )
            for decay, said in ((60, []), (61, ["schedule.long-decay"]), (0, ["schedule.no-decay"]))
        ],
        *[
            ({"schedule__max_train_steps": 400, "method__ema": True} | {f"method__ema_{n}": v for n, v in ema.items()}, said)
            for ema, said in (
                ({}, []),
                ({"update_every": 200}, []),
                ({"update_every": 201}, ["method.ema-untrained"]),
                ({"update_every": 401}, ["method.ema-untrained"]),
                ({"warmup": False}, ["method.ema-untrained"]),
                ({"warmup": False, "decay": 0.995}, ["method.ema-untrained"]),
                ({"warmup": False, "decay": 0.99}, []),
            )
        ],
        *[
            (
                {
                    "optimizer__optimizer_type": name,
                    "optimizer__learning_rate": rate,
                    "schedule__lr_scheduler": "cosine",
                    "schedule__lr_warmup_steps": 5,
                    "schedule__lr_warmup_from_zero": from_zero,
                },
                said,
            )
            for name, rate in (("DAdaptSGD", 1), ("Rprop", 1e-4), ("pytorch_optimizer.Gravity", 1e-4))
            for from_zero, said in ((True, ["optimizer.warmup-from-zero"]), (False, []))
        ],
        *[
            ({f"schedule__{name}": scheduler, "schedule__lr_scheduler_args": arguments | {end: floor}}, said)
            for name, scheduler, end, arguments in (
                ("lr_scheduler", "cosine_with_min_lr", "min_lr", {}),
                ("lr_scheduler", "polynomial", "lr_end", {}),
                ("lr_scheduler_type", "CosineAnnealingLR", "eta_min", {"T_max": 9}),
            )
            for floor, said in ((1e-4, []), (2e-4, ["schedule.floor-above-rate"]))
        ],
        *[
            (
                {"schedule__lr_scheduler_type": "MultiStepLR", "schedule__lr_scheduler_args": {"milestones": steps}},
                said,
            )
            for steps, said in (([3, 6], []), ("3 6", ["arguments.bad-value"]), (3, ["arguments.bad-value"]))
        ],
        *[
            (
                {
                    "network__kind": kind,
                    "optimizer__optimizer_type": "Prodigy",
                    "optimizer__learning_rate": 1,
                    "optimizer__loraplus_lr_ratio": 16,
                },
                said,
            )
            for kind, said in (("loha", []), ("lora", ["learning-rate.one-for-all"]))
        ],
        *[
            ({"schedule__max_train_steps": 400, "captions__token_warmup_step": steps}, said)
            for steps, said in ((400, []), (0.9, []), (401, ["captions.long-token-warmup"]))
        ],
        *[
            ({"schedule__max_train_steps": 400, "method__stop_text_encoder_training": steps} | more, said)
            for steps, more, said in (
                (399, {"network__train_text_encoder": True}, []),
                (400, {"network__train_text_encoder": True}, ["method.text-encoder-stops-late"]),
                (400, {"network__train_text_encoder": False}, []),
            )
        ],
        *[
            ({"schedule__max_train_steps": 400} | more, said)
            for more, said in (
                ({"saving__save_every_n_steps": 400}, []),
                ({"saving__save_every_n_steps": 401}, ["saving.long-interval"]),
                ({"samples__sample_every_n_steps": 401}, []),
                ({"samples__sample_prompts": ["a fox"], "samples__sample_every_n_steps": 400}, []),
                ({"samples__sample_prompts": ["a fox"], "samples__sample_every_n_steps": 401}, ["saving.long-interval"]),
                ({"saving__save_n_evenly": 400}, []),
                ({"saving__save_n_evenly": 401}, ["saving.long-interval"]),
                ({"validation__validate_every_n_steps": 401}, []),
                ({"dataset__folder": "a", "validation__validation_split": 0.1, "validation__validate_every_n_steps": 401},
                 ["saving.long-interval"]),
            )
        ],
        ({"dataset__reg_data_dir": "r", "dataset__prior_loss_weight": 0}, ["dataset.prior-weight-zero"]),
        ({"captions__caption_dropout_rate": 0.9, "captions__caption_dropout_every_n_epochs": 2}, []),
        ({"captions__caption_dropout_rate": 1}, ["captions.all-dropped"]),
        ({"captions__caption_dropout_every_n_epochs": 1}, ["captions.all-dropped"]),
        ({"dataset__sources": [{"folder": "a", "loss_weight": 0}]}, ["dataset.loss-weight-zero"]),
        # saving
        ({"saving__save_every_minutes": 0}, ["saving.no-backups"]),
        ({"saving__save_every_minutes": None, "saving__save_every_n_epochs": 1}, ["saving.no-backups"]),
        ({"saving__save_every_minutes": None, "saving__save_every_n_steps": 5}, []),
        ({"saving__save_every_minutes": None, "saving__checkpoint_every_minutes": 5}, []),
        (
            {"saving__save_every_minutes": 0, "saving__save_every_n_steps": 5, "saving__save_state": False},
            ["saving.no-backups"],
        ),
        ({"saving__save_last_n_states": 1}, ["saving.one-state"]),
        ({"saving__save_last_n_states": 1, "saving__save_last_n_epochs_state": 1}, []),
        ({"saving__save_last_n_states": 1, "saving__save_last_n_steps_state": 1}, []),
        *[
            ({"samples__sample_prompts": ["a fox"], "samples__sample_at_first": False, **more}, said)
            for more, said in (
                ({}, ["samples.no-interval"]),
                ({"samples__sample_every_n_steps": 0}, ["samples.no-interval"]),
                ({"samples__sample_every_n_steps": 5}, []),
                ({"samples__sample_every_n_epochs": 1}, []),
                ({"samples__sample_every_minutes": 1}, []),
                ({"samples__sample_at_first": True}, []),
            )
        ],
        *[
            ({"dataset__resolution": side, "dataset__bucket_reso_steps": step, "dataset__enable_bucket": on}, said)
            for side, step, on, said in (
                (256, 64, True, []),
                (255, 64, True, ["dataset.coarse-buckets"]),
                ((512, 128), 64, True, ["dataset.coarse-buckets"]),
                (128, 64, False, []),
                (128, 32, True, []),
            )
        ],
        ({"saving__save_model_as": "source"}, ["saving.full-model-format"]),
        ({"saving__save_model_as": "diffusers"}, ["saving.full-model-format"]),
        ({"saving__save_model_as": "diffusers_safetensors"}, ["saving.full-model-format"]),
        ({"saving__save_model_as": "ckpt"}, []),
        ({"saving__save_model_as": "source", **TUNE}, []),
        ({"saving__save_model_as": "diffusers", **TUNE}, []),
        ({"saving__output_name": "a:b"}, ["settings.bad-name"]),
        ({"saving__output_name": "fox.safetensors"}, ["saving.name-with-ending"]),
        ({"saving__copy_to": "loras/fox.safetensors"}, ["saving.name-with-ending"]),
        *[({"logging__log_tracker_name": text}, ["settings.bad-name"]) for text in ("../a", "a/../../b", "/a", "D:a")],
        ({"logging__log_prefix": "..\\a", "logging__logging_dir": "logs"}, ["settings.bad-name"]),
        ({"logging__log_tracker_name": "a/b..c"}, []),
        ({"resume__resume_from_huggingface": True}, ["resume.no-address"]),
        ({"resume__resume_from_huggingface": True, "resume__resume": "a/b"}, []),
        ({"hub__huggingface_repo_id": "o.w-n_er/name"}, []),
        *[({"hub__huggingface_repo_id": text}, ["hub.bad-repository"]) for text in ("name", "a/b/c", "a b/c", "/b")],
        # validation
        *[
            (
                {
                    "dataset__sources": [{"folder": "a", "role": "validation"}, {"folder": "b"}],
                    "validation__best_checkpoint": best,
                    "validation__validate_every_n_epochs": epochs,
                    "validation__validate_every_n_steps": steps,
                },
                said,
            )
            for best, epochs, steps, said in (
                ("off", None, None, ["validation.never-measured"]),
                ("off", 1, None, []),
                ("off", None, 1, []),
                ("training", None, None, []),
            )
        ],
        ({"validation__best_checkpoint": "off", "validation__validate_every_n_epochs": None}, []),
        # textual inversion
        ({**WORDS}, ["embedding.no-token"]),
        ({**WORDS, "embedding__token_string": "zkw"}, []),
        ({**WORDS, "embedding__token_string": "a b"}, ["embedding.not-one-token"]),
        ({**WORDS, "embedding__token_string": "zkw", "embedding__init_word": "cat, dog"}, ["embedding.init-word-count"]),
        (
            {**WORDS, "embedding__token_string": "zkw, zkx", "embedding__init_word": "cat, dog"},
            ["embedding.captions-need-token"],
        ),
        ({**WORDS, "embedding__token_string": "zkw, zkx", "captions__trigger_word": "zkw"}, []),
        ({**WORDS, "embedding__token_string": "zkw, zkx", "captions__caption_template": "style"}, []),
        (
            {**WORDS, "embedding__token_string": "zkw, ZKW", "captions__trigger_word": "a"},
            ["embedding.token-twice"],
        ),
        (
            {**WORDS, "embedding__token_string": "zkw", "embedding__extended": True, "model__family": "sdxl"},
            ["embedding.xti-sdxl"],
        ),
        ({**WORDS, "embedding__token_string": "zkw", "embedding__extended": True, "model__family": "sd2"}, []),
    ],
)  # fmt: skip
def test_what_is_said_about_a_training(values, said):
    assert codes(job(**values)) == said


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"saving__save_every_n_epochs": 6}, "saving.long-interval"),
        ({"saving__save_n_epoch_ratio": 6}, "saving.long-interval"),
        ({"saving__save_n_epoch_ratio": 5, "saving__save_every_n_epochs": 6}, None),
        ({"samples__sample_prompts": ["a fox"], "samples__sample_every_n_epochs": 6}, "saving.long-interval"),
        ({"dataset__folder": "a", "validation__validation_split": 0.1, "validation__validate_every_n_epochs": 6}, "saving.long-interval"),
        ({"captions__caption_dropout_every_n_epochs": 6}, "saving.long-interval"),
        ({"method__stop_text_encoder_epochs": 6, "network__train_text_encoder": True}, "method.text-encoder-stops-late"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("length", [{}, {"schedule__max_train_steps": 400}])
def test_what_exceeds_the_epochs_is_named(values, named, length):
    assert [each.code for each in length_problems(job(**values, **length), 400, 5)] == [named] * (named is not None)
    assert length_problems(job(**values, **length), 400, 7) == []


def test_each_interval_below_0_is_off_and_said_so():
    periods = {
        f"saving.{name}"
        for name in "save_every_n_epochs save_every_n_steps save_every_minutes checkpoint_every_minutes save_n_evenly"
        " save_n_epoch_ratio save_last_n save_last_n_epochs save_last_n_steps save_last_n_epochs_state"
        " save_last_n_steps_state".split()
    }
    periods |= {f"samples.sample_every_{name}" for name in ("n_steps", "n_epochs", "minutes")}
    periods |= {"validation.validate_every_n_steps", "validation.validate_every_n_epochs", "validation.max_validation_steps"}  # fmt: skip
    for value, told in ((-1, periods), (0, set())):
        found = training_problems(build(TrainJob, nested(dict.fromkeys(periods, value))))
        assert {each.where for each in found if each.code == "saving.negative-interval"} == told


def test_the_same_error_has_another_level_where_a_rate_cannot_be_meant():
    for rate, level in ((10, "warning"), (10.1, "error")):
        (found,) = training_problems(job(optimizer__learning_rate=rate))
        assert (found.code, found.level) == ("learning-rate.unusual", level)


@pytest.mark.parametrize(
    ("step", "fix"), [({"dataset__bucket_reso_steps": 72}, "80"), ({"dataset__bucket_reso_steps": 64}, "")]
)
def test_sides_of_buckets_fit_the_family(monkeypatch, step, fix):
    from core.settings import model

    monkeypatch.setitem(model.FAMILIES, "sd1", model.FamilyTraits(size_step=16))
    found = [each for each in training_problems(job(model__family="sd1", **step)) if each.code == "dataset.size-step"]
    assert [each.fix for each in found] == ([f"use {fix}"] if fix else [])
    sized = {"dataset__resolution": [512, 520], "model__family": "sd1"}
    for bucketing in (True, False):
        (*found,) = training_problems(job(**sized, dataset__enable_bucket=bucketing))
        assert ["512 x 528" in each.fix for each in found] == [True] * (not bucketing)


BASES = {  # name -> what the job of a row has besides
    "lora": {},
    "tune": TUNE,
    "words": WORDS | {"embedding__token_string": "zkw"},
}
CAPTION_TAGS = "captions.keep_tokens captions.caption_separator"
EVERY_SAMPLE = [
    entry.path
    for entry in declared(TrainJob)
    if entry.group == "samples" and entry.name not in ("sample_prompts", "sample_prompts_file")
]
BLOCKS = "block_dims block_alphas conv_block_dims conv_block_alphas down_lr_weight mid_lr_weight up_lr_weight".split()


@pytest.mark.parametrize(
    ("values", "grayed"),
    [
        (TUNE | ADAFACTOR, "method.block_lr"),
        ({"method__kind": "controlnet"} | ADAFACTOR, "controlnet.control_net_lr"),
        ({"network__train_unet": False, "network__conv_rank": 4}, "network.conv_alpha"),
        ({"network__kind": "lokr", "lokr__full_matrix": True}, "lokr.decompose_both"),
        ({"network__kind": "ia3"}, "network.conv_rank"),
    ],
)
def test_what_nothing_reads_is_grayed(values, grayed):
    assert grayed in ineffective(job(**values))


@pytest.mark.parametrize("best", ["training", "off"])
def test_validation_without_images_has_that_reason(best):
    assert (
        "no validation images"
        in ineffective(job(validation__best_checkpoint=best))["validation.validate_every_n_steps"]
    )


@pytest.mark.parametrize("values", [{"train_text_encoder": True}, {"kind": "oft"}, {"train_unet": False}])
def test_the_rank_counts_where_layers_outside_the_block_lists_train(values):
    groups = {"network": {"block_dims": TWENTY_FIVE, **values}, "oft": {"enable_conv": True}}
    assert "network.rank" not in ineffective(build(TrainJob, groups))


@pytest.mark.parametrize(
    ("base", "values", "grayed", "freed"),
    [
        ("lora", {"captions__shuffle_caption": True}, "", CAPTION_TAGS),
        ("lora", {"captions__caption_tag_dropout_rate": 0.1}, "", f"{CAPTION_TAGS} captions.tag_dropout_mode"),
        ("lora", {"captions__token_warmup_step": 1}, "", f"{CAPTION_TAGS} captions.token_warmup_min"),
        ("lora", {"captions__trigger_word": "a"}, "", "captions.caption_separator"),
        ("lora", {"captions__keep_tokens_separator": "|"}, "", "captions.caption_separator"),
        ("lora", {"captions__secondary_separator": "|"}, "", "captions.caption_separator"),
        ("lora", {"captions__sidecars": "joined"}, "", "captions.caption_separator"),
        ("lora", {"captions__sidecars": "drawn"}, "", "captions.sentence_share"),
        ("lora", {"dataset__sources": [{"folder": "a", "metadata_file": "b"}]}, "", "captions.caption_separator"),
        ("lora", {"dataset__enable_bucket": False},
         "dataset.min_bucket_reso dataset.max_bucket_reso dataset.bucket_reso_steps dataset.bucket_no_upscale",
         "dataset.face_crop_aug_range"),
        ("lora", {"dataset__bucket_no_upscale": True}, "dataset.min_bucket_reso dataset.max_bucket_reso", ""),
        ("lora", {"dataset__more_resolutions": [768]}, "", "dataset.resolution_choice"),
        ("lora", {"dataset__train_batch_size": 2}, "", "dataset.short_batches"),
        ("lora", {"dataset__reg_data_dir": "a"}, "", "dataset.prior_loss_weight"),
        ("lora", {"dataset__conditioning_data_dir": "a"},
         "dataset.conditioning_data_dir dataset.conditioning_suffix", ""),
        ("lora", {"dataset__conditioning_suffix": "a"},
         "dataset.conditioning_data_dir dataset.conditioning_suffix", ""),
        ("lora", {"dataset__conditioning_suffix": "a", "dataset__masked_loss": True}, "",
         "noise.mask_mean noise.unmasked_weight noise.unmasked_probability noise.masked_prior_preservation_weight"),
        ("lora", {"dataset__alpha_mask": True}, "",
         "noise.mask_mean noise.unmasked_weight noise.unmasked_probability noise.masked_prior_preservation_weight"),
        ("lora", {"memory__cache_latents": "off"}, "memory.npz_caches", ""),
        ("lora", {"validation__best_checkpoint": "off"}, "validation.validation_seed", ""),
        ("lora", {"validation__validation_split": 0.1}, "",
         "validation.validate_every_n_steps validation.validate_every_n_epochs validation.max_validation_steps"),
        ("lora", {"validation__validation_split": 0.1, "validation__best_checkpoint": "off",
                  "validation__validate_every_n_epochs": None}, "",
         "validation.validate_every_n_steps validation.validate_every_n_epochs"),
        ("lora", {"network__conv_rank": 4}, "", "network.conv_alpha"),
        ("lora", {"network__conv_block_dims": TWENTY_FIVE}, "network.conv_rank", "network.conv_alpha"),
        ("lora", {"network__conv_rank": 4, "network__conv_block_alphas": TWENTY_FIVE}, "", ""),
        ("lora", {"network__block_dims": TWENTY_FIVE, "network__block_alphas": TWENTY_FIVE},
         "network.rank network.alpha", ""),
        ("lora", {"network__block_alphas": TWENTY_FIVE, "network__layer_dims": ["attn=2"]}, "", ""),
        ("words", {"captions__caption_template": "style", "dataset__sources": [{"folder": "a"}]},
         "captions.caption_prefix captions.caption_suffix", "captions.caption_separator"),
        ("words", {"captions__caption_template": "style", "embedding__token_string": "zkw, zkx",
                   "dataset__sources": [{"folder": "a"}]}, "", ""),
        ("lora", {"network__up_lr_weight": "1"}, "", "network.block_lr_zero_threshold"),
        ("lora", {"network__train_text_encoder": True}, "memory.text_cache_bytes",
         "optimizer.text_encoder_lr optimizer.loraplus_text_encoder_lr_ratio method.stop_text_encoder_training"
         " method.stop_text_encoder_epochs"),
        ("lora", {"network__train_text_encoder": True, "network__train_unet": False},
         "memory.text_cache_bytes optimizer.unet_lr optimizer.loraplus_unet_lr_ratio network.conv_rank network.train_norm "
         + " ".join(f"network.{name}" for name in BLOCKS),
         "optimizer.text_encoder_lr optimizer.loraplus_text_encoder_lr_ratio method.stop_text_encoder_training"
         " method.stop_text_encoder_epochs"),
        ("lora", {"network__network_weights": "a"}, "network.initialization",
         "network.dim_from_weights"),
        ("lora", {"network__network_weights": "a", "network__dim_from_weights": True},
         "network.initialization " + " ".join(f"network.{name}" for name in FROM_FILE if name != "conv_alpha"),
         "network.dim_from_weights"),
        ("lora", {"optimizer__unet_lr": 1e-4}, "optimizer.learning_rate", ""),
        ("lora", {"optimizer__loraplus_unet_lr_ratio": 2}, "optimizer.loraplus_lr_ratio", ""),
        ("lora", ADAFACTOR,
         "optimizer.learning_rate optimizer.unet_lr optimizer.scale_lr optimizer.loraplus_lr_ratio"
         " optimizer.loraplus_unet_lr_ratio network.down_lr_weight network.mid_lr_weight network.up_lr_weight"
         " schedule.lr_scheduler schedule.lr_scheduler_type schedule.lr_scheduler_steps", ""),
        ("lora", FIXED, "", ""),
        ("lora", {"noise__min_timestep": 5, "noise__max_timestep": 5},
         "noise.timestep_sampling noise.timestep_shift noise.stratified_timesteps", ""),
        ("lora", {"memory__mixed_precision": "bf16", "memory__vae_precision": "fp16"}, "memory.allow_tf32", ""),
        ("lora", {"memory__mixed_precision": "bf16"}, "", ""),
        ("lora", {"memory__mixed_precision": "no", "memory__vae_precision": "fp16"}, "", ""),
        ("lora", {"memory__fp8_base": True}, "memory.fp8_base_unet", "memory.lowram"),
        ("lora", {"samples__sample_prompts_file": "a"}, "", " ".join([*EVERY_SAMPLE, "memory.lowram"])),
        ("lora", {"samples__sample_prompts": ["a"], "samples__sample_every_n_epochs": 1}, "",
         " ".join([*(path for path in EVERY_SAMPLE if path != "samples.sample_every_n_steps"), "memory.lowram"])),
        ("lora", {"samples__sample_prompts": ["a"], "samples__guidance_scale": 1}, "",
         " ".join([*(path for path in EVERY_SAMPLE if path != "samples.negative_prompt"), "memory.lowram"])),
        ("lora", {"samples__sample_prompts": ["a --l 7"], "samples__guidance_scale": 1}, "", " ".join([*EVERY_SAMPLE, "memory.lowram"])),
        ("lora", {"saving__save_every_n_epochs": 1}, "", "saving.save_last_n_epochs"),
        ("lora", {"saving__save_n_epoch_ratio": 1}, "", "saving.save_last_n_epochs"),
        ("lora", {"saving__save_n_epoch_ratio": 1, "saving__save_every_n_epochs": 1}, "saving.save_every_n_epochs",
         "saving.save_last_n_epochs"),
        ("lora", {"saving__save_every_n_steps": 1}, "", "saving.save_last_n_steps"),
        ("lora", {"saving__save_n_evenly": 1}, "", "saving.save_last_n_steps"),
        ("lora", {"saving__checkpoint_every_minutes": 1}, "", "saving.save_last_n_steps"),
        ("lora", {"saving__save_state": False}, "", "saving.save_state_on_train_end"),
        ("lora", {"saving__save_last_n_steps_state": 1}, "saving.save_last_n_states", ""),
        ("lora", {"saving__no_metadata": True}, "saving.training_comment", ""),
        ("lora", {"resume__initial_step": 0}, "resume.initial_epoch", "resume.skip_until_initial_step"),
        ("lora", {"resume__initial_epoch": 1}, "", "resume.skip_until_initial_step"),
        ("lora", {"schedule__lr_warmup_steps": 1}, "", "schedule.lr_warmup_from_zero"),
        ("lora", {"schedule__lr_scheduler_steps": 1}, "", "schedule.lr_scheduler_after"),
        ("lora", {"schedule__max_train_steps": 1}, "schedule.max_train_epochs", ""),
        ("lora", {"schedule__max_train_steps": 1, "schedule__max_train_epochs": 1,
                  "model__compatibility": "sd-scripts-0.10"}, "schedule.max_train_steps", ""),
        ("lora", {"schedule__lr_scheduler_type": "StepLR"}, "schedule.lr_scheduler", "schedule.lr_scheduler_args"),
        ("lora", {"optimizer__optimizer_type": "AdamWScheduleFree"},
         "schedule.lr_scheduler schedule.lr_scheduler_type schedule.lr_scheduler_steps schedule.lr_warmup_steps", ""),
        ("lora", {"hub__huggingface_repo_id": "a/b"}, "",
         "hub.huggingface_repo_type hub.huggingface_path_in_repo hub.huggingface_repo_visibility hub.async_upload"
         " hub.save_state_to_huggingface"),
        ("lora", {"logging__log_with": "none"},
         "logging.logging_dir logging.log_tracker_name logging.log_tracker_config logging.log_config", ""),
        ("lora", {"model__family": "sd2"}, "", ""),
        ("lora", {"model__family": "sd1"}, "saving.sd2_projections", ""),
        ("lora", {"model__family": "sdxl"}, "model.clip_skip saving.sd2_projections", ""),
        ("lora", {"method__prior": "model"}, "", "method.class_caption dataset.prior_loss_weight"),
        ("words", {"method__prior": "model"}, "", ""),
        ("tune", {"method__prior": "model"}, "", "method.class_caption dataset.prior_loss_weight"),
        ("tune", {"memory__fp8_base": True}, "", "memory.fp8_base memory.lowram"),
        ("tune", {"method__block_lr": [1e-6] * 25}, "optimizer.unet_lr optimizer.learning_rate", ""),
        ("tune", {"method__block_lr": [1e-6] * 25, "method__train_text_encoder": "yes"}, "optimizer.unet_lr memory.text_cache_bytes",
         "optimizer.text_encoder_lr method.stop_text_encoder_training method.stop_text_encoder_epochs"),
        ("tune", {"method__stop_text_encoder_training": 0}, "", ""),
        ("tune", {"method__train_text_encoder": "yes", "method__stop_text_encoder_training": 0}, "",
         "method.stop_text_encoder_training method.stop_text_encoder_epochs"),
        ("tune", {"sharding__deepspeed": True, "sharding__zero_stage": 2}, "",
         "sharding.zero_stage sharding.offload_optimizer_device sharding.offload_param_device"
         " sharding.fp16_master_weights_and_gradients"),
        ("words", {"embedding__embedding_weights": "a"}, "embedding.init_word", ""),
        ("words", {"model__family": "sdxl"}, "embedding.extended model.clip_skip", ""),
        ("words", {"model__family": "sdxl", "embedding__extended": True}, "model.clip_skip", ""),
    ],
)  # fmt: skip
def test_what_is_grayed_and_what_is_freed(base, values, grayed, freed):
    before, now = (set(ineffective(job(**groups))) for groups in (BASES[base], BASES[base] | values))
    assert (now - before, before - now) == (set(grayed.split()), set(freed.split()))


def test_a_schedule_free_optimizer_and_a_file_without_metadata_gray_all_that_they_do_not_use():
    free = ineffective(job(optimizer__optimizer_type="AdamWScheduleFree"))
    assert len(SCHEDULER) == 13 and {f"schedule.{name}" for name in SCHEDULER} <= free.keys()
    relative = ineffective(job(**ADAFACTOR, schedule__lr_warmup_steps=1))
    assert {f"schedule.{name}" for name in SCHEDULER} - relative.keys() == {"schedule.lr_warmup_steps"}
    metadata = {entry.path for entry in declared(TrainJob) if entry.path.startswith("saving.metadata_")}
    for form in ("ckpt", "pt"):
        gray = ineffective(job(saving__save_model_as=form)).keys()
        assert metadata | {"saving.training_comment", "saving.no_metadata"} <= gray
    assert len(metadata) == 11 and not metadata & ineffective(job()).keys()


@pytest.mark.parametrize(
    ("group", "values", "words"),
    [
        ("method", {}, "LoRA: small adapter file"),
        ("method", {"method__train_text_encoder": "yes", "method__ema": True},
         "LoRA: small adapter file, text encoder too, EMA"),
        ("model", {}, "own VAE"),
        ("model", {"model__vae": "a", "model__family": "sdxl", "model__prediction": "v", "model__clip_skip": 2},
         "VAE a, family sdxl, v prediction, clip skip 2"),
        ("model", {"model__clip_skip": 1}, "own VAE"),
        ("dataset", {}, "512 pixels, batch 1, buckets"),
        ("dataset", {"dataset__resolution": [512, 768], "dataset__enable_bucket": False, "dataset__train_batch_size": 4,
                     "dataset__sources": [{"folder": "a"}, {"folder": "b", "enabled": False}]},
         "512 x 768 pixels, batch 4, cropped to one size, 1 more folder"),
        ("captions", {}, "as written, up to 75 tokens"),
        ("captions", {"captions__shuffle_caption": True, "captions__keep_tokens": 1, "captions__caption_prefix": " a, ",
                      "captions__caption_dropout_rate": 0.05, "captions__max_token_length": 150},
         "tags shuffled, first 1 kept, prefix 'a,', dropout 5%, up to 150 tokens"),
        ("captions", {"captions__shuffle_caption": True}, "tags shuffled, up to 75 tokens"),
        ("captions", {"captions__keep_tokens": 1}, "as written, up to 75 tokens"),
        ("network", {"network__conv_rank": 8, "network__mid_lr_weight": "0", "network__exclude_layers": ["a"],
                     "network__module_dropout": 0.1, "network__network_weights": "x/y.safetensors",
                     "network__train_text_encoder": True, "network__alpha": 0.5},
         "LoRA rank 16, alpha 0.5, conv rank 8, by block, chosen layers, dropout, from y, U-Net and text encoder"),
        ("network", {"network__train_unet": False, "network__block_dims": "1", "network__layers": ["a"]},
         "LoRA rank 16, alpha 16, by block, chosen layers, nothing trained"),
        ("network", {"network__kind": "full", "network__conv_rank": 8, "network__conv_block_dims": "1"},
         "Full difference, by block, U-Net"),
        ("embedding", {}, "no token"),
        ("embedding", {"embedding__token_string": "zkw", "embedding__num_vectors_per_token": 2,
                       "embedding__init_word": "cat", "embedding__extended": True},
         "token 'zkw', 2 vectors, initializer 'cat', one per layer (XTI)"),
        ("optimizer", {"optimizer__unet_lr": 1e-4, "optimizer__text_encoder_lr": [5e-5, 0]},
         "AdamW, learning rate 1e-4, U-Net 1e-4, text encoder 5e-5, 0"),
        ("optimizer", {"optimizer__text_encoder_lr": 0}, "AdamW, learning rate 1e-4, text encoder 0"),
        ("schedule", {}, "constant, random seed"),
        ("schedule", {"schedule__lr_warmup_steps": 5, "schedule__gradient_accumulation_steps": 2, "schedule__seed": 0},
         "constant, warmup 5 steps, 2 batches per step, seed 0"),
        ("schedule", {"schedule__lr_warmup_steps": "5%"}, "constant, warmup 5%, random seed"),
        ("noise", {"noise__noise_offset": 0.1, "noise__multires_noise_iterations": 6, "noise__ip_noise_gamma": 0.1,
                   "noise__v_pred_like_loss": 0.5, "noise__debiased_estimation_loss": True, "noise__max_timestep": 999},
         "debiased, v-prediction weighting, offset 0.1, multi-resolution noise, perturbation 0.1, timesteps 0 to 999"),
        ("noise", {"noise__scale_v_pred_loss_like_noise_pred": True, "noise__min_timestep": 1},
         "v-prediction weighting, timesteps 1 to 1000"),
        ("memory", {}, "automatic precision, no gradient checkpointing"),
        ("memory", {"memory__mixed_precision": "no", "memory__gradient_checkpointing": True},
         "fp32, gradient checkpointing"),
        ("sharding", {"sharding__offload_param_device": "cpu"}, "off"),
        ("sharding", {"sharding__deepspeed": True}, "DeepSpeed ZeRO stage 2"),
        ("sharding", {"sharding__deepspeed": True, "sharding__zero_stage": 3, "sharding__offload_param_device": "cpu",
                      "sharding__offload_optimizer_device": "cpu"},
         "DeepSpeed ZeRO stage 3, optimizer and weights offloaded"),
        ("saving", {"saving__save_every_n_epochs": 1, "saving__save_every_n_steps": 50, "saving__save_n_evenly": 3,
                    "saving__checkpoint_every_minutes": 2.5, "saving__save_n_epoch_ratio": 4, "saving__save_last_n": 2,
                    "saving__save_every_minutes": 0, "saving__save_model_as": "pt", "saving__copy_to": "a"},
         "every epoch, every 50 steps, every 2.5 min, 3 spread evenly, at least 4 at epoch ends, keep last 2, fp16, .pt,"
         " copied to a second folder"),
        ("resume", {}, "from the beginning"),
        ("resume", {"resume__resume": "a", "resume__initial_step": 0, "resume__initial_epoch": 2},
         "from a training state, at step 0"),
        ("resume", {"resume__initial_epoch": 2}, "at epoch 2"),
        ("hub", {}, "off"),
        ("hub", {"hub__huggingface_repo_id": "a/b", "hub__huggingface_repo_visibility": "public"}, "to a/b, public"),
        ("samples", {}, "no prompts, no samples"),
        ("samples", {"samples__sample_prompts": ["a"], "samples__sample_at_first": False},
         "not during training, DDIM, 20 steps"),
        ("samples", {"samples__sample_prompts_file": "a", "samples__sample_every_n_epochs": 1,
                     "samples__sample_every_n_steps": 5, "samples__sample_every_minutes": 0.5},
         "every epoch, every 0.5 min, before training, DDIM, 20 steps"),
        ("logging", {"logging__log_config": True}, "TensorBoard, with the settings"),
        ("logging", {"logging__log_config": True, "logging__log_with": "none"}, "none"),
        ("logging", {"logging__log_with": "all"}, "both"),
        ("validation", {}, "checkpoints measured on training images"),
        ("validation", {"validation__best_checkpoint": "auto"}, "best checkpoint by validation images"),
        ("validation", {"validation__best_checkpoint": "off"}, "no validation split"),
        ("validation", {"validation__validation_split": 0.1, "validation__validate_every_n_steps": 5},
         "10% of the images, measured every epoch and every 5 steps"),
        ("validation", {"validation__validation_split": 0.1, "validation__validate_every_n_epochs": -1},
         "10% of the images, never measured"),
        ("validation", {"dataset__sources": [{"folder": "a", "role": "validation"}, {"folder": "b"},
                                             {"folder": "c", "validation_images": ["a"]},
                                             {"folder": "d", "role": "validation", "enabled": False}]},
         "checkpoints measured on training images, validation images in 2 folders, measured every epoch"),
        ("controlnet", {}, "from the U-Net"),
        ("controlnet", {"controlnet__control_net_lr": 1e-4, "controlnet__controlnet_model_name_or_path": "a"},
         "from a file, control learning rate 0.0001"),
        ("lllite", {"lllite__weights": "a"}, "from a file"),
        ("lllite", {}, "dimensions 32 and 64"),
        ("loha", {"loha__use_tucker": True, "loha__use_scalar": True}, "Tucker, scalar"),
        ("lokr", {"lokr__factor": 4, "lokr__decompose_both": True, "lokr__full_matrix": True, "lokr__use_scalar": True},
         "factor 4, both decomposed, full matrix, scalar"),
        ("dora", {"dora__use_scalar": True, "dora__wd_on_output": True}, "scalar, magnitude per output"),
        ("ia3", {"ia3__train_on_input": True}, "Scale inputs on"),
        ("ia3", {"ia3__train_on_input": True, "ia3__all_layers": True}, "all layers, inputs"),
        ("oft", {"oft__enable_all_linear": True, "oft__enable_conv": True}, "all transformer layers, convolutions"),
        ("oft", {}, "defaults"),
    ],
)  # fmt: skip
def test_a_group_is_summed_up_in_words(group, values, words):
    assert summary(job(**values), group) == words


def test_a_group_without_a_summary_names_the_first_two_settings_that_differ():
    values = {"highres_fix_scale": 2, "highres_fix_steps": 5, "highres_fix_upscaler_file": "b" * 40}
    for names, words in (
        ([], "defaults"),
        (["highres_fix_upscaler_file"], "Upscaler file " + "b" * 30),
        (["highres_fix_scale", "highres_fix_steps"], "Hires scale 2, Steps of the first stage 5"),
        (list(values), "Hires scale 2, Steps of the first stage 5 and 1 more"),
    ):
        assert summary(build(GenerateJob, {"hires": {name: values[name] for name in names}}), "hires") == words
