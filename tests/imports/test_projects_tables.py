"""Configs of AI Toolkit and SimpleTuner: the settings that each key becomes, and an entry for each key."""

import json

import pytest

from core.imports.projects import ai_toolkit, simpletuner
from core.imports.projects.importers import import_project
from core.imports.projects.report import ChoiceNeeded
from core.imports.projects.table import SECRET
from core.record.bounded_yaml import parse_yaml
from core.settings.base import value_of
from tests.refusals import refused

SD1 = {"name_or_path": "/models/sd15.safetensors"}


def job(**parts):
    """A job of AI Toolkit for a LoRA, with these parts of its process."""
    process = {
        "type": "sd_trainer",
        "network": {"linear": 16},
        "model": SD1,
        "datasets": [{"folder_path": "/data/fox"}],
    }
    return json.dumps({"job": "extension", "config": {"name": "fox", "process": [process | parts]}})


def config(**more):
    """A config of SimpleTuner for a LoRA."""
    return json.dumps({"model_family": "sdxl", "model_type": "lora", **more})


def kinds(found):
    return {entry.key: entry.kind for entry in found.report}


# What parts of a process become: settings, kinds of entries
AI_TOOLKIT = [
    (
        {},
        {
            "method.kind": "lora", "model.family": "sd1", "model.prediction": "epsilon", "network.rank": 16, "network.alpha": 1.0,
            "network.train_text_encoder": False, "network.conv_rank": None, "optimizer.optimizer_type": "AdamW", "optimizer.eps": 1e-6,
            "optimizer.learning_rate": 1e-6, "optimizer.max_grad_norm": 1.0, "schedule.max_train_steps": 1000,
            "memory.mixed_precision": "no",
            "memory.cache_latents": "off", "memory.latent_draw": "sample", "memory.gradient_checkpointing": True,
            "saving.save_every_n_steps": 1000, "saving.save_last_n": 5, "samples.sample_every_n_steps": 100, "samples.guidance_scale": 7.0,
            "samples.sample_sampler": "ddpm", "samples.seed": 0, "saving.output_name": "fox", "dataset.bucket_no_upscale": True,
        },
        {"network.linear": "taken"},
    ),
    (
        {"network": {"type": "lora", "rank": 8, "alpha": 4, "conv": 4}},
        {"network.rank": 8, "network.alpha": 4, "network.conv_rank": 4, "network.conv_alpha": 4},
        {},
    ),
    ({"network": {"linear": 8, "linear_alpha": 2, "alpha": 4}}, {"network.alpha": 2}, {}),
    ({"network": {"type": "dora", "linear": 8}}, {"network.kind": "dora", "dora.wd_on_output": True}, {"network.type": "taken"}),
    (
        {"network": {"type": "lokr", "lokr_full_rank": True, "lokr_factor": 8}},
        {"network.kind": "lokr", "lokr.full_matrix": True, "lokr.factor": 8},
        {},
    ),
    ({"network": {"type": "lorm", "linear": 4}}, {"network.kind": "lora"}, {"network.type": "unavailable"}),
    (
        {"network": {"linear": 8, "network_kwargs": {"only_if_contains": ["x"]}}},
        {"network.layers": []},
        {"network.network_kwargs": "unavailable"},
    ),
    # length
    (
        {"train": {"steps": 900, "gradient_accumulation": 3}},
        {"schedule.max_train_steps": 900, "schedule.gradient_accumulation_steps": 3},
        {},
    ),
    (
        {"train": {"steps": 900, "gradient_accumulation_steps": 3}, "save": {"save_every": 300}},
        {"schedule.max_train_steps": 300, "schedule.gradient_accumulation_steps": 3, "saving.save_every_n_steps": 100},
        {"train.steps": "changed", "save.save_every": "changed"},
    ),
    ({"train": {"skip_first_sample": True}}, {"samples.sample_at_first": False}, {"train.skip_first_sample": "taken"}),
    ({"train": {"disable_sampling": True}}, {"samples.sample_at_first": False, "samples.sample_every_n_steps": None}, {}),
    # optimizer and schedule
    ({"train": {"optimizer": "adamw8bit", "lr": "1e-4"}}, {"optimizer.optimizer_type": "AdamW8bit", "optimizer.learning_rate": 1e-4}, {}),
    ({"train": {"optimizer": "prodigy", "lr": 1e-4}}, {"optimizer.learning_rate": 1.0}, {"train.lr": "changed"}),
    (
        {"train": {"optimizer": "Adafactor", "optimizer_params": {"weight_decay": "1e-2", "wrong": 1}}},
        {
            "optimizer.weight_decay": 0.01, "optimizer.max_grad_norm": 0.0,
            "optimizer.optimizer_args": {"relative_step": False, "scale_parameter": False, "warmup_init": False},
        },
        {"train.optimizer_params": "unavailable", "train.optimizer": "taken"},
    ),
    ({"train": {"optimizer": "automagic"}}, {"optimizer.optimizer_type": "AdamW"}, {"train.optimizer": "unavailable"}),
    ({"train": {"unet_lr": 1e-3, "text_encoder_lr": 1e-5}}, {"optimizer.unet_lr": None}, {"train.unet_lr": "idle"}),
    (
        {"train": {"lr_scheduler": "constant_with_warmup"}},
        {"schedule.lr_scheduler": "constant_with_warmup", "schedule.lr_warmup_steps": 1000},
        {},
    ),
    (
        {"train": {"lr": 1e-3, "lr_scheduler": "cosine", "lr_scheduler_params": {"eta_min": "1e-4", "power": 2}}},
        {"schedule.lr_scheduler": "cosine", "schedule.lr_scheduler_min_lr_ratio": 0.1},
        {"train.lr_scheduler_params": "unavailable"},
    ),
    ({"train": {"lr_scheduler": "linear"}}, {"schedule.lr_scheduler": "constant"}, {"train.lr_scheduler": "unavailable"}),
    # noise and loss
    ({"train": {"content_or_style": "content"}}, {"noise.timestep_sampling": "high_noise"}, {"train.content_or_style": "taken"}),
    ({"train": {"content_or_style": "style"}}, {"noise.timestep_sampling": "low_noise"}, {}),
    ({"train": {"min_denoising_steps": 100, "max_denoising_steps": 899}}, {"noise.max_timestep": 900, "noise.min_timestep": 100}, {}),
    ({"train": {"noise_scheduler": "flowmatch"}}, {}, {"train.noise_scheduler": "unavailable"}),
    ({"train": {"timestep_type": "sigmoid"}}, {"noise.timestep_sampling": "uniform"}, {"train.timestep_type": "idle"}),
    (
        {"train": {"loss_type": "mae", "min_snr_gamma": 5, "noise_offset": 0.05}},
        {"noise.loss_type": "l1", "noise.min_snr_gamma": 5.0, "noise.noise_offset": 0.05},
        {},
    ),
    ({"train": {"loss_type": "wavelet"}}, {"noise.loss_type": "l2"}, {"train.loss_type": "unavailable"}),
    (
        {"train": {"diff_output_preservation": True, "diff_output_preservation_class": "dog", "diff_output_preservation_multiplier": 0.5}},
        {"method.prior": "model", "method.class_caption": "dog", "dataset.prior_loss_weight": 0.5},
        {"train.diff_output_preservation": "changed"},
    ),
    (
        {"train": {"ema_config": {"use_ema": True, "ema_decay": 0.99}}},
        {"method.ema": True, "method.ema_decay": 0.99, "method.ema_warmup": False},
        {},
    ),
    ({"train": {"dtype": "bf16", "xformers": True}}, {"memory.mixed_precision": "bf16", "memory.attention": "xformers"}, {}),
    # models and methods
    ({"model": SD1 | {"arch": "sdxl:fast", "is_v_pred": True}}, {"model.family": "sdxl", "model.prediction": "v"}, {"model.arch": "taken"}),
    (
        {"model": SD1 | {"is_v2": True, "lora_path": "/a.safetensors"}},
        {"model.family": "sd2", "network.base_weights": ["/a.safetensors"]},
        {},
    ),
    ({"network": {"linear": 4}, "embedding": {"trigger": "zkw"}}, {"method.kind": "lora"}, {"embedding.trigger": "unavailable"}),
    # folders and samples
    (
        {
            "datasets": [{"folder_path": "/a", "cache_latents_to_disk": True, "mask_path": "/m", "mask_min_value": 0.1}],
            "trigger_word": "zkw",
        },
        {
            "memory.cache_latents": "disk", "memory.latent_draw": "frozen", "dataset.masked_loss": True, "noise.unmasked_weight": 0.1,
            "captions.trigger_word": "zkw",
        },
        {"datasets.mask_path": "taken"},
    ),
    (
        {"sample": {"prompts": ["a [trigger] --m 2 --seed 7", "[name]"], "seed": 42, "neg": False}, "trigger_word": "zkw"},
        {"samples.sample_prompts": ["a zkw --d 7", "fox --d 42"], "samples.negative_prompt": ""},
        {"sample.prompts": "changed"},
    ),
    (
        {"sample": {"samples": [{"prompt": "a", "width": 640, "neg": "b"}], "walk_seed": True, "seed": 3, "guidance_scale": 4}},
        {"samples.sample_prompts": ["a --n b --w 640"], "samples.seed": 3, "samples.guidance_scale": 4.0},
        {"sample.samples.width": "taken"},
    ),
    ({"unheard": 1, "hf_token": "0123456789"}, {}, {"unheard": "unavailable", "hf_token": "secret"}),
]  # fmt: skip
DATASETS = [
    ({}, {"folder": "/a", "caption_extension": ".txt", "resolution": 512, "role": "train", "num_repeats": 1, "enable_bucket": True}),
    ({"resolution": [512, "768", 512]}, {"resolution": 512, "more_resolutions": [768]}),
    ({"caption_ext": "caption", "default_caption": "a fox"}, {"caption_extension": ".caption", "class_tokens": "a fox"}),
    ({"is_reg": True, "num_repeats": 3, "loss_multiplier": 0.5}, {"role": "regularization", "num_repeats": 3, "loss_weight": 0.5}),
    (
        {"shuffle_tokens": True, "keep_tokens": 1, "token_dropout_rate": 0.1},
        {"shuffle_caption": True, "keep_tokens": 1, "caption_tag_dropout_rate": 0.1},
    ),
    (
        {"caption_dropout_rate": 0.05, "flip_x": True, "square_crop": True},
        {"caption_dropout_rate": 0.05, "flip_aug": True, "enable_bucket": False},
    ),
]  # fmt: skip
# What options of SimpleTuner become
SIMPLETUNER = [
    (
        {},
        {
            "method.kind": "lora", "model.family": "sdxl", "model.prediction": "epsilon", "network.kind": "lora", "network.rank": 16,
            "network.alpha": 16.0, "network.network_dropout": 0.1, "network.layers": ["attn"], "optimizer.optimizer_type": "AdamW",
            "optimizer.eps": 1e-6, "optimizer.learning_rate": 4e-7, "optimizer.max_grad_norm": 0.0, "schedule.max_train_epochs": 1,
            "schedule.lr_scheduler": "constant", "dataset.train_batch_size": 4, "dataset.resolution": 1024,
            "captions.caption_dropout_rate": 0.1,
            "model.base_model": "stabilityai/stable-diffusion-xl-base-1.0", "model.vae": "madebyollin/sdxl-vae-fp16-fix",
            "memory.mixed_precision": "bf16", "memory.gradient_checkpointing": True, "memory.cache_latents": "disk",
            "noise.noise_offset": None,
            "noise.stratified_timesteps": True, "saving.save_every_n_steps": 500, "saving.save_last_n": 5,
            "samples.sample_every_n_steps": 100,
            "samples.width": 256, "samples.sample_steps": 30, "samples.negative_prompt": "blurry, cropped, ugly",
            "logging.log_with": "none",
        },
        {},
    ),
    ({"--lora_rank": "32", "--lora_alpha": 8}, {"network.rank": 32, "network.alpha": 8.0}, {"--lora_rank": "taken"}),
    (
        {"use_dora": "true", "peft_lora_target_modules": ["to_q"]},
        {"network.kind": "dora", "network.layers": ["to_q"]},
        {"use_dora": "taken"},
    ),
    ({"lora_type": "lycoris"}, {"network.kind": "lokr", "network.layers": ["attn"]}, {"lycoris_config": "default"}),
    (
        {"model_family": "sd2x"},
        {"model.family": "sd2", "model.prediction": "v", "noise.zero_terminal_snr": True, "model.vae": None},
        {"rescale_betas_zero_snr": "default"},
    ),
    (
        {"model_family": "sd1x", "prediction_type": "v_prediction"},
        {"model.family": "sd1", "model.prediction": "v", "model.base_model": "Lykon/dreamshaper-8"},
        {},
    ),
    (
        {"max_train_steps": 500, "num_train_epochs": 0},
        {"schedule.max_train_steps": 500, "schedule.max_train_epochs": None},
        {"max_train_steps": "taken"},
    ),
    ({"optimizer": "bnb-adamw8bit"}, {"optimizer.optimizer_type": "AdamW8bit"}, {"optimizer": "taken"}),
    (
        {"optimizer": "optimi-adamw", "optimizer_config": "weight_decay=0.1,wrong=1"},
        {"optimizer.optimizer_type": "AdamW", "optimizer.weight_decay": 0.1, "optimizer.betas": (0.9, 0.99)},
        {"optimizer": "changed", "optimizer_config": "unavailable"},
    ),
    (
        {"optimizer": "adamw_schedulefree", "lr_warmup_steps": 50},
        {"optimizer.optimizer_args": {"warmup_steps": 50}, "schedule.lr_warmup_steps": 0},
        {},
    ),
    ({"optimizer_beta1": 0.8, "optimizer_beta2": 0.9}, {"optimizer.betas": (0.8, 0.9)}, {"optimizer_beta1": "taken"}),
    ({"optimizer": "none_such"}, {"optimizer.optimizer_type": "AdamW"}, {"optimizer": "unavailable"}),
    ({"grad_clip_method": "norm"}, {"optimizer.max_grad_norm": 2.0}, {"grad_clip_method": "taken"}),
    (
        {"lr_scheduler": "polynomial", "lr_warmup_steps": 10},
        {"schedule.lr_scheduler": "polynomial", "schedule.lr_scheduler_args": {"lr_end": 4e-7}, "schedule.lr_warmup_steps": 10},
        {},
    ),
    (
        {"lr_scheduler": "sine", "learning_rate": 4e-6},
        {"schedule.lr_scheduler": "cosine", "schedule.lr_scheduler_min_lr_ratio": 0.1},
        {"lr_scheduler": "changed"},
    ),
    ({"lr_scheduler": "constant", "lr_warmup_steps": 9}, {"schedule.lr_scheduler": "constant_with_warmup"}, {}),
    ({"offset_noise": "true", "noise_offset_probability": 0.5}, {"noise.noise_offset": 0.1}, {"noise_offset_probability": "changed"}),
    (
        {"snr_gamma": 5, "use_soft_min_snr": True, "loss_type": "smooth_l1"},
        {"noise.min_snr_gamma": 5.0, "noise.loss_type": "smooth_l1"},
        {"use_soft_min_snr": "unavailable"},
    ),
    ({"use_ema": True}, {"method.ema": True, "method.ema_decay": 0.995, "method.ema_device": "cpu"}, {"ema_decay": "default"}),
    ({"base_model_precision": "int8-quanto"}, {"memory.fp8_base_unet": False}, {"base_model_precision": "unavailable"}),
    ({"base_model_precision": "fp8-torchao"}, {"memory.fp8_base_unet": True}, {"base_model_precision": "changed"}),
    ({"resolution": 1.0, "resolution_type": "area"}, {"dataset.resolution": 1024}, {"resolution": "taken"}),
    ({"resolution": 512, "resolution_type": "pixel"}, {"dataset.resolution": 512}, {"resolution": "changed"}),
    (
        {
            "validation_prompt": "a fox", "validation_resolution": "1024x768,512", "validation_seed": 3,
            "validation_noise_scheduler": "euler-a",
        },
        {
            "samples.sample_prompts": ["a fox --d 3", "a fox --w 512 --h 512 --d 3"], "samples.width": 1024, "samples.height": 768,
            "samples.sample_sampler": "euler_a",
        },
        {"validation_seed": "taken"},
    ),
    ({"validation_disable": True, "validation_prompt": "a"}, {"samples.sample_prompts": []}, {}),
    ({"learning_rate": "0,0001"}, {"optimizer.learning_rate": 4e-7}, {"learning_rate": "unavailable"}),
    ({"lora_rank": 100_000}, {"network.rank": 1024}, {"lora_rank": "changed"}),
    (
        {"snr_gama": 1, "webhook_config": "https://0123456789", "flow_shift": 3},
        {},
        {"snr_gama": "unavailable", "webhook_config": "secret", "flow_shift": "idle"},
    ),
]  # fmt: skip
BACKENDS = [
    ({}, {"folder": "/a", "num_repeats": 1, "resolution": 1024, "role": "train", "enable_bucket": True, "random_crop": False}),
    ({"repeats": 9, "resolution": 0.5, "resolution_type": "area"}, {"num_repeats": 10, "resolution": 704}),
    ({"crop": True}, {"enable_bucket": False, "random_crop": True}),
    ({"crop": True, "crop_aspect": "preserve", "crop_style": "center"}, {"enable_bucket": True, "random_crop": False}),
    (
        {"caption_strategy": "textfile", "instance_prompt": "zkw", "prepend_instance_prompt": True},
        {"caption_extension": ".txt", "caption_lines": "random", "caption_prefix": "zkw"},
    ),
    ({"caption_strategy": "instanceprompt", "instance_prompt": "zkw"}, {"caption_extension": simpletuner.UNREAD, "class_tokens": "zkw"}),
    (
        {"dataset_type": "eval", "disabled": True, "minimum_image_size": 512},
        {"role": "validation", "enabled": False, "skip_image_resolution": 511},
    ),
    ({"is_regularisation_data": True}, {"diff_output_preservation": True}),
    ({"instance_data_dir": "", "instance_data_root": "/b", "disable_after_epoch_step": 5}, {"folder": "/b"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("cases", "text"), [(AI_TOOLKIT, job), (SIMPLETUNER, config)], ids=["ai_toolkit", "simpletuner"]
)
def test_each_config_becomes_the_settings_that_are_the_same_here(cases, text):
    for parts, settings, entries in cases:
        found = import_project(text(**parts))
        assert {path: value_of(found.job, path) for path in settings} == settings, parts
        assert {key: kinds(found)[key] for key in entries} == entries, parts
        assert "0123456789" not in "\n".join([*found.lines(), str(found.options)])


def test_a_full_model_and_an_embedding_of_ai_toolkit_train_as_there():
    process = {"type": "sd_trainer", "model": SD1, "train": {"dtype": "bf16", "train_text_encoder": True}}
    found = import_project(json.dumps({"job": "train", "config": {"process": process}})).job
    assert (found.method.kind, found.method.train_text_encoder, found.memory.full_precision) == (
        "fine_tune",
        "yes",
        "bf16",
    )
    assert not found.memory.stochastic_rounding
    process |= {"type": "textual_inversion_trainer", "train": {"lr": 1e-3, "embedding_lr": 5e-3}}  # its older name
    process |= {"embedding": {"trigger": "zkw", "tokens": 2}}
    found = import_project(json.dumps({"job": "train", "config": {"process": [process]}})).job
    assert (found.method.kind, found.embedding.token_string, found.optimizer.learning_rate) == (
        "embedding",
        "zkw",
        5e-3,
    )
    assert found.embedding.num_vectors_per_token == 2


def test_datasets_are_folders():
    for dataset, settings in DATASETS:
        (source,) = import_project(job(datasets=[{"folder_path": "/a"} | dataset])).job.dataset.sources
        assert {name: getattr(source, name) for name in settings} == settings, dataset
    for backend, settings in BACKENDS:
        listed = [{"id": "a", "type": "local", "instance_data_dir": "/a"} | backend, {"dataset_type": "text_embeds"}]
        saved = json.dumps({"_metadata": {}, "config": json.loads(config(data_backend_config=listed))})  # by its page
        for text in (json.dumps(listed), config(data_backend_config=listed), saved):
            (source,) = import_project(text).job.dataset.sources
            assert {name: getattr(source, name) for name in settings} == settings, backend


def test_a_value_that_one_folder_cannot_have_leaves_its_other_settings():
    folders = [{"folder_path": "/a", "caption_ext": ".json", "num_repeats": 3}, {"folder_path": "/b"}]
    found = import_project(job(datasets=folders))
    assert [(each.folder, each.num_repeats) for each in found.job.dataset.sources] == [("/a", 3), ("/b", 1)]
    assert found.job.dataset.sources[0].caption_extension is None
    assert kinds(found)["datasets.caption_ext"] == "changed" and kinds(found)["datasets.folder_path"] == "taken"


def test_files_that_a_config_names_are_read_there_or_next_to_it(tmp_path):
    (tmp_path / "multidatabackend.json").write_text(
        json.dumps([{"id": "a", "instance_data_dir": "/a", "aws_secret_access_key": "0123456789"}])
    )
    lycoris = {
        "algo": "lokr",
        "linear_dim": 10_000,
        "factor": 12,
        "use_tucker": True,
        "apply_preset": {
            "target_module": ["Attention", "FeedForward"],
            "module_algo_map": {"Attention": {"factor": 4}},
        },
    }
    (tmp_path / "lycoris.json").write_text(json.dumps(lycoris))
    (tmp_path / "prompts.json").write_text(json.dumps({"one": "a fox", "two": {"prompt": "a cat"}}))
    more = {
        "data_backend_config": "config/multidatabackend.json",
        "lora_type": "lycoris",
        "lycoris_config": "lycoris.json",
    }
    (tmp_path / "config.json").write_text(
        config(**more, user_prompt_library="prompts.json", validation_resolution="512")
    )
    found = import_project(tmp_path / "config.json")
    network = found.job.network
    assert (network.kind, network.layers, found.job.lokr.factor, found.job.lokr.full_matrix) == (
        "lokr",
        ["attn", "ff"],
        12,
        True,
    )
    assert [each.folder for each in found.job.dataset.sources] == ["/a"] and found.job.samples.sample_prompts == [
        "a fox",
        "a cat",
    ]
    (entry,) = [each for each in found.report if each.key == "lycoris_config"]
    assert entry.sentence.endswith("not taken: use_tucker, Attention")
    assert kinds(found)["data.aws_secret_access_key"] == "secret" and "0123456789" not in "\n".join(found.lines())


ALL = {
    "ai_toolkit": (ai_toolkit, lambda key: key.startswith(("datasets.", "sample.samples."))),
    "simpletuner": (simpletuner, lambda key: key.startswith("data.")),
}


@pytest.mark.parametrize("program", ALL)
def test_each_key_ends_in_the_job_or_in_a_line(program):
    module, listed = ALL[program]
    left = {
        "model.arch",
        "type",
        "model_family",
        "model_type",
        "controlnet",
        "datasets",
        "sample.samples",
        "data_backend_config",
        "train.ema_config",
    }
    rows = {key.replace("*", "any"): row for key, row in module.TABLE.rows.items()}
    given = {
        key: _other(row.default) for key, row in rows.items() if key not in left and not key.startswith("model.is_")
    }
    items = {key.rpartition(".")[2]: value for key, value in given.items() if listed(key)}
    if program == "simpletuner":
        items |= {"type": "local", "dataset_type": "image", "instance_data_dir": "/a"}
        text = config(**{key: value for key, value in given.items() if not listed(key)}, data_backend_config=[items])
    else:
        text = _process(given, listed)
    found = import_project(text)
    assert not {key for key in given if key not in kinds(found)}
    assert all(entry.settings or entry.sentence for entry in found.report if entry.kind != "taken")
    assert all(kinds(found)[key] == "secret" for key in given if rows[key].target == SECRET)


def _other(value):
    """Another value than the default."""
    if isinstance(value, (list, dict)) or value is None:
        return {"a": 1} if isinstance(value, dict) else [5] if isinstance(value, list) else 5
    return not value if isinstance(value, bool) else value + 1 if isinstance(value, (int, float)) else value or "5"


def _process(given, listed):
    """A job of AI Toolkit with these keys."""
    process = {"type": "sd_trainer", "model": {}, "datasets": [{}], "sample": {"samples": [{}]}}
    for key, value in given.items():
        *parts, name = key.split(".")
        place = process["datasets"][0] if key.startswith("datasets.") else process
        place = process["sample"]["samples"][0] if key.startswith("sample.samples.") else place
        for part in () if listed(key) else parts:
            place = place.setdefault(part, {}) if isinstance(place.get(part, {}), dict) else place
        if not isinstance(place.get(name), dict):
            place[name] = value
    process["train"]["ema_config"] = {"use_ema": True, "ema_decay": 0.9, "use_feedback": True, "param_multiplier": 2}
    meta = process.pop("meta")
    return json.dumps({"job": "a", "config": {"process": [process]}, "meta": meta})


@pytest.mark.parametrize(
    ("text", "code", "word"),
    [
        (job(model={"name_or_path": "a", "is_flux": True}), "import.other-family", "FLUX"),
        (job(model={"name_or_path": "a", "arch": "wan21"}), "import.other-family", "Wan"),
        (job(model={"name_or_path": "a", "arch": "qwen_image_edit"}), "import.other-family", "Qwen"),
        (job(type="slider"), "import.other-method", "slider"),
        (job(adapter={"train": True}), "import.other-method", "adapters"),
        (config(model_family="sd3"), "import.other-family", "Diffusion 3"),
        (config(controlnet=True), "import.other-method", "ControlNet"),
        ("job: extension\nconfig:\n  process:\n", "import.no-process", "process"),
        ("job: extension\nconfig:\n  process: [", "file.not-yaml", "line 4"),
        ("job: a\nconfig: &a {process: [*a]}\nprocess: 1", "file.not-yaml", "alias"),
        ("config: {process: !!python/name:os.system }\nprocess: 1", "file.not-yaml", "tag"),
    ],
)  # fmt: skip
def test_other_models_and_texts_are_refused_by_name(text, code, word):
    with refused(code, word):
        import_project(text)


YAML = """---
job: extension
config:
  name: fox_v1
  process:
    - type: sd_trainer
      network: {linear: 32, linear_alpha: 16}
      train: {lr: 1e-4, steps: 2000, lr: 2e-4}  # the last one counts
      model: {name_or_path: a, is_xl: true}
    - type: sd_trainer
      train: {steps: 500}
      model: {name_or_path: b}
meta: {name: "[name]", version: 1.0, made: 2024-01-01}
"""


def test_of_several_processes_one_is_chosen_and_a_key_that_is_written_twice_is_named():
    with pytest.raises(ChoiceNeeded) as needed:
        import_project(YAML)
    first, second = needed.value.choices
    found = import_project(YAML, choice=first, name="fox.yaml")
    assert (found.job.network.rank, found.job.optimizer.learning_rate, found.choice) == (32, 2e-4, first)
    assert found.job.saving.metadata_title == "fox_v1" and "import.twice" in {
        problem.code for problem in found.problems
    }
    assert import_project(YAML, choice="2").job.method.kind == "fine_tune" and second.endswith("b")


def test_yaml_is_read_within_limits():
    value, repeated = parse_yaml("a: 1\nb: [2024-01-01, on, 1e-4]\na: 2", "x", "fix")
    assert value == {"a": 2, "b": ["2024-01-01", True, "1e-4"]} and repeated == ["a (line 3)"]
    deep, many, long = "[" * 200, "a: 1\n" * 30_000, "a: " + "9" * 5000
    for text in (deep, many, long, "a: *b", "a: !!set {b}", "? [a]\n: 1", "a: \0", "a: \ud83d", "--- a\n--- b"):
        with refused("file.not-yaml"):
            parse_yaml(text, "x", "fix")
