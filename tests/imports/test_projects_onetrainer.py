"""Configs of OneTrainer: resolved as its own classes do, with an entry for each key, and the settings that each key becomes."""

import json

import pytest

from core.imports.projects.importers import import_project
from core.imports.projects.onetrainer_config import PARTS, TABLE, resolve
from core.imports.projects.table import IDLE, SECRET, flattened
from core.record.problems import ProblemsError
from core.settings.base import value_of
from tests.imports.projects import cases, pasted

MODEL = {"__version": 11, "model_type": "STABLE_DIFFUSION_15", "training_method": "LORA"}
SDXL = {"model_type": "STABLE_DIFFUSION_XL_10_BASE"}
FULL = {"training_method": "FINE_TUNE"}
CONCEPT = {"path": "/data/fox", "balancing": 1.0}


def imported(config, **more):
    return import_project(json.dumps(MODEL | config), **more)


def entry(found, key):
    return next(each for each in found.report if each.key == key)


def flat(values):
    return {key: value for key, value in flattened(values, PARTS).items() if not key.endswith("__version")}


def test_recorded_configs_resolve_as_onetrainer_does():
    recorded, faults = cases("onetrainer"), []
    compared = {key for key, row in TABLE.rows.items() if row.target not in (IDLE, SECRET)} - {"concepts", "samples"}
    for case in recorded["cases"]:
        if "resolved" not in case:  # OneTrainer itself fails
            continue
        if not case["trained"]:
            with pytest.raises(ProblemsError) as refused:
                resolve(pasted(json.dumps(case["config"])))
            assert refused.value.codes[0] in ("import.other-family", "import.other-method")
            continue
        right = flat(recorded["defaults"]) | {"custom_learning_rate_scheduler": ""} | flat(case["resolved"])
        values = resolve(pasted(json.dumps(case["config"]))).values
        wrong = {key: (values[key], right[key]) for key in compared & right.keys() if values[key] != right[key]}
        wrong = {key: pair for key, pair in wrong.items() if key != "additional_embeddings"}
        faults += [(case["name"], wrong)] if wrong else []
    assert not faults, "\n".join(map(str, faults))


def _other(value):
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, (int, float)) else value


def test_each_key_that_onetrainer_has_ends_in_the_job_or_in_a_line():
    recorded = cases("onetrainer")
    config = {key: value for key, value in recorded["defaults"].items() if key not in ("model_type", "training_method")}
    config = {
        key: {name: _other(each) for name, each in value.items()} if key in PARTS else _other(value)
        for key, value in config.items()
    }
    concept, sample = recorded["concept"], recorded["sample"] | {"prompt": "a fox"}
    concept |= {"path": "/a", "image": {k: _other(v) for k, v in concept["image"].items()}}
    concept |= {"text": {k: _other(v) for k, v in concept["text"].items()}}
    config |= {"concepts": [concept], "samples": [sample], "unheard": 1, "secrets": {"token": "0123456789"}}
    for method in ("LORA", "FINE_TUNE", "EMBEDDING"):
        found = imported(config | {"__version": 11, "training_method": method, "cloud": {"api_key": "0123456789"}})
        keys = {each.key for each in found.report}
        lists = {f"concepts.{key}" for key in flattened(concept, ("image", "text"))} | {f"samples.{k}" for k in sample}
        missing = {key for key in {*flattened(config, PARTS), *lists} if key not in keys and "__version" not in key}
        assert not missing
        assert all(each.settings or each.sentence for each in found.report if each.kind != "taken")
        assert entry(found, "unheard").kind == "unavailable"
        assert {each.key for each in found.entries("secret")} == {"secrets", "cloud"}
        assert "0123456789" not in "\n".join([*found.lines(), found.description, str(found.options)])


def test_every_value_of_the_concepts_is_in_the_report_and_their_versions_are_known():
    sources = ("sample", "concept", "filename", "concept")
    concepts = [
        {"__version": 1, "path": "/a", "image": {"__version": 0}, "text": {"__version": 0, "prompt_source": each}}
        for each in sources
    ]
    found = imported({"concepts": concepts, "samples": [{"__version": 0, "prompt": "a fox"}]})
    assert entry(found, "concepts.text.prompt_source").value == "concept, filename"
    versions = {each.key: each.kind for each in found.report if each.key.endswith("__version")}
    named = ("concepts.__version", "concepts.image.__version", "concepts.text.__version", "samples.__version")
    assert {versions[name] for name in named} == {"idle"}


# What a config becomes: changes of MODEL, settings, kind of the entry of a key
BECOMES = [
    ({}, {"optimizer.learning_rate": 3e-6, "network.rank": 16, "network.alpha": 1.0, "schedule.max_train_epochs": 100}, {}),
    ({}, {"schedule.lr_scheduler": "constant_with_warmup", "schedule.lr_warmup_steps": 200}, {}),
    ({}, {"network.train_text_encoder": True, "network.layers": ["full"], "network.conv_rank": 16}, {}),
    ({}, {"dataset.short_batches": "drop", "memory.latent_draw": "mean", "memory.gradient_checkpointing": True}, {}),
    ({"learning_rate": "1e-4"}, {"optimizer.learning_rate": 1e-4}, {"learning_rate": "taken"}),
    ({"learning_rate": "0,0001"}, {"optimizer.learning_rate": 3e-6}, {"learning_rate": "unavailable"}),
    ({"epochs": "20"}, {"schedule.max_train_epochs": 20}, {"epochs": "taken"}),
    ({"cep_gamma": 0.1, "prefetch_next_batch": True}, {}, {"cep_gamma": "unavailable", "prefetch_next_batch": "idle"}),
    ({"oft_cans": False, "optimizer": {"geometric_wd": False}}, {}, {"oft_cans": "idle", "optimizer.geometric_wd": "idle"}),
    ({"epochs": [1]}, {"schedule.max_train_epochs": 100}, {"epochs": "unavailable"}),
    ({"train_dtype": "HALF"}, {"memory.mixed_precision": "fp16"}, {"train_dtype": "unavailable"}),
    ({"train_dtype": "TFLOAT_32"}, {"memory.mixed_precision": "no", "memory.allow_tf32": True}, {}),
    ({"model_type": "STABLE_DIFFUSION_21"}, {"model.family": "sd2", "model.prediction": "v"}, {"model_type": "taken"}),
    ({"model_type": "STABLE_DIFFUSION_20_BASE"}, {"model.prediction": "epsilon"}, {}),
    ({"text_encoder_layer_skip": 1}, {"model.clip_skip": 2}, {"text_encoder_layer_skip": "taken"}),
    ({**SDXL, "text_encoder_layer_skip": 1}, {"model.clip_skip": None}, {"text_encoder_layer_skip": "unavailable"}),
    # rates
    ({"text_encoder": {"train": False}}, {"network.train_text_encoder": False, "optimizer.text_encoder_lr": None}, {}),
    (
        {**SDXL, "learning_rate": 1e-4, "text_encoder_2": {"train": False}},
        {"network.train_text_encoder": True, "optimizer.text_encoder_lr": (1e-4, 0.0)},
        {"text_encoder_2.train": "taken"},
    ),
    ({**FULL, "unet": {"train": False}}, {"optimizer.unet_lr": 0.0, "method.train_text_encoder": "yes"}, {}),
    (
        {"learning_rate": 1e-4, "batch_size": 4, "learning_rate_scaler": "BATCH"},
        {"optimizer.learning_rate": 2e-4},
        {"learning_rate": "changed", "learning_rate_scaler": "changed"},
    ),
    ({"text_encoder": {"stop_training_after": 200}}, {}, {"text_encoder.stop_training_after": "taken"}),
    (
        {**FULL, "gradient_accumulation_steps": 2, "text_encoder": {"stop_training_after": 9, "stop_training_after_unit": "STEP"}},
        {"method.stop_text_encoder_training": 4},
        {"text_encoder.stop_training_after": "taken"},
    ),
    ({"text_encoder": {"stop_training_after": 20}}, {"method.stop_text_encoder_epochs": 20}, {"text_encoder.stop_training_after": "taken"}),
    ({}, {"method.stop_text_encoder_epochs": 30}, {"text_encoder.stop_training_after": "default"}),
    ({"epochs": 30}, {"method.stop_text_encoder_epochs": None}, {}),
    (
        {**SDXL, "text_encoder": {"train": False}, "text_encoder_2": {"stop_training_after": 7}},
        {"method.stop_text_encoder_epochs": 7},
        {"text_encoder_2.stop_training_after": "taken"},
    ),
    (
        {**SDXL, "text_encoder": {"stop_training_after_unit": "NEVER"}, "text_encoder_2": {"stop_training_after": 7}},
        {"method.stop_text_encoder_epochs": None},
        {"text_encoder_2.stop_training_after": "unavailable"},
    ),
    (
        {"unet": {"stop_training_after": 5, "stop_training_after_unit": "EPOCH"}, "text_encoder": {"stop_training_after_unit": "HOUR"}},
        {"network.train_unet": True, "method.stop_text_encoder_epochs": None},
        {"unet.stop_training_after": "unavailable", "text_encoder.stop_training_after_unit": "idle"},
    ),
    ({"unet": {"stop_training_after": 100, "stop_training_after_unit": "EPOCH"}}, {}, {"unet.stop_training_after": "taken"}),
    ({"unet": {"stop_training_after_unit": "EPOCH"}}, {"network.train_unet": False}, {"unet.stop_training_after_unit": "taken"}),
    (
        {"loss_scaler": "BOTH", "batch_size": 2, "gradient_accumulation_steps": 4, "clip_grad_norm": 2.0},
        {"optimizer.max_grad_norm": 0.25},
        {"loss_scaler": "changed"},
    ),
    # schedules
    ({"learning_rate_warmup_steps": 0}, {"schedule.lr_scheduler": "constant", "schedule.lr_warmup_steps": 0}, {}),
    ({"learning_rate_warmup_steps": 1.0}, {"schedule.lr_warmup_steps": "100%"}, {"learning_rate_warmup_steps": "changed"}),
    ({"gradient_accumulation_steps": 3}, {"schedule.lr_warmup_steps": 66}, {}),
    (
        {"learning_rate_scheduler": "LINEAR", "learning_rate_min_factor": 0.1, "learning_rate": 0.01},
        {"schedule.lr_scheduler": "linear", "schedule.lr_scheduler_min_lr_ratio": 0.1},
        {"learning_rate_min_factor": "taken"},
    ),
    ({"learning_rate_scheduler": "COSINE"}, {"schedule.lr_scheduler": "cosine"}, {}),
    (
        {"learning_rate_scheduler": "constant", "learning_rate_warmup_steps": 0},  # its names are in capitals
        {"schedule.lr_scheduler": "constant"},
        {"learning_rate_scheduler": "unavailable"},
    ),
    (
        {"learning_rate_scheduler": "COSINE_WITH_RESTARTS", "learning_rate_cycles": 3},
        {"schedule.lr_scheduler": "cosine", "schedule.lr_scheduler_args": {"num_cycles": 3.0}},
        {},
    ),
    (
        {"learning_rate_scheduler": "COSINE_WITH_RESTARTS", "learning_rate_cycles": 3, "learning_rate_min_factor": 0.1},
        {"schedule.lr_scheduler": "cosine", "schedule.lr_scheduler_args": {"num_cycles": 3.0}, "schedule.lr_scheduler_min_lr_ratio": 0.1},
        {},
    ),
    (
        {"learning_rate_scheduler": "COSINE_WITH_HARD_RESTARTS", "learning_rate_cycles": 3},
        {"schedule.lr_scheduler": "cosine_with_restarts", "schedule.lr_scheduler_num_cycles": 3.0},
        {"learning_rate_scheduler": "taken"},
    ),
    ({"learning_rate_scheduler": "REX"}, {"schedule.lr_scheduler": "rex", "schedule.rex_d": 0.9}, {}),
    (
        {
            "learning_rate_scheduler": "CUSTOM",
            "custom_learning_rate_scheduler": "torch.optim.lr_scheduler.StepLR",
            "scheduler_params": [{"key": "step_size", "value": "100"}, {"key": "gamma", "value": "%LR%"}],
        },
        {"schedule.lr_scheduler_type": "StepLR", "schedule.lr_scheduler_args": {"step_size": 100}, "schedule.lr_warmup_steps": 0},
        {"scheduler_params": "changed", "learning_rate_warmup_steps": "default"},
    ),
    # optimizers
    (
        {"optimizer": {"optimizer": "PRODIGY"}},  # the defaults of the class, not those of the window
        {"optimizer.optimizer_type": "Prodigy", "optimizer.optimizer_args": {"decouple": False}},
        {"optimizer.optimizer": "taken"},
    ),
    (
        {"optimizer": {"optimizer": "PRODIGY", "decouple": True, "d_coef": 0.8, "slice_p": 11, "weight_decay": 0.01, "beta2": 0.99}},
        {"optimizer.optimizer_args": {"d_coef": 0.8, "slice_p": 11}, "optimizer.weight_decay": 0.01, "optimizer.betas": (0.9, 0.99)},
        {"optimizer.slice_p": "taken"},
    ),
    (
        {"optimizer": {"optimizer": "ADAFACTOR", "eps2": 0.01}},
        {"optimizer.optimizer_args": {"eps": [1e-30, 0.01], "scale_parameter": False, "relative_step": False}},
        {},
    ),
    ({"optimizer": {"optimizer": "ADAMW_8BIT", "is_paged": True}}, {"optimizer.optimizer_type": "PagedAdamW8bit"}, {}),
    (
        {"optimizer": {"optimizer": "SCHEDULE_FREE_ADAMW"}, "learning_rate_scheduler": "COSINE"},
        {"optimizer.optimizer_args": {"warmup_steps": 200}, "optimizer.weight_decay": 0.01, "schedule.lr_scheduler": "constant"},
        {"learning_rate_scheduler": "changed"},
    ),
    ({"optimizer": {"optimizer": "LION_8BIT"}}, {"optimizer.betas": (0.9, 0.999)}, {}),
    ({"optimizer": {"optimizer": "SIGNSGD_ADV"}}, {"optimizer.optimizer_type": "AdamW"}, {"optimizer.optimizer": "unavailable"}),
    (
        {"optimizer": {"optimizer": "MUON", "muon_adam_lr": 1e-3, "ns_steps": 4}},
        {"optimizer.optimizer_type": "Muon", "optimizer.optimizer_args": {"adamw_lr": 1e-3, "ns_steps": 4}},
        {"optimizer.optimizer": "changed", "optimizer.muon_adam_lr": "taken"},
    ),
    (
        {"optimizer": {"optimizer": "ADOPT", "beta2": 0.99}},
        {"optimizer.optimizer_type": "pytorch_optimizer.ADOPT", "optimizer.betas": (0.9, 0.99)},
        {"optimizer.optimizer": "taken"},
    ),
    ({"clip_grad_norm": None}, {"optimizer.max_grad_norm": 0.0}, {}),
    # network
    ({"layer_filter_preset": "attn-mlp"}, {"network.layers": [], "network.conv_rank": None}, {"layer_filter_preset": "taken"}),
    ({"layer_filter": "attn"}, {"network.layers": ["attn", "^lora_te"]}, {}),
    (
        {"layer_filter": "^(?=.*attn2).*", "layer_filter_regex": True, "text_encoder": {"train": False}},
        {"network.layers": ["^(?=.*attn2).*"]},
        {"layer_filter_regex": "changed"},
    ),
    ({"lora_decompose": True}, {"network.kind": "dora", "dora.wd_on_output": False}, {"lora_decompose": "taken"}),
    ({"peft_type": "LOKR", "lokr_decompose_factor": 8}, {"network.kind": "lokr", "lokr.factor": 8}, {}),
    ({"peft_type": "OFT_2", "lora_rank": 8}, {"network.kind": "lora", "network.rank": 8}, {"peft_type": "unavailable"}),
    # loss and noise
    ({"mse_strength": 0, "mae_strength": 1}, {"noise.loss_type": "l1"}, {"mae_strength": "taken"}),
    (
        {"mse_strength": 0, "huber_strength": 1, "huber_delta": 0.2},
        {"noise.loss_type": "huber", "noise.huber_schedule": "constant", "noise.huber_c": 0.2},
        {"huber_delta": "changed"},
    ),
    ({"mse_strength": 0.5}, {"noise.loss_type": "mixed", "noise.mse_weight": 0.5, "noise.mae_weight": 0.0}, {"mse_strength": "taken"}),
    ({"mse_strength": 0, "log_cosh_strength": 1}, {"noise.loss_type": "log_cosh"}, {"log_cosh_strength": "taken"}),
    ({"mae_strength": 0.2}, {"noise.loss_type": "mixed", "noise.mse_weight": 1.0, "noise.mae_weight": 0.2}, {}),
    ({"huber_strength": 0.2}, {"noise.loss_type": "mixed", "noise.mse_weight": 1.0}, {"huber_strength": "unavailable"}),
    (
        {"timestep_distribution": "LOGIT_NORMAL", "noising_weight": 0.5, "noising_bias": 0.25, "timestep_shift": 2},
        {"noise.timestep_sampling": "logit_normal", "noise.logit_mean": 0.25, "noise.logit_std": 1.5, "noise.timestep_shift": 2.0},
        {"noising_weight": "taken", "timestep_shift": "taken"},
    ),
    ({"timestep_distribution": "HEAVY_TAIL", "noising_weight": 0.5}, {"noise.timestep_sampling": "mode", "noise.mode_scale": 0.5}, {}),
    (
        {"timestep_distribution": "SIGMOID", "noising_weight": 4, "noising_bias": -0.25, "timestep_shift": 2},
        {"noise.timestep_sampling": "sigmoid_ramp", "noise.noising_weight": 4.0, "noise.noising_bias": -0.25},
        {"timestep_distribution": "taken", "noising_bias": "taken", "timestep_shift": "changed"},
    ),
    (
        {"timestep_distribution": "INVERTED_PARABOLA", "noising_weight": 4, "noising_bias": 0.75},
        {"noise.timestep_sampling": "inverted_parabola", "noise.noising_weight": 4.0, "noise.noising_bias": 0.5},
        {"noising_weight": "taken", "noising_bias": "changed"},
    ),
    (
        {"timestep_distribution": "BETA", "noising_weight": 0.5, "noising_bias": 0.25},
        {"noise.timestep_sampling": "beta", "noise.timestep_alpha": 0.5, "noise.timestep_beta": 0.25},
        {"noising_weight": "taken", "noising_bias": "taken"},
    ),
    (  # what is shifted: the range of some distributions, all timesteps of others
        {"timestep_distribution": "COS_MAP", "timestep_shift": 2, "min_noising_strength": 0.1},
        {"noise.timestep_shift": 2.0},
        {"timestep_shift": "taken"},
    ),
    ({"timestep_shift": 2, "min_noising_strength": 0.1}, {"noise.timestep_shift": 2.0}, {"timestep_shift": "changed"}),
    ({"timestep_distribution": "CUBIC"}, {"noise.timestep_sampling": "uniform"}, {"timestep_distribution": "unavailable"}),
    ({"loss_weight_fn": "MIN_SNR_GAMMA"}, {"noise.min_snr_gamma": 5.0}, {"loss_weight_fn": "taken"}),
    (
        {"loss_weight_fn": "P2", "loss_weight_strength": 0.5},
        {"noise.p2_gamma": 0.5, "noise.min_snr_gamma": None},
        {"loss_weight_fn": "taken", "loss_weight_strength": "taken"},
    ),
    ({"loss_weight_fn": "SIGMA"}, {"noise.p2_gamma": None, "noise.min_snr_gamma": None}, {"loss_weight_fn": "changed"}),
    ({"min_noising_strength": 0.1, "max_noising_strength": 0.9}, {"noise.min_timestep": 100, "noise.max_timestep": 900}, {}),
    ({"offset_noise_weight": 0.05}, {"noise.noise_offset": 0.05}, {"offset_noise_weight": "taken"}),
    ({"perturbation_noise_weight": 0.1}, {"noise.ip_noise_gamma": None}, {"perturbation_noise_weight": "unavailable"}),
    (
        {"masked_training": True, "normalize_masked_area_loss": True},
        {"dataset.masked_loss": True, "noise.unmasked_weight": 0.1, "noise.mask_mean": "area"},
        {"unmasked_weight": "default"},
    ),
    # methods
    (
        {**FULL, "ema": "GPU", "ema_decay": 0.99, "ema_update_step_interval": 2},
        {"method.ema": True, "method.ema_decay": 0.99**0.5, "method.ema_update_every": 2, "method.ema_device": "device"},
        {"ema_decay": "changed"},
    ),
    ({**FULL, "unet": {"weight_dtype": "BFLOAT_16"}}, {"memory.full_precision": "bf16", "memory.stochastic_rounding": True}, {}),
    (
        {"lora_weight_dtype": "BFLOAT_16", "train_dtype": "BFLOAT_16"},
        {"memory.full_precision": "bf16", "memory.mixed_precision": "bf16", "memory.stochastic_rounding": True},
        {"lora_weight_dtype": "taken", "train_dtype": "taken"},
    ),
    ({"lora_weight_dtype": "BFLOAT_16"}, {"memory.full_precision": "fp32"}, {"lora_weight_dtype": "unavailable"}),
    ({"unet": {"weight_dtype": "FLOAT_8"}}, {"memory.fp8_base_unet": True}, {"unet.weight_dtype": "changed"}),
    (
        {"training_method": "EMBEDDING", "embedding": {"placeholder": "<fox>", "token_count": 4}, "embedding_learning_rate": 0.005},
        {"embedding.token_string": "<fox>", "embedding.num_vectors_per_token": 4, "optimizer.learning_rate": 0.005},
        {"embedding.token_count": "taken"},
    ),
    ({"ema": "CPU", "ema_update_step_interval": 1}, {"method.ema": True, "method.ema_decay": 0.999, "method.ema_device": "cpu"}, {}),
    # sizes, periods, files
    (
        {"resolution": "512, 768"},
        {"dataset.more_resolutions": [768], "dataset.resolution_choice": "drawn", "schedule.max_train_epochs": 100},
        {"resolution": "taken"},
    ),
    ({"resolution": "768x512"}, {"dataset.resolution": (768, 512), "dataset.enable_bucket": False}, {"resolution": "taken"}),
    ({"aspect_ratio_bucketing": False}, {"dataset.enable_bucket": False}, {}),
    ({"save_every": 9, "save_every_unit": "STEP", "gradient_accumulation_steps": 4}, {"saving.save_every_n_steps": 2}, {}),
    ({"sample_after": 2, "sample_after_unit": "EPOCH"}, {"samples.sample_every_n_epochs": 2}, {"sample_after": "taken"}),
    ({}, {"samples.sample_every_n_epochs": None, "samples.sample_every_minutes": 10.0}, {}),
    ({"save_every": 2, "save_every_unit": "HOUR"}, {"saving.checkpoint_every_minutes": 120.0}, {"save_every": "taken"}),
    ({"backup_after": 2, "backup_after_unit": "HOUR"}, {"saving.save_every_minutes": 120.0}, {"backup_after": "taken"}),
    ({"backup_after": 3, "backup_after_unit": "EPOCH"}, {"saving.save_every_n_epochs": 3}, {"backup_after": "changed"}),
    (
        {"backup_after": 3, "backup_after_unit": "EPOCH", "save_every": 2, "save_every_unit": "EPOCH"},
        {"saving.save_every_n_epochs": 2},
        {"backup_after_unit": "changed"},
    ),
    (
        {"output_model_destination": "C:\\out\\fox.safetensors", "output_dtype": "BFLOAT_16"},
        {"saving.output_name": "fox", "saving.copy_to": "C:\\out", "saving.save_precision": "bf16"},
        {"output_model_destination": "taken"},
    ),
    ({"multi_gpu": True, "device_indexes": "0,1"}, {"memory.num_processes": 2}, {}),
    ({"lora_rank": 100_000}, {"network.rank": 1024}, {"lora_rank": "changed"}),
]  # fmt: skip


def test_each_config_becomes_the_settings_that_are_the_same_here():
    for config, settings, kinds in BECOMES:
        found = imported(config)
        made = {path: value_of(found.job, path) for path in settings}
        assert made == settings, config
        assert {key: entry(found, key).kind for key in kinds} == kinds, config


CONCEPTS = [
    ({"balancing": 10.0}, {"num_repeats": 10, "recursive": False, "keep_tokens": 1}),
    ({"balancing": 7.9, "balancing_strategy": "SAMPLES"}, {"samples_per_epoch": 7, "num_repeats": None}),
    ({"__version": 0, "repeats": 3}, {"num_repeats": 3}),
    ({"type": "PRIOR_PREDICTION"}, {"role": "train", "diff_output_preservation": True}),
    ({"validation_concept": True}, {"role": "validation", "enabled": False}),
    ({"image": {"enable_resolution_override": True, "resolution_override": "768"}}, {"resolution": 768}),
    ({"image": {"enable_random_flip": True}, "loss_weight": 0.8}, {"flip_aug": True, "loss_weight": 0.8}),
    (
        {"text": {"enable_tag_shuffling": True, "tag_delimiter": "|", "keep_tags_count": 2}},
        {"shuffle_caption": True, "caption_separator": "|", "keep_tokens": 2},
    ),
    (
        {"text": {"tag_dropout_enable": True, "tag_dropout_mode": "RANDOM", "tag_dropout_probability": 0.1}},
        {"caption_tag_dropout_rate": 0.1, "tag_dropout_mode": "each"},
    ),
    ({"text": {"tag_dropout_enable": True, "tag_dropout_probability": 0.2}}, {"tag_dropout_mode": "all"}),
]


def test_concepts_are_folders_also_from_a_file_of_their_own(tmp_path):
    for concept, settings in CONCEPTS:
        config = {"concepts": [CONCEPT | concept]}
        (source,) = imported(config).job.dataset.sources
        assert {name: getattr(source, name) for name in settings} == settings
    (tmp_path / "mine.json").write_text(json.dumps([CONCEPT, {"path": ""}]))
    (tmp_path / "preset.json").write_text(json.dumps(MODEL | {"concept_file_name": "mine.json"}))
    found = import_project(tmp_path / "preset.json")
    assert [each.folder for each in found.job.dataset.sources] == ["/data/fox"]
    codes = {problem.code for problem in found.problems}
    assert "import.missing-path" in codes and "import.no-concepts" not in codes
    assert {"import.no-concepts", "import.no-model"} <= {problem.code for problem in imported({}).problems}


def test_a_part_of_a_folder_is_counted_where_the_images_are(tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.png").touch()
    config = MODEL | {"concepts": [{"path": str(tmp_path), "balancing": 0.5}]}
    found = import_project(json.dumps(config), folder=tmp_path)
    assert found.job.dataset.sources[0].samples_per_epoch == 2
    assert entry(found, "concepts.balancing").kind == "changed"


def test_samples_are_lines_with_their_options():
    sample = {"prompt": "a fox\nin snow", "negative_prompt": "blurry", "width": 512, "height": 770, "seed": 7}
    sample |= {"diffusion_steps": 28, "cfg_scale": 6.5, "noise_scheduler": "EULER_A"}
    found = imported({"samples": [sample, {"enabled": False}, {"prompt": "b", "random_seed": True}]})
    assert found.job.samples.sample_prompts == [
        "a fox in snow --n blurry --w 512 --h 768 --d 7 --s 28 --l 6.5 --ss euler_a",
        "b --w 512 --h 512 --s 30 --l 7 --ss ddim",
    ]
    assert not found.job.samples.prompt_weights


@pytest.mark.parametrize(
    ("model", "word"),
    [("FLUX_DEV_1", "FLUX"), ("STABLE_DIFFUSION_15_INPAINTING", "inpainting"), ("STABLE_DIFFUSION_35", "Diffusion 3")],
)
def test_other_models_are_refused_by_name(model, word):
    with pytest.raises(ProblemsError) as refused:
        imported({"model_type": model})
    assert refused.value.codes == ["import.other-family"] and word in refused.value.problems[0].what
